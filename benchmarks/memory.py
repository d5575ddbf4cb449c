"""What a guided step keeps for its backward pass: with fast second derivatives, over PyTorch's own.

Counted are the bytes of all tensors that autograd saves until `backward` begins, each storage once;
parameters are left out. The same numbers on every machine.

Example:
    python benchmarks/memory.py --json benchmarks/memory.json
"""

from __future__ import annotations

from typing import Any

import torch
from measured import common_options, save
from step import CASES, Case, boxes, build
from torch import Tensor

from explainguide import ExplanationGuidance
from explainguide.tables import format_table


def saved(case: Case, layer: str | None, *, fast: Any = False) -> int:
    """Bytes that one step saves; without guidance where there is no layer."""
    model = build(case.model, case.size)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes(), tensor.detach()  # which keeps the address
        return tensor

    guide = None if layer is None else ExplanationGuidance(model, layer=layer, fast=fast)
    images = torch.rand(case.batch, 3, case.size, case.size)
    annotations = boxes(case.batch, case.size)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, annotations.labels[:, 0])
        if guide is not None:
            loss = loss + guide.loss_loc(annotations)
    assert loss.isfinite()
    return sum(size for size, _ in found.values())


def main() -> None:
    """See above."""
    args = common_options(__doc__, table=False).parse_args()
    rows = []
    for case in CASES:
        plain = saved(case, None)
        for layer in case.layers:
            torchs, own = (saved(case, layer, fast=fast) for fast in (False, "auto"))
            row = {"model": case.model, "layer": layer, "plain, MB": plain / 2**20}
            row |= {"torch, MB": torchs / 2**20, "guided, MB": own / 2**20}
            rows.append({**row, "ratio": own / torchs})
    print(format_table(rows))
    save(args.json, rows, packages=("explainguide", "torch"), device="cpu")


if __name__ == "__main__":
    main()
