r"""Attributions from one gradient of the score with respect to a layer.

Below, :math:`f_c` is channel c of the layer's activation and :math:`g_c` the gradient of the sum of
the batch's scores with respect to it. In evaluation mode that gradient is each image's own; with
BatchNorm in training mode it also holds the paths through the batch's statistics.

Every method costs one backward pass through the part of the model above the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from explainguide.attr.base import LayerMap, attribution
from explainguide.attr.evidence import Evidence
from explainguide.errors import GuidanceError, LayerError
from explainguide.hooks.dynamic import wide
from explainguide.hooks.layout import Layout, to_nchw
from explainguide.host import host_array

__all__ = ["GradCam", "Gradient", "InputXGradient", "LayerCam", "layer_gradients"]


def layer_gradients(
    scores: Tensor,
    features: Sequence[Tensor],
    *,
    create_graph: bool,
    retain_graph: bool | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of S scores an image with respect to several activations, in one backward pass.

    Args:
        scores: ``(S, N)``.
        features: Activations in the graph of the scores.
        create_graph: Whether the gradients must be differentiable.
        retain_graph: Whether the scores' graph is needed again; by default where the gradients' is.

    Returns:
        One an activation, ``(S, *activation.shape)``; None where the scores do not depend on it.

    Raises:
        GuidanceError: If a segment in between was checkpointed with use_reentrant=True.
    """
    # Outside autocast: the backward pass runs in the types that the forward pass chose.
    with torch.autocast(scores.device.type, enabled=False), _reentrance_told():
        if len(scores) == 1:
            gradients = torch.autograd.grad(
                scores.sum(),
                features,
                retain_graph=retain_graph,
                create_graph=create_graph,
                allow_unused=True,
            )
            return tuple(None if g is None else g[None] for g in gradients)
        totals = scores.sum(1)
        basis = torch.eye(len(totals), dtype=totals.dtype, device=totals.device)
        try:
            return torch.autograd.grad(
                totals,
                features,
                basis,
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
                is_grads_batched=True,
            )
        except RuntimeError:  # an operation that vmap does not know: class by class
            rows = [
                torch.autograd.grad(
                    total,
                    features,
                    retain_graph=True,
                    create_graph=create_graph,
                    allow_unused=True,
                )
                for total in totals
            ]
            return tuple(None if c[0] is None else torch.stack(c) for c in zip(*rows, strict=True))


@contextmanager
def _reentrance_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise GuidanceError(
            "a segment between the layer and the logits is checkpointed with "
            "use_reentrant=True, through which no gradient of a layer can be taken. Use "
            "use_reentrant=False, or guide a layer above the segment."
        ) from error


class _GradientMap(LayerMap):
    """A map that is a function of the activation and one gradient."""

    @staticmethod
    def combine(feature: Tensor, gradient: Tensor) -> Tensor:
        """``(..., C, h, w)`` twice to ``(..., h, w)``."""
        raise TypeError("a gradient attribution says how it combines activation and gradient")

    def maps(self, evidence: Evidence) -> dict[str, Tensor]:
        """See `LayerMap.maps`.

        Raises:
            LayerError: If the logits do not depend on a layer, or, as far as it can be seen without
                waiting for a device, on its patches.
        """
        features = evidence.features
        gradients = layer_gradients(
            evidence.score(evidence.logits),
            list(features.values()),
            create_graph=evidence.create_graph,
        )
        maps = {}
        for (name, feature), gradient in zip(features.items(), gradients, strict=True):
            if gradient is None:
                raise dead_layer(name)
            layout = evidence.layouts[name]
            if _only_prefix(gradient, layout):
                raise dead_places(name)
            with torch.autocast(feature.device.type, enabled=False):
                maps[name] = self.combine(
                    wide(to_nchw(feature, layout)), wide(to_nchw(gradient, layout))
                )
        return maps


def dead_layer(name: str) -> LayerError:
    """The error for a layer on which the logits do not depend."""
    return LayerError(
        f"the logits do not depend on layer {name!r}. Choose a layer between the image "
        "and the logits. `explainguide layers` marks those that can be guided."
    )


def _only_prefix(gradient: Tensor, layout: Layout) -> bool:
    """Whether the tokens in front have a gradient and no patch has; read where nothing must wait.

    Behind a head of zeros no token has any, which passes.
    """
    if not layout.prefix or gradient.device.type != "cpu":
        return False
    if not host_array(gradient != 0).any():
        return False
    return not host_array(to_nchw(gradient, layout) != 0).any()


def dead_places(name: str) -> LayerError:
    """The error for a layer of which only the class token goes on."""
    return LayerError(
        f"of layer {name!r} only the tokens in front reach the logits, not the patches: "
        "every map is zero. Choose a layer before the last attention, or none: layer=None finds one. "
        "`explainguide layers` marks those that are dead."
    )


@attribution("gradient")
class Gradient(_GradientMap):
    r"""Length of the gradient: non-negative, any scale.

    .. math:: A = \sqrt{\textstyle\sum_c g_c^2}

    so that :math:`\sum (1-M) A^2` is the penalty of Ross et al. (2017). Its own gradient is 0 where
    :math:`g = 0`.

    References:
        Simonyan et al., 2014; Captum's `Saliency` with ``abs=False`` gives :math:`g_c`.
    """

    non_negative = True

    @staticmethod
    def combine(feature: Tensor, gradient: Tensor) -> Tensor:
        """Norm over channels."""
        squared = gradient.square().sum(-3)
        zero = squared == 0
        return torch.where(zero, 0, torch.sqrt(torch.where(zero, 1, squared)))


@attribution("ixg")
class InputXGradient(_GradientMap):
    r"""Input times gradient: signed, any scale.

    .. math:: A = \textstyle\sum_c f_c g_c

    References:
        Shrikumar et al., 2017; the sum over channels of Captum's `InputXGradient` and
        `LayerGradientXActivation`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> images = torch.ones(1, 1, 2, 2)
        >>> contributions = InputXGradient(model).attribute(images, target=1)
        >>> torch.allclose(contributions.sum(), model(images)[0, 1])
        True
    """

    @property
    def multiplies_by_inputs(self) -> bool:
        """Captum's word for it."""
        return True

    @staticmethod
    def combine(feature: Tensor, gradient: Tensor) -> Tensor:
        """Product summed over channels."""
        return (feature * gradient).sum(-3)


@attribution("gradcam")
class GradCam(_GradientMap):
    r"""Grad-CAM: non-negative, any scale.

    .. math:: A = \max\left(0, \textstyle\sum_c \operatorname{mean}_{hw}(g_c)\, f_c\right)

    References:
        Selvaraju et al., 2017; Captum's `LayerGradCam` with ``relu_attributions=True``.
    """

    non_negative = True

    @staticmethod
    def combine(feature: Tensor, gradient: Tensor) -> Tensor:
        """Channels weighted by their mean gradient."""
        weight = gradient.mean((-2, -1), keepdim=True)
        return torch.relu((weight * feature).sum(-3))


@attribution("layercam")
class LayerCam(_GradientMap):
    r"""Layer-CAM: non-negative, any scale.

    .. math:: A = \max\left(0, \textstyle\sum_c \max(0, g_c)\, f_c\right)

    References:
        Jiang et al., 2021.
    """

    non_negative = True

    @staticmethod
    def combine(feature: Tensor, gradient: Tensor) -> Tensor:
        """Channels weighted by their positive gradient, place by place."""
        return torch.relu((torch.relu(gradient) * feature).sum(-3))
