"""How near the gradient of the localization loss under autocast is to the one of float64, and why.

Small networks, with random weights and trained on DecoyDigits for a few epochs, in training mode. Each
number is the cosine of two gradients of `loss_loc` (input times gradient, energy) with respect to all
parameters, one of them in float64:
    class        that of the class loss, under bfloat16, for comparison
    bf16         under autocast with bfloat16; *below* and *above* are of the parameters on either side
                 of the layer alone
    tail         the same, but in float32 from the guided layer on
    its choices  float64, but which ReLUs are on, and which pixel is the largest, is as under bfloat16
    choices      bfloat16, but with the choices of float64
    flipped      share of the choices that differ
    fp16         under autocast with float16, with the first scale of 2**16, 2**12 and so on at which
                 the gradient is finite, much as torch.amp.GradScaler finds it
    fp16 tail    the same, but in float32 from the guided layer on

Example:
    python benchmarks/amp.py --json benchmarks/amp.json
    python benchmarks/amp.py --json benchmarks/amp.json --table docs/amp_results.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import torchvision
from measured import common_options, read, save, write_table
from torch import Tensor, nn

from explainguide import Annotations, ExplanationGuidance
from explainguide.datasets import DecoyDigits
from explainguide.tables import format_table

BATCH, SEED = 16, 0
Gradients = dict[str, Tensor]
State = dict[str, Tensor]


class Case(NamedTuple):
    """A network, the size of its images, and layers: the input, one in the middle, a last one."""

    build: Callable[[], nn.Module]
    size: int
    layers: tuple[str, ...]
    epochs: int  # of training; 0: random weights alone
    lr: float = 1e-3
    fp16: bool = False  # whether it is measured: a CPU takes minutes for one such step of a ResNet


def cnn(activation: type[nn.Module]) -> nn.Module:
    """Six 3 x 3 convolutions with BatchNorm."""
    layers: list[nn.Module] = []
    channels = 3
    for index, width in enumerate((16, 16, 32, 32, 64, 64)):
        convolution = nn.Conv2d(channels, width, 3, stride=2 - index % 2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), activation()]
        channels = width
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return nn.Sequential(*layers, *pooled)


_vit = partial(timm.models.VisionTransformer, img_size=48, patch_size=6, embed_dim=96, depth=6)
CASES = {
    "CNN, ReLU": Case(lambda: cnn(nn.ReLU), 48, ("input", "8", "17"), 6, 3e-3, True),
    "CNN, GELU": Case(lambda: cnn(nn.GELU), 48, ("input", "8", "17"), 6, 3e-3, True),
    "resnet18": Case(
        partial(torchvision.models.resnet18, num_classes=10), 64, ("input", "layer2", "layer4"), 5
    ),
    "convnext_atto": Case(
        partial(timm.create_model, "convnext_atto", num_classes=10),
        64,
        ("input", "stages.1", "stages.3"),
        4,
    ),
    "ViT": Case(
        partial(_vit, num_heads=3, num_classes=10, global_pool="avg", class_token=False),
        48,
        ("input", "blocks.2", "blocks.5"),
        8,
        fp16=True,
    ),
    "resnet50": Case(
        partial(torchvision.models.resnet50, num_classes=10), 64, ("input", "layer2", "layer4"), 0
    ),
}


class Choices:
    """Which ReLUs are on and which pixels are the largest: kept in one pass, used in another."""

    def __init__(self, kept: list[Tensor] | None = None) -> None:
        self.kept: list[Tensor] = [] if kept is None else kept
        self._next: Iterator[Tensor] | None = None if kept is None else iter(kept)

    def _choose(self, own: Callable[[], Tensor]) -> Tensor:
        if self._next is not None:
            return next(self._next)
        self.kept.append(own())
        return self.kept[-1]

    def relu(self, x: Tensor) -> Tensor:
        """With the choices of this pass, or another's."""
        return x * self._choose(lambda: x > 0).to(x.dtype)

    def pool(self, x: Tensor, pool: nn.MaxPool2d) -> Tensor:
        """With the choices of this pass, or another's."""
        how = (pool.kernel_size, pool.stride, pool.padding)
        places = self._choose(lambda: F.max_pool2d(x, *how, return_indices=True)[1])
        return x.flatten(2).gather(2, places.flatten(2)).view(places.shape)


