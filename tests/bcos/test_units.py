"""The B-cos convolution and linear layer equal the formula, patch by patch and filter by filter."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide.bcos import BcosConv2d, BcosLinear, explanation_mode
from explainguide.errors import OptionError

from ..reference.bcos import bcos_conv, bcos_linear

MODES = ["zeros", "reflect", "replicate", "circular"]
PADDINGS: list[int | tuple[int, int] | str] = [1, (2, 1), "same", "valid"]
GAINS = ["unit", "norm", "power"]
# torch says so once a process.
SAME = "ignore:Using padding='same' with even kernel lengths:UserWarning"
# Kernels have two sizes, of which one is even: "same" then pads one side more than the other.
SHAPES: dict[str, dict[str, Any]] = {
    **{f"{m}-{p}": {"padding_mode": m, "padding": p} for m in MODES for p in PADDINGS},
    "plain": {},
    "point": {"kernel_size": 1},
    "point-stride": {"kernel_size": 1, "stride": 2},
    "stride": {"stride": 2, "padding": 1},
    "stride-pair": {"stride": (1, 2), "padding": (0, 1)},
    "dilation": {"dilation": 2, "padding": 1},
    "dilation-pair": {"dilation": (1, 3), "padding": "same"},
    "dilation-reflect": {"dilation": (2, 1), "padding": "same", "padding_mode": "reflect"},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4, "padding": 1},
    "maxout": {"max_out": 3},
    "maxout-groups": {"max_out": 2, "groups": 2},
    "maxout-dilation": {"max_out": 2, "dilation": (2, 1)},
    "everything": {
        "stride": (2, 1),
        "padding": (2, 1),
        "padding_mode": "circular",
        "dilation": (2, 1),
        "groups": 2,
        "max_out": 2,
    },
}


def images(channels: int = 4, size: tuple[int, int] = (6, 5), count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, channels, *size, generator=generator, dtype=torch.float64)


def conv(**options: Any) -> BcosConv2d:
    return BcosConv2d(4, 4, options.pop("kernel_size", (3, 2)), **options).double()


def explained(module: nn.Module, y: Tensor, x: Tensor, probe: Tensor, **how: Any) -> Tensor:
    with explanation_mode(module):
        return torch.autograd.grad(y, x, probe, **how)[0]


def assert_unit_is(module: nn.Module, x: Tensor, reference: Any) -> None:
    """Values, gradients, and the explanation, where `reference` takes input, weight and `freeze`."""
    x, weight = x.clone().requires_grad_(), module.weight
    y, expected = module(x), reference(x, weight, freeze=False)
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(y, expected, **close)
    probe = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, [x, weight], probe, retain_graph=True),
        torch.autograd.grad(expected, [x, weight], probe),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **close)
    found = explained(module, y, x, probe)
    frozen = reference(x, weight, freeze=True)
    torch.testing.assert_close(found, torch.autograd.grad(frozen, x, probe)[0], **close)
    torch.testing.assert_close((found * x).sum(), (y * probe).sum(), **close)


@pytest.mark.filterwarnings(SAME)
@pytest.mark.parametrize("shape", SHAPES)
def test_conv_shapes(shape: str) -> None:
    options = SHAPES[shape]
    module = conv(**options)

    def reference(x: Tensor, weight: Tensor, *, freeze: bool) -> Tensor:
        how = {k: v for k, v in options.items() if k != "kernel_size"}
        return bcos_conv(x, weight, freeze=freeze, **how)

    assert_unit_is(module, images(), reference)
    plain = {k: v for k, v in options.items() if k not in ("kernel_size", "max_out")}
    size = nn.Conv2d(4, 4, module.kernel_size, **plain).double()(images()).shape
    assert module(images()).shape == size
    torch.testing.assert_close(module(images()[0]), module(images())[0], rtol=0, atol=1e-12)


# Where a gain is in the cosine's place, the epsilon is not quite the cosine's; so without it.
@pytest.mark.parametrize("max_out", [1, 2])
@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("b", [1, 1.25, 2, 3])
def test_exponents_and_gains(b: float, gain: str, max_out: int) -> None:
    options: dict[str, Any] = {"b": b, "gain": gain, "max_out": max_out}
    options["cos_eps"] = 1e-6 if gain == "unit" else 0.0
    shape = {"groups": 2, "padding": 1}
    assert_unit_is(
        conv(**shape, **options),
        images(count=1),
        lambda x, w, *, freeze: bcos_conv(x, w, freeze=freeze, **shape, **options),
    )
    assert_unit_is(
        BcosLinear(7, 3, **options).double(),
        torch.randn(4, 7, dtype=torch.float64),
        lambda x, w, *, freeze: bcos_linear(x, w, freeze=freeze, **options),
    )


def test_lengths_of_the_gains() -> None:
    """Doubling the weights changes nothing, doubles, or multiplies by two to the B."""
    for b in (1, 2, 3):
        for gain, factor in (("unit", 1), ("norm", 2), ("power", 2**b)):
            module = BcosLinear(5, 3, b=b, gain=gain, cos_eps=0.0).double()
            x = torch.randn(4, 5, dtype=torch.float64)
            before = module(x)
            with torch.no_grad():
                module.weight.mul_(2)
            torch.testing.assert_close(module(x), factor * before, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings(SAME)
@pytest.mark.parametrize("gain", ["norm", "power"])
@pytest.mark.parametrize("bias", [False, True])
def test_without_an_exponent_it_is_the_ordinary_layer(bias: bool, gain: str) -> None:
    for options in SHAPES.values():
        how = {k: v for k, v in options.items() if k not in ("kernel_size", "max_out")}
        ours = conv(**how, bias=bias, b=1, gain=gain)
        plain = nn.Conv2d(4, 4, (3, 2), bias=bias, **how).double()
        plain.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(images()), plain(images()), rtol=0, atol=1e-14)
    ours = BcosLinear(5, 3, bias=bias, b=1, gain=gain)
    plain = nn.Linear(5, 3, bias=bias)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-6, atol=1e-7)
    if not bias:
        assert ours(x).equal(plain(x))


@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 4, 7)])
def test_linear_works_on_the_last_dimension(shape: tuple[int, ...]) -> None:
    module, x = BcosLinear(7, 3, max_out=2), torch.randn(shape)
    expected = module(x.reshape(-1, 7)).reshape(*shape[:-1], 3)
    torch.testing.assert_close(module(x), expected)


def test_linear_is_a_point_convolution_with_the_same_epsilon() -> None:
    linear = BcosLinear(4, 4, b=2.5, square_eps=1e-6).double()
    point = conv(kernel_size=1, b=2.5)
    with torch.no_grad():
        point.weight.copy_(linear.weight[..., None, None])
    x = images()
    expected = point(x).movedim(1, -1)
    torch.testing.assert_close(linear(x.movedim(1, -1)), expected, rtol=1e-9, atol=1e-9)


def test_bias_is_added_and_in_no_explanation() -> None:
    x = images().requires_grad_()
    for options in ({}, {"max_out": 2, "groups": 2}):
        module = conv(bias=True, **options)
        without = conv(**options)
        without.load_state_dict({"weight": module.weight})
        y = module(x)
        torch.testing.assert_close(y, without(x) + module.bias[:, None, None])
        found = explained(module, y, x, torch.ones_like(y))
        torch.testing.assert_close((found * x).sum(), (y - module.bias[:, None, None]).sum())
    module = BcosLinear(5, 3, bias=True, max_out=2)
    zero = torch.zeros(2, 5)
    torch.testing.assert_close(module(zero), module.bias.expand(2, 3))


def test_a_scale_multiplies_the_output_and_its_explanation() -> None:
    """Only where B is not 1: there it keeps the size that the layer has at 1. It is saved."""
    for module, x in (
        (conv(bias=True), images()),
        (BcosLinear(4, 3).double(), images()[0, :, :, :4]),
    ):
        plain = copy.deepcopy(module)
        assert "scale" not in module.state_dict()
        module.scale = torch.tensor(2.5, dtype=torch.float64)
        assert module.state_dict()["scale"] == 2.5
        x.requires_grad_()
        y, without = module(x), plain(x)
        bias = 0 if module.bias is None else module.bias[:, None, None]
        torch.testing.assert_close(y - bias, 2.5 * (without - bias))
        found, expected = (
            explained(m, z, x, torch.ones_like(z)) for m, z in ((module, y), (plain, without))
        )
        torch.testing.assert_close(found, 2.5 * expected)
        module.b = plain.b = 1.0
        assert module(x).equal(plain(x))


def test_b_may_change_between_steps() -> None:
    module, x = conv(), images()
    for b in (1.0, 1.5, 2.0):
        module.b = b
        torch.testing.assert_close(module(x), bcos_conv(x, module.weight, b=b), rtol=1e-9, atol=0)


CHECKED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv-2": (BcosConv2d(2, 2, 2), (1, 2, 3, 4)),
    "conv-1.25": (BcosConv2d(2, 2, 2, b=1.25, padding=1), (1, 2, 2, 3)),
    "conv-3-groups": (BcosConv2d(2, 4, 2, b=3, groups=2, max_out=2), (1, 2, 3, 3)),
    "conv-dilation": (BcosConv2d(2, 2, 2, dilation=(1, 2), gain="norm", bias=True), (1, 2, 3, 4)),
    "conv-power": (BcosConv2d(2, 2, 2, b=1.5, gain="power", padding="same"), (1, 2, 3, 3)),
    "conv-1": (BcosConv2d(2, 2, 2, b=1), (1, 2, 3, 4)),
    "linear-2": (BcosLinear(4, 3, bias=True), (3, 4)),
    "linear-1.25": (BcosLinear(4, 3, b=1.25, max_out=2), (3, 4)),
    "linear-3": (BcosLinear(4, 3, b=3, gain="norm", square_eps=1e-6), (3, 4)),
}


@pytest.mark.filterwarnings(SAME)
@pytest.mark.parametrize("name", CHECKED)
def test_gradcheck_of_first_and_second_derivatives(name: str) -> None:
    module, shape = CHECKED[name]
    module = copy.deepcopy(module).double()
    names = [name for name, _ in module.named_parameters()]
    with torch.no_grad():  # the weights were drawn before any seed
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, state, (x,))

    inputs = (x, *module.parameters())
    how: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5}
    assert torch.autograd.gradcheck(call, inputs, check_batched_grad=True, **how)
    assert torch.autograd.gradgradcheck(call, inputs, **how)


ZEROS = [
    *(("conv", {"b": b, **o}) for b in (1, 1.25, 2, 3) for o in ({}, {"groups": 2, "max_out": 2})),
    *(("linear", {"b": b}) for b in (1, 1.25, 2, 3)),
    ("linear", {"b": 2, "square_eps": 1e-6}),
]


def with_zeros(kind: str, options: dict[str, Any], dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    if kind == "linear":
        x = torch.randn(3, 6)
        x[:2] = 0
        return BcosLinear(6, 4, **options).to(dtype), x.to(dtype).requires_grad_()
    x = torch.randn(2, 4, 7, 6)
    x[:, :, :5] = 0
    x[1] = 0
    return conv(padding=1, **options).to(dtype), x.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "options"), ZEROS)
def test_zeros_have_finite_values_and_derivatives(
    kind: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    module, x = with_zeros(kind, options, dtype)
    y = module(x)
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    weights = explained(module, y, x, torch.ones_like(y), create_graph=True)
    found = [y, first, weights]
    for functional in ((weights * x).square().sum(), weights.square().sum(), y.square().sum()):
        inputs, how = [x, module.weight], {"retain_graph": True, "allow_unused": True}
        found += [g for g in torch.autograd.grad(functional, inputs, **how) if g is not None]
    assert all(bool(tensor.isfinite().all()) for tensor in found)
    assert not y[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kind", "options"), ZEROS)
def test_zeros_have_finite_second_derivatives_of_ordinary_gradients(
    kind: str, options: dict[str, Any], dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    module, x = with_zeros(kind, options, dtype)
    (first,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    for tensor in torch.autograd.grad(first.square().sum(), [x, module.weight], allow_unused=True):
        assert tensor is None or bool(tensor.isfinite().all())


def test_a_filter_of_zeros_gives_zero() -> None:
    for gain in GAINS:
        module = BcosLinear(5, 3, gain=gain).double()
        with torch.no_grad():
            module.weight[1] = 0
        x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
        y = module(x)
        assert not y[:, 1].any()
        weights = explained(module, y, x, torch.ones_like(y), create_graph=True)
        (second,) = torch.autograd.grad((weights * x).square().sum(), module.weight)
        assert bool(second.isfinite().all())


@pytest.mark.parametrize("options", [{}, {"groups": 2, "max_out": 2}, {"b": 2.5}, {"dilation": 2}])
def test_bfloat16_autocast(options: dict[str, Any]) -> None:
    """Near float32, lengths in float32, and the second derivative reaches the weights."""
    torch.manual_seed(1)
    module = BcosConv2d(4, 4, 3, padding=2, **options)
    head = BcosLinear(4, 3)
    network = nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    x = torch.rand(2, 4, 8, 8, requires_grad=True)

    def map_and_gradients() -> tuple[Tensor, ...]:
        y = network(x)
        weights = explained(network, y, x, torch.ones_like(y), create_graph=True)
        energy = (weights * x).square().sum()
        return y, weights, *torch.autograd.grad(energy, list(network.parameters()))

    exact = map_and_gradients()
    with torch.autocast("cpu", torch.bfloat16):
        rough = map_and_gradients()
    assert rough[0].dtype == torch.bfloat16
    assert rough[2].dtype == torch.float32
    for ours, expected in zip(rough, exact, strict=True):
        error = (ours.float() - expected).norm() / expected.norm()
        assert error < 0.04
        assert expected.any()


@pytest.mark.parametrize(
    "dilation",
    [1, 2],
)
def test_patches_are_measured_in_float32_under_autocast(dilation: int) -> None:
    module, x = BcosConv2d(4, 4, 3, dilation=dilation), torch.rand(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        norm = module.patch_norm(x)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm, module.patch_norm(x))


def test_half_precision_does_not_overflow() -> None:
    x = torch.full((1, 4, 6, 6), 200.0)
    single = BcosConv2d(4, 4, 3)
    half = copy.deepcopy(single).half()
    torch.testing.assert_close(half(x.half()).float(), single(x), rtol=0.01, atol=1)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"dilation": 2}, {"bias": True}])
def test_channels_last(options: dict[str, Any]) -> None:
    module = BcosConv2d(4, 6, 3, **options)
    x = torch.randn(2, 4, 7, 8)
    last = {"memory_format": torch.channels_last}
    found = copy.deepcopy(module).to(**last)(x.to(**last))
    torch.testing.assert_close(found, module(x))
    assert found.is_contiguous(**last)


def test_channels_last_of_max_out() -> None:
    last = {"memory_format": torch.channels_last}
    module = BcosConv2d(4, 6, 3, max_out=2).to(**last)
    assert module(torch.randn(2, 4, 7, 8).to(**last)).is_contiguous(**last)


@pytest.mark.parametrize("build", [lambda: BcosConv2d(2, 3, 2), lambda: BcosLinear(4, 3)])
def test_copies_are_equal_and_have_their_own_mode(build: Any) -> None:
    module = build()
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ]
    y = module(x)
    (normal,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    for other in copies:
        z = other(x)
        assert z.equal(y)
        with explanation_mode(module):
            (gradient,) = torch.autograd.grad(z.sum(), x, retain_graph=True)
        assert gradient.equal(normal)
        map_of_other = explained(other, z, x, torch.ones_like(z))
        assert not map_of_other.allclose(normal)


@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (BcosConv2d(4, 6, 3), nn.Conv2d(4, 6, 3, bias=False)),
        (BcosConv2d(4, 6, 3, groups=2, bias=True), nn.Conv2d(4, 6, 3, groups=2)),
        (BcosLinear(4, 6), nn.Linear(4, 6, bias=False)),
        (BcosLinear(4, 6, bias=True), nn.Linear(4, 6)),
    ],
)
def test_state_dicts_are_those_of_the_ordinary_layers(ours: nn.Module, plain: nn.Module) -> None:
    ours.load_state_dict(plain.state_dict())
    plain.load_state_dict(ours.state_dict())
    assert isinstance(ours, type(plain))
    for name, tensor in plain.state_dict().items():
        assert ours.state_dict()[name].equal(tensor)


def test_filters_of_max_out_belong_to_the_layer() -> None:
    module = BcosConv2d(4, 6, 3, max_out=2, bias=True)
    assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == {
        "weight": (12, 4, 3, 3),
        "bias": (6,),
    }
    assert module.out_channels == 6
    module.reset_parameters()
    assert "max_out=2" in repr(module) and "b=2" in repr(module)
    assert "gain='norm'" in repr(BcosLinear(4, 6, gain="norm"))


def test_an_output_does_not_belong_to_two_groups() -> None:
    with pytest.raises(OptionError, match="groups"):
        BcosConv2d(4, 3, 3, groups=2, max_out=2)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("explaining", [True, False])
def test_batched_gradients_equal_the_loop(explaining: bool, create_graph: bool) -> None:
    network = nn.Sequential(
        BcosConv2d(4, 6, 3, max_out=2),
        BcosConv2d(6, 4, 3, b=1.5, groups=2, dilation=(1, 2)),
        nn.Flatten(),
        BcosLinear(24, 5),
    ).double()
    x = images(size=(7, 8)).requires_grad_()
    y = network(x)
    probes = torch.randn(3, *y.shape, dtype=torch.float64)
    how = {"retain_graph": True, "create_graph": create_graph}

    def gradients() -> tuple[Tensor, Tensor]:
        (together,) = torch.autograd.grad(y, x, probes, is_grads_batched=True, **how)
        return together, torch.stack([torch.autograd.grad(y, x, p, **how)[0] for p in probes])

    if explaining:
        with explanation_mode(network):
            together, loop = gradients()
        products = (together * x).flatten(1).sum(1), (y * probes).flatten(1).sum(1)
        torch.testing.assert_close(*products)
    else:
        together, loop = gradients()
    torch.testing.assert_close(together, loop, rtol=1e-10, atol=1e-14)
    if create_graph:
        weight = network[0].weight
        a, b = (
            torch.autograd.grad((g * x).square().sum(), weight, retain_graph=True)[0]
            for g in (together, loop)
        )
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_a_checkpointed_forward_has_the_same_explanation_and_gradient() -> None:
    network = nn.Sequential(conv(), BcosConv2d(4, 2, 2).double())
    x = images().requires_grad_()
    found = []
    for y in (network(x), torch.utils.checkpoint.checkpoint(network, x, use_reentrant=False)):
        weights = explained(network, y, x, torch.ones_like(y), create_graph=True)
        energy = F.relu(weights * x).square().sum()
        found.append((weights, torch.autograd.grad(energy, network[0].weight)[0]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)
