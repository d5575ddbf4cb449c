"""`rows="annotated"`: the loss and all gradients of `rows="all"`, from the annotated images alone."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from explainguide import Annotations, ExplanationGuidance
from explainguide.annotations.forms import annotated_images
from explainguide.errors import GuidanceError, OptionError
from explainguide.losses import LOSSES
from explainguide.training import train
from tests.fast.test_every import CONFIG, Items
from tests.fast.test_guide import bcos, convnext, nudged, resnet, targets, torchvision_convnext, vit
from tests.networks import FOR_ANY_NETWORK, InPlaceCnn, SmallCnn, batch
from tests.training.counted import Counted, needs_newer_torch
from tests.training.small_runs import Plain

D = torch.float64
Found = tuple[list[Tensor], ExplanationGuidance]


def frozen(model: nn.Module) -> nn.Module:
    """In training, but for the BatchNorms, whose statistics are some numbers."""
    generator = torch.Generator().manual_seed(2)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            for buffer in (module.running_mean, module.running_var):
                if buffer is not None:
                    buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=D))
    return model


def steps(model: nn.Module, layer: Any, size: int = 12, *, rows: str, **options: Any) -> Found:
    """Of two steps of a copy: losses, maps, and the gradients of the sum of both losses.

    The first pass of a guide is read in another way than those that follow.
    """
    model = copy.deepcopy(model)
    what = options.pop("what") if "what" in options else [*targets(size), None]
    generator = torch.Generator().manual_seed(3)
    guide = ExplanationGuidance(model, layer=layer, rows=rows, generator=generator, **options)
    found: list[Tensor] = []
    dtype = next(model.parameters()).dtype
    for _ in range(2):
        model.zero_grad()
        logits = model(batch(4, size, dtype).sigmoid())
        loss = guide.loss_loc(what)
        (0.1 * logits.square().mean() + (loss * torch.arange(1, 1 + loss.numel())).sum()).backward()
        found += [loss.detach(), logits.detach(), *guide.attributions.values()]
        found += [p.new_zeros(()) if p.grad is None else p.grad for p in model.parameters()]
    return found, guide


def same(model: nn.Module, layer: Any, size: int = 12, **options: Any) -> ExplanationGuidance:
    """To 1e-12 of the largest number, or to what rounding the weights changes, if that is more."""
    expected, _ = steps(model, layer, size, rows="all", **options)
    other, _ = steps(nudged(model), layer, size, rows="all", **options)
    found, guide = steps(model, layer, size, rows="annotated", **options)
    assert len(found) == len(expected)
    largest = max(float(value.abs().max()) for value in expected)
    rounding = max(float((a - b).abs().max()) for a, b in zip(other, expected, strict=True))
    assert largest > 0 and rounding < 1e-8 * largest
    for own, value in zip(found, expected, strict=True):
        assert own.shape == value.shape
        error = float((own - value).abs().max())
        assert error <= max(1e-12 * largest, 10 * rounding), (error, largest, rounding)
    return guide


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[Any], int]] = {
    "small": (SmallCnn, ["input", "stem.0", "body", ["stem", "mix"], "body.1"], 12),
    "in place": (InPlaceCnn, ["features.0", "features.2", "features.3"], 12),
    "frozen resnet": (resnet, ["input", "layer1.0.conv1", "layer2", ["layer3", "layer2.0"]], 32),
    "timm's convnext": (convnext, ["input", "stages.1", ["stages.2", "stages.1"]], 64),
    "torchvision's convnext": (torchvision_convnext, ["features.1"], 32),
    "vit": (vit, ["input", "blocks.0", "blocks.1.norm1", ["blocks.0", "blocks.1.norm1"]], 32),
    "bcos": (lambda: frozen(bcos()), ["1.body"], 12),
}
CASES = [(name, layer) for name, (_, layers, _) in NETWORKS.items() for layer in layers]


@pytest.mark.parametrize(("network", "layer"), CASES, ids=str)
def test_networks(network: str, layer: Any) -> None:
    build, _, size = NETWORKS[network]
    torch.manual_seed(0)
    model = build().to(D)
    for module in model.modules():  # torchvision's ConvNeXt drops paths
        if type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    same(frozen(model), layer, size)


@pytest.mark.parametrize("attribution", FOR_ANY_NETWORK)
def test_attributions(attribution: str) -> None:
    few = {"attribution_options": {"n_steps": 3}} if attribution == "intgrad" else {}
    from explainguide import GuideOptions

    torch.manual_seed(0)
    model = frozen(SmallCnn().to(D))
    for layer in ("input", "body"):
        found = []
        for rows in ("all", "annotated"):
            own = copy.deepcopy(model)
            options = GuideOptions(
                layer=layer, attribution=attribution, target="all", rows=rows, **few
            )
            guide = options.build(own)
            own(batch(dtype=D))
            loss = guide.loss_loc(targets(12))
            loss.backward()
            maps = list(guide.attributions.values())
            found.append([loss.detach(), *maps, *(p.grad for p in own.parameters())])
        for one, other in zip(*found, strict=True):
            if one is not None or other is not None:
                torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [None, "blocks.1.attn"])
def test_relevance(layer: str | None) -> None:
    torch.manual_seed(0)
    same(vit().to(D), layer, 32, attribution="relevance", loss="relevance")


@pytest.mark.parametrize("fused", [True, False])
def test_a_bcos_network(fused: bool) -> None:
    torch.manual_seed(0)
    same(frozen(bcos().to(D)), "1.stem", attribution="bcos" if fused else "ixg")


@pytest.mark.parametrize("target", ["all", "sample", "predicted"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_targets_and_reductions(target: Any, reduction: Any) -> None:
    torch.manual_seed(0)
    same(frozen(SmallCnn().to(D)), "stem", target=target, reduction=reduction)
    negatives = 0.5 if target == "sample" else 0.0
    same(frozen(SmallCnn().to(D)), ["stem", "body"], target=target, negatives=negatives)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("score", ["log_prob", "sum_log_probs"])
def test_losses_and_scores(loss: str, score: Any) -> None:
    torch.manual_seed(0)
    same(frozen(SmallCnn().to(D)), "body", loss=loss, score=score, layer_weights=[0.5])


def per_class(rows: list[int]) -> Tensor:
    masks = torch.zeros(4, 4, 12, 12)
    masks[rows, 1, 3:9, 2:11] = 1
    return masks


@pytest.mark.parametrize(
    "what",
    [
        Annotations.from_targets([*targets(12), None]),
        replace(Annotations.from_targets([*targets(12), None])),  # which forgets who is annotated
        per_class([1]),
        per_class([0, 1, 2, 3]),
        [None, targets(12)[0], None, None],
        [targets(12)[2]] * 4,
        [None] * 4,
    ],
    ids=["Annotations", "unknown", "masks", "all masks", "one", "all", "none"],
)
def test_annotations_of_any_form(what: Any) -> None:
    torch.manual_seed(0)
    same(frozen(SmallCnn().to(D)), "stem", what=what)


def test_frozen_parts_and_a_gradient_of_the_image() -> None:
    torch.manual_seed(0)
    model = frozen(SmallCnn().to(D))
    model.stem.requires_grad_(False)
    same(model, "stem")
    same(model, "body")
    wanted = []
    for rows in ("all", "annotated"):
        own, images = copy.deepcopy(model), batch(dtype=D).requires_grad_()
        guide = ExplanationGuidance(own, layer="input", target="all", rows=rows)
        (own(images).square().sum() + guide.loss_loc(targets(12))).backward()
        wanted.append(images.grad)
    torch.testing.assert_close(*wanted, rtol=0, atol=1e-12)


def test_finite_differences() -> None:
    torch.manual_seed(0)
    model = frozen(SmallCnn().to(D))
    guide = ExplanationGuidance(model, layer="stem.2", target="all", rows="annotated", loss="l1")
    images, what = batch(4, dtype=D), [None, *targets(12)]

    def value() -> Tensor:
        model(images)
        return guide.loss_loc(what)

    value().backward()
    for name in ("stem.0.weight", "body.0.weight", "mix.bias", "head.weight"):
        parameter = model.get_parameter(name)
        assert parameter.grad is not None
        way = torch.randn(parameter.shape, dtype=D)
        slope = float((parameter.grad * way).sum())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-5 * way
            ends.append(float(value().detach()))
            with torch.no_grad():
                parameter -= sign * 1e-5 * way
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-9), name


def test_autocast() -> None:
    """The rerun computes in half precision where the pass did: as near to float64 as rows="all"."""
    torch.manual_seed(0)
    model = convnext().train()
    expected = steps(copy.deepcopy(model).double(), "stages.1", 64, rows="all")[0]
    errors = {}
    for rows in ("all", "annotated"):
        own = copy.deepcopy(model)
        guide = ExplanationGuidance(own, "stages.1", rows=rows, target="all")
        with torch.autocast("cpu", torch.bfloat16):
            logits = own(batch(4, 64).sigmoid())
            assert logits.dtype == torch.bfloat16
        guide.loss_loc([*targets(64), None]).backward()
        errors[rows] = torch.cat([p.grad.flatten() for p in own.parameters() if p.grad is not None])
    assert len(expected) > 10
    difference = (errors["annotated"] - errors["all"]).norm() / errors["all"].norm()
    assert difference < 0.1
    assert not torch.equal(errors["annotated"], torch.zeros_like(errors["annotated"]))


def test_the_pass_itself_is_a_plain_one() -> None:
    """From the second on: fused attention, no layer's clone, and what lies before the layer runs once."""
    model = vit().train()
    expected, seen, ran = model(batch(4, 32)), [], []
    guide = ExplanationGuidance(model, layer="blocks.1.norm1", rows="annotated")
    plain = nn.functional.scaled_dot_product_attention

    for name in ("blocks.0", "blocks.1.norm1", "blocks.1.attn"):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: ran.append((name, len(output)))
        )
    what = [*targets(32)[:1], None, None, None]
    for _ in range(3):
        ran.clear()
        logits = model(batch(4, 32))
        seen.append(_names(logits))
        guide.loss_loc(what)
    assert plain is nn.functional.scaled_dot_product_attention
    assert torch.equal(logits, expected)
    fused = {name for name in _names(expected) if "ScaledDot" in name}
    assert fused and all(fused <= names for names in seen[1:])
    alone = [name for name, count in ran if count == 1]
    # Hooks see what was kept, too; attention runs for the one image.
    assert alone == ["blocks.0", "blocks.1.norm1", "blocks.1.attn"]