class Chosen(nn.Module):
    """A ReLU or max pooling with the choices of another pass."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._run = run

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        return self._run(x)


def with_choices(model: nn.Module, choices: Choices) -> nn.Module:
    """The model, each of whose ReLUs and max poolings asks which choice to take."""
    for name, module in model.named_children():
        if isinstance(module, nn.ReLU):
            setattr(model, name, Chosen(choices.relu))
        elif isinstance(module, nn.MaxPool2d):
            setattr(model, name, Chosen(partial(choices.pool, pool=module)))
        else:
            with_choices(module, choices)
    return model


def train(case: Case) -> State:
    """Weights after some epochs on DecoyDigits, without guidance, in float32."""
    torch.manual_seed(SEED)
    model = case.build().train()
    data = DecoyDigits("train", size=case.size, seed=SEED)
    steps = case.epochs * (len(data) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=case.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, case.lr, total_steps=max(steps, 1))
    for _ in range(case.epochs):
        for rows in torch.randperm(len(data))[: len(data) // 32 * 32].view(-1, 32):
            loss = F.cross_entropy(model(data.images[rows]), data.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.state_dict()


@contextmanager
def float32_from(module: nn.Module | None) -> Iterator[None]:
    """Within this context, and autocast, everything after a module runs in float32."""

    def widen(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        torch.set_autocast_dtype("cpu", torch.float32)  # autocast's exit takes it back
        return output.float()

    handle = None if module is None else module.register_forward_hook(widen)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def gradients(
    case: Case,
    state: State,
    layer: str | None,
    *,
    autocast: torch.dtype | None = None,
    tail: bool = False,
    scale: float = 1.0,
    choices: Choices | None = None,
) -> Gradients:
    """Those of `loss_loc`, or of the class loss without a layer; in float64 without autocast.

    Args:
        case: The network.
        state: Its weights.
        layer: Is guided.
        autocast: The type of autocast.
        tail: Whether the layer and what follows run in float32.
        scale: The loss is multiplied by it, and the gradients are divided.
        choices: Kept, or used.
    """
    dtype = torch.float64 if autocast is None else torch.float32
    model = case.build().train()
    model.load_state_dict(state)
    model = model.to(dtype)
    if choices is not None:
        model = with_choices(model, choices)
    data = DecoyDigits("train", size=case.size, seed=SEED)
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))[:BATCH]
    labels = data.labels[rows]
    hidden = tail and layer is not None and layer != "input"
    # Hooks run in their order: the guide reads what `float32_from` hands on.
    with float32_from(model.get_submodule(str(layer)) if hidden else None):
        guide = None if layer is None else ExplanationGuidance(model, layer=layer, fast=False)
        on = autocast is not None and not (tail and layer == "input")
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=on):
            logits = model(data.images[rows].to(dtype))
    if guide is None:
        loss = F.cross_entropy(logits.to(dtype), labels)
    else:
        loss = guide.loss_loc(Annotations(data.boxes[rows, None], labels[:, None]))
    (loss * scale).backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        found[name] = gradient.double() / scale
    return found


def at_first_scale(case: Case, state: State, layer: str, **options: Any) -> tuple[Gradients, int]:
    """The gradients under float16, and the binary logarithm of the scale."""
    for power in range(16, -17, -4):
        found = gradients(case, state, layer, autocast=torch.float16, scale=2.0**power, **options)
        if all(gradient.isfinite().all() for gradient in found.values()):
            return found, power
    raise ArithmeticError(f"no scale makes the gradient at {layer!r} finite")


def cosine(left: Gradients, right: Gradients, names: list[str]) -> float | None:
    """Of the gradients of some parameters, concatenated; None where there are none."""
    if not names:
        return None
    both = (torch.cat([g[name].flatten() for name in names]) for g in (left, right))
    return float(F.cosine_similarity(*both, dim=0))


def parameters_below(case: Case, layer: str) -> set[str]:
    """Names of the parameters that a layer's activation depends on."""
    if layer == "input":
        return set()
    model = case.build().eval()
    kept: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda *args: kept.append(args[-1]))
    model(torch.rand(1, 3, case.size, case.size))
    named = dict(model.named_parameters())
    found = torch.autograd.grad(kept[0].sum(), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}


