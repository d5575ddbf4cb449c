"""On CUDA: agreement with the CPU, no synchronisation, flat memory. Needs torch and timm alone."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import timm
import torch
from torch import Tensor, nn

from explainguide import Annotations, ExplanationGuidance
from explainguide.attr import AttentionRelevance

pytestmark = pytest.mark.gpu

MODELS = {
    "resnet18": {"layers": ["input", "layer2", "layer4"], "size": 96},
    "vit_tiny_patch16_224": {"layers": ["input", "blocks.1.norm1", None], "size": 64},
}


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    options = {"img_size": 64, "depth": 3} if "vit" in name else {}
    return timm.create_model(name, num_classes=5, **options).to(dtype)


def batch(size: int, dtype: torch.dtype = torch.float32, count: int = 4) -> tuple[Tensor, list]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator).to(dtype)
    box = torch.tensor([[8.0, 4.0, 40.0, 52.0], [20.0, 30.0, 60.0, 60.0]])
    targets = [{"boxes": box, "labels": torch.tensor([i % 5, 3])} for i in range(count)]
    targets[1] = None
    return images, targets


def step(model: nn.Module, guide: ExplanationGuidance, images: Tensor, targets) -> Tensor:
    """The three lines of a training script."""
    logits = model(images)
    loss_loc = guide.loss_loc(targets)
    (logits.float().logsumexp(1).mean() + loss_loc).backward()
    return loss_loc.detach()


@pytest.mark.parametrize(
    ("name", "layer"), [(n, layer) for n, m in MODELS.items() for layer in m["layers"]]
)
@pytest.mark.parametrize("loss", ["energy", "l1", "rrr"])
def test_cuda_agrees_with_the_cpu(name: str, layer: str | None, loss: str) -> None:
    images, targets = batch(MODELS[name]["size"], torch.float64)
    found = {}
    for device in ("cpu", "cuda"):
        model = build(name, torch.float64).eval().to(device)
        guide = ExplanationGuidance(model, layer, loss=loss, target="all")
        value = step(model, guide, images.to(device), targets)
        gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        found[device] = [value.cpu(), guide.attributions[guide.layers[0]].cpu(), *gradients]
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("last_blocks", [None, 1])
def test_relevance_agrees_with_the_cpu(last_blocks: int | None) -> None:
    images, targets = batch(64, torch.float64)
    found = {}
    for device in ("cpu", "cuda"):
        model = build("vit_tiny_patch16_224", torch.float64).eval().to(device)
        relevance = AttentionRelevance(model, last_blocks=last_blocks)
        guide = ExplanationGuidance(model, attribution=relevance, loss="relevance", target="all")
        value = step(model, guide, images.to(device), targets)
        gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        found[device] = [value.cpu(), guide.attributions[guide.layers[0]].cpu(), *gradients]
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_three_lines_train(name: str, precision: str) -> None:
    model = build(name).cuda()
    guide = ExplanationGuidance(model, MODELS[name]["layers"][1], loss="rrr")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, targets = batch(MODELS[name]["size"])
    autocast = (
        torch.autocast("cuda", dtype=torch.bfloat16)
        if precision == "bfloat16"
        else contextlib.nullcontext()
    )
    for _ in range(3):
        optimizer.zero_grad()
        with autocast:
            value = step(model, guide, images.cuda(), targets)
        optimizer.step()
        assert value.isfinite()
    (attribution,) = guide.attributions.values()
    assert attribution.dtype == torch.float32
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["sample", "all", "predicted"])
def test_loss_loc_does_not_synchronise(name: str, target: str) -> None:
    model = build(name).cuda()
    guide = ExplanationGuidance(model, MODELS[name]["layers"][1], target=target)
    images, targets = batch(MODELS[name]["size"])
    images, annotations = images.cuda(), Annotations.from_targets(targets).to("cuda")
    step(model, guide, images, annotations)  # lazy initialisation may synchronise
    model(images)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_loc = guide.loss_loc(annotations)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss_loc.isfinite()


@pytest.mark.parametrize("interval", [1, 50])
def test_a_step_of_a_training_does_not_synchronise(interval: int) -> None:
    """A training of twice the steps waits as often, but for the steps that are told to."""
    pytest.importorskip("accelerate")
    pytest.importorskip("torchmetrics")
    from explainguide.training import TrainConfig, train

    images, targets = batch(96, count=32)
    items = [
        (image, i % 5, target)
        for i, (image, target) in enumerate(zip(images, targets, strict=True))
    ]
    config = TrainConfig(
        epochs=1, batch_size=4, layer="layer2", clip_grad_norm=1.0, log_interval=interval
    )
    waits = {}
    for steps in (2, 4, 8):  # the first for whatever is initialised lazily
        model = build("resnet18")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train(model, items[: 4 * steps], items[:4], config, progress=False)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits[steps] = sum("synchronizing CUDA operation" in str(w.message) for w in caught)
    assert waits[8] - waits[4] == (4 if interval == 1 else 0)


@pytest.mark.parametrize("name", MODELS)
def test_memory_is_flat(name: str) -> None:
    model = build(name).cuda()
    guide = ExplanationGuidance(model, MODELS[name]["layers"][1])
    images, targets = batch(MODELS[name]["size"])
    images, annotations = images.cuda(), Annotations.from_targets(targets).to("cuda")
    used = []
    for _ in range(50):
        model.zero_grad()
        step(model, guide, images, annotations)
        used.append(torch.cuda.memory_allocated())
    assert len(set(used[2:])) == 1


def test_one_seed_draws_the_same_on_both_devices() -> None:
    images, targets = batch(96)
    values = []
    for device in ("cpu", "cuda"):
        model = build("resnet18").eval().to(device)
        generator = torch.Generator().manual_seed(3)
        guide = ExplanationGuidance(model, "layer4", generator=generator, reduction="none")
        model(images.to(device))
        values.append(guide.loss_loc(targets).detach().cpu())
    torch.testing.assert_close(values[0], values[1], rtol=1e-3, atol=1e-4)
