"""What a tap has seen of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from explainguide.hooks.attention import Weights
from explainguide.hooks.token_grid import Steps

__all__ = ["ForwardPass"]


@dataclass
class ForwardPass:
    """What the tap has seen of one forward pass."""

    inputs: tuple[Any, ...]
    kwargs: dict[str, Any]
    recorded: bool  # gradients were enabled
    place: int | str | None = None  # which argument the images are
    no_image: str = ""  # why there is none
    training: bool = False  # the model's mode
    state: dict[str, Tensor] | None = None  # parameters and buffers, where the model may run again
    features: dict[str, Any] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    output: Any = None
    autocast: tuple[bool, torch.dtype | None] = (False, None)
    replaced: set[str] = field(default_factory=set)
    fast: set[str] = field(default_factory=set)  # operations in a fast form
    slow: dict[str, str] = field(default_factory=dict)  # those that could not be, and why
    problems: dict[str, str] = field(default_factory=dict)  # of layers that cannot be explained
    attentions: dict[str, list[Weights]] = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps)  # what the pass shows of its tokens' places
    until: dict[str, Steps] = field(default_factory=dict)  # the same, until a layer was read
    versions: dict[str, int] = field(default_factory=dict)  # of parameters; see `SomeImages`
    kept: list[Any] = field(default_factory=list)  # see `SomeImages`
    compiled: frozenset[str] = frozenset()  # the parts that torch.compile has compiled

    @property
    def images(self) -> Tensor | None:
        """The images that the model was called with; None where they could not be told."""
        if self.place is None:
            return None
        images = self.inputs[self.place] if isinstance(self.place, int) else self.kwargs[self.place]
        return cast(Tensor, images)

    @property
    def device(self) -> str:
        """Type of the images' device; one that has no autocast stands for none."""
        kind = "cpu" if self.images is None else self.images.device.type
        return kind if torch.amp.is_autocast_available(kind) else "cpu"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that went in."""
        assert self.images is not None
        height, width = self.images.shape[-2:]
        return int(height), int(width)
