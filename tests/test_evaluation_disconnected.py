"""DiFull and DiPart: no cell influences another's head, and a faithful attribution scores 1."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import captum.attr
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from explainguide.attr import GradCam, Gradient, InputXGradient, IntegratedGradients
from explainguide.errors import (
    ExplainGuideError,
    GuidanceError,
    LayerError,
    OptionError,
    ShapeError,
)
from explainguide.evaluation import DiFull, DiPart, cut_cells
from explainguide.metrics import grid_pointing_game

from .networks import SmallCnn

CLASSES = 7
tv = torchvision.models
SMALL_VIT = {"num_classes": CLASSES, "img_size": 48, "embed_dim": 24, "depth": 3, "num_heads": 2}
SMALL_SWIN = {"num_classes": CLASSES, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2)}


def timm_vit(**options) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **SMALL_VIT, **options)


def timm_swin(size: int) -> nn.Module:
    name = "swin_tiny_patch4_window7_224"
    return timm.create_model(name, img_size=size, window_size=4, **SMALL_SWIN)


def tv_vit() -> nn.Module:
    return tv.VisionTransformer(48, 16, 3, 2, 24, 32, num_classes=CLASSES)


def tv_swin() -> nn.Module:
    return tv.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=CLASSES)


# How it is built, the side of a cell, a layer in the middle, and one near the end.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, str, str]] = {
    "torchvision-resnet": (lambda: tv.resnet18(num_classes=CLASSES), 64, "layer2", "layer4"),
    "torchvision-mobilenet": (
        lambda: tv.mobilenet_v3_small(num_classes=CLASSES), 64, "features.4", "features.12",
    ),
    "torchvision-vit": (
        tv_vit, 48, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1",
    ),
    "torchvision-swin": (tv_swin, 32, "features.1", "features.3"),
    "timm-convnext": (
        lambda: timm.create_model("convnext_atto", num_classes=CLASSES), 64, "stages.1", "stages.3",
    ),
    "timm-vit": (timm_vit, 48, "blocks.0", "blocks.1"),
    "timm-vit-pooled": (
        lambda: timm_vit(global_pool="avg", class_token=False), 48, "blocks.0", "blocks.2",
    ),
    "timm-swin": (lambda: timm_swin(32), 32, "layers.0", "layers.1"),
}  # fmt: skip
SLOW = {"timm-convnext", "torchvision-mobilenet"}
every_model = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS],
)


def build(name: str) -> nn.Module:
    """In evaluation mode, with no weights of zero, behind which everything is dead."""
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    return model


def game(side: int, n: int = 2, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Every cell of some random grids: images, classes, cells."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, n * side, n * side, generator=generator)
    cells = torch.arange(n * n).repeat(count)
    labels = torch.randint(0, CLASSES, (len(cells),), generator=generator)
    return images.repeat_interleave(n * n, 0), labels, cells


def assert_all_in_own_cell(maps: Tensor, cells: Tensor, n: int = 2) -> None:
    """Exactly 1, wherever a map has a positive part; of many maps, some have."""
    scores = grid_pointing_game(maps, cells, n=n)
    assert not scores.isnan().all()
    assert (scores[~scores.isnan()] == 1).all()


@every_model
def test_the_heads_are_the_model_on_each_cell_alone(name):
    model, side = build(name), MODELS[name][1]
    images = game(side)[0][::4]
    heads = DiFull(model, n=2)
    with torch.no_grad():
        found = heads(images).unflatten(1, (CLASSES, 4))
        for cell in range(4):
            alone = model(cut_cells(images, 2)[:, cell])
            torch.testing.assert_close(found[:, :, cell], alone, rtol=1e-4, atol=1e-5)
            number = heads.target(torch.tensor([3, 5]), torch.tensor([cell, cell]))
            chosen = heads(images).gather(1, number[:, None])[:, 0]
            torch.testing.assert_close(chosen, found[[0, 1], [3, 5], cell])


@every_model
def test_a_faithful_attribution_scores_one_in_difull_at_every_layer(name):
    model, side = build(name), MODELS[name][1]
    images, labels, cells = game(side)
    for layer in (None, *MODELS[name][2:]):
        heads = DiFull(model, n=2, layer=layer, cell_size=side)
        target, where = heads.target(labels, cells), None if layer is None else "joined"
        for kind in (Gradient, InputXGradient):
            maps = kind(heads, where).attribute(images, target)
            assert maps.shape[-1] % 2 == 0
            assert_all_in_own_cell(maps, cells)


@pytest.mark.parametrize("name", ["torchvision-resnet", "timm-vit"])
def test_an_unfaithful_map_scores_less_in_difull(name):
    model, side = build(name), MODELS[name][1]
    images, labels, cells = game(side)
    heads = DiFull(model, n=2)
    faithful = Gradient(heads).attribute(images, heads.target(labels, cells))
    smeared = F.avg_pool2d(faithful, 15, stride=1, padding=7)
    assert (grid_pointing_game(smeared, cells, n=2) < 0.99).all()
    # Grad-CAM weights channels by a mean over all cells, and shows activations of each.
    pooled = GradCam(heads).attribute(images, heads.target(labels, cells))
    assert grid_pointing_game(pooled, cells, n=2).nanmean() < 0.5


def test_joining_and_cutting_a_layer_changes_no_logit():
    for name in ("torchvision-resnet", "timm-vit", "timm-swin", "torchvision-vit"):
        model, side, *layers = (build(name), *MODELS[name][1:])
        images = game(side, count=1)[0][:1]
        with torch.no_grad():
            expected = DiFull(model, n=2)(images)
            for layer in layers:
                found = DiFull(model, n=2, layer=layer, cell_size=side)(images)
                assert torch.equal(found, expected), (name, layer)


def test_the_joined_layer_is_that_of_each_cell_side_by_side():
    model = build("torchvision-resnet")
    images = game(64, count=1)[0][:1]
    heads = DiFull(model, n=2, layer="layer2", cell_size=64)
    seen: list[Tensor] = []
    heads.joined.register_forward_hook(lambda module, args, output: seen.append(output))
    alone: list[Tensor] = []
    with torch.no_grad():
        heads(images)
        model.layer2.register_forward_hook(lambda module, args, output: alone.append(output))
        for cell in cut_cells(images, 2)[0]:
            model(cell[None])
    columns = [torch.cat(alone[:2], 2), torch.cat(alone[2:], 2)]  # counted down the columns
    torch.testing.assert_close(seen[0], torch.cat(columns, 3), rtol=1e-4, atol=1e-5)


def test_rows_first_is_another_order_of_the_same_heads():
    model = build("torchvision-mobilenet")
    images = game(64, count=1)[0][:1]
    with torch.no_grad():
        by_columns = DiFull(model, n=2)(images).unflatten(1, (CLASSES, 4))
        by_rows = DiFull(model, n=2, order="row")(images).unflatten(1, (CLASSES, 4))
    torch.testing.assert_close(by_rows, by_columns[:, :, [0, 2, 1, 3]])


def test_captum_explains_the_heads():
    model = build("torchvision-mobilenet")
    images, labels, cells = game(64, count=1)
    heads = DiFull(model, n=2, layer="features.4", cell_size=64)
    target = heads.target(labels, cells)
    maps = captum.attr.InputXGradient(heads).attribute(images.clone().requires_grad_(), target)
    assert_all_in_own_cell(maps.sum(1), cells)
    layer = captum.attr.LayerGradientXActivation(heads, heads.joined)
    assert_all_in_own_cell(layer.attribute(images, target).sum(1), cells)
    occluded = captum.attr.Occlusion(heads).attribute(
        images, (3, 32, 32), (3, 32, 32), target=target
    )
    # Up to the rounding of a convolution's batches, which is not zero.
    scores = grid_pointing_game(occluded.sum(1), cells, n=2)
    assert scores[~scores.isnan()].min() > 1 - 1e-4


def test_integrated_gradients_run_the_heads_again():
    heads = DiFull(build("timm-convnext"), n=2, layer="stages.1", cell_size=64)
    images, labels, cells = game(64, count=1)
    target = heads.target(labels, cells)
    assert_all_in_own_cell(
        IntegratedGradients(heads, "joined", n_steps=3).attribute(images, target), cells
    )
    assert_all_in_own_cell(IntegratedGradients(heads, n_steps=3).attribute(images, target), cells)


# How it is built, the side of a cell, and the layer that is found.
WHOLE: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "torchvision-resnet": (lambda: build("torchvision-resnet"), 64, "layer4"),
    "torchvision-mobilenet": (lambda: build("torchvision-mobilenet"), 64, "features"),
    "torchvision-swin": (lambda: build("torchvision-swin"), 32, "norm"),
    "timm-convnext": (lambda: build("timm-convnext"), 64, "stages"),
    "timm-vit-any-size": (lambda: timm_vit(dynamic_img_size=True).eval(), 48, "blocks.0"),
    "timm-swin-of-the-grid": (lambda: timm_swin(64).eval(), 32, "norm"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_faithful_attribution_scores_one_in_dipart_at_the_layer(name):
    torch.manual_seed(0)
    model, side = WHOLE[name][0](), WHOLE[name][1]
    images, labels, cells = game(side)
    heads = DiPart(model, n=2, cell_size=side)
    assert heads.layer == WHOLE[name][2]
    target = heads.target(labels, cells)
    assert_all_in_own_cell(Gradient(heads, "joined").attribute(images, target), cells)
    scores = grid_pointing_game(
        InputXGradient(heads, "joined").attribute(images, target), cells, n=2
    )
    assert (scores[~scores.isnan()] == 1).all()
    # What came before has seen the neighbours.
    before = grid_pointing_game(Gradient(heads).attribute(images, target), cells, n=2)
    assert (before < 1).all()


def test_dipart_is_a_head_on_the_features_of_each_cell():
    model = build("torchvision-resnet")
    images = game(64, count=2)[0][::4]
    heads = DiPart(model, n=2, cell_size=64)
    seen: list[Tensor] = []
    model.layer4.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        found = heads(images).unflatten(1, (CLASSES, 4))
        model(images)
        for cell in range(4):
            row, column = cell % 2, cell // 2
            own = seen[-1][:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected = model.fc(own.mean((2, 3)))
            torch.testing.assert_close(found[:, :, cell], expected, rtol=1e-4, atol=1e-5)


def test_a_class_token_goes_on_with_every_cell():
    torch.manual_seed(0)
    model = timm_vit(dynamic_img_size=True).eval()
    images = game(48, count=1)[0][:1]
    heads = DiPart(model, n=2, cell_size=48, layer="blocks.1")
    seen: list[Tensor] = []
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        found = heads(images).unflatten(1, (CLASSES, 4))
        model(images)
        tokens = seen[-1]
        for cell in range(4):
            row, column = cell % 2, cell // 2
            places = tokens[:, 1:].unflatten(1, (6, 6))
            own = places[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3].flatten(1, 2)
            alone = model.blocks[2](torch.cat([tokens[:, :1], own], 1))
            expected = model.forward_head(model.norm(alone))
            torch.testing.assert_close(found[:, :, cell], expected, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model = build("torchvision-resnet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    images, labels, cells = game(64, count=1)
    for heads in (
        DiFull(model, n=2, layer="layer2", cell_size=64),
        DiPart(model, n=2, cell_size=64),
    ):
        assert heads.model is model
        InputXGradient(heads, "joined").attribute(images, heads.target(labels, cells))
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    heads = DiFull(model, n=2, layer="layer2", cell_size=64)
    model.fc = Broken().eval()
    with pytest.raises(ValueError, match="no"):
        heads(images)
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_single_logit_is_two_classes():
    model = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1)
    )
    model.eval()
    images = torch.randn(3, 3, 16, 16)
    found = DiFull(model, n=2)(images).unflatten(1, (2, 4))
    expected = model(cut_cells(images, 2).flatten(0, 1)).view(3, 4)
    torch.testing.assert_close(found[:, 1], expected)
    torch.testing.assert_close(found[:, 0], -expected)


class Members(nn.Module):
    """A stage that returns a tuple, and a model that returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Pair()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"mine": self.head(self.stage(images)[0].mean((2, 3))), "other": images.mean((1, 2))}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, str]:
        return self.conv(images).relu(), "a word"


