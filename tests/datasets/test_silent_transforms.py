"""No silent wrong box after transforms: formats that are lost, steps that change what boxes are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2

from explainguide.datasets.items import check_transforms, make_annotation, transform_item
from explainguide.errors import OptionError

SIZE = (40, 60)
BOXES = [[0, 0, 10, 10], [20, 10, 50, 35]]
FLIPPED = [[50, 0, 60, 10], [10, 10, 40, 35]]  # 60 - x, by hand


def item(boxes: Any = BOXES, masks: bool = False) -> tuple[Any, Any]:
    xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    drawn = torch.ones(len(xyxy), *SIZE) if masks else None
    labels = torch.arange(len(xyxy)) + 300
    image = tv_tensors.Image(torch.zeros(3, *SIZE, dtype=torch.uint8))
    return image, make_annotation(xyxy, labels, SIZE, drawn)


def run(transforms: Any, **kwargs: Any) -> Any:
    return transform_item(check_transforms(transforms), *item(**kwargs))[1]


def pure(image: Any, target: Any) -> Any:
    return image, {**target, "boxes": target["boxes"].as_subclass(Tensor)}


def rows(image: Any, target: Any) -> Any:
    keep = torch.tensor([1])
    return image, {"boxes": target["boxes"][keep], "labels": target["labels"][keep]}


class Preset:
    """As in torchvision's references: an object of one's own around a pipeline."""

    def __init__(self, *steps: Any) -> None:
        self.inside = v2.Compose(steps)

    def __call__(self, image: Any, target: Any) -> Any:
        return self.inside(image, target)


FLIP, PURE = v2.RandomHorizontalFlip(1.0), v2.ToPureTensor()


@pytest.mark.parametrize("name", ["CXCYWH", "XYWH", "XYXY"])
@pytest.mark.parametrize(
    "build",
    [
        lambda to: v2.Compose([FLIP, to, PURE]),
        lambda to: v2.Compose([to, FLIP, PURE]),
        lambda to: v2.Compose([FLIP, v2.Compose([to, v2.Compose([PURE])])]),
        lambda to: v2.Compose([FLIP, v2.RandomApply([to], p=1.0), PURE]),
        lambda to: v2.RandomApply([FLIP, to, PURE], p=1.0),
        lambda to: v2.RandomChoice([v2.Compose([FLIP, to, PURE])]),
        lambda to: v2.Compose([FLIP, to, pure]),
        lambda to: Preset(FLIP, to, PURE),
        lambda to: v2.Compose([Preset(FLIP, to), PURE]),
        lambda to: v2.Compose([FLIP, to, PURE, v2.ToDtype(torch.float32, scale=True)]),
        lambda to: Preset(FLIP, Preset(to, PURE), v2.Lambda(lambda x: x.clone(), Tensor)),
    ],
)
def test_plain_boxes_of_a_known_format_are_converted(
    name: str, build: Callable[[Any], Any]
) -> None:
    annotation = run(build(v2.ConvertBoundingBoxFormat(name)))
    assert annotation["boxes"].tolist() == FLIPPED
    assert annotation["labels"].tolist() == [300, 301]


def test_rows_of_boxes_keep_the_format() -> None:
    assert run(rows)["boxes"].tolist() == [BOXES[1]]
    centres = v2.ConvertBoundingBoxFormat("CXCYWH")
    assert run(v2.Compose([centres, rows]))["boxes"].tolist() == [BOXES[1]]
    assert run(v2.Compose([centres, PURE, rows]))["boxes"].tolist() == [BOXES[1]]


def change(function: Callable[[Tensor], Any]) -> Callable[[Any, Any], Any]:
    def changed(image: Any, target: Any) -> Any:
        return image, {**target, "boxes": function(target["boxes"])}

    return changed


def to_width(boxes: Tensor) -> Tensor:
    boxes = boxes.as_subclass(Tensor)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


@pytest.mark.parametrize(
    "function",
    [
        lambda b: box_convert(b.as_subclass(Tensor), "xyxy", "cxcywh"),
        lambda b: b / torch.tensor([60, 40, 60, 40]),
        lambda b: b[:, [1, 0, 3, 2]],
        lambda b: b[..., [1, 0, 3, 2]],
        lambda b: torch.tensor(b.tolist()),
        to_width,
    ],
)
def test_plain_boxes_of_an_unknown_format_are_refused(function: Any) -> None:
    text = r"made the boxes a plain tensor and changed it.* It was the step 'changed'\. Steps of"
    for transforms in (change(function), v2.Compose([FLIP, PURE, change(function), v2.Identity()])):
        with pytest.raises(OptionError, match=rf"^transforms {text}"):
            run(transforms)


def normalise(boxes: Any, to: str = "XYXY") -> Any:
    height, width = boxes.canvas_size
    plain = boxes.as_subclass(Tensor) / torch.tensor([width, height, width, height])
    return tv_tensors.BoundingBoxes(
        box_convert(plain, "xyxy", to.lower()), format=to, canvas_size=boxes.canvas_size
    )


@pytest.mark.parametrize("to", ["XYXY", "CXCYWH"])
def test_boxes_that_are_scaled_to_one_are_refused(to: str) -> None:
    text = r"^transforms scaled boxes to \[0, 1\]\. .* It was the step 'changed'"
    for boxes in (BOXES, BOXES[:1]):
        with pytest.raises(OptionError, match=text):
            run(v2.Compose([FLIP, change(partial(normalise, to=to)), FLIP]), boxes=boxes)


def test_a_sliver_in_the_first_pixel_is_no_mistake() -> None:
    def crop(image: Any, target: Any) -> Any:
        image, boxes = (v2.functional.crop(x, 9, 9, 20, 20) for x in (image, target["boxes"]))
        return image, {**target, "boxes": boxes}

    assert run(crop, boxes=BOXES[:1])["boxes"].tolist() == [[0, 0, 1, 1]]
    nothing = v2.Compose([v2.CenterCrop(4), v2.Identity()])
    assert run(nothing, boxes=[[0, 0, 3, 3]])["boxes"].shape == (0, 4)


def drop(key: str) -> Callable[[Any, Any], Any]:
    def without(image: Any, target: Any) -> Any:
        return image, {k: v for k, v in target.items() if k != key}

    return without


def set_labels(function: Callable[[Tensor], Any]) -> Callable[[Any, Any], Any]:
    def relabelled(image: Any, target: Any) -> Any:
        return image, {**target, "labels": function(target["labels"])}

    return relabelled


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (drop("boxes"), r"left out 'boxes' of the target.* step 'without'"),
        (v2.Compose([FLIP, drop("labels"), FLIP]), r"left out 'labels' of .* step 'without'"),
        (
            v2.Compose(
                [v2.CenterCrop(10), v2.SanitizeBoundingBoxes(labels_getter=None), v2.Identity()]
            ),
            r"left 1 boxes and labels of shape \(2,\).*labels_getter=.* step 'SanitizeBounding",
        ),
        (set_labels(lambda k: k.float()), r"made the labels torch\.float32\. .* 'relabelled'"),
        (set_labels(lambda k: k.to(torch.uint8)), r"made the labels torch\.uint8"),
        (set_labels(lambda k: k.tolist()), r"made the labels list"),
        (set_labels(lambda k: k[:1]), r"left 2 boxes and labels of shape \(1,\)"),
        (
            set_labels(lambda k: nn.functional.one_hot(k)),
            r"left 2 boxes and labels of shape \(2, 302\)",
        ),
        (change(lambda b: b.tolist()), r"made the boxes a list\. Keep them tv_tensors"),
        (
            change(lambda b: b.as_subclass(Tensor).reshape(-1, 2, 2)),
            r"gave boxes of shape \(2, 2, 2\)",
        ),
        (lambda i, t: (v2.Resize((20, 30))(i), t), r"made the image \(20, 30\) but left the boxes"),
        (
            v2.Compose([lambda i, t: (v2.Resize((20, 30))(i), t), PURE]),
            r"made the image \(20, 30\) but left the boxes on a canvas .* step '<lambda>'",
        ),
        (lambda i, t: (v2.FiveCrop(10)(i), t), r"made the image a tuple"),
    ],
)
def test_steps_that_change_what_boxes_are_are_named(transforms: Any, message: str) -> None:
    with pytest.raises(OptionError, match=rf"^transforms {message}"):
        run(transforms)


def test_masks_that_are_left_behind_are_named() -> None:
    def resize(image: Any, target: Any) -> Any:
        small = v2.Resize((20, 30))
        return small(image), {**target, "boxes": small(target["boxes"])}

    with pytest.raises(OptionError, match=r"left masks of shape \(2, 40, 60\).* step 'resize'"):
        run(resize, masks=True)


def test_what_a_later_step_mends_is_no_mistake() -> None:
    def both(image: Any, target: Any) -> Any:
        return image, {**target, "labels": target["labels"][:1]}

    lone = v2.SanitizeBoundingBoxes(labels_getter=None)
    assert run(v2.Compose([v2.CenterCrop(10), lone, both]))["boxes"].shape == (1, 4)


def test_rotated_boxes_are_refused() -> None:
    if not hasattr(tv_tensors.BoundingBoxFormat, "CXCYWHR"):
        pytest.skip("this torchvision has no rotated boxes")
    rotated = change(
        lambda b: tv_tensors.BoundingBoxes(torch.ones(2, 5), format="CXCYWHR", canvas_size=SIZE)
    )
    text = r"^transforms turned the boxes into rotated ones \(CXCYWHR\)\..*step 'changed'"
    for steps in (rotated, v2.Compose([FLIP, rotated, PURE])):
        with pytest.raises(OptionError, match=text):
            run(steps)


def test_key_points_are_refused() -> None:
    key_points = getattr(tv_tensors, "KeyPoints", None)
    if key_points is None:
        pytest.skip("this torchvision has no key points")
    points = change(lambda b: key_points(torch.zeros(2, 4, 2), canvas_size=SIZE))
    with pytest.raises(OptionError, match=r"^transforms turned the boxes into key points"):
        run(points)


class Mine(v1.RandomHorizontalFlip):
    """A first version's transform that someone taught to take boxes."""

    def forward(self, image: Any, target: Any) -> Any:
        return image, target


