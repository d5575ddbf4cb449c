"""Conversions refuse what they would see a part of, and end with a comparison."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from explainguide.bcos import AddInverse, bcosify
from explainguide.errors import GuidanceError, OptionError
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
@pytest.mark.parametrize("convert", [lambda m: bcosify(m, b=1), bcosify, lambda m: remove_bias(m, image_size=(32, 32))])  # fmt: skip
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


def test_peft_is_refused_by_name() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    wrapped = peft.get_peft_model(net(), config)
    for model in (wrapped, wrapped.base_model.model):
        for convert in (bcosify, remove_bias):
            with pytest.raises(GuidanceError, match="merge_and_unload"):
                convert(model)
    merged = wrapped.merge_and_unload().eval()
    x = torch.rand(2, 3, 32, 32)
    network = bcosify(merged, b=1).eval()
    torch.testing.assert_close(network(AddInverse()(x)), merged(x), atol=1e-5, rtol=1e-4)


class Scaled(nn.Conv2d):
    """A convolution with a forward of its own, which no list of layers knows."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


def with_hook(model: nn.Sequential) -> None:
    model[2].register_forward_hook(lambda module, inputs, output: output + 0.1)


def with_an_instance_forward(model: nn.Sequential) -> None:
    plain = model[6].forward
    model[6].forward = lambda x: plain(x) * 2


@pytest.mark.parametrize("change", [with_hook, with_an_instance_forward])
@pytest.mark.parametrize("b", [1, 2])
def test_whatever_else_computes_is_found_by_the_comparison(
    change: Callable[..., None], b: float
) -> None:
    model = net()
    change(model)
    with pytest.raises(GuidanceError, match=r"at b = 1 the network's logits differ .* by "):
        bcosify(model, b=b)
    bcosify(model, b=b, keep_weights=False)  # promises nothing of the weights


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