def measure(name: str, case: Case, state: State, weights: str) -> Iterator[dict[str, Any]]:
    """A row a layer."""
    half = torch.bfloat16
    every = list(dict(case.build().named_parameters()))
    classes = [gradients(case, state, None, autocast=kind) for kind in (None, half)]
    for layer in case.layers:
        below = parameters_below(case, layer)
        sides = [[n for n in every if (n in below) is side] for side in (True, False)]
        exact, rounded = Choices(), Choices()
        truth = gradients(case, state, layer, choices=exact)
        bf16 = gradients(case, state, layer, autocast=half, choices=rounded)
        row: dict[str, Any] = {"model": name, "weights": weights, "layer": layer}
        row |= {"class": cosine(*classes, every), "bf16": cosine(truth, bf16, every)}
        row |= {"below": cosine(truth, bf16, sides[0]), "above": cosine(truth, bf16, sides[1])}
        tail = gradients(case, state, layer, autocast=half, tail=True)
        row["tail"] = cosine(truth, tail, every)
        row |= {"its choices": None, "choices": None, "flipped": None}
        if exact.kept:
            its = gradients(case, state, layer, choices=Choices(rounded.kept))
            given = gradients(case, state, layer, autocast=half, choices=Choices(exact.kept))
            pairs = list(zip(exact.kept, rounded.kept, strict=True))
            flipped = sum(int((a != b).sum()) for a, b in pairs)
            row |= {"its choices": cosine(truth, its, every)}
            row |= {"choices": cosine(truth, given, every)}
            row |= {"flipped": flipped / sum(a.numel() for a, _ in pairs)}
        for kind, options in (("fp16", {}), ("fp16 tail", {"tail": True})):
            row |= {kind: None, f"{kind}, scale": None}
            if case.fp16:
                found, power = at_first_scale(case, state, layer, **options)
                row |= {kind: cosine(truth, found, every), f"{kind}, scale": f"2^{power}"}
        yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""

    def show(column: str, value: Any) -> Any:
        if value is None:
            return ""
        if column == "flipped":
            return f"{value:.2%}"
        return f"{value:.4f}" if isinstance(value, float) else value

    return format_table([{k: show(k, v) for k, v in r.items()} for r in rows], markdown=True)


def main() -> None:
    """See above."""
    parser = common_options(__doc__)
    parser.add_argument("--only", nargs="+", default=tuple(CASES), choices=tuple(CASES))
    parser.add_argument("--weights", type=Path, help="folder of trained weights, filled and used")
    args = parser.parse_args()
    if write_table(args, lambda found: table(found["rows"])):
        return
    torch.set_num_threads(1)
    device = f"cpu ({torch.backends.cpu.get_cpu_capability()}), one thread"
    rows: list[dict[str, Any]] = []
    if args.json and args.json.exists():  # what is not measured anew stays
        rows = [row for row in read(args.json)["rows"] if row["model"] not in args.only]
    for name in args.only:
        case = CASES[name]
        torch.manual_seed(SEED)
        states = {"random": case.build().state_dict()}
        if case.epochs:
            kept = None if args.weights is None else args.weights / f"{name}.pt"
            if kept is not None and kept.exists():
                states["trained"] = torch.load(kept)
            else:
                states["trained"] = train(case)
                if kept is not None:
                    torch.save(states["trained"], kept)
        for weights, state in states.items():
            for row in measure(name, case, state, weights):
                rows.append(row)
                print(table(rows[-1:]).splitlines()[-1], flush=True)
        save(args.json, rows, device=device, seed=SEED)
    print(table(rows))


if __name__ == "__main__":
    main()