@pytest.mark.parametrize(
    ("transforms", "name"),
    [
        (v1.Compose([v1.ToTensor()]), "Compose"),
        (v2.Compose([FLIP, v1.RandomHorizontalFlip()]), "RandomHorizontalFlip"),
        (v2.Compose([v2.Compose([v1.Resize(9)])]), "Resize"),
        (v2.RandomApply([v1.ColorJitter()]), "ColorJitter"),
        (v2.RandomChoice([v2.Identity(), v1.RandomRotation(9)]), "RandomRotation"),
        (v2.RandomOrder([v1.RandomErasing()]), "RandomErasing"),
        (nn.Sequential(v1.RandomHorizontalFlip(), v1.CenterCrop(9)), "RandomHorizontalFlip"),
        (v2.Compose([v1.Lambda(lambda x: x)]), "Lambda"),
        (v2.Lambda(v1.RandomHorizontalFlip(1.0), tv_tensors.Image), "RandomHorizontalFlip"),
        (v1.AutoAugment(), "AutoAugment"),
        (v2.Compose([v1.TrivialAugmentWide()]), "TrivialAugmentWide"),
        (v2.Compose([partial(v1.functional.resize, size=9)]), "resize"),
    ],
)
def test_the_first_version_is_refused_wherever_it_stands(transforms: Any, name: str) -> None:
    text = rf"^transforms (is|holds) a torchvision\.transforms\.{name}, which .*\. Use torchvi"
    with pytest.raises(OptionError, match=text):
        check_transforms(transforms)


