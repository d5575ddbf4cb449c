"""A model's parameters drawn anew, from its last layer to its first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from explainguide.errors import LayerError, OptionError, did_you_mean

__all__ = ["Stages", "named_stages", "order_of_calls", "planned_stages", "randomise"]

# The seed of a model is often that of its check, and would give it the weights that it has.
_OFFSET = 0x5A17_C8EC

# Name of a stage to the modules, by name, whose own parameters are drawn in it.
Stages: TypeAlias = dict[str, dict[str, nn.Module]]


@contextmanager
def order_of_calls(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that run within this context, in the order in which they begin."""
    called: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if name not in seen:
                seen.add(name)
                called.append(name)

        return hook

    seen: set[str] = set()
    handles = [m.register_forward_pre_hook(note(name)) for name, m in model.named_modules()]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def planned_stages(model: nn.Module, called: list[str]) -> Stages:
    """Stage to its modules by name: those with parameters, the one that runs last first.

    One that never runs itself, as the projection in `nn.MultiheadAttention`, belongs to that around it.
    """
    place = {name: i for i, name in enumerate(called)}
    found: Stages = {}
    for name, module in model.named_modules():
        if not _owns_parameters(module):
            continue
        stage = name
        while stage not in place:
            stage = stage.rpartition(".")[0]
        found.setdefault(stage, {})[name] = module
    return dict(sorted(found.items(), key=lambda item: place[item[0]], reverse=True))


def named_stages(model: nn.Module, stages: Sequence[str]) -> Stages:
    """The same, of the modules that were named."""
    if isinstance(stages, str) or not stages:
        use = [stages] if stages else ["fc", "layer4"]
        raise OptionError(f"stages is {stages!r}. Use {use!r}. A list of names is allowed.")
    modules = dict(model.named_modules())
    found: Stages = {}
    taken: set[str] = set()
    for stage in stages:
        if stage not in modules:
            raise LayerError(
                f"unknown stage {stage!r}.{did_you_mean(str(stage), modules)} The names of "
                "model.named_modules() are allowed."
            )
        inside = {
            name: module
            for name, module in modules.items()
            if (name == stage or name.startswith(f"{stage}." if stage else ""))
            and name not in taken
        }
        taken |= inside.keys()
        found[stage] = {name: m for name, m in inside.items() if _owns_parameters(m)}
        if not found[stage]:
            raise OptionError(
                f"stage {stage!r} has no parameter that no stage before it has. Leave it out. Modules "
                "with parameters, each once, are allowed."
            )
    return found


def _owns_parameters(module: nn.Module) -> bool:
    return any(parameter is not None for parameter in module._parameters.values())


def randomise(
    modules: dict[str, nn.Module], *, seed: int, stage: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw the modules' own parameters; what was reset, and what was redrawn, by name."""
    reset: list[str] = []
    redrawn: list[str] = []
    devices = {p.device for module in modules.values() for p in module.parameters(recurse=False)}
    cuda = [device for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(cuda), torch.no_grad():
        torch.manual_seed((_OFFSET + seed * 1_000_003 + stage) % 2**63)
        for name, module in modules.items():
            own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
            own |= dict(module.named_buffers(recurse=False))
            before = {key: tensor.clone() for key, tensor in own.items()}
            if callable(getattr(module, "reset_parameters", None)):
                module.reset_parameters()  # type: ignore[operator]
            for key, tensor in own.items():
                full = f"{name}.{key}" if name else key
                if not torch.equal(tensor, before[key]):
                    reset.append(full)
                elif isinstance(tensor, nn.Parameter) and _redraw(tensor):
                    redrawn.append(full)
    return tuple(reset), tuple(redrawn)


def _redraw(parameter: nn.Parameter) -> bool:
    """From a normal of its own mean and spread; whether it has any."""
    if not parameter.is_floating_point():
        return False
    spread, mean = torch.std_mean(parameter.double(), correction=0)
    if not spread > 0:
        return False
    parameter.normal_(float(mean), float(spread))
    return True
