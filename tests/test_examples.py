"""The programs in examples/: each is short, says what it does, and runs with `--smoke`."""

from __future__ import annotations

import ast
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


CHECKS = {
    "three_lines.py": both_losses_fall,
    "voc_finetune.py": table_of_maps,
    "own_images.py": table_of_maps,
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
