"""DecoyDigits: what it promises about splits, places, colours and repeatability."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from explainguide.datasets import DecoyDigits
from explainguide.errors import OptionError


@pytest.fixture(scope="module")
def train() -> DecoyDigits:
    return DecoyDigits("train")


@pytest.fixture(scope="module")
def test() -> DecoyDigits:
    return DecoyDigits("test")


def test_split_is_stratified_and_the_same_for_every_seed(
    train: DecoyDigits, test: DecoyDigits
) -> None:
    assert (len(train), len(test)) == (1257, 540)
    together = torch.bincount(train.labels) + torch.bincount(test.labels)
    assert together.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (torch.bincount(test.labels) - together * 540 / 1797).abs().max() < 1
    assert torch.equal(train.labels, DecoyDigits("train", seed=5).labels)


def test_item(train: DecoyDigits) -> None:
    image, label, annotation = train[3]
    assert image.dtype == torch.float32
    assert image.shape == (3, 48, 48)
    assert type(image) is torch.Tensor
    assert torch.equal(image, train.images[3])
    assert isinstance(label, int)
    assert annotation is not None
    assert sorted(annotation) == ["boxes", "labels"]
    assert annotation["boxes"].tolist() == [train.boxes[3].tolist()]
    assert annotation["labels"].tolist() == [label]
    assert torch.equal(train[-1][0], train.images[-1])
    with pytest.raises(IndexError):
        train[1257]
    assert train.classes == list("0123456789")
    assert train.num_classes == 10
    assert not train.multilabel


def test_range_masks_and_boxes(train: DecoyDigits) -> None:
    assert train.images.min() >= 0
    assert train.images.max() <= 1
    line = torch.arange(48)
    left, top, right, bottom = train.boxes.unbind(1)
    across = (line >= left[:, None]) & (line < right[:, None])
    down = (line >= top[:, None]) & (line < bottom[:, None])
    inside = down[:, :, None] & across[:, None, :]
    assert not (train.masks & ~inside).any()
    image = torch.arange(1257)
    for edge in (left, right - 1):  # tight: ink in the outermost columns and rows
        assert train.masks.any(1)[image, edge.long()].all()
    for edge in (top, bottom - 1):
        assert train.masks.any(2)[image, edge.long()].all()
    assert (right - left).max() <= 24
    assert (bottom - top).max() <= 24


def test_outside_digit_and_patch_there_is_only_noise(train: DecoyDigits) -> None:
    none = DecoyDigits("train", decoy="none")
    assert none.images.masked_fill(none.masks[:, None], 0).max() < 0.1
    differs = (none.images != train.images).any(1)
    size = train.patches[:, 2:] - train.patches[:, :2]
    assert (size == 10).all()
    assert (differs.sum((1, 2)) == 100).all()  # the patch and nothing else
    for i in range(0, 1257, 100):
        x1, y1, x2, y2 = train.patches[i].int().tolist()
        assert differs[i, y1:y2, x1:x2].all()
        assert x1 == 0 or x2 == 48
        assert y1 == 0 or y2 == 48


@pytest.mark.parametrize("size", [24, 31, 48, 64])
@pytest.mark.parametrize("split", ["train", "test"])
def test_box_never_touches_the_patch(split: str, size: int) -> None:
    data = DecoyDigits(split, size=size, seed=1)
    boxes, patches = data.boxes, data.patches
    apart = (
        (boxes[:, 0] > patches[:, 2])
        | (boxes[:, 2] < patches[:, 0])
        | (boxes[:, 1] > patches[:, 3])
        | (boxes[:, 3] < patches[:, 1])
    )
    assert apart.all()
    assert data.images.shape == (len(data), 3, size, size)
    assert boxes.min() >= 0
    assert boxes.max() <= size


def test_colours_tell_the_class_or_nothing(train: DecoyDigits, test: DecoyDigits) -> None:
    assert torch.equal(train.decoys, train.labels)
    assert torch.equal(DecoyDigits("test", decoy="class").decoys, test.labels)
    assert (DecoyDigits("test", decoy="none").decoys == -1).all()
    # Independence: pooled over seeds, the table of class by colour is flat (chi squared, 81
    # degrees of freedom, 0.999 quantile 126), and chance agreement is a tenth.
    runs = [DecoyDigits("test", seed=seed) for seed in range(10)]
    table = torch.zeros(10, 10)
    for data in runs:
        table += torch.bincount(data.labels * 10 + data.decoys, minlength=100).reshape(10, 10)
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 126
    assert table.trace() / table.sum() == pytest.approx(0.1, abs=0.015)


def test_colour_of_the_patch_is_that_of_its_class(train: DecoyDigits) -> None:
    x, y = train.patches[:, 0].long() + 3, train.patches[:, 1].long() + 3
    seen = train.images[torch.arange(1257), :, y, x]
    means = torch.stack([seen[train.decoys == k].mean(0) for k in range(10)])
    assert torch.cdist(seen, means).argmin(1).equal(train.decoys)
    between = torch.cdist(means, means) + torch.eye(10) * 9
    assert between.min() > 0.4


def test_places_know_nothing_of_the_class(train: DecoyDigits) -> None:
    corner = (train.patches[:, 0] > 0).long() * 2 + (train.patches[:, 1] > 0).long()
    table = torch.bincount(train.labels * 4 + corner, minlength=40).reshape(10, 4).float()
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 55.5  # 27 degrees of freedom, 0.999
    assert torch.bincount(corner).min() > 250


def test_repeatable(train: DecoyDigits) -> None:
    again, other = DecoyDigits("train"), DecoyDigits("train", seed=1)
    for name in ("images", "boxes", "masks", "decoys", "labels", "patches"):
        assert torch.equal(getattr(train, name), getattr(again, name))
    assert not torch.equal(train.boxes, other.boxes)


def test_annotated_fraction_and_masks() -> None:
    data = DecoyDigits("train", annotated=0.1, masks=True)
    assert data.annotated.sum() == 126
    for i in range(60):
        annotation = data[i][2]
        assert (annotation is not None) == bool(data.annotated[i])
        if annotation is not None:
            assert torch.equal(annotation["masks"][0], data.masks[i])
    assert "126 annotated" in repr(data)


def test_transforms_do_not_reach_the_stored_images() -> None:
    flip = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.Normalize([0.5] * 3, [0.5] * 3, True)])
    data = DecoyDigits("test", transforms=flip)
    before = data.images[0].clone()
    image, _, annotation = data[0]
    assert annotation is not None
    assert torch.equal(data.images[0], before)
    assert torch.allclose(image, (before.flip(2) - 0.5) / 0.5)
    x1, y1, x2, y2 = data.boxes[0].tolist()
    assert annotation["boxes"].tolist() == [[48 - x2, y1, 48 - x1, y2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"split": "tset"},
            r"unknown split 'tset'\. Did you mean 'test'\?.*'train', 'test' are allowed\.",
        ),
        ({"decoy": "classes"}, r"unknown decoy 'classes'\. Did you mean 'class'\?"),
        ({"size": 20}, r"size must be an integer from 24 pixels on, but got 20\."),
        ({"size": 48.0}, r"size must be an integer"),
        ({"seed": -1}, r"seed must be an integer from 0 on"),
        ({"annotated": 10}, r"For 10% write annotated=0\.1\."),
        ({"annotated": 2.5}, r"annotated is 2\.5\. For 2\.5% write annotated=0\.025\."),
        ({"annotated": 100}, r"For 100% write annotated=1\."),
        ({"annotated": -3}, r"annotated is -3\. For 10% write annotated=0\.1\."),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=rf"^DecoyDigits: .*{message}"):
        DecoyDigits(**arguments)  # type: ignore[arg-type]
