"""The table of annotation forms: one entry is all that a new form needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from explainguide import Annotations, ExplanationGuidance
from explainguide.annotations.forms import FORMS, Batch, Regions, as_regions, form
from explainguide.errors import AnnotationError, ShapeError

from .networks import TARGETS, SmallCnn, batch

LOGITS = torch.zeros(3, 4)
SIZE = (12, 12)
VALUES = {
    "a list of dicts": TARGETS,
    "explainguide.Annotations": Annotations.from_targets(TARGETS),
    "masks (N, H, W) or (N, 1, H, W)": torch.ones(3, 1, 12, 12),
    "masks per class (N, {K}, H, W)": torch.ones(3, 4, 12, 12),
}


def test_every_form_has_a_value_of_its_own() -> None:
    assert [known.name for known in FORMS] == list(VALUES)
    for name, value in VALUES.items():
        fitting = [known.name for known in FORMS if known.fits(value, Batch(LOGITS, SIZE, None, 0))]
        assert fitting == [name]
        assert as_regions(value, LOGITS, SIZE).region(torch.zeros(3).long(), SIZE).any()


@pytest.mark.parametrize(
    ("value", "kind", "begins"),
    [
        (7, AnnotationError, "annotations is a int"),
        (TARGETS[0], AnnotationError, "annotations is a dict"),
        (torch.zeros(3, 2, 12, 12), ShapeError, "the masks have shape (3, 2, 12, 12)"),
        (
            torch.zeros(12, 12),
            ShapeError,
            "the masks have shape (12, 12) for 3 images of 4 classes",
        ),
        (torch.tensor(True), ShapeError, "the masks have shape ()"),
    ],
    ids=str,
)
def test_the_refusal_names_every_form(value: Any, kind: type, begins: str) -> None:
    with pytest.raises(kind) as error:
        as_regions(value, LOGITS, SIZE)
    assert str(error.value).startswith(begins)
    said = str(error.value).lower()
    assert all(known.name.replace("{K}", "4").lower() in said for known in FORMS)
    assert said.endswith(" are allowed.")


def test_a_new_form_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("explainguide.annotations.forms.FORMS", FORMS.copy())
    from explainguide.annotations import forms

    @form("the word 'everywhere'", lambda value, batch: value == "everywhere")
    def everywhere(word: str, batch: Batch) -> Regions:
        return as_regions(torch.ones(len(batch.logits), *batch.size), batch.logits, batch.size)

    assert (
        forms.FORMS[-1].name == "the word 'everywhere'"
    )  # asked before lists: a word is a sequence
    guide = ExplanationGuidance(SmallCnn().eval(), "stem")
    guide(batch())
    assert guide.loss_loc("everywhere", 1).item() == pytest.approx(0, abs=1e-6)
    guide(batch())
    with pytest.raises(
        AnnotationError, match=r"A list of dicts, .*, masks .* and the word 'everywhere' are"
    ):
        guide.loss_loc(3, 1)
    guide.remove()
