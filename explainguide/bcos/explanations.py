"""Explanations of a B-cos network: W(x), and what each place of the image contributes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from explainguide.bcos.modules import LogitBias
from explainguide.errors import LayerError, OptionError, operation, warn
from explainguide.hooks.dynamic import explanation_mode, modes_of
from explainguide.hooks.layers import resolve_layers, unwrap
from explainguide.hooks.layout import infer_layout, to_nchw
from explainguide.hooks.logits import as_targets, check_logits, class_scores
from explainguide.hooks.tap import Tap, unread

__all__ = ["contribution_map", "curvature", "dynamic_weights", "logit_bias", "missing_share"]


@operation("dynamic_weights", default=True)
def dynamic_weights(
    model: nn.Module,
    images: Tensor,
    target: int | Sequence[int] | Tensor,
    *,
    layer: str | None = None,
    position: tuple[int, int] | None = None,
    create_graph: bool = False,
) -> Tensor:
    r"""The row of :math:`W(x)` for one output: signed, in the output's units per unit of the image.

    Costs one forward pass and one backward pass, for the whole batch.

    Args:
        model: A network of `bcosify`, in evaluation mode where batch norms are not to mix images.
        images: What it takes, ``(N, 6, H, W)``.
        target: One class for all images, or one an image, ``(N,)``; with `layer`, a channel of it.
        layer: Dotted name: explain a neuron of this layer instead of a logit.
        position: The neuron's place, row and column; by default where the channel is largest.
        create_graph: Whether the weights can be differentiated with respect to the parameters.

    Returns:
        ``(N, 6, H, W)``.

    Raises:
        OptionError: If the model is no B-cos network, or the target is none of its outputs.
        ShapeError: If there is not one target an image.
        LayerError: If there is no such layer, or it has no places.
    """
    inner = unwrap(model)
    modes_of(inner)
    with unread(), torch.inference_mode(False), torch.enable_grad():
        x = images.clone() if create_graph or images.is_inference() else images.detach()
        x = x if x.requires_grad else x.detach().requires_grad_()
        output = _neurons(inner, x, layer) if layer else check_logits(inner(x))
        score = _select(output, target, position)
        with explanation_mode(inner):
            (weights,) = torch.autograd.grad(
                score.sum(), x, create_graph=create_graph, allow_unused=True
            )
    return torch.zeros_like(x) if weights is None else weights


@operation("contribution_map")
def contribution_map(
    model: nn.Module,
    images: Tensor,
    target: int | Sequence[int] | Tensor,
    *,
    layer: str | None = None,
    position: tuple[int, int] | None = None,
    create_graph: bool = False,
) -> Tensor:
    r"""What each place of the image adds to a logit: signed, in units of the logit.

    .. math:: A = \textstyle\sum_c W(x)_c\, x_c

    A map sums to the logit less its bias (`logit_bias`), where the network has no other bias.

    Args:
        model: As `dynamic_weights`, as are the other arguments.
        images: What it takes, ``(N, 6, H, W)``.
        target: One class for all images, or one an image, ``(N,)``.
        layer: Explain a neuron of this layer instead.
        position: Its place.
        create_graph: Whether the map can be part of a loss.

    Returns:
        ``(N, H, W)``.

    Raises:
        OptionError: As `dynamic_weights`.
        ShapeError: As `dynamic_weights`.
        LayerError: As `dynamic_weights`.

    References:
        Boehle et al., 2022, Eq. 12.

    Example:
        >>> from explainguide.bcos import AddInverse, bcosify
        >>> network = bcosify(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8), torch.nn.Flatten()))
        >>> images = AddInverse()(torch.rand(2, 3, 8, 8))
        >>> maps = contribution_map(network, images, target=1)
        >>> torch.allclose(maps.sum((1, 2)), network(images)[:, 1], atol=1e-6)
        True
    """
    weights = dynamic_weights(
        model,
        images,
        target,
        layer=layer,
        position=position,
        create_graph=create_graph,
    )
    return (weights * images).sum(1)


def logit_bias(model: nn.Module) -> Tensor:
    """The part of the logits that is in no map: 0, one number, or one a class, ``(K,)``.

    With two classifiers, whose logits a distilled DeiT averages in evaluation, their mean.
    """
    biases: list[Tensor] = [m.bias for m in model.modules() if isinstance(m, LogitBias)]
    return torch.stack(biases).mean(0) if biases else torch.zeros(())


def _neurons(model: nn.Module, x: Tensor, layer: str) -> Tensor:
    """A layer's activation, ``(N, C, h, w)``."""
    modules = resolve_layers(model, layer)
    ((name, module),) = modules.items()
    if module is None:
        raise LayerError(
            "layer is 'input', which has no neurons. Name a hidden layer, or leave it "
            "out to explain a logit. A dotted name is allowed."
        )
    tap = Tap(model, modules, replace=False)
    try:
        with tap.alone():
            model(x)
        passed = tap.last
    finally:
        tap.remove()
    assert passed is not None
    feature = passed.features.get(name)
    calls = passed.calls.get(name, 0)
    if calls != 1 or not isinstance(feature, Tensor):
        raise LayerError(
            f"layer {layer!r} returned {calls} tensors in one forward pass. Choose "
            "the layer around it. A layer that runs once and returns a tensor is allowed."
        )
    layout = infer_layout(
        name,
        feature,
        passed.image_size,
        model=model,
        module=module,
        batch=len(x),
        steps=passed.until.get(name),
    )
    if layout.assumed:
        warn(f"of layer {layer!r} it is assumed that {layout.assumed}.")
    return to_nchw(feature, layout)


