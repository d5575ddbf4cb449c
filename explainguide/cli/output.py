"""The option that says which of a model's outputs are the logits."""

from __future__ import annotations

from typing import Any

__all__ = ["add_output_argument"]


def add_output_argument(group: Any) -> None:
    """``--output``, for models that return more than logits."""
    group.add_argument(
        "--output",
        type=lambda text: int(text) if text.lstrip("-").isdecimal() else text,
        metavar="NAME",
        help="which of several outputs of the model are the logits: an index, a key or an attribute",
    )
