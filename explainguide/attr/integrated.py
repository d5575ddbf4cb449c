"""Integrated gradients: a path integral, a pass a step; for networks without biases one backward."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from explainguide.attr.base import Inputs, LayerMap, attribution, for_noise_tunnel
from explainguide.attr.evidence import Evidence
from explainguide.attr.gradients import InputXGradient, dead_layer, layer_gradients
from explainguide.errors import OptionError, constructor, method
from explainguide.hooks.dynamic import wide
from explainguide.hooks.layers import INPUT
from explainguide.hooks.layout import to_nchw
from explainguide.hooks.members import is_image
from explainguide.hooks.reading import Output

__all__ = ["IntegratedGradients"]


@attribution("intgrad")
class IntegratedGradients(LayerMap):
    r"""Integrated gradients: signed, any scale; the map sums to :math:`z_k(f) - z_k(b)`.

    .. math:: A = \sum_c (f_c - b_c) \int_0^1 g_c\bigl(b + \alpha (f - b)\bigr)\, d\alpha

    with Gauss-Legendre quadrature, as Captum's default. At a hidden layer b is the layer's activation
    for the baseline image, and the rest of the model keeps what it computed from the image (skip
    connections around the layer, for instance).

    The model runs n_steps more times, so in training a few steps go a long way. Running statistics
    are not updated by these passes; dropout draws anew in each.

    An X-DNN (see `explainguide.xdnn`) needs none of these passes: from a zero baseline the path
    integral equals input times gradient, which is computed instead, in one backward pass. A model is
    recognised by its modules when the attribution is built, also one that was not made by
    `xdnn.remove_bias`. The first map at a layer tries on a random image whether the modules told the
    truth and nothing passes by the layer, as a skip connection does. If not, or if the score is not
    linear in the logits (a log-probability), the steps are taken.

    Args:
        model: Images ``(N, 3, H, W)`` to logits ``(N, K)``.
        layer: Dotted name; None, or ``"input"``, is the image.
        n_steps: Number of points on the path.
        baselines: The image where the path starts: a number, or a tensor that broadcasts with the
            images. Whether it is zero is read here, once.
        output, layout, grid, prefix_tokens, image_argument, image_size: As `InputXGradient`.

    Raises:
        OptionError: If n_steps is not a positive integer, or the baseline no number or tensor.
        LayerError: If the model has no such layer.

    References:
        Sundararajan et al., 2017; Captum's `IntegratedGradients` and `LayerIntegratedGradients`.
    """

    reruns = True

    @constructor
    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        n_steps: int = 50,
        baselines: float | Tensor = 0.0,
        output: Output | None = None,
        layout: str | None = None,
        grid: Sequence[int] | None = None,
        prefix_tokens: int | Sequence[int] | None = None,
        image_argument: int | str | None = None,
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            model,
            layer,
            output=output,
            layout=layout,
            grid=grid,
            prefix_tokens=prefix_tokens,
            image_argument=image_argument,
            image_size=image_size,
        )
        self.check_options({"n_steps": n_steps})
        self.n_steps = n_steps
        self._begin_at(baselines)
        # Layer to whether its map takes one backward pass: a property of the architecture, not of
        # weights, images or classes, so one look serves every later call, which then reads nothing
        # from the device.
        self._at_once: dict[str, bool] = {}
        self._product = InputXGradient(model, layer)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """See `LayerMap.check_options`.

        Raises:
            OptionError: If n_steps is not a positive integer, or the baseline no number or tensor.
        """
        n_steps, baselines = options.get("n_steps", 1), options.get("baselines", 0)
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
            raise OptionError(
                f"n_steps is {n_steps!r}. Use 50, Captum's default, or about 8 "
                "in training. A positive integer is allowed."
            )
        number = isinstance(baselines, int | float) and math.isfinite(baselines)
        if isinstance(baselines, bool) or not (number or isinstance(baselines, Tensor)):
            raise OptionError(
                f"baselines is {baselines!r}. Use 0, or the value of black after normalisation. A "
                "finite number, or a tensor that broadcasts with the images, is allowed."
            )

    def _begin_at(self, baselines: float | Tensor) -> None:
        self.check_options({"baselines": baselines})
        from explainguide.xdnn import (
            is_homogeneous,  # here: it brings timm and torchvision's models
        )

        self.baselines = baselines
        black = not baselines.any() if isinstance(baselines, Tensor) else baselines == 0
        self._homogeneous = bool(black) and is_homogeneous(self.model)

    @property
    def multiplies_by_inputs(self) -> bool:
        """Captum's word for it: the path integral is multiplied with the input."""
        return True

    def has_convergence_delta(self) -> bool:
        """Whether `attribute` takes ``return_convergence_delta``."""
        return True

    @for_noise_tunnel
    @method
    def attribute(
        self,
        inputs: Inputs,
        target: int | str | Sequence[int] | Tensor | None = None,
        *,
        additional_forward_args: Any = None,
        create_graph: bool = False,
        baselines: float | Tensor | tuple[Any, ...] | None = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        r"""Attribute the target's logit; see `LayerMap.attribute`.

        Args:
            inputs: As there.
            target: As there.
            additional_forward_args: As there.
            create_graph: As there.
            baselines: Where the path starts, in this call; for a tuple of inputs a tuple, of which the
                images' is read.
            return_convergence_delta: Whether to return, beside the maps, what they miss:
                :math:`\sum A - (z_k(f) - z_k(b))`, ``(N,)``, as Captum has it.

        Returns:
            The maps, ``(N, 1, h, w)``, or the maps and that difference.
        """
        method = self
        if baselines is not None:
            method = copy.copy(self)
            method._begin_at(_of_images(baselines, inputs))

        def finish(evidence: Evidence, maps: Tensor) -> tuple[Tensor, Tensor | None]:
            return maps, method._missing(evidence, maps) if return_convergence_delta else None

        maps, delta = method._explain(inputs, target, additional_forward_args, create_graph, finish)
        attributions = (maps,) if isinstance(inputs, tuple) else maps
        return (attributions, delta) if return_convergence_delta else attributions

    def _missing(self, evidence: Evidence, maps: Tensor) -> Tensor:
        """The sum of each map less the difference of the scores at the ends of the path."""
        (name,) = evidence.features
        with torch.no_grad():
            baseline = self._baseline(name, evidence).expand_as(evidence.features[name])
            start = evidence.score(evidence.rerun({name: baseline})[0])[0]
            return maps.detach().sum((1, 2, 3)) - (evidence.score(evidence.logits)[0] - start)

    def __repr__(self) -> str:
        layer = self.layer or INPUT
        once = self._homogeneous and self._at_once.get(layer, True)
        how = "one backward pass" if once else f"n_steps={self.n_steps}"
        return f"{type(self).__name__}(layer={layer!r}, {how})"

    def maps(self, evidence: Evidence) -> dict[str, Tensor]:
        """See `LayerMap.maps`; every layer has a path of its own."""
        names = list(evidence.features)
        once: list[str] = []
        if self._homogeneous and _is_linear(evidence.score, evidence.logits):
            once = [name for name in names if self._is_at_once(name, evidence)]
        products = {}
        if once:
            features = {name: evidence.features[name] for name in once}
            products = self._product.maps(replace(evidence, features=features))
        return {n: products[n] if n in products else self._map(n, evidence) for n in names}

    def _is_at_once(self, name: str, evidence: Evidence) -> bool:
        if name not in self._at_once:
            from explainguide.xdnn import scaling_fault

            channels, height, width = evidence.images.shape[1:]
            try:
                fault = scaling_fault(self.model, name, (channels, height, width))
            except Exception as error:  # one that wants more than an image, or cannot be copied
                fault = str(error)
            self._at_once[name] = fault is None
        return self._at_once[name]

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
            (gradient,) = layer_gradients(scores, [point], create_graph=evidence.create_graph)
            if gradient is None:
                raise dead_layer(name)
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


def _of_images(baselines: Any, inputs: Any) -> float | Tensor:
    """The images' baseline, where there is one for each input."""
    if not isinstance(baselines, tuple):
        return cast("float | Tensor", baselines)
    places = (
        [i for i, value in enumerate(inputs) if is_image(value)]
        if isinstance(inputs, tuple)
        else [0]
    )
    if len(places) != 1 or places[0] >= len(baselines):
        raise OptionError(
            f"{len(baselines)} baselines, and no telling which is the "
            "images'. Give the images' alone. A number or a tensor is allowed."
        )
    return cast("float | Tensor", baselines[places[0]])


def _is_linear(score: Callable[[Tensor], Tensor], logits: Tensor) -> bool:
    """Whether scores are linear in the logits, up to a constant: their gradient is a constant then.

    Autograd's graph says so. Values would not: the log-probability of a class that is certain is 0,
    whatever it is multiplied with; and they would have to be waited for.
    """
    leaf = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf).sum(), leaf, create_graph=True)
    return not gradient.requires_grad


def _quadrature(n_steps: int) -> list[tuple[float, float]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n_steps)
    return list(zip(((1 + nodes) / 2).tolist(), (weights / 2).tolist(), strict=True))
