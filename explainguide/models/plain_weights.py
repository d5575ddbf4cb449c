"""What stands between a module and its weights: adapters, normalised, parametrized, pruned weights."""

from __future__ import annotations

import copy
from types import MethodType

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from explainguide.errors import GuidanceError, first_line

__all__ = ["check_plain_weights", "copied"]


def check_plain_weights(model: nn.Module) -> None:
    """Refuse a model of which a conversion, which exchanges modules, would see a part only.

    Raises:
        GuidanceError: With the module's name and the call that makes its weights plain.
    """
    for name, module in model.named_modules():
        path = f"model.get_submodule({name!r})" if name else "model"
        problem = _wrapper(module, name) or _computed(module, path) or _kept(module, path)
        if problem is None:
            continue
        what, fix = problem
        raise GuidanceError(
            f"{f'module {name!r}' if name else 'the model'} {what}. {fix}. Modules whose "
            "weights are their own parameters are allowed."
        )


def copied(model: nn.Module) -> nn.Module:
    """A copy, to be changed.

    Raises:
        GuidanceError: If something that the model holds cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a model holds: files, locks, tensors of a graph
        raise GuidanceError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}). Take "
            "away what it holds besides its weights. A model that copy.deepcopy copies is allowed."
        ) from error


def _wrapper(module: nn.Module, name: str) -> tuple[str, str] | None:
    """Compiled modules, PEFT's and torch.ao's layers, adapters by their usual names."""
    kind, home = type(module).__name__, type(module).__module__
    if "_orig_mod" in module._modules:
        parent, _, last = name.rpartition(".")
        owner = f"model.get_submodule({parent!r})" if parent else "model"
        fix = f"Call setattr({owner}, {last!r}, model.get_submodule({f'{name}._orig_mod'!r})) first"
        return "was compiled by torch.compile, which a conversion would not see", fix
    if home.startswith("peft."):
        fix = "Call model = model.merge_and_unload() first"
        return f"is PEFT's {kind}, which a conversion would not see", fix
    if home.startswith("torch.ao."):
        return (
            f"is a {kind} of torch.ao",
            "Convert the model before it is prepared for quantisation",
        )
    parts = [*module._parameters, *module._modules]
    if any(part.lower().startswith("lora") for part in parts):
        what = f"is a {kind} with low-rank adapters, which a conversion would not see"
        return what, "Add them to its weight, and put back the layer that they adapt"
    return None


def _computed(module: nn.Module, path: str) -> tuple[str, str] | None:
    """Weights that are computed from others whenever they are used."""
    unseen = "which a conversion would not see"
    if parametrize.is_parametrized(module):
        tensor, applied = next(iter(module.parametrizations.items()))  # type: ignore[union-attr, operator]
        kinds = ", ".join(type(part).__name__.strip("_") for part in applied)
        remove = "torch.nn.utils.parametrize.remove_parametrizations"
        what = f"has a parametrized {tensor} ({kinds}), {unseen}"
        return what, f"Call {remove}({path}, {tensor!r}) first"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            fix = f"Call torch.nn.utils.remove_weight_norm({path}, {hook.name!r}) first"
            return f"has weight norm, {unseen}", fix
        if isinstance(hook, SpectralNorm):
            fix = f"Call torch.nn.utils.remove_spectral_norm({path}, {hook.name!r}) first"
            return f"has spectral norm, {unseen}", fix
        if isinstance(hook, BasePruningMethod):
            tensor = hook._tensor_name
            fix = f"Call torch.nn.utils.prune.remove({path}, {tensor!r}) first"
            return f"has a pruned {tensor}, {unseen}", fix
    for tensor, value in module._parameters.items():
        if value is not None and type(value) is not nn.Parameter:
            what = f"holds {tensor} as {type(value).__name__}, which is not a plain parameter"
            return what, "Make it an nn.Parameter (a lazy layer: run the model once)"
    return None


def _kept(module: nn.Module, path: str) -> tuple[str, str] | None:
    """What was put on an instance: another forward, tensors of a forward pass."""
    forward = vars(module).get("forward")
    if forward is not None and not _is_own_method(module, forward):
        what = "has another forward than its class, which a conversion would lose"
        return what, f"Call del {path}.forward, or accelerate's unwrap_model, first"
    for key, value in (*vars(module).items(), *module._buffers.items()):
        if isinstance(value, Tensor) and not value.is_leaf:
            what = f"keeps {key!r}, a tensor of a graph, which cannot be copied"
            return what, f"Call setattr({path}, {key!r}, {path}.{key}.detach()) first"
    return None


def _is_own_method(module: nn.Module, forward: object) -> bool:
    """Whether it is one of several forwards that the class itself offers."""
    if not isinstance(forward, MethodType) or forward.__self__ is not module:
        return False
    return forward.__func__ in [f for kind in type(module).__mro__ for f in vars(kind).values()]
