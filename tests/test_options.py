"""GuideOptions: one list of a guide's options, to check, to save and to build a guide from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from explainguide import ExplanationGuidance, GuideOptions, recipe
from explainguide.attr import (
    ATTRIBUTIONS,
    AttentionRelevance,
    GradCam,
    InputXGradient,
    IntegratedGradients,
)
from explainguide.checkpoints import load_checkpoint, load_model
from explainguide.cli import main
from explainguide.cli.settings import _pairs
from explainguide.errors import GuidanceError, OptionError
from explainguide.guidance.options import EXPLAINING, explaining
from explainguide.losses import LOSSES, l1_loss
from explainguide.named import find_named
from explainguide.training import TrainConfig

from .networks import SmallCnn, batch

# Settings of every kind; each must reach the guide.
TRIED: list[dict[str, Any]] = [
    {},
    {"layer": "stem", "loss": "l1", "loss_options": {"normalize": False}},
    {"layer": ["stem", "mix"], "layer_weights": [1, 2.5], "attribution": "gradcam"},
    {"layer": "input", "attribution": "intgrad", "attribution_options": {"n_steps": 3}},
    {"score": "log_prob", "negatives": 0.5, "reduction": "sum", "target": "sample"},
    {"layer": "mix", "layout": "NCHW", "image_size": 16, "prefix_tokens": 0, "grid": [4, 4]},
    {"first_label": {7: 0, 9: 1}, "sync_dist": False, "output": 1, "image_argument": "images"},
]


@pytest.mark.parametrize("given", TRIED, ids=str)
def test_options_are_saved_and_read_again(given: dict[str, Any]) -> None:
    options = GuideOptions(**given)
    saved = json.loads(json.dumps(options.to_dict()))
    assert set(saved) == {field.name for field in fields(GuideOptions)}
    assert GuideOptions.from_dict(saved) == options


@pytest.mark.parametrize("loss", ["l1", "ppce", "rrr"])
def test_a_guide_of_options_is_the_guide_of_the_constructor(loss: str) -> None:
    """Values and gradients, with the options of attribution and loss by name and as objects."""
    torch.manual_seed(0)
    model = SmallCnn().double()
    images, masks = batch().double(), torch.zeros(3, 12, 12)
    masks[:, 4:9, 4:9] = 1
    classes = torch.tensor([0, 1, 2])
    function = {"l1": l1_loss}.get(loss, loss)
    objects: dict[str, Any] = {"loss": partial(function, normalize=False)} if loss == "l1" else {}
    attribution = IntegratedGradients(model, "stem", n_steps=3)

    def by_hand() -> ExplanationGuidance:
        return ExplanationGuidance(model, attribution=attribution, **{"loss": loss, **objects})

    named = GuideOptions(
        layer="stem",
        attribution="intgrad",
        attribution_options={"n_steps": 3},
        loss=loss,
        loss_options={"normalize": False} if loss == "l1" else {},
    )
    values = []
    for build in (by_hand, lambda: named.build(model)):
        model.zero_grad()
        with build() as guide:
            model(images)
            found = guide.loss_loc(masks, classes)
        found.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        values.append([found.detach(), *gradients])
    assert len(values[0]) > 1
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_guide_says_what_it_was_built_with() -> None:
    guide = ExplanationGuidance(SmallCnn(), "stem", loss="l1", negatives=0.25)
    assert guide.options == GuideOptions(layer="stem", loss="l1", negatives=0.25)
    assert guide.options.build(SmallCnn()).layers == ["stem"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "energi"}, "unknown loss 'energi'. Did you mean 'energy'?"),
        ({"attribution": "ixgg"}, "unknown attribution 'ixgg'. Did you mean 'ixg'?"),
        ({"attribution": GradCam}, "attribution is the class GradCam. Build it: GradCam(model)."),
        (
            {"loss_options": {"nrmalize": 1}, "loss": "l1"},
            "has no option 'nrmalize'. Did you mean 'normalize'?",
        ),
        (
            {"attribution_options": {"n_step": 8}, "attribution": "intgrad"},
            "has no option 'n_step'. Did you mean 'n_steps'?",
        ),
        (
            {"attribution_options": {"n_steps": 8}},
            "the attribution 'ixg' has no option 'n_steps'. It has none.",
        ),
        (
            {"loss": l1_loss, "loss_options": {"normalize": False}},
            "loss is an object. Build the object with them.",
        ),
        ({"loss": "no.such.module:loss"}, "'no.such.module:loss' cannot be imported"),
        (
            {"loss": "explainguide.losses:energi_loss"},
            "has no function 'energi_loss'. Did you mean 'energy_loss'",
        ),
        (
            {"attribution": "explainguide.losses:energy_loss"},
            "is no attribution. Derive it from LayerMap",
        ),
        ({"sync_dist": "no"}, "sync_dist is 'no'. Write sync_dist=True or sync_dist=False."),
        ({"layer_weights": "12"}, "layer_weights is '12'. Give one number a layer"),
        ({"layer_weights": [float("nan")]}, "layer_weights is [nan]. Give one number a layer"),
        (
            {"attribution": "intgrad", "attribution_options": {"baselines": "black"}},
            "baselines of the attribution 'intgrad' is 'black'. Leave it out for the default. A number",
        ),
        (
            {"attribution": "intgrad", "attribution_options": {"n_steps": "8"}},
            "n_steps of the attribution 'intgrad' is '8'. Did you mean 8? A whole number is allowed.",
        ),
        (
            {"attribution": "intgrad", "attribution_options": {"n_steps": 0}},
            "n_steps is 0. Use 50, Captum's default",
        ),
        (
            {"attribution": "relevance", "attribution_options": {"last_blocks": 0}},
            "last_blocks is 0. Use 3 for a cheap map",
        ),
        (
            {"attribution": "relevance", "attribution_options": {"detach_gradient": "false"}},
            "detach_gradient of the attribution 'relevance' is 'false'. Did you mean False? True or Fal",
        ),
        (
            {"loss": "torch:sum", "loss_options": {"dim": 1}},
            "'torch:sum' does not say what it takes",
        ),
        (
            {"loss": "explainguide.losses:energy_loss", "loss_options": {"floor": 3}},
            "floor of the loss 'explainguide.losses:energy_loss' is 3. Leave it out for the default.",
        ),
        ({"target": "al"}, "unknown target 'al'. Did you mean 'all'"),
        ({"negatives": 0.5, "target": "all"}, "negatives is 0.5 with target='all'"),
        ({"negatives": "0.5"}, "negatives is '0.5'"),
        ({"grid": (7,)}, "grid is (7,)"),
        ({"layout": "NWHC"}, "unknown layout 'NWHC'"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_mistakes_are_told_when_the_options_are_built(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as wrong:
        GuideOptions(**given)
    assert str(wrong.value).startswith("GuideOptions: ") and message in str(wrong.value)
    if not any(name.endswith("_options") for name in given):
        with pytest.raises(OptionError) as wrong:
            ExplanationGuidance(SmallCnn(), **given)
        assert str(wrong.value).startswith("ExplanationGuidance: ") and message in str(wrong.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss", l1_loss), ("output", lambda found: found[0]), ("layer", SmallCnn().stem)],
    ids=["loss", "output", "layer"],
)
def test_what_has_no_name_is_not_saved(name: str, value: Any) -> None:
    options = GuideOptions(**{name: value})
    with pytest.raises(OptionError, match=rf"^GuideOptions: {name} is a .*which cannot be saved"):
        options.to_dict()
    with pytest.raises(OptionError, match=rf"^TrainConfig: {name} is a .*which cannot be saved"):
        TrainConfig(**{name: value})


def test_settings_of_an_older_version_are_read() -> None:
    """They have no attribution_options, layout, grid and so on."""
    config = TrainConfig(layer="layer4", loss="l1", loss_options={"normalize": False}, lam=0.5)
    new = {"attribution_options", "first_label", "sync_dist", "layout", "grid", "prefix_tokens"}
    new |= {"image_size", "image_argument"}
    old = {name: value for name, value in config.to_dict().items() if name not in new}
    assert TrainConfig.from_dict(old) == config
    assert config.differences(old) == []
    assert explaining({**old, "name": "resnet18"}) == GuideOptions(layer="layer4")


@pytest.mark.parametrize("name", ["first_label", "sync_dist"])
def test_a_training_refuses_what_it_would_not_use(name: str) -> None:
    with pytest.raises(OptionError, match=rf"^TrainConfig: {name} is .*Leave it out"):
        TrainConfig(**{name: 1 if name == "first_label" else False})


def test_recipes_and_trainings_take_every_option_of_a_guide() -> None:
    found = recipe("robustvit").config(attribution_options={"detach_gradient": True}, negatives=0.5)
    assert (found.attribution_options, found.negatives) == ({"detach_gradient": True}, 0.5)
    assert replace(recipe("rrr"), negatives=0.5).config().negatives == 0.5
    # Options of a loss or an attribution in the place of which another is taken do not stay.
    assert recipe("rrr").config(loss="energy").loss_options == {}
    mine = replace(recipe("robustvit"), attribution_options={"detach_gradient": True})
    assert mine.config(attribution="ixg", loss="energy").attribution_options == {}
    guide = mine.guide(small_vit())
    method = guide._settings.attribution
    assert isinstance(method, AttentionRelevance) and method.detach_gradient


def small_vit() -> torch.nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 2, hidden_dim=16, mlp_dim=32, num_classes=4)


MINE = """
import torch
from explainguide.attr import InputXGradient
from explainguide.losses import localization_loss

