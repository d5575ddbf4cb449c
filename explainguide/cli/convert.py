"""``explainguide convert``: a B-cos network, or one without biases, from a model, as a checkpoint."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from explainguide.cli.usage import UsageError
from explainguide.errors import check_option, operation

if TYPE_CHECKING:
    from torch import nn

__all__ = ["EXAMPLE", "HELP", "add_arguments", "run"]

HELP = "make a B-cos network, or one without biases, of a model"
EXAMPLE = """\
explainguide convert resnet50 --pretrained --num-classes 20 --bcos --out bcos.pt
  explainguide convert torchvision:vgg16_bn --weights vgg.pth --xdnn --out xdnn.pt"""

_OF_BCOS = ("b", "fresh", "activations", "max_out", "norm", "gain", "logit_bias", "bias")
_WORDS = {
    "activations": ("keep", "drop"),
    "bias": ("keep", "drop"),
    "norm": ("uncentered", "detached"),
    "gain": ("unit", "norm", "power"),
    "normalization": ("fold", "remove"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name of timm's (resnet50), torchvision:NAME, or package.module:function",
    )
    parser.add_argument("--pretrained", action="store_true", help="download the model's weights")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="weights of the model instead; those of a training say its classes, size and "
        "normalisation too",
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="logits, where not the model's own number"
    )
    parser.add_argument(
        "--size", type=int, metavar="N", help="side of the images (default: the model's)"
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            help=f"{name} of the normalisation that the weights were trained with (default: what "
            "the model says of itself, else ImageNet's)",
        )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="the checkpoint, such as bcos.pt"
    )
    kind = parser.add_argument_group("into what (--bcos, or --xdnn)")
    kind.add_argument("--bcos", action="store_true", help="a B-cos network")
    kind.add_argument(
        "--xdnn", action="store_true", help="a network without biases and normalisation"
    )
    group = parser.add_argument_group("with --bcos")
    group.add_argument("--b", type=float, metavar="X", help="the exponent B (default: 2)")
    group.add_argument(
        "--fresh",
        action="store_true",
        help="new weights and no activations, as in the first papers, to train from scratch",
    )
    group.add_argument(
        "--activations", metavar="NAME", help="keep or drop (default: kept; with --fresh: dropped)"
    )
    group.add_argument(
        "--max-out", type=int, metavar="N", help="filters an output, with --fresh (default: 1)"
    )
    group.add_argument(
        "--norm",
        metavar="NAME",
        help="uncentered or detached (default: detached; with --fresh: uncentered)",
    )
    group.add_argument(
        "--gain",
        metavar="NAME",
        help="what is left of the weights' length: unit, norm or power (default: norm; with "
        "--fresh: unit)",
    )
    group.add_argument(
        "--logit-bias",
        type=float,
        metavar="X",
        help="added to every logit (default: the classifier's own; with --fresh: -log(N - 1))",
    )
    group.add_argument(
        "--bias", metavar="NAME", help="keep or drop (default: kept at --b 1, else dropped)"
    )
    parser.add_argument_group("with --xdnn").add_argument(
        "--normalization",
        metavar="NAME",
        help="fold BatchNorm into a factor a channel, or remove it (default: fold)",
    )


def run(args: argparse.Namespace) -> int:
    """Build the model, convert it, say what was changed, and save it."""
    from explainguide.cli.data import (
        allow_local_modules,
        check_plain,
        choose_normalisation,
        count_logits,
        in_library,
    )
    from explainguide.training.checkpoints import describe_weights, save_checkpoint
    from explainguide.training.config import TrainConfig

    _check(args)
    allow_local_modules()
    record = describe_weights(args.weights)
    check_plain(record, args.weights)
    classes = record.get("num_classes") if args.num_classes is None else args.num_classes
    model, size = _build(args, classes, record.get("image_size"))
    mean, std = (getattr(args, name) or record.get(name) for name in ("mean", "std"))
    mean, std = choose_normalisation(model, mean, std)
    info: dict[str, Any] = {"name": args.model, "num_classes": classes}
    if classes == record.get("num_classes"):
        info |= {key: record[key] for key in ("classes", "multilabel") if key in record}
    if classes is None and in_library(args.model):
        info["num_classes"] = count_logits(model)
    if args.bcos:
        options = _bcos_options(args, mean, std) | {"image_size": [size, size]}
        network, told = _to_bcos(model, options)
        info |= {"bcos": options, "mean": [0.0] * 3, "std": [1.0] * 3}
        config = TrainConfig(layer="input", attribution="bcos")
    else:
        options = {"normalization": args.normalization or "fold", "image_size": [size, size]}
        network, told = _to_xdnn(model, options)
        info |= {"xdnn": options, "mean": mean, "std": std}
        config = TrainConfig(layer="input", attribution="intgrad")
    payload = {
        "info": info | {"image_size": size},
        "model": network.state_dict(),
        "config": config.to_dict(),
        "epoch": 0,
        "metrics": {},
    }
    save_checkpoint(args.out, payload)
    print(f"{args.model} {told}\n\nsaved {args.out}\n\n{_next_step(args, config)}")
    if not (args.pretrained or args.weights) and not args.fresh and in_library(args.model):
        print(
            f"note: {args.model} has random weights; --pretrained downloads trained ones, "
            "--weights reads a file",
            file=sys.stderr,
        )
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.bcos == args.xdnn:
        raise UsageError(
            "--bcos, --xdnn: give one of the two. Either is allowed: --bcos makes a network that "
            "explains itself, --xdnn one whose integrated gradients take one pass."
        )
    given = [n for n in _OF_BCOS if getattr(args, n) not in (None, False)] if args.xdnn else []
    given += ["normalization"] if args.bcos and args.normalization is not None else []
    if given:
        companion = "--bcos" if args.xdnn else "--xdnn"
        raise UsageError(
            f"--{given[0].replace('_', '-')}: it goes with {companion}. Leave it out. "
            "`explainguide convert --help` shows which option goes with what."
        )
    for name, allowed in _WORDS.items():
        if getattr(args, name) is not None:
            with operation(f"--{name}"):
                check_option(name, getattr(args, name), allowed)
    if args.fresh and (args.pretrained or args.weights or args.mean or args.std):
        raise UsageError(
            "--fresh: it makes new weights. Leave out --pretrained, --weights, --mean and --std, or "
            "--fresh. They go with weights that are kept."
        )
    if args.pretrained and args.weights:
        raise UsageError(
            "--weights: with --pretrained there are two. Leave one out. Either is allowed."
        )
    if Path(args.out).exists():
        raise UsageError(
            f"--out: '{args.out}' exists. Choose another name, or remove it. Nothing is overwritten."
        )


def _build(
    args: argparse.Namespace, classes: int | None, image_size: int | None
) -> tuple[nn.Module, int]:
    """The model, and the side of the images that it takes."""
    from explainguide.cli.data import choose_size
    from explainguide.models.build import build_model, load_weights, set_image_size

    model = build_model(
        args.model, num_classes=classes, pretrained=args.pretrained, image_size=image_size
    )
    note = load_weights(model, args.weights) if args.weights else ""
    if note:
        print(note)
    own = getattr(model, "pretrained_cfg", None) or {}
    usual = image_size or (own.get("input_size") or (0, 0, None))[-1]
    size = choose_size(args.size, usual)
    if args.size is not None:
        set_image_size(model, size)
    return model, size


def _bcos_options(args: argparse.Namespace, mean: list[float], std: list[float]) -> dict[str, Any]:
    """The keyword arguments of `bcosify`, as values that a checkpoint can hold."""
    names = ("activations", "max_out", "norm", "gain", "logit_bias")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.bias is not None:
        given["bias"] = args.bias == "keep"
    if not args.fresh:
        given |= {"mean": mean, "std": std}
    return {"b": 2.0 if args.b is None else args.b, "keep_weights": not args.fresh, **given}


def _to_bcos(model: nn.Module, options: dict[str, Any]) -> tuple[nn.Module, str]:
    from explainguide.bcos import bcosify, conversion

    network = bcosify(model, **options)
    done = f"is a B-cos network now, with B = {options['b']:g}:\n{conversion(network)}"
    return network, done


def _to_xdnn(model: nn.Module, options: dict[str, Any]) -> tuple[nn.Module, str]:
    from explainguide.xdnn import changes, remove_bias

    network = remove_bias(model, **options)
    kinds = Counter(line.partition(": ")[2] for line in changes(network))
    lines = [f"{count:4d} x {kind}" for kind, count in kinds.items()]
    return network, "\n".join(["has no biases now:", *lines])


def _next_step(args: argparse.Namespace, config: Any) -> str:
    out = shlex.quote(args.out)
    chosen = f"--attribution {config.attribution} --layer {config.layer}"
    shown = "--bcos" if args.bcos else chosen
    changed = any(getattr(args, name) not in (None, False) for name in _OF_BCOS if name != "b")
    kept = args.bcos and args.b == 1 and not changed
    about = "Its logits are those of the model" if kept else "Its logits are new, so train it"
    return (
        f"{about}:\n"
        f"  explainguide train --checkpoint {out} {chosen} --data ... --out RUN\n"
        f"  explainguide explain IMAGE --checkpoint {out} {shown} --out picture.png"
    )
