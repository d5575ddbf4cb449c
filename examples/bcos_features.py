"""What is left of pretrained features when biases go at once, and after they were relearned.

python examples/bcos_features.py --root VOC2007 --weights imagenet.pth --networks bcos_compare
python examples/bcos_features.py --json bcos_features.json --table bcos_features_results.md
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from bcos_parts.networks import begin, drop_biases, mobilenet, small, transforms
from bcos_parts.probe import probe, table
from bcos_parts.study import about
from torch.utils.data import Subset

from explainguide.bcos import calibrate
from explainguide.checkpoints import load_checkpoint
from explainguide.datasets import VOC, DecoyDigits


def main() -> None:
    """A linear classifier on the last features: mean average precision in percent."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in (
        ("root", "VOC2007", "a VOC year folder"), ("train-set", "train", "a split's name"),
        ("test-set", "val", "a split's name"), ("classes", "", "of VOC, such as cat,dog; all"),
        ("weights", "", "pretrained weights"), ("size", 96, "side of the squashed images"),
        ("train-images", 1200, "images for training"), ("test-images", 500, "and for testing"),
        ("networks", "bcos_compare", "folder in which bcos_compare.py kept its networks"),
        ("json", "bcos_features.json", "rows are written here"),
        ("table", "", "write the table of the rows here and run nothing"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", default=default, type=type(default), help=text)
    parser.add_argument("--smoke", action="store_true", help="embedded digits, nothing relearned")
    args = parser.parse_args()
    if args.table:
        rows = json.loads(Path(args.json).read_text(encoding="utf-8"))["rows"]
        Path(args.table).write_text(table(rows), encoding="utf-8")
        return
    if args.smoke:
        args.size, args.train_images, args.test_images = 48, 64, 64
        sets, layer = [DecoyDigits("train"), DecoyDigits("test")], "stage3"
        network = partial(small, 10)
    else:
        chosen = {"classes": args.classes.split(",")} if args.classes else {}
        sets = [VOC(args.root, part, **chosen) for part in (args.train_set, args.test_set)]
        network, layer = partial(mobilenet, sets[0].num_classes, args.weights), "blocks"
    counts, rows = (args.train_images, args.test_images), []
    parts = [Subset(data, range(count)) for data, count in zip(sets, counts, strict=True)]
    for kind in ("vanilla", "X-DNN", "B-cos"):
        for data in sets:
            data.transforms = transforms(kind, args.size)
        model = begin(kind, network(), args.size)
        drop_biases(kind, model)
        if kind == "B-cos":  # at B = 2 features have other variances
            calibrate(model, torch.stack([parts[0][i][0] for i in range(counts[1] // 4)]))
        features = "pretrained" if kind == "vanilla" else "biases dropped at once"
        rows.append({"network": kind, "features": features, "map": probe(model, layer, *parts)})
        file = Path(args.networks) / f"{kind}-features.pt"
        if file.exists() and not args.smoke:
            model.load_state_dict(load_checkpoint(file)["model"])
            found = probe(model, layer, *parts)
            rows.append({"network": kind, "features": "relearned", "map": found})
    Path(args.json).write_text(json.dumps(about(args) | {"rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
