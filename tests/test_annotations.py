"""Annotations: every form, the pixel rule, padding, draws, and what the device never has to say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from explainguide import Annotations, LimitedAnnotations, collate
from explainguide.annotations import rasterize_boxes
from explainguide.annotations.class_choice import choose_classes
from explainguide.annotations.forms import as_regions
from explainguide.annotations.subset import draw_annotated
from explainguide.errors import AnnotationError, OptionError

from .networks import TARGETS, boxes


def slow_mask(rows: list[list[float]], size: tuple[int, int]) -> Tensor:
    """The contract's rule, a pixel at a time."""
    mask = torch.zeros(size)
    for x1, y1, x2, y2 in rows:
        for i in range(size[0]):
            for j in range(size[1]):
                covers = math.floor(x1) <= j < math.ceil(x2) and math.floor(y1) <= i < math.ceil(y2)
                mask[i, j] = max(mask[i, j], float(covers))
    return mask


def test_boxes_cover_the_pixels_of_the_rule() -> None:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(5, 4, 2, 2, generator=generator) * 16 - 3
    rows = torch.cat([corners.amin(2), corners.amax(2)], -1)
    rows[0, 0] = torch.tensor([2.0, 3.0, 2.5, 3.5])
    chosen = torch.rand(2, 5, 4, generator=generator).round()
    found = rasterize_boxes(rows, chosen, (10, 9))
    for s in range(2):
        for n in range(5):
            kept = rows[n][chosen[s, n] > 0].tolist()
            assert torch.equal(found[s, n], slow_mask(kept, (10, 9)))


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("XYXY", [2.0, 3.0, 8.0, 7.0]),
        ("XYWH", [2.0, 3.0, 6.0, 4.0]),
        ("CXCYWH", [5.0, 5.0, 6.0, 4.0]),
        ("CXCYWHR", [5.0, 5.0, 6.0, 4.0, 0.0]),
        ("XYXYXYXY", [2.0, 3.0, 8.0, 3.0, 8.0, 7.0, 2.0, 7.0]),
    ],
)
def test_every_format_of_tv_tensors(form: str, row: list[float]) -> None:
    if form not in tv_tensors.BoundingBoxFormat.__members__:
        pytest.skip("this torchvision has no rotated boxes")
    box = tv_tensors.BoundingBoxes([row], format=form, canvas_size=(12, 12))
    found = Annotations.from_targets([{"boxes": box, "labels": torch.tensor([1])}])
    torch.testing.assert_close(found.boxes[0], torch.tensor([[2.0, 3.0, 8.0, 7.0]]))
    assert found.canvas == (12, 12)
    assert type(found.boxes) is Tensor


def test_padding_and_presence() -> None:
    found = Annotations.from_targets(TARGETS)
    assert found.boxes.shape == (3, 3, 4)
    assert found.labels.tolist() == [[2, -1, -1], [-1, -1, -1], [0, 3, 0]]
    assert found.most_classes == 2
    assert found.largest_label == 3
    assert found.presence(4).int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    assert len(found) == 3


def test_regions_are_unions_of_one_class() -> None:
    found = Annotations.from_targets(TARGETS)
    region = found.region(torch.tensor([[2, 0, 0], [-1, -1, -1]]), (12, 12))
    assert torch.equal(region[0, 0], slow_mask([[1, 2, 7, 9]], (12, 12)))
    assert not region[:, 1].any()
    assert torch.equal(region[0, 2], slow_mask([[0, 0, 5, 5], [3, 1, 9, 6]], (12, 12)))
    every = [[0, 0, 5, 5], [3, 1, 9, 6], [6, 6, 12, 11]]
    assert torch.equal(region[1, 2], slow_mask(every, (12, 12)))


def test_masks_take_the_place_of_boxes_and_boxes_fill_in() -> None:
    mask = torch.zeros(1, 12, 12).bool()
    mask[0, 4, 4] = True
    with_mask = {**boxes((1, 2, 7, 9), labels=(2,)), "masks": mask}
    found = Annotations.from_targets([with_mask, TARGETS[2]])
    region = found.region(torch.tensor([2, 3]), (12, 12))
    assert torch.equal(region[0], mask[0].float())
    assert torch.equal(region[1], slow_mask([[6, 6, 12, 11]], (12, 12)))
    alone = found.without_masks().region(torch.tensor([2, 3]), (12, 12))
    assert torch.equal(alone[0], slow_mask([[1, 2, 7, 9]], (12, 12)))


