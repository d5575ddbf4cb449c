"""`bcosify`: what each option changes, what a conversion says of itself, and what is refused."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from explainguide.bcos import (
    AddInverse,
    BatchNormUncentered2d,
    BcosConv2d,
    BcosLinear,
    DetachableGroupNorm2d,
    DetachableLayerNorm,
    DetachablePositionNorm2d,
    Gated,
    GatedChannels,
    GroupNormUncentered2d,
    LayerNormUncentered,
    LogitBias,
    PositionNormUncentered2d,
    bcosify,
    contribution_map,
    conversion,
    logit_bias,
    scale_biases,
)
from explainguide.bcos.explanations import missing_share
from explainguide.bcos.transform import BcosUnit
from explainguide.errors import OptionError, ShapeError

from .families import FAMILIES, build, converted, images, size_of


def small(*modules: nn.Module, channels: int = 8) -> nn.Sequential:
    """Convolution, modules, pooling, classifier of 4 classes; images of 3 x 16 x 16."""
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)
    model = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *modules, *head)
    model.image_size = 16  # type: ignore[assignment]
    return model


def kinds(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules()}


def units(model: nn.Module) -> list[BcosUnit]:
    return [module for module in model.modules() if isinstance(module, BcosUnit)]


def six(count: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return AddInverse()(torch.rand(count, 3, 16, 16, generator=generator, dtype=dtype))


NORMS: list[tuple[str, dict[str, Any], set[type]]] = [
    ("vit", {}, {DetachableLayerNorm}),
    ("vit", {"norm": "uncentered"}, {LayerNormUncentered}),
    ("vit", {"keep_weights": False}, {LayerNormUncentered}),
    ("vit", {"keep_weights": False, "norm": "detached"}, {DetachableLayerNorm}),
    ("tv-convnext", {}, {DetachablePositionNorm2d, DetachableLayerNorm}),
    ("tv-convnext", {"norm": "uncentered"}, {PositionNormUncentered2d, LayerNormUncentered}),
    ("resnet-group-norm", {}, {DetachableGroupNorm2d}),
    ("resnet-group-norm", {"norm": "uncentered"}, {GroupNormUncentered2d}),
    # Batch norm subtracts a constant, the running mean: no form of it is both centred and complete.
    ("tv-resnet", {}, {BatchNormUncentered2d}),
    ("tv-resnet", {"norm": "detached", "keep_weights": False}, {BatchNormUncentered2d}),
]


@pytest.mark.parametrize(("name", "options", "expected"), NORMS)
def test_norms(name: str, options: dict[str, Any], expected: set[type]) -> None:
    every = {case for _, _, cases in NORMS for case in cases}
    assert kinds(converted(name, **options)) & every == expected


def test_a_norm_of_one_s_own() -> None:
    asked = []

    def norm(channels: int) -> nn.Module:
        asked.append(channels)
        return GroupNormUncentered2d(2, channels)

    model = small(nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.GroupNorm(2, 6), channels=8)
    model[-1] = nn.Linear(6, 4)
    network = bcosify(model, norm=norm)
    assert asked == [8, 6]
    assert kinds(network) & {BatchNormUncentered2d, nn.BatchNorm2d, nn.GroupNorm} == set()
    assert network[1].weight.equal(model[1].weight)
    assert missing_share(network.double().eval(), six(dtype=torch.float64)) < 1e-12


def test_norms_keep_their_numbers() -> None:
    norm = nn.BatchNorm2d(8, eps=1e-3, momentum=0.05)
    norm.running_var.uniform_(0.5, 2)
    norm.running_mean.normal_()
    norm.num_batches_tracked += 7
    new = bcosify(small(norm), 1.0)[1]
    assert (new.eps, new.momentum) == (1e-3, 0.05)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert getattr(new, name).equal(getattr(norm, name))
    assert new.bias.equal(norm.bias) and float(new.centering) == 1
    assert bcosify(small(norm), 2.0)[1].centering is None
    layer = nn.LayerNorm((8, 16, 16), eps=1e-3)
    nn.init.normal_(layer.bias)
    new = bcosify(small(layer), 1.0)[1]
    assert (new.eps, new.normalized_shape) == (1e-3, (8, 16, 16))
    assert new.bias.equal(layer.bias)


def test_statistics_in_double_precision() -> None:
    norm = nn.BatchNorm2d(8).double()
    norm.running_var.uniform_(0.5, 2)
    norm.running_mean.normal_()
    model = small(norm).double()
    network = bcosify(model, 1.0).eval()
    assert network[1].running_var.equal(norm.running_var)
    x = six(dtype=torch.float64)
    torch.testing.assert_close(network(x), model.eval()(x[:, :3]), rtol=1e-13, atol=1e-14)


def test_norms_without_numbers() -> None:
    model = small(
        nn.BatchNorm2d(8, affine=False, track_running_stats=False),
        nn.GroupNorm(2, 8, affine=False),
        nn.LayerNorm(16, elementwise_affine=False),
        nn.LayerNorm(16, bias=False),
    ).double()
    x = six(dtype=torch.float64)
    for options in ({}, {"keep_weights": False}):
        network = bcosify(model, **options).eval()
        assert missing_share(network, x) < 1e-9
    one = bcosify(model.eval(), 1.0)
    # Without running statistics batch norm centres by the batch, which only a bias could undo.
    assert one(x).shape == (2, 4)


@pytest.mark.parametrize("name", ["tv-resnet", "vit", "mobilenet-v3"])
def test_max_out(name: str) -> None:
    network, plain = (
        converted(name, keep_weights=False, max_out=2),
        converted(name, keep_weights=False),
    )
    for double, single in zip(units(network), units(plain), strict=True):
        assert (double.max_out, single.max_out) == (2, 1)
        assert double.weight.shape == (2 * len(single.weight), *single.weight.shape[1:])
    assert "max_out=2" in repr(network)


@pytest.mark.parametrize("gain", ["unit", "norm", "power"])
def test_gain(gain: str) -> None:
    model, x = small(nn.ReLU()), six()
    network = bcosify(model, 2.0, gain=gain)
    assert {unit.gain for unit in units(network)} == {gain}
    lengths = model[0].weight.flatten(1).norm(dim=1)
    stem = network[0]
    stem.scale = None
    unit = copy.deepcopy(stem)
    unit.gain = "unit"
    factor = lengths ** {"unit": 0, "norm": 1, "power": 2}[gain]
    six_fold = stem.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(six_fold, lengths)
    torch.testing.assert_close(stem(x), unit(x) * factor[:, None, None])


def test_defaults_of_gain() -> None:
    assert {unit.gain for unit in units(bcosify(small()))} == {"norm"}
    assert {unit.gain for unit in units(bcosify(small(), keep_weights=False))} == {"unit"}


@pytest.mark.parametrize("name", ["tv-resnet", "tv-densenet", "convnext", "vit", "deit-distilled"])
def test_the_bias_of_the_logits(name: str) -> None:
    old = build(name)
    heads = [m for m in old.modules() if isinstance(m, nn.Linear) and m.out_features == 4]
    expected = torch.stack([head.bias for head in heads]).mean(0)
    for b in (1.0, 2.0):
        torch.testing.assert_close(logit_bias(converted(name, b=b)), expected)
    for b in (2.0, 1.5):
        bias = logit_bias(converted(name, b=b, keep_weights=False))
        torch.testing.assert_close(bias, torch.tensor(-math.log(3), dtype=torch.float64))
    for keep in (True, False):
        network = converted(name, logit_bias=-5.0, keep_weights=keep)
        assert float(logit_bias(network)) == -5
        biases = [m for m in network.modules() if isinstance(m, LogitBias)]
        assert len(biases) == len(heads)
        assert not any(m.bias.requires_grad for m in biases)
    assert float(logit_bias(converted(name, logit_bias=0.0))) == 0


def test_a_classifier_without_bias() -> None:
    model = small()
    model[-1] = nn.Linear(8, 4, bias=False)
    assert float(logit_bias(bcosify(model))) == 0
    model[-1] = nn.Linear(8, 1)
    assert float(logit_bias(bcosify(model, keep_weights=False))) == 0


ACTIVATIONS = (nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.ReLU6(), nn.LeakyReLU(0.2))


@pytest.mark.parametrize("activation", [*ACTIVATIONS, nn.PReLU(), nn.Mish(), nn.ELU()], ids=str)
def test_activations(activation: nn.Module) -> None:
    model = small(nn.BatchNorm2d(8), activation).eval().double()
    x = six(dtype=torch.float64)
    for options in ({}, {"keep_weights": False, "activations": "keep"}, {"activations": "drop"}):
        network = bcosify(model, **options).eval()
        kept = options.get("activations") != "drop"
        piecewise = (
            isinstance(activation, nn.ReLU | nn.LeakyReLU | nn.PReLU)
            and type(activation) is not nn.ReLU6
        )
        new = network[2]
        expected = (type(activation) if piecewise else Gated) if kept else nn.Identity
        assert type(new) is expected
        assert missing_share(network, x) < 1e-12
    assert bcosify(model, keep_weights=False)[2].__class__ is nn.Identity
    one = bcosify(model, 1.0)
    torch.testing.assert_close(one(x), model(x[:, :3]), rtol=1e-6, atol=1e-6)


def test_activations_in_place() -> None:
    """They would write into what an explanation needs, and stay in place in the model itself."""
    for activation in (nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.LeakyReLU(0.1, True)):
        model = small(activation)
        network = bcosify(model)
        assert activation.inplace and model[1] is activation
        assert not any(getattr(module, "inplace", False) for module in network.modules())


@pytest.mark.parametrize("b", [1.0, 2.0])
@pytest.mark.parametrize("name", ["tv-resnet", "tv-vgg", "convnext", "vit"])
def test_biases(name: str, b: float) -> None:
    default, kept, dropped = (
        {key for key, _ in converted(name, b=b, **options).named_parameters()}
        for options in ({}, {"bias": True}, {"bias": False})
    )
    assert default == (kept if b == 1 else dropped)
    left = {key for key in dropped if key.endswith("bias")}
    assert {key for key in kept if key.endswith("bias")} > left
    assert len(left) == 1, "that of the logits"


def test_biases_are_those_of_the_model() -> None:
    model = small(nn.ReLU())
    assert bcosify(model, 2.0, bias=True)[0].bias.equal(model[0].bias)
    assert bcosify(model, 2.0)[0].bias is None
    assert bcosify(model, keep_weights=False)[0].bias is None


def test_pooling() -> None:
    """A maximum is kept with the weights, and else an average of the same geometry."""
    model = small(nn.MaxPool2d(3, 2, 1, ceil_mode=True))
    assert type(bcosify(model)[1]) is nn.MaxPool2d
    new = bcosify(model, keep_weights=False)[1]
    assert type(new) is nn.AvgPool2d
    assert (new.kernel_size, new.stride, new.padding, new.ceil_mode) == (3, 2, 1, True)


# What a network from scratch has of the model that it was made from: its architecture.


@pytest.mark.parametrize(
    "name",
    [
        *("tv-resnet", "tv-vgg", "convnext", "mixer"),
        *("seresnext", "vit", "tv-vit"),
    ],
)
def test_new_weights_are_new(name: str) -> None:
    """Two conversions of one trained model share no weight matrix with it."""
    model, network = build(name), converted(name, keep_weights=False)
    old = [p for p in model.parameters() if p.ndim > 1]
    for key, parameter in network.named_parameters():
        if parameter.ndim > 1:
            same = [p for p in old if p.numel() == parameter.numel()]
            assert not any(p.flatten().equal(parameter.flatten()) for p in same), key


def test_new_networks_are_the_same_whatever_was_trained() -> None:
    """With biases asked for, too."""
    first, second = small(nn.BatchNorm2d(8)), small(nn.BatchNorm2d(8))
    states = []
    for model in (first, second):
        torch.manual_seed(0)
        states.append(bcosify(model, keep_weights=False, bias=True).state_dict())
    for key, value in states[0].items():
        assert value.equal(states[1][key]), key


def test_new_weights_can_be_trained_where_old_ones_were_frozen() -> None:
    network = bcosify(small(nn.BatchNorm2d(8)).requires_grad_(False), keep_weights=False)
    frozen = {key for key, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"4.bias"}, "the bias of the logits is fixed"


def test_random_numbers_are_left_alone_where_none_are_needed() -> None:
    model = small(nn.BatchNorm2d(8))
    state = torch.get_rng_state()
    networks = [bcosify(model), bcosify(model)]
    assert torch.get_rng_state().equal(state)
    for key, value in networks[0].state_dict().items():
        assert value.equal(networks[1].state_dict()[key])


@pytest.mark.parametrize("name", ["tv-resnet", "tv-densenet", "densenet", "tv-convnext", "vit"])
def test_a_conversion_is_the_same_every_time(name: str) -> None:
    """Which units have a scale depends on the architecture, and not on the memory that is free."""
    states = []
    for count in range(6):
        held = [torch.empty(1000 * (i + count)) for i in range(20)]
        states.append(bcosify(build(name), 2.0).state_dict())
        del held
    for state in states[1:]:
        assert list(state) == list(states[0])
        for key, value in state.items():
            assert value.equal(states[0][key]), key


# The stem.


@pytest.mark.parametrize("normalised", [(0.5, 0.25), ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))])
def test_the_stem_normalises(normalised: tuple[Any, Any]) -> None:
    mean, std = normalised
    model, x = small().double(), six(dtype=torch.float64)
    m, s = (torch.tensor(v, dtype=torch.float64).expand(3)[:, None, None] for v in normalised)
    network = bcosify(model, 1.0, mean=mean, std=std)
    torch.testing.assert_close(network(x), model((x[:, :3] - m) / s))
    torch.testing.assert_close(
        network(x), bcosify(model, 1.0, mean=m.flatten(), std=s.flatten())(x)
    )
    assert network[0].weight.shape == (8, 6, 3, 3)


def test_only_the_stem_takes_six_channels() -> None:
    model = small(nn.Conv2d(8, 3, 3), nn.Conv2d(3, 8, 3))
    network = bcosify(model)
    assert [unit.in_channels for unit in units(network)] == [6, 8, 3, 8]
    assert conversion(network).changes["2"] == "Conv2d(3) -> BcosConv2d(3)"


class TwoStems(nn.Module):
    """Both branches see the image, as in RepVGG."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)
        self.image_size = 16

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.wide(x) + self.narrow(x)).flatten(1))


