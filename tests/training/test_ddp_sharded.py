"""Models that `fully_shard` has cut in pieces: two processes get the weights of one, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explainguide import ExplanationGuidance
from explainguide.attr import AttentionRelevance, GradCam, IntegratedGradients
from explainguide.errors import GuidanceError
from explainguide.evaluation import evaluate
from explainguide.hooks.layers import unwrap
from explainguide.training import TrainConfig
from explainguide.training import train as train_whole

from ..vits import build as build_vit
from .two_processes import Blocks, farthest, in_two, needs_gloo, train

try:
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
        MixedPrecisionPolicy,
        fully_shard,
    )
except ImportError:
    fully_shard = None

needs_fully_shard = pytest.mark.skipif(
    fully_shard is None, reason="torch.distributed.fsdp has fully_shard from torch 2.6 on"
)
pytestmark = [needs_gloo, pytest.mark.slow]

CPU = torch.device("cpu")
WAYS = (
    ("first", True, True),
    ("first", True, False),
    ("first", False, True),
    ("input", True, True),
    ("input", False, False),
    ("third", True, True),
    ("third", False, True),
)
# How it is cut, and options of the loop.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    f"{layer}, {'one by one' if one_by_one else 'whole'}, {'' if again else 'not '}again": (
        {"one_by_one": one_by_one, "reshard_after_forward": again},
        {"layer": layer},
    )
    for layer, one_by_one, again in WAYS
} | {
    "one has none, fast": ({}, {"annotated": (1, 3), "fast": True}),
    "no process has one": ({}, {"annotated": ()}),
    "not fast": ({}, {"fast": False}),
    "two layers, found": ({}, {"layer": ["input", "second"], "target": "sample"}),
    "a layer that is found": ({}, {"layer": None}),
    "accumulated": ({}, {"pieces": 2}),
    "no other loss, one by one": ({}, {"alone": True}),
    "no other loss": ({"one_by_one": False}, {"alone": True, "layer": "third"}),
    "Grad-CAM": ({}, {"attribution": "gradcam"}),
    "gradient": ({"one_by_one": False}, {"attribution": "gradient"}),
}
AFTER = ("first", "input")  # cut when the guide is there already


def cut(model: nn.Module, *, one_by_one: bool = True, **options: Any) -> nn.Module:
    for block in model.children() if one_by_one else ():
        if any(True for _ in block.parameters()) and not isinstance(block, nn.Linear):
            fully_shard(block, **options)
    return fully_shard(model, **options)


def vit() -> nn.Module:
    torch.manual_seed(2)
    return build_vit("vit").model


KEPT = (), ("second",), ("first", "second", "third", "")
RELEVANCE = {"layer": None, "attribution": "relevance", "size": 48, "steps": 1}


def stopped(call: Callable[[], object]) -> str:
    try:
        call()
    except GuidanceError as error:
        return str(error)
    return ""


def low_precision(model: nn.Module, rank: int | None) -> Tensor:
    """The gradient of the localization loss where parameters are computed with in bfloat16."""
    guide = ExplanationGuidance(model, "third", target="all")
    images = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    mine = slice(None) if rank is None else slice(rank, None, 2)
    images = images[mine].to(torch.bfloat16 if rank is None else torch.float32)
    model(images)
    boxes = {"boxes": torch.tensor([[2.0, 3, 8, 10]]), "labels": torch.tensor([1])}
    guide.loss_loc([boxes] * len(images)).backward()
    gradients = [p.grad for p in model.parameters()]
    whole = [
        g.full_tensor() if rank is not None else g for g in gradients[:-1]
    ]  # no map has the last
    return torch.cat([g.double().flatten() for g in whole])


def whole_after(kept: tuple[str, ...], *, guided: bool) -> list[str]:
    """The parameters that are whole after a step in a model of which some modules keep theirs."""
    model = cut(Blocks().double())
    for name in kept:
        model.get_submodule(name).set_reshard_after_backward(False, recurse=False)
    boxes = {"boxes": torch.tensor([[2.0, 3, 8, 10]]), "labels": torch.tensor([1])}
    guide = ExplanationGuidance(model, "first")
    loss = model(torch.ones(2, 3, 12, 12).double()).square().mean()
    if guided:
        loss = loss + guide.loss_loc([boxes, None])
    loss.backward()
    return whole_parameters(model)


def whole_maps(kept: tuple[str, ...]) -> list[str]:
    """Likewise, after a map for which no backward pass follows."""
    model = cut(vit())
    for name in kept:
        model.get_submodule(name).set_reshard_after_backward(False, recurse=False)
    AttentionRelevance(model).attribute(torch.rand(1, 3, 48, 48).double(), 1)
    return whole_parameters(model)


def whole_parameters(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if not hasattr(p, "full_tensor")]


def work(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["kept"] = {
        (kept, guided): whole_after(kept, guided=guided)
        for kept in KEPT
        for guided in (True, False)
    }
    found["kept maps"] = {kept: whole_maps(kept) for kept in ((), ("blocks",))}
    for name, (how, loop) in CASES.items():
        found[name] = train(cut(Blocks().double(), **how), rank, **loop)
    for layer in AFTER:
        found[f"after {layer}"] = train(Blocks().double(), rank, layer, before=cut)
    found["relevance"] = train(cut(vit()), rank, **RELEVANCE)
    found["bf16"] = [
        low_precision(
            cut(Blocks(), one_by_one=one_by_one, mp_policy=MixedPrecisionPolicy(torch.bfloat16)),
            rank,
        )
        for one_by_one in (True, False)
    ]
    model, images = cut(Blocks().double()), torch.rand(2, 3, 12, 12).double()
    found["map"] = GradCam(model, "second").attribute(torch.ones(1, 3, 12, 12).double(), 1)
    boxes = {"boxes": torch.tensor([[2.0, 3, 8, 10]]), "labels": torch.tensor([1])}
    items = [(image, 1, boxes) for image in images]
    whole = Blocks().double()
    late = ExplanationGuidance(whole, "first", attribution=IntegratedGradients(whole, "first"))
    cut(whole)
    whole(images)
    found["refused"] = {
        "check": stopped(lambda: ExplanationGuidance(model, "first").check(images, [boxes, None])),
        "train": stopped(lambda: train_whole(model, items, items, TrainConfig(device="cpu"))),
        "evaluate": stopped(lambda: evaluate(model, items)),
        "reruns": stopped(lambda: ExplanationGuidance(model, "first", attribution="intgrad")),
        "rows": stopped(lambda: ExplanationGuidance(model, "first", rows="annotated")),
        "first version": stopped(
            lambda: unwrap(nn.Sequential(FullyShardedDataParallel(Blocks(), device_id=CPU)))
        ),
        "reruns, late": stopped(lambda: late.loss_loc([boxes, None])),
    }
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two(work, tmp_path_factory.mktemp("sharded"))


@needs_fully_shard
@pytest.mark.parametrize("name", CASES)
def test_ddp_of_pieces_gives_the_weights_of_one_process(both: list[Any], name: str) -> None:
    loop = CASES[name][1]
    expected = train(Blocks().double(), None, **loop)
    for found in both:
        assert farthest(found[name], expected) < 1e-12
    start = {n: p.detach() for n, p in Blocks().double().named_parameters()}
    assert farthest(start, expected) > 0.1
    if loop.get("annotated") != () and not loop.get("alone"):
        assert farthest(train(Blocks().double(), None, lam=0.0), expected) > 1e-2


@needs_fully_shard
@pytest.mark.parametrize("layer", AFTER)
def test_ddp_of_a_model_that_is_cut_after_the_guide(both: list[Any], layer: str) -> None:
    expected = train(Blocks().double(), None, layer)
    assert all(farthest(found[f"after {layer}"], expected) < 1e-12 for found in both)


@needs_fully_shard
def test_ddp_modules_keep_or_let_go_what_the_user_has_said(both: list[Any]) -> None:
    for found in both:
        for kept in KEPT:
            assert found["kept"][kept, True] == found["kept"][kept, False]
        assert [found["kept"][kept, True] for kept in KEPT[:2]] == [
            [],
            ["second.conv.weight", "second.conv.bias", "second.norm.weight", "second.norm.bias"],
        ]
        assert len(found["kept"][KEPT[2], True]) == len(list(Blocks().parameters()))
        assert found["kept maps"][()] == []
        maps = found["kept maps"][("blocks",)]
        assert maps and all(name.startswith("blocks.") for name in maps)


@needs_fully_shard
def test_ddp_of_pieces_with_relevance(both: list[Any]) -> None:
    expected = train(vit(), None, **RELEVANCE)
    assert all(farthest(found["relevance"], expected) < 1e-12 for found in both)
    assert farthest(train(vit(), None, lam=0.0, **RELEVANCE), expected) > 1e-4


@needs_fully_shard
def test_ddp_of_pieces_in_bfloat16(both: list[Any]) -> None:
    """Near to one process with its parameters in bfloat16, at a late layer, where that is near itself."""
    expected = low_precision(Blocks().bfloat16(), None)
    assert expected.norm() > 0.1
    for found in both:
        for gradient in found["bf16"]:
            assert torch.cosine_similarity(gradient, expected, dim=0) > 0.999
            assert gradient.norm() == pytest.approx(float(expected.norm()), rel=0.02)


@needs_fully_shard
def test_ddp_maps_of_pieces(both: list[Any]) -> None:
    model = Blocks().double()
    expected = GradCam(model, "second").attribute(torch.ones(1, 3, 12, 12).double(), 1)
    assert expected.any()
    for found in both:
        torch.testing.assert_close(found["map"], expected, rtol=0, atol=1e-12)


@needs_fully_shard
def test_ddp_of_pieces_is_refused_with_the_remedy(both: list[Any]) -> None:
    pieces = "the model is cut in pieces by fully_shard, of which a process has one."
    whole = "A model that is whole in every process is allowed."
    once = "Use attribution='ixg' or 'gradient', which run the model once."
    assert (
        both[0]["refused"]
        == both[1]["refused"]
        == {
            "check": f"ExplanationGuidance.check: {pieces} Call check before fully_shard. {whole}",
            "train": f"train: {pieces} Call train before it, or guide a loop of your own. {whole}",
            "evaluate": f"evaluate: {pieces} Load its full state dict in a model of its own. {whole}",
            "reruns": f"ExplanationGuidance: {pieces} {once} {whole}",
            "rows": (
                f"ExplanationGuidance: {pieces} Use rows='all', which runs the model once. {whole}"
            ),
            "reruns, late": f"ExplanationGuidance.loss_loc: {pieces} {once} {whole}",
            "first version": (
                "module '0' is in FullyShardedDataParallel, which lets its parameters go after a first "
                "gradient, so that there is no second. Use fully_shard (torch.distributed.fsdp). It, and "
                "DistributedDataParallel, are allowed."
            ),
        }
    )
