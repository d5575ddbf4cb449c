"""Infidelity and sensitivity: Captum's numbers equal a slow reference, and undefined maps are counted."""

import pickle
from itertools import pairwise

import captum.metrics
import pytest
import torch

from explainguide.metrics import Infidelity, SensitivityMax, infidelity, sensitivity_max
from tests.metrics.asked import Affine, Small, defined, seven, told_elsewhere
from tests.reference import perturbation as slow

pytestmark = told_elsewhere


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("perturbation", ["fade", "add"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("samples", [2, 5])
def test_infidelity_equals_the_reference(perturbation, normalize, samples):
    maps, images, target = seven()
    model, sd = Small(), 0.3
    options = {"perturbation": perturbation, "sd": sd, "normalize": normalize, "samples": samples}
    found = infidelity(
        maps, images, target, model, chunk=7 * samples, generator=seeded(), **options
    )
    # One draw for all; Captum repeats every image as often as there are samples.
    noise = sd * torch.randn(7 * samples, 1, 6, 9, generator=seeded()).double()
    for i in range(7):
        if not defined()[i]:
            assert found[i].isnan()
            continue
        noises, changes = [], []
        for s in range(samples):
            n = noise[i * samples + s, 0]
            changed = images[i] * (1 - n) if perturbation == "fade" else images[i] - n
            noises.append(n)
            both = model(torch.stack([images[i], changed]))[:, target[i]].detach()
            changes.append(float(both[0] - both[1]))
        expected = slow.infidelity(maps[i], noises, changes, normalize)
        assert float(found[i]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_map_that_tells_the_whole_truth_has_none(normalize):
    """Of a model that is linear in the pixels: contributions fade, sensitivities add."""
    _, images, target = seven()
    model = Affine(3, (3, 6, 9))
    weight = model.weight.detach()[target]
    options = {"normalize": normalize, "samples": 20}
    contributions, sensitivities = (weight * images).sum(1), weight.sum(1)
    scale = infidelity(contributions.flip(1), images, target, model, **options)
    assert (scale > 1e-3).all()
    for right, wrong, name in (
        (contributions, sensitivities, "fade"),
        (sensitivities, contributions, "add"),
    ):
        options["perturbation"] = name
        assert (infidelity(right, images, target, model, **options) < 1e-13).all()
        assert (infidelity(wrong, images, target, model, **options) > 1e-3).all()
        scaled = infidelity(3 * right, images, target, model, **options)
        assert (scaled < 1e-13).all() if normalize else (scaled > 1e-3).all()


def test_all_channels_of_a_pixel_count_once():
    """As Captum on images of one channel, whose pixels are the sums."""
    maps, images, target = seven()
    one = Affine(3, (1, 6, 9))
    ours = infidelity(
        maps, images, target, lambda x: one(x.mean(1, keepdim=True)), normalize=False,
        perturbation="add", samples=5, chunk=35, generator=seeded(),
    )  # fmt: skip
    noise = 0.2 * torch.randn(35, 1, 6, 9, generator=seeded()).double()
    theirs = captum.metrics.infidelity(
        one,
        lambda x: (noise, x - noise),
        images.mean(1, keepdim=True),
        maps[:, None],
        target=target,
        n_perturb_samples=5,
    )
    torch.testing.assert_close(ours[defined()], theirs[defined()], rtol=1e-12, atol=1e-12)


def explain(images, target):
    """A smooth map that depends on the target."""
    return (images.sin() * torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]).sum(1) + target[
        :, None, None
    ] * images[:, 0].square()


@pytest.mark.parametrize("samples", [1, 5])
def test_sensitivity_equals_the_reference(samples):
    _, images, target = seven()
    maps = explain(images, target)
    options = {"radius": 0.1, "samples": samples}
    found = sensitivity_max(
        maps, images, target, explain, chunk=7 * samples, generator=seeded(), **options
    )
    drawn = torch.rand(7 * samples, 3, 6, 9, generator=seeded()).double()
    for i in range(7):
        changed = images[i] + 0.1 * (2 * drawn[i * samples : (i + 1) * samples] - 1)
        others = explain(changed, target[i].expand(samples))
        expected = slow.sensitivity(maps[i], list(others))
        assert float(found[i]) == pytest.approx(expected, rel=1e-9)


def test_sensitivity_is_captums_own():
    _, images, target = seven()
    options = {"perturb_func": lambda x: x + 0.1, "n_perturb_samples": 3}
    expected = captum.metrics.sensitivity_max(
        lambda x, target: (explain(x[0] if isinstance(x, tuple) else x, target),),
        images,
        target=target,
        **options,
    )
    maps = explain(images, target)
    found = sensitivity_max(maps, images, target, explain, radius=1e-9, samples=2)
    assert (found < 1e-8).all()
    # A generator whose every number is the highest would give this; here, a bound.
    found = sensitivity_max(maps, images, target, explain, radius=0.1, samples=200)
    assert ((found > 0.1 * expected) & (found < 3 * expected)).all()


def test_sensitivity_of_undefined_maps():
    maps, images, target = seven()
    found = sensitivity_max(maps, images, target, explain)
    assert found.isnan().tolist() == (~defined()).tolist()

    def breaks(images, target):
        made = explain(images, target)
        made[target == 1] = torch.nan
        return made

    found = sensitivity_max(explain(images, target), images, target, breaks)
    assert found.isnan().tolist() == (target == 1).tolist()


def test_the_given_maps_are_not_computed_again():
    _, images, target = seven()
    seen = []

    def counted(images, target):
        seen.append(len(images))
        return explain(images, target)

    sensitivity_max(explain(images, target), images, target, counted, samples=6, chunk=21)
    assert sum(seen) == 42
    assert max(seen) == 21


@pytest.mark.parametrize("cuts", [(0, 7), (0, 3, 7), (0, 0, 7)])
def test_the_classes_are_the_means(cuts):
    maps, images, target = seven()
    linear = Affine(3, (3, 6, 9))
    faithful, steady = Infidelity(), SensitivityMax(radius=1e-4)
    exact = (linear.weight.detach()[target] * images).sum(1)
    exact[4:6] = maps[4:6]
    for start, stop in pairwise(cuts):
        parts = [part[start:stop] for part in (exact, images, target)]
        faithful.update(*parts, linear)
        steady.update(*parts, lambda images, target: (linear.weight[target] * images).sum(1))
    assert float(faithful.compute()) < 1e-13
    assert 0 < float(steady.compute()) < 1e-2
    assert faithful.undefined == steady.undefined == 2


def test_the_mean_is_over_the_defined_images():
    maps, images, target = seven()
    for metric, function, asked in (
        (Infidelity, infidelity, Small()),
        (SensitivityMax, sensitivity_max, explain),
    ):
        filled = metric(generator=seeded())
        filled.update(maps, images, target, asked)
        expected = function(maps, images, target, asked, generator=seeded()).nanmean()
        torch.testing.assert_close(filled.compute(), expected)
        assert filled.undefined == 2
        assert metric.higher_is_better is False
        assert pickle.loads(pickle.dumps(filled)).compute() == filled.compute()


def test_generators_decide_and_the_global_one_is_left_alone():
    maps, images, target = seven()
    model = Small()
    state = torch.get_rng_state()
    for function, asked in ((infidelity, model), (sensitivity_max, explain)):
        first, again, other = (
            function(maps, images, target, asked, generator=seeded(s)) for s in (0, 0, 1)
        )
        torch.testing.assert_close(first, again, rtol=0, atol=0, equal_nan=True)
        assert (first[defined()] != other[defined()]).all()
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_is_read_from_the_device():
    maps, images, target = (part.to("meta") for part in seven())
    metric = Infidelity().to("meta")
    metric.update(maps, images, target, Small().to("meta"))
    steady = SensitivityMax().to("meta")
    steady.update(maps, images, target, lambda images, target: images[:, 0])
    # One image too, whose target Captum would read.
    for one, asked in ((metric, Small().to("meta")), (steady, lambda images, target: images[:, 0])):
        one.update(maps[:1], images[:1], target[:1], asked)


def test_repr_names_the_options():
    assert repr(Infidelity()) == "Infidelity(perturbation='fade', sd=0.2, samples=10)"
    assert repr(SensitivityMax(radius=0.1)) == "SensitivityMax(radius=0.1, samples=10)"
