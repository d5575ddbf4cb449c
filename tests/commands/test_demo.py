"""`explainguide demo`: it runs, is the same each time, says what came out, and works."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from explainguide.cli import main
from explainguide.cli.demo import tell
from explainguide.demo import (
    DEFAULT_RUNS,
    SETTINGS,
    Run,
    SmoothMaximum,
    build_network,
    train_run,
)

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "demo_seeds.py"


def test_the_smoke_run_prints_a_table_and_writes_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--smoke", "--quiet", "--out", str(tmp_path / "made" / "here")]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].split() == (
        [
            "run",
            "accuracy",
            "with",
            "decoy",
            "accuracy",
            "without",
            "decoy",
            "worst",
            "class",
            "EPG",
            "IoU",
            "time",
        ]
    )
    assert [re.split(r"  +", line)[0] for line in lines[1:4]] == list(DEFAULT_RUNS)
    page = tmp_path / "made" / "here" / "index.html"
    assert lines[-2].endswith("open this page in a browser:")
    assert lines[-1] == str(page)
    assert output.err == ""
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]
    text = page.read_text(encoding="utf-8")
    assert text.count('src="data:image/png;base64,') == 2
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert "score=log_prob" in text


def test_one_seed_means_one_result_and_another_seed_another() -> None:
    first, again, other = (
        train_run("guided", SETTINGS["guided"], seed=seed, epochs=1, images=64)
        for seed in (0, 0, 1)
    )
    assert first.scores == again.scores
    assert first.history == again.history
    assert torch.equal(_weights(first), _weights(again))
    assert other.history != first.history


def _weights(run: Run) -> torch.Tensor:
    return nn.utils.parameters_to_vector(run.model.parameters())


def test_guided_and_unguided_begin_alike() -> None:
    first_losses = []
    for name in ("unguided", "guided"):
        seen: list[dict[str, float]] = []
        train_run(name, SETTINGS[name], seed=3, epochs=1, images=64, on_epoch=seen.append)
        first_losses.append(seen[0]["loss"])
        assert len(seen) == 1
        assert ("loss_loc" in seen[0]) == (name == "guided")
    assert first_losses[0] == first_losses[1]


def test_a_run_leaves_nothing_behind() -> None:
    threads = torch.get_num_threads()
    run = train_run("guided", SETTINGS["guided"], seed=0, epochs=1, images=64)
    assert torch.get_num_threads() == threads
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.model.modules())
    assert not run.model.training


@pytest.mark.parametrize("sharpness", [0.01, 2.0, 100.0])
def test_smooth_maximum_lies_between_mean_and_maximum(sharpness: float) -> None:
    feature = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    pooled = SmoothMaximum(sharpness)(feature)
    assert pooled.shape == (2, 3)
    assert (pooled >= feature.mean((2, 3)) - 1e-9).all()
    assert (pooled <= feature.amax((2, 3)) + 1e-9).all()


def test_the_network_has_six_convolutions() -> None:
    network = build_network()
    widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [16, 16, 32, 32, 64, 64]
    assert network(torch.rand(2, 3, 48, 48)).shape == (2, 10)


def _run(name: str, without: float, epg: float) -> Run:
    scores = {"accuracy with decoy": 1.0, "accuracy without decoy": without, "EPG": epg}
    return Run(name, nn.Identity(), scores)


def test_the_story_follows_the_numbers() -> None:
    story = tell([_run("unguided", 0.08, 0.12), _run("guided", 0.97, 0.99)], epochs=12)
    assert "the unguided network is right on 100% of the test images" in story
    assert "on 8% (guessing gives 10%): it had learned the patch" in story
    assert "it keeps 97%, and 99% instead of 12%" in story


def test_the_story_of_a_training_that_was_too_short() -> None:
    story = tell([_run("unguided", 0.1, 0.5), _run("guided", 0.12, 0.5)], epochs=1)
    assert "After 1 epoch of training that shows little" in story


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: 0 trains nothing. 1 or more is allowed."),
        (["--seed", "-1"], "--seed: -1 is negative. 0 or more is allowed."),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments, "--out", str(tmp_path / "page")]) == 2
    assert capsys.readouterr().err == f"explainguide: {message}\n"
    assert not (tmp_path / "page").exists()


def test_a_file_in_the_place_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page").write_text("mine")
    assert main(["demo", "--smoke", "--out", str(tmp_path / "page")]) == 2
    assert capsys.readouterr().err == f"explainguide: File exists: '{tmp_path / 'page'}'.\n"
    assert (tmp_path / "page").read_text() == "mine"


def test_the_benchmark_makes_a_table_of_its_record() -> None:
    benchmark = runpy.run_path(str(BENCHMARK))
    scores = dict.fromkeys(benchmark["SCORES"], 0.5)
    record = {
        "device": "CPU",
        "versions": {"torch": "2"},
        "settings": {"guided": "text"},
        "results": [
            {"run": "guided", "seed": 0, **scores, "EPG": 0.9, "seconds": 10.0},
            {"run": "guided", "seed": 1, **scores, "EPG": 0.8, "seconds": 12.0},
        ],
    }
    lines = benchmark["to_markdown"](json.loads(json.dumps(record))).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[0] == "guided"
    assert cells[4:] == ["85.0 (80.0 to 90.0)", "50.0 (50.0 to 50.0)", "0, 1", "11"]
    assert lines[-1] == "Percent, mean (lowest to highest); CPU; torch 2."


@pytest.mark.slow
def test_the_unguided_network_falls_to_chance_and_the_guided_one_does_not() -> None:
    unguided, guided = (
        train_run(name, SETTINGS[name], seed=5).scores for name in ("unguided", "guided")
    )
    assert unguided["accuracy with decoy"] > 0.98
    assert unguided["accuracy without decoy"] < 0.2
    assert guided["accuracy without decoy"] > 0.9
    assert guided["EPG"] > unguided["EPG"] + 0.5
