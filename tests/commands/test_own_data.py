"""`train` and `evaluate` on data sets of the user's: by ``module:function``, and by a new entry."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric

from explainguide.checkpoints import load_checkpoint
from explainguide.cli import main
from explainguide.datasets import DATASETS, DataSource, DecoyDigits, ImageFolder
from explainguide.datasets.items import make_annotation
from explainguide.metrics import MAP_METRICS, map_metric

MODULE = '''
from pathlib import Path
import torch
from explainguide.datasets.items import make_annotation, transform_item

class Squares(torch.utils.data.Dataset):
    """A white square on the left or on the right; several labels also say whether it is bright."""

    transforms = None

    def __init__(self, split, several=False, count=6):
        self.split, self.multilabel = split, several
        self.classes = ["left", "bright"] if several else ["left", "right"]
        self.count = count if split == "train" else 4

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image, start = torch.zeros(3, 20, 24, dtype=torch.uint8), 14 * (index % 2)
        image[:, 5:15, start : start + 10] = 250 - index
        boxes = torch.tensor([[start, 5.0, start + 10, 15]])
        annotation = make_annotation(boxes, torch.tensor([0 if self.multilabel else index % 2]), (20, 24))
        label = index % 2
        if self.multilabel:
            label = torch.tensor([1.0 - index % 2, index < 3])
        image, annotation = transform_item(self.transforms, image, annotation)
        return image, label, annotation

def build(image_set):
    return Squares(image_set)

def several(image_set, **given):
    Path(given["root"], f"{image_set}.txt").write_text(repr(sorted(given.items())))
    return Squares(image_set, several=True)

def apart(root, boxes=None, masks=False):
    return Squares(root.split("/")[-1])
'''


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "squares_of_a_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "squares_of_a_user", raising=False)
    return [
        *("train", "--model", "explainguide.models:small_cnn", "--layer", "stage2", "--size", "24"),
        *("--epochs", "1", "--batch-size", "3", "--device", "cpu", "--quiet"),
        *("--out", str(tmp_path / "run"), "--data"),
    ]


def evaluated(file: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, str]:
    capsys.readouterr()
    assert main(["evaluate", str(file), "--quiet", "--device", "cpu", *options]) == 0
    header, values = (line.split() for line in capsys.readouterr().out.splitlines())
    return dict(zip(header, values, strict=True))


def told(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix("explainguide: ")


@pytest.mark.parametrize("file", ["last.pt", "weights.safetensors"])
def test_a_function_by_its_name(
    command: list[str], file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "squares_of_a_user:build"]) == 0
    info = load_checkpoint(tmp_path / "run" / file)["info"]
    assert info["data"] == "squares_of_a_user:build"
    assert (info["classes"], info["multilabel"]) == (["left", "right"], False)
    found = evaluated(tmp_path / "run" / file, capsys)
    assert "accuracy" in found and found["pairs"] == "4"
    assert evaluated(tmp_path / "run" / file, capsys, "--image-set", "train")["pairs"] == "6"


def test_several_labels_an_image_and_all_that_is_given(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--root", str(tmp_path), "--boxes", "b.csv", "--image-set", "train", "--val-set", "v"]
    assert main([*command, "squares_of_a_user:several", *given]) == 0
    last = tmp_path / "run" / "last.pt"
    assert load_checkpoint(last)["info"]["multilabel"] is True
    expected = [("boxes", "b.csv"), ("masks", False), ("root", str(tmp_path))]
    assert (tmp_path / "train.txt").read_text() == repr(expected)
    expected[1] = ("masks", True)
    assert (tmp_path / "v.txt").read_text() == repr(expected)
    (tmp_path / "v.txt").unlink()
    assert "f1" in evaluated(last, capsys)
    assert (tmp_path / "v.txt").read_text() == repr(expected)


def test_without_splits_the_images_to_evaluate_on_have_a_root(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [*command, "squares_of_a_user:apart"]
    assert main(chosen) == 2
    assert told(capsys).startswith("--root: missing. Say where the images of --data squares_of")
    assert main([*chosen, "--root", "a/train"]) == 2
    assert told(capsys).startswith("--val-root: missing. Name a folder of images to evaluate on")
    assert main([*chosen, "--root", "a/train", "--val-root", "a/val"]) == 0
    assert evaluated(tmp_path / "run" / "last.pt", capsys)["pairs"] == "4"


class Photos(Dataset):
    """One image, in a form that each case spoils in one place."""

    multilabel = False
    transforms: Any = None

    def __init__(self, **changes: Any) -> None:
        self.classes: Any = ["cat", "dog"]
        self.image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        self.label: Any = 1
        self.boxes = make_annotation(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([1]), (8, 8))
        vars(self).update(changes)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        image, annotation = self.transforms(self.image, self.boxes)
        return image, self.label, annotation


class Pairs(Photos):
    def __getitem__(self, index: int) -> Any:
        return self.transforms(self.image, self.boxes)


class Deaf(Photos):
    def __getitem__(self, index: int) -> Any:
        return self.image, self.label, self.boxes


class OfImages(Photos):
    def __getitem__(self, index: int) -> Any:
        return self.transforms(self.image), self.label, self.boxes


class Fixed(Dataset):
    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return None


BARE = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1])}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: iter([]), "what 'photos:build' returned is a list_iterator. Pass the data set, "),
        (
            lambda: DataLoader(Photos()),
            "what 'photos:build' returned is a DataLoader. Pass the data",
        ),
        (lambda: [1], "the list of 'photos:build' has classes=None. Set self.classes to the names"),
        (
            lambda: Photos(classes="cat"),
            "the Photos of 'photos:build' has classes='cat'. Set self.",
        ),
        (lambda: [], "what 'photos:build' returned is empty."),
        (Fixed, "the Fixed of 'photos:build' has no attribute 'transforms', so its images would"),
        (Pairs, "item 0 of 'photos:build' is a tuple of 2. Return image, labels, annotation; None"),
        (
            Deaf,
            "the data set of 'photos:build' does not give its transforms the image. In __getitem__",
        ),
        (
            OfImages,
            "the data set of 'photos:build' does not give its transforms the image with its",
        ),
        (
            lambda: Photos(boxes=BARE),
            "the boxes of 'photos:build' are a plain Tensor, which transf",
        ),
        (
            lambda: Photos(image=[0]),
            "the images of 'photos:build' are given as list. Read them with",
        ),
        (
            lambda: Photos(image=torch.full((3, 8, 8), 255.0)),
            "the images of 'photos:build' are given as floats from 255 to 255. Divide by what is white",
        ),
        (
            lambda: Photos(label=torch.tensor([0.0, 1.0])),
            "the labels of 'photos:build' are torch.float32 of shape (2,), and its data set has "
            "multilabel=False. Give floats (K,)",
        ),
        (
            lambda: Photos(label=torch.tensor([0, 1]), multilabel=True),
            "the labels of 'photos:build' are torch.int64 of shape (2,), and its data set has",
        ),
        (
            lambda: Photos(multilabel=True),
            "the labels of 'photos:build' are torch.int64 of shape (), and its data set has multilabel",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_refused_at_once(
    make: Callable[[], Any],
    message: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = type(sys)("photos")
    photos.build = lambda image_set: make()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "photos", photos)
    assert main([*command, "photos:build"]) == 2
    assert told(capsys).startswith(f"--data: {message}")
    assert not (tmp_path / "run").exists()


def test_a_function_that_asks_for_what_there_is_not(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = type(sys)("photos")
    photos.needs = lambda image_set, fold: None  # type: ignore[attr-defined]
    photos.alone = lambda boxes: None  # type: ignore[attr-defined]
    photos.split = lambda image_set: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "photos", photos)
    for arguments, message in (
        (["photos:needs"], "--data: 'photos:needs' needs 'fold', for which there is no option."),
        (["photos:alone"], "--data: 'photos:alone' takes neither image_set nor root, so it could"),
        (
            ["photos:nedes"],
            "--data: module 'photos' has no function 'nedes'. Did you mean 'needs'?",
        ),
        (["fotos:needs"], "--data: 'fotos:needs' cannot be imported (No module named 'fotos')."),
        (
            ["photos:split", "--boxes", "b.csv"],
            "--boxes: --data photos:split does not take it. Leave it out, or let the function take "
            "boxes. --image-set, --val-set are allowed.\n",
        ),
    ):
        assert main([*command, *arguments]) == 2
        assert told(capsys).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["voc", "--boxes", "b.csv"],
            "--boxes: --data voc does not take it. Leave it out. --image-set",
        ),
        (
            ["folder", "--image-set", "test"],
            "--image-set: --data folder does not take it. Leave it",
        ),
        (["folder", "--decoy", "none"], "--decoy: --data folder does not take it. Leave it out."),
        (
            ["voc"],
            "--root: missing. Say where the images of --data voc are. A folder is allowed.\n",
        ),
    ],
)
def test_options_that_do_not_go_with_a_data_set(
    command: list[str],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*command, *arguments]) == 2
    assert told(capsys).startswith(message)


def test_a_new_entry_needs_nothing_else(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened = []

    def open_shapes(image_set: str, *, size: int = 32, colour: str = "any") -> DecoyDigits:
        opened.append((image_set, size, colour))
        return DecoyDigits("test", size=size)

    source = DataSource(
        "coloured shapes",
        open_shapes,
        train_set="seen",
        val_set="unseen",
        image_size=32,
        flips=False,
        normalise=False,
        options={"colour": "red or any (default: any)"},
    )
    monkeypatch.setitem(DATASETS, "shapes", source)
    for name in ("train", "evaluate"):
        assert main([name, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "shapes (coloured shapes)" in shown
        assert "shapes: red or any (default: any)" in shown
    at = command.index("--size")
    bare = [*command[:at], *command[at + 2 :], "shapes", "--colour", "red", "--lam", "0"]
    assert main([*bare, "--batch-size", "540"]) == 0
    assert opened == [("seen", 32, "red"), ("unseen", 32, "red")]
    info = load_checkpoint(tmp_path / "run" / "last.pt")["info"]
    assert (info["image_size"], info["mean"], info["flip"]) == (32, [0.0] * 3, False)
    assert (info["image_set"], info["val_set"]) == ("seen", None)
    for file in ("last.pt", "weights.safetensors"):
        evaluated(tmp_path / "run" / file, capsys)
        assert opened.pop() == ("unseen", 32, "red")
    evaluated(tmp_path / "run" / "last.pt", capsys, "--image-set", "seen", "--colour", "any")
    assert opened.pop() == ("seen", 32, "any")
    assert main([*command, "shaeps"]) == 2
    assert told(capsys).startswith("--data: unknown data 'shaeps'. Did you mean 'shapes'?")


def test_a_metric_that_is_reported_by_default_is_printed(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch.dict(MAP_METRICS):

        @map_metric("strength", title="Strength", default=True)
        class Strength(MeanMetric):
            def update(self, attribution: Tensor, mask: Tensor) -> None:
                super().update(torch.ones(len(attribution)))

        assert main([*command, "squares_of_a_user:build"]) == 0
    header, values = (line.split() for line in capsys.readouterr().out.splitlines()[:2])
    assert header[header.index("epg") :] == ["epg", "iou", "strength", "seconds", "kept"]
    assert float(dict(zip(header, values, strict=True))["strength"]) == 1


def test_the_table_holds_what_the_package_brings() -> None:
    own = ["decoy", "voc", "folder", "waterbirds", "coco", "imagenet9", "imagenet_s", "pets"]
    assert list(DATASETS) == [*own, "isic2017", "textured", "composite"]
    assert DATASETS["decoy"].image_size == 48
    assert [name for name, source in DATASETS.items() if not source.flips] == ["decoy", "textured"]
    assert [name for name, source in DATASETS.items() if not source.normalise] == ["decoy"]


def test_a_file_of_boxes_without_masks_is_asked_for_none(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "a.png")
    (tmp_path / "b.csv").write_text("image,xmin,ymin,xmax,ymax\na.png,0,0,4,4\n")
    found = DATASETS["folder"].factory(str(tmp_path), boxes=str(tmp_path / "b.csv"), masks=True)
    assert isinstance(found, ImageFolder) and not found.with_masks


def test_functions_of_the_user_that_raise(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Named(Dataset):
        classes, multilabel, transforms = ["a", "b"], False, None

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            if self.classes is not Named.classes:
                raise KeyError("a file")
            return torch.rand(3, 4, 4), "a", None

    def broken(image_set: str) -> Any:
        return {}["data"]

    def items(image_set: str) -> Any:
        data = Named()
        data.classes = ["a", "c"]
        return data

    photos = type(sys)("photos")
    for name, made in {
        "broken": broken,
        "names": lambda image_set: Named(),
        "items": items,
    }.items():
        setattr(photos, name, made)
    monkeypatch.setitem(sys.modules, "photos", photos)
    for name, message in (
        (
            "photos:broken",
            "'photos:broken', called with (image_set='train'), raises KeyError: 'data'. T",
        ),
        (
            "photos:names",
            "the labels of 'photos:names' make no tensor: 'a'. Give the index of a class",
        ),
        (
            "photos:items",
            "'photos:items [item]', called with (0), raises KeyError: 'a file'. The error",
        ),
        ("builtins:dict", "'builtins:dict' does not say what it takes"),
        (
            "./photos.py:broken",
            "'./photos.py:broken' has no module of Python before the colon. Did you",
        ),
    ):
        assert main([*command, name]) == 2
        assert told(capsys).startswith(f"--data: {message}")