seen = []

@localization_loss(lambda maps, sharp=1.0: maps * sharp, prepared={"sharp": 1.0})
def outside_loss(attribution, mask, *, sharp=1.0):
    seen.append(float(attribution.detach().abs().max()))
    return (attribution * sharp * (1 - mask.to(attribution))).square().mean((1, 2))

class Absolute(InputXGradient):
    def __init__(self, model, layer=None, *, power=1, **reading):
        super().__init__(model, layer, **reading)
        self.power = power

    def maps(self, evidence):
        return {name: m.abs() ** self.power for name, m in super().maps(evidence).items()}
"""


def test_a_loss_and_an_attribution_of_ones_own_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_parts.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(LOSSES, "outside", len)  # what the module enters goes afterwards
    del LOSSES["outside"]
    out = tmp_path / "run"
    command = [
        *("train", "--data", "decoy", "--model", "explainguide.models:small_cnn", "--size", "24"),
        *("--loss", "my_parts:outside_loss", "--loss-options", "sharp=2.0", "--layer", "stage2"),
        *("--attribution", "my_parts:Absolute", "--attribution-options", "power=2"),
        *("--epochs", "1", "--batch-size", "256", "--lam", "0.1", "--out", str(out), "--quiet"),
    ]
    assert main(command) == 0
    config = load_checkpoint(out / "last.pt")["config"]
    assert config["loss"] == "my_parts:outside_loss"
    assert config["attribution_options"] == {"power": 2}
    from my_parts import seen  # type: ignore[import-not-found]

    assert seen and max(seen) > 0
    assert main(["evaluate", str(out / "last.pt"), "--quiet"]) == 0


def test_what_a_loss_prepares_is_at_the_layers_resolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []

    def prepare(maps: Tensor) -> Tensor:
        sizes.append(tuple(maps.shape))
        return maps / 2

    from explainguide.losses import LOSSES, localization_loss

    @localization_loss(prepare)
    def half_loss(attribution: Tensor, mask: Tensor) -> Tensor:
        sizes.append(tuple(attribution.shape))
        return attribution.square().mean((1, 2))

    try:
        model = SmallCnn()
        with ExplanationGuidance(model, "mix", loss="half") as guide:
            model(batch())
            found = guide.loss_loc(torch.ones(3, 12, 12), torch.tensor([0, 1, 2]))
        assert torch.isfinite(found)
        (coarse, fine) = sizes
        assert coarse[1:] != fine[1:] == (12, 12)
    finally:
        del LOSSES["half"]


def test_weights_say_all_that_explains(tmp_path: Path) -> None:
    """weights.safetensors is evaluated as last.pt is, with the attribution's options and the reading."""
    out = tmp_path / "run"
    command = [
        *("train", "--data", "decoy", "--model", "explainguide.models:small_cnn", "--size", "24"),
        *("--attribution", "intgrad", "--attribution-options", "n_steps=1", "--layer", "stage2"),
        *("--layout", "NCHW", "--epochs", "1", "--batch-size", "256", "--lam", "0"),
        *("--target", "all", "--negatives", "0", "--out", str(out), "--quiet"),
    ]
    assert main(command) == 0
    kept = load_model(out / "weights.safetensors")[1]["config"]
    whole = load_checkpoint(out / "last.pt")["config"]
    assert {name: kept[name] for name in EXPLAINING} == {name: whole[name] for name in EXPLAINING}
    assert kept["attribution_options"] == {"n_steps": 1}


