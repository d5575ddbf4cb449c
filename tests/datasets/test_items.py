"""The steps that all datasets share: transforms in step, clean-up, the annotated fraction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2

from explainguide.annotations.boxes import box_masks
from explainguide.annotations.subset import draw_annotated
from explainguide.datasets.items import (
    check_transforms,
    make_annotation,
    read_image,
    transform_item,
)
from explainguide.errors import OptionError

SIZE = (40, 60)


def painted_item(
    boxes: list[list[int]], with_masks: bool = True
) -> tuple[tv_tensors.Image, dict[str, torch.Tensor]]:
    """An image whose channel m is 255 in box m, and the annotation of these boxes."""
    xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = box_masks(xyxy, SIZE)
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    image[: len(boxes)] = masks.to(torch.uint8) * 255
    labels = torch.arange(len(boxes)) + 5
    return tv_tensors.Image(image), make_annotation(
        xyxy, labels, SIZE, masks if with_masks else None
    )


TWO_BOXES = [[10, 8, 30, 28], [40, 20, 56, 36]]


@pytest.mark.parametrize(
    "transform",
    [
        v2.Identity(),
        v2.RandomHorizontalFlip(1.0),
        v2.RandomVerticalFlip(1.0),
        v2.Resize((80, 30)),
        v2.CenterCrop((36, 44)),
        v2.Pad([3, 5, 7, 11]),
        v2.Compose([v2.RandomHorizontalFlip(1.0), v2.Resize((20, 30)), v2.CenterCrop(18)]),
    ],
    ids=lambda t: type(t).__name__,
)
def test_boxes_and_masks_move_with_the_image(transform: Any) -> None:
    image, annotation = transform_item(transform, *painted_item(TWO_BOXES))
    assert annotation is not None
    assert type(image) is torch.Tensor
    assert annotation["labels"].tolist() == [5, 6]
    assert tuple(annotation["boxes"].canvas_size) == tuple(image.shape[-2:])
    for channel, box, mask in zip(image, annotation["boxes"], annotation["masks"], strict=False):
        x1, y1, x2, y2 = box.round().int().tolist()
        inside = torch.zeros(channel.shape, dtype=torch.bool)
        inside[y1:y2, x1:x2] = True
        # Resizing blurs the edge by a pixel at most.
        wrong = ((channel > 127) != inside).sum()
        assert wrong <= 2 * (y2 - y1 + x2 - x1) * (not isinstance(transform, v2.Identity))
        assert channel[mask].float().mean() > 200
        assert (mask ^ inside).sum() <= y2 - y1 + x2 - x1


def test_what_a_crop_loses_goes_with_label_and_mask() -> None:
    def crop(image: Any, target: Any) -> Any:
        return v2.functional.crop(image, 0, 0, 40, 35), {
            "boxes": v2.functional.crop(target["boxes"], 0, 0, 40, 35),
            "masks": v2.functional.crop(target["masks"], 0, 0, 40, 35),
            "labels": target["labels"],
        }

    _, annotation = transform_item(crop, *painted_item(TWO_BOXES))
    assert annotation is not None
    assert annotation["boxes"].tolist() == [[10, 8, 30, 28]]
    assert annotation["labels"].tolist() == [5]
    assert annotation["masks"].shape == (1, 40, 35)


def test_nothing_left_is_zero_boxes_not_none() -> None:
    _, annotation = transform_item(v2.CenterCrop((4, 4)), *painted_item([[0, 0, 9, 9]]))
    assert annotation is not None
    assert annotation["boxes"].shape == (0, 4)
    assert annotation["labels"].shape == (0,)
    assert annotation["labels"].dtype == torch.int64
    assert annotation["masks"].shape == (0, 4, 4)


def test_object_without_mask_pixels_is_dropped() -> None:
    image, annotation = painted_item(TWO_BOXES)
    annotation["masks"][1] = False
    _, cleaned = transform_item(v2.Identity(), image, annotation)
    assert cleaned is not None
    assert cleaned["labels"].tolist() == [5]


def test_box_is_clipped_and_slivers_are_dropped() -> None:
    annotation = make_annotation(
        torch.tensor([[-1.0, -1.0, 61.0, 41.0], [3.0, 3.0, 3.5, 9.0]]), torch.tensor([0, 1]), SIZE
    )
    image = tv_tensors.Image(torch.zeros(3, *SIZE))
    _, cleaned = transform_item(v2.Identity(), image, annotation)
    assert cleaned is not None
    assert cleaned["boxes"].tolist() == [[0, 0, 60, 40]]


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomRotation(30),
        v2.RandomAffine(20, translate=(0.2, 0.2), shear=10),
        v2.RandomPerspective(p=1.0),
        v2.RandomResizedCrop(24, antialias=True),
        v2.RandomIoUCrop(),
        v2.RandomZoomOut(p=1.0),
        v2.ScaleJitter((32, 32), antialias=True),
        v2.ColorJitter(0.2, 0.2, 0.2, 0.1),
        v2.ConvertBoundingBoxFormat("CXCYWH"),
        v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]),
        v2.Compose([v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes()]),
        v2.Compose([v2.RandomHorizontalFlip(), v2.ToPureTensor()]),
        v2.Compose([v2.ToPILImage(), v2.RandomHorizontalFlip(), v2.ToImage()]),
    ],
    ids=lambda t: type(t).__name__,
)
@pytest.mark.parametrize("boxes", [[], TWO_BOXES], ids=["no_box", "two_boxes"])
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_usual_transforms_run(transform: Any, boxes: list[list[int]], masks: bool) -> None:
    torch.manual_seed(0)
    for _ in range(5):
        image, annotation = transform_item(transform, *painted_item(boxes, masks))
        assert annotation is not None
        found = annotation["boxes"]
        assert isinstance(found, tv_tensors.BoundingBoxes)
        assert found.format == tv_tensors.BoundingBoxFormat.XYXY
        assert found.dtype == torch.float32
        assert len(found) == len(annotation["labels"]) <= len(boxes)
        assert (found[:, 2:] > found[:, :2]).all()
        assert ("masks" in annotation) == masks
        if masks:
            assert annotation["masks"].dtype == torch.bool
            assert annotation["masks"].shape == (len(found), *image.shape[-2:])
        assert transform_item(transform, painted_item([])[0], None)[1] is None


def test_transforms_of_the_first_kind_are_refused() -> None:
    for transforms in (v1.Compose([v1.ToTensor()]), v1.RandomHorizontalFlip()):
        name = type(transforms).__name__
        with pytest.raises(OptionError, match=rf".*Use torchvision.transforms.v2.{name}"):
            check_transforms(transforms)
    with pytest.raises(OptionError, match=r"must be callable as transforms\(image, target\)"):
        check_transforms("resize")  # type: ignore[arg-type]


def test_transforms_that_leave_the_boxes_behind_are_refused() -> None:
    with pytest.raises(OptionError, match=r"made the image \(20, 30\) but left the boxes on a"):
        transform_item(lambda i, t: (v2.Resize((20, 30))(i), t), *painted_item(TWO_BOXES))
    with pytest.raises(OptionError, match=r"must return \(image, target\), but returned Tensor"):
        transform_item(lambda i, t: torch.zeros(3), *painted_item(TWO_BOXES))


def test_annotated_fraction() -> None:
    tenth = draw_annotated(1000, 0.1, seed=3)
    half = draw_annotated(1000, 0.5, seed=3)
    assert tenth.sum() == 100
    assert half.sum() == 500
    assert (half | ~tenth).all()  # nested
    assert torch.equal(tenth, draw_annotated(1000, 0.1, seed=3))
    assert not torch.equal(tenth, draw_annotated(1000, 0.1, seed=4))
    assert draw_annotated(1000, 1e-9, seed=0).sum() == 1
    assert draw_annotated(1000, 0, seed=0).sum() == 0
    for bad in (10, -0.1, float("nan"), True, "all"):
        with pytest.raises(OptionError, match="annotated"):
            draw_annotated(10, bad, seed=0)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="seed must be an integer from 0 on, but got -1"):
        draw_annotated(10, 0.5, seed=-1)


def test_unreadable_files_are_named(tmp_path: Path, paint: Callable[..., None]) -> None:
    whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    paint(whole, (64, 48), (0, 0, 30, 30))
    image = read_image(whole)
    assert image is not None
    assert image.shape == (3, 48, 64)
    assert image.dtype == torch.uint8
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not an image")
    paint(tmp_path / "damaged.png", (64, 48), (0, 0, 30, 30))
    data = (tmp_path / "damaged.png").read_bytes()
    (tmp_path / "damaged.png").write_bytes(data[:40] + b"\x00" * 30 + data[70:])
    for name in ("cut.jpg", "empty.jpg", "text.png", "damaged.png", "absent.jpg"):
        with pytest.warns(UserWarning, match=rf"^'.*{name}' cannot be read .*skipped\.$"):
            assert read_image(tmp_path / name) is None
