"""What a guided step costs, over a plain one: this library with and without fast second derivatives.

Columns, all of one process, interleaved, medians of process CPU time on one thread:
    floor     1 + the FLOPs above the layer / all FLOPs of a forward pass: what the matrix products of a
              guided step cost over those of a plain one
    guided    with the defaults
    torch     with fast=False, PyTorch's own second derivatives
    loop      the published way: PyTorch's own second derivatives, map, mask and loss image by image
    captum    Captum's attribution with create_graph=True, which runs the model once more

Example:
    python benchmarks/step.py --quick
    python benchmarks/step.py --json benchmarks/step.json
    python benchmarks/step.py --json benchmarks/step.json --table docs/step_results.md
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import InputXGradient, LayerGradientXActivation
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import explainguide
from explainguide import Annotations, ExplanationGuidance
from explainguide.bcos import AddInverse, bcosify
from explainguide.checkpoints import write_whole
from explainguide.tables import format_table

BCOS = "B-cos "  # in front of the name of a network that is converted


class Case(NamedTuple):
    """A model, an image size, a batch, and layers from early to late."""

    model: str
    size: int
    batch: int
    layers: tuple[str, ...]
    gate: float | None = None  # over the floor
    goal: float | None = None


CASES = (
    Case("resnet50", 112, 4, ("input", "layer1", "layer2", "layer3"), 1.15, 1.05),
    Case("resnet50", 112, 4, ("layer4",), 1.03, 1.02),
    Case("resnet18", 224, 2, ("input", "layer2"), 1.08, 1.03),
    Case("convnext_tiny", 112, 4, ("input", "features.3"), 1.20, 1.08),
    Case("vit_tiny_patch16_224", 224, 2, ("input", "blocks.6.norm1"), 1.15, 1.08),
    Case("vit_tiny_patch16_224", 224, 2, ("blocks.11.norm1",), 1.15, 1.08),
    Case("vit_small_patch16_224", 112, 4, ("input", "blocks.6.norm1")),
    Case(BCOS + "resnet18", 112, 4, ("input", "1.layer2")),
)
# The option `fast` of the kinds that have a guide.
GUIDED: dict[str, Any] = {"guided": "auto", "fast": True, "torch": False}


def build(name: str, size: int) -> nn.Module:
    """A model for images of a size, with random weights, in training mode."""
    torch.manual_seed(0)
    if name.startswith(BCOS):
        network = bcosify(build(name.removeprefix(BCOS), size))
        return nn.Sequential(AddInverse(), network).train()
    if name in torchvision.models.list_models():
        return torchvision.models.get_model(name, weights=None).train()
    return timm.create_model(name, pretrained=False, img_size=size).train()


def boxes(batch: int, size: int) -> Annotations:
    """One random box an image."""
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(batch, 1, 2, 2, generator=generator).sort(-2).values * 0.5
    low, high = (corners[..., i, :] * size for i in (0, 1))
    return Annotations(
        torch.cat([low, high + size * 0.3], -1),
        torch.randint(0, 1000, (batch, 1), generator=generator),
    )


def floor(model: nn.Module, layer: str, images: Tensor) -> float:
    """1 + FLOPs above the layer / FLOPs of the forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        below: list[int] = [0]
        if layer != "input":
            hook = model.get_submodule(layer).register_forward_hook(
                lambda *_: below.append(counter.get_total_flops())
            )
        model(images)
        if layer != "input":
            hook.remove()
    total = counter.get_total_flops()
    return 1 + (total - below[-1]) / total


