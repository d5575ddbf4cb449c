"""A norm that is entered in the table is converted, explained and calibrated, with nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explainguide.bcos import (
    BatchNormUncentered2d,
    BcosConv2d,
    BcosLinear,
    ChannelsLast,
    bcosify,
    calibrate,
    norms,
    scale_biases,
)
from explainguide.bcos.explanations import curvature, missing_share
from explainguide.bcos.norm_table import NORMS, find_form, form_of, in_place_of
from explainguide.errors import OptionError
from explainguide.hooks.dynamic import DynamicLinear, hold


class RootMeanSquare(nn.Module):
    """Of somebody else's library: `(N, C, H, W)` over the root of the mean square of a place."""

    def __init__(self, width: int, tiny: float = 1e-6) -> None:
        super().__init__()
        self.width, self.tiny = width, tiny
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, input: Tensor) -> Tensor:
        scale = (input.square().mean(1, keepdim=True) + self.tiny).rsqrt()
        return input * scale * self.weight[:, None, None]


class DoubledBatchNorm(nn.BatchNorm2d):
    """Twice what batch norm is: a subclass, which may compute anything."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Permute(nn.Module):
    """`(N, C, H, W)` to `(N, H, W, C)`, or back; `bcosify` knows its kind by the name."""

    def __init__(self, back: bool = False) -> None:
        super().__init__()
        self.back = back

    def forward(self, input: Tensor) -> Tensor:
        return input.movedim(-1, 1) if self.back else input.movedim(1, -1)


def image_network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        norm,
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).double()


def convert(model: nn.Module, **options: Any) -> Any:
    return bcosify(model, image_size=(16, 16), **options)


def draw() -> Tensor:
    image = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    return torch.cat([image, 1 - image], 1)


@pytest.fixture(autouse=True)
def _table() -> Iterator[None]:
    before = dict(NORMS)
    yield
    NORMS.clear()
    NORMS.update(before)


def enter_root_mean_square(**options: Any) -> type[nn.Module]:
    @in_place_of(RootMeanSquare, arguments=("width", "tiny"), channels="width", **options)
    class HeldRootMeanSquare(DynamicLinear, RootMeanSquare):
        def forward(self, input: Tensor) -> Tensor:
            scale = (input.square().mean(1, keepdim=True) + self.tiny).rsqrt()
            return input * hold(scale, self.mode) * self.weight[:, None, None]

    return HeldRootMeanSquare


def enter_doubled_batch_norm() -> type[nn.Module]:
    @in_place_of(
        DoubledBatchNorm,
        arguments=("num_features", "eps", "momentum"),
        channels="num_features",
        running=True,
    )
    class DoubledUncentered(BatchNormUncentered2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    return DoubledUncentered


def test_every_norm_of_the_package_has_an_entry_or_extends_one() -> None:
    for name in set(norms.__all__) - {"ChannelsLast"}:  # a wrapper
        kind = getattr(norms, name)
        assert any(issubclass(kind, known) for known in NORMS)


def test_a_norm_without_an_entry_is_refused() -> None:
    with pytest.raises(OptionError, match=r"1 \(RootMeanSquare\)"):
        convert(image_network(RootMeanSquare(8)))
    with pytest.raises(OptionError, match=r"1 \(DoubledBatchNorm\)"):
        convert(image_network(DoubledBatchNorm(8)))


@pytest.mark.parametrize("norm", ["uncentered", "detached"])
def test_a_norm_of_a_place_is_converted_and_explained(norm: str) -> None:
    kind = enter_root_mean_square()
    model = image_network(RootMeanSquare(8, tiny=1e-3)).eval()
    x = draw()
    same = convert(model, b=1, norm=norm)
    torch.testing.assert_close(same(x), model(x[:, :3]))
    network = convert(model, b=2, norm=norm)
    assert type(network[1]) is kind
    assert network[1].tiny == 1e-3
    assert network[1].weight.equal(model[1].weight)
    assert missing_share(network, x) < 1e-12
    assert curvature(network, x) < 1e-12


def test_calibration_knows_that_a_norm_follows() -> None:
    """A unit in front of a norm needs no scale of its own; the others have one."""
    model = image_network(RootMeanSquare(8))
    enter_root_mean_square()
    network = convert(model, b=2)
    units = [m for m in network.modules() if isinstance(m, BcosConv2d | BcosLinear)]
    assert [unit.scale is None for unit in units] == [True, *[False] * (len(units) - 1)]


def test_a_norm_of_a_batch_is_converted_and_calibrated() -> None:
    kind = enter_doubled_batch_norm()
    model = image_network(DoubledBatchNorm(8, eps=1e-3, momentum=0.05)).eval()
    model[1].running_mean.normal_()
    x = draw()
    same = convert(model, b=1)
    torch.testing.assert_close(same(x), model(x[:, :3]))
    assert float(same[1].centering) == 1
    scale_biases(same, 0)
    assert same[1].centering is None

    network = convert(model, b=2).eval()
    norm = network[1]
    assert type(norm) is kind
    assert (norm.eps, norm.momentum) == (1e-3, 0.05)
    calibrate(network, x)
    expected = network[0](x).var((0, 2, 3), correction=0)
    torch.testing.assert_close(norm.running_var, expected)
    assert (norm.training, norm.momentum) == (False, 0.05)
    assert missing_share(network, x) < 1e-12


def test_a_later_entry_comes_first() -> None:
    first, second = enter_root_mean_square(), enter_root_mean_square(choices=("detached",))
    layer = RootMeanSquare(8)
    kinds = {c: find_form(layer, c).kind for c in ("uncentered", "detached")}
    assert kinds == {"uncentered": first, "detached": second}
    assert form_of(first(8)) is NORMS[first]


def test_a_function_is_asked_for_the_place_of_a_norm_with_an_entry() -> None:
    enter_root_mean_square()
    network = convert(image_network(RootMeanSquare(8)), b=2, norm=BatchNormUncentered2d)
    assert type(network[1]) is BatchNormUncentered2d
    assert network[1].num_features == 8


def test_what_takes_images_is_wrapped_for_a_norm_of_channels_that_are_last() -> None:
    kind = enter_root_mean_square()
    model = image_network(nn.Sequential(Permute(), nn.LayerNorm(8), Permute(back=True)))
    network = convert(model, b=2, norm=kind)
    assert isinstance(network[1][1], ChannelsLast)
    assert missing_share(network.eval(), draw()) < 1e-12
