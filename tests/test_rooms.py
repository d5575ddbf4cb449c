"""The counts of the house: what the redesign was for, and what must not come back."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature

from explainguide import ExplanationGuidance, GuideOptions, Recipe
from explainguide.training import TrainConfig

from . import rooms


def test_no_function_is_told_who_called() -> None:
    assert [f.name for _, f in rooms.functions() if "caller" in rooms.parameters(f)] == []


def test_the_options_of_a_guide_are_listed_once_besides_its_signature() -> None:
    assert rooms.listings() == ["guidance/guide.py: __init__", "guidance/options.py: GuideOptions"]
    listed = {field.name for field in fields(GuideOptions)}
    assert sorted(listed) == sorted(rooms.guide_options())
    taken = set(signature(ExplanationGuidance).parameters) - {"model", "generator"}
    # An object or a partial has its options in it; a name has them beside it.
    assert listed - taken == {"attribution_options", "loss_options"}
    assert taken <= listed
    for settings in (TrainConfig, Recipe):
        assert listed <= {field.name for field in fields(settings)}


def test_the_signature_and_the_options_have_the_same_defaults() -> None:
    of_options = {field.name: field.default for field in fields(GuideOptions)}
    for name, parameter in signature(ExplanationGuidance).parameters.items():
        if name not in ("model", "generator"):
            assert parameter.default == of_options[name], name


def test_the_house_has_few_rooms_floors_and_arrows() -> None:
    # Of them studies is one: many trainings of one question, above training and below cli.
    assert len(rooms.RANK) <= 23
    assert rooms.floors() <= 10
    # Seven are of studies: cli -> studies, and from it to training, evaluation, metrics, visualization,
    # named and errors. One is models -> files: relearning keeps checkpoints, written whole or not at all.
    assert len(rooms.arrows()) <= 98