def test_dilation_grows_each_side_by_whole_pixels() -> None:
    found = Annotations.from_targets([boxes((4, 4, 9, 8), labels=(0,))]).dilate(0.25)
    assert found.boxes[0, 0].tolist() == [3, 3, 10, 9]  # int(1.25), int(1.0)
    with pytest.raises(OptionError, match="fraction is -1"):
        found.dilate(-1)


def test_dilation_of_the_size_grows_half_as_much_on_each_side() -> None:
    found = Annotations.from_targets([boxes((2, 3, 10, 9), labels=(0,))])
    assert found.dilate(0.5).boxes[0, 0].tolist() == [-2, 0, 14, 12]  # 8 x 6 becomes 16 x 12
    assert torch.equal(found.dilate(0.5, per="side").boxes, found.dilate(0.5).boxes)
    assert found.dilate(0.5, per="box").boxes[0, 0].tolist() == [0, 2, 12, 10]  # 12 x 8: int(1.5)
    for fraction in (0.1, 0.25, 0.5, 1.0, 2.0):
        twice, once = found.dilate(fraction, per="box"), found.dilate(fraction / 2, per="side")
        assert torch.equal(twice.boxes, once.boxes)
    with pytest.raises(
        OptionError, match=r"^Annotations.dilate: unknown per 'sides'. Did you mean"
    ):
        found.dilate(0.5, per="sides")


def test_nothing_is_left_of_a_batch_without_annotation() -> None:
    found = Annotations.from_targets([None, {"boxes": torch.zeros(0, 4), "labels": []}])
    assert not found.presence(4).any()
    assert found.region(torch.tensor([0, 1]), (5, 6)).shape == (2, 5, 6)


def test_collate_stacks_and_leaves_out_what_could_not_be_read() -> None:
    image = torch.zeros(3, 12, 12)
    images, labels, annotations = collate([(image, 1, TARGETS[0]), None, (image, 0, None)])
    assert images.shape == (2, 3, 12, 12)
    assert labels.tolist() == [1, 0]
    assert annotations.labels.tolist() == [[2], [-1]]
    _, multi_hot, _ = collate([(image, torch.tensor([0.0, 1.0]), None)])
    assert multi_hot.shape == (1, 2)
    with pytest.raises(AnnotationError, match="none of the 2 images"):
        collate([None, None])


def test_collate_of_items_with_a_group() -> None:
    image = torch.zeros(3, 12, 12)
    *_, groups = collate([(image, 1, TARGETS[0], 3), None, (image, 0, None, torch.tensor(1))])
    assert groups.dtype == torch.int64
    assert groups.tolist() == [3, 1]
    limited = LimitedAnnotations([(image, 1, TARGETS[0], 3)] * 4, 0.25)
    assert [item[3] for item in limited] == [3] * 4
    assert sum(item[2] is not None for item in limited) == 1


