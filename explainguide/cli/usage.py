"""What is wrong with the arguments of a command."""

from __future__ import annotations

from explainguide.errors import OptionError

__all__ = ["UsageError"]


class UsageError(OptionError):
    """Arguments that a command refuses; the text begins with the option that is meant."""

    _named = True