def test_two_stems() -> None:
    """Both take six channels."""
    model, x = TwoStems().double(), six(dtype=torch.float64)
    network = bcosify(model, 1.0)
    torch.testing.assert_close(network(x), model(x[:, :3]))
    assert missing_share(bcosify(model), x) < 1e-12


# The classifier.


def test_the_classifier_comes_before_the_pooling() -> None:
    network = bcosify(small(nn.BatchNorm2d(8), nn.Dropout(0.0), nn.ReLU()))
    assert [type(module).__name__ for module in network] == [
        "BcosConv2d", "BatchNormUncentered2d", "Dropout", "ReLU", "Sequential", "Flatten", "LogitBias",
    ]  # fmt: skip
    assert [type(module) for module in network[4]] == [BcosConv2d, nn.AdaptiveAvgPool2d]
    for name in ("tv-resnet", "tv-densenet", "tv-mobilenet-v2", "tv-efficientnet", "resnet"):
        for keep in (True, False):
            network = converted(name, keep_weights=keep)
            assert not any(isinstance(unit, BcosLinear) for unit in units(network)), name


def test_a_norm_before_the_classifier_keeps_the_order_with_the_weights() -> None:
    """It is not linear; a new network has the classifier first."""
    kept, fresh = converted("convnext", b=2.0), converted("convnext", keep_weights=False)
    assert isinstance(kept.head.fc.classifier, BcosLinear)
    assert isinstance(fresh.head.fc, LogitBias)
    assert isinstance(fresh.head.global_pool.classifier, BcosConv2d)
    assert isinstance(fresh.head.global_pool.norm, PositionNormUncentered2d)


