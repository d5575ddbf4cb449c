"""What `sweep` chooses, stops and refuses: its trainings stand for real ones, and take no time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from explainguide.errors import DataError, ExplainGuideError, GuidanceError, LayerError, OptionError
from explainguide.studies import LogRange, sweep
from explainguide.training import History, TrainConfig

optuna = pytest.importorskip("optuna", reason="needs optuna: pip install explainguide[sweep]")

from explainguide.studies import run_sweep  # noqa: E402

from . import sweeps  # noqa: E402

BASE = TrainConfig(layer="stage2", epochs=3, device="cpu")
DATA: list[Any] = [(None, 1, None)] * 4


class Trained:
    """In place of `train`: scores are a formula of lam, and checkpoints are empty files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.configs: list[TrainConfig] = []
        self.data: list[Any] = []
        monkeypatch.setattr(run_sweep, "train", self)

    def scores(self, config: TrainConfig, epoch: int) -> tuple[float, float, float]:
        lam = config.lam or 0.0
        epg = 0.4 + 0.1 * math.log10(1 + lam) + 0.01 * epoch
        return 0.9 - 0.02 * lam + 0.001 * epoch, epg, 0.2

    def __call__(
        self,
        model: nn.Module,
        train_data: Any,
        val_data: Any,
        config: TrainConfig,
        *,
        on_epoch: Any,
        **options: Any,
    ) -> History:
        self.configs.append(config)
        self.data.append(train_data)
        assert config.output_dir is not None
        assert options["resume"]
        history = History()
        for epoch in range(1, config.epochs + 1):
            accuracy, epg, iou = self.scores(config, epoch)
            row = {"epoch": epoch, "loss": 1.0, "accuracy": accuracy, "epg": epg, "iou": iou}
            history.rows.append(row)
            (Path(config.output_dir) / f"epoch_{epoch:03d}.pt").touch()
            on_epoch(dict(row))
        return history

    @property
    def lambdas(self) -> list[float | None]:
        return [config.lam for config in self.configs]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    return Trained(monkeypatch)


def run(out: Path, search: Any, **options: Any) -> Any:
    given = {"config": BASE, "progress": False, **options}
    return sweep(sweeps.tiny, DATA, DATA, search=search, out=out, **given)


def test_a_grid_is_every_combination_once(trained: Trained, tmp_path: Path) -> None:
    result = run(
        tmp_path, {"lam": [1, 10], "loss": ["energy", "l1"], "layer": ["stage1", "stage2"]}
    )
    unguided, guided = trained.configs[:2], trained.configs[2:]
    assert [(c.lam, c.layer) for c in unguided] == [(0.0, "stage1"), (0.0, "stage2")]
    found = [(c.lam, c.loss, c.layer) for c in guided]
    expected = [
        (lam, loss, layer)
        for lam in (1, 10)
        for loss in ("energy", "l1")
        for layer in ("stage1", "stage2")
    ]
    assert found == expected
    assert set(result.chosen) == {
        *("unguided, stage1", "unguided, stage2"),
        *(f"{loss}, {layer}" for loss in ("energy", "l1") for layer in ("stage1", "stage2")),
    }
    assert all(data is trained.data[0] for data in trained.data)


def test_the_model_loses_no_more_than_is_allowed(trained: Trained, tmp_path: Path) -> None:
    """Accuracy falls by 0.02 lam, so that 2 is within 5 points and 10 is not."""
    result = run(tmp_path, {"lam": [1, 2, 10]})
    assert result.baseline == pytest.approx(0.903)
    point = result.points[result.chosen["guided"]]
    assert (point["settings"]["lam"], point["epoch"]) == (2, 3)
    told = run(tmp_path / "told", {"lam": [1, 2, 10]}, baseline=0.75)
    assert trained.lambdas[4:] == [1, 2, 10]  # no unguided ones
    assert told.points[told.chosen["guided"]]["settings"]["lam"] == 10
    narrow = run(tmp_path, {"lam": [1, 2, 10]}, max_drop=0.03)
    assert narrow.points[narrow.chosen["guided"]]["settings"]["lam"] == 1
    none = run(tmp_path / "told", {"lam": [1, 2, 10]}, baseline=1.0)
    assert none.chosen == {"guided": None}
    assert "none is within the limit" in (tmp_path / "told" / "report.html").read_text()


