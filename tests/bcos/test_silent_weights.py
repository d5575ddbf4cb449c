"""Conversions refuse what they would see a part of, and end with a comparison."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.nn import qat
from torch.nn.utils import parametrizations, parametrize, prune

from explainguide.bcos import (
    AddInverse,
    bcosify,
    contribution_map,
    conversion,
    explanation_mode,
)
from explainguide.errors import GuidanceError, OptionError
from explainguide.models.same_logits import alive, difference
from explainguide.xdnn import remove_bias


def net(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=bias),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2, bias=bias),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4, bias=bias),
    ).eval()


def remove(model: nn.Module) -> nn.Module:
    return remove_bias(model, image_size=(32, 32))


class Low(nn.Linear):
    """Low-rank adapters as people write them."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__(old.in_features, old.out_features)
        self.load_state_dict(old.state_dict())
        self.lora_A = nn.Parameter(torch.randn(2, old.in_features))
        self.lora_B = nn.Parameter(torch.randn(old.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.lora_A.T @ self.lora_B.T


def adapted(model: nn.Sequential) -> None:
    model[6] = Low(model[6])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("convert", [lambda m: bcosify(m, b=1), bcosify, remove])  # fmt: skip
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda m: nn.utils.weight_norm(m[2]), ["'2' has weight norm", "remove_weight_norm(model.get_submodule('2'), 'weight')"]),
        (lambda m: nn.utils.spectral_norm(m[6]), ["'6' has spectral norm", "remove_spectral_norm("]),
        (lambda m: parametrizations.weight_norm(m[2]), ["parametrized weight (WeightNorm)", "remove_parametrizations("]),
        (lambda m: parametrizations.spectral_norm(m[0]), ["'0'", "(SpectralNorm)"]),
        (lambda m: parametrizations.orthogonal(m[6]), ["'6'", "(Orthogonal)"]),
        (lambda m: parametrize.register_parametrization(m[6], "bias", nn.Tanh()), ["parametrized bias (Tanh)", "'bias')"]),
        (lambda m: prune.l1_unstructured(m[2], "weight", amount=0.5), ["'2' has a pruned weight", "prune.remove("]),
        (lambda m: prune.random_structured(m[2], "weight", amount=0.5, dim=0), ["pruned weight"]),
        (adapted, ["'6' is a Low with low-rank adapters"]),
    ],
)  # fmt: skip
def test_weights_that_are_not_plain_are_refused(
    convert: Callable[..., nn.Module], change: Callable[..., object], parts: list[str]
) -> None:
    model = net()
    change(model)
    with pytest.raises(GuidanceError) as wrong:
        convert(model)
    assert all(part in str(wrong.value) for part in parts)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_call_that_is_named_helps() -> None:
    x = torch.rand(2, 3, 32, 32)
    for change, mend in (
        (lambda m: nn.utils.weight_norm(m[2]), lambda m: nn.utils.remove_weight_norm(m[2], "weight")),
        (lambda m: parametrizations.spectral_norm(m[2]), lambda m: parametrize.remove_parametrizations(m[2], "weight")),
        (lambda m: prune.l1_unstructured(m[2], "weight", amount=0.5), lambda m: prune.remove(m[2], "weight")),
    ):  # fmt: skip
        model = net()
        change(model)
        model.eval()
        expected = model(x)
        mend(model)
        network = bcosify(model, b=1).eval()
        torch.testing.assert_close(network(AddInverse()(x)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lora", "dora", "head", "ia3", "adalora", "injected"])
def test_peft_is_refused_by_name(kind: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(32, 8, embed_dim=16, depth=2, num_heads=2, num_classes=4)
    lora = {"r": 2, "target_modules": ["qkv", "fc1"], "init_lora_weights": False}
    config = {
        "lora": lambda: peft.LoraConfig(**lora),
        "dora": lambda: peft.LoraConfig(**lora, use_dora=True),
        "head": lambda: peft.LoraConfig(**lora, modules_to_save=["head"]),
        "ia3": lambda: peft.IA3Config(
            target_modules=["qkv", "fc1"], feedforward_modules=["fc1"], init_ia3_weights=False
        ),
        "adalora": lambda: peft.AdaLoraConfig(
            target_modules=["qkv"], total_step=10, init_r=2, init_lora_weights=False
        ),
        "injected": lambda: peft.LoraConfig(**lora),
    }[kind]()
    if kind == "injected":
        wrapped = peft.inject_adapter_in_model(config, model)
    else:
        wrapped = peft.get_peft_model(model, config)
    wrapped.eval()
    for found in [wrapped] if kind == "injected" else [wrapped, wrapped.base_model.model]:
        for convert in (bcosify, remove):
            with pytest.raises(
                GuidanceError, match=r"is PEFT's \w+, .* model\.merge_and_unload\(\)"
            ):
                convert(found)
    if kind != "injected":
        x = torch.rand(2, 3, 32, 32)
        expected = wrapped(x)
        network = bcosify(wrapped.merge_and_unload(), b=1).eval()
        torch.testing.assert_close(network(AddInverse()(x)), expected, atol=1e-5, rtol=1e-4)


class Scaled(nn.Conv2d):
    """A convolution with a forward of its own, which no list of layers knows."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


def with_hook(model: nn.Sequential) -> None:
    model[2].register_forward_hook(lambda module, inputs, output: output + 0.1)


def with_hooks_behind_zeros(model: nn.Sequential) -> None:
    with_hook(model)
    nn.init.zeros_(model[6].weight)


def small_in_half_precision(model: nn.Sequential) -> None:
    model[2].register_forward_hook(lambda module, inputs, output: output * 1.02)
    model.bfloat16()


def with_a_hook_before(model: nn.Sequential) -> None:
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.1,))


@pytest.mark.parametrize(
    "change", [with_hook, with_hooks_behind_zeros, small_in_half_precision, with_a_hook_before]
)
@pytest.mark.parametrize("b", [1, 2])
def test_whatever_else_computes_is_found_by_the_comparison(
    change: Callable[..., None], b: float
) -> None:
    model = net()
    change(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        GuidanceError, match=r"at b = 1 the network's logits differ .* by "
    ) as wrong:
        bcosify(model, b=b)
    assert "first in module '2' (Conv2d, with hooks)" in str(wrong.value)
    assert all(value.equal(model.state_dict()[key]) for key, value in state.items())
    bcosify(model, b=b, keep_weights=False)  # promises nothing of the weights


def test_the_difference_is_the_one_that_it_says() -> None:
    model = net()
    twice = net()
    twice[6].register_forward_hook(lambda module, inputs, output: output * 2)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        size = model(x).abs().max()
        assert difference(model, net(), x) is None
        found = difference(model, twice, x)
    assert found == f"by {size:.3g}, of {size:.3g}, first in module '6' (Linear)"
    assert not twice[2]._forward_hooks and len(twice[6]._forward_hooks) == 1
    assert alive(model) is model
    nn.init.zeros_(model[2].bias)
    assert alive(model)[2].bias.all() and not model[2].bias.any()
    assert alive(net().half())[0].weight.dtype == torch.float32


def test_layers_in_place_hide_no_layer_before_them() -> None:
    """The model's convolution and the network's return the same, whatever becomes of it later."""
    model = net()
    model[1] = nn.ReLU(inplace=True)
    with_hook(model)
    with pytest.raises(GuidanceError, match="first in module '2'"):
        bcosify(model)


def test_hooks_that_only_watch_are_no_difference() -> None:
    model, seen = net(), []
    model[2].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    for b in (1, 2):
        bcosify(model, b=b)
    assert remove_bias(model, image_size=(32, 32))[2].bias is None


class Twice(nn.BatchNorm2d):
    """A norm with a forward of its own, of which a factor a channel would know nothing."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def with_a_norm(norm: nn.Module) -> nn.Sequential:
    model = net()
    model.insert(1, norm)
    return model.eval()


def hooked(model: nn.Sequential, at: int, hook: Callable[..., Tensor]) -> nn.Sequential:
    model[at].register_forward_hook(hook)
    return model


@pytest.mark.parametrize(
    ("build", "where"),
    [
        (lambda: with_a_norm(Twice(8)), "'1' (Twice)"),
        (lambda: hooked(with_a_norm(nn.BatchNorm2d(8)), 1, lambda m, i, o: 2 * o), "'1' (BatchNorm2d, with hooks)"),
        (lambda: hooked(net(), 2, lambda m, i, o: o + 0.1), "'2' (Conv2d, with hooks)"),
        (lambda: hooked(net(False), 2, lambda m, i, o: o + 0.1), "'2' (Conv2d, with hooks)"),
    ],
)  # fmt: skip
def test_remove_bias_loses_nothing_but_biases(build: Callable[[], nn.Module], where: str) -> None:
    with pytest.raises(GuidanceError) as wrong:
        remove(build())
    told = str(wrong.value)
    assert told.startswith("remove_bias: without biases the logits of Sequential are not those of")
    assert f"first in module {where}" in told


def test_remove_bias_drops_norms_without_a_comparison() -> None:
    """Dropping is asked for, and nothing is promised of the logits."""
    found = remove_bias(with_a_norm(Twice(8)), normalization="remove", image_size=(32, 32))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())


def traced(model: nn.Sequential) -> None:
    model[2].seen = model[2].weight * 2


def compiled(model: nn.Sequential) -> None:
    model[2] = torch.compile(model[2])


def lazy(model: nn.Sequential) -> None:
    model[2] = nn.LazyConv2d(16, 3)


def forward_of_a_layer(model: nn.Sequential) -> None:
    plain = model[6].forward
    model[6].forward = lambda x: plain(x) * 2


def forward_of_the_model(model: nn.Sequential) -> None:
    plain = model.forward
    model.forward = lambda x: plain(x) * 2


def method_of_nobody(model: nn.Sequential) -> None:
    model[6].forward = MethodType(lambda self, x: nn.Linear.forward(self, x) * 2, model[6])


class Beside(nn.Module):
    """Adapters in layers of their own, around the layer that they adapt."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.lora_down = nn.Linear(base.in_features, 2, bias=False)
        self.lora_up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_up(self.lora_down(x))


def beside(model: nn.Sequential) -> None:
    model[6] = Beside(model[6])


def fake_quantised(model: nn.Sequential) -> None:
    model[2].qconfig = quantization.get_default_qat_qconfig("fbgemm")
    model[2] = qat.Conv2d.from_float(model[2])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (traced, "module '2' keeps 'seen', a tensor of a graph, which cannot be copied. Call setattr(model.get_submodule('2'), 'seen', model.get_submodule('2').seen.detach()) first."),
        (compiled, "module '2' was compiled by torch.compile, which a conversion would not see. Call setattr(model, '2', model.get_submodule('2._orig_mod')) first."),
        (lazy, "module '2' holds weight as UninitializedParameter, which is not a plain parameter. Make it an nn.Parameter (a lazy layer: run the model once)."),
        (forward_of_a_layer, "module '6' has another forward than its class, which a conversion would lose. Call del model.get_submodule('6').forward, or accelerate's unwrap_model, first."),
        (method_of_nobody, "module '6' has another forward than its class"),
        (forward_of_the_model, "the model has another forward than its class"),
        (beside, "module '6' is a Beside with low-rank adapters, which a conversion would not see. Add them to its weight, and put back the layer that they adapt."),
        (fake_quantised, "module '2' is a Conv2d of torch.ao. Convert the model before it is prepared for quantisation."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("convert", [bcosify, remove])
def test_what_a_copy_would_lose_is_refused(
    convert: Callable[..., nn.Module], change: Callable[..., None], text: str
) -> None:
    model = net()
    change(model)
    with pytest.raises(GuidanceError) as wrong:
        convert(model)
    assert str(wrong.value).startswith(
        f"{convert.__name__.replace('remove', 'remove_bias')}: {text}"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [traced, compiled, forward_of_a_layer])
def test_the_other_calls_that_are_named_help(change: Callable[..., None]) -> None:
    model = net()
    change(model)
    with pytest.raises(GuidanceError) as wrong:
        bcosify(model)
    call = str(wrong.value).split("Call ")[1].split(" first.")[0].partition(", or accelerate")[0]
    exec(call)  # on `model`
    bcosify(model)


def test_what_cannot_be_copied() -> None:
    model = net()
    model.lock = threading.Lock()
    for convert in (bcosify, remove):
        with pytest.raises(GuidanceError, match=r"Sequential cannot be copied \(cannot pickle"):
            convert(model)


def test_a_class_that_chooses_among_its_own_forwards_is_plain() -> None:
    """As FasterNet's blocks of timm do."""

    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)
            self.forward = self.forward_twice  # type: ignore[method-assign]

        def forward_twice(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.conv(x)

    model = with_a_norm(Chooses())
    x = torch.rand(2, 3, 32, 32)
    found = bcosify(model, b=1)(AddInverse()(x))
    torch.testing.assert_close(found, model(x), atol=1e-5, rtol=1e-4)


class Matrix(nn.Module):
    """A classifier that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.w = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.stem(x).relu().mean((2, 3)), self.w)


def test_weights_outside_of_layers_are_named() -> None:
    with pytest.raises(
        OptionError, match=r"a B-cos form: w \(a matrix of Matrix itself\)\. Replace"
    ):
        bcosify(Matrix(), image_size=(32, 32))
    wrapped = nn.Sequential(Matrix())
    with pytest.raises(OptionError, match=r": 0\.w \(a matrix of Matrix itself\)"):
        bcosify(wrapped, image_size=(32, 32))


class Queries(nn.Module):
    """Adapters by no known name, with the weight of the layer that they adapt."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.more = base, nn.Linear(base.in_features, base.out_features)
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.more(x)


@pytest.mark.parametrize("b", [1, 2])
def test_queries_that_are_no_linear_layer_are_named(b: float) -> None:
    """Attention reads their weight, and would not call them."""
    model = timm.models.VisionTransformer(32, 8, embed_dim=16, depth=2, num_heads=2, num_classes=4)
    model.blocks[1].attn.qkv = Queries(model.blocks[1].attn.qkv)
    text = r"^bcosify: VisionTransformer has .* form: blocks\.1\.attn\.qkv \(Queries\)\. "
    with pytest.raises(OptionError, match=text):
        bcosify(model, b=b)


class Normalises(nn.Module):
    """A forward that subtracts the mean, of three channels, by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - self.mean)


@pytest.mark.parametrize("options", [{"b": 1}, {"b": 2}, {"keep_weights": False}])
def test_a_forward_that_does_not_run_any_more(options: dict[str, Any]) -> None:
    text = (
        "the forward of Normalises does not run with layers that are B-cos layers, on images with"
    )
    with pytest.raises(GuidanceError, match=text):
        bcosify(Normalises(), image_size=(32, 32), **options)


def test_tied_weights_stay_tied_or_are_told() -> None:
    model = net()
    model.insert(2, nn.Conv2d(8, 8, 3, padding=1))
    model.insert(3, nn.Conv2d(8, 8, 3, padding=1))
    model[3].weight = model[2].weight
    for b in (1, 2):
        network = bcosify(model, b=b)
        assert network[3].weight is network[2].weight and network[3].bias is not model[2].bias
        assert network[2].weight is not model[2].weight and conversion(network).left == []
    model[1] = nn.Conv2d(8, 3, 3)
    model[2], model[3] = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
    model[2].weight = model[0].weight  # the stem's takes six channels from now on
    (told,) = conversion(bcosify(model)).left
    assert told.startswith("0.weight, 2.weight: one parameter before, and now trained apart")


def test_a_layer_with_a_forward_of_its_own_is_named() -> None:
    model = net()
    model[2].__class__ = Scaled
    for b in (1, 2):
        with pytest.raises(OptionError, match=r"layers without a B-cos form: 2 \(Scaled\)"):
            bcosify(model, b=b)


def test_a_normalisation_is_part_of_the_comparison() -> None:
    model = net()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    x = torch.rand(2, 3, 32, 32)
    plain = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    network = bcosify(model, b=1, mean=mean, std=std).eval()
    torch.testing.assert_close(network(AddInverse()(x)), model(plain), atol=1e-5, rtol=1e-4)


class Columns(nn.Module):
    """A ViT whose patches are columns of the image: 1 x 6 places, as the pass alone can tell."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj = nn.Conv2d(3, 8, (8, 4), stride=(8, 4))
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.proj(x).flatten(2).mT).mean(1))


def test_a_neuron_of_a_token_layer_is_where_the_pass_has_it() -> None:
    network = bcosify(Columns(), b=1, image_size=(8, 24)).eval()
    x = AddInverse()(torch.rand(2, 3, 8, 24))
    found = contribution_map(network, x, 3, layer="mix", position=(0, 4))
    by_hand = x.clone().requires_grad_()
    tokens = network.mix(network.proj(by_hand).flatten(2).mT)
    with explanation_mode(network):
        (weights,) = torch.autograd.grad(tokens[:, 4, 3].sum(), by_hand)
    torch.testing.assert_close(found, (weights * x).sum(1))
    with pytest.raises(OptionError, match="1 x 6 places"):
        contribution_map(network, x, 3, layer="mix", position=(1, 0))