def test_a_dropout_before_the_classifier_stays_before_it() -> None:
    model = small(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    model.insert(4, nn.Dropout(0.5))  # between pooling and classifier
    network = bcosify(model)
    assert [type(m) for m in network.modules()].count(nn.Dropout) == 1
    parts = [module for module in network.modules() if not list(module.children())]
    order = [type(module) for module in parts]
    last = max(i for i, kind in enumerate(order) if kind is BcosConv2d)
    assert order.index(nn.Dropout) < last


# What a conversion says.


def test_changes() -> None:
    model = small(
        nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1), nn.ReLU(),
        torchvision.ops.SqueezeExcitation(8, 4),
    )  # fmt: skip
    kept = conversion(bcosify(model))
    assert kept.changes == {
        "0": "Conv2d(3) -> BcosConv2d(6)",
        "1": "BatchNorm2d -> BatchNormUncentered2d",
        "2": "SiLU -> Gated",
        "4": "Conv2d -> BcosConv2d",
        "5": "ReLU -> ReLU",
        "6": "SqueezeExcitation -> GatedChannels",
        "7": "pooling -> BcosConv2d, pooling",
        "9": "Linear -> LogitBias",
    }
    assert kept.left == []
    fresh = conversion(bcosify(model, keep_weights=False))
    differing = {key: text for key, text in fresh.changes.items() if kept.changes.get(key) != text}
    assert differing == {
        "2": "SiLU -> Identity",
        "3": "MaxPool2d -> AvgPool2d",
        "5": "ReLU -> Identity",
    }
    assert fresh.left == []
    lines = str(kept).splitlines()
    assert "   1 x Conv2d(3) -> BcosConv2d(6)" in lines
    assert "   1 x SiLU -> Gated" in lines
    assert len(lines) == len(kept.changes)