def test_the_front_is_that_of_all_epochs(trained: Trained, tmp_path: Path) -> None:
    """By comparing all pairs, in the bins of half a point of the papers' program."""
    result = run(tmp_path, {"lam": [0.1, 1, 3, 10], "loss": ["energy", "l1"]})
    cells = [
        tuple(round(p["scores"][key] / 0.005) for key in ("accuracy", "epg", "iou"))
        for p in result.points
    ]
    front = [
        i
        for i, a in enumerate(cells)
        if not any(
            all(y >= x for x, y in zip(a, b, strict=True)) and (b != a or j < i)
            for j, b in enumerate(cells)
            if j != i
        )
    ]
    assert result.front == front
    assert 0 < len(front) < len(cells)


def test_seeds_are_searched_with_and_without_guidance(trained: Trained, tmp_path: Path) -> None:
    result = run(tmp_path, {"lam": [1], "seed": [0, 1]})
    assert [(c.lam, c.seed) for c in trained.configs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert set(result.chosen) == {"unguided", "guided"}


def test_methods_can_be_told_apart_by_numbers(trained: Trained, tmp_path: Path) -> None:
    result = run(tmp_path, {"lam": [1, 2], "annotated": [0.1, 1.0]}, methods=["annotated"])
    assert set(result.chosen) == {"unguided", "0.1", "1.0"}


def test_lists_are_searched_too(trained: Trained, tmp_path: Path) -> None:
    run(tmp_path, {"layer": ["stage1", ["stage1", "stage2"]]}, baseline=0.5)
    assert [c.options.place(sweeps.tiny()).layers.keys() for c in trained.configs] == [
        {"stage1": 0}.keys(),
        {"stage1": 0, "stage2": 0}.keys(),
    ]


@pytest.mark.parametrize("sampler", ["random", "nsga2"])
def test_samplers_draw_from_ranges_and_go_on(
    trained: Trained, tmp_path: Path, sampler: str
) -> None:
    search = {"lam": LogRange(0.01, 100.0), "loss": ["energy", "l1"]}
    run(tmp_path, search, sampler=sampler, trials=6, baseline=0.8)
    result = run(tmp_path, search, sampler=sampler, trials=12, baseline=0.8)
    lambdas = [float(lam or 0) for lam in trained.lambdas]
    assert len(lambdas) == 12
    # A child of NSGA-II can be as its parent, and a process draws as the one before: neither is trained.
    assert len({(c.lam, c.loss) for c in trained.configs}) == 12
    assert all(0.01 <= lam <= 100 for lam in lambdas)
    assert min(lambdas) < 1 < max(lambdas)
    assert {c.loss for c in trained.configs} == {"energy", "l1"}
    assert len({p["training"] for p in result.points}) == 12


def test_a_sampler_ends_where_nothing_is_new(trained: Trained, tmp_path: Path) -> None:
    result = run(tmp_path, {"lam": [1, 2, 3]}, sampler="random", trials=5, baseline=0.8)
    assert sorted(trained.lambdas) == [1, 2, 3]
    assert len(result.trainings) == 3


def test_optuna_learns_the_best_epoch(trained: Trained, tmp_path: Path) -> None:
    run(tmp_path, {"lam": [1]}, storage=f"sqlite:///{tmp_path}/study.db", name="mine")
    study = optuna.load_study(study_name="mine", storage=f"sqlite:///{tmp_path}/study.db")
    (trial,) = study.trials
    assert trial.params == {"lam": 1}
    assert trial.values == pytest.approx(trained.scores(trained.configs[-1], 3))


def test_a_training_that_is_behind_in_everything_is_stopped(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth and the sixth; the sixth is behind in two scores of three only."""

    def scores(config: TrainConfig, epoch: int) -> tuple[float, float, float]:
        bad = config.seed in (4, 5)
        return (0.2 if bad else 0.8), (0.2 if bad else 0.6), (0.1 if config.seed == 4 else 0.3)

    monkeypatch.setattr(trained, "scores", scores)
    result = run(tmp_path, {"seed": list(range(6))}, baseline=0.8, prune_after=2)
    assert [t["state"] for t in result.trainings] == [*["complete"] * 4, "pruned", "complete"]
    assert [p["epoch"] for p in result.points if p["training"] == "guided 4"] == [1, 2]
    assert len(trained.configs) == 6
    run(tmp_path, {"seed": list(range(6))}, baseline=0.8, prune_after=2)
    assert len(trained.configs) == 6  # it is not begun again


def test_a_training_that_diverges_is_told_and_the_others_go_on(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(config: TrainConfig, epoch: int) -> tuple[float, float, float]:
        if (config.lam or 0) > 1 and epoch == 2:
            raise GuidanceError("the loss is nan.")
        return 0.8, 0.5, 0.2

    monkeypatch.setattr(trained, "scores", scores)
    result = run(tmp_path, {"lam": [1, 10]}, baseline=0.8)
    assert [t["state"] for t in result.trainings] == ["complete", "fail"]
    assert "the loss is nan." in result.trainings[1]["error"]
    assert "the loss is nan." in (tmp_path / "report.html").read_text()
    run(tmp_path, {"lam": [1, 10]}, baseline=0.8)
    assert trained.lambdas == [1, 10]
    with pytest.raises(
        GuidanceError, match=r"^sweep: every training failed; the first said: .*nan"
    ):
        run(tmp_path / "all", {"lam": [10, 20]}, baseline=0.8)


def test_another_error_stops_the_sweep_and_the_training_is_taken_up(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, full = trained.scores, [True]

    def scores(config: TrainConfig, epoch: int) -> tuple[float, float, float]:
        if config.lam == 10 and full:
            raise DataError("the disk is full.")
        return usual(config, epoch)

    monkeypatch.setattr(trained, "scores", scores)
    with pytest.raises(DataError, match="the disk is full"):
        run(tmp_path, {"lam": [1, 10]}, baseline=0.8)
    full.clear()
    result = run(tmp_path, {"lam": [1, 10]}, baseline=0.8)
    assert trained.lambdas == [1, 10, 10]
    assert trained.configs[1].output_dir == trained.configs[2].output_dir
    assert [t["training"] for t in result.trainings] == ["guided 0", "guided 1"]


def test_scores_that_are_not_known_play_no_part(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "scores", lambda c, e: (0.5 + 0.1 * e, math.nan, math.nan))
    result = run(tmp_path, {"lam": [1]}, baseline=0.5)
    assert result.front == [2]
    assert result.chosen == {"guided": None}


def test_labels_of_several_classes_are_judged_by_f1(tmp_path: Path) -> None:
    import torch

    several = [None, (None, torch.tensor([1.0, 0.0]), None)]
    assert run_sweep._objectives(None, several) == ["f1", "epg", "iou"]
    assert run_sweep._objectives(None, DATA) == ["accuracy", "epg", "iou"]


MISTAKES: list[tuple[dict[str, Any], type[ExplainGuideError], str]] = [
    ({"search": {}}, OptionError, "search is {}. Say what to search, as {'lam': [0.1, 1, 10]}."),
    (
        {"search": {"lamb": [1]}},
        OptionError,
        "unknown setting to search 'lamb'. Did you mean 'lam'",
    ),
    ({"search": {"device": ["cpu"]}}, OptionError, "device is not searched: it says how trainings"),
    ({"search": {"threshold": [0.1]}}, OptionError, "threshold is not searched"),
    ({"search": {"lam": 1.0}}, OptionError, "search has 1.0 for lam. Write a list, as [1.0]."),
    ({"search": {"loss": "l1"}}, OptionError, "search has 'l1' for loss. Write a list, as ['l1']."),
    ({"search": {"lam": []}}, OptionError, "search has [] for lam."),
    ({"search": {"lam": [1, 1]}}, OptionError, "search has 1 for lam twice. Leave one out."),
    (
        {"search": {"lam": [0, 1]}},
        OptionError,
        "search has lam=0. Leave it out: unguided trainings",
    ),
    ({"search": {"lam": [-1]}}, OptionError, "lam is -1. A number from 0 on is allowed."),
    ({"search": {"loss": ["l2"]}}, OptionError, "unknown loss 'l2'. Did you mean 'l1'?"),
    ({"search": {"layer": ["stage9"]}}, LayerError, "unknown layer 'stage9'. Did you mean 'stage"),
    (
        {"search": {"lam": LogRange(1, 2)}},
        OptionError,
        "search has a range for lam, which is no grid. Use a list of values, or sampler='random'.",
    ),
    (
        {"search": {"epochs": LogRange(1, 2)}, "sampler": "random", "trials": 2},
        OptionError,
        "search has a range for epochs, which is no number with a fraction. Use a list.",
    ),
    (
        {"search": {"seed": [0]}, "config": replace(BASE, lam=0.0)},
        OptionError,
        "lam is 0, so that no training would be guided. Search it",
    ),
    ({"sampler": "tpe"}, OptionError, "unknown sampler 'tpe'. 'grid', 'random', 'nsga2' are allow"),
    (
        {"sampler": "random"},
        OptionError,
        "trials is None with sampler='random'. Say how many train",
    ),
    (
        {"trials": 3},
        OptionError,
        "trials is 3 with sampler='grid'. Leave it out: a grid has as man",
    ),
    (
        {"sampler": "nsga2", "trials": 0},
        OptionError,
        "trials is 0. A whole number from 1 on is all",
    ),
    ({"baseline": 85}, OptionError, "baseline is 85. Did you mean 0.85?"),
    ({"max_drop": -0.1}, OptionError, "max_drop is -0.1. A number from 0 to 1 is allowed."),
    ({"prune_after": 0}, OptionError, "prune_after is 0. A whole number from 1 on is allowed."),
    ({"methods": ["loss"]}, OptionError, "unknown field of methods 'loss'. 'lam' are allowed."),
    ({"objectives": ["epg"]}, OptionError, "objectives are ['epg']. Name the score of the answers"),
    ({"objectives": ["accuracy", "worst"]}, OptionError, "unknown objective 'worst'."),
    (
        {"storage": "sqlite:////no/such/folder/study.db"},
        DataError,
        "storage 'sqlite:////no/such/folder/study.db' cannot be reached or read (OperationalError",
    ),
    ({"storage": "nosuch://host/db"}, DataError, "storage 'nosuch://host/db' cannot be reached"),
]


@pytest.mark.parametrize(("change", "error", "text"), MISTAKES, ids=lambda v: str(v)[:40])
def test_mistakes(
    trained: Trained,
    tmp_path: Path,
    change: dict[str, Any],
    error: type[ExplainGuideError],
    text: str,
) -> None:
    options = {"search": {"lam": [1.0]}, **change}
    with pytest.raises(error) as raised:
        run(tmp_path, **options)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_password_is_not_shown(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ExplainGuideError) as raised:
        run(tmp_path, {"lam": [1]}, storage="nosuch://me:secret@host/db")
    assert "secret" not in str(raised.value)
    assert "nosuch://me:***@host/db" in str(raised.value)


def test_a_file_that_is_no_journal(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("nothing of Optuna's\n")
    with pytest.raises(DataError, match=r"^sweep: storage '.*notes.txt' cannot be reached or read"):
        run(tmp_path / "out", {"lam": [1]}, storage=str(file))


def test_a_folder_of_another_study(trained: Trained, tmp_path: Path) -> None:
    run(tmp_path, {"lam": [1]}, baseline=0.8)
    with pytest.raises(OptionError, match="is of other settings"):
        run(tmp_path, {"lam": [2]}, baseline=0.8)


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(OptionError, match=r"^sweep: Optuna is not installed\. `pip install expl"):
        run(tmp_path, {"lam": [1]})


def test_a_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="a launcher started this process as one of several"):
        run(tmp_path, {"lam": [1]})


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((0, 1), "LogRange: 0 is no end of a range of factors. Use a small number such as 0.001."),
        (("1", 2), "LogRange: '1' is no end of a range of factors."),
        ((2, 1), "LogRange: the range is from 2 to 1. Write the smaller first"),
    ],
)
def test_ranges_that_are_none(ends: Any, text: str) -> None:
    with pytest.raises(OptionError) as raised:
        LogRange(*ends)
    assert str(raised.value).startswith(text)
