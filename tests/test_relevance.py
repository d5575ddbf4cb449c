"""Attention relevance equals its reference for every kind of ViT, and refuses what is none."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.utils.checkpoint
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import _get_current_function_mode_stack

from explainguide import ExplanationGuidance
from explainguide.attr import ATTRIBUTIONS, AttentionRelevance
from explainguide.attr.rollout import Readout, roll_out
from explainguide.errors import GuidanceError, LayerError, OptionError
from explainguide.evaluation import evaluate
from explainguide.hooks.attention import SHOWN

from .networks import SmallCnn
from .reference import relevance as reference
from .test_errors import assert_message, assert_no_hooks
from .test_finite_difference import assert_gradients_are_right
from .vits import NAMES, Vit, build, size_of

CLASSES = torch.tensor([1, 3])


def images_of(vit: Vit, count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, *size_of(vit), generator=generator, dtype=torch.float64).to(dtype)


def masks_of(images: Tensor) -> Tensor:
    masks = torch.zeros(len(images), *images.shape[-2:])
    masks[:, 5:20, 9:28] = 1
    return masks


@pytest.fixture
def vit() -> Vit:
    return build("vit")


@pytest.mark.parametrize("name", NAMES)
def test_values_equal_the_reference(name: str) -> None:
    vit = build(name)
    images = images_of(vit)
    found = AttentionRelevance(vit.model).attribute(images, CLASSES)
    assert found.shape == (2, 1, *vit.grid)
    patches = vit.grid[0] * vit.grid[1]
    expected = reference.relevance(vit.model, images, CLASSES, read=vit.read, patches=patches)
    assert expected.std() > 1e-6, "a map worth comparing"
    torch.testing.assert_close(found.flatten(1), expected.detach(), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_blocks_alone(name: str) -> None:
    vit = build(name)
    images, patches = images_of(vit), vit.grid[0] * vit.grid[1]
    whole = AttentionRelevance(vit.model)
    count = len(whole.attentions)
    for last in range(1, count + 1):
        some = AttentionRelevance(vit.model, last_blocks=last)
        assert some.attentions == whole.attentions[count - last :]
        assert some.layer == some.attentions[0]
        expected = reference.relevance(
            vit.model, images, CLASSES, read=vit.read, patches=patches, skip=count - last
        )
        found = some.attribute(images, CLASSES)
        torch.testing.assert_close(found.flatten(1), expected.detach(), rtol=1e-9, atol=1e-13)
        named = AttentionRelevance(vit.model, whole.attentions[count - last])
        assert torch.equal(named.attribute(images, CLASSES), found)


@pytest.mark.parametrize("name", ["vit", "vit-pooled", "cait", "siglip", "torchvision"])
@pytest.mark.parametrize("loss", ["relevance", "energy"])
def test_finite_difference(name: str, loss: str) -> None:
    vit = build(name)
    images = images_of(vit)
    guide = ExplanationGuidance(vit.model, attribution="relevance", loss=loss)
    masks = masks_of(images)
    assert_gradients_are_right(vit.model, guide, images, annotations=masks, target=CLASSES)


@pytest.mark.parametrize("name", ["vit", "cait"])
def test_a_detached_gradient_is_a_constant(name: str) -> None:
    """The same map; its derivative is that of the roll-out with the gradients held fixed."""
    vit = build(name)
    images = images_of(vit)
    maps, gradients = [], []
    weight = next(p for n, p in vit.model.named_parameters() if n.endswith("qkv.weight") or "attn.q.weight" in n)  # fmt: skip
    for detach in (False, True):
        found = AttentionRelevance(vit.model, detach_gradient=detach).attribute(
            images, CLASSES, create_graph=True
        )
        maps.append(found.detach())
        probe = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
        gradients.append(torch.autograd.grad((found * probe).sum(), weight)[0])
    assert torch.equal(*maps)
    assert (gradients[0] - gradients[1]).norm() > 0.05 * gradients[0].norm()
    with reference.explicit_attention(vit.model), reference.watched_softmax() as attentions:
        score = vit.model(images).gather(1, CLASSES[:, None]).sum()
    constants = torch.autograd.grad(score, attentions, retain_graph=True)
    rolled = torch.stack(
        [
            reference.roll_out([a[n] for a in attentions], [c[n] for c in constants], "class", 9)
            for n in range(2)
        ]
    )
    expected = torch.autograd.grad((rolled * probe.flatten(1)).sum(), weight)[0]
    torch.testing.assert_close(gradients[1], expected, rtol=1e-8, atol=1e-12)


def test_a_pooled_models_relevance_keeps_its_digits_in_float32() -> None:
    """The share that every patch has of itself is 1/P, thousands of times the relevance here."""
    vit = build("beit")
    images = images_of(vit)
    exact = AttentionRelevance(vit.model).attribute(images, CLASSES)
    found = AttentionRelevance(copy.deepcopy(vit.model).float()).attribute(images.float(), CLASSES)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.max()))


def test_no_images_have_no_relevance() -> None:
    vit = build("vit")
    with ExplanationGuidance(vit.model, attribution="relevance") as guide:
        vit.model(images_of(vit)[:0])
        assert guide.loss_loc([]) == 0


def test_one_row_times_matrices_is_the_product_of_matrices() -> None:
    """Both readouts, with a class token that joins and class attention at the end."""
    mixing = [torch.rand(2, 3, 4, 4), torch.rand(2, 3, 5, 5), torch.rand(2, 3, 1, 5)]
    identity = torch.eye(4)
    whole = torch.zeros(2, 3, 5, 5)
    whole[..., 0, 0] = 1
    whole[..., 1:, 1:] = identity + mixing[0]
    whole = whole + mixing[1] @ whole
    pooled = (whole[..., 1:, 1:] - identity).mean(-2)
    torch.testing.assert_close(roll_out(mixing[:2], Readout((0,), (), True))[..., :4], pooled)
    whole[..., :1, :] = whole[..., :1, :] + mixing[2] @ whole
    by_row = roll_out(mixing, Readout((0,), (0,), False))
    torch.testing.assert_close(by_row, whole[..., 0, 1:])


def test_the_guide_needs_no_other_argument(vit: Vit) -> None:
    images = images_of(vit)
    guide = ExplanationGuidance(vit.model, attribution="relevance", loss="relevance", target="all")
    assert guide.layers == ["blocks.0.attn"]
    logits = vit.model(images)
    labels = [
        {
            "boxes": torch.tensor([[2.0, 3, 30, 40], [20, 9, 47, 47]]),
            "labels": torch.tensor([1, 4]),
        },
        {"boxes": torch.tensor([[1.0, 1, 25, 25]]), "labels": torch.tensor([3])},
    ]
    (logits.logsumexp(1).mean() + guide.loss_loc(labels)).backward()
    assert all(p.grad is not None for p in vit.model.parameters())
    assert guide.attributions["blocks.0.attn"].shape == (2, 3, 3)
    assert "scaled_dot_product_attention" in repr(guide)
    report = guide.check(images, labels)
    assert report.ok and report.layers[0].before > 0 and report.layers[0].after > 0
    fine = guide.attribute(images, CLASSES)
    assert fine.shape == (2, 1, 48, 48) and not fine.requires_grad
    coarse = guide.attribute(images, CLASSES, interpolate=False)
    assert torch.equal(coarse, AttentionRelevance(vit.model).attribute(images, CLASSES))
    guide.remove()
    assert_no_hooks(vit.model)


@pytest.mark.parametrize("layer", ["blocks.1.attn", ["blocks.1.attn"], "module.blocks.1.attn"])
def test_the_guides_layer_is_where_the_roll_out_starts(vit: Vit, layer) -> None:
    guide = ExplanationGuidance(vit.model, layer, attribution="relevance")
    assert guide.layers == ["blocks.1.attn"]
    vit.model(images_of(vit))
    guide.loss_loc(masks_of(images_of(vit)), target=CLASSES).backward()
    last = AttentionRelevance(vit.model, last_blocks=2)
    found = last.attribute(images_of(vit), CLASSES)[:, 0]
    torch.testing.assert_close(guide.attributions["blocks.1.attn"], found)
    assert last.at("blocks.2.attn").attentions == ("blocks.2.attn",)
    assert last.attentions == ("blocks.1.attn", "blocks.2.attn")


def test_several_classes_at_once_are_each_class_alone(vit: Vit) -> None:
    images = images_of(vit)
    guide = ExplanationGuidance(vit.model, attribution="relevance", target="all", reduction="none")
    masks = torch.zeros(2, 5, 48, 48)
    masks[:, [1, 4], 8:30, 3:22] = 1
    vit.model(images)
    both = guide.loss_loc(masks).detach()
    alone = []
    for k in (1, 4):
        vit.model(images)
        alone.append(guide.loss_loc(masks[:, k], target=k).detach())
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize("name", ["vit", "cait", "torchvision"])
def test_logits_and_what_other_guides_see_stay(name: str) -> None:
    vit = build(name)
    images = images_of(vit)
    plain = vit.model(images).detach()
    alone = AttentionRelevance(vit.model).attribute(images, CLASSES)[:, 0]
    made = [("relevance", None), ("ixg", "input"), ("relevance", None)]
    for order in (made, made[::-1]):
        guides = [ExplanationGuidance(vit.model, layer, attribution=a) for a, layer in order]
        logits = vit.model(images)
        torch.testing.assert_close(logits.detach(), plain, rtol=1e-10, atol=1e-12)
        masks = masks_of(images)
        sum(guide.loss_loc(masks, target=CLASSES) for guide in guides).backward()
        for (kind, _), guide in zip(order, guides, strict=True):
            if kind == "relevance":
                torch.testing.assert_close(guide.attributions[guide.layers[0]], alone)
            guide.remove()
    assert torch.equal(vit.model(images), plain)
    assert_no_hooks(vit.model)
    assert not _get_current_function_mode_stack()


def test_nothing_is_kept_in_evaluation_or_after_an_error(vit: Vit) -> None:
    guide = ExplanationGuidance(vit.model, attribution="relevance")
    with torch.no_grad():
        vit.model(images_of(vit))
    assert guide._tap.last is not None and not guide._tap.last.attentions
    broken = vit.model.blocks[1].attn.proj.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vit.model(images_of(vit))
    broken.remove()
    assert guide._tap.last is None
    vit.model(images_of(vit))
    guide.loss_loc(masks_of(images_of(vit)), target=CLASSES).backward()
    assert guide._tap.last is None


def test_half_precision_gives_maps_in_float32(vit: Vit) -> None:
    images = images_of(vit, dtype=torch.float32)
    model = copy.deepcopy(vit.model).float()
    exact = AttentionRelevance(model).attribute(images, CLASSES)
    guide = ExplanationGuidance(model, attribution="relevance")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
        loss = guide.loss_loc(masks_of(images), target=CLASSES)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    found = guide.attributions["blocks.0.attn"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact[:, 0], rtol=0.1, atol=0.02 * float(exact.max()))
    half = AttentionRelevance(model.bfloat16()).attribute(images.bfloat16(), CLASSES)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("name", ["vit", "torchvision"])
def test_dropout_of_the_attention(name: str) -> None:
    """The fused and the explicit path of a model mean the same when weights are dropped."""
    vit = build(name)
    for module in vit.model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.4
        if hasattr(module, "attn_drop"):
            module.attn_drop.p = 0.4
    vit.model.train()
    for module in vit.model.modules():
        if isinstance(module, nn.Dropout) and module.p != 0.4:
            module.p = 0.0
    relevance, images = AttentionRelevance(vit.model), images_of(vit)
    maps = []
    fused = [m for m in vit.model.modules() if getattr(m, "fused_attn", False)]
    for explicit in (False, True) if fused else (False, False):
        for module in fused:
            module.fused_attn = not explicit
        torch.manual_seed(2)
        maps.append(relevance.attribute(images, CLASSES))
    torch.testing.assert_close(*maps)
    assert vit.model.training
    assert not torch.allclose(maps[0], relevance.attribute(images, CLASSES))


def test_frozen_blocks_below_are_no_obstacle(vit: Vit) -> None:
    for name in ("vit", "torchvision"):
        vit = build(name)
        images = images_of(vit)
        expected = AttentionRelevance(vit.model).attribute(images, CLASSES)
        vit.model.requires_grad_(False)
        head = vit.model.head if name == "vit" else vit.model.heads.head
        head.requires_grad_(True)
        torch.testing.assert_close(
            AttentionRelevance(vit.model).attribute(images, CLASSES), expected
        )
        guide = ExplanationGuidance(vit.model, attribution="relevance", loss="relevance")
        vit.model(images)
        guide.loss_loc(masks_of(images), target=CLASSES).backward()
        assert head.weight.grad.abs().max() > 0


def test_other_sizes_than_the_probes() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=16, num_heads=2, num_classes=5, dynamic_img_size=True
    )  # fmt: skip
    relevance = AttentionRelevance(model.eval())
    assert relevance.attribute(torch.randn(2, 3, 48, 80), 0).shape == (2, 1, 3, 5)


def test_tokens_that_are_dropped_are_an_error(vit: Vit) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=16, num_heads=2, num_classes=5, patch_drop_rate=0.5
    )  # fmt: skip
    model.patch_drop.prob = 0.0
    guide = ExplanationGuidance(model.train(), attribution="relevance")
    model.patch_drop.prob = 0.5  # after the guide has looked
    model(torch.randn(2, 3, 64, 64))
    with pytest.raises(
        LayerError,
        match=r"has shape \(2, 9, 9\), which has no spatial extent .* where tokens are dropped",
    ):
        guide.loss_loc(torch.ones(2, 64, 64), target=CLASSES)
    guide.remove()
    assert_no_hooks(model)


class Own(nn.Module):
    """A ViT as users write one: the weights are asked for and thrown away, nothing says its size."""

    def __init__(self, size: int = 32, attend_twice: bool = False) -> None:
        super().__init__()
        self.image_size, self.attend_twice = size, attend_twice
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.blocks = nn.ModuleList(nn.MultiheadAttention(12, 2, batch_first=True) for _ in "ab")
        self.head = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT
        for block in [*self.blocks, *self.blocks[:1]] if self.attend_twice else self.blocks:
            tokens = tokens + block(tokens, tokens, tokens)[0]
        return self.head(tokens.mean(1))


def test_a_vit_of_ones_own() -> None:
    model, images = Own(), torch.randn(2, 3, 32, 32)
    guide = ExplanationGuidance(model, attribution="relevance")
    assert guide.layers == ["blocks.0"]
    model(images)
    guide.loss_loc(torch.ones(2, 32, 32).triu(), target=CLASSES).backward()
    assert guide.attributions["blocks.0"].shape == (2, 4, 4)
    assert guide.check(images, torch.ones(2, 32, 32).triu(), CLASSES).ok


def test_evaluate_takes_relevance(vit: Vit) -> None:
    model = vit.model.float()
    annotation = {"boxes": torch.tensor([[2.0, 3, 30, 40]]), "labels": torch.tensor([1])}
    data = [(torch.randn(3, 48, 48), 1, annotation)] * 2
    for attribution in ("relevance", AttentionRelevance(model, last_blocks=1)):
        scores = evaluate(model, data, attribution=attribution, progress=False)
        assert 0 < scores["epg"] < 1
    assert_no_hooks(model)


def test_relevance_is_in_the_table() -> None:
    assert ATTRIBUTIONS["relevance"] is AttentionRelevance


def timm_model(name: str, **options) -> nn.Module:
    return timm.create_model(name, num_classes=5, **options)


REFUSED = [
    (lambda: timm_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=12, num_heads=(1, 1, 1, 1)), ["SwinTransformer attends within windows in module 'layers.0.blocks.0.attn'", "(64, 1, 49, 49) for one image"]),
    (lambda: torchvision.models.swin_transformer.SwinTransformer([4, 4], 12, [1, 1], [1, 1], [7, 7], num_classes=5), ["attends within windows"]),
    (lambda: timm_model("mvitv2_tiny"), ["MultiScaleVit lets 3136 tokens attend to only 196 keys in module"]),
    (lambda: timm_model("pvt_v2_b0"), ["lets 3136 tokens attend to only 49 keys"]),
    (lambda: timm_model("xcit_nano_12_p16_224", depth=2), ["Xcit attends over 32 channels", "not over its 196 tokens"]),
    (lambda: timm_model("convit_tiny", depth=2, local_up_to_layer=1), ["computes several attentions in module 'blocks.0.attn'"]),
    (lambda: timm_model("vit_small_patch16_18x2_224", depth=1, embed_dim=16, num_heads=2), ["side by side"]),
    (lambda: timm_model("pit_ti_224"), ["changes its number of tokens, from 730 to 197"]),
    (lambda: timm_model("levit_128s"), ["lets only 49 of 196 tokens ask"]),
    (lambda: Own(attend_twice=True), ["computes several attentions in module 'blocks.0'"]),
    (lambda: timm_model("mixer_s32_224"), ["MlpMixer has no softmax attention"]),
    (lambda: timm_model("resnet18"), ["ResNet has no softmax attention", "gradcam", "torchvision's vit"]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "parts"), REFUSED)
def test_what_has_no_global_softmax_attention(make, parts: list[str]) -> None:
    model = make()
    for construct in (
        AttentionRelevance,
        lambda m: ExplanationGuidance(m, attribution="relevance"),
    ):
        with pytest.raises(GuidanceError) as wrong:
            construct(model)
        assert_message(str(wrong.value), "AttentionRelevance", [*parts, "Use attribution="])
        assert_no_hooks(model)


OPTIONS = [
    (OptionError, {"layer": "blocks.0.norm1"}, ["'blocks.0.norm1' is no attention module", "Did you mean 'blocks.0.attn'", "3 in all"]),
    (OptionError, {"layer": "input"}, ["'input' is no attention module"]),
    (LayerError, {"layer": "blocks.9.attn"}, ["unknown layer 'blocks.9.attn'"]),
    (OptionError, {"last_blocks": 0}, ["last_blocks is 0", "1 to 3 are allowed"]),
    (OptionError, {"last_blocks": 4}, ["last_blocks is 4"]),
    (OptionError, {"last_blocks": True}, ["last_blocks is True"]),
    (OptionError, {"last_blocks": 1.0}, ["last_blocks is 1.0"]),
    (OptionError, {"layer": "blocks.0.attn", "last_blocks": 2}, ["layer is 'blocks.0.attn' and last_blocks is 2"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "parts"), OPTIONS)
def test_options_that_are_not_allowed(vit: Vit, kind: type, options: dict, parts: list) -> None:
    with pytest.raises(kind) as wrong:
        AttentionRelevance(vit.model, **options)
    assert_message(str(wrong.value), "AttentionRelevance", parts)
    assert_no_hooks(vit.model)


def test_guides_that_are_not_allowed(vit: Vit) -> None:
    with pytest.raises(OptionError, match=r"^ExplanationGuidance: 2 layers for AttentionRelevance"):
        ExplanationGuidance(vit.model, ["blocks.0.attn", "blocks.1.attn"], attribution="relevance")
    last = AttentionRelevance(vit.model, last_blocks=1)
    with pytest.raises(OptionError, match=r"the attribution was built for 'blocks\.2\.attn'"):
        ExplanationGuidance(vit.model, "blocks.0.attn", attribution=last)
    model = SmallCnn()
    model.head = nn.Linear(3, 3)
    with pytest.raises(LayerError, match=r"did not run on an image of 3 x 224 x 224 .*image_size"):
        AttentionRelevance(model)


def test_checkpointed_blocks_are_refused(vit: Vit) -> None:
    guide = ExplanationGuidance(vit.model, attribution="relevance")
    vit.model.set_grad_checkpointing(True)
    with pytest.raises(GuidanceError, match="runs inside a checkpointed segment"):
        vit.model(images_of(vit))
    guide.remove()
    with pytest.raises(GuidanceError, match="runs inside a checkpointed segment"):
        AttentionRelevance(vit.model)
    assert_no_hooks(vit.model)


@pytest.mark.parametrize("kind", ["bool", "float", "causal"])
def test_shown_attention_is_pytorchs_under_masks(kind: str) -> None:
    """Also for a query that may see no key, which softmax alone would make NaN."""
    if kind != "causal" and not hasattr(torch.ops.aten, "_safe_softmax"):
        pytest.skip("this version of PyTorch makes NaN of such a query itself")
    generator = torch.Generator().manual_seed(0)
    allowed = torch.rand(5, 5, generator=generator) > 0.5
    allowed[2] = False
    masks = {"bool": allowed, "float": torch.where(allowed, 0.3, -torch.inf).double()}
    options = {"is_causal": True} if kind == "causal" else {"attn_mask": masks[kind]}
    q, k, v = (
        torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(3)
    )
    attention = nn.functional.scaled_dot_product_attention
    with sdpa_kernel(SDPBackend.MATH):
        expected = attention(q, k, v, **options)
    found, weights = SHOWN[attention](q, k, v, **options)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(weights.tensor @ v, expected, rtol=1e-13, atol=1e-13)
    gradients = [torch.autograd.grad(z.sin().sum(), (q, k, v)) for z in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)
