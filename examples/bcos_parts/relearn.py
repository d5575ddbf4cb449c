"""What conversion takes away, learned again from the network that was converted, without labels."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from torchvision.transforms import v2
from tqdm import tqdm

from bcos_parts.networks import fade, transforms

__all__ = ["read_folder", "relearn"]

BATCH_SIZE = 32
FADING = 0.5  # the part of all steps over which biases fade


def read_folder(folder: str | Path, size: int) -> Tensor:
    """All of a folder's .jpg files, squashed, as ``(N, 3, size, size)`` of bytes."""
    shrink = v2.Compose([v2.PILToTensor(), v2.Resize((size, size), antialias=True)])
    files = sorted(Path(folder).glob("*.jpg"))
    if not files:
        raise SystemExit(f"--unlabelled: '{folder}' has no .jpg files. Name a folder of images.")
    bar = tqdm(files, desc=f"reading {folder}")
    return torch.stack([shrink(Image.open(file).convert("RGB")) for file in bar])


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
    r"""Let biases fade, and train the network to go on returning its features after every norm.

    A norm of timm has the activation in it.

    .. math:: L = 1 - \operatorname{mean}_{l, c}\, \operatorname{corr}(f_{l,c}, t_{l,c})
        + \operatorname{mean}_l\, \log^2 (\lVert f_l \rVert / \lVert t_l \rVert)

    with correlations over images and places, which leave a channel's offset free, since a network
    without biases cannot have its teacher's. The second term holds the features' size: otherwise
    they shrink along with the biases, which then matter as much as before.

    Args:
        kind: As in `begin`.
        model: What `begin` made: it starts as its teacher, and is changed in place.
        teacher: The network that it was made of.
        layers: Where features are compared; the same names in both.
        images: ``(N, 3, H, W)``, bytes or in [0, 1], of any content.
        epochs: Passes over them.
        lr: Peak of Adam's learning rate (one cycle).
    """
    torch.manual_seed(0)
    size, flip = images.shape[-1], v2.RandomHorizontalFlip()
    as_teacher, as_model = transforms("vanilla", size), transforms(kind, size)
    wanted: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    hooks = []
    for network, outputs in ((teacher, wanted), (model, found)):
        hooks += [_keep(network, name, outputs) for name in layers]
    steps = epochs * (len(images) // BATCH_SIZE)
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    optimizer = torch.optim.Adam(weights, lr)  # trained biases would grow while they fade
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    bar, share = tqdm(range(steps), desc=f"{kind}: features"), 0.0
    for step in bar:
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
        bar.set_postfix(loss=f"{loss.item():.3f}")
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
