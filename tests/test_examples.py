"""The programs in examples/: each is short, says what it does, and runs with `--smoke`."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2.functional import to_pil_image

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
_BOX = "<bndbox><xmin>11</xmin><ymin>9</ymin><xmax>40</xmax><ymax>32</ymax></bndbox>"


def run(example: str, folder: Path, *arguments: str) -> str:
    """Run a program in a folder of its own, on one thread; its output."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / example), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_examples() -> None:
    assert {"three_lines.py", "voc_finetune.py", "own_images.py"} <= {e.name for e in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_under_80_lines_with_a_docstring_that_shows_the_command(example: Path) -> None:
    source = example.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 80
    text = ast.get_docstring(ast.parse(source))
    assert text is not None
    assert f"python examples/{example.name}" in text


def both_losses_fall(output: str) -> None:
    steps = re.findall(r"loss (\d\.\d+)  loss_loc (\d\.\d+)", output)
    (first, first_loc), *_, (last, last_loc) = [(float(a), float(b)) for a, b in steps]
    assert last < 0.7 * first
    assert last_loc < 0.9 * first_loc


def table_of_maps(output: str) -> None:
    assert {"epg", "iou"} <= set(re.split(r"[ |\n]+", output))


def table_of_trainings(output: str) -> None:
    assert {"before", "robustvit", "boosting only", "labels only"} <= set(
        re.findall(r"^(\w+(?: only)?)  ", output, re.MULTILINE)
    )
    assert re.search(r"other background .* mIoU +mAP +EPG", output)


def table_of_networks(output: str) -> None:
    rows = re.findall(
        r"^\| (vanilla|X-DNN|B-cos) \| (input|final) \| (.*) \|$", output, re.MULTILINE
    )
    assert len(rows) == 6
    assert all(len(cells.split(" | ")) == 4 and "-" not in cells for *_, cells in rows)


def table_of_features(output: str) -> None:
    rows = re.findall(r"^\| (vanilla|X-DNN|B-cos) \| .*\d\.\d.* \|$", output, re.MULTILINE)
    assert rows == ["vanilla", "X-DNN", "B-cos"]


CHECKS = {
    "three_lines.py": both_losses_fall,
    "voc_finetune.py": table_of_maps,
    "own_images.py": table_of_maps,
    "robustvit_run.py": table_of_trainings,
    "bcos_compare.py": table_of_networks,
    "bcos_features.py": table_of_features,
}


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
def test_smoke(example: Path, tmp_path: Path) -> None:
    output = run(example.name, tmp_path, "--smoke")
    assert output
    CHECKS.get(example.name, lambda _: None)(output)


@pytest.fixture
def tiny_voc(tmp_path: Path) -> Path:
    """Eight images of a cat or a dog, in VOC's folders."""
    root = tmp_path / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for i, name in enumerate(["cat", "dog"] * 4):
        image = torch.randint(0, 90, (3, 48, 64), dtype=torch.uint8)
        image[i % 2, 8:32, 10:40] = 250
        to_pil_image(image).save(root / "JPEGImages" / f"{i}.jpg")
        (root / "Annotations" / f"{i}.xml").write_text(
            f"<annotation><object><name>{name}</name><difficult>0</difficult>{_BOX}</object>"
            "</annotation>"
        )
    for split in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join("01234567"))
    return root


@pytest.mark.slow
def test_voc_finetune_goes_on_from_its_own_weights(tiny_voc: Path, tmp_path: Path) -> None:
    common = (f"--root={tiny_voc}", "--size=64", "--epochs=1", "--batch-size=4")
    run("voc_finetune.py", tmp_path, *common, "--out=start.safetensors")
    table = run(
        "voc_finetune.py", tmp_path, *common, "--start=start.safetensors", "--lam=0.3",
        "--loss=l1", "--limit=4", "--out=l1.safetensors",
    )  # fmt: skip
    table_of_maps(table)
    assert (tmp_path / "l1.safetensors").read_bytes() != (
        tmp_path / "start.safetensors"
    ).read_bytes()
    run(
        "voc_panels.py", tmp_path, "start.safetensors", "l1.safetensors", f"--root={tiny_voc}",
        "--size=64", "--out=maps.png",
    )  # fmt: skip
    assert (tmp_path / "maps.png").stat().st_size > 10_000


@pytest.fixture
def tiny_animals(tmp_path: Path) -> Path:
    """Ten images of five classes with masks, in VOC's folders, and two scenes beside them."""
    root = tmp_path / "animals"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets"):
        (root / folder).mkdir(parents=True)
    classes = {"cat": 8, "dog": 12, "horse": 13, "sheep": 17, "cow": 10}
    lines = []
    for i, (name, index) in enumerate([*classes.items()] * 2):
        image = torch.randint(0, 90, (3, 48, 64), dtype=torch.uint8)
        image[i % 3, 8:32, 10:40] = 250
        mask = torch.zeros(1, 48, 64, dtype=torch.uint8)
        mask[:, 8:32, 10:40] = index
        mask[:, 8, 10:40] = 255  # void
        to_pil_image(image).save(root / "JPEGImages" / f"{i}.jpg")
        to_pil_image(mask).save(root / "SegmentationClass" / f"{i}.png")
        lines.append(f"{i} {name}")
    for split in ("train", "val", "test"):
        (root / "ImageSets" / f"single_{split}.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "scenes" / "test" / "sea").mkdir(parents=True)
    for i in range(2):
        to_pil_image(torch.full((3, 40, 40), 99 * i, dtype=torch.uint8)).save(
            tmp_path / "scenes" / "test" / "sea" / f"{i}.jpg"
        )
    return root


@pytest.mark.slow
def test_robustvit_run_keeps_its_base_and_writes_a_page(tiny_animals: Path, tmp_path: Path) -> None:
    common = (
        f"--root={tiny_animals}", "--scenes=scenes", "--base=base.safetensors", "--epochs=1",
        "--tune-epochs=1", "--per-class=2", "--lrs=1e-4,1e-3",
    )  # fmt: skip
    table_of_trainings(run("robustvit_run.py", tmp_path, *common))
    base = (tmp_path / "base.safetensors").read_bytes()
    numbers = json.loads((tmp_path / "robustvit.json").read_text())
    before, *searched = [row for row in numbers["rows"] if row["split"] == "val"]
    assert (before["training"], before["lr"]) == ("before", 0)
    assert [row["lr"] for row in searched] == [1e-4, 1e-3, 1e-4, 1e-3]
    output = run("robustvit_run.py", tmp_path, *common, "--seeds=0,1")
    assert (tmp_path / "base.safetensors").read_bytes() == base
    again = json.loads((tmp_path / "robustvit.json").read_text())
    assert again["rows"][:-4] == numbers["rows"]  # it went on from there, with seed 1
    assert " to " in output  # lowest to highest of the seeds
    run("robustvit_run.py", tmp_path, "--table=page.md")
    assert "| robustvit " in (tmp_path / "page.md").read_text()