def test_an_old_checkpoint_with_options_that_do_not_fit_is_still_explained() -> None:
    """Without guidance, target="all" with negatives was accepted once; neither explains anything."""
    old = {"layer": "layer4", "attribution": "ixg", "target": "all", "negatives": 0.5, "lam": 0.0}
    assert explaining(old).layer == "layer4"


def test_labels_that_were_given_are_copied() -> None:
    labels = {7: 1}
    options = GuideOptions(first_label=labels)
    labels[99] = -3
    assert options.first_label == {7: 1}


def test_a_copied_guide_has_equal_options() -> None:
    guide = ExplanationGuidance(SmallCnn(), "stem", layer_weights=torch.tensor([2.0]).numpy())
    assert guide.options.layer_weights == (2.0,)
    assert copy.deepcopy(guide).options == guide.options


@pytest.mark.parametrize("name", ["l1", "ppce", "rrr", "energy", "gradmask", "relevance", "reff"])
def test_losses_compile_whole(name: str) -> None:
    """Their errors are named without a context, through which torch.compile does not see."""
    compiled = torch.compile(LOSSES[name], backend="eager", fullgraph=True)
    maps, masks = torch.rand(2, 4, 4), torch.rand(2, 4, 4) > 0.5
    torch.testing.assert_close(compiled(maps, masks), LOSSES[name](maps, masks))


