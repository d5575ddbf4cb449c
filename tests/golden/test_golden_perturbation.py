"""Perturbation against what the authors' program computed."""

import pytest
import torch

from explainguide.metrics import PixelPerturbation, perturb, pixel_perturbation

from .reader import load

FRACTIONS = (0.05, 0.1, 0.2, 0.5, 0.9)
MODES = {"remove": True, "keep": False}  # the program's word for it is complement


@pytest.fixture(scope="module")
def golden():
    tensors, described = load("07_comet", "comet")
    weight = tensors["perturb/linear_weight"]

    def model(images):
        return images.double().mean((2, 3)) @ weight.T

    given = tensors["perturb/saliency"], tensors["perturb/x"], tensors["perturb/labels"], model
    return tensors, described["perturbation"]["results"], given


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_images_are_those_of_the_program(golden, mode, fraction):
    tensors, results, (maps, images, _, model) = golden
    expected = results[f"complement={MODES[mode]},p={fraction}"]
    changed = perturb(images, maps, fraction=fraction, mode=mode, fill=0.0)
    # No pixel of the images is 0 itself.
    kept = (changed != 0).all(1).sum((1, 2))
    assert (images != 0).all()
    assert kept.tolist() == expected["kept_pixels"]
    torch.testing.assert_close(
        model(changed), tensors[f"perturb/logits/{MODES[mode]}/{fraction}"], rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("mode", MODES)
def test_the_accuracies_are_those_of_the_program(golden, mode):
    _, results, (maps, images, labels, model) = golden
    options = {"fractions": FRACTIONS, "mode": mode, "fill": 0.0}
    metric = PixelPerturbation(**options)
    for part in (slice(0, 5), slice(5, 12)):
        metric.update(maps[part], images[part], labels[part], model)
    found = metric.compute()
    assert metric.undefined == 0
    said = pixel_perturbation(maps, images, labels, model, **options).sum(0)
    for fraction, count in zip(FRACTIONS, said, strict=True):
        expected = results[f"complement={MODES[mode]},p={fraction}"]
        value = found[f"{mode}_{fraction * 100:g}"]
        assert float(value) == pytest.approx(expected["accuracy"], abs=1e-7)
        assert float(count) == expected["n_correct"]


def test_of_a_constant_map_all_pixels_are_the_highest(golden):
    _, described = load("07_comet", "comet")
    expected = described["binarize_ties_constant_map"]
    images, flat = torch.ones(1, 3, 4, 4), torch.full((1, 4, 4), 0.5)
    for mode, complement in MODES.items():
        kept = perturb(images, flat, fraction=0.2, mode=mode, fill=0.0)[0, 0]
        assert float(kept.sum()) == expected[f"complement={complement}"]
