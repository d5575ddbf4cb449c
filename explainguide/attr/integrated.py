"""Integrated gradients: a path integral, at the cost of one forward and backward pass a step."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from explainguide.attr.base import Evidence, LayerMap, wide
from explainguide.attr.gradients import dead_layer, layer_gradients
from explainguide.errors import OptionError
from explainguide.layers import INPUT
from explainguide.layout import to_nchw

__all__ = ["IntegratedGradients"]


class IntegratedGradients(LayerMap):
    r"""Integrated gradients: signed, any scale; the map sums to :math:`z_k(f) - z_k(b)`.

    .. math:: A = \sum_c (f_c - b_c) \int_0^1 g_c\bigl(b + \alpha (f - b)\bigr)\, d\alpha

    with Gauss-Legendre quadrature, as Captum's default. At a hidden layer b is the layer's activation
    for the baseline image, and the rest of the model keeps what it computed from the image (skip
    connections around the layer, for instance).

    The model runs n_steps more times, so in training a few steps go a long way. Running statistics
    are not updated by these passes; dropout draws anew in each.

    Args:
        model: Images ``(N, 3, H, W)`` to logits ``(N, K)``.
        layer: Dotted name; None, or ``"input"``, is the image.
        n_steps: Number of points on the path.
        baselines: The image where the path starts: a number, or a tensor that broadcasts with the
            images.

    Raises:
        OptionError: If n_steps is not a positive integer.
        LayerError: If the model has no such layer.

    References:
        Sundararajan et al., 2017; Captum's `IntegratedGradients` and `LayerIntegratedGradients`.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        *,
        n_steps: int = 50,
        baselines: float | Tensor = 0.0,
        layout: str | None = None,
    ) -> None:
        super().__init__(model, layer, layout=layout)
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
            raise OptionError(
                f"IntegratedGradients: n_steps is {n_steps!r}. Use 50, Captum's default, or about 8 "
                "in training. A positive integer is allowed."
            )
        self.n_steps = n_steps
        self.baselines = baselines

    def maps(self, evidence: Evidence) -> dict[str, Tensor]:
        """See `LayerMap.maps`; every layer has a path of its own."""
        return {name: self._map(name, evidence) for name in evidence.features}

    def _map(self, name: str, evidence: Evidence) -> Tensor:
        feature, layout = evidence.features[name], evidence.layouts[name]
        baseline = self._baseline(name, evidence)
        difference = feature - baseline
        integral: Tensor | float = 0.0
        for alpha, weight in _quadrature(self.n_steps):
            point = baseline + alpha * difference
            if not evidence.create_graph:
                point = point.detach().requires_grad_()
            scores = evidence.score(evidence.rerun({name: point})[0])
            (gradient,) = layer_gradients(
                scores, [point], create_graph=evidence.create_graph, caller=evidence.caller
            )
            if gradient is None:
                raise dead_layer(name, evidence.caller)
            integral = integral + weight * wide(gradient)
        assert isinstance(integral, Tensor)
        return (to_nchw(wide(difference), layout) * to_nchw(integral, layout)).sum(-3)

    def _baseline(self, name: str, evidence: Evidence) -> Tensor:
        """The layer's activation for the baseline image."""
        images = evidence.images
        start = self.baselines
        if not isinstance(start, Tensor):
            start = images.new_full(
                (), float(start)
            )  # a fill, not a copy that waits for the device
        start = start.to(images)
        if name == INPUT:
            return start
        return evidence.rerun({INPUT: start.expand_as(images)})[1][name]


def _quadrature(n_steps: int) -> list[tuple[float, float]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    return list(zip(((1 + nodes) / 2).tolist(), (weights / 2).tolist(), strict=True))
