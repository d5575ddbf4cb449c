"""What a caller meant by his dict, labels and target: used, refused or told, never passed over."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from explainguide import Annotations, ExplainGuideWarning, ExplanationGuidance, collate
from explainguide.annotations.class_choice import choose_classes
from explainguide.annotations.forms import as_regions
from explainguide.annotations.labels import mark_soft, to_logits
from explainguide.errors import AnnotationError, ExplainGuideError, OptionError, ShapeError
from explainguide.guidance.selfcheck import on_host

from .networks import SmallCnn, batch, boxes

BOX = torch.tensor([[4.0, 4, 9, 8]])
ONE = torch.tensor([1])
MASK = torch.zeros(1, 12, 12, dtype=torch.bool)
MASK[0, 4:8, 4:9] = True


def slow_energy(model: SmallCnn, images: Tensor, region: Tensor, classes: list[int]) -> Tensor:
    """1 - share of the positive input times gradient inside the region, from autograd alone."""
    features = model.stem(images)
    mixed = model.mix(nn.functional.gelu(model.body(features)))
    logits = model.head(nn.functional.silu(mixed).mean((2, 3)))
    (slope,) = torch.autograd.grad(sum(logits[i, k] for i, k in enumerate(classes)), features)
    maps = (features * slope).sum(1, keepdim=True)
    maps = nn.functional.interpolate(maps, region.shape[-2:], mode="bilinear")[:, 0].clamp(min=0)
    return 1 - (maps * region).sum((1, 2)) / maps.sum((1, 2))


@pytest.fixture
def guided():
    model = SmallCnn().eval()
    guide = ExplanationGuidance(model, "stem", reduction="none")

    def loss_loc(annotations: Any, target: Any = None) -> Tensor:
        model(batch())
        return guide.loss_loc(annotations, target)

    yield model, loss_loc
    guide.remove()


def test_masks_alone_are_used(guided) -> None:
    model, loss_loc = guided
    found = loss_loc([{"masks": MASK, "labels": ONE}] * 3)
    torch.testing.assert_close(found, slow_energy(model, batch(), MASK[[0, 0, 0]].float(), [1] * 3))


@pytest.mark.parametrize(
    "masks",
    [MASK, MASK[:, None], MASK.float() * 0.9, MASK.numpy(), MASK.tolist(), tv_tensors.Mask(MASK)],
    ids=["bool", "M1HW", "soft", "numpy", "list", "tv_tensor"],
)
def test_masks_alone_in_every_form(masks: Any) -> None:
    found = Annotations.from_targets([{"masks": masks, "labels": [1]}, None])
    assert found.boxes.tolist() == [[[4, 4, 9, 8]], [[0, 0, 0, 0]]]
    assert torch.equal(found.region(torch.tensor([1, 1]), (12, 12))[0], MASK[0].float())
    without = found.without_masks().region(torch.tensor([1, 1]), (12, 12))
    assert torch.equal(without[0], MASK[0].float())  # this mask is a box
    assert found.canvas == (12, 12)


def test_boxes_around_masks_end_one_past_torchvisions() -> None:
    masks = torch.rand(20, 9, 7) > 0.9
    masks = masks[masks.flatten(1).any(1)]
    found = Annotations.from_targets([{"masks": masks, "labels": torch.zeros(len(masks)).long()}])
    assert torch.equal(found.boxes[0], masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1]))


def test_masks_alone_ask_nothing_of_the_device() -> None:
    target = {
        "masks": torch.zeros(2, 6, 6, dtype=torch.bool, device="meta"),
        "labels": torch.zeros(2, dtype=torch.int64, device="meta"),
    }
    found = Annotations.from_targets([target, None], first_label={1: 0, 5: 3})
    assert found.boxes.shape == (2, 2, 4)
    assert found.masks is not None


@pytest.mark.parametrize("with_boxes", [False, True])
def test_a_mask_without_pixels_is_told(with_boxes: bool) -> None:
    target = {"masks": torch.cat([MASK * False, MASK]), "labels": torch.tensor([2, 1])}
    if with_boxes:
        target["boxes"] = BOX.repeat(2, 1)
    with pytest.warns(ExplainGuideWarning, match="no pixel, and the object is left out"):
        found = Annotations.from_targets([target])
    assert found.labels.tolist() == [[1]]
    with pytest.warns(ExplainGuideWarning, match="no pixel"):
        found = Annotations.from_targets([{"masks": MASK * False, "labels": ONE}])
    assert not found.region(torch.tensor([-1]), (12, 12)).any()


REFUSED: list[tuple[Any, list[str]]] = [
    ({}, ["image 0 has an empty dict", "Pass None"]),
    ({"bboxes": BOX, "labels": ONE}, ["'bboxes', 'labels'", "Did you mean 'boxes' for 'bboxes'?"]),
    ({"bbox": BOX, "category_id": ONE}, ["'boxes' for 'bbox'", "format='XYWH'"]),
    ({"box": BOX, "labels": ONE}, ["'boxes' for 'box'"]),
    ({"boxes_xyxy": BOX, "labels": ONE}, ["'boxes' for 'boxes_xyxy'"]),
    ({"Boxes": BOX, "labels": ONE}, ["'boxes' for 'Boxes'"]),
    ({"bxoes": BOX, "labels": ONE}, ["'boxes' for 'bxoes'"]),
    ({"gt_masks": MASK, "gt_labels": ONE}, ["'masks' for 'gt_masks'"]),
    ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, ["object 0", "polygon's list", "[[x1, y1, x2"]),
    ({"polygons": [[[1, 2, 3, 4, 5, 6]]]}, ["'segmentation' for 'polygons'", "or RLE, an object"]),
    ({"box_labels": ONE}, ["no boxes and no masks. 'boxes' or"]),
    ({"label": ONE}, ["has 'label', but no boxes and no masks"]),
    ({"labels": ONE}, ["Labels alone do not say where"]),
    ({"labels": []}, ["Labels alone do not say where"]),
    ({"image_id": 7}, ["torchvision's COCO wrapper", "pass None"]),
    ({"image_id": 7, "area": [2.0]}, ["'image_id', 'area'"]),
    ({"boxes": None, "labels": None}, ["Pass None in place of the dict"]),
    ({"annotation": {"object": []}}, ["VOCDetection's own form", "wrap_dataset_for_transforms_v2"]),
    ([{"bbox": [1, 2, 3, 4], "category_id": 3}], ["has a list", "COCO's own form"]),
    ({"boxes": BOX, "label": ONE}, ["boxes but no 'labels'", "Did you mean 'labels' for 'label'?"]),
    ({"boxes": BOX, "class_labels": ONE}, ["'labels' for 'class_labels'"]),
    ({"masks": MASK, "category_id": ONE}, ["masks but no 'labels'", "'labels' for 'category_id'"]),
    (
        {"boxes": BOX, "labels": ONE, "mask": MASK},
        ["'mask' beside 'boxes'", "Did you mean 'masks'?"],
    ),
    ({"boxes": torch.zeros(0, 4), "labels": ONE}, ["0 boxes but labels of shape (1,)"]),
    (
        {"boxes": torch.zeros(0, 4), "labels": [], "masks": MASK},
        ["0 boxes but masks of shape (1, 12"],
    ),
    ({"masks": torch.zeros(0, 12, 12), "labels": ONE}, ["0 masks but labels of shape (1,)"]),
    ({"boxes": BOX[0], "labels": ONE}, ["boxes of shape (4,)", "`boxes[None]`"]),
    ({"boxes": torch.tensor(3.0), "labels": ONE}, ["boxes of shape ()"]),
    ({"masks": MASK[0], "labels": ONE}, ["masks of shape (12, 12)", "`masks[None]`"]),
    ({"masks": torch.tensor(True), "labels": ONE}, ["masks of shape ()"]),
    ({"masks": MASK.byte() * 255, "labels": ONE}, ["dtype torch.uint8", "`mask > 0`"]),
    ({"masks": MASK * 255.0, "labels": ONE}, ["the mask holds 255", "in [0, 1]"]),
    ({"masks": MASK * torch.nan, "labels": ONE}, ["the mask holds nan"]),
    ({"masks": MASK.expand(2, -1, -1), "labels": ONE}, ["2 masks but labels of shape (1,)"]),
    ({"boxes": BOX, "labels": 1}, ["1 boxes but labels of shape ()"]),
    ({"boxes": BOX, "labels": torch.tensor([True])}, ["dtype torch.bool"]),
    ({"boxes": BOX, "labels": torch.tensor([[0, 1]])}, ["labels of shape (1, 2)"]),
    ({"boxes": BOX, "labels": ["dog"]}, ["labels that make no tensor", "class indices for names"]),
    ({"boxes": [[1, 2, 3, 4], [1, 2]], "labels": [0, 1]}, ["boxes that make no tensor"]),
]


@pytest.mark.parametrize(("target", "parts"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_is_not_understood_is_refused(target: Any, parts: list[str]) -> None:
    with pytest.raises(ExplainGuideError) as error:
        Annotations.from_targets([target])
    assert str(error.value).startswith("Annotations.from_targets: image 0")
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    "target",
    [None, {"boxes": []}, {"boxes": torch.zeros(0, 4), "labels": []}, {"masks": MASK[:0]}],
    ids=str,
)
def test_only_none_and_nothing_drawn_mean_not_annotated(target: Any, guided) -> None:
    _, loss_loc = guided
    assert loss_loc([target, boxes((4, 4, 9, 8), labels=(1,)), None])[[0, 2]].tolist() == [0, 0]


def test_what_torchvisions_references_carry_is_fine_beside_boxes() -> None:
    more = {"image_id": 3, "area": [20.0], "iscrowd": [1], "orig_size": (20, 20), "size": (12, 12)}
    more |= {
        "keypoints": torch.zeros(1, 3),
        "difficult": [0],
        "names": ["cat"],
        "bbox": [[4, 4, 5, 4]],
    }
    more |= {
        "segmentation": [[[4, 4, 9, 4, 9, 8]]],
        "category_id": [7],
        "masks": None,
        "mask": None,
    }
    target = {"boxes": BOX.tolist(), "labels": np.array([1]), **more}
    found = Annotations.from_targets([target], canvas=(12, 12))
    assert torch.equal(found.boxes[0], BOX)
    assert found.labels.tolist() == [[1]]


def test_a_box_mostly_outside_is_told() -> None:
    inside, corner = boxes((-2, 0, 6, 6), labels=(1,)), boxes((8, 8, 24, 24), labels=(1,))
    Annotations.from_targets([inside], canvas=(12, 12))
    with pytest.warns(
        ExplainGuideWarning, match="more outside the image than in it; it is clipped"
    ):
        Annotations.from_targets([corner], canvas=(12, 12))


@pytest.mark.parametrize("fraction", [-0.01, -1, float("nan"), float("inf"), -float("inf")])
def test_dilation_only_grows(fraction: float) -> None:
    found = Annotations.from_targets([boxes((4, 4, 9, 8), labels=(0,))])
    with pytest.raises(OptionError, match=r"^Annotations.dilate: fraction is (-|nan|inf)"):
        found.dilate(fraction)


# --- labels that do not count from 0


def seen(*labels: int) -> dict[str, Tensor]:
    return {"boxes": BOX.repeat(len(labels), 1), "labels": torch.tensor(labels)}


def test_a_mapping_is_pythons_own() -> None:
    mapping = {90: 2, 1: 0, 18: 1, 44: 1}
    labels = torch.tensor([[1, 18, 44], [90, 1, -1]])
    slow = [[mapping.get(k, -1) for k in row] for row in labels.tolist()]
    assert to_logits(labels, mapping, where="x: a box").tolist() == slow
    assert to_logits(labels.to("meta"), mapping, where="x: a box").shape == labels.shape
    assert to_logits(torch.tensor([1, 4, -1]), 1, where="x: a box").tolist() == [0, 3, -1]


@pytest.mark.parametrize("first_label", [1, {1: 0, 2: 1, 3: 2, 4: 3}])
def test_the_same_classes_wherever_the_option_is_given(first_label: Any) -> None:
    model, images = SmallCnn().eval(), batch()
    raw, plain = [seen(4), None, seen(1, 1)], [seen(3), None, seen(0, 0)]
    padded = Annotations.from_targets(raw, first_label=first_label)
    items = [(image, 0, target) for image, target in zip(images, raw, strict=True)]
    _, _, collated = partial(collate, first_label=first_label)(items)
    assert padded.labels.tolist() == collated.labels.tolist() == [[3, -1], [-1, -1], [0, 0]]
    assert padded.largest_label == 3
    with ExplanationGuidance(model, "stem", reduction="none") as guide:
        model(images)
        right = guide.loss_loc(plain)
        model(images)
        assert torch.equal(guide.loss_loc(padded), right)
    with ExplanationGuidance(model, "stem", reduction="none", first_label=first_label) as guide:
        for annotations in (raw, padded, collated, Annotations.from_targets(raw)):
            model(images)
            assert torch.equal(guide.loss_loc(annotations), right)
            assert guide.check(images, annotations).loss == pytest.approx(right.mean().item())


def test_moved_and_checked_annotations_remember_their_option() -> None:
    found = (
        Annotations.from_targets([seen(4)], canvas=(12, 12), first_label=1).to("cpu").dilate(0.1)
    )
    assert found.first_label == on_host(found).first_label == 1
    assert on_host(found).labels.tolist() == [[3]]
    masked = Annotations.from_targets([{"masks": MASK, "labels": ONE}], first_label=1)
    assert torch.equal(on_host(masked).masks, masked.masks)


LABELS: list[tuple[Any, Any, Any, list[str]]] = [
    (AnnotationError, 0, [seen(4)], ["label 4", "4 classes", "pass first_label=1", "0 to 3"]),
    (AnnotationError, 0, [seen(18)], ["label 18", "first_label={id: logit, ...}"]),
    (AnnotationError, 1, [seen(5)], ["label 4", "after first_label=1"]),
    (AnnotationError, 1, [seen(0)], ["label 0, but first_label is 1", "the background"]),
    (AnnotationError, 3, [seen(2)], ["label 2, but first_label is 3", "labels below 3"]),
    (
        AnnotationError,
        {1: 0, 3: 1},
        [seen(2)],
        ["label 2, which first_label does not name", "1, 3 are"],
    ),
    (AnnotationError, {1: 9}, [seen(1)], ["label 9", "what first_label makes of it"]),
    (AnnotationError, 1, Annotations.from_targets([seen(0)]), ["loss_loc: an object has label 0"]),
    (
        OptionError,
        1,
        Annotations.from_targets([seen(2)], first_label=2),
        ["first_label=2, but the guide with 1", "Annotations that were built without one."],
    ),
]


@pytest.mark.parametrize(("kind", "first_label", "annotations", "parts"), LABELS)
def test_labels_that_mean_no_logit(
    kind: Any, first_label: Any, annotations: Any, parts: Any
) -> None:
    with ExplanationGuidance(model := SmallCnn(), "mix", first_label=first_label) as guide:
        model(batch(1))
        with pytest.raises(kind) as error:
            guide.loss_loc(annotations)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    "wrong", [-1, 1.0, True, "1", None, {}, {"dog": 0}, {1: -1}, {1: 0.5}], ids=str
)
def test_what_first_label_may_be(wrong: Any) -> None:
    model = SmallCnn()
    for build in (
        partial(ExplanationGuidance, model, "mix"),
        partial(Annotations.from_targets, [None]),
        partial(collate, [(batch(1)[0], 0, None)]),
    ):
        with pytest.raises(OptionError, match=r"first_label (is|holds) "):
            build(first_label=wrong)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- boxes and image labels


@pytest.mark.parametrize("target", [3, [2, 0, 1], torch.tensor([3, 0, 1]), "multi-hot"], ids=str)
def test_boxes_that_no_image_label_names_are_told(target: Any, guided) -> None:
    _, loss_loc = guided
    if target == "multi-hot":
        target = torch.eye(4)[[3, 0, 1]]
    with pytest.warns(
        ExplainGuideWarning, match="no image of a batch has a box with the image's own"
    ):
        found = loss_loc([seen(1, 1), None, seen(2)], target)
    assert not found.any()


def test_labels_one_too_high_are_told_with_the_option(guided) -> None:
    _, loss_loc = guided
    with pytest.warns(ExplainGuideWarning, match="pass first_label=1"):
        loss_loc([seen(3), None, seen(2, 2)], [2, 0, 1])
    items = [(image, k, seen(k + 1)) for image, k in zip(batch(), (2, 0, 1), strict=True)]
    with pytest.warns(ExplainGuideWarning, match="^collate: .* pass first_label=1"):
        collate(items)
    hot = [(image, torch.eye(4)[k], target) for image, k, target in items]
    with pytest.warns(ExplainGuideWarning, match="^collate: .* pass first_label=1"):
        collate(hot)
    collate(items, first_label=1)
    collate(items[:1])  # one image may well show something else


def test_one_box_of_an_images_own_class_is_enough(guided) -> None:
    _, loss_loc = guided
    loss_loc([seen(3), None, seen(2, 1)], [0, 0, 1])
    loss_loc([None] * 3, [0, 0, 1])


# --- soft targets

HARD = torch.eye(4)[[1, 0, 3]]
SOFT = HARD * 0.9 + 0.025
TARGETS_REFUSED: list[tuple[Any, Any, list[str]]] = [
    (OptionError, SOFT, ["target holds 0.025", "label smoothing, mixup and cutmix", "(N,)"]),
    (OptionError, (0.7 * HARD + 0.3 * HARD.roll(1, 0)).double(), ["soft labels"]),
    (OptionError, SOFT.tolist(), ["soft labels"]),
    (OptionError, -HARD, ["target holds -1", "read as multi-hot"]),
    (OptionError, HARD.long() * 3, ["target holds 3", "0 and 1 are allowed"]),
    (OptionError, HARD * torch.nan, ["target holds nan"]),
    (ShapeError, torch.tensor([[1], [0], [3]]), ["(3, 1)", "`target[:, 0].long()`"]),
    (ShapeError, torch.eye(5)[:3], ["(3, 5)", "(3, 4)", "one column a class"]),
    (ShapeError, HARD[:2], ["(2, 4)", "(3, 4)"]),
    (OptionError, torch.tensor([1.0, 0.0, 3.0]), ["dtype torch.float32"]),
    (OptionError, ["cat", "dog", "cat"], ["target makes no tensor", "class indices for names"]),
]


@pytest.mark.parametrize(("kind", "target", "parts"), TARGETS_REFUSED)
def test_targets_that_are_no_labels(kind: Any, target: Any, parts: list[str], guided) -> None:
    _, loss_loc = guided
    with pytest.raises(kind) as error:
        loss_loc(MASK.expand(3, -1, -1), target)
    assert str(error.value).startswith("ExplanationGuidance.loss_loc: target ")
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    "form", [Tensor.bool, Tensor.long, Tensor.half, Tensor.tolist, Tensor.numpy]
)
def test_multi_hot_in_every_form(form: Any, guided) -> None:
    model, loss_loc = guided
    found = loss_loc(MASK.expand(3, -1, -1), form(HARD))
    right = slow_energy(model, batch(), MASK[[0, 0, 0]].float(), [1, 0, 3])
    torch.testing.assert_close(found, right)


def test_soft_rows_are_not_plausible_where_no_value_is_read() -> None:
    losses = torch.ones(3, requires_grad=True)
    mixed = torch.cat([HARD[:1], SOFT[1:2], HARD[2:]])
    assert mark_soft(losses, mixed).isnan().tolist() == [False, True, False]
    assert torch.equal(mark_soft(losses, HARD), losses)
    assert mark_soft(losses.to("meta"), SOFT.to("meta")).shape == (3,)
    for other in (None, torch.tensor([0, 1, 2]), HARD.bool()):
        assert mark_soft(losses, other) is losses


def test_the_loss_of_a_soft_row_is_nan_where_no_value_is_read(guided, monkeypatch) -> None:
    model, loss_loc = guided
    monkeypatch.setattr("explainguide.guidance.objective.check_multi_hot", lambda *_, **__: None)
    loss = loss_loc(MASK.expand(3, -1, -1), torch.cat([HARD[:1], SOFT[1:2], HARD[2:]]))
    assert loss.isnan().tolist() == [False, True, False]
    loss.sum().backward()  # and no weight is spoilt
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


# --- masks as tensors


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 1, 12, 12), (3, 4, 12, 12)])
@pytest.mark.parametrize("value", [255.0, -0.5, float("nan")])
def test_masks_outside_their_range_are_refused(shape: Any, value: float, guided) -> None:
    _, loss_loc = guided
    masks = torch.zeros(shape)
    masks[1, ..., 3, 3] = value
    with pytest.raises(AnnotationError, match=rf"loss_loc: the mask holds {value:g}\. Use"):
        loss_loc(masks, 1)


def test_soft_masks_of_classes_are_refused(guided) -> None:
    _, loss_loc = guided
    edges = torch.zeros(3, 4, 12, 12)
    edges[:, 1, 4:8, 4:9] = 1
    edges[:, 1, 3] = 0.2  # as a bilinear resize leaves it
    assert bool((loss_loc(edges) > 0).all())
    soft = (torch.randn(3, 4, 12, 12) * 0.1).softmax(1)
    with pytest.raises(
        AnnotationError, match=r"class 0 of image 0 reaches only 0\.\d+: soft masks"
    ):
        loss_loc(soft)


def test_where_no_value_is_read_a_faint_class_is_absent() -> None:
    masks = torch.full((3, 4, 12, 12), 0.2)
    masks[:, 2, 5, 5] = 0.9
    found = as_regions((masks >= 0.5).float(), torch.zeros(3, 4), (12, 12))
    device = type(found)(masks)  # as after the move to a device
    assert torch.equal(device.presence(4), found.presence(4))
    choice = choose_classes("all", device, torch.zeros(3, 4), None, negatives=0.0, generator=None)
    assert choice.classes[0].tolist() == [2, 2, 2]