def test_changes_of_known_models() -> None:
    changes = conversion(converted("tv-densenet", b=2.0)).changes
    assert changes["classifier"] == "pooling, Linear -> BcosConv2d, pooling, LogitBias"
    changes = conversion(converted("tv-vgg", b=2.0)).changes
    assert changes["classifier.6"] == "Linear -> BcosLinear, LogitBias"
    changes = conversion(converted("vit", b=2.0)).changes
    assert changes[""] == "BcosVisionTransformer: positions for queries and keys only"
    assert changes["blocks.0.attn"] == "Attention -> BcosAttention"
    assert changes["blocks.0.attn.proj"] == "Linear -> BcosLinear"
    assert "blocks.0.attn.qkv" not in changes
    changes = conversion(converted("tv-vit", b=2.0)).changes
    assert changes["encoder.layers.encoder_layer_0.self_attention"] == (
        "MultiheadAttention -> BcosMultiheadAttention"
    )
    changes = conversion(converted("resnet", b=2.0)).changes
    assert changes["bn1"] == "BatchNormAct2d -> BatchNormUncentered2d and activation" or (
        changes["bn1"] == "BatchNorm2d -> BatchNormUncentered2d"
    )


def test_what_is_left() -> None:
    (told,) = conversion(converted("vit", b=1.0)).left
    assert told.startswith("cls_token, pos_embed: added to the tokens")
    assert conversion(converted("vit", b=2.0)).left == []
    (told,) = conversion(converted("deit-distilled", b=2.0, bias=True)).left
    assert "dist_token" in told
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.image_size = 16  # type: ignore[assignment]
    (told,) = conversion(bcosify(model)).left
    assert told == "no linear layer returns the logits, so there is no logit bias"
    assert "left: no linear layer" in str(conversion(bcosify(model)))


