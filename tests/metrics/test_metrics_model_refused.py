"""What the metrics that ask a model refuse: one row a message."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from explainguide.errors import GuidanceError, OptionError, ShapeError
from explainguide.metrics import (
    DeletionCurve,
    EnergyPointingGame,
    Infidelity,
    InsertionCurve,
    PixelPerturbation,
    Robustness,
    SensitivityMax,
    deletion_curve,
    drop_pixels,
    infidelity,
    insertion_curve,
    perturb,
    pixel_perturbation,
    replace_background,
    sensitivity_max,
)
from tests.metrics.asked import Small, seven, told_elsewhere

MAPS, IMAGES, TARGET = seven()
MASK = MAPS > 0


def logits(images):
    return Small()(images)


def maps_of(images, target):
    return images[:, 0]


def remove(maps=MAPS, images=IMAGES, target=TARGET, model=logits, **options):
    return pixel_perturbation(maps, images, target, model, **options)


def robust(images=IMAGES, target=TARGET, mask=MASK, explain=maps_of, change=lambda i, m: i):
    Robustness(EnergyPointingGame(), change=change).update(images, target, mask, explain)


def generator():
    return torch.Generator()


BAD = {
    # options
    "a percentage": (
        OptionError,
        "PixelPerturbation: a fraction of the pixels is 5. Did you mean 0.05? A number in (0, 1) is allowed.",
        lambda: PixelPerturbation(fractions=(5,)),
    ),
    "nothing": (
        OptionError,
        "perturb: a fraction of the pixels is 0. A number in (0, 1) is allowed.",
        lambda: perturb(IMAGES, MAPS, fraction=0),
    ),
    "everything": (
        OptionError,
        "perturb: a fraction of the pixels is 1. Did you mean 0.01? A number in (0, 1) is allowed.",
        lambda: perturb(IMAGES, MAPS, fraction=1),
    ),
    "a word": (
        OptionError,
        "perturb: a fraction of the pixels is '5%'. A number in (0, 1) is allowed.",
        lambda: perturb(IMAGES, MAPS, fraction="5%"),
    ),
    "one fraction": (
        OptionError,
        "pixel_perturbation: fractions is 0.1. Use (0.05, 0.1, 0.2). One number in (0, 1), or several,",
        lambda: remove(fractions=0.1),
    ),
    "no fraction": (
        OptionError,
        "PixelPerturbation: fractions is (). Use (0.05, 0.1, 0.2).",
        lambda: PixelPerturbation(fractions=()),
    ),
    "one twice": (
        OptionError,
        "PixelPerturbation: fractions is (0.1, 0.1), in which two are the same per cent. Leave one out.",
        lambda: PixelPerturbation(fractions=(0.1, 0.1)),
    ),
    "mode": (
        OptionError,
        "PixelPerturbation: unknown mode 'removed'. Did you mean 'remove'? 'remove', 'keep' are allowed.",
        lambda: PixelPerturbation(mode="removed"),
    ),
    "fill": (
        OptionError,
        "perturb: unknown fill 'blurr'. Did you mean 'blur'? 'mean', 'blur', 'noise', a number, a colour",
        lambda: perturb(IMAGES, MAPS, fraction=0.1, fill="blurr"),
    ),
    "fill of nothing": (
        OptionError,
        "InsertionCurve: fill is None. Use 'mean'. 'mean', 'blur', 'noise', a number, a colour (C,),",
        lambda: InsertionCurve(fill=None),
    ),
    "fill of yes": (
        OptionError,
        "DeletionCurve: fill is True. Use 'mean'.",
        lambda: DeletionCurve(fill=True),
    ),
    "colour": (
        OptionError,
        "drop_pixels: fill is a tensor of shape (1, 3, 1, 1) and dtype torch.float32. Give one number a channel,",
        lambda: drop_pixels(IMAGES, fill=torch.zeros(1, 3, 1, 1)),
    ),
    "channels of the colour": (
        ShapeError,
        "perturb: fill has 2 channels but the images have 3. Give one number a channel. A colour (C,) is allowed.",
        lambda: perturb(IMAGES, MAPS, fraction=0.1, fill=torch.zeros(2)),
    ),
    "fill returns": (
        ShapeError,
        "perturb: fill returned (7, 3, 9) for images (7, 3, 6, 9). Return images to take pixels from.",
        lambda: perturb(IMAGES, MAPS, fraction=0.1, fill=lambda images: images[:, :, 0]),
    ),
    "generator of nothing": (
        OptionError,
        "PixelPerturbation: generator was given with fill='mean', which does not draw from it. Leave",
        lambda: PixelPerturbation(generator=generator()),
    ),
    "steps": (
        OptionError,
        "InsertionCurve: steps is 0. A whole number from 1 on is allowed.",
        lambda: InsertionCurve(steps=0),
    ),
    "chunk": (
        OptionError,
        "deletion_curve: chunk is 1.5. A whole number from 1 on is allowed.",
        lambda: deletion_curve(MAPS, IMAGES, TARGET, logits, chunk=1.5),
    ),
    "multilabel": (
        OptionError,
        "insertion_curve: multilabel is 'yes'. Write multilabel=True or multilabel=False.",
        lambda: insertion_curve(MAPS, IMAGES, TARGET, logits, multilabel="yes"),
    ),
    "sd": (
        OptionError,
        "Infidelity: sd is 0. A number above 0 is allowed.",
        lambda: Infidelity(sd=0),
    ),
    "perturbation": (
        OptionError,
        "Infidelity: unknown perturbation 'fades'. Did you mean 'fade' or 'add'? 'fade', 'add' are allowed.",
        lambda: Infidelity(perturbation="fades"),
    ),
    "one sample": (
        OptionError,
        "infidelity: samples is 1 with normalize=True, which fits the one number exactly whatever the map.",
        lambda: infidelity(MAPS, IMAGES, TARGET, logits, samples=1),
    ),
    "radius": (
        OptionError,
        "SensitivityMax: radius is -0.1. A number above 0 is allowed.",
        lambda: SensitivityMax(radius=-0.1),
    ),
    "samples": (
        OptionError,
        "sensitivity_max: samples is 0. A whole number from 1 on is allowed.",
        lambda: sensitivity_max(MAPS, IMAGES, TARGET, maps_of, samples=0),
    ),
    "share of all": (
        OptionError,
        "drop_pixels: share is 1. Use 0.2. A number in (0, 1) is allowed.",
        lambda: drop_pixels(IMAGES, share=1),
    ),
    "share in per cent": (
        OptionError,
        "drop_pixels: share is 20. Did you mean 0.2? A number above 0 is allowed.",
        lambda: drop_pixels(IMAGES, share=20),
    ),
    # shapes and dtypes
    "sizes": (
        ShapeError,
        "pixel_perturbation: images have shape (7, 3, 6, 9) but the maps (N, H, W) have shape (7, 3, 3). "
        "Resize the attribution first: torch.nn.functional.interpolate(attribution, (6, 9), mode='bilinear')",
        lambda: remove(maps=MAPS[:, :3, :3]),
    ),
    "counts": (
        ShapeError,
        "PixelPerturbation.update: images have shape (6, 3, 6, 9) but the maps (N, H, W) have shape (7, 6, 9). "
        "Give one image for each map: images[index] where an image has several.",
        lambda: PixelPerturbation().update(MAPS, IMAGES[:6], TARGET, logits),
    ),
    "one image": (
        ShapeError,
        "drop_pixels: images have shape (3, 6, 9). Add the batch dimension: images[None]. They must be",
        lambda: drop_pixels(IMAGES[0]),
    ),
    "bytes": (
        ShapeError,
        "insertion_curve: images have dtype torch.uint8. Transform them as for the model first.",
        lambda: insertion_curve(MAPS, IMAGES.byte(), TARGET, logits),
    ),
    "a list": (
        ShapeError,
        "infidelity: images are a list. Stack them: torch.stack([...]). A tensor (N, C, H, W) is allowed.",
        lambda: infidelity(MAPS, list(IMAGES), TARGET, logits),
    ),
    "channels of the map": (
        ShapeError,
        "DeletionCurve.update: attribution has shape (7, 3, 6, 9). Sum over the channels first:",
        lambda: DeletionCurve().update(IMAGES, IMAGES, TARGET, logits),
    ),
    "targets": (
        ShapeError,
        "sensitivity_max: target is (3,) for 7 images. Give one class an image: torch.tensor([...]).",
        lambda: sensitivity_max(MAPS, IMAGES, TARGET[:3], maps_of),
    ),
    "a class": (
        ShapeError,
        "Infidelity.update: target is int for 7 images. Give one class an image:",
        lambda: Infidelity().update(MAPS, IMAGES, 1, logits),
    ),
    "multi-hot": (
        ShapeError,
        "SensitivityMax.update: target is (7, 4) for 7 images.",
        lambda: SensitivityMax().update(MAPS, IMAGES, torch.zeros(7, 4), maps_of),
    ),
    "floats": (
        ShapeError,
        "pixel_perturbation: target has dtype torch.float32. Multi-hot labels are one row for each class:",
        lambda: remove(target=TARGET.float()),
    ),
    "backgrounds": (
        ShapeError,
        "replace_background: backgrounds have shape (3, 6, 9) but the images have (7, 3, 6, 9). Resize them,",
        lambda: replace_background(IMAGES, MASK, IMAGES[0]),
    ),
    "no background": (
        ShapeError,
        "replace_background: backgrounds have shape (0, 3, 6, 9)",
        lambda: replace_background(IMAGES, MASK, IMAGES[:0]),
    ),
    "backgrounds of bytes": (
        ShapeError,
        "replace_background: backgrounds are torch.uint8. Transform them as the images.",
        lambda: replace_background(IMAGES, MASK, IMAGES.byte()),
    ),
    "mask of ids": (
        ShapeError,
        "replace_background: mask has dtype torch.int64, which may hold class ids or 0 to 255.",
        lambda: replace_background(IMAGES, MASK.long(), IMAGES),
    ),
    # the model
    "no callable": (
        OptionError,
        "pixel_perturbation: model is a str, which cannot be called. Pass the classifier itself.",
        lambda: remove(model="resnet18"),
    ),
    "training mode": (
        GuidanceError,
        "PixelPerturbation.update: Small is in training mode, in which dropout and the statistics of the batch",
        lambda: PixelPerturbation().update(MAPS, IMAGES, TARGET, Small().train()),
    ),
    "a part in training mode": (
        GuidanceError,
        "infidelity: Sequential is in training mode",
        lambda: infidelity(MAPS, IMAGES, TARGET, nn.Sequential(Small(), nn.Dropout()).train()),
    ),
    "a dict": (
        ShapeError,
        "deletion_curve: the model returns a dict for 64 images. Wrap it, as in model=lambda images: "
        "model(images).logits. Logits (N, K), before softmax or sigmoid, are needed.",
        lambda: deletion_curve(MAPS, IMAGES, TARGET, lambda images: {"logits": logits(images)}),
    ),
    "features": (
        ShapeError,
        "pixel_perturbation: the model returns a tensor of shape (7, 3, 6, 9) and dtype torch.float64 for 7",
        lambda: remove(model=lambda images: images),
    ),
    "classes": (
        ShapeError,
        "pixel_perturbation: the model returns a tensor of shape (7,) and dtype torch.int64 for 7 images.",
        lambda: remove(model=lambda images: logits(images).argmax(1)),
    ),
    "probabilities": (
        GuidanceError,
        "InsertionCurve.update: the model returns probabilities (softmax, rows that sum to 1), not logits.",
        lambda: InsertionCurve().update(
            MAPS, IMAGES, TARGET, lambda images: logits(images).softmax(1)
        ),
    ),
    "a class too many": (
        OptionError,
        "pixel_perturbation: target holds class 3, but the model has 3. Check the label map. 0 to 2 are allowed.",
        lambda: remove(target=TARGET + 1),
    ),
    "a negative class": (
        OptionError,
        "infidelity: target holds class -1, but the model has 3.",
        lambda: infidelity(MAPS, IMAGES, TARGET - 1, logits),
    ),
    "a third class of two": (
        OptionError,
        "pixel_perturbation: target holds class 2, but the model has 2.",
        lambda: remove(model=Small(classes=1)),
    ),
    # the explanation
    "no explanation": (
        OptionError,
        "SensitivityMax.update: explain is a Tensor, which cannot be called. Pass a function, or the method",
        lambda: SensitivityMax().update(MAPS, IMAGES, TARGET, MAPS),
    ),
    "maps of another size": (
        ShapeError,
        "Robustness.update: explain returned what are no maps of the images: images have shape (7, 3, 6, 9)",
        lambda: robust(explain=lambda images, target: images[:, 0, ::2]),
    ),
    "maps with channels": (
        ShapeError,
        "sensitivity_max: explain returned what are no maps of the images: attribution has shape (",
        lambda: sensitivity_max(MAPS, IMAGES, TARGET, lambda images, target: images),
    ),
    "no metric": (
        OptionError,
        "Robustness: metric is <class 'explainguide.metrics.energy.EnergyPointingGame'>. Build it: "
        "EnergyPointingGame(). A metric of torchmetrics is allowed.",
        lambda: Robustness(EnergyPointingGame, change=lambda images, mask: images),
    ),
    "no change": (
        OptionError,
        "Robustness: change is 'noise'. Use change=lambda images, mask: drop_pixels(images).",
        lambda: Robustness(EnergyPointingGame(), change="noise"),
    ),
    "change returns": (
        ShapeError,
        "Robustness.update: change returned (7, 6, 9) for images (7, 3, 6, 9). Return the changed images.",
        lambda: robust(change=lambda images, mask: mask),
    ),
}


@pytest.mark.parametrize("row", BAD, ids=str)
def test_what_is_refused(row):
    kind, told, call = BAD[row]
    with pytest.raises(kind, match=f"^{re.escape(told)}"):
        call()


@pytest.mark.parametrize(
    "kind", [PixelPerturbation, InsertionCurve, DeletionCurve, Infidelity, SensitivityMax]
)
def test_keywords_are_not_swallowed(kind):
    with pytest.raises(ValueError, match="Unexpected keyword"):
        kind(fractionz=0.1)


@told_elsewhere
def test_a_refused_batch_adds_nothing():
    metric = PixelPerturbation()
    with pytest.raises(OptionError, match="target holds class 3"):
        metric.update(MAPS, IMAGES, TARGET + 1, Small())
    metric.update(MAPS, IMAGES, TARGET, Small())
    clean = PixelPerturbation()
    clean.update(MAPS, IMAGES, TARGET, Small())
    assert metric.compute() == clean.compute()


def test_modules_inside_a_function_are_the_callers():
    """Only a module itself can be asked for its mode."""
    model = Small().train()
    found = remove(model=partial(model))
    assert found.shape == (7, 3)
