"""Recipes: the published numbers, one step of training each, overrides, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict, fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from explainguide import ExplanationGuidance, Recipe, recipe
from explainguide.attr import ATTRIBUTIONS
from explainguide.errors import LayerError, OptionError
from explainguide.losses import LOSSES
from explainguide.recipes import RECIPES
from explainguide.training.config import TrainConfig

from .networks import SmallCnn, boxes

NAMES = ["robustvit", "gradmask", "rrr", "model-guidance/final", "model-guidance/input", "reff"]
TARGETS = [boxes((4, 2, 24, 20), labels=(2,)), boxes((8, 8, 32, 30), labels=(0,))]


def images(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


class Stages(nn.Module):
    """A ResNet's stages, by their names, small and smooth."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for index, width in enumerate((4, 4, 8, 8), start=1):
            block = nn.Sequential(
                nn.Conv2d(channels, width, 3, stride=2 if index > 1 else 1, padding=1), nn.GELU()
            )
            self.add_module(f"layer{index}", block)
            channels = width
        self.fc = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name != "robustvit":
        return Stages()
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, embed_dim=24, num_heads=2
    )


def test_these_are_the_recipes() -> None:
    assert list(RECIPES) == NAMES
    assert [found.name for found in RECIPES.values()] == NAMES


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "robustvit",
            {"attribution": "relevance", "loss": "relevance", "lam": 0.8, "class_weight": 0.2}
            | {"class_loss": "confidence-boosting", "temperature": 1.0, "batch_size": 8}
            | {"loss_options": {"background": 2.0, "foreground": 0.3}, "reduction": "mean"},
        ),
        ("gradmask", {"layer": "input", "attribution": "gradient", "loss": "gradmask"}),
        (
            "rrr",
            {"layer": "input", "attribution": "gradient", "loss": "rrr", "score": "sum_log_probs"}
            | {"loss_options": {"normalize": False}, "lam": 1000.0},
        ),
        (
            "model-guidance/final",
            {"layer": None, "attribution": "ixg", "loss": "energy", "reduction": "sum"}
            | {"lambdas": (5e-4, 1e-3, 5e-3), "lr": 1e-4, "batch_size": 64, "optimizer": "adam"},
        ),
        ("model-guidance/input", {"layer": "input", "reduction": "sum", "target": "sample"}),
        (
            "reff",
            {"layer": ("layer1", "layer2", "layer3", "layer4"), "attribution": "gradcam"}
            | {"layer_weights": (15, 60, 250, 1000), "loss": "reff", "region": "masks"}
            | {"optimizer": "sgd", "lr": 0.01, "batch_size": 32, "weight_decay": 1e-5},
        ),
    ],
)
def test_the_published_numbers(name: str, published: dict[str, Any]) -> None:
    found = asdict(recipe(name))
    assert {key: found[key] for key in published} == published


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_whole(name: str) -> None:
    found = recipe(name)
    assert found.loss in LOSSES and found.attribution in ATTRIBUTIONS
    assert not found.lambdas or found.lam in found.lambdas
    assert "et al." in found.source or "Yamaguchi" in found.source
    assert found.advice.endswith(".") and not found.text.endswith(".")
    # What both take is called the same, so that no setting of a recipe is lost on the way.
    ours = {f.name for f in fields(Recipe)} - {"name", "text", "source", "advice", "lambdas"}
    assert ours <= {f.name for f in fields(TrainConfig)}
    guided = set(signature(ExplanationGuidance).parameters) - {"model", "generator"}
    assert guided <= ours


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_prints_itself(name: str) -> None:
    shown = str(recipe(name))
    found = recipe(name)
    assert shown.startswith(f"{name}: {found.text}")
    for part in (found.source, found.attribution, f"{found.lam:g}", found.class_loss):
        assert part in shown
    assert all(len(line) <= 98 for line in shown.splitlines())


def test_a_recipe_cannot_be_changed_for_others() -> None:
    with pytest.raises(FrozenInstanceError):
        recipe("rrr").lam = 1.0  # type: ignore[misc]
    recipe("rrr").loss_options["normalize"] = True
    assert recipe("rrr").loss_options == {"normalize": False}
    assert replace(recipe("rrr"), lam=1.0).lam == 1.0
    assert recipe("rrr").lam == 1000.0