def _names(of: Tensor) -> set[str]:
    """Names of the nodes of a graph."""
    seen, waiting = set(), [of.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return {node.name() for node in seen}


def test_what_lies_before_the_layer_is_not_computed_again() -> None:
    torch.manual_seed(0)
    model, calls = resnet().to(D), []
    frozen(model)
    convolution = model.layer1[0].conv1
    forward = convolution._conv_forward
    convolution._conv_forward = lambda *a: calls.append(len(a[0])) or forward(*a)  # type: ignore
    guide = ExplanationGuidance(model, layer="layer2", rows="annotated")
    for _ in range(2):
        model(batch(4, 32, D))
        guide.loss_loc([*targets(32), None]).backward()
    assert calls == [4, 4]
    guide = ExplanationGuidance(model, layer="input", rows="annotated")
    model(batch(4, 32, D))
    guide.loss_loc([*targets(32), None]).backward()
    assert calls == [4, 4, 4, 2]


def test_batch_statistics_before_the_layer_are_those_of_the_batch() -> None:
    """Nothing there runs again, so BatchNorm in training mode may be there."""
    torch.manual_seed(0)
    model = resnet().to(D).train()
    for part in (model.layer3, model.layer4):
        frozen(part)
    same(model, "layer2", 32)
    before, after = copy.deepcopy(model), copy.deepcopy(model)
    before(batch(4, 32, D).sigmoid())
    guide = ExplanationGuidance(after, layer="layer2", rows="annotated")
    after(batch(4, 32, D).sigmoid())
    guide.loss_loc([*targets(32), None])
    for one, other in zip(before.buffers(), after.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


class Odd(SmallCnn):
    """With something between the layer and the logits."""

    def __init__(self, extra: nn.Module | None = None, *, functional: bool = False) -> None:
        super().__init__()
        self.extra, self.functional = extra or nn.Identity(), functional

    def forward(self, images: Tensor, scale: Any = 1.0) -> Tensor:
        features = self.extra(nn.functional.gelu(self.mix(self.stem(images))))
        if self.functional:
            features = nn.functional.dropout(features, 0.2, self.training)
        return self.head(features.mean((2, 3))) * scale


class EvoLike(nn.Module):
    """Divides by the spread of the batch, and is no BatchNorm."""

    def forward(self, features: Tensor) -> Tensor:
        return features / features.std((0, 2, 3), keepdim=True)


class DropPath(timm.layers.DropPath):
    pass


REFUSED: list[tuple[nn.Module, str]] = [
    (
        Odd(nn.BatchNorm2d(6)),
        "module 'extra' normalizes by the statistics of the batch in training",
    ),
    (
        Odd(nn.BatchNorm2d(6, track_running_stats=False).eval()),
        "module 'extra' normalizes by the statistics of the batch",
    ),
    (Odd(nn.Dropout2d(0.25)), r"module 'extra' drops values \(p=0.25\)"),
    (Odd(DropPath(0.1)), r"module 'extra' drops paths \(p=0.1\)"),
    (Odd(nn.RReLU()), "module 'extra' draws its slopes"),
    (Odd(functional=True), "draws random numbers there, others than before: a functional dropout"),
    (Odd(EvoLike()), "the model mixes the images of a batch, or changes values in place"),
]


@pytest.mark.parametrize(("model", "message"), REFUSED, ids=[m[-40:] for _, m in REFUSED])
def test_what_would_change_the_values_is_refused(model: Odd, message: str) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    forwards = [vars(m).get("forward") for m in model.modules()]
    guide = ExplanationGuidance(model, layer="stem", rows="annotated")
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    everything = [[targets(12)[0]] * 3] if not isinstance(model.extra, EvoLike) else []
    for what in (targets(12), *everything, [None] * 3):
        model(batch())
        with pytest.raises(
            GuidanceError, match=rf"ExplanationGuidance.loss_loc: .*{message}.*rows='all'"
        ):
            guide.loss_loc(what)
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert [vars(m).get("forward") for m in model.modules()] == forwards
    for part in (model, model.extra):  # the remedy
        part.eval()
    model.functional = False
    if not isinstance(model.extra, EvoLike) and getattr(model.extra, "running_mean", 1) is not None:
        model(batch())
        assert guide.loss_loc(targets(12)).isfinite()
    guide.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_attention_that_drops_is_refused() -> None:
    class Attending(SmallCnn):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(6, 2, dropout=0.2, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.stem(images).flatten(2).mT
            return self.head((tokens + self.attend(tokens, tokens, tokens)[0]).mean(1))

    model = Attending()
    guide = ExplanationGuidance(model, layer="stem", rows="annotated")
    model(batch())
    with pytest.raises(GuidanceError, match=r"module 'attend' drops attention \(dropout=0.2\)"):
        guide.loss_loc(targets(12))


def test_other_tensors_are_refused_and_other_values_are_not() -> None:
    model = frozen(Odd().to(D))
    guide = ExplanationGuidance(model, layer="stem", rows="annotated", image_argument=0)
    model(batch(dtype=D), torch.ones(3, 1, dtype=D))
    with pytest.raises(GuidanceError, match="of its other tensors nobody knows which part"):
        guide.loss_loc(targets(12))
    model(batch(dtype=D), scale=2.0)
    assert guide.loss_loc(targets(12)).isfinite()


@pytest.mark.parametrize("rows", ["some", None, True])
def test_other_values_are_refused(rows: Any) -> None:
    with pytest.raises(OptionError, match=r"ExplanationGuidance: .*rows .*'all', 'annotated'"):
        ExplanationGuidance(SmallCnn(), rows=rows)


def test_which_images_is_known_without_reading_a_device() -> None:
    known = Annotations.from_targets([*targets(12), None]).dilate(0.1).without_masks()
    assert known.annotated == (0, 2)
    somewhere = torch.zeros(1, 4, dtype=torch.bool, device="meta")  # whose values nobody can read
    assert annotated_images(known, somewhere).device.type == "meta"
    assert len(annotated_images(known, somewhere)) == 2
    assert len(annotated_images(Annotations.from_targets([None] * 4), somewhere)) == 1
    with pytest.raises(NotImplementedError):
        annotated_images(replace(known), somewhere)
    here = torch.tensor([[True, False, False, False]])
    assert annotated_images(known, here).tolist() == [0]


@needs_newer_torch
def test_nothing_is_read_from_a_device() -> None:
    model = frozen(SmallCnn())
    guide = ExplanationGuidance(model, layer="stem", rows="annotated")
    annotations = Annotations.from_targets(targets(12))
    for _ in range(2):
        model(batch())
        guide.loss_loc(annotations)
    with Counted() as counter:
        logits = model(batch())
        (logits.mean() + guide.loss_loc(annotations)).backward()
    assert counter.operations > 50
    assert counter.reads == []


def test_a_module_that_runs_twice_or_has_two_names() -> None:
    class Shared(SmallCnn):
        """One activation everywhere, and a convolution by two names, first and last."""

        def __init__(self) -> None:
            super().__init__()
            self.act, self.again = nn.GELU(), self.mix

        def forward(self, images: Tensor) -> Tensor:
            features = self.act(self.again(self.act(self.mix(self.act(self.stem(images))))))
            return self.head(self.act(self.body(features) * self.act(features)).mean((2, 3)))

    torch.manual_seed(0)
    for layer in ("body", "body.0", "stem"):
        same(frozen(Shared().to(D)), layer)


def test_values_that_change_in_place_are_not_taken_for_what_they_were() -> None:
    class Doubled(SmallCnn):
        def forward(self, images: Tensor) -> Tensor:
            features = self.stem(images)
            sums = features.sum((2, 3))
            features += self.mix(features.clone())  # in place, and not the same when done twice
            features = self.body(features)
            return self.head(features.mul_(2).mean((2, 3)) + sums)

    torch.manual_seed(0)
    same(frozen(Doubled().to(D)), "body")
    same(frozen(Doubled().to(D)), "body.0")


def test_what_an_activation_in_place_has_rewritten_cannot_be_read_unseen() -> None:
    class Between(InPlaceCnn):
        def forward(self, images: Tensor) -> Tensor:
            features = self.features[0](images)
            sums = features.sum((2, 3))  # before the activation
            features = self.features[3](self.features[2](self.features[1](features)))
            return self.head(features.mean((2, 3)) + sums)

    guide = ExplanationGuidance(Between(), layer="features.2", rows="annotated")
    guide(batch())
    with pytest.raises(GuidanceError, match="or changes values in place, outside the modules"):
        guide.loss_loc(targets(12))


def test_passes_that_are_paused_evaluated_or_dropped() -> None:
    torch.manual_seed(0)
    model = frozen(SmallCnn().to(D))
    found = []
    for rows in ("all", "annotated"):
        guide = ExplanationGuidance(model, layer="stem", rows=rows, target="all")
        for _ in range(2):
            model(batch(dtype=D))
            with guide.pause():
                model(batch(2, dtype=D))
            guide.attribute(batch(2, dtype=D))
            report = guide.check(batch(dtype=D), targets(12))
            assert report.ok and [layer.layer for layer in report.layers] == ["stem"]
            assert report.layers[0].alive == pytest.approx(2 / 3)
            found.append(guide.loss_loc(targets(12)).detach())
        with torch.no_grad():
            model(batch(dtype=D))
        with pytest.raises(GuidanceError, match="ran without gradients"):
            guide.loss_loc(targets(12))
        other = copy.deepcopy(guide)
        assert other.options.rows == rows
        guide.remove()
        with pytest.raises(GuidanceError, match="hooks were taken off"):
            guide.loss_loc(targets(12))
    assert found[0] == found[1] and torch.allclose(found[0], found[2], rtol=0, atol=1e-12)
    assert torch.allclose(found[2], found[3], rtol=0, atol=0)


def test_nothing_of_a_step_stays() -> None:
    model = frozen(SmallCnn().to(D))
    guide = ExplanationGuidance(model, layer="body", rows="annotated")
    outputs: list[weakref.ref[Tensor]] = []
    model.stem.register_forward_hook(lambda m, a, output: outputs.append(weakref.ref(output)))
    for _ in range(2):
        model(batch(dtype=D))
        guide.loss_loc(targets(12)).backward()
    gc.collect()
    assert outputs and not any(one() is not None for one in outputs)


@pytest.mark.parametrize("attribution", ["ixg", "gradcam"])
def test_a_training(attribution: str) -> None:
    weights = []
    for rows in ("all", "annotated"):
        model = Plain().double()
        config = replace(CONFIG, rows=rows, attribution=attribution, epochs=2, grad_accumulation=2)
        train(model, Items(20, range(0, 20, 3)), Items(4, [0]), config, progress=False)
        weights.append(model.state_dict())
    torch.testing.assert_close(*weights, rtol=0, atol=1e-12)


def _process(rank: int, folder: str, shares: list[list[Any]]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=wait)
    try:
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(frozen(SmallCnn().to(D)))
        guide = ExplanationGuidance(model, layer="stem", target="all", rows="annotated")
        for what in shares:
            model.zero_grad()
            logits = model(batch(4, dtype=D)[2 * rank : 2 * rank + 2])
            (logits.square().mean() + guide.loss_loc(what[2 * rank : 2 * rank + 2])).backward()
        found = [p.grad for p in model.parameters()]
        torch.save(found, Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
@pytest.mark.parametrize("one_has_none", [True, False])
def test_a_mean_is_over_the_annotated_images_of_all_processes(
    tmp_path: Path, one_has_none: bool
) -> None:
    first, _, third = targets(12)
    what = [first, third, None, None] if one_has_none else [first, None, third, first]
    mp.spawn(_process, args=(str(tmp_path), [what, what]), nprocs=2)
    torch.manual_seed(0)
    model = frozen(SmallCnn().to(D))
    guide = ExplanationGuidance(model, layer="stem", target="all", rows="all")
    (model(batch(4, dtype=D)).square().mean() + guide.loss_loc(what)).backward()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        for own, parameter in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(own, parameter.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("layer", ["input", "stem"])
@pytest.mark.parametrize("how", ["backward", "weights"])
def test_a_pass_that_is_over_is_refused(layer: str, how: str) -> None:
    """It would be continued with other weights than it saw, or without a way back to the first ones."""
    model = frozen(Odd().to(D))
    guide = ExplanationGuidance(model, layer=layer, rows="annotated")
    for _ in range(2):  # the first of its kind is read in another way
        logits = model(batch(dtype=D))
        if how == "backward":
            logits.sum().backward()
            message = "since then its backward has run"
        else:
            with torch.no_grad():
                model.head.weight.mul_(1.0005)
            message = "since then 'head.weight' was changed"
        with pytest.raises(GuidanceError, match=rf"loss_loc: .*{message}\. Call loss_loc before"):
            guide.loss_loc(targets(12))


def test_annotations_that_were_cut_forget_which_images_are_annotated() -> None:
    known = Annotations.from_targets([*targets(12), None])
    assert known.annotated == (0, 2)
    assert replace(known, boxes=known.boxes[1:], labels=known.labels[1:]).annotated is None
    assert known.to("cpu").dilate(0.1).without_masks().annotated == (0, 2)


@pytest.mark.parametrize("count", [3, 4])
def test_a_table_with_as_many_rows_as_there_are_images_is_none_of_them(count: int) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.linspace(0, 1, 4, dtype=D)[:, None, None])

        def forward(self) -> Tensor:
            return self.values * 2

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.table = nn.Conv2d(3, 4, 3, padding=1), Table()
            self.layer = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Sequential(
                nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
            )

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.layer(self.stem(images) + self.table()))

    torch.manual_seed(0)
    model = Beside().to(D)
    images = torch.rand(count, 3, 12, 12, dtype=D)
    annotations = [*targets(12), None][:count]
    found = []
    for rows in ("all", "annotated"):
        guide = ExplanationGuidance(model, layer="layer", rows=rows, target="all")
        for _ in range(2):
            model.zero_grad()
            model(images)
            loss = guide.loss_loc(annotations)
            loss.backward()
        found.append(
            [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
        guide.remove()
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)
