"""Guide a classifier on your own photographs: one folder a class, and a CSV file with some boxes.

python examples/own_images.py photos --boxes boxes.csv --pretrained --out runs/photos

boxes.csv: image,xmin,ymin,xmax,ymax with paths relative to the folder, in pixels of the file.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torchvision.transforms import v2

from explainguide.datasets import ImageFolder
from explainguide.models import build_model
from explainguide.tables import format_table
from explainguide.training import TrainConfig, train

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's


def write_three_images(folder: Path) -> None:
    """Two classes, three images, a box for two of them."""
    for i, name in enumerate(("cats/a.jpg", "dogs/b.jpg", "dogs/c.jpg")):
        image = torch.randint(0, 90, (3, 48, 64), dtype=torch.uint8)
        image[min(i, 1), 8:32, 10:40] = 250
        (folder / name).parent.mkdir(exist_ok=True)
        v2.functional.to_pil_image(image).save(folder / name)
    rows = ("image,xmin,ymin,xmax,ymax", "cats/a.jpg,10,8,40,32", "dogs/b.jpg,10,8,40,32")
    (folder / "boxes.csv").write_text("\n".join(rows))


def run(args: argparse.Namespace) -> None:
    """Train with the package's own loop, which evaluates after every epoch."""
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transforms = v2.Compose([v2.Resize((args.size, args.size)), *scale])
    data = ImageFolder(args.folder, args.boxes, transforms=transforms)
    test = ImageFolder(*args.test, transforms=transforms) if args.test else data
    torch.manual_seed(0)
    model = build_model(args.model, num_classes=data.num_classes, pretrained=args.pretrained)
    config = TrainConfig(
        epochs=args.epochs, lr=1e-4, lam=args.lam, loss=args.loss, layer=args.layer,
        output_dir=args.out,
    )  # fmt: skip
    info = {"name": args.model, "num_classes": data.num_classes}  # to build it again from a file
    info |= {"image_size": args.size, "mean": MEAN, "std": STD}
    history = train(model, data, test, config, info=info, progress=not args.smoke)
    print(
        format_table(history.rows, columns=["epoch", "loss", "loss_loc", "accuracy", "epg", "iou"])
    )


def main() -> None:
    """Parse the options."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", nargs="?", default="photos", help="one folder of images a class")
    parser.add_argument("--boxes", help="CSV or COCO JSON")
    parser.add_argument("--test", nargs=2, help="such a folder and its boxes, to evaluate on")
    parser.add_argument("--model", default="resnet18", help="as in `explainguide train`")
    parser.add_argument("--pretrained", action="store_true", help="download ImageNet weights")
    parser.add_argument("--size", type=int, default=224, help="side of the squashed images")
    parser.add_argument("--epochs", type=int, default=5, help="passes")
    parser.add_argument("--lam", type=float, default=0.3, help="weight of the localization loss")
    parser.add_argument("--loss", default="energy", help="energy, l1, ppce, rrr, gradmask, reff")
    parser.add_argument("--layer", help="guided layer; none: the last spatial one")
    parser.add_argument("--out", help="folder for checkpoints and logs")
    parser.add_argument("--smoke", action="store_true", help="three tiny images, two epochs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.smoke:
            write_three_images(Path(folder))
            args.folder, args.boxes, args.size, args.epochs = folder, f"{folder}/boxes.csv", 64, 2
        run(args)


if __name__ == "__main__":
    main()
