"""The explanation of a B-cos network as an attribution."""

from __future__ import annotations

from torch import Tensor

from explainguide.attr.base import attribution
from explainguide.attr.evidence import Evidence
from explainguide.attr.gradients import InputXGradient
from explainguide.hooks.dynamic import explanation_mode, modes_of

__all__ = ["BcosContribution"]


@attribution("bcos")
class BcosContribution(InputXGradient):
    r"""What each place contributes to a logit of a B-cos network: signed, in units of the logit.

    .. math:: A = \textstyle\sum_c f_c\, W_c(f)

    with W the product of the network's dynamic weights above the layer: the gradient, with every
    dynamic factor constant. At the input a map sums to the logit less its bias. The factors are
    differentiated like everything else when a loss on the map is.

    Args:
        model: A network of `explainguide.bcos.bcosify`, or one with modules of `explainguide.bcos`.
        layer: Dotted name; None, or ``"input"``, is the image (and its inverse).
        output, layout, grid, prefix_tokens, image_argument, image_size: As `InputXGradient`.

    Raises:
        OptionError: If no module of the model has an explanation mode.
        LayerError: If the model has no such layer.

    References:
        Boehle et al., 2022, Eq. 12; Rao et al., 2023, Sec. 3.2 (in training).
    """

    def _check(self) -> None:
        modes_of(self.model)  # says so now, if there is none

    def maps(self, evidence: Evidence) -> dict[str, Tensor]:
        """See `LayerMap.maps`; the forward pass was an ordinary one."""
        with explanation_mode(self.model):
            return super().maps(evidence)