def test_members_of_outputs_are_found():
    model = Members().eval()
    images, labels, cells = game(8)
    for heads in (
        DiFull(model, n=2, layer="stage", cell_size=8, output="mine"),
        DiPart(model, n=2, layer="stage", cell_size=8, output="mine"),
    ):
        target = heads.target(labels, cells)
        assert_all_in_own_cell(Gradient(heads, "joined").attribute(images, target), cells)


def cnn() -> nn.Module:
    return SmallCnn(CLASSES).eval()


MISTAKES: dict[str, tuple[Callable[[], object], type[ExplainGuideError], str]] = {
    "no model": (lambda: DiFull(3), OptionError, r"^DiFull: model is a int, not an nn\.Module\."),
    "n": (lambda: DiFull(cnn(), n=1.5), OptionError, r"^DiFull: n is 1\.5\. Use 3 for a grid of 3"),
    "unknown layer": (
        lambda: DiFull(cnn(), layer="bady", cell_size=12),
        LayerError,
        r"^DiFull: unknown layer 'bady'\. Did you mean 'body'",
    ),
    "a layer without places": (
        lambda: DiFull(cnn(), layer="head", cell_size=12),
        LayerError,
        r"layer 'head' does not run once with places that reach the logits\. Use 'mix'\.",
    ),
    "training": (
        lambda: DiFull(SmallCnn(CLASSES))(torch.rand(1, 3, 36, 36)),
        GuidanceError,
        r"^DiFull\.forward: the model is in training mode, where .* Call model\.eval\(\) first\.",
    ),
    "no grid": (
        lambda: DiFull(cnn())(torch.rand(1, 3, 32, 36)),
        ShapeError,
        r"images have shape \(1, 3, 32, 36\), which are no grids of 3 x 3 cells\. Join them with",
    ),
    "another size": (
        lambda: DiFull(cnn(), n=2, layer="body", cell_size=12)(torch.rand(1, 3, 48, 48)),
        ShapeError,
        r"cells are 24 x 24, but the layer was found for 12 x 12\. Build it with cell_size=\(24, 24\)",
    ),
    "no classifier": (
        lambda: DiFull(timm.create_model("resnet10t", num_classes=0)),
        GuidanceError,
        r"^DiFull: ResNet has no classifier",
    ),
    "input": (
        lambda: DiPart(cnn(), layer="input"),
        OptionError,
        r"^DiPart: layer is 'input', from where on each cell would go alone\. Use DiFull\.",
    ),
    "a model of one size": (
        lambda: DiPart(timm_vit().eval(), n=2),
        LayerError,
        r"^DiPart: the model does not run on a grid of 96 x 96 pixels \(.*doesn't match model.*\)\. Say "
        r"cell_size=\(24, 24\), or build the model for that size, or use DiFull",
    ),
    "cells that are no whole places": (
        lambda: DiPart(timm_vit().eval(), n=2, cell_size=24),
        LayerError,
        r"has 3 x 3 places for a grid of 2 x 2 cells\. Say another cell_size=",
    ),
    "a branch": (
        lambda: DiPart(
            tv.resnet18(num_classes=3).eval(), n=2, cell_size=64, layer="layer4.1.conv2"
        ),
        LayerError,
        r"^DiPart: after layer 'layer4\.1\.conv2' the model does not go on with cells alone \(.*\)\. "
        r"Choose the block around it, or leave layer= out\.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(mistake):
    call, kind, words = mistake
    with pytest.raises(kind) as caught:
        call()
    assert re.search(words, str(caught.value)), str(caught.value)


def test_one_module_in_training_mode_is_named():
    model = cnn()
    model.stem[1].train()
    with pytest.raises(GuidanceError, match=r"module 'stem\.1' is in training mode"):
        DiFull(model)(torch.rand(1, 3, 36, 36))


def test_the_score_of_chance():
    """What says nothing of the cell scores a share of the cells: the floor of every table."""
    images, _, cells = game(32, n=3, count=20)
    noise = torch.rand(len(images), 96, 96, generator=torch.Generator().manual_seed(2))
    assert math.isclose(float(grid_pointing_game(noise, cells).mean()), 1 / 9, rel_tol=0.01)
