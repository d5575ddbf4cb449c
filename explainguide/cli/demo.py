"""``explainguide demo``: a network that cheats, and the same network guided, on embedded images."""

from __future__ import annotations

import argparse
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explainguide.cli.usage import UsageError

if TYPE_CHECKING:
    from explainguide.demo import Run

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run", "tell"]

HELP = "train a network that cheats, and the same network guided; nothing to download"
EXAMPLE = "explainguide demo --seed 1 --out demo-1"

_PAGE = "index.html"
_SHARES = ("accuracy with decoy", "accuracy without decoy", "worst class", "EPG", "IoU")
_SMOKE_IMAGES, _SMOKE_EPOCHS = 128, 1
_PICTURES, _WIDTH = 4, 88


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "--out",
        default="explainguide-demo",
        metavar="DIR",
        help="folder for the page (default: ./explainguide-demo)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the images, the weights and the order (default: 0)",
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="passes over the training images (default: 12)"
    )
    parser.add_argument("--full", action="store_true", help="two more ways to guide in the table")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--smoke", action="store_true", help="a few seconds on a few images, to see that it runs"
    )


def run(args: argparse.Namespace) -> int:
    """Train, print the table, write the page."""
    from explainguide.demo import DEFAULT_RUNS, EPOCHS, SETTINGS
    from explainguide.visualization.tables import format_table

    epochs = args.epochs if args.epochs is not None else _SMOKE_EPOCHS if args.smoke else EPOCHS
    if epochs < 1:
        raise UsageError(f"--epochs: {epochs} trains nothing. 1 or more is allowed.")
    if args.seed < 0:
        raise UsageError(f"--seed: {args.seed} is negative. 0 or more is allowed.")
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)  # before the training, so that it fails early
    began = time.perf_counter()
    runs = _train(list(SETTINGS if args.full else DEFAULT_RUNS), args, epochs)
    rows = [_row(trained) for trained in runs]
    print(format_table(rows))
    story = tell(runs, epochs)
    page = _write_page(folder / _PAGE, runs, rows, story, args, time.perf_counter() - began)
    print(f"\n{textwrap.fill(story, _WIDTH)}\n")
    print("To see where both networks look on the same images, open this page in a browser:")
    print(page)
    return 0


def _train(names: list[str], args: argparse.Namespace, epochs: int) -> list[Run]:
    from tqdm import tqdm

    from explainguide.demo import SETTINGS, train_run

    images = _SMOKE_IMAGES if args.smoke else None
    runs = []
    with tqdm(total=len(names) * epochs, disable=args.quiet, unit="epoch") as bar:

        def show(row: dict[str, float]) -> None:
            known = {key: f"{row[key]:.2f}" for key in ("loss", "loss_loc", "EPG") if key in row}
            bar.set_postfix(known, refresh=False)
            bar.update()

        for name in names:
            bar.set_description(name)
            trained = train_run(
                name, SETTINGS[name], seed=args.seed, epochs=epochs, images=images, on_epoch=show
            )
            runs.append(trained)
    return runs


def _row(trained: Run) -> dict[str, object]:
    scores = {key: f"{trained.scores[key]:.1%}" for key in _SHARES}
    return {"run": trained.name, **scores, "time": f"{trained.seconds:.0f} s"}


def tell(runs: list[Run], epochs: int) -> str:
    """What the numbers say, for somebody who sees them for the first time."""
    unguided, guided = runs[0].scores, runs[1].scores
    before, after = unguided["accuracy without decoy"], guided["accuracy without decoy"]
    start = (
        "Every training image has a coloured patch in a corner whose colour gives the digit away. "
        f"While that holds, the unguided network is right on {unguided['accuracy with decoy']:.0%} "
        f"of the test images; with colours drawn at random, on {before:.0%} (guessing gives 10%)"
    )
    if before < 0.5 and after > before + 0.3:
        return (
            f"{start}: it had learned the patch. The guided network is the same, but its loss also "
            "says where to look, by a box around the digit: it keeps "
            f"{after:.0%}, and {guided['EPG']:.0%} instead of {unguided['EPG']:.0%} of what speaks "
            "for the digit lies inside its box."
        )
    return (
        f"{start}, and the guided one on {after:.0%}. After {epochs} epoch{'s' * (epochs != 1)} of "
        "training that shows little; `explainguide demo` without other options trains long enough."
    )


