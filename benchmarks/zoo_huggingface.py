"""Guidance on every image classifier of Transformers that builds from a small config: one row each.

python benchmarks/zoo_huggingface.py --table docs/families_huggingface_results.md
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # configs and random weights need no hub

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES,
)

from explainguide import ExplainGuideWarning, ExplanationGuidance
from explainguide.hooks.layout import Layout
from explainguide.hooks.probe import LayerInfo, automatic_layer, input_size, probe_layers

# Sizes under the names that configs have for them; each config takes those that are its own.
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
# What a family needs instead, since its sizes depend on one another.
_OWN: dict[str, dict[str, Any]] = {
    "convnext": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
    "convnextv2": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
    "donut-swin": {
        "image_size": 224,
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 4],
    },
    "swin": {"image_size": 224, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    "swinv2": {
        "image_size": 256,
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 4],
    },
    "mobilevit": {"image_size": 256},
    "mobilevitv2": {"image_size": 256},
    "levit": {},
    "hiera": {"image_size": [224, 224]},
    "resnet": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "embedding_size": 16},
    "regnet": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "groups_width": 16},
    "pvt": {"image_size": 224},
    "pvt_v2": {"image_size": 224},
}
_LARGEST = 3e8  # parameters


def build(kind: str, name: str) -> nn.Module:
    """A model with random weights; what starts at zero gets small random values."""
    made = getattr(transformers, name)
    plain = made.config_class()
    own = _OWN.get(kind)
    if own is None:
        own = {k: v for k, v in _SMALL.items() if isinstance(getattr(plain, k, None), int)}
    torch.manual_seed(0)
    model: nn.Module = made(made.config_class(**own, num_labels=16))
    if sum(p.numel() for p in model.parameters()) > _LARGEST:
        raise ValueError("more than 300 million parameters")
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model


def middle(layers: list[LayerInfo], automatic: str) -> str:
    """A layer with places, half way to the automatic one."""
    names = [layer.name for layer in layers if layer.usable and not layer.cancels]
    return names[names.index(automatic) // 2]


def check(kind: str, name: str) -> tuple[str, str, str]:
    """The automatic layer, how it is read, and what failed: a step at three places, in two modes."""
    model = build(kind, name)
    size = input_size(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ExplainGuideWarning)
        layers = probe_layers(model)
        automatic = automatic_layer(model, layers)
        layout = next(layer.layout for layer in layers if layer.name == automatic)
        assert isinstance(layout, Layout)
        height, width = size[1:]
        box = torch.tensor([[width * 0.1, height * 0.2, width * 0.6, height * 0.7]])
        for training in (True, False):
            model.train(training)
            for layer in (automatic, middle(layers, automatic), "input"):
                with ExplanationGuidance(model, layer, target="all") as guide:
                    model(pixel_values=torch.randn(2, *size))
                    loss = guide.loss_loc(
                        [{"boxes": box, "labels": torch.tensor([k])} for k in (3, 7)]
                    )
                    if training:  # some keep a part of the graph from one evaluation to the next
                        loss.backward()
                    if not loss.isfinite():
                        raise ValueError(f"loss_loc is {loss.item()} at {layer}")
    said = [str(w.message) for w in told if issubclass(w.category, ExplainGuideWarning)]
    return automatic, str(layout), said[0] if said else ""


def main() -> None:
    """Run all, print a row each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="where the table goes")
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, guided, refused = [], 0, []
    for kind, several in sorted(NAMES.items()):
        if args.only and kind not in args.only:
            continue
        for name in several if isinstance(several, tuple | list) else (several,):
            try:
                automatic, layout, said = check(kind, name)
            except Exception as error:  # whatever a model does: a row
                reason = str(error).strip().splitlines()[0][:160].replace("|", "/")
                refused.append(f"- `{name}`: {type(error).__name__}: {reason}")
                print(f"NO  {name}: {reason}", flush=True)
                continue
            guided += 1
            rows.append(f"| {kind} | `{name}` | `{automatic}` | {layout} |")
            print(f"ok  {name} {automatic} {layout} {said}", flush=True)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    head = f"{guided} of {guided + len(refused)} classes of Transformers; {versions}."
    print(head)
    if args.table:
        table = ["| kind | class | automatic layer | layout |", "| --- | --- | --- | --- |", *rows]
        left = ["", "Not guided, with the reason:", "", *refused] if refused else []
        args.table.write_text("\n".join([head, "", *table, *left, ""]))


if __name__ == "__main__":
    main()
