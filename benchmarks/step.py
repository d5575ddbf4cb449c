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

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import InputXGradient, LayerGradientXActivation
from measured import collect, common_options, in_turns, medians_over, save, write_table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from explainguide import Annotations, ExplanationGuidance
from explainguide.bcos import AddInverse, bcosify
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
    ratios = medians_over(in_turns(steps, rounds), "plain")
    images = torch.rand(case.batch, 3, case.size, case.size)
    row: dict[str, Any] = {"model": case.model, "size": case.size, "batch": case.batch}
    row |= {"layer": layer, "floor": floor(build(case.model, case.size), layer, images)}
    row |= ratios
    row |= {"over_floor": row["guided"] / row["floor"], "gate": case.gate, "goal": case.goal}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    words = {float: "{:.2f}".format, type(None): lambda _: "-"}
    shown = [{k: words.get(type(v), lambda v: v)(v) for k, v in row.items()} for row in rows]
    return format_table(shown, markdown=True)


def chosen(cases: Iterable[Case], only: Sequence[str]) -> Iterator[tuple[Case, str]]:
    """Each case and layer that was asked for, as MODEL or MODEL:LAYER; all where nothing was."""
    for case in cases:
        for layer in case.layers:
            if not only or {case.model, f"{case.model}:{layer}"} & set(only):
                yield case, layer


def main() -> None:
    """See above."""
    parser = common_options(__doc__, quick=True, rounds=0)
    parser.add_argument("--only", nargs="+", default=(), metavar="MODEL[:LAYER]")
    parser.add_argument("--kinds", nargs="+", default=("guided", "torch", "loop", "captum"))
    args = parser.parse_args()
    if write_table(args, lambda found: table(found["rows"])):
        return
    torch.set_num_threads(1)
    rounds, kinds = args.rounds or (5 if args.quick else 15), tuple(args.kinds)
    found = (measure(case, layer, kinds, rounds) for case, layer in chosen(CASES, args.only))
    save(args.json, collect(found, table))


if __name__ == "__main__":
    main()
