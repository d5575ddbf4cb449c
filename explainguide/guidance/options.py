"""The options of a guide: the one list of them, checked where they are given, to save and to build.

Importing this module imports no torch: the command line reads the fields to say what there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from explainguide.errors import OptionError, check_option, did_you_mean, operation
from explainguide.hooks.reading import Reading, check_reading

if TYPE_CHECKING:
    import torch
    from torch import nn

    from explainguide.attr.placement import Placed
    from explainguide.guidance.guide import ExplanationGuidance
    from explainguide.losses import Loss

__all__ = ["GuideOptions", "check_numbers", "guide_options", "setting"]

Options = TypeVar("Options", bound="GuideOptions")
TARGETS = ("sample", "all", "predicted")
SCORES = ("logit", "log_prob", "sum_log_probs")
REDUCTIONS = ("mean", "sum", "none")


def setting(
    default: Any,
    text: str = "",
    *,
    kind: type | None = None,
    choices: Sequence[str] | None = None,
    table: str | None = None,
    least: float | None = None,
    most: float = math.inf,
    above: bool = False,
    many: bool | str = False,
    pairs: bool = False,
    group: str = "training",
) -> Any:
    """A field of a class of settings, with what the command line shows of it.

    Args:
        default: Its default.
        text: What it is, in a few words; empty where the command line does not offer it.
        kind: Of a value: int, float or str; by default that of the default.
        choices: The values that are allowed.
        table: Where the names that are allowed are, ``module:TABLE``; its lists are long to import.
        least: The smallest number that is allowed; None checks none.
        most: The largest.
        above: Whether the smallest itself is not allowed.
        many: Whether there are several values; ``"one or several"`` where one stands alone.
        pairs: Whether its values are NAME=VALUE.
        group: Under which heading the command line lists it.
    """
    shown = {
        "text": text,
        "kind": kind or (str if default is None or pairs else type(default)),
        "choices": choices,
        "table": table,
        "least": least,
        "most": most,
        "above": above,
        "many": many,
        "pairs": pairs,
        "group": group,
    }
    if pairs:
        return field(default_factory=dict, metadata=shown)
    return field(default=default, metadata=shown)


_guide = partial(setting, group="guidance")


@dataclass(frozen=True, kw_only=True)
class GuideOptions:
    """How a model is guided: the options of `ExplanationGuidance`, apart from the model.

    Attributes:
        layer, layer_weights, attribution, loss, target, score, negatives, reduction, first_label,
            sync_dist, output, layout, grid, prefix_tokens, image_size, image_argument: As
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

    layer: Any = _guide(
        None,
        "input, or dotted names (default: the last spatial layer; see `explainguide layers`)",
        many="one or several",
    )
    layer_weights: tuple[float, ...] | None = _guide(None, "one a layer", kind=float, many=True)
    attribution: Any = _guide("ixg", "or module:Class", table="explainguide.attr:ATTRIBUTIONS")
    attribution_options: dict[str, Any] = _guide(
        None, "of the attribution, as n_steps=8", pairs=True
    )
    loss: Any = _guide("energy", "or module:function", table="explainguide.losses:LOSSES")
    loss_options: dict[str, Any] = _guide(None, "of the loss, as normalize=False", pairs=True)
    target: str = _guide("sample", "explained classes of an image", choices=TARGETS)
    score: str = _guide("logit", "what is explained", choices=SCORES)
    negatives: float = _guide(
        0.0, "share of draws of a class that the image does not show", least=0, most=1
    )
    reduction: str = _guide("mean", "over annotated images", choices=REDUCTIONS)
    first_label: Any = _guide(0)
    sync_dist: bool = _guide(True)
    output: Any = _guide(
        None,
        "which of several things that the model returns are the logits: an index, a key or an "
        "attribute",
    )
    layout: str | None = _guide(None, "how a layer's dimensions are read, as NHWC")
    grid: tuple[int, int] | None = _guide(None, "H W of a layer's tokens", kind=int, many=True)
    prefix_tokens: int | tuple[int, ...] | None = _guide(
        None,
        "how many tokens in front belong to no place, or their positions",
        kind=int,
        many="one or several",
    )
    image_size: tuple[int, int] | None = _guide(None)
    image_argument: int | str | None = _guide(None)

    def __post_init__(self) -> None:
        with operation(type(self).__name__, default=True):
            self._check()

    def _check(self) -> None:
        from explainguide.annotations.labels import check_first_label
        from explainguide.attr.base import LayerMap
        from explainguide.attr.placement import check_attribution
        from explainguide.losses.table import resolve_loss, with_options

        for name in ("layer", "layer_weights"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_option("target", self.target, TARGETS)
        check_option("score", self.score, SCORES)
        check_option("reduction", self.reduction, REDUCTIONS)
        _check_negatives(self.negatives, self.target)
        for name, value in vars(check_reading(**vars(self.reading))).items():
            object.__setattr__(self, name, value)
        check_first_label(self.first_label)
        for name in ("attribution", "loss"):
            named = isinstance(getattr(self, name), str)
            options = getattr(self, f"{name}_options")
            _check_plain_options(f"{name}_options", options)
            object.__setattr__(self, f"{name}_options", dict(options))
            if options and not named:
                raise OptionError(
                    f"{name}_options is {options!r}, but {name} is an object. Build the object with "
                    f"them. Options of a {name} that is named are allowed."
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

        return place_attribution(
            model,
            self.attribution,
            list(self.layer) if isinstance(self.layer, tuple) else self.layer,
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

        return ExplanationGuidance.of(model, self, generator=generator)

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
            names = [f.name for f in fields(cls)]
            for name in values:
                if name not in names:
                    raise OptionError(
                        f"unknown setting {name!r}.{did_you_mean(name, names)} "
                        f"{', '.join(names)} are allowed."
                    )
            given = dict(values)
            if isinstance(given.get("first_label"), Mapping):  # JSON's keys are words
                given["first_label"] = {int(k): v for k, v in given["first_label"].items()}
            return cls(**given)


def guide_options(values: Mapping[str, Any]) -> GuideOptions:
    """The guide's part of a larger set of settings, such as those that a checkpoint keeps.

    Args:
        values: By name; others than the guide's are passed over.
    """
    names = {f.name for f in fields(GuideOptions)}
    return GuideOptions.from_dict({k: v for k, v in values.items() if k in names})


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(name, member) for member in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(name, v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise OptionError(
        f"{name} is a {type(value).__name__}, which cannot be saved. Give its name. "
        "'package.module:name' is allowed for what is your own."
    )


def check_numbers(settings: Any) -> None:
    """Each number of a class of settings, against what its field says is allowed.

    Raises:
        OptionError: For the first that is not.
    """
    for option in fields(settings):
        value, metadata = getattr(settings, option.name), option.metadata
        if metadata["least"] is not None and (value is not None or option.default is not None):
            _check_number(option.name, value, metadata)


def _check_number(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    whole, least, most = metadata["kind"] is int, metadata["least"], metadata["most"]
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    in_range = good and math.isfinite(value) and least <= value <= most
    if in_range and not (metadata["above"] and value == least):
        return
    form = f"{'A whole' if whole else 'A'} number"
    limit = f"from {least:g} {'on' if most > 1 else f'to {most:g}'}"
    limit = f"above {least:g}" if metadata["above"] else limit
    hint = f" Did you mean {value / 100:g}?" if good and most == 1 and 1 < value <= 100 else ""
    raise OptionError(f"{name} is {value!r}.{hint} {form} {limit} is allowed.")


def _check_negatives(negatives: float, target: str) -> None:
    number = isinstance(negatives, int | float) and not isinstance(negatives, bool)
    if not number or not 0 <= negatives <= 1 or (negatives > 0 and target != "sample"):
        raise OptionError(
            f"negatives is {negatives!r} with target={target!r}. Use target='sample' and "
            "a probability such as 0.5. A number in [0, 1] is allowed, 0 with other targets."
        )


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
