"""How the examples once relearned features, kept as it was: the package's must give the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from torchvision.transforms import v2

from explainguide.bcos import AddInverse, scale_biases, set_b

BATCH_SIZE = 16
FADING = 0.5


def transforms(kind: str) -> v2.Compose:
    last = AddInverse() if kind == "B-cos" else v2.Normalize([0.5] * 3, [0.5] * 3)
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), last])


def fade(kind: str, model: nn.Module, before: float, share: float) -> float:
    factor = (1 - share) / (1 - before) if before < 1 else 0
    if kind == "B-cos":
        set_b(model, 1 + share)
        scale_biases(model, factor)
    elif kind == "X-DNN":
        with torch.no_grad():
            for module in model.modules():
                for name in ("bias", "running_mean"):
                    if isinstance(getattr(module, name, None), torch.Tensor):
                        getattr(module, name).mul_(factor)
    return share


def relearn(
    kind: str,
    model: nn.Module,
    teacher: nn.Module,
    layers: list[str],
    images: Tensor,
    *,
    epochs: int,
    lr: float,
) -> None:
    torch.manual_seed(0)
    flip = v2.RandomHorizontalFlip()
    as_teacher, as_model = transforms("vanilla"), transforms(kind)
    wanted: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    hooks = []
    for network, outputs in ((teacher, wanted), (model, found)):
        hooks += [_keep(network, name, outputs) for name in layers]
    steps = epochs * (len(images) // BATCH_SIZE)
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    optimizer = torch.optim.Adam(weights, lr)  # trained biases would grow while they fade
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    share = 0.0
    for step in range(steps):
        if step % (steps // epochs) == 0:
            order = torch.randperm(len(images))
        picked, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        batch = flip(images[picked])
        share = fade(kind, model, share, min((step + 1) / (FADING * steps), 1))
        with torch.no_grad():
            teacher.eval()(as_teacher(batch))
        model.train(kind == "B-cos")(as_model(batch))  # what an X-DNN folds must not move
        loss = torch.stack([_unlike(found[name], wanted[name]) for name in layers]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 5)
        optimizer.step()
        schedule.step()
    for hook in hooks:
        hook.remove()


def _keep(model: nn.Module, name: str, outputs: dict[str, Tensor]) -> RemovableHandle:
    """Put a layer's output of each forward pass under its name."""
    return model.get_submodule(name).register_forward_hook(
        lambda _, __, output: outputs.update({name: output})
    )


def _unlike(found: Tensor, wanted: Tensor) -> Tensor:
    """One less the mean correlation of channels, and how far the sizes are from each other."""
    size, other = (t.square().mean().sqrt().log() for t in (found, wanted))
    found, wanted = (
        F.batch_norm(t, None, None, training=True, eps=1e-4 * float(t.detach().var()))
        for t in (found, wanted)
    )
    return (found - wanted).square().mean() / 2 + (size - other).square()
