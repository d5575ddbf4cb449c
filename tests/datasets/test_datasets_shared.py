"""What all published data sets have in common: form, transforms in step, workers, the commands."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from explainguide import Annotations, collate
from explainguide.cli import main
from explainguide.datasets import DATASETS
from explainguide.datasets.photos import Objects, outside

from . import miniatures


def of_waterbirds(root: Path) -> dict[str, str]:
    folder, cub = miniatures.waterbirds(root), root / "CUB"
    return {
        "root": str(folder),
        "boxes": str(cub / "bounding_boxes.txt"),
        "segmentations": str(cub / "segmentations"),
    }


def of_coco(root: Path) -> dict[str, str]:
    pytest.importorskip("pycocotools")
    return {"root": str(miniatures.coco(root))}


def of_textured(root: Path) -> dict[str, str]:
    return {"root": str(miniatures.digits(root)), "textures": str(miniatures.textures(root))}


def of_composite(root: Path) -> dict[str, str]:
    return {"root": str(miniatures.animals(root)), "backgrounds": str(miniatures.scenes(root))}


WRITE: dict[str, Callable[[Path], dict[str, str]]] = {
    "waterbirds": of_waterbirds,
    "coco": of_coco,
    "imagenet9": lambda root: {"root": str(miniatures.imagenet9(root))},
    "imagenet_s": lambda root: {"root": str(miniatures.imagenet_s(root))},
    "pets": lambda root: {"root": str(miniatures.pets(root))},
    "isic2017": lambda root: {"root": str(miniatures.isic2017(root))},
    "textured": of_textured,
    "composite": of_composite,
}
SPLITS = {"imagenet9": ("val", "val"), "pets": ("trainval", "test")}


def test_every_data_set_of_the_table_has_a_miniature() -> None:
    assert set(WRITE) == set(DATASETS) - {"decoy", "voc", "folder"}


def opened(name: str, root: Path, **changes: Any) -> Any:
    source = DATASETS[name]
    options = {**WRITE[name](root), "masks": True, **changes}
    return source.factory(image_set=SPLITS.get(name, (source.train_set, ""))[0], **options)


@pytest.mark.parametrize("name", WRITE)
def test_the_form(name: str, tmp_path: Path) -> None:
    data = opened(name, tmp_path)
    assert data.num_classes == len(data.classes)
    assert data.annotated.dtype == torch.bool
    assert data.annotated.shape == (len(data),)
    assert bool(data.groups) == (name in ("waterbirds", "composite"))
    for index in (0, len(data) - 1):
        item = data[index]
        assert len(item) == (4 if data.groups else 3)
        image, label, annotation = item[:3]
        assert (image.dtype, type(image)) == (torch.float32, torch.Tensor)
        assert (annotation is not None) == bool(data.annotated[index])
        if not data.multilabel:
            assert label == int(data.labels[index])
        if data.groups:
            assert data.groups[item[3]]
    with pytest.raises(IndexError):
        data[len(data)]
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[0][0], data[0][0])


@pytest.mark.parametrize("name", WRITE)
def test_boxes_and_masks_move_with_the_image(name: str, tmp_path: Path) -> None:
    data = opened(name, tmp_path)
    image, _, annotation = data[0][:3]
    height, width = image.shape[-2:]
    data.transforms = v2.Compose(
        [
            v2.RandomHorizontalFlip(1.0),
            v2.Resize((2 * height, 2 * width), interpolation=0),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    moved_image, _, moved = data[0][:3]
    twice = image.flip(2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(moved_image, twice)
    mask = annotation["masks"].flip(2).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(moved["masks"], mask)
    x1, y1, x2, y2 = annotation["boxes"].unbind(1)
    expected = 2 * torch.stack([width - x2, y1, width - x1, y2], 1)
    assert torch.allclose(moved["boxes"].as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("name", ["waterbirds", "composite"])
def test_workers_read_the_same(name: str, tmp_path: Path) -> None:
    data = opened(name, tmp_path)
    data.transforms = v2.Compose([v2.Resize((32, 32)), v2.ToDtype(torch.float32, scale=True)])
    here, there = (
        list(DataLoader(data, 2, collate_fn=collate, num_workers=workers)) for workers in (0, 2)
    )
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[2].boxes, b[2].boxes)
        assert torch.equal(a[3], b[3])


@pytest.mark.slow
# A few images are not of every group, which is told.
@pytest.mark.filterwarnings("ignore:WorstGroupAccuracy.compute. there are no images of")
@pytest.mark.parametrize("name", WRITE)
def test_it_trains_and_is_evaluated(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = SPLITS.get(name, (DATASETS[name].train_set, DATASETS[name].val_set))
    options = [word for key, value in WRITE[name](tmp_path).items() for word in (f"--{key}", value)]
    command = [
        *("train", "--data", name, *options, "--model", "explainguide.models:small_cnn"),
        *("--layer", "stage2", "--size", "32", "--epochs", "1", "--batch-size", "8"),
        *("--image-set", splits[0], "--val-set", splits[1], "--device", "cpu", "--quiet"),
        *("--out", str(tmp_path / "run")),
    ]
    assert main(command) == 0, capsys.readouterr().err
    capsys.readouterr()
    last = str(tmp_path / "run/last.pt")
    assert main(["evaluate", last, "--device", "cpu", "--quiet"]) == 0, capsys.readouterr().err
    assert "epg" in capsys.readouterr().out


def test_what_is_outside_of_a_box_is_all_but_its_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        corners = torch.rand(4, generator=generator) * 14 - 1
        x1, x2 = sorted(corners[:2].tolist())
        y1, y2 = sorted(corners[2:].tolist())
        if min(x2, y2) <= 0 or x1 >= 12 or y1 >= 10 or min(x2 - x1, y2 - y1) < 0.1:
            continue
        bird = Objects(torch.tensor([[x1, y1, x2, y2]]), torch.tensor([1]))
        found = outside(bird, (10, 12))
        inside = Annotations.from_targets([{"boxes": bird.boxes, "labels": bird.labels}])
        expected = 1 - inside.region(torch.tensor([1]), (10, 12))
        if not len(found.boxes):
            assert expected.sum() == 0
            continue
        around = Annotations.from_targets([{"boxes": found.boxes, "labels": found.labels}])
        assert torch.equal(around.region(torch.tensor([1]), (10, 12)), expected)


def test_nothing_is_outside_of_what_fills_the_image_or_is_not_known() -> None:
    full = Objects(
        torch.tensor([[0.0, 0, 12, 10]]), torch.tensor([0]), torch.ones(1, 10, 12).bool()
    )
    found = outside(full, (10, 12))
    assert found.boxes.shape == (0, 4)
    assert found.masks is not None
    assert found.masks.shape == (0, 10, 12)
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert outside(nothing, (10, 12)) is nothing
