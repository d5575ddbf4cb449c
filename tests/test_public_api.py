"""The public contract: names, signatures and conventions that users rely on."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import captum.attr
import pytest
import torchmetrics

import explainguide
from explainguide import ExplanationGuidance, attr, losses, metrics
from explainguide.attr import ATTRIBUTIONS

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(explainguide.__path__, "explainguide.")
    if name != "explainguide.__main__"
]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_exports(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for exported in module.__all__:
        assert hasattr(module, exported)


def test_the_guides_signature() -> None:
    parameters = inspect.signature(ExplanationGuidance).parameters
    assert list(parameters) == [
        "model",
        "layer",
        "attribution",
        "loss",
        "target",
        "score",
        "negatives",
        "layer_weights",
        "reduction",
        "generator",
        "first_label",
        "sync_dist",
        "output",
        "layout",
        "grid",
        "prefix_tokens",
        "image_size",
        "image_argument",
        "fast",
        "rows",
    ]
    defaults = {n: p.default for n, p in parameters.items() if n != "model"}
    assert defaults == {
        "layer": None,
        "attribution": "ixg",
        "loss": "energy",
        "target": "sample",
        "score": "logit",
        "negatives": 0.0,
        "layer_weights": None,
        "reduction": "mean",
        "generator": None,
        "first_label": 0,
        "sync_dist": True,
        "output": None,
        "layout": None,
        "grid": None,
        "prefix_tokens": None,
        "image_size": None,
        "image_argument": None,
        "fast": "auto",
        "rows": "all",
    }
    keyword_only = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    assert keyword_only == list(parameters)[2:]
    assert list(inspect.signature(ExplanationGuidance.loss_loc).parameters)[1:] == [
        "annotations",
        "target",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "Gradient",
        "InputXGradient",
        "GradCam",
        "LayerCam",
        "IntegratedGradients",
        "AttentionRelevance",
    ],
)
def test_attributions_follow_captum(name: str) -> None:
    kind = getattr(attr, name)
    assert issubclass(kind, captum.attr.Attribution)
    signature = inspect.signature(kind.attribute).parameters
    own = ["baselines", "return_convergence_delta"] if name == "IntegratedGradients" else []
    assert list(signature) == [
        "self",
        "inputs",
        "target",
        "additional_forward_args",
        "create_graph",
        *own,
    ]
    assert signature["create_graph"].default is False
    assert kind in ATTRIBUTIONS.values()


@pytest.mark.parametrize("name", ["energy", "l1", "ppce", "rrr", "gradmask", "relevance", "reff"])
def test_losses_are_plain_functions(name: str) -> None:
    assert losses.LOSSES[name] is getattr(losses, f"{name}_loss")
    assert inspect.isfunction(losses.LOSSES[name])


@pytest.mark.parametrize(
    "name",
    [
        "EnergyPointingGame",
        "GridPointingGame",
        "IoUCurve",
        "LocalizationIoU",
        "OnObjectEnergy",
        "PixelAveragePrecision",
        "PointingGame",
        "SegmentationAgreement",
        "PixelPerturbation",
        "InsertionCurve",
        "DeletionCurve",
        "Infidelity",
        "SensitivityMax",
        "Robustness",
        "WorstGroupAccuracy",
    ],
)
def test_metrics_are_torchmetrics(name: str) -> None:
    assert issubclass(getattr(metrics, name), torchmetrics.Metric)


def test_nothing_swallows_keywords() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == name:
                if function.__name__.startswith("_") or name.endswith(".checks"):
                    continue
                kinds = {p.kind for p in inspect.signature(function).parameters.values()}
                assert inspect.Parameter.VAR_KEYWORD not in kinds, f"{name}.{function.__name__}"


@pytest.mark.parametrize(
    "room", ["datasets", "evaluation", "metrics", "models", "report", "training", "visualization"]
)
def test_rooms_are_attributes_of_the_package(room: str) -> None:
    assert getattr(explainguide, room).__name__ == f"explainguide.{room}"
    assert room in dir(explainguide)


def test_an_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'metric'"):
        explainguide.metric  # noqa: B018


# What users write; a module that has moved hands its names on.
PATHS = [
    *("explainguide:ExplanationGuidance", "explainguide:GuideOptions", "explainguide:Annotations"),
    *("explainguide:collate", "explainguide:LimitedAnnotations", "explainguide:recipe"),
    *("explainguide:RECIPES", "explainguide:attr", "explainguide:losses", "explainguide:metrics"),
    *("explainguide:bcos", "explainguide:xdnn", "explainguide:datasets", "explainguide:models"),
    *("explainguide:visualization", "explainguide:recipes", "explainguide:guidance"),
    *("explainguide:annotations", "explainguide:training", "explainguide:evaluation"),
    *("explainguide:checkpoints", "explainguide:report", "explainguide:tables"),
    *("explainguide:dynamic", "explainguide:selfcheck", "explainguide.training:train"),
    *("explainguide.training:TrainConfig", "explainguide.demo:build_network"),
    *("explainguide.cli:main", "explainguide.guidance:ExplanationGuidance"),
    *("explainguide.annotations:Annotations", "explainguide.annotations:rasterize_boxes"),
    *("explainguide.models:build_model", "explainguide.models:small_cnn"),
    *("explainguide.evaluation:evaluate", "explainguide.checkpoints:load_model"),
    *("explainguide.checkpoints:write_whole", "explainguide.report:write_report"),
    *("explainguide.tables:format_table", "explainguide.dynamic:explanation_mode"),
    *("explainguide.selfcheck:Report", "explainguide.recipes:Recipe", "explainguide.bcos.maps"),
    *("explainguide.metrics.functional:energy_pointing_game", "explainguide.bcos.norms"),
    *("explainguide.training_config:TrainConfig", "explainguide.weights:load_weights"),
    *("explainguide.classification:ClassificationScores", "explainguide.losses.maps:check_maps"),
    *("explainguide.studies:sweep", "explainguide.studies:LogRange", "explainguide.bcos:relearn"),
    *("explainguide.studies:SweepResult", "explainguide.xdnn:relearn"),
    *("explainguide.losses.norms:reff_loss", "explainguide.metrics.localization:PointingGame"),
    *("explainguide.metrics.localization:LocalizationIoU", "explainguide.bcos.base:BcosUnit"),
]


@pytest.mark.parametrize("path", PATHS)
def test_public_paths_stay(path: str) -> None:
    """In a process that has imported nothing else, as in a user's first line."""
    module, _, name = path.partition(":")
    line = f"from {module} import {name}" if name else f"import {module}"
    if module == "explainguide":  # the attribute too, without an import of the room
        line += f"; import explainguide; explainguide.{name}"
    namespace: dict[str, object] = {}
    exec(line, namespace)
    assert not name or namespace[name] is not None
