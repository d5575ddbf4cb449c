"""What a conversion did, layer by layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from explainguide.errors import OptionError, operation

__all__ = ["Conversion", "conversion"]


@dataclass
class Conversion:
    """What `bcosify` did.

    Attributes:
        changes: Layer to what became of it, ``"Conv2d -> BcosConv2d"``.
        left: What could not be converted, or stays for a reason; a sentence each.
    """

    changes: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = Counter(self.changes.values())
        lines = [f"{count:4d} x {kind}" for kind, count in kinds.items()]
        return "\n".join([*lines, *(f"left: {sentence}" for sentence in self.left)])


@operation("conversion")
def conversion(model: nn.Module) -> Conversion:
    """What `bcosify` did to a network.

    Raises:
        OptionError: If it is no network of `bcosify`.

    Example:
        >>> from explainguide.bcos import bcosify
        >>> network = bcosify(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
        >>> conversion(network).changes
        {'0': 'Conv2d(3) -> BcosConv2d(6)'}
    """
    record = getattr(model, "conversion", None)
    if isinstance(record, Conversion):
        return record
    raise OptionError(
        f"this {type(model).__name__} was not made by bcosify. Pass what bcosify "
        "returned. A converted network, out of DistributedDataParallel, is allowed."
    )