def test_grey_images_have_no_inverse_and_the_conversion_says_so() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    model.image_size = 16  # type: ignore[assignment]
    network = bcosify(model)
    (told,) = conversion(network).left
    assert told == (
        "no convolution takes three channels, so images come as they did, without their inverse"
    )
    assert network(torch.rand(2, 1, 16, 16)).shape == (2, 2)


class Functional(nn.Module):
    """An activation that is no module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.fc, self.function = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), function
        self.image_size = 16

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (nn.functional.relu, False),
        (nn.functional.gelu, True),
        (torch.tanh, True),
        (lambda x: x + 1, True),
        (lambda x: nn.functional.max_pool2d(x, 2), False),
        (lambda x: nn.functional.normalize(x, dim=1), True),
    ],
)
def test_functions_in_a_forward(function: Callable[[Tensor], Tensor], told: bool) -> None:
    left = conversion(bcosify(Functional(function))).left
    assert bool(left) == told
    assert not told or ("maps miss" in left[0] and "a function in the forward" in left[0])


class SharedActivation(nn.Module):
    """One module under two names, as modules without parameters often are."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.act = self.act2 = nn.GELU()
        self.fc, self.image_size = nn.Linear(8, 4), 16

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act2(self.two(self.act(self.one(x)))).mean((2, 3)))


