"""What is shared by makers of maps that are not this package's: the model they call, and its layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from explainguide.attr.base import LayerMap
from explainguide.attr.evidence import explain, passing
from explainguide.errors import GuidanceError, OptionError
from explainguide.hooks.layout import Layout
from explainguide.hooks.logits import check_logits, class_scores
from explainguide.hooks.reading import Reading
from explainguide.hooks.tap import Tap

__all__ = ["ClassScores", "Places", "package_name", "same_model", "single_logit"]


class ClassScores(nn.Module):
    """A classifier that returns the score of every class, ``(N, K)``, whatever it returned before."""

    def __init__(self, model: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.model, self.reading = model, reading

    def forward(self, images: Tensor) -> Tensor:
        """Of one logit z the scores -z and z."""
        output = self.model(images)
        return class_scores(check_logits(output, reading=self.reading, images=len(images)))


class Places(LayerMap):
    """How a layer of a model is read, by a forward pass of one image; its own maps are none."""

    def maps(self, evidence: Any) -> dict[str, Tensor]:
        """No map: the evidence is what is wanted."""
        return {}

    def of(self, images: Tensor) -> tuple[tuple[int, ...], Layout]:
        """The shape of the layer's output for one image, and its layout; looked at once a size.

        Raises:
            LayerError: If the layer has no spatial extent, or can be read in two ways.
        """
        known = self.__dict__.setdefault("_read", {})
        key = tuple(images.shape[1:])
        if key not in known:
            tap = Tap(self.model, self._modules, replace=False)
            try:
                with passing(tap, images[:1]) as passed:
                    _, evidence = explain(
                        self, tap, passed, score=lambda z: z.sum(1)[None], create_graph=False
                    )
            finally:
                tap.remove()
            (name,) = evidence.layouts
            known[key] = tuple(evidence.features[name].shape[1:]), evidence.layouts[name]
        return known[key]


def same_model(held: Any, model: nn.Module, what: str) -> nn.Module | None:
    """The module that a foreign object calls, which is the model or holds it; None for a function.

    Raises:
        OptionError: If it is another model.
    """
    holder = getattr(held, "__self__", held)  # of a bound method, as model.forward
    if not isinstance(holder, nn.Module):
        return None
    if any(module is model for module in holder.modules()):
        return holder
    if any(module is holder for module in model.modules()):
        whole = "a part of the model"
    else:
        whole = "another model"
    raise OptionError(
        f"{what} was built for {whole}, a {type(holder).__name__}. Build it for the model that is "
        "explained. A module that holds the model is allowed too."
    )


def package_name(kind: type) -> str:
    """How tables call a class: ``"captum:Saliency"``."""
    return f"{kind.__module__.partition('.')[0]}:{kind.__name__}"


def single_logit(name: str) -> GuidanceError:
    """The error for one logit an image, which an object would explain for both of its classes."""
    return GuidanceError(
        f"the model has one logit z, of which class 1's score is z and class 0's -z, and {name} was "
        f"built for the logit. Give its name, '{name}', or build it for a model that returns "
        "torch.cat([-z, z], 1). Models with a score a class are allowed."
    )
