"""What stands between a module and its weights: adapters, normalised, parametrized, pruned weights."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from explainguide.errors import GuidanceError

__all__ = ["check_plain_weights"]


def check_plain_weights(model: nn.Module, *, caller: str) -> None:
    """Refuse a model of which a conversion, which exchanges modules, would see a part only.

    Raises:
        GuidanceError: With the module's name and the call that makes its weights plain.
    """
    for name, module in model.named_modules():
        found = _adapter(module) or _computed(module, name)
        if found is None:
            continue
        what, call = found
        raise GuidanceError(
            f"{caller}: {f'module {name!r}' if name else 'the model'} {what}, which a conversion would "
            f"not see. Call {call} first. Modules whose weights are their own parameters are allowed."
        )


def _adapter(module: nn.Module) -> tuple[str, str] | None:
    """Compiled modules, PEFT's wrappers and layers, adapters by their usual names."""
    if "_orig_mod" in module._modules:
        return (
            "was compiled by torch.compile",
            "setattr with its `_orig_mod` on the module around it",
        )
    kind, home = type(module).__name__, type(module).__module__.split(".")[0]
    if home == "peft":
        return f"is PEFT's {kind}", "model = model.merge_and_unload()"
    parts = {name.lower() for name in [*module._parameters, *module._modules]}
    low_rank = any(part.startswith(("lora_", "lora")) for part in parts)
    if low_rank and isinstance(module, nn.Linear | nn.Conv2d):
        return f"is a {kind} with low-rank adapters", "what adds them to its weight"
    return None


def _computed(module: nn.Module, name: str) -> tuple[str, str] | None:
    """Weights that are computed from others whenever they are used."""
    path = f"model.get_submodule({name!r})" if name else "model"
    if parametrize.is_parametrized(module):
        tensor, applied = next(iter(module.parametrizations.items()))  # type: ignore[union-attr, operator]
        kinds = ", ".join(type(part).__name__.strip("_") for part in applied)
        remove = "torch.nn.utils.parametrize.remove_parametrizations"
        return f"has a parametrized {tensor} ({kinds})", f"{remove}({path}, {tensor!r})"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            return "has weight norm", f"torch.nn.utils.remove_weight_norm({path}, {hook.name!r})"
        if isinstance(hook, SpectralNorm):
            return (
                "has spectral norm",
                f"torch.nn.utils.remove_spectral_norm({path}, {hook.name!r})",
            )
        if isinstance(hook, BasePruningMethod):
            tensor = hook._tensor_name
            return f"has a pruned {tensor}", f"torch.nn.utils.prune.remove({path}, {tensor!r})"
    return None
