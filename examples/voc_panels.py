"""Maps of several weight files of `voc_finetune.py`, side by side on the same test images.

python examples/voc_panels.py --root VOC2007 unguided.safetensors energy.safetensors --out maps.png
"""

import argparse
from pathlib import Path

import torch
from timm.data import resolve_data_config
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from explainguide import ExplanationGuidance, collate
from explainguide.checkpoints import save_weights
from explainguide.datasets import VOC, DecoyDigits
from explainguide.metrics import energy_pointing_game
from explainguide.models import build_model
from explainguide.visualization import panel


def main() -> None:
    """One row an image, one column a file, the EPG under each map."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("weights", nargs="*", help="files that voc_finetune.py saved")
    parser.add_argument("--root", default="VOC2007", help="a VOC year folder")
    parser.add_argument("--test-set", default="val", help="a split's name")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 1, 2, 3], help="places in it")
    parser.add_argument("--model", default="voc_finetune:mobilenet_075", help="that of the files")
    parser.add_argument("--layer", default="blocks", help="explained layer")
    parser.add_argument("--attribution", default="ixg", help="and its attribution")
    parser.add_argument("--size", type=int, default=160, help="side of the squashed images")
    parser.add_argument("--out", default="maps.png", help="the picture")
    parser.add_argument("--smoke", action="store_true", help="embedded digits, random weights")
    args = parser.parse_args()
    data = DecoyDigits("test") if args.smoke else VOC(args.root, args.test_set)
    if args.smoke:
        torch.manual_seed(0)
        args.weights = [str(Path(args.out).with_suffix(".safetensors"))]
        save_weights(args.weights[0], build_model(args.model, num_classes=10).state_dict())
    resize = v2.Resize((args.size, args.size))
    data.transforms = v2.Compose([resize, v2.ToDtype(torch.float32, scale=True)])
    images, _, found = next(iter(DataLoader(Subset(data, args.images), 64, collate_fn=collate)))
    target = found.labels[:, 0]  # the class of the first object
    region = found.region(target, (args.size, args.size))
    maps, scores = {}, {}
    for file in args.weights:
        model = build_model(args.model, num_classes=data.num_classes, weights=file).eval()
        own = resolve_data_config(model=model)
        with ExplanationGuidance(model, args.layer, attribution=args.attribution) as guide:
            shown = guide.attribute(
                v2.functional.normalize(images, own["mean"], own["std"]), target
            )
        maps[Path(file).stem] = shown
        scores[Path(file).stem] = [
            f"EPG {x:.0%}" for x in energy_pointing_game(shown[:, 0], region)
        ]
    boxes = [b[c == k] for b, c, k in zip(found.boxes, found.labels, target, strict=True)]
    titles = [data.classes[k] for k in target.tolist()]
    panel(images, maps, boxes=boxes, titles=titles, captions=scores).savefig(args.out, dpi=150)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
