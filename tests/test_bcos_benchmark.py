"""``benchmarks/bcos.py`` measures programs that compute the same, and writes tables of what it measured."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from bcos_programs import Batch, guided, unguided
from torch import nn

from explainguide.bcos import BcosConv2d

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "bcos.py"
PROGRAMS = {"plain", "ours", "composed", "authors", "authors, 2 forwards"}


@pytest.fixture(scope="module")
def benchmark() -> dict:
    return runpy.run_path(str(BENCHMARK))  # its name is that of the authors' package


@pytest.mark.slow
def test_smoke_run(benchmark: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert benchmark["main"](["--smoke", "--json", str(tmp_path / "bcos.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    facts = json.loads((tmp_path / "bcos.json").read_text())
    found = {row["program"] for row in facts["rows"]}
    assert found == (PROGRAMS if not facts["skipped"] else {"plain", "ours", "composed"})
    for row in facts["rows"]:
        assert row["ms"] > 0 and row["saved MB"] > 0
        if row["step"] == "unguided":
            assert row["cosine"] is None and row["times unguided"] == 1
        elif row["program"] == "composed":
            assert row["cosine"] == pytest.approx(1, abs=1e-9)
        elif row["program"] != "ours":  # the authors': another gradient
            assert row["cosine"] < 0.9
    printed = capsys.readouterr().out
    table = tmp_path / "table.md"
    assert benchmark["main"](["--json", str(tmp_path / "bcos.json"), "--table", str(table)]) == 0
    assert table.read_text() == printed
    assert "| resnet18, 64 px, batch 2" in printed and "guided, input" in printed


def test_a_table_without_the_authors_says_why(benchmark: dict) -> None:
    row = {"network": "resnet18", "side": 64, "batch_size": 2, "step": "input", "program": "ours"}
    row |= {"times plain": 3.0, "times unguided": 2.0, "ours over it": 1.0}
    row |= {"saved MB": 50.2, "cosine": None}
    facts = {"rows": [row], "rounds": 1, "seed": 0, "device": "CPU", "threads": 1}
    page = benchmark["page"](facts | {"versions": {"bcos": None}, "skipped": "It was not there."})
    assert "3.00 (1.00)" in page and "2.00 (50 MB)" in page
    assert "authors" not in page and page.endswith(" It was not there.\n")


def test_saved_memory_is_counted_once(benchmark: dict) -> None:
    class Squares(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            power = self.weight * images  # keeps the images; the weight is a parameter
            return (power * power + power.exp()).mean((2, 3))  # power, twice, and the exponential

    network = Squares()
    network.weight = nn.Parameter(torch.ones(3, 8, 8))
    batch = Batch(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), torch.zeros(2, 8, 8))
    tensor = 4 * batch.images.numel()
    logits = 4 * 2 * 3  # of the cross entropy, which keeps the log of their softmax
    found = benchmark["saved_megabytes"](unguided(network), batch) * 1e6
    assert 3 * tensor <= found <= 3 * tensor + 10 * logits


def test_a_guided_program_leaves_the_network_alone() -> None:
    conv = BcosConv2d(6, 3, 3, padding=1)
    network = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    batch = Batch(torch.rand(2, 6, 8, 8), torch.tensor([0, 1]), torch.ones(2, 8, 8))
    losses = guided(network, "input").losses(batch)
    assert losses.localization is not None and losses.maps is not None
    torch.testing.assert_close(losses.maps.sum((1, 2)), losses.logits.diag().detach())
    assert not network._forward_hooks and not network._forward_pre_hooks
