"""Vanilla, X-DNN and B-cos networks, guided at the input and at the final layer: F1, EPG, IoU.

python examples/bcos_compare.py --root VOC2007 --weights imagenet.pth --json bcos_compare.json
python examples/bcos_compare.py --json bcos_compare.json --table bcos_compare_results.md
"""

import argparse
import json
from functools import partial
from itertools import product
from pathlib import Path

import torch
from bcos_parts.images import read_folder
from bcos_parts.networks import mobilenet, small
from bcos_parts.study import Study, about, table
from torch import nn
from torch.utils.data import Subset

from explainguide.datasets import VOC, VOC_CLASSES, DecoyDigits

# Converted networks first learn from unlabelled images what the pretrained one knows.
BASES = {
    "vanilla": {"epochs": 3, "lr": 3e-4, "features": {}},
    "X-DNN": {"epochs": 6, "lr": 1e-4, "features": {"epochs": 4, "lr": 1e-3}},
    "B-cos": {"epochs": 3, "lr": 3e-4, "features": {"epochs": 4, "lr": 1e-2}},
}


def main() -> None:
    """Train three networks, then each with and without guidance; keep rows as they come."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in (
        ("root", "VOC2007", "a VOC year folder"), ("classes", ",".join(VOC_CLASSES), "labels"),
        ("train-set", "train", "a split's name"), ("test-set", "val", "a split's name"),
        ("fit-set", "val", "to fit a threshold on"), ("weights", "", "pretrained weights"),
        ("unlabelled", "", "folder of .jpg files to relearn features from; --root's, all of them"),
        ("train-images", 1200, "images for training"), ("test-images", 500, "and for testing"),
        ("size", 96, "side of the squashed images"), ("epochs", 3, "passes with guidance"),
        ("lam", 1.0, "weight of the localization loss"), ("json", "", "rows, kept and read again"),
        ("table", "", "write the table of the rows here and run nothing"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", default=default, type=type(default), help=text)
    parser.add_argument("--smoke", action="store_true", help="embedded digits, a few steps")
    args = parser.parse_args()
    file = Path(args.json or f"bcos_compare{'_smoke' if args.smoke else ''}.json")
    if args.table:
        Path(args.table).write_text(table(json.loads(file.read_text("utf-8"))["rows"]), "utf-8")
        return
    criterion = nn.CrossEntropyLoss() if args.smoke else nn.BCEWithLogitsLoss()
    if args.smoke:
        args.size, args.epochs, args.train_images, args.test_images = 48, 1, 32, 16
        data = [DecoyDigits(split) for split in ("train", "test", "train")]
        unlabelled = partial(torch.stack, [data[0][i][0] for i in range(64)])
        network, layers = partial(small, 10), {"input": "input", "final": "stage3"}
    else:
        splits, classes = (args.train_set, args.test_set, args.fit_set), args.classes.split(",")
        data = [VOC(args.root, split, classes=classes) for split in splits]
        network = partial(mobilenet, data[0].num_classes, args.weights)
        layers, folder = {"input": "input", "final": "blocks"}, data[0].folder / "JPEGImages"
        unlabelled = partial(read_folder, args.unlabelled or folder, args.size)
    sizes = (args.train_images, args.test_images, args.test_images)
    parts = (Subset(d, range(len(d))[:n]) for d, n in zip(data, sizes, strict=True))
    study = Study(network, unlabelled, *parts, criterion, layers, file, about(args))
    runs = [("base", None), ("unguided", None), *product(("energy", "l1"), layers)]
    for kind, options in BASES.items():
        if args.smoke:
            options = options | {"epochs": 1, "features": options["features"] | {"epochs": 1}}
        for run, place in (run for run in runs if not study.done(kind, *run)):
            model = study.start(kind, **options)
            if run != "base":
                how = {"layer": layers[place], "loss": run, "lam": args.lam} if place else {}
                study.fit(kind, model, epochs=args.epochs, lr=options["lr"] / 3, **how)
            study.measure(kind, model, run, place)
    print(table(study.rows), f"torch {torch.__version__}", sep="\n")


if __name__ == "__main__":
    main()
