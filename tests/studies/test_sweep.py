"""`sweep` with trainings: points, files, links; killed, and gone on; two processes on one study."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from explainguide.checkpoints import load_checkpoint
from explainguide.errors import OptionError
from explainguide.studies import SweepResult

pytest.importorskip("optuna", reason="needs optuna: pip install explainguide[sweep]")

from . import sweeps

ROOT = Path(__file__).parent.parent.parent
TRAININGS = ("unguided/0000", "guided/0000", "guided/0001")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult]:
    """A sweep that was not interrupted."""
    out = tmp_path_factory.mktemp("whole")
    _, val_data = sweeps.images()
    return out, sweeps.run(out, test_data=val_data)


def fingerprints(out: Path) -> list[str]:
    files = (out / name / "weights.safetensors" for name in TRAININGS)
    return [sha256(file.read_bytes()).hexdigest() for file in files]


def program(out: Path, after: int, built: Path, storage: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.studies.sweeps", str(out), str(after), str(built), storage],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )


def test_each_epoch_of_each_training_is_a_point(whole: tuple[Path, SweepResult]) -> None:
    out, result = whole
    found = [(p["training"], p["epoch"], p["settings"]["lam"]) for p in result.points]
    assert found == [
        (training, epoch, lam)
        for training, lam in (("unguided 0", 0.0), ("guided 0", 0.5), ("guided 1", 5.0))
        for epoch in (1, 2)
    ]
    for point in result.points:
        kind, number = point["training"].split()
        folder = out / kind / f"{int(number):04d}"
        with (folder / "log.csv").open(newline="") as file:
            row = list(csv.DictReader(file))[point["epoch"] - 1]
        assert point["scores"]["epg"] == pytest.approx(float(row["epg"]))
        assert point["scores"]["accuracy"] == pytest.approx(float(row["accuracy"]))


def test_the_model_of_a_method_has_the_highest_epg(whole: tuple[Path, SweepResult]) -> None:
    """By hand: of the points with a checkpoint that lose no more than 5 points."""
    out, result = whole
    highest = max(p["scores"]["accuracy"] for p in result.points if p["method"] == "unguided")
    assert result.baseline == pytest.approx(highest)
    for method in ("guided", "unguided"):
        allowed = [
            p
            for p in result.points
            if p["method"] == method
            and p["checkpoint"]
            and p["scores"]["accuracy"] >= highest - 0.05 - 1e-9
        ]
        index = result.chosen[method]
        if not allowed:
            assert index is None
            continue
        assert index is not None
        chosen = result.points[index]
        assert chosen["scores"]["epg"] == max(p["scores"]["epg"] for p in allowed)
        payload = load_checkpoint(out / chosen["checkpoint"])
        assert payload["config"]["lam"] == chosen["settings"]["lam"]
        # The test images are those of evaluation here, so the scores are those of the point.
        assert result.test[method]["epg"] == pytest.approx(chosen["scores"]["epg"], abs=1e-6)


def test_every_link_of_the_page_leads_somewhere(whole: tuple[Path, SweepResult]) -> None:
    out, result = whole
    page = (out / "report.html").read_text()
    links = re.findall(r'href="([^"]+)"', page)
    assert {link for link in links if link.startswith("#")} <= {
        f"#{name}" for name in re.findall(r' id="([^"]+)"', page)
    }
    files = [link for link in links if not link.startswith("#")]
    assert {p["checkpoint"] for p in result.points if p["checkpoint"]} <= set(files)
    assert "guided/0001/config.json" in files
    assert all((out / file).is_file() for file in files)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|http-equiv', "", page)
    linked = re.findall(r'<a href="#(\w+)-(\d+)"><title>([^<]*)</title>', page)
    assert [f"{kind} {number}, epoch" for kind, number, _ in linked] == [
        text.rsplit(" ", len(text.split(" epoch ")[1].split(" ")))[0] for *_, text in linked
    ]
    assert len(linked) == len(result.points)
    assert "EPG against accuracy" in page


def test_points_are_kept_for_other_programs(whole: tuple[Path, SweepResult]) -> None:
    out, result = whole
    with (out / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epg"]) for row in rows] == [p["scores"]["epg"] for p in result.points]
    assert [row["lam"] for row in rows] == [str(p["settings"]["lam"]) for p in result.points]


def test_what_is_done_is_not_trained_again(whole: tuple[Path, SweepResult], tmp_path: Path) -> None:
    out, result = whole
    before = [(out / name / "last.pt").stat().st_mtime_ns for name in TRAININGS]
    again = sweeps.run(out, built=tmp_path / "built")
    assert [(out / name / "last.pt").stat().st_mtime_ns for name in TRAININGS] == before
    assert len((tmp_path / "built").read_text().splitlines()) == 1  # to check the layers
    assert again.points == result.points
    assert again.chosen == result.chosen


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"search": {"lam": [0.5, 50.0]}}, "search of lam was [0.5, 5.0], now [0.5, 50.0]"),
        (
            {"config": sweeps.TrainConfig(**{**sweeps.QUICK.to_dict(), "lr": 0.1})},
            "lr was 0.003, now 0.1",
        ),
        ({"objectives": ["accuracy", "epg"]}, "objectives was"),
    ],
)
def test_a_study_of_other_settings_is_refused(
    whole: tuple[Path, SweepResult], change: dict[str, Any], text: str
) -> None:
    out, _ = whole
    with pytest.raises(OptionError) as raised:
        sweeps.run(out, **change)
    assert str(raised.value).startswith(
        "sweep: the study 'sweep (unguided)' is of other settings: "
    )
    assert text in str(raised.value)
    assert "Use the same, or another name and folder." in str(raised.value)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_sweep_that_was_killed_goes_on(whole: tuple[Path, SweepResult], tmp_path: Path) -> None:
    """In the second epoch of the second training; then another process takes it up."""
    out, built = tmp_path / "killed", tmp_path / "built"
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    killed = program(out, 3 * 16 + 10, built, storage)
    killed.communicate()
    assert killed.returncode == -9
    assert (out / "guided/0000/last.pt").is_file()
    assert not (out / "guided/0000/weights.safetensors").exists()
    result = sweeps.run(out, storage=storage)
    assert {t["state"] for t in result.trainings} == {"complete"}
    assert [t["training"] for t in result.trainings] == ["unguided 0", "guided 0", "guided 1"]
    assert len(result.points) == 6
    assert fingerprints(out) == fingerprints(whole[0])


@pytest.mark.slow
def test_two_processes_share_a_study(whole: tuple[Path, SweepResult], tmp_path: Path) -> None:
    out, built = tmp_path / "shared", tmp_path / "built"
    storage = str(out / "study.journal")
    two = [program(out, 0, built, storage) for _ in range(2)]
    for process in two:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    builders = built.read_text().split()
    assert len(builders) == 2 + len(TRAININGS)  # each looks at the layers of one more
    assert len(set(builders)) == 2
    assert fingerprints(out) == fingerprints(whole[0])
    result = sweeps.run(out)
    assert {t["state"] for t in result.trainings} == {"complete"}
    assert len(result.trainings) == len(TRAININGS)
