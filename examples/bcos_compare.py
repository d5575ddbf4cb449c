"""Vanilla, X-DNN and B-cos networks, guided at the input and at the final layer: F1, EPG, IoU.

python examples/bcos_compare.py --root VOC2007 --weights imagenet.pth --json bcos_compare.json
python examples/bcos_compare.py --json bcos_compare.json --table bcos_compare_results.md
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from bcos_parts.images import read_folder
from bcos_parts.networks import mobilenet, small
from bcos_parts.study import Study, about, table
from torch import nn
from torch.utils.data import Subset

from explainguide.datasets import VOC, DecoyDigits

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
        ("root", "VOC2007", "a VOC year folder"), ("train-set", "train", "a split's name"),
        ("test-set", "val", "a split's name"), ("classes", "", "of VOC, such as cat,dog; all"),
        ("weights", "", "pretrained weights"),
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
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        Path(args.table).write_text(table(rows), encoding="utf-8")
        return
    if args.smoke:
        args.size, args.epochs, args.train_images, args.test_images = 48, 1, 32, 16
        train, test, criterion = DecoyDigits("train"), DecoyDigits("test"), nn.CrossEntropyLoss()
        unlabelled = partial(torch.stack, [train[i][0] for i in range(64)])
        network, layers = partial(small, 10), {"input": "input", "final": "stage3"}
    else:
        chosen = {"classes": args.classes.split(",")} if args.classes else {}
        train, test = (VOC(args.root, part, **chosen) for part in (args.train_set, args.test_set))
        network = partial(mobilenet, train.num_classes, args.weights)
        criterion, layers = nn.BCEWithLogitsLoss(), {"input": "input", "final": "blocks"}
        unlabelled = partial(read_folder, args.unlabelled or train.folder / "JPEGImages", args.size)
    train, test = Subset(train, range(args.train_images)), Subset(test, range(args.test_images))
    study = Study(network, unlabelled, train, test, criterion, layers, file, about(args))
    guided = [(loss, at) for at in layers for loss in ("energy", "l1")]
    for kind, options in BASES.items():
        if args.smoke:
            options = options | {"epochs": 1, "features": options["features"] | {"epochs": 1}}
        for run, place in (("base", None), ("unguided", None), *guided):
            if study.done(kind, run, place):
                continue
            model = study.start(kind, **options)
            if run != "base":
                how = {"layer": layers[place], "loss": run, "lam": args.lam} if place else {}
                study.fit(kind, model, epochs=args.epochs, lr=options["lr"] / 3, **how)
            study.measure(kind, model, run, place)
    print(table(study.rows), f"torch {torch.__version__}", sep="\n")


if __name__ == "__main__":
    main()
