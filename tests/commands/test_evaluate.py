"""`explainguide evaluate`: models by name, several attributions and layers, files, a report, mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from explainguide.attr import InputXGradient
from explainguide.cli import main
from explainguide.datasets import DATASETS, DataSource, ImageFolder
from explainguide.metrics import energy_pointing_game
from explainguide.models import small_cnn

from .test_train import SMALL, write_images

QUIET = ("--quiet", "--device", "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, held-out images, and the weights of two models, which were not trained."""
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder / "images", 6)
    write_images(folder / "held_out", 3)
    for name, seed in (("one", 1), ("other", 2)):
        torch.manual_seed(seed)
        torch.save(small_cnn(2, widths=(4, 4, 4, 4, 8, 8)).state_dict(), folder / f"{name}.pth")
    (folder / "small.py").write_text(
        "from explainguide.models import small_cnn\n"
        "def build(num_classes):\n"
        "    return small_cnn(num_classes, widths=(4, 4, 4, 4, 8, 8))\n"
        "class Pair(__import__('torch').nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.inner = build(num_classes)\n"
        "    def forward(self, images):\n"
        "        logits = self.inner(images)\n"
        "        return -logits, logits\n"
    )
    inner = {
        f"inner.{name}": v for name, v in torch.load(folder / "one.pth", weights_only=True).items()
    }
    torch.save(inner, folder / "pair.pth")
    return folder


