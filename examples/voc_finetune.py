"""Fine-tune on PASCAL VOC in a plain PyTorch loop, with or without guidance; F1, mAP, EPG, IoU.

python examples/voc_finetune.py --root VOC2007 --weights imagenet.pth --lam 0.3 --out a.safetensors
"""

import argparse
from functools import partial

import torch
from timm.data import resolve_data_config
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2
from tqdm import tqdm

from explainguide import ExplanationGuidance, collate
from explainguide.checkpoints import save_weights
from explainguide.datasets import VOC, DecoyDigits
from explainguide.evaluation import evaluate
from explainguide.models import build_model
from explainguide.tables import format_table


def mobilenet_075(num_classes: int = 1000) -> nn.Module:
    """MobileNet v1 of width 0.75 as in TensorFlow: input in [-1, 1], padding "same"."""
    new = {"pad_type": "same", "norm_layer": partial(nn.BatchNorm2d, eps=1e-3)}
    return _gen_mobilenet_v1("mobilenetv1_100", 0.75, num_classes=num_classes, **new)


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, default, text in (
        ("root", "VOC2007", "a VOC year folder"), ("train-set", "train", "a split's name"),
        ("test-set", "val", "a split's name"), ("limit", 10**9, "images to use of a split"),
        ("model", "voc_finetune:mobilenet_075", "as in `explainguide train`"),
        ("weights", "", "pretrained weights"), ("start", "", "weights to go on from"),
        ("layer", "blocks", "guided layer"), ("attribution", "ixg", "and its attribution"),
        ("loss", "energy", "and its loss"), ("lam", 0.0, "and its weight; 0 is no guidance"),
        ("epochs", 3, "passes"), ("lr", 3e-4, "of Adam"), ("batch-size", 32, "images a step"),
        ("size", 160, "side of the squashed images"), ("out", "", "file for the weights"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", default=default, type=type(default), help=text)
    parser.add_argument("--smoke", action="store_true", help="embedded digits, a few steps")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.smoke:
        args.size, args.epochs, args.limit, args.lam, args.batch_size = 64, 1, 16, 0.3, 8
        train, test, criterion = DecoyDigits("train"), DecoyDigits("test"), nn.CrossEntropyLoss()
    else:
        train, test = VOC(args.root, args.train_set), VOC(args.root, args.test_set, masks=True)
        criterion = nn.BCEWithLogitsLoss()
    begin = args.start or args.weights or None  # a head of another size is left as it is
    model = build_model(args.model, num_classes=train.num_classes, weights=begin)
    own = resolve_data_config(model=model)  # the mean and std that it was trained with
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(own["mean"], own["std"])]
    test.transforms = v2.Compose([v2.Resize((args.size, args.size)), *scale])
    train.transforms = v2.Compose([v2.RandomHorizontalFlip(), *test.transforms.transforms])
    train, test = (Subset(data, range(len(data))[: args.limit]) for data in (train, test))
    optimizer = torch.optim.Adam(model.parameters(), args.lr)
    guide = ExplanationGuidance(model, args.layer, attribution=args.attribution, loss=args.loss)
    for _ in range(args.epochs):
        loader = DataLoader(train, args.batch_size, shuffle=True, collate_fn=collate)
        for images, labels, annotations in tqdm(loader):
            loss = criterion(model.train()(images), labels)
            if args.lam > 0:
                loss = loss + args.lam * guide.loss_loc(annotations)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    scores = evaluate(model, test, layer=args.layer, attribution=args.attribution, progress=True)
    print(format_table([{"loss": args.loss, "lam": args.lam} | scores], markdown=True))
    if args.out:
        save_weights(args.out, model.state_dict())


if __name__ == "__main__":
    main()