class Step:
    """One optimizer step of a kind, on the same images."""

    def __init__(self, case: Case, layer: str, kind: str, device: str = "cpu") -> None:
        self.model = build(case.model, case.size).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        generator = torch.Generator().manual_seed(2)
        self.images = torch.rand(case.batch, 3, case.size, case.size, generator=generator)
        self.images = self.images.to(device)
        self.annotations = boxes(case.batch, case.size).to(device)
        self.labels = self.annotations.labels[:, 0]
        self.kind, self.layer = kind, layer
        self.guide = None
        if kind in GUIDED:
            self.guide = ExplanationGuidance(self.model, layer=layer, fast=GUIDED[kind])
        self.kept: list[Tensor] = []
        if kind == "loop" and layer != "input":
            self.model.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self.kept[:] = [output]
        return output.clone()

    def __call__(self) -> None:
        """Forward, backward, update."""
        images = self.images
        if self.kind == "loop" and self.layer == "input":
            images = images.clone().requires_grad_()
            self.kept[:] = [images]
        explicit = sdpa_kernel(SDPBackend.MATH) if self.kind == "loop" else nullcontext()
        with explicit:
            logits = self.model(images)
        loss = F.cross_entropy(logits, self.labels)
        if self.guide is not None:
            loss = loss + 0.1 * self.guide.loss_loc(self.annotations)
        elif self.kind == "loop":
            loss = loss + 0.1 * self.loop(logits)
        elif self.kind == "captum":
            loss = loss + 0.1 * self.captum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def loop(self, logits: Tensor) -> Tensor:
        """The energy loss as it was published: each image has its own map, mask and loss."""
        (feature,) = self.kept
        scores = logits.gather(1, self.labels[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(torch.unbind(scores), feature, create_graph=True)
        products = (f * g for f, g in zip(feature, gradient, strict=True))
        return torch.stack([self.energy(p, index) for index, p in enumerate(products)]).mean()

    def energy(self, product: Tensor, index: int) -> Tensor:
        """Of one image, from activation times gradient."""
        size = self.images.shape[-2:]
        if product.ndim == 2:  # tokens, behind a class token
            side = int((len(product) - 1) ** 0.5)
            product = product[1:].sum(-1).view(side, side)
        else:
            product = product.sum(0)
        layer_map = F.interpolate(product[None, None], size, mode="bilinear")[0, 0].clamp(min=0)
        mask = torch.zeros_like(layer_map)
        x1, y1, x2, y2 = self.annotations.boxes[index, 0].round().int().tolist()
        mask[y1:y2, x1:x2] = 1
        return 1 - (layer_map * mask).sum() / layer_map.sum().clamp(min=1e-7)

    def captum(self) -> Tensor:
        """The energy loss of Captum's maps."""
        with sdpa_kernel(SDPBackend.MATH):
            if self.layer == "input":
                method = InputXGradient(self.model)
                method.gradient_func = _gradients
                products = method.attribute(self.images.requires_grad_(), self.labels)
            else:
                layer = self.model.get_submodule(self.layer)
                products = LayerGradientXActivation(self.model, layer).attribute(
                    self.images, self.labels, grad_kwargs={"create_graph": True}
                )
        return torch.stack([self.energy(p, index) for index, p in enumerate(products)]).mean()


def _gradients(
    model: Any, inputs: tuple[Tensor, ...], target: Any = None, *_: Any
) -> tuple[Tensor, ...]:
    """Captum's `compute_gradients`, with a graph of its own."""
    with torch.enable_grad():
        scores = model(*inputs).gather(1, target[:, None])[:, 0]
        return torch.autograd.grad(torch.unbind(scores), inputs, create_graph=True)


def measure(case: Case, layer: str, kinds: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """The medians over rounds of the time of each kind of step over a plain one's."""
    steps: dict[str, Callable[[], None]] = {k: Step(case, layer, k) for k in ("plain", *kinds)}
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    for index in range(rounds + 1):
        times = {}
        # Another order each round: what ran before leaves its traces in the caches.
        order = list(steps)
        for kind in [*order[index % len(order) :], *order[: index % len(order)]]:
            step = steps[kind]
            began = time.process_time()
            step()
            times[kind] = time.process_time() - began
        if index:  # the first warms up
            for kind in kinds:
                ratios[kind].append(times[kind] / times["plain"])
    images = torch.rand(case.batch, 3, case.size, case.size)
    row: dict[str, Any] = {"model": case.model, "size": case.size, "batch": case.batch}
    row |= {"layer": layer, "floor": floor(build(case.model, case.size), layer, images)}
    row |= {kind: statistics.median(values) for kind, values in ratios.items()}
    row |= {"over_floor": row["guided"] / row["floor"], "gate": case.gate, "goal": case.goal}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    words = {float: "{:.2f}".format, type(None): lambda _: "-"}
    shown = [{k: words.get(type(v), lambda v: v)(v) for k, v in row.items()} for row in rows]
    return format_table(shown, markdown=True)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=(), metavar="MODEL[:LAYER]")
    parser.add_argument("--kinds", nargs="+", default=("guided", "torch", "loop", "captum"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="write that of --json here, and run nothing")
    args = parser.parse_args()
    if args.table:
        rows = json.loads(args.json.read_text())["rows"]
        content = table(rows).encode() + b"\n"
        write_whole(args.table, lambda file: file.write(content))
        return
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        for layer in case.layers:
            if args.only and not {case.model, f"{case.model}:{layer}"} & set(args.only):
                continue
            rounds = args.rounds or (5 if args.quick else 15)
            rows.append(measure(case, layer, tuple(args.kinds), rounds))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if args.json:
        found = {
            "versions": {
                "explainguide": explainguide.__version__,
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "timm": timm.__version__,
                "python": platform.python_version(),
            },
            "device": "cpu, one thread",
            "seed": 0,
            "rows": rows,
        }
        write_whole(args.json, lambda file: file.write(json.dumps(found, indent=1).encode()))


if __name__ == "__main__":
    main()