class SharedConv(nn.Module):
    """One convolution in two parents: tied weights."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(8, 8, 3, padding=1)
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3), nn.Sequential(conv), nn.Sequential(conv)
        self.fc, self.image_size = nn.Linear(8, 4), 16

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.two(self.one(self.stem(x))).mean((2, 3)))


def test_a_module_with_two_names() -> None:
    network = bcosify(SharedActivation())
    assert conversion(network).left == []
    assert network.act is network.act2


def test_tied_weights_stay_tied() -> None:
    network = bcosify(SharedConv())
    assert network.one[0] is network.two[0]


def test_a_unit_that_runs_twice_has_one_scale() -> None:
    """It gives both outputs, together, the size that they have at B = 1."""
    model = SharedConv()
    model.two = model.one
    network, plain = bcosify(model, 2.0).eval(), bcosify(model, 1.0, bias=False).eval()
    x = six(8)
    sizes = [(m(x) - logit_bias(m)).square().mean().sqrt() for m in (network, plain)]
    assert 0.3 < sizes[0] / sizes[1] < 3


def told_or_refused(model: nn.Module) -> bool:
    try:
        return conversion(bcosify(model)).left != []
    except OptionError:
        return True


def linear_attention(x: Tensor) -> Tensor:
    """Without softmax, as EfficientViT's: of the size of its input."""
    q, k, v = x[:, :2].flatten(2).abs(), x[:, 2:4].flatten(2).abs(), x.flatten(2)
    attended = v @ k.mT @ q / (k.sum(2)[:, :, None] * q).sum(1, keepdim=True)
    return attended.unflatten(2, x.shape[2:])


def product(x: Tensor) -> Tensor:
    return x.square() / x.square().mean((1, 2, 3), keepdim=True).sqrt()


@pytest.mark.parametrize("function", [linear_attention, product])
def test_functions_of_the_size_of_their_input(function: Callable[[Tensor], Tensor]) -> None:
    """Sums of maps are right, by Euler's theorem, and pixels are not, as in `test_exactness.py`."""
    assert told_or_refused(Functional(function))


def test_root_mean_square_pooling_is_refused() -> None:
    assert told_or_refused(small(nn.LPPool2d(2, 2)))


def test_a_small_share_that_is_missing_is_told() -> None:
    assert not told_or_refused(small(nn.ConstantPad2d(1, 0.0)))
    assert told_or_refused(small(nn.ConstantPad2d(1, 1e-3)))
    assert told_or_refused(Functional(lambda x: x + 1e-3))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_geometry_of_convolutions(mode: str) -> None:
    model = small(
        nn.Conv2d(8, 8, (3, 1), padding="same", dilation=2, groups=4, padding_mode=mode),
        nn.Conv2d(8, 8, 3, stride=(2, 1), padding=(1, 0), bias=False, padding_mode=mode),
    ).double()
    x = six(dtype=torch.float64)
    torch.testing.assert_close(bcosify(model, 1.0)(x), model(x[:, :3]))
    assert missing_share(bcosify(model), x) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_types(dtype: torch.dtype) -> None:
    model = small(nn.BatchNorm2d(8), nn.SiLU()).to(dtype).eval()
    for options in ({}, {"keep_weights": False}, {"b": 1.0}):
        network = bcosify(model, **options)
        assert {p.dtype for p in network.parameters()} == {dtype}
        assert network(six(dtype=dtype)).dtype == dtype


