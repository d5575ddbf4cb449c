"""The options of a guide: the one list of them, checked where they are given, to save and to build.

Importing this module imports no torch: the command line reads the fields to say what there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from explainguide.errors import OptionError, check_option, operation
from explainguide.guidance.settings import Shown, check_flags, named_settings, setting
from explainguide.hooks.reading import Reading, check_reading

if TYPE_CHECKING:
    import torch
    from torch import nn

    from explainguide.attr.placement import Placed
    from explainguide.guidance.guide import ExplanationGuidance
    from explainguide.losses import Loss

__all__ = [
    "EXPLAINING",
    "READING",
    "GuideOptions",
    "explaining",
]

Options = TypeVar("Options", bound="GuideOptions")
TARGETS = ("sample", "all", "predicted")
SCORES = ("logit", "log_prob", "sum_log_probs")
REDUCTIONS = ("mean", "sum", "none")
ROWS = ("all", "annotated")


def _index_or_name(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


def _true_or_auto(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


_shown = partial(Shown, group="guidance")


@named_settings
@dataclass(frozen=True, kw_only=True)
class GuideOptions:
    """How a model is guided: the options of `ExplanationGuidance`, apart from the model.

    Attributes:
        layer, layer_weights, attribution, loss, target, score, negatives, reduction, first_label,
            sync_dist, output, layout, grid, prefix_tokens, image_size, image_argument, fast, rows: As
            `ExplanationGuidance` takes them.
        attribution_options: Keyword arguments of an attribution that is named, such as
            ``{"n_steps": 8}``.
        loss_options: Keyword arguments of a loss that is named, such as ``{"normalize": False}``.

    Names may be a user's own: ``"package.module:function"`` for a loss, ``"package.module:Class"`` for
    an attribution.

    Raises:
        OptionError: For a value that is not allowed, with the nearest that is.

    Example:
        >>> options = GuideOptions(loss="l1", loss_options={"normalize": False}, negatives=0.5)
        >>> GuideOptions.from_dict(options.to_dict()) == options
        True
    """

    layer: Any = setting(
        None,
        _shown(
            "input, or dotted names",
            unset="the last spatial layer; see `explainguide layers`",
            many="one or several",
        ),
    )
    layer_weights: tuple[float, ...] | None = setting(
        None, _shown("one a layer", kind=float, many="several")
    )
    attribution: Any = setting(
        "ixg", _shown("or module:Class", table="explainguide.attr:ATTRIBUTIONS")
    )
    attribution_options: dict[str, Any] = setting(
        {}, _shown("of the attribution, as n_steps=8", pairs=True)
    )
    loss: Any = setting("energy", _shown("or module:function", table="explainguide.losses:LOSSES"))
    loss_options: dict[str, Any] = setting(
        {}, _shown("of the loss, as normalize=False", pairs=True)
    )
    target: str = setting("sample", _shown("explained classes of an image", choices=TARGETS))
    score: str = setting("logit", _shown("what is explained", choices=SCORES))
    negatives: float = setting(
        0.0, _shown("share of draws of a class that the image does not show", least=0, most=1)
    )
    reduction: str = setting("mean", _shown("over annotated images", choices=REDUCTIONS))
    first_label: Any = setting(0)
    sync_dist: bool = setting(True)
    output: Any = setting(
        None,
        _shown(
            "which of several things that the model returns are the logits: an index, a key or an "
            "attribute",
            kind=_index_or_name,
        ),
    )
    layout: str | None = setting(None, _shown("how a layer's dimensions are read, as NHWC"))
    grid: tuple[int, int] | None = setting(
        None, _shown("H W of a layer's tokens", kind=int, many="several")
    )
    prefix_tokens: int | tuple[int, ...] | None = setting(
        None,
        _shown(
            "how many tokens in front belong to no place, or their positions",
            kind=int,
            many="one or several",
        ),
    )
    image_size: tuple[int, int] | None = setting(None)
    image_argument: int | str | None = setting(None)
    fast: bool | Literal["auto"] = setting(
        "auto",
        _shown("fast second derivatives: auto, true or false (PyTorch's own)", kind=_true_or_auto),
    )
    rows: str = setting(
        "all",
        _shown(
            "images of a batch that are differentiated twice; annotated needs no BatchNorm",
            choices=ROWS,
        ),
    )

    def __post_init__(self) -> None:
        with operation(type(self).__name__, default=True):
            self._check()

    def _check(self) -> None:
        from explainguide.annotations.labels import check_first_label
        from explainguide.attr.base import LayerMap
        from explainguide.attr.placement import check_attribution
        from explainguide.losses.table import resolve_loss, with_options

        if isinstance(self.layer, list):
            object.__setattr__(self, "layer", tuple(self.layer))
        object.__setattr__(self, "layer_weights", _weights(self.layer_weights))
        check_flags(self)
        check_option("target", self.target, TARGETS)
        check_option("score", self.score, SCORES)
        check_option("reduction", self.reduction, REDUCTIONS)
        check_option("rows", self.rows, ROWS)
        if not isinstance(self.fast, bool):
            check_option("fast", self.fast, ("auto", True, False))
        _check_negatives(self.negatives, self.target)
        for name, value in vars(check_reading(**vars(self.reading))).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "first_label", check_first_label(self.first_label))
        for name in ("attribution", "loss"):
            named = isinstance(getattr(self, name), str)
            options = getattr(self, f"{name}_options")
            _check_plain_options(f"{name}_options", options)
            object.__setattr__(self, f"{name}_options", dict(options))
            if options and not named:
                raise OptionError(
                    f"{name}_options is {options!r}, but {name} is an object. Build the object with "
                    "them. Options of what is named are allowed."
                )
        if not isinstance(self.attribution, LayerMap):
            check_attribution(self.attribution, self.attribution_options)
        resolve_loss(self.loss)
        if self.loss_options:
            with_options(self.loss, self.loss_options)

    @property
    def options(self) -> GuideOptions:
        """The guide's part alone, of a larger set of settings."""
        return GuideOptions(**{f.name: getattr(self, f.name) for f in fields(GuideOptions)})

    @property
    def reading(self) -> Reading:
        """What is said of how the model is called and read."""
        return Reading(**{f.name: getattr(self, f.name) for f in fields(Reading)})

    def place(self, model: nn.Module, *, trained: bool = False) -> Placed:
        """The attribution, built for a model, and the layers that it explains.

        Args:
            model: The classifier, unwrapped.
            trained: Whether the maps will be trained through.

        Raises:
            LayerError: If there is no such layer, or none that can be explained.
            OptionError: For an attribution object of another model or layer.
        """
        from explainguide.attr.placement import place_attribution

        with operation(f"{type(self).__name__}.place", default=True):
            return place_attribution(
                model,
                self.attribution,
                self.layer,
                options=self.attribution_options,
                reading=self.reading,
                trained=trained,
            )

    def chosen_loss(self) -> str | Loss:
        """The loss with its options."""
        from explainguide.losses.table import with_options

        return with_options(self.loss, self.loss_options) if self.loss_options else self.loss

    def build(
        self, model: nn.Module, *, generator: torch.Generator | None = None
    ) -> ExplanationGuidance:
        """A guide with these options.

        Args:
            model: As `ExplanationGuidance` takes it.
            generator: For the draw of classes.

        Raises:
            LayerError, GuidanceError, OptionError: As `ExplanationGuidance`.
        """
        from explainguide.guidance.guide import ExplanationGuidance

        guide = ExplanationGuidance.__new__(ExplanationGuidance)
        guide._begin(model, self, generator)
        return guide

    def names(self) -> tuple[str, str]:
        """What `repr` calls the attribution and the loss."""
        return (
            _name_of(self.attribution, self.attribution_options),
            _name_of(self.loss, self.loss_options),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold.

        Raises:
            OptionError: If an option is an object, which has no name to be saved.
        """
        with operation(type(self).__name__, default=True):
            return {f.name: _plain(f.name, getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls: type[Options], values: Mapping[str, Any]) -> Options:
        """The options that `to_dict` gave.

        Raises:
            OptionError: For a name that is none of the options.
        """
        with operation(cls.__name__, default=True):
            given = dict(values)
            if isinstance(given.get("first_label"), Mapping):  # JSON's keys are words
                given["first_label"] = {
                    _index_or_name(str(k)): v for k, v in given["first_label"].items()
                }
            return cls(**given)


# The options that say how the model is read, and with them how maps are made; the others say what is
# trained with the maps.
READING = tuple(field.name for field in fields(Reading))
EXPLAINING = ("layer", "attribution", "attribution_options", *READING)


def explaining(values: Mapping[str, Any]) -> GuideOptions:
    """The options that say how maps are made, of settings that were saved; the others are as usual.

    Args:
        values: By name, such as a checkpoint keeps them; others are passed over.
    """
    return GuideOptions.from_dict({k: v for k, v in values.items() if k in EXPLAINING})


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(name, member) for member in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(name, v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise OptionError(
        f"{name} is a {type(value).__name__}, which cannot be saved. Give a plain value. Numbers and "
        "words are allowed, and 'package.module:name' for a loss or an attribution of your own."
    )


def _check_negatives(negatives: Any, target: str) -> None:
    share = float(negatives) if isinstance(negatives, Real) else -1.0
    if not 0 <= share <= 1 or (share > 0 and target != "sample"):
        raise OptionError(
            f"negatives is {negatives!r} with target={target!r}. Use target='sample' and "
            "a probability such as 0.5. A number in [0, 1] is allowed, 0 with other targets."
        )


def _weights(weights: Any) -> tuple[float, ...] | None:
    if weights is None:
        return None
    try:
        numbers = () if isinstance(weights, str) else tuple(float(weight) for weight in weights)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise OptionError(
            f"layer_weights is {weights!r}. Give one number a layer, as [1.0, 0.5]. A sequence of "
            "finite numbers is allowed."
        )
    return numbers


def _check_plain_options(name: str, options: Any) -> None:
    if not isinstance(options, Mapping) or not all(
        isinstance(value, bool | int | float | str) for value in options.values()
    ):
        example = "{'normalize': False}" if name == "loss_options" else "{'n_steps': 8}"
        raise OptionError(
            f"{name} is {options!r}. Use a dict such as {example}. Keyword arguments of the "
            f"{name.removesuffix('_options')}, numbers and words, are allowed."
        )


def _name_of(choice: Any, options: Mapping[str, Any]) -> str:
    if isinstance(choice, partial):
        return _name_of(choice.func, choice.keywords)
    if not isinstance(choice, str):
        choice = getattr(choice, "__name__", type(choice).__name__)
    shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{choice}({shown})" if shown else choice