@pytest.mark.parametrize(
    ("transforms", "name"),
    [
        (lambda image: image, "<lambda>"),
        (v2.Compose([FLIP, lambda image: image]), "<lambda>"),
        (nn.Sequential(FLIP), "Sequential"),
        (v2.Compose([nn.Identity()]), "Identity"),
    ],
)
def test_steps_for_images_alone_are_refused(transforms: Any, name: str) -> None:
    text = rf"^transforms has the step '{name}', which cannot be called as {name}\(image, target\)"
    with pytest.raises(OptionError, match=text):
        check_transforms(transforms)


def test_what_takes_boxes_is_taken() -> None:
    for transforms in (
        Mine(),
        Preset(FLIP),
        v2.Lambda(lambda x: x),
        lambda i, t=None: (i, t),
        pure,
    ):
        assert check_transforms(transforms) is transforms


def test_no_hook_is_left_after_an_error() -> None:
    before = len(nn_module._global_forward_hooks)

    def fail(image: Any, target: Any) -> Any:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        run(v2.Compose([FLIP, fail]))
    run(v2.Compose([FLIP, PURE]))
    assert len(nn_module._global_forward_hooks) == before


def test_boxes_of_none_stay_none_and_empty_stays_empty() -> None:
    steps = v2.Compose([v2.ConvertBoundingBoxFormat("CXCYWH"), PURE])
    assert transform_item(steps, item()[0], None)[1] is None
    assert run(steps, boxes=[])["boxes"].shape == (0, 4)
