"""The roll-out of attention: from one mixing matrix a block to the relevance of every patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Readout", "mixing_matrix", "roll_out"]


@dataclass(frozen=True)
class Readout:
    """Which tokens the logits are read from, after the last attention.

    Attributes:
        others: Positions of the tokens that belong to no place.
        used: Those of them that are read.
        patches: Whether the patches are: a pooled model.
        latent: Whether neither is, because the last attention itself pools: its queries are learned.
    """

    others: tuple[int, ...]
    used: tuple[int, ...]
    patches: bool
    latent: bool = False

    def row(self, like: Tensor, keys: int) -> Tensor:
        """The mean over the tokens that are read, as weights ``(1, keys)``."""
        weights = like.new_full((1, keys), float(self.patches))
        for place in self.others:
            weights[:, place] = float(place in self.used)
        return weights / (len(self.used) + (keys - len(self.others)) * self.patches)


def mixing_matrix(weights: Tensor, gradient: Tensor) -> Tensor:
    r"""How much each token takes over from each other one in a block: non-negative.

    .. math:: \bar A = \operatorname{mean}_{heads} \max(0, A \odot \nabla A)

    Args:
        weights: Attention, ``(N, heads, queries, keys)``.
        gradient: ``(S, N, heads, queries, keys)``, for S scores an image.

    Returns:
        ``(S, N, queries, keys)``.

    References:
        Chefer et al., 2021 (GAE), Eq. 5.
    """
    return torch.relu(weights * gradient).mean(2)


def roll_out(mixing: Sequence[Tensor], readout: Readout) -> Tensor:
    r"""The relevance of the first block's tokens for what the logits are read from.

    With :math:`R \leftarrow R + \bar A_b R` over the blocks in forward order (GAE, Eq. 6) and
    :math:`w` the row that takes the mean over the tokens that are read,

    .. math:: w R = w (I + \bar A_B) \cdots (I + \bar A_1)

    which is computed from the left: one row times a matrix for each block, not matrix times matrix.
    What is returned is :math:`w (R - I)`: the identity gives every patch of a pooled model the same
    share, next to which its relevance would be lost to rounding (and a class token none at all).

    In a block where only the first tokens are queries (class attention), the other rows of R stay. A
    class token that joins the others later has no relevance from the blocks before.

    Args:
        mixing: `mixing_matrix` of the blocks in forward order, each ``(S, N, queries, keys)``.
        readout: What the logits are read from.

    Returns:
        ``(S, N, keys of the first block)``, non-negative.
    """
    blocks = list(mixing)
    if readout.latent:
        taken = blocks.pop().mean(-2, keepdim=True)
        row = torch.zeros_like(taken)
    else:
        last = blocks[-1]
        row = readout.row(last, last.shape[-1]).expand(*last.shape[:2], 1, -1)
        taken = torch.zeros_like(row)
    for matrix in reversed(blocks):
        queries, keys = matrix.shape[-2:]
        row, taken = (part[..., part.shape[-1] - keys :] for part in (row, taken))
        taken = taken + (row + taken)[..., :queries] @ matrix
    return taken[..., 0, :]
