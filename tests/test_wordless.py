"""Errors of others that have no text, such as a bare assert: quoted by their kind wherever they are met."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn

from explainguide import Annotations, ExplainGuideError, ExplanationGuidance
from explainguide.attr import AttentionRelevance, InputXGradient
from explainguide.bcos import bcosify
from explainguide.cli.pictures import read_picture
from explainguide.datasets import ImageFolder
from explainguide.errors import DataError, first_line
from explainguide.hooks.layout_table import KINDS, layout_kind
from explainguide.models.build import set_image_size
from explainguide.xdnn import remove_bias

from .networks import TARGETS, SmallCnn, batch
from .test_errors import assert_message, plain, vit


class Wordless(nn.Module):
    """Refuses every image, or those of six channels, as a bare assert does."""

    def __init__(self, *, channels: int = 3, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.channels = channels
        self.inner = plain() if inner is None else inner

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] == self.channels:
            raise AssertionError
        return self.inner(images)


class Kept:
    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        raise TypeError


class Numbers:
    def __len__(self) -> int:
        raise ValueError

    def __getitem__(self, place: int) -> float:
        raise ValueError

    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise ValueError


class OnceByChance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Twice.apply(gradient)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError


class Derived(SmallCnn):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(OnceByChance.apply(self.mix(self.stem(images)))).mean((2, 3)))


def kept() -> nn.Module:
    model = plain()
    model.kept = Kept()  # type: ignore[assignment]
    return model


def loss_loc(model: nn.Module, annotations: Any = TARGETS, **options: Any) -> Tensor:
    with ExplanationGuidance(model, "mix") as guide:
        model(batch())
        return guide.loss_loc(annotations, **options)


def refuse(*given: Any) -> Any:
    raise LookupError


def odd_layout() -> Tensor:
    with mock.patch.dict(KINDS):

        @layout_kind("odd", ndim=4)
        def read(feature: Tensor, layout: Any) -> Tensor:
            raise RuntimeError

        method = InputXGradient(SmallCnn(), "mix", layout="odd", grid=(2, 2))
        return method.attribute(batch(), 1)


def sized() -> None:
    model = nn.Identity()
    model.set_input_size = mock.Mock(side_effect=AssertionError)  # type: ignore[assignment]
    set_image_size(model, 30)


REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("remove_bias", lambda: remove_bias(Wordless()), "AssertionError without a text"),
    ("bcosify", lambda: bcosify(Wordless()), "AssertionError without a text"),
    ("bcosify", lambda: bcosify(Wordless(channels=6)), "AssertionError without a text"),
    ("bcosify", lambda: bcosify(kept()), "TypeError without a text"),
    ("remove_bias", lambda: remove_bias(kept()), "TypeError without a text"),
    ("ExplanationGuidance", lambda: ExplanationGuidance(Wordless(), image_size=(32, 32)), "AssertionError without a text"),
    ("AttentionRelevance", lambda: AttentionRelevance(Wordless(inner=vit())), "AssertionError without a text"),
    ("Annotations.from_targets", lambda: loss_loc(SmallCnn(), [{"boxes": Numbers(), "labels": [1]}] * 3), "ValueError without a text"),
    ("ExplanationGuidance.loss_loc", lambda: loss_loc(SmallCnn(), torch.ones(3, 12, 12), target=Numbers()), "ValueError without a text"),
    ("ExplanationGuidance.loss_loc", lambda: loss_loc(Derived()), "RuntimeError without a text"),
    ("Annotations.from_targets", lambda: Annotations.from_targets([{"segmentation": [[Numbers()]], "labels": [1]}], canvas=(24, 24)), "ValueError without a text"),
    ("InputXGradient.attribute", lambda: InputXGradient(SmallCnn(), "mix", output=refuse).attribute(batch(), 1), "LookupError without a text"),
    ("InputXGradient.attribute", odd_layout, "RuntimeError without a text"),
]  # fmt: skip


@pytest.mark.parametrize(("caller", "call", "part"), REFUSED)
def test_an_error_without_a_text_is_quoted_by_its_kind(
    caller: str, call: Callable[[], Any], part: str
) -> None:
    with pytest.raises(ExplainGuideError) as refused:
        call()
    assert_message(str(refused.value), caller, [part])


def test_the_first_line_has_no_full_stop() -> None:
    assert first_line(ValueError("\n no axis.\nSee the manual.")) == "no axis"
    assert first_line(ValueError(" \n")) == "ValueError without a text"


def test_an_image_size_that_is_refused_without_a_text() -> None:
    with pytest.raises(ExplainGuideError, match=r"30 x 30 \(AssertionError without a text\)\. Use"):
        sized()


def test_a_module_that_cannot_be_imported_without_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wordless_losses.py").write_text("raise ImportError\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExplainGuideError, match=r"\(ImportError without a text\)\. The error is"):
        ExplanationGuidance(SmallCnn(), "mix", loss="wordless_losses:loss")


def test_a_picture_that_cannot_be_read_without_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cat" / "a.png"
    path.parent.mkdir()
    PIL.Image.new("RGB", (8, 8)).save(path)
    data = ImageFolder(tmp_path)
    monkeypatch.setattr(PIL.Image, "open", mock.Mock(side_effect=EOFError))
    with pytest.raises(DataError, match=r"a\.png' cannot be read \(EOFError without a text\)\."):
        read_picture(str(path))
    with pytest.warns(UserWarning, match=r"as an image \(EOFError without a text\); the item is"):
        assert data[0] is None


def test_no_text_is_split_by_hand() -> None:
    package = Path(first_line.__code__.co_filename).parent
    for path in sorted(package.rglob("*.py")):
        if path.name != "errors.py":
            assert not re.search(r"str\(error\)[^\n]*\.splitlines\(\)\[0\]", path.read_text()), path
