"""Which class is drawn, and which region it is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from explainguide.annotations.class_choice import Choice, choose_classes
from explainguide.annotations.forms import as_regions

COUNT, CLASSES = 6000, 5


def draw(annotations: Tensor, *, negatives: float, target: Tensor | None = None) -> Choice:
    logits = torch.zeros(len(annotations), annotations.shape[1])
    return choose_classes(
        "sample",
        as_regions(annotations, logits, (2, 2)),
        logits,
        target,
        negatives=negatives,
        generator=torch.Generator().manual_seed(5),
    )


def masks_of(*classes: int) -> Tensor:
    """The same classes in every image, each at one pixel."""
    masks = torch.zeros(COUNT, CLASSES, 2, 2)
    masks[:, list(classes), 0, 1] = 1
    return masks


def test_silent_absent_classes_are_drawn_alike() -> None:
    """Whether a class is absent and which one it is are two draws, not one."""
    choice = draw(masks_of(1, 3), negatives=0.25)
    negative = choice.regions[0] == -1
    assert abs(negative.double().mean() - 0.25) < 0.03
    shares = choice.classes[0, negative].bincount(minlength=CLASSES) / negative.sum()
    expected = torch.tensor([1 / 3, 0, 1 / 3, 0, 1 / 3])
    torch.testing.assert_close(shares, expected, atol=0.05, rtol=0)
    shares = choice.classes[0, ~negative].bincount(minlength=CLASSES) / (~negative).sum()
    torch.testing.assert_close(shares, torch.tensor([0, 0.5, 0, 0.5, 0]), atol=0.05, rtol=0)


def test_silent_what_is_annotated_is_never_taken_for_absent() -> None:
    """An image shows its annotated classes too, where the target names only one of them."""
    choice = draw(masks_of(1, 3), negatives=1.0, target=torch.full((COUNT,), 1))
    assert choice.valid.all()
    assert set(choice.classes.unique().tolist()) == {0, 2, 4}


def test_silent_an_absent_class_is_compared_with_all_objects() -> None:
    masks = 0.5 + torch.rand(3, CLASSES, 2, 2, generator=torch.Generator().manual_seed(0)) / 2
    regions = as_regions(masks, torch.zeros(3, CLASSES), (2, 2))
    found = regions.region(torch.tensor([[-1, 2, -1]]), (2, 2))
    expected = torch.stack([masks[0].max(0).values, masks[1, 2], masks[2].max(0).values])
    assert torch.equal(found[0], expected)