def _select(
    output: Tensor, target: int | Sequence[int] | Tensor, position: tuple[int, int] | None
) -> Tensor:
    """One number an image, ``(N,)``."""
    index = as_targets(target, output)
    rows = torch.arange(len(output), device=output.device)
    if output.ndim == 2:
        return class_scores(output)[rows, index]
    chosen = output[rows, index]
    if position is None:
        return chosen.flatten(1).amax(1)
    height, width = chosen.shape[1:]
    row, column = position
    if not (0 <= row < height and 0 <= column < width):
        raise OptionError(
            f"position is {position}, but the layer has {height} x {width} places. Count "
            f"rows and columns from 0. (0, 0) to ({height - 1}, {width - 1}) are allowed."
        )
    return chosen[:, row, column]


def curvature(model: nn.Module, images: Tensor) -> float:
    """How much W(x) changes with x though every dynamic factor is held: 0 for a dynamic linear network.

    Sums alone would not show an operation that is homogeneous and yet not linear.

    Args:
        model: A B-cos network, in evaluation mode.
        images: What it takes.
    """
    x = images.detach().requires_grad_()
    with torch.enable_grad(), explanation_mode(model):
        generator = torch.Generator().manual_seed(0)
        logits = check_logits(model(x))
        score = (logits * torch.randn(logits.shape, generator=generator).to(logits)).sum()
        (weights,) = torch.autograd.grad(score, x, create_graph=True)
        if not weights.requires_grad:
            return 0.0
        probe = torch.randn(x.shape, generator=generator).to(x)
        (bent,) = torch.autograd.grad((weights * probe).sum(), x, allow_unused=True)
    if bent is None:
        return 0.0
    relative = bent.abs().max() * x.abs().max() / weights.abs().max().clamp_min(1e-30)
    return float(relative.detach())


def missing_share(model: nn.Module, images: Tensor) -> float:
    """How much of the logits no map shows, relative to the largest: 0 for an exact network.

    Args:
        model: A B-cos network, in evaluation mode.
        images: What it takes.
    """
    with torch.no_grad():
        logits = check_logits(model(images)) - logit_bias(model)
    target = logits.abs().argmax(1)
    sums = contribution_map(model, images, target).sum((1, 2))
    explained = logits.gather(1, target[:, None])[:, 0]
    return float(((sums - explained).abs() / explained.abs().clamp_min(1e-12)).max())
