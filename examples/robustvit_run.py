"""RobustViT on PASCAL VOC's animals: train a small ViT, then pull its relevance onto the object.

python examples/robustvit_run.py --root voc12_animals --scenes scenes6 --stem mobilenet.pth
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from robustvit_parts.animals import made_up, read_animals, read_scenes
from robustvit_parts.network import SIDE, trained
from robustvit_parts.study import compare, known_rows
from robustvit_parts.tables import as_page, result_table, search_table, versions


def main() -> None:
    """Train or load the base, fine-tune it with the recipe and without, score on the test split."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in (
        ("root", "voc12_animals", "VOC folder with ImageSets/single_{train,val,test}.txt"),
        ("scenes", "scenes6", "folder with other backgrounds in test/*/"),
        ("stem", "", "ImageNet weights of voc_finetune's MobileNet"),
        ("base", "", "safetensors file of the trained ViT: written, or used where it exists"),
        ("epochs", 12, "passes of its training"), ("tune-epochs", 6, "and of a fine-tuning"),
        ("per-class", 60, "images with masks of each class, for the fine-tuning"),
        ("lrs", "3e-6,1e-5,3e-5,1e-4,3e-4", "its learning rates, to choose from on the val split"),
        ("seeds", "0", "of its images and their order"),
        ("json", "robustvit.json", "file for the numbers; a run goes on from those that it holds"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", default=default, type=type(default), help=text)
    parser.add_argument("--table", default="", help="write the JSON's tables here, do nothing else")
    parser.add_argument("--smoke", action="store_true", help="made-up images, a few steps")
    args = parser.parse_args()
    if args.table:
        page = as_page(json.loads(Path(args.json).read_text(encoding="utf-8")))
        Path(args.table).write_text(page, encoding="utf-8")
        return
    torch.manual_seed(0)
    if args.smoke:
        (train, _), (val, _), (test, scenes) = (made_up(20, SIDE, seed) for seed in range(3))
        args.epochs, args.tune_epochs, args.per_class, args.lrs = 1, 1, 4, "1e-4"
    else:
        sides = {"train": 144, "val": SIDE, "test": SIDE}
        train, val, test = (read_animals(args.root, f"single_{k}", v) for k, v in sides.items())
        scenes = read_scenes(f"{args.scenes}/test", SIDE)
    size = {"width": 32, "depth": 2} if args.smoke else {}
    base, history = trained(args.base, train, val, stem=args.stem, epochs=args.epochs, **size)
    settings = {
        "lrs": [float(lr) for lr in args.lrs.split(",")], "per_class": args.per_class,
        "seeds": [int(seed) for seed in args.seeds.split(",")], "epochs": args.tune_epochs,
    }  # fmt: skip
    splits, path = {"train": train, "val": val, "test": test}, Path(args.json)
    record = {
        "device": f"CPU, {platform.machine()}, {torch.get_num_threads()} thread(s)",
        "versions": versions(), "settings": settings, "base": history,
        "images": {name: len(data) for name, data in splits.items()},
        "area": float(test.masks.float().mean()),
        "chosen": {}, "rows": known_rows(args.json, settings, history),
    }  # fmt: skip

    def save() -> None:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")

    record["chosen"] = compare(base, splits, scenes, record["rows"], save=save, **settings)
    save()
    print(search_table(record), result_table(record), sep="\n\n")


if __name__ == "__main__":
    main()
