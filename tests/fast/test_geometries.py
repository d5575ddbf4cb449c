"""Every geometry of a convolution that a model family of timm or torchvision uses, to 1e-12."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.overrides import TorchFunctionMode
from zoo import image_side
from zoo_families import FAMILIES

from explainguide.hooks.fast.convolution import as_window
from tests.fast.test_exact import derivatives, draw, equal

pytestmark = pytest.mark.slow


class Geometry(NamedTuple):
    """What of a convolution does not depend on how many channels there are."""

    kernel: tuple[int, ...]
    window: tuple[int, ...]  # stride, padding, dilation
    grouping: str
    few: bool  # input channels, as an image has them


class Calls(TorchFunctionMode):
    """Notes the geometry of each convolution of a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[Geometry] = set()

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d:
            self._note(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _note(self, x: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **named: Any) -> None:
        *window, groups = as_window(x, weight, *rest, **named)[1]
        kind = "one" if groups == 1 else "depthwise" if weight.shape[1] == 1 else "grouped"
        self.found.add(Geometry(tuple(weight.shape[2:]), tuple(window), kind, x.shape[1] <= 4))


def shown(family: str, name: str, options: dict[str, Any], device: str) -> set[Geometry]:
    """The geometries of a family's smallest model."""
    make = torchvision.models.get_model if family.startswith("torchvision/") else timm.create_model
    with torch.device(device), torch.no_grad():
        model = make(name, **options).eval()
        side = image_side(family, model)
        with Calls() as calls:
            model(torch.zeros(1, 3, side, side))
    return calls.found


@pytest.fixture(scope="module")
def geometries() -> set[Geometry]:
    """Without numbers, where a model can be built without: it takes a minute in place of ten."""
    found: set[Geometry] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names and initial weights
        for family, (name, options) in FAMILIES.items():
            try:
                found |= shown(family, name, options, "meta")
            except (NotImplementedError, RuntimeError):
                found |= shown(family, name, options, "cpu")
    return found


def test_geometries_of_all_families(geometries: set[Geometry]) -> None:
    assert len(geometries) > 50 and {g.grouping for g in geometries} == {
        "one",
        "depthwise",
        "grouped",
    }
    for kernel, window, grouping, few in sorted(geometries):
        stride, padding, dilation = window[:2], window[2:4], window[4:]
        groups = {"one": 1, "depthwise": 6, "grouped": 2}[grouping]
        channels = 3 if few and groups == 1 else 6
        sides = [
            max(d * (k - 1) + 1 - 2 * p, 1) + s + 1
            for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)
        ]
        tensors = draw(2, channels, *sides), draw(6, channels // groups, *kernel), draw(6)

        def operation(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)  # noqa: B023

        equal(
            derivatives(operation, tensors, fast=False), derivatives(operation, tensors, fast=True)
        )
