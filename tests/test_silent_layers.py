"""Which layer is guided: given as a module, found whatever the draw, and on models of Transformers."""

from __future__ import annotations

import os
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from explainguide import ExplainGuideWarning, ExplanationGuidance
from explainguide.attr import GradCam, InputXGradient, IntegratedGradients
from explainguide.errors import LayerError
from explainguide.hooks.probe import automatic_layer, input_size, probe_layers

from .networks import TARGETS, SmallCnn, batch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(
    ("pick", "names"),
    [
        (lambda m: m.mix, ["mix"]),
        (lambda m: m.stem[0], ["stem.0"]),
        (lambda m: [m.stem, "mix"], ["stem", "mix"]),
        (lambda m: m.body, ["body"]),
    ],
)
def test_a_layer_may_be_a_module(pick: Any, names: list[str]) -> None:
    model = SmallCnn().eval()
    losses = []
    for layer in (pick(model), names):
        with ExplanationGuidance(model, layer, target="all") as guide:
            assert guide.layers == names
            model(batch())
            losses.append(guide.loss_loc(TARGETS))
    assert torch.equal(*losses)
    if len(names) == 1:
        for kind in (InputXGradient, GradCam, IntegratedGradients):
            ours, theirs = kind(model, pick(model)), kind(model, names[0])
            assert ours.layer == names[0] == kind(model).at(pick(model)).layer
            assert torch.equal(ours.attribute(batch(), 1), theirs.attribute(batch(), 1))


@pytest.mark.parametrize(("layer", "why"), [(nn.Linear(1, 1), "no module of this model"), (None, "the model itself")])  # fmt: skip
def test_a_module_that_is_no_layer_is_refused(layer: Any, why: str) -> None:
    model = SmallCnn()
    for make in (ExplanationGuidance, InputXGradient):
        with pytest.raises(LayerError, match=why):
            make(model, model if layer is None else layer)


class Residual(nn.Module):
    """A block whose output is normalised next: its product cancels, its branch's does not."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Normed(nn.Module):
    """Every place is normalised and then summed, so that a block's output cancels in every draw."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.one, self.two = Residual(), Residual()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(self.stem(x)))
        return self.fc((y / y.norm(dim=1, keepdim=True)).mean((2, 3)))


@pytest.mark.parametrize("seed", range(4))
def test_no_branch_inside_a_residual_whatever_the_weights(seed: int) -> None:
    torch.manual_seed(seed)
    model = Normed()
    layers = {one.name: one for one in probe_layers(model, image_size=(32, 32))}
    assert layers["two"].cancels and not layers["two.branch"].cancels
    found = automatic_layer(model, list(layers.values()))
    assert found in ("one", "stem")
    assert ExplanationGuidance(model, image_size=32).layers == [found]


@pytest.mark.parametrize("seed", [pytest.param(s, marks=pytest.mark.slow) for s in range(4)])
def test_levit_does_not_depend_on_a_draw(seed: int) -> None:
    torch.manual_seed(seed)
    model = timm.create_model("levit_128s", num_classes=16)
    assert ExplanationGuidance(model).layers == ["stages"]


class Sized(nn.Module):
    """Takes images of one size only, and does not say which."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.fc = nn.Linear(8 * 6 * 10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).sin().flatten(1))


def test_the_size_of_images_can_be_said() -> None:
    model = Sized()
    with pytest.raises(
        LayerError, match=r"did not run on an image of 3 x 224 x 224 .*Say image_size="
    ):
        ExplanationGuidance(model)
    with ExplanationGuidance(model, image_size=(24, 40)) as guide:
        assert guide.layers == ["conv"]
        model(torch.rand(1, 3, 24, 40))
        guide.loss_loc(torch.ones(1, 24, 40), target=1).backward()


class Hidden(nn.Module):
    """Tokens of which the last block keeps some: of its output nobody can tell the places."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 16, 8, stride=8)
        self.last = nn.Linear(16, 16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        t = self.proj(x).flatten(2).mT
        return self.fc(self.last(t[:, :11]).sin().mean(1))


def test_a_later_layer_that_could_not_be_read_is_told() -> None:
    with pytest.warns(ExplainGuideWarning, match=r"'proj' is taken. .*'last', \(1, 11, 16\)"):
        guide = ExplanationGuidance(Hidden(), image_size=32)
    assert guide.layers == ["proj"]


# Transformers.

TINY = {"image_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OF_TRANSFORMERS = [
    ("ViT", TINY, 16, 1),
    ("DeiT", TINY, 16, 2),
    ("Dinov2WithRegisters", {**TINY, "patch_size": 16}, 16, 5),
    ("Beit", TINY, 16, 1),
    ("Dinov2", {**TINY, "patch_size": 8, "image_size": 48}, 8, 1),
]


@pytest.mark.parametrize(("family", "options", "patch", "prefix"), OF_TRANSFORMERS)
def test_vits_of_transformers(family: str, options: Any, patch: int, prefix: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(**options, num_labels=4)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForImageClassification")(config).double().eval()
    side = options["image_size"]
    assert input_size(model) == (3, side, side)
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    guide = ExplanationGuidance(model, target="all")
    assert "embed" not in guide.layers[0]  # not the patches before any block
    layer = guide.layers[0]
    model(pixel_values=x)
    guide.loss_loc(torch.ones(2, side, side), target=1).backward()
    kept: dict[str, Tensor] = {}
    hook = model.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: kept.update(f=output)
    )
    score = model(pixel_values=x).logits[:, 1].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept["f"])
    grid = side // patch
    expected = (gradient * kept["f"]).sum(-1)[:, prefix:].reshape(2, grid, grid)
    torch.testing.assert_close(guide.attributions[layer], expected.detach())


def test_a_convolutional_one_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=4
    )
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(config).eval()
    with ExplanationGuidance(model, image_size=64) as guide:
        model(torch.rand(2, 3, 64, 64))
        guide.loss_loc(torch.ones(2, 64, 64), target=1).backward()
        assert guide.attributions[guide.layers[0]].shape == (2, 8, 8)