def _write_page(
    path: Path,
    runs: list[Run],
    rows: list[dict[str, object]],
    story: str,
    args: argparse.Namespace,
    seconds: float,
) -> Path:
    from explainguide.demo import SETTINGS
    from explainguide.visualization import curves
    from explainguide.visualization.report import write_report

    history = {trained.name: trained.history for trained in runs}
    keys = ["loss", "accuracy with decoy", "accuracy without decoy", "EPG"]
    figures = [
        (
            "The same test images, in which the colour of the patch says nothing, before and after. "
            "Bright: what speaks for the network's answer (input times gradient). The "
            "box is around the digit; networks see boxes in training only.",
            _pictures(runs[0], runs[1], args.seed),
        ),
        (
            "Training. The loss is that of the classification; the others are measured on the test "
            "images, EPG on those with random colours.",
            curves(history, keys, percent=keys[1:]),
        ),
    ]
    settings = [f"{trained.name}: {SETTINGS[trained.name]}" for trained in runs]
    return write_report(
        path,
        title="A network that cheats, and the same network guided",
        summary=f"{story}\n\n{_COLUMNS}",
        table=rows,
        figures=figures,
        details={
            "Settings": "\n".join([*settings, "", *_versions(args, seconds)]),
            "The same in your own training script": _SCRIPT,
        },
    )


_COLUMNS = (
    "Accuracy with decoy: the colour still names the digit. Accuracy without: the colour is drawn at "
    "random; worst class, EPG and IoU are measured there too. EPG (energy pointing game): the share "
    "of the positive attribution for the right digit that lies in its box. IoU: overlap of the box "
    "with the strongest attribution, thresholded."
)
_SCRIPT = """guide = ExplanationGuidance(model, layer="input", score="log_prob")
...
logits = model(images)
loss = F.cross_entropy(logits, labels) + 10 * guide.loss_loc(targets)"""


def _versions(args: argparse.Namespace, seconds: float) -> list[str]:
    import torch

    import explainguide

    return [
        f"seed {args.seed}; {seconds:.0f} s on {torch.get_num_threads()} CPU threads",
        f"explainguide {explainguide.__version__}, torch {torch.__version__}",
    ]


def _pictures(before: Run, after: Run, seed: int) -> Any:
    import torch

    from explainguide.annotations.boxes import box_masks
    from explainguide.attr import InputXGradient
    from explainguide.demo import DemoData
    from explainguide.metrics import energy_pointing_game
    from explainguide.visualization import panel

    data = DemoData(seed).without_decoy
    misled = data.decoys != data.labels
    # The first of each of the first classes: nothing is picked by how it looks.
    chosen = torch.tensor(
        [int(((data.labels == digit) & misled).nonzero()[0]) for digit in range(_PICTURES)]
    )
    images, boxes = data.images[chosen], data.boxes[chosen]
    masks = box_masks(boxes, (data.size, data.size))
    maps, captions = {}, {}
    for name, trained in (("before: unguided", before), ("after: guided", after)):
        with torch.no_grad():
            sure, answers = trained.model(images).softmax(1).max(1)
        maps[name] = InputXGradient(trained.model).attribute(images, answers)
        inside = energy_pointing_game(maps[name], masks[:, None])
        captions[name] = [
            f"says {answer} ({p:.0%}); {share:.0%} in the box"
            for answer, p, share in zip(
                answers.tolist(), sure.tolist(), inside.tolist(), strict=True
            )
        ]
    titles = [
        f"a {label}, in the colour of {colour}"
        for label, colour in zip(data.labels[chosen], data.decoys[chosen], strict=True)
    ]
    return panel(images, maps, boxes=[box[None] for box in boxes], titles=titles, captions=captions)
