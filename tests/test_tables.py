"""An entry of a table does not take the place of another without a word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import nn
from torchmetrics import MeanMetric

from explainguide import RECIPES, recipe
from explainguide.annotations.forms import FORMS, form
from explainguide.attr import ATTRIBUTIONS, InputXGradient, attribution
from explainguide.bcos import BatchNormUncentered2d
from explainguide.bcos.norm_table import NORMS, in_place_of
from explainguide.datasets import DATASETS, DataSource
from explainguide.errors import OptionError
from explainguide.hooks.layout_table import KINDS, layout_kind
from explainguide.losses import LOSSES, localization_loss
from explainguide.metrics import MAP_METRICS, map_metric


def a_loss(name: str) -> Any:
    def energy_loss(attribution: Any, mask: Any) -> Any: ...

    energy_loss.__name__ = f"{name}_loss"
    return localization_loss()(energy_loss)


def an_attribution(name: str) -> Any:
    @attribution(name)
    class Mine(InputXGradient):
        pass

    return Mine


def a_layout(name: str) -> Any:
    @layout_kind(name, ndim=4, grid=(2, 3))
    def read(feature: Any, layout: Any) -> Any: ...

    return read


def a_metric(name: str) -> Any:
    @map_metric(name, title="Mine")
    class Mine(MeanMetric):
        pass

    return Mine


def a_form(name: str) -> Any:
    @form(name, lambda value, batch: False)
    def read(value: Any, batch: Any) -> Any: ...

    return read


def a_data_set(name: str) -> Any:
    def mine(image_set: str) -> Any: ...

    DATASETS[name] = DataSource("mine", mine)
    return mine


TABLES: dict[str, tuple[Any, str, Callable[[str], Any]]] = {
    "localization_loss": (LOSSES, "energy", a_loss),
    "attribution": (ATTRIBUTIONS, "ixg", an_attribution),
    "layout_kind": (KINDS, "NCHW", a_layout),
    "map_metric": (MAP_METRICS, "epg", a_metric),
    "form": (FORMS, "a list of dicts", a_form),
    "DATASETS": (DATASETS, "voc", a_data_set),
}


@pytest.mark.parametrize("door", TABLES)
def test_an_entry_of_the_package_keeps_its_place(door: str) -> None:
    table, taken, enter = TABLES[door]
    before = table.copy()
    with pytest.raises(
        OptionError, match=rf"^{door}: the key '{taken}' of \S+ is that of explaing"
    ):
        enter(taken)
    assert table == before


@pytest.mark.parametrize("door", TABLES)
def test_what_is_defined_again_takes_its_own_place(door: str) -> None:
    table, _, enter = TABLES[door]
    before = table.copy()
    try:
        enter("mine")
        size = len(table)
        again = enter("mine")
        assert len(table) == size == len(before) + 1
        entry = table[-1] if isinstance(table, list) else table["mine"]
        assert entry is again or again in vars(entry).values()
    finally:
        if isinstance(table, list):
            table[:] = before
        else:
            del table["mine"]
    assert table == before


def test_a_layout_is_not_asked_for_by_the_name_of_another() -> None:
    before = KINDS.copy()
    for kind, called in (("NLC", None), ("mine", "NLC")):
        with pytest.raises(
            OptionError, match=r"^layout_kind: the key 'NLC' of \S+ is that of \S+_t"
        ):
            layout_kind(kind, called=called, ndim=3)(lambda feature, layout: feature)
    assert before == KINDS


def test_a_norm_goes_on_standing_for_what_it_stood_for() -> None:
    before = NORMS.copy()
    options: dict[str, Any] = {"arguments": ("num_features",), "channels": "num_features"}
    with pytest.raises(
        OptionError,
        match=r"^in_place_of: the key BatchNormUncentered2d of .* \(in place of \S+BatchN",
    ):
        in_place_of(nn.BatchNorm3d, **options)(BatchNormUncentered2d)
    assert before == NORMS


def test_a_recipe_of_the_package_keeps_its_place() -> None:
    RECIPES["rrr"] = recipe("rrr")  # the same
    with pytest.raises(
        OptionError, match=r"^RECIPES: the key 'rrr' of a Recipe is that of another"
    ):
        RECIPES["rrr"] = replace(recipe("rrr"), lam=1.0)
    assert RECIPES["rrr"].lam == 1000