def test_evaluate_takes_no_option_that_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--loss", "--score", "--target", "--negatives", "--reduction"):
        assert main(["evaluate", "last.pt", option, "x"]) == 2
        assert f"unknown option '{option}'" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [GuideOptions, TrainConfig, partial(replace, recipe("rrr"))])
def test_every_setting_that_is_true_or_false_is_checked(settings: Callable[..., Any]) -> None:
    kind = type(settings())
    flags = [
        f.name for f in fields(kind) if "shown" in f.metadata and f.metadata["shown"].kind is bool
    ]
    assert flags
    for name in flags:
        with pytest.raises(OptionError, match=f"{name} is 'no'"):
            settings(**{name: "no"})


@pytest.mark.parametrize("word", ["false", "FALSE", "False"])
def test_true_and_false_of_the_command_line_in_any_case(word: str) -> None:
    found = _pairs("loss_options", [f"a={word}", "b=true", "c=falsehood", "d=2"])
    assert found == {"a": False, "b": True, "c": "falsehood", "d": 2}


def test_objects_check_the_values_of_their_options() -> None:
    model = SmallCnn()
    with pytest.raises(OptionError, match=r"IntegratedGradients: baselines is 'black'. Use 0, or"):
        IntegratedGradients(model, baselines="black")
    with pytest.raises(OptionError, match=r"IntegratedGradients.attribute: baselines is nan"):
        IntegratedGradients(model).attribute(torch.rand(1, 3, 16, 16), baselines=float("nan"))
    with pytest.raises(OptionError, match="AttentionRelevance: detach_gradient is 'false'"):
        AttentionRelevance(small_vit(), detach_gradient="false")
    with pytest.raises(
        OptionError, match=r"ExplanationGuidance: generator is 3. Use torch.Generator"
    ):
        ExplanationGuidance(model, generator=3)