@pytest.mark.parametrize("name", NAMES)
def test_one_step_of_training(name: str) -> None:
    model, found = network(name), recipe(name)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guide = found.guide(model)
    logits = model(images())
    loss_loc = guide.loss_loc(TARGETS)
    assert 0 < float(loss_loc.detach()) < math.inf
    alone = torch.autograd.grad(
        loss_loc, list(model.parameters()), retain_graph=True, allow_unused=True
    )
    assert any(g is not None and g.any() for g in alone)
    found.total_loss(logits, torch.tensor([2, 0]), loss_loc).backward()
    optimizer.step()
    after = list(model.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    guide.remove()


@pytest.mark.parametrize("name", NAMES)
def test_a_config_holds_all_that_the_recipe_sets(name: str) -> None:
    found = recipe(name)
    config = found.config(epochs=3)
    assert config.epochs == 3
    for setting in fields(TrainConfig):
        value = getattr(found, setting.name, None)
        if value is not None and setting.name != "epochs":
            assert getattr(config, setting.name) == value
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_what_is_given_comes_before_the_recipe() -> None:
    config = recipe("rrr").config(lam=5.0, loss="energy")
    assert (config.lam, config.loss, config.loss_options) == (5.0, "energy", {})
    assert recipe("rrr").config(loss="rrr").loss_options == {"normalize": False}
    assert recipe("rrr").config(loss_options={"normalize": True}).loss_options["normalize"] is True
    with recipe("model-guidance/final").guide(Stages(), loss="l1", layer="layer2") as guide:
        assert guide.layers == ["layer2"]
        assert "loss='l1'" in repr(guide)
    with recipe("model-guidance/input").guide(Stages(), layer=None) as guide:
        assert guide.layers == ["layer4"]


@pytest.mark.parametrize("loss", ["rrr", "energy", "l1"])
def test_a_guide_and_a_config_have_one_objective(loss: str) -> None:
    options = recipe("rrr").config(loss=loss).loss_options
    assert options == ({"normalize": False} if loss == "rrr" else {})
    with recipe("rrr").guide(Stages(), loss=loss) as guide:
        assert guide.options.loss_options == options
    with recipe("rrr").guide(Stages(), loss=loss, loss_options={}) as guide:
        assert guide.options.loss_options == {}


def test_a_guide_names_the_options_of_its_loss() -> None:
    with recipe("rrr").guide(Stages()) as guide:
        assert "loss='rrr(normalize=False)'" in repr(guide)


@pytest.mark.parametrize(
    "model", [torchvision.models.resnet18, lambda: timm.create_model("resnet18")]
)
def test_the_layers_on_a_resnet(model: Any) -> None:
    network = model()
    with recipe("model-guidance/final").guide(network) as guide:
        assert guide.layers == ["layer4"]
    with recipe("reff").guide(network) as guide:
        assert guide.layers == ["layer1", "layer2", "layer3", "layer4"]


def test_reff_elsewhere_says_what_to_do() -> None:
    with pytest.raises(LayerError) as wrong:
        recipe("reff").guide(SmallCnn())
    assert str(wrong.value) == (
        "Recipe.guide: recipe 'reff' guides 'layer1', 'layer2', 'layer3', 'layer4', as a ResNet "
        "calls its stages; this SmallCnn has no 'layer1', 'layer2', 'layer3', 'layer4'. Name 4 "
        "layers of the model from shallow to deep with layer=[...] (--layer), or fewer with "
        "layer_weights=[...] too. `explainguide layers` lists those that are allowed."
    )
    with pytest.raises(OptionError, match="4 layer_weights for 2 layers"):
        recipe("reff").guide(SmallCnn(), layer=["stem", "mix"])
    found = recipe("reff").guide(SmallCnn(), layer=["stem", "mix"], layer_weights=[15, 60])
    assert found.layers == ["stem", "mix"]


def test_the_total_loss_of_multi_hot_labels() -> None:
    logits, zero = torch.tensor([[2.0, -1.0]]), torch.tensor(0.0)
    found = recipe("model-guidance/final").total_loss(logits, torch.tensor([[1.0, 0.0]]), zero)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(found, expected)


def test_the_page_shows_what_the_recipes_hold() -> None:
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == NAMES
    for row in rows:
        found = recipe(row[0].strip("`"))
        layers = (found.layer,) if isinstance(found.layer, str) else found.layer or ("automatic",)
        assert all(name in row[1] for name in layers)
        assert row[2] == f"`{found.attribution}`"
        assert row[3].split("`")[1] == found.loss
        assert row[4].split()[0] == f"{found.lam:g}" and found.reduction in row[4]
        assert row[5] == (f"{found.class_weight:g} " if found.class_weight != 1 else "") + (
            "confidence boosting" if found.class_loss != "task" else "the task's"
        )
