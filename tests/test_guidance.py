"""The contract of `ExplanationGuidance`: what it computes, and what it leaves alone."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import timm
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torchvision import models

from explainguide import Annotations, ExplanationGuidance
from explainguide.attr import GradCam, InputXGradient, IntegratedGradients
from explainguide.errors import GuidanceError, LayerError
from explainguide.losses import energy_loss, l1_loss

from .conftest import attention_kernels
from .networks import FOR_ANY_NETWORK, TARGETS, InPlaceCnn, SmallCnn, batch, boxes


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def model() -> nn.Module:
    return SmallCnn()


@pytest.mark.parametrize("attribution", FOR_ANY_NETWORK)
@pytest.mark.parametrize("layer", ["input", "stem", "mix"])
def test_second_derivative_reaches_every_side(
    model: nn.Module, attribution: str, layer: str
) -> None:
    guide = ExplanationGuidance(model, layer, attribution=attribution, target="all")
    model(batch())
    guide.loss_loc(TARGETS).backward()
    before = model.stem[0].weight.grad
    after = model.head.weight.grad
    assert before is not None and before.abs().max() > 0
    assert after is not None and after.abs().max() > 0


@pytest.mark.parametrize("layer", ["input", "stem", "mix", ["input", "body", "mix"]])
@pytest.mark.parametrize("training", [True, False])
def test_logits_are_bit_identical(model: nn.Module, layer, training: bool) -> None:
    model.train(training)
    plain = copy.deepcopy(model)(batch())
    with ExplanationGuidance(model, layer):
        guided = copy.deepcopy(model)  # a copy carries no working hook
        assert torch.equal(guided(batch()), plain)
        assert torch.equal(model(batch()), plain)
    assert hooks(model) == 0
    fresh = SmallCnn()
    fresh.load_state_dict(guided.state_dict())
    assert torch.equal(fresh.train(training)(batch()), guided.train(training)(batch()))


def test_one_forward_and_one_statistics_update(model: nn.Module) -> None:
    calls = []
    model.head.register_forward_hook(lambda *_: calls.append(1))
    for attribution in ("ixg", IntegratedGradients(model, n_steps=4)):
        calls.clear()
        guide = ExplanationGuidance(model, "stem", attribution=attribution)
        before = int(model.stem[1].num_batches_tracked)
        model(batch())
        guide.loss_loc(TARGETS).backward()
        assert int(model.stem[1].num_batches_tracked) == before + 1
        assert len(calls) == (1 if attribution == "ixg" else 6)  # 4 points and the baseline
        guide.remove()


def test_the_callers_tensor_stays_as_it_was(model: nn.Module) -> None:
    images = batch()
    before = images.clone()
    guide = ExplanationGuidance(model, "input")
    model(images)
    guide.loss_loc(TARGETS).backward()
    assert not images.requires_grad and images.grad is None and torch.equal(images, before)


def test_images_that_require_a_gradient_keep_getting_one(model: nn.Module) -> None:
    images = batch().requires_grad_()
    guide = ExplanationGuidance(model, "input")
    model(images)
    guide.loss_loc(TARGETS).backward()
    assert images.grad is not None and images.grad.abs().max() > 0


def test_images_by_keyword(model: nn.Module) -> None:
    guide = ExplanationGuidance(model, "input", target="all")
    model(images=batch())
    by_keyword = guide.loss_loc(TARGETS)
    model(batch())
    assert torch.equal(by_keyword, guide.loss_loc(TARGETS))


def test_in_place_relu_does_not_rewrite_the_activation() -> None:
    model = InPlaceCnn()
    images = batch()
    convolved = model.features[0](images).detach()
    guide = ExplanationGuidance(model, "features.0", attribution="ixg")
    logits = model(images)
    guide.loss_loc(TARGETS).backward()
    gradient = torch.autograd.functional.jacobian(
        lambda f: model.head(model.features[1:](f.clone()).mean((2, 3))).sum(0)[2], convolved
    )
    expected = (convolved * gradient).sum(1)[0]
    torch.testing.assert_close(guide.attributions["features.0"][0], expected)
    assert logits.shape == (3, 4)


def test_nothing_happens_in_evaluation(model: nn.Module) -> None:
    guide = ExplanationGuidance(model, ["input", "mix"])
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            output = model(batch())
        assert not output.requires_grad
        assert guide._tap.last is not None and not guide._tap.last.features
        assert guide._tap.last.images is None


def test_images_made_in_inference_mode_can_be_guided(model: nn.Module) -> None:
    with torch.inference_mode():
        images = batch()
    guide = ExplanationGuidance(model, "input", target="all")
    model(images)
    loss = guide.loss_loc(TARGETS)
    model(batch())
    assert torch.equal(loss, guide.loss_loc(TARGETS))


def test_reductions_and_weights(model: nn.Module) -> None:
    model.eval()
    values = {}
    for reduction in ("none", "sum", "mean"):
        guide = ExplanationGuidance(model, "mix", target="all", reduction=reduction)
        model(batch())
        values[reduction] = guide.loss_loc(TARGETS).detach()
        guide.remove()
    assert values["none"].shape == (3,) and values["none"][1] == 0
    torch.testing.assert_close(values["none"].sum(), values["sum"])
    torch.testing.assert_close(values["none"].sum() / 2, values["mean"])
    single = {}
    for layer in ("stem", "mix"):
        guide = ExplanationGuidance(model, layer, target="all")
        model(batch())
        single[layer] = guide.loss_loc(TARGETS).detach()
        guide.remove()
    guide = ExplanationGuidance(model, ["stem", "mix"], target="all", layer_weights=[0.5, 2])
    model(batch())
    expected = 0.5 * single["stem"] + 2 * single["mix"]
    torch.testing.assert_close(guide.loss_loc(TARGETS).detach(), expected)


@pytest.mark.parametrize("attribution", ["ixg", "gradcam", "gradient"])
def test_all_classes_are_the_mean_over_each_image_of_its_classes(
    model: nn.Module, attribution: str
) -> None:
    model.eval()
    guide = ExplanationGuidance(
        model, "stem", attribution=attribution, target="all", reduction="none"
    )
    model(batch())
    both = guide.loss_loc(TARGETS).detach()
    one_by_one = []
    for k in (0, 3):
        model(batch())
        one_by_one.append(guide.loss_loc(TARGETS, target=k).detach())
    torch.testing.assert_close(both[2], (one_by_one[0][2] + one_by_one[1][2]) / 2)


def test_a_custom_function_without_vmap_is_explained_class_by_class() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return 2 * g * x

    class Model(nn.Module):
        def __init__(self, custom: bool) -> None:
            super().__init__()
            self.conv, self.head, self.custom = nn.Conv2d(3, 5, 3), nn.Linear(5, 4), custom

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head((Double.apply(x) if self.custom else x * x).mean((2, 3)))

    losses = []
    weights = Model(False).state_dict()
    for custom in (True, False):
        model = Model(custom)
        model.load_state_dict(weights)
        guide = ExplanationGuidance(model, "conv", target="all")
        model(batch())
        loss = guide.loss_loc(TARGETS)
        loss.backward()
        losses.append((loss.detach(), model.conv.weight.grad))
    torch.testing.assert_close(losses[0], losses[1])


def test_the_same_seed_draws_the_same_classes(model: nn.Module) -> None:
    model.eval()
    drawn = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(5)
        guide = ExplanationGuidance(model, "mix", generator=generator, reduction="none")
        values = []
        for _ in range(12):
            model(batch())
            values.append(guide.loss_loc(TARGETS).detach()[2])
        drawn.append(torch.stack(values))
        guide.remove()
    assert torch.equal(drawn[0], drawn[1])
    assert len(drawn[0].unique()) == 2  # both of the image's classes were drawn


def test_negatives_are_absent_classes_against_every_box(model: nn.Module) -> None:
    model.eval()
    target = boxes((1, 1, 6, 6), (5, 5, 9, 9), labels=(0, 1))
    guide = ExplanationGuidance(model, "stem", negatives=1.0, reduction="none")
    model(batch(1))
    value = guide.loss_loc([target]).detach()
    both = torch.zeros(1, 12, 12).bool()
    both[:, 1:6, 1:6] = both[:, 5:9, 5:9] = True
    allowed = []
    plain = ExplanationGuidance(model, "stem", reduction="none")
    for k in (2, 3):
        model(batch(1))
        allowed.append(float(plain.loss_loc(both, target=k).detach()))
    assert any(abs(float(value) - a) < 1e-6 for a in allowed)


def test_no_annotation_gives_a_zero_that_can_be_backpropagated(model: nn.Module) -> None:
    for loss in ("energy", "l1", "ppce", "rrr", "gradmask", "reff"):
        guide = ExplanationGuidance(model, "mix", loss=loss)
        logits = model(batch())
        loss_loc = guide.loss_loc([None, {"boxes": torch.zeros(0, 4), "labels": []}, None])
        assert loss_loc == 0
        (logits.sum() * 0 + loss_loc).backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
        guide.remove()


def test_every_form_of_annotation_gives_the_same_loss(model: nn.Module) -> None:
    model.eval()
    row = boxes((2, 3, 8, 10), labels=(1,))
    mask = torch.zeros(3, 12, 12).bool()
    mask[:, 3:10, 2:8] = True
    per_class = torch.zeros(3, 4, 12, 12)
    per_class[:, 1] = mask.float()
    forms = [
        ([row] * 3, None),
        (Annotations.from_targets([row] * 3), None),
        ([{**row, "masks": mask[:1]}] * 3, None),
        (mask, 1),
        (mask, torch.tensor([1, 1, 1])),
        (mask[:, None].float(), torch.eye(4)[1].expand(3, 4)),
        (per_class, None),
        (per_class, torch.ones(3, 4)),
    ]
    guide = ExplanationGuidance(model, "stem", loss="l1")
    values = []
    for form, target in forms:
        model(batch())
        values.append(guide.loss_loc(form, target).detach())
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])


def test_a_loss_may_be_any_callable(model: nn.Module) -> None:
    guide = ExplanationGuidance(model, "stem", loss=lambda a, m: (a * (1 - m)).abs().mean((1, 2)))
    model(batch())
    assert guide.loss_loc(TARGETS) > 0


def test_a_table_function_is_its_name(model: nn.Module) -> None:
    model.eval()
    values = []
    for loss in ("l1", l1_loss, "energy", energy_loss):
        guide = ExplanationGuidance(model, "stem", loss=loss, target="all")
        model(batch())
        values.append(guide.loss_loc(TARGETS).detach())
        guide.remove()
    assert values[0] == values[1] and values[2] == values[3]


def test_memory_is_let_go(model: nn.Module) -> None:
    guide = ExplanationGuidance(model, ["input", "mix"])
    model(batch())
    activation = weakref.ref(guide._tap.last.features["mix"])
    loss = guide.loss_loc(TARGETS)
    loss.backward()
    del loss
    assert guide._tap.last is None
    assert activation() is None, "the graph outlived the step without a garbage collection"


def test_the_hooks_go_with_the_guide(model: nn.Module) -> None:
    guide = ExplanationGuidance(model, "mix")
    assert hooks(model) > 0
    del guide
    gc.collect()
    assert hooks(model) == 0


def test_the_model_can_be_copied_and_pickled_while_guided(model: nn.Module) -> None:
    keys = list(model.state_dict())
    guide = ExplanationGuidance(model, "mix")
    assert list(model.state_dict()) == keys
    torch.save(model, io.BytesIO())
    other = pickle.loads(pickle.dumps(model))
    model(batch())
    copy.deepcopy(model)(batch())  # an EMA's forward does not disturb the pass that waits
    other(batch())
    assert guide.loss_loc(TARGETS).isfinite()


def test_a_raising_forward_leaves_nothing_behind(model: nn.Module) -> None:
    guide = ExplanationGuidance(model, ["input", "stem"])
    broken = model.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(batch())
    broken.remove()
    with pytest.raises(GuidanceError, match="no forward pass is waiting"):
        guide.loss_loc(TARGETS)
    model(batch())
    guide.loss_loc(TARGETS).backward()


def test_attribute_is_the_same_as_captums_calling_convention(model: nn.Module) -> None:
    model.eval()
    guide = ExplanationGuidance(model, "stem")
    logits = model(batch())
    with torch.no_grad():
        maps = guide.attribute(batch(), torch.tensor([0, 1, 2]))
        coarse = guide.attribute(batch(), 0, interpolate=False)
    assert maps.shape == (3, 1, 12, 12) and coarse.shape == (3, 1, 6, 6)
    assert not maps.requires_grad
    with torch.inference_mode():
        again = guide.attribute(batch(), [0, 1, 2])
    assert torch.equal(maps, again)
    guide.loss_loc(TARGETS)  # the pass of `logits` was still waiting
    assert logits.requires_grad


def test_an_attribution_object_brings_its_settings_and_its_layer(model: nn.Module) -> None:
    guide = ExplanationGuidance(model, attribution=GradCam(model, layer="stem"))
    assert guide.layers == ["stem"]


def test_check_says_what_gets_a_gradient_and_changes_nothing(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    guide = ExplanationGuidance(model, ["input", "mix"])
    state = torch.get_rng_state()
    report = guide.check(batch(), TARGETS)
    assert torch.equal(torch.get_rng_state(), state)
    assert report.ok and report.layers[0].before is None and report.layers[1].before > 0
    assert all(torch.equal(a, before[k]) for k, a in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert "alive in 67% of the images" in str(report)


def test_check_names_the_layer_that_is_not_finite(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model.mix.weight[0, 0, 0, 0] = float("nan")
    guide = ExplanationGuidance(model, "mix", target="all")
    report = guide.check(batch(), TARGETS)
    assert not report.ok and "mix: the map is not finite" in str(report)
    for loss in ("energy", "l1", "ppce", "rrr", "gradmask", "reff"):
        guide = ExplanationGuidance(model, "mix", loss=loss, target="all")
        model(batch())
        assert not guide.loss_loc(TARGETS).isfinite()


def test_several_guides_share_a_model(model: nn.Module) -> None:
    first = ExplanationGuidance(model, "stem", target="all")
    second = ExplanationGuidance(model, "input", target="all", loss="l1")
    model(batch())
    (first.loss_loc(TARGETS) + second.loss_loc(TARGETS)).backward()
    assert model.stem[0].weight.grad.abs().max() > 0


def test_autocast_computes_maps_in_float32(model: nn.Module) -> None:
    guide = ExplanationGuidance(model, "stem", target="all")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch())
        inside = guide.loss_loc(TARGETS)
    assert guide.attributions["stem"].dtype == torch.float32 and inside.dtype == torch.float32
    inside.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(batch())
    outside = guide.loss_loc(TARGETS)
    torch.testing.assert_close(inside, outside)
    assert logits.dtype == torch.bfloat16 and model.mix.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050", "resnet18"])
def test_automatic_layer_of_a_timm_model(name: str) -> None:
    import timm

    model = timm.create_model(name, num_classes=4)
    guide = ExplanationGuidance(model, target="all", loss="rrr")
    assert guide.layers == [
        {
            "vit_tiny_patch16_224": "blocks.11.norm1",
            "mobilenetv3_small_050": "blocks",
            "resnet18": "layer4",
        }[name]
    ]
    size = 224 if "vit" in name else 64
    model(batch(3, size))
    guide.loss_loc(TARGETS).backward()
    assert sum(p.grad is not None and bool(p.grad.any()) for p in model.parameters()) > 20


def test_fused_attention_and_hardsigmoid_are_named() -> None:
    model = models.mobilenet_v3_small(num_classes=4)
    guide = ExplanationGuidance(model, "features.4", target="all")
    model(batch(3, 64))
    guide.loss_loc(TARGETS).backward()
    assert "hardsigmoid" in repr(guide)
    transformer = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)
    nn.init.normal_(transformer.heads.head.weight)
    guide = ExplanationGuidance(transformer, "encoder.layers.encoder_layer_0.ln_1", target="all")
    transformer(batch(3, 32))
    guide.loss_loc(TARGETS).backward()
    assert "multi_head_attention_forward" in repr(guide)
    assert guide.attributions[guide.layers[0]].shape == (3, 4, 4)


def test_a_layer_of_zeros_gives_loss_one_and_no_gradient(model: nn.Module) -> None:
    nn.init.zeros_(model.head.weight)
    guide = ExplanationGuidance(model, "mix", target="all")
    model(batch())
    loss = guide.loss_loc(TARGETS)
    loss.backward()
    assert loss == 1 and all(
        p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters()
    )


def test_a_data_parallel_process_group_of_one(model: nn.Module, tmp_path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        single = copy.deepcopy(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        gradients = []
        for network in (wrapped, single):
            guide = ExplanationGuidance(network, "module.stem", target="all")
            assert guide.layers == ["stem"]
            (network(batch()).square().mean() + guide.loss_loc(TARGETS)).backward()
            inner = getattr(network, "module", network)
            gradients.append([p.grad for p in inner.parameters()])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)
        with pytest.raises(GuidanceError, match="static_graph"):
            ExplanationGuidance(
                nn.parallel.DistributedDataParallel(single, static_graph=True), "stem"
            )
    finally:
        torch.distributed.destroy_process_group()


def test_logits_that_do_not_depend_on_the_layer() -> None:
    class Detached(SmallCnn):
        def forward(self, images: Tensor) -> Tensor:
            self.mix(self.body(self.stem(images)))
            return self.head(images.mean((2, 3)).repeat(1, 2))

    model = Detached()
    guide = ExplanationGuidance(model, "mix")
    model(batch())
    with pytest.raises(LayerError, match="do not depend on layer 'mix'"):
        guide.loss_loc(TARGETS)
    with pytest.raises(LayerError, match="do not depend on layer 'mix'"):
        InputXGradient(model, "mix").attribute(batch(), 0)
    guide.remove()
    assert hooks(model) == 0


def test_silent_the_map_of_several_classes_is_their_mean(model: nn.Module) -> None:
    """`attributions` shows one map an image: of all its classes, and zero where there is none."""
    model.double().eval()
    images = batch(dtype=torch.float64)
    guide = ExplanationGuidance(model, "stem", target="all")
    model(images)
    guide.loss_loc(TARGETS)
    found = guide.attributions["stem"]
    of_class = [InputXGradient(model, "stem").attribute(images, k)[:, 0] for k in range(4)]
    expected = torch.stack(
        [of_class[2][0], torch.zeros(6, 6), (of_class[0][2] + of_class[3][2]) / 2]
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("score", ["log_prob", "sum_log_probs"])
def test_silent_probabilities_of_half_precision_logits_are_not_rounded(score: str) -> None:
    class Wide(SmallCnn):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).float()

    maps = []
    for model in (SmallCnn(num_classes=40), Wide(num_classes=40)):
        torch.manual_seed(1)
        model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
        guide = ExplanationGuidance(model.eval(), "stem", score=score, target="all")
        with torch.autocast("cpu", torch.bfloat16):
            model(batch())
        guide.loss_loc(TARGETS)
        maps.append(guide.attributions["stem"])
    assert maps[0].any()
    assert torch.equal(*maps)


@pytest.mark.parametrize("layers", [("input", "mix"), ("mix", "stem")])
def test_two_guides_leave_torchs_global_choices_alone(
    model: nn.Module, layers: tuple[str, str]
) -> None:
    guides = [ExplanationGuidance(model, layer) for layer in layers]
    seen = []
    model.head.register_forward_pre_hook(lambda *_: seen.append(attention_kernels()))
    before = attention_kernels()
    model(batch())
    for guide in guides:
        guide.remove()
    assert seen == [before]


def test_a_forward_that_was_interrupted_is_forgotten(model: nn.Module) -> None:
    guide = ExplanationGuidance(model, "stem", target="all")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.mix.register_forward_hook(interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            model(batch())
    handle.remove()
    model(batch())
    guide.loss_loc(TARGETS).backward()
    assert not _get_current_function_mode_stack()


def test_a_guides_own_forwards_do_not_disturb_what_waits_in_another(model: nn.Module) -> None:
    model.eval()
    integrated = IntegratedGradients(model, n_steps=2)
    first = ExplanationGuidance(model, "stem", attribution=integrated, target="all")
    second = ExplanationGuidance(model, "mix", target="all")
    model(batch())
    expected = second.loss_loc(TARGETS).detach()
    first.loss_loc(TARGETS)
    model(batch())
    first.loss_loc(TARGETS)
    first.attribute(batch() + 1, 0)
    InputXGradient(model, "stem").attribute(batch() + 1, 0)
    second.check(batch() + 1, TARGETS)
    assert torch.equal(second.loss_loc(TARGETS).detach(), expected)


def test_whatever_a_loss_raises_the_guide_lives_on(model: nn.Module) -> None:
    def broken(attribution: Tensor, mask: Tensor) -> Tensor:
        raise KeyError("mine")

    guide = ExplanationGuidance(model, "mix", loss=broken)
    model(batch())
    with pytest.raises(KeyError, match="mine"):
        guide.loss_loc(TARGETS)
    assert guide._tap.last is None and hooks(model) > 0


def test_an_empty_batch_gives_a_zero(model: nn.Module) -> None:
    model.eval()
    for target in ("sample", "all"):
        guide = ExplanationGuidance(model, "mix", target=target)
        model(batch()[:0])
        loss = guide.loss_loc([])
        loss.backward()
        assert loss == 0


def test_annotations_built_by_hand_have_a_slot_for_every_object(model: nn.Module) -> None:
    model.eval()
    padded = Annotations.from_targets(TARGETS)
    guide = ExplanationGuidance(model, "mix", target="all")
    values = []
    for annotations_ in (padded, Annotations(padded.boxes, padded.labels)):
        model(batch())
        values.append(guide.loss_loc(annotations_).detach())
    torch.testing.assert_close(values[0], values[1])


def test_check_reads_boxes_of_every_format(model: nn.Module) -> None:
    from torchvision import tv_tensors

    model.eval()
    box = tv_tensors.BoundingBoxes([[2, 2, 9, 9]], format="XYWH", canvas_size=(12, 12))
    target = [{"boxes": box, "labels": torch.tensor([1])}] * 3
    guide = ExplanationGuidance(model, "mix")
    model(batch())
    expected = float(guide.loss_loc(target).detach())
    assert guide.check(batch(), target).loss == pytest.approx(expected)


@pytest.mark.parametrize("operation", ["hardsigmoid", "attention", "relu"])
def test_what_is_replaced_cannot_be_checkpointed(operation: str) -> None:
    """It would be computed again in its fused form: a wrong gradient, or an error of torch's."""

    def segment(x: Tensor) -> Tensor:
        if operation == "attention":
            tokens = x.flatten(2).transpose(1, 2)
            mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
            return mixed.transpose(1, 2).reshape(x.shape)
        return getattr(nn.functional, operation)(x)

    class Checkpointed(SmallCnn):
        def forward(self, images: Tensor) -> Tensor:
            features = self.mix(self.stem(images))
            features = torch.utils.checkpoint.checkpoint(segment, features, use_reentrant=False)
            return self.head(features.mean((2, 3)))

    model = Checkpointed()
    guide = ExplanationGuidance(model, "stem", loss="rrr")
    if operation == "relu":
        model(batch())
        guide.loss_loc(TARGETS).backward()
        assert model.mix.weight.grad is not None
        return
    with pytest.raises(GuidanceError, match="runs inside a checkpointed segment"):
        model(batch())
    guide.remove()
    model(batch()).sum().backward()


def test_check_changes_no_statistics_of_a_checkpointed_model() -> None:
    model = timm.create_model("resnet10t", num_classes=4).train()
    model.set_grad_checkpointing(True)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with ExplanationGuidance(model, "layer2.0", target="all") as guide:
        assert guide.check(batch(3, 64), TARGETS).ok
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
