"""`train` with a compiled trunk: the numbers of one without, and a model that is left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from explainguide import ExplanationGuidance
from explainguide.checkpoints import load_checkpoint
from explainguide.errors import GuidanceError
from explainguide.training import train

from .small_runs import QUICK, tiny

# torch.compile looks at the .grad of what it is given.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.skipif(torch.__version__ < "2.5", reason="torch 2.4 compiles no single modules"),
]


@pytest.mark.parametrize("lam", [0.5, 0.0])
def test_a_compiled_training_is_the_same_training(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lam: float
) -> None:
    torch._dynamo.reset()
    graphs, own = [], ExplanationGuidance.compile

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return aot_eager(module, inputs)

    monkeypatch.setattr(ExplanationGuidance, "compile", lambda guide: own(guide, backend=backend))
    rows, states, counts = [], [], []
    for compile in (False, True):
        model = tiny()
        config = replace(
            QUICK,
            epochs=2,
            batch_size=10,
            lam=lam,
            compile=compile,
            output_dir=str(tmp_path / str(compile)),
        )
        done = train(
            model,
            *digits,
            config,
            progress=False,
            on_epoch=lambda _: counts.append(len(graphs)),
        )
        rows.append(done.rows)
        states.append(load_checkpoint(tmp_path / str(compile) / "last.pt")["model"])
        assert all(module._compiled_call_impl is None for module in model.modules())
    assert counts[:2] == [0, 0]
    assert counts[2] > 0
    assert counts[3] == counts[2]  # the second epoch compiles nothing
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)
    assert rows[0][1]["loss"] == pytest.approx(rows[1][1]["loss"], rel=1e-4)
    assert rows[0][1]["epg"] == pytest.approx(rows[1][1]["epg"], rel=1e-3)


def test_nothing_to_compile_is_told_before_anything_is_written(digits: Any, tmp_path: Path) -> None:
    config = replace(QUICK, layer="input", compile=True, output_dir=str(tmp_path / "run"))
    with pytest.raises(
        GuidanceError, match="no module ends before the first guided layer, 'input'"
    ):
        train(tiny(), *digits, config, progress=False)
    assert not (tmp_path / "run").exists()