@pytest.mark.parametrize(
    ("items", "text"),
    [
        (
            [(1, 1, None, 0), (1, 1, None)],
            "collate: some items of a batch have a group behind the annotation, and others have none. "
            "Return a group for each image. All or none is allowed.",
        ),
        (
            [(torch.zeros(3, 4, 4), 1, None, 0.5)],
            "collate: the groups of a batch have shape (1,) and dtype torch.float32. Give the index of a "
            "group, as groups.index(name). An int an image is allowed.",
        ),
        (
            [(torch.zeros(3, 4, 4), 1, None, "land")],
            "collate: item 0 of a batch has groups that make no tensor: 'land'. Give the index of a "
            "group, as groups.index(name). An int is allowed.",
        ),
        (
            [(torch.zeros(3, 4, 4), 1, None, 0, 0)],
            "collate: item 0 of a batch is a tuple of 5. Return image, labels, annotation; None for an "
            "image without annotation. Three things an item are allowed, and a group as a fourth.",
        ),
    ],
)
def test_collate_refuses_groups_that_are_none(items: list[Any], text: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        collate(items)
    assert str(caught.value) == text


def test_a_fixed_fraction_keeps_its_annotation() -> None:
    data = [(torch.zeros(3, 2, 2), i, TARGETS[0]) for i in range(100)]
    small, large = (LimitedAnnotations(data, f, seed=3) for f in (0.1, 0.3))
    assert small.kept.sum() == 10
    assert large.kept.sum() == 30
    assert not (small.kept & ~large.kept).any()
    assert all((small[i][2] is not None) == bool(small.kept[i]) for i in range(100))
    assert torch.equal(small.kept, LimitedAnnotations(data, 0.1, seed=3).kept)
    assert not torch.equal(small.kept, LimitedAnnotations(data, 0.1, seed=4).kept)
    assert LimitedAnnotations(data, 0.001).kept.sum() == 1
    with pytest.raises(OptionError, match="fraction is 10"):
        LimitedAnnotations(data, 10)
    assert torch.equal(small.kept, draw_annotated(100, 0.1, seed=3))  # as annotated= of data sets


def draw(regions, target=None, mode="sample", negatives=0.0, count=600):
    logits = torch.zeros(3, 4)
    generator = torch.Generator().manual_seed(0)
    parsed = as_regions(regions, logits, (12, 12))
    return [
        choose_classes(mode, parsed, logits, target, negatives=negatives, generator=generator)
        for _ in range(count)
    ]


def test_the_draw_is_uniform_over_distinct_classes() -> None:
    choices = draw(TARGETS)
    third = torch.stack([c.classes[0, 2] for c in choices])
    assert set(third.tolist()) == {0, 3}
    assert 0.4 < float((third == 0).float().mean()) < 0.6  # two boxes of class 0 count once
    assert all(c.valid[0].tolist() == [True, False, True] for c in choices)


def test_negatives_are_drawn_at_their_rate_from_absent_classes() -> None:
    choices = draw(TARGETS, negatives=0.25)
    negative = torch.stack([c.regions[0] == -1 for c in choices]).float().mean(0)
    assert (negative > 0.15).all()
    assert (negative < 0.35).all()
    for c in choices:
        if c.regions[0, 2] == -1:
            assert int(c.classes[0, 2]) in (1, 2)


def test_all_classes_have_a_slot() -> None:
    (choice,) = draw(TARGETS, mode="all", count=1)
    assert choice.classes.shape == (2, 3)
    assert choice.valid.tolist() == [[True, False, True], [False, False, True]]
    assert choice.classes[:, 2].tolist() == [0, 3]


def test_multi_hot_labels_limit_the_draw() -> None:
    labels = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1]]).float()
    third = {int(c.classes[0, 2]) for c in draw(TARGETS, labels, count=30)}
    assert third == {3}  # class 1 has no box, class 0 no label


def test_annotations_move_as_a_whole() -> None:
    mask = torch.ones(1, 12, 12).bool()
    found = Annotations.from_targets([{**boxes((1, 2, 7, 9), labels=(2,)), "masks": mask}])
    moved = found.to("meta")
    assert {moved.boxes.device.type, moved.labels.device.type, moved.masks.device.type} == {"meta"}
    assert moved.canvas == found.canvas
    assert moved.largest_label == 2


def test_no_value_is_read_on_a_device() -> None:
    """On the meta device every read of a value raises, as a synchronisation would under CUDA."""
    target = {
        "boxes": torch.zeros(2, 4, device="meta"),
        "labels": torch.zeros(2, dtype=torch.int64, device="meta"),
    }
    found = Annotations.from_targets([target, None, target], canvas=(12, 12))
    logits = torch.zeros(3, 4, device="meta")
    regions = as_regions(found, logits, (12, 12))
    for mode in ("sample", "all", "predicted"):
        choice = choose_classes(mode, regions, logits, None, negatives=0.0, generator=None)
        assert regions.region(choice.regions, (12, 12)).shape[1:] == (3, 12, 12)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            [(torch.rand(3, 4, 4), "cat", None)],
            r"item 0 .* labels that make no tensor: 'cat'. Give the",
        ),
        (
            [(torch.rand(3, 4, 4), 1)],
            "item 0 of a batch is a tuple of 2. Return image, labels, annotat",
        ),
        ([{"image": torch.rand(3, 4, 4)}], "item 0 of a batch is a dict. Return image, labels"),
        (
            [(torch.rand(3, 4, 4), 1, None), (torch.rand(3, 4, 6), 1, None)],
            r"the images of a batch have shapes \(3, 4, 4\) and \(3, 4, 6\). Resize them",
        ),
        ([(Image.new("RGB", (4, 4)), 1, None)], "images that make no tensor: a Image. Resize them"),
        (
            [
                (torch.rand(3, 4, 4), torch.ones(2), None),
                (torch.rand(3, 4, 4), torch.ones(3), None),
            ],
            r"the labels of a batch have shapes \(2,\) and \(3,\). Give",
        ),
    ],
)
def test_what_makes_no_batch(items: list, message: str) -> None:
    with pytest.raises(AnnotationError, match=f"collate: .*{message}"):
        collate(items)


@pytest.mark.parametrize("fraction", ["a", None, True, float("nan"), -0.5])
def test_boxes_grow_by_a_number(fraction: object) -> None:
    batch = Annotations.from_targets(TARGETS)
    with pytest.raises(OptionError, match=r"Annotations.dilate: fraction is .*Use 0.25"):
        batch.dilate(fraction)