def test_a_wrapped_model() -> None:
    with pytest.raises(OptionError, match="B-cos network already"):
        bcosify(nn.Sequential(AddInverse(), bcosify(small())))


@pytest.mark.parametrize("name", ["tv-resnet", "vit"])
def test_three_channels_where_six_are_needed(name: str) -> None:
    network, x = converted(name, b=2.0), images(name)
    with pytest.raises(
        ShapeError, match=r"^BcosConv2d: the image has 3 channels.*takes 6.*AddInverse"
    ):
        network(x[:, :3])
    assert nn.Sequential(AddInverse(), network)(x[:, :3]).equal(network(x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "swin": (
        lambda: timm.models.SwinTransformer(
            img_size=32, patch_size=2, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=4
        ),
        r"layers\.0\.blocks\.0\.attn \(WindowAttention\)",
    ),
    "torchvision-swin": (
        lambda: torchvision.models.SwinTransformer([2, 2], 8, [2, 2], [2, 2], [4, 4]),
        r"features\.1\.0\.attn \(ShiftedWindowAttention\)",
    ),
    "beit": (
        lambda: timm.create_model(
            "beit_base_patch16_224", img_size=32, embed_dim=16, num_heads=2, depth=2
        ),
        r"blocks\.0\.attn \(Attention\), blocks\.1\.attn",
    ),
    "grn": (
        lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), use_grn=True),
        r"stages\.0\.blocks\.0\.mlp\.grn \(GlobalResponseNorm\)",
    ),
    "sigmoid": (lambda: small(nn.Sigmoid()), r"1 \(Sigmoid\)\. Replace"),
    "hardsigmoid": (lambda: small(nn.Hardsigmoid()), r"1 \(Hardsigmoid\)\. Replace"),
    "tanh": (lambda: small(nn.Tanh()), r"1 \(Tanh\)\. Replace"),
    "softmax": (lambda: small(nn.Softmax(1)), r"1 \(Softmax\)\. Replace"),
    "instance-norm": (lambda: small(nn.InstanceNorm2d(8)), r"1 \(InstanceNorm2d\)\. Replace"),
    "transposed": (lambda: small(nn.ConvTranspose2d(8, 8, 2)), r"1 \(ConvTranspose2d\)"),
    "many": (lambda: small(*(nn.Tanh() for _ in range(6))), r"4 \(Tanh\) and 2 more\. Replace"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_without_a_form_are_named(name: str) -> None:
    build_it, text = REFUSED[name]
    model = build_it()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        OptionError, match=rf"^bcosify: .* has layers without a B-cos form: .*{text}"
    ):
        bcosify(model)
    assert all(value.equal(model.state_dict()[key]) for key, value in before.items())


def test_scripted_models() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        model = torch.jit.script(small())
    with pytest.raises(Exception, match=r"^bcosify: the model was scripted or traced"):
        bcosify(model)


def test_scale_biases_needs_a_network_with_biases_to_scale() -> None:
    with pytest.raises(OptionError, match=r"^scale_biases: .*no B-cos"):
        scale_biases(small(), 0)


def test_every_family_is_converted_whole() -> None:
    """Nothing is left, and gates over channels are found where there are any."""
    gated = set()
    for name in FAMILIES:
        network = converted(name, b=2.0)
        assert conversion(network).left == []
        gated |= {name for m in network.modules() if isinstance(m, GatedChannels)}
        size = size_of(name)
        assert contribution_map(network, images(name), 0).shape == (2, size, size)
    mobile = {"mobilenet-v3", "tv-mobilenet-v3", "efficientnet", "tv-efficientnet"}
    assert gated == mobile | {"seresnext"}