def test_an_attribution_object_says_itself_how_the_model_is_read() -> None:
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, stride=4), torch.nn.GELU())
    model = torch.nn.Sequential(*body, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model.num_classes = 0  # as timm says of a model without its classifier
    head = torch.nn.Linear(8, 4)
    with pytest.raises(GuidanceError, match="num_classes is 0"):
        ExplanationGuidance(model, "0")
    product = InputXGradient(model, "0", output=head)
    with ExplanationGuidance(model, attribution=product) as guide:
        model(torch.rand(2, 3, 16, 16))
        mask = torch.zeros(2, 16, 16)
        mask[:, :8] = 1
        assert guide.loss_loc(mask, target=1) > 0


class Strict(InputXGradient):
    """Takes nothing of how a model is read."""

    def __init__(self, model: Any, layer: Any = None, *, strength: float = 1.0) -> None:
        super().__init__(model, layer)
        self.strength = strength


class Needing(Strict):
    def __init__(self, model: Any, layer: Any = None, *, power: int) -> None:
        super().__init__(model, layer, strength=power)


def test_an_attribution_of_ones_own_gets_what_its_constructor_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ATTRIBUTIONS, "strict", Strict)
    monkeypatch.setitem(ATTRIBUTIONS, "needing", Needing)
    options = {"attribution": "strict", "attribution_options": {"strength": 2}}
    with ExplanationGuidance(SmallCnn(), attribution="strict") as guide:
        assert type(guide._settings.attribution) is Strict
    guide = GuideOptions(**options).build(SmallCnn())
    assert guide._settings.attribution.strength == 2
    guide.remove()
    with pytest.raises(
        OptionError, match="layout is 'NCHW', which the constructor of Strict does not"
    ):
        GuideOptions(**options, layout="NCHW").build(SmallCnn())
    with pytest.raises(OptionError, match=r"the attribution 'needing' needs 'power'. Say it with"):
        GuideOptions(attribution="needing")


def test_a_loss_of_ones_own_with_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def pooled(attribution: Any, mask: Any, *, size: int = 5, power: float = 1.0) -> Any:
        if power < 0:
            raise ValueError("power must not be negative")
        return (avg_pool2d(attribution, size) ** power).mean((1, 2))

    def refusing(attribution: Any, mask: Any, *, power: float = 1.0) -> Any:
        raise ValueError("maps of another size")

    def by_position(attribution: Any, mask: Any, power: int = 1) -> Any:
        return attribution.mean((1, 2)) ** power

    for loss in (pooled, refusing, by_position):
        monkeypatch.setitem(LOSSES, loss.__name__, loss)
    assert GuideOptions(loss="pooled", loss_options={"power": 2.0}).loss_options == {"power": 2.0}
    assert GuideOptions(loss="pooled", loss_options={"size": 99})  # maps may be as large
    assert GuideOptions(loss="refusing", loss_options={"power": 2})  # not for its options
    with pytest.raises(
        OptionError, match=r"refuses its options .*: power must not be negative. Change"
    ):
        GuideOptions(loss="pooled", loss_options={"power": -1})
    with pytest.raises(
        OptionError, match=r"takes 'power' by position too. Write \(attribution, mask, \*"
    ):
        GuideOptions(loss="by_position", loss_options={"power": 2})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./mine:f", "'./mine:f' has no module of Python before the colon. Did you mean 'mine:f'?"),
        ("../a/mine.py:f", "has no module of Python before the colon. Did you mean 'a.mine:f'?"),
        ("mine-2:f", "has no module of Python before the colon. Name the module as"),
        (":f", "has no module of Python before the colon. Name the module as"),
        ("good_module.py:f", "Did you mean 'good_module:f'? Leave out '.py'."),
        ("bad_syntax:f", "(SyntaxError: invalid syntax"),
        (
            "bad_name:f",
            "(NameError: name 'undefined' is not defined). The error is in 'bad_name' itself",
        ),
        ("bad_import:f", "(No module named 'absent_package'). The error is in 'bad_import' itself"),
        (
            "absent_package.part:f",
            "(No module named 'absent_package'). Is its folder on PYTHONPATH?",
        ),
    ],
)
def test_names_that_are_no_module(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good_module.py").write_text("def f(): ...")
    (tmp_path / "bad_syntax.py").write_text("def f(:")
    (tmp_path / "bad_name.py").write_text("undefined")
    (tmp_path / "bad_import.py").write_text("import absent_package")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OptionError) as wrong:
        find_named(name)
    assert message in str(wrong.value)
    assert str(wrong.value).endswith("'package.module:function' is allowed.")