@pytest.fixture
def judge(photos: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command, up to what is judged."""
    monkeypatch.syspath_prepend(str(photos))
    weights = [str(photos / f"{name}.pth") for name in ("one", "other")]
    return [
        *("evaluate", "small:build", "--weights", *weights, "--size", "24", *QUIET),
        *("--data", "folder", "--root", f"{photos}/images", "--boxes", f"{photos}/images.csv"),
    ]


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_every_model_attribution_and_layer_has_a_row(
    judge: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--csv", str(tmp_path / "a" / "t.csv"), "--json", str(tmp_path / "t.json")]
    asked = ["--attribution", "ixg", "captum:Saliency", "center", "--layer", "input", "stage2"]
    assert main([*judge, *asked, "--metrics", "epg", "pxap", *files]) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = table(tmp_path / "a" / "t.csv")
    assert len(shown) == 1 + len(rows)
    kinds = [("ixg", "input"), ("ixg", "stage2"), ("captum:Saliency", "input"), ("center", "input")]
    assert [(row["attribution"], row["layer"]) for row in rows] == kinds * 2
    assert [Path(row["checkpoint"]).stem for row in rows] == ["one"] * 4 + ["other"] * 4
    assert all({"epg", "pxap", "accuracy"} <= row.keys() for row in rows)
    again = json.loads((tmp_path / "t.json").read_text())
    assert [row["epg"] for row in again] == [float(row["epg"]) for row in rows]
    alone = [*judge, "--attribution", "ixg", "--layer", "stage2", "--metrics", "epg", "pxap"]
    assert main([*alone, "--csv", str(tmp_path / "alone.csv")]) == 0
    assert table(tmp_path / "alone.csv")[0]["pxap"] == rows[1]["pxap"]


def test_a_method_that_fails_is_named_and_the_others_go_on(
    judge: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--attribution", "captum:GuidedBackprop", "ixg", "--layer", "stage2"]
    assert main([*judge, *asked, "--csv", str(tmp_path / "t.csv")]) == 0
    told = capsys.readouterr().err
    assert told.count("left out: --attribution: Sequential has no nn.ReLU module") == 2
    assert [row["attribution"] for row in table(tmp_path / "t.csv")] == ["ixg"] * 2
    assert main([*judge, "--attribution", "captum:GuidedBackprop"]) == 2
    assert "nothing could be judged; the lines above say why." in capsys.readouterr().err


def test_maps_are_saved_by_the_name_of_the_image(
    judge: list[str], photos: Path, tmp_path: Path
) -> None:
    asked = ["--attribution", "ixg", "--layer", "stage2", "--metrics", "epg"]
    files = ["--save-maps", str(tmp_path / "maps"), "--csv", str(tmp_path / "t.csv")]
    assert main([*judge, *asked, *files]) == 0
    found = sorted((tmp_path / "maps").rglob("*.npz"))
    assert len(found) == 2 * 12
    assert {path.parent.name for path in found} == {"left", "right"}
    scores = []
    for path in found:
        if "one" not in str(path):
            continue
        saved = np.load(path)
        assert saved["maps"].shape == (1, 24, 24)
        assert saved["names"].tolist() == [path.parent.name]
        region = torch.zeros(1, 24, 24)
        left = 2 if path.parent.name == "left" else 20
        x1, x2 = left * 24 / 40, (left + 14) * 24 / 40
        region[0, 8 * 24 // 32 : 24 * 24 // 32, int(x1) : int(np.ceil(x2))] = 1
        scores.append(float(energy_pointing_game(torch.from_numpy(saved["maps"]), region)))
    assert np.mean(scores) == pytest.approx(float(table(tmp_path / "t.csv")[0]["epg"]), abs=1e-5)


def test_the_report_and_going_on(
    judge: list[str],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_out = ["--fit-on", f"{photos}/held_out", "--fit-boxes", f"{photos}/held_out.csv"]
    asked = ["--attribution", "ixg", "--layer", "stage2", "input", "--title", "A <b> & c"]
    report = tmp_path / "report"
    command = [*judge, *asked, *held_out, "--report", str(report)]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert f"The report is {report}/report.html" in first
    page = (report / "report.html").read_text()
    assert "A &lt;b&gt; &amp; c" in page
    for text in ("for reference", "What is not shown", "By class", "center", "stage2", "paired"):
        assert text in page
    kept = sorted((report / "scores").iterdir())
    assert len(kept) == 2 + 3  # two models, and the references once

    # What was measured is not measured again; what is missing, as after an interruption, is.
    import explainguide.cli.evaluation_rows as rows

    measured = []
    monkeypatch.setattr(
        rows, "evaluate", lambda *a, real=rows.evaluate, **k: (measured.append(k), real(*a, **k))[1]
    )
    kept[0].unlink()
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert len([k for k in measured if k["metrics"]]) == 1  # pictures need maps, not metrics
    assert sorted((report / "scores").iterdir()) == kept

    # Other settings have scores of their own.
    assert main([*command, "--limit", "5"]) == 0
    assert len(list((report / "scores").iterdir())) == 10


def test_options_of_a_data_set_have_scores_of_their_own(
    judge: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_half(root: str, *, boxes: str | None = None, half: str = "0") -> ImageFolder:
        data = ImageFolder(root, boxes)
        data.labels.fill_(int(half))
        return data

    source = DataSource("a half", open_half, options={"half": "0 or 1"})
    monkeypatch.setitem(DATASETS, "halves", source)
    files = ["--report", str(tmp_path / "report"), "--csv", str(tmp_path / "t.csv")]
    accuracies = []
    for half in ("0", "1"):
        data = ["--data", "halves", "--half", half]
        assert main([*judge, *data, "--layer", "stage2", *files]) == 0
        accuracies.append(float(table(tmp_path / "t.csv")[0]["accuracy"]))
    assert sum(accuracies) == 1


@pytest.mark.parametrize("output", ["1", "0"])
def test_the_output_is_read_by_every_attribution_and_metric(
    judge: list[str], photos: Path, tmp_path: Path, output: str
) -> None:
    files = ["--csv", str(tmp_path / "t.csv")]
    asked = ["--attribution", "ixg", "captum:Saliency", "--metrics", "epg", "deletion"]
    at = judge.index("--size")
    pair = ["evaluate", "small:Pair", "--weights", str(photos / "pair.pth"), *judge[at:]]
    assert main([*pair, *asked, "--output", output, *files]) == 0
    pairs = table(tmp_path / "t.csv")
    assert main([*judge[:4], *judge[at:], *asked, *files]) == 0
    ones = table(tmp_path / "t.csv")
    same = [a["deletion_area"] == b["deletion_area"] for a, b in zip(pairs, ones, strict=True)]
    assert same == [output == "1"] * 2
    report = ["--output", output, "--report", str(tmp_path / "report"), "--metrics", "epg"]
    assert main([*pair, "--attribution", "captum:Saliency", *report]) == 0


def test_undefined_maps_of_a_metric_with_several_numbers_are_told(
    judge: list[str], photos: Path, tmp_path: Path
) -> None:
    (photos / "flat.py").write_text(
        "def flat(model, images, target):\n    return images.sum(1) * 0\n"
    )
    asked = ["--attribution", "flat:flat", "--metrics", "deletion", "--report", str(tmp_path / "r")]
    assert main([*judge, *asked]) == 0
    assert "12 of 12 undefined" in (tmp_path / "r" / "report.html").read_text()


def trained(folder: Path, images: Path) -> str:
    """A checkpoint that is evaluated on its own images."""
    where = ["--root", str(images), "--boxes", f"{images}.csv"]
    own = ["--val-root", str(images), "--val-boxes", f"{images}.csv", "--size", "24"]
    model = ["--model", "small:build", "--layer", "stage2", "--lam", "0.5", "--epochs", "1"]
    out = ["--out", str(folder)]
    assert main(["train", "--data", "folder", *where, *own, *model, *out, *QUIET]) == 0
    return str(folder / "last.pt")


def test_two_checkpoints_with_images_of_their_own_are_not_paired(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(photos))
    first = trained(tmp_path / "a", photos / "images")
    again = trained(tmp_path / "b", photos / "images")
    other = trained(tmp_path / "c", write_images(tmp_path / "others", 6))
    for second, paired in ((again, True), (other, False)):
        report = tmp_path / f"report-{paired}"
        assert main(["evaluate", first, second, "--report", str(report), *QUIET]) == 0
        assert ("Differences on the same images" in (report / "report.html").read_text()) == paired


def test_two_checkpoints_with_other_classes_are_refused(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(photos))
    images = write_images(tmp_path / "others", 2)
    (images / "right").rename(images / "up")
    boxes = Path(f"{images}.csv")
    boxes.write_text(boxes.read_text().replace("right/", "up/"))
    both = [trained(tmp_path / "a", photos / "images"), trained(tmp_path / "b", images)]
    assert main(["evaluate", *both, *QUIET]) == 2
    told = capsys.readouterr().err
    assert (
        f"class 1 of the data of '{both[1]}' is 'up', but of those of '{both[0]}' 'right'." in told
    )
    assert "Evaluate them one by one, or name data for both with --data." in told


def test_references_and_what_does_not_beat_a_gaussian(
    judge: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--csv", str(tmp_path / "t.csv")]
    assert main([*judge, "--layer", "stage2", "--references", "edge", "random", *files]) == 0
    rows = [(row["attribution"], row["layer"]) for row in table(tmp_path / "t.csv")]
    assert rows == [("ixg", "stage2"), ("edge", "input"), ("random", "input"), ("ixg", "stage2")]
    capsys.readouterr()
    # The objects are at the side: a map in the middle is worse than one at random in EPG.
    assert main([*judge, "--attribution", "center", "--references", *files]) == 0
    assert main([*judge, "--layer", "stage2", "--report", str(tmp_path / "report")]) == 0
    assert "centred Gaussian in" in capsys.readouterr().out


def test_three_layers_of_one_model(judge: list[str], tmp_path: Path) -> None:
    files = ["--csv", str(tmp_path / "t.csv")]
    asked = ["--ml-att", "--attribution", "ixg", "captum:LayerGradCam", "captum:Saliency"]
    assert main([*judge, *asked, *files]) == 0
    found = [(row["attribution"], row["layer"]) for row in table(tmp_path / "t.csv")]
    layers = [layer for name, layer in found if name == "ixg"][:3]
    assert layers[0] == "input"
    assert len(set(layers)) == 3
    model = small_cnn(2, widths=(4, 4, 4, 4, 8, 8))
    assert all(InputXGradient(model, layer) for layer in layers[1:])
    assert ("captum:Saliency", "input") in found
    assert ("captum:LayerGradCam", layers[2]) in found


def test_metrics_that_ask_the_model_and_grids(judge: list[str], tmp_path: Path) -> None:
    files = ["--csv", str(tmp_path / "t.csv")]
    asked = ["--layer", "stage2", "--metrics", "perturbation", "deletion", "iou_curve"]
    assert main([*judge, *asked, *files]) == 0
    row = table(tmp_path / "t.csv")[0]
    assert {"perturbation_remove_5", "deletion_area", "iou_curve_area"} <= row.keys()
    assert not {"epg", "iou"} & row.keys()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--limit", "0"], "--limit: 0 is no number of images. 1 or more is allowed."),
        (
            ["--attribution", "ixxg"],
            "--attribution: unknown attribution 'ixxg'. Did you mean 'ixg'?",
        ),
        (["--attribution", "captum:Saliencyy"], "--attribution: "),
        (["--metrics", "epgg"], "--metrics: unknown metric 'epgg'. Did you mean 'epg'?"),
        (
            ["--references", "centre"],
            "--references: unknown reference 'centre'. Did you mean 'center'",
        ),
        (
            ["--attribution", "ixg", "gradcam", "--attribution-options", "a=1"],
            "--attribution-options: there are several attributions, and it is not said whose they are.",
        ),
        (
            ["--ml-att", "--layer", "input"],
            "--layer: --ml-att chooses three layers itself. Leave one",
        ),
        (["--metrics", "worst_group_accuracy"], "needs groups, and the data set names none."),
        (["--metrics", "gridpg"], "2"),  # how many classes are recognised
    ],
)
def test_mistakes_are_one_line(
    judge: list[str], capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    assert main([*judge, *options]) == 2
    told = capsys.readouterr().err.splitlines()
    assert text in told[-1]


def test_models_by_name_say_what_is_missing(
    judge: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = judge[judge.index("--data") :]
    for command, text in (
        (
            ["resnet18", *data],
            "--weights: 'resnet18' is a model by name, or a file that is not there.",
        ),
        (
            ["resnet18", "--weights", "w.pt"],
            "--data: missing, and of 'resnet18', a model by name, nobody",
        ),
        (
            [f"{photos}/one.pth", "--weights", "w.pt"],
            "--weights: it goes with a model's name, and only",
        ),
        ([SMALL, "--weights", f"{photos}/one.pth", *data], "one.pth"),  # of other widths
    ):
        assert main(["evaluate", *command, *QUIET]) == 2
        assert text in capsys.readouterr().err


def test_a_report_is_not_written_over_something_else(
    judge: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("all of it")
    assert main([*judge, "--report", str(tmp_path / "thesis")]) == 2
    told = capsys.readouterr().err
    assert (
        f"--report: '{tmp_path}/thesis' is a folder with other files. Name another folder" in told
    )
    assert main([*judge, "--report", str(tmp_path / "thesis" / "chapter.txt")]) == 2
    assert "chapter.txt' is a file. Name another folder" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "all of it"
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_a_damaged_image_is_named(
    judge: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", 6)
    (tmp_path / "images" / "left" / "3.png").write_bytes(b"no image")
    at = judge.index("--root")
    moved = [*judge[: at + 1], str(tmp_path / "images"), "--boxes", str(tmp_path / "images.csv")]
    with pytest.warns(UserWarning, match=r"3.png' cannot be read as an image"):
        assert main([*moved, "--layer", "stage2", "--report", str(tmp_path / "report")]) == 0
    told = capsys.readouterr().err
    assert "1 image could not be read and left out: left/3.png." in told
    assert "left/3.png" in (tmp_path / "report" / "report.html").read_text()
