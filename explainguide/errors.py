"""The exceptions, the warning, and the search for the name that was meant.

Every message reads ``<public callable>: <what is wrong, with the value>. <nearest fix>. <what is
allowed>.`` Each exception is also the built-in one that a caller would expect, so that
``except ValueError`` keeps working.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "AnnotationError",
    "DataError",
    "ExplainGuideError",
    "ExplainGuideWarning",
    "GuidanceError",
    "LayerError",
    "OptionError",
    "ShapeError",
    "did_you_mean",
]


class ExplainGuideError(Exception):
    """Whatever this package refuses; catch it to catch them all."""


class ExplainGuideWarning(UserWarning):
    """Whatever this package assumes, leaves out or replaces, said once.

    ``warnings.simplefilter("ignore", explainguide.ExplainGuideWarning)`` silences it.
    """


class OptionError(ExplainGuideError, ValueError):
    """An option has a value that is not allowed."""


class ShapeError(ExplainGuideError, ValueError):
    """A tensor has the wrong shape or dtype."""


class AnnotationError(ExplainGuideError, ValueError):
    """Boxes, masks or labels that cannot be what was meant."""


class LayerError(ExplainGuideError, ValueError):
    """A layer that is not there, or that cannot be guided."""


class DataError(ExplainGuideError, ValueError):
    """Files that are missing, damaged, or not in the form that was announced."""


class GuidanceError(ExplainGuideError, RuntimeError):
    """A call that comes at the wrong time, or on a model that cannot be guided."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The sentence that names the nearest allowed spellings, with a leading space; or nothing.

    Args:
        name: What was given.
        allowed: What could have been given.

    Returns:
        ``" Did you mean 'a' or 'b'?"``, or ``""`` where nothing is near.

    Example:
        >>> did_you_mean("layer5", ["layer3", "layer4", "fc"])
        " Did you mean 'layer4' or 'layer3'?"
    """
    close = get_close_matches(name, list(allowed), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
