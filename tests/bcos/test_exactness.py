"""Maps of every family: they sum to the logit, pixel by pixel they are W(x) x, and they can be trained."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from explainguide import ExplanationGuidance
from explainguide.bcos import (
    AddInverse,
    bcosify,
    calibrate,
    contribution_map,
    explanation_mode,
    logit_bias,
    maps,
    scale_biases,
    set_b,
)
from explainguide.bcos.norms import BatchNormUncentered2d
from explainguide.bcos.transform import BcosUnit
from explainguide.dynamic import DynamicLinear
from explainguide.errors import OptionError

from ..networks import boxes
from ..reference.bcos_replay import contributions
from .families import CLASSES, CORE, FAMILIES, build, converted, images

SETTINGS: dict[str, dict[str, Any]] = {
    "b=2": {"b": 2.0},
    "b=1.5": {"b": 1.5},
    "fresh": {"keep_weights": False},
}
# Other options, each where it matters; `test_convert.py` says what they do.
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("tv-resnet", {"keep_weights": False, "max_out": 2, "b": 1.5}),
    ("tv-resnet", {"gain": "power", "b": 2.5}),
    ("tv-resnet", {"activations": "drop"}),
    ("tv-resnet", {"mean": (0.5, 0.4, 0.45), "std": 0.25}),
    ("mobilenet-v3", {"activations": "drop"}),
    ("mobilenet-v3", {"keep_weights": False, "activations": "keep"}),
    ("convnext", {"norm": "uncentered"}),
    ("convnext", {"keep_weights": False, "norm": "detached"}),
    ("vit", {"norm": "uncentered"}),
    ("vit", {"keep_weights": False, "norm": "detached", "max_out": 2}),
]
STEPS = (1e-5, 1e-6, 1e-7)
DIRECTIONS = 2
PIXELS = 64
ANNOTATIONS = [boxes((3, 5, 20, 26), labels=(2,)), boxes((10, 1, 31, 17), labels=(1,))]


def families(*names: str) -> list[Any]:
    """As test parameters: all but the core is slow."""
    marks = {name: () if name in CORE else (pytest.mark.slow,) for name in names}
    return [pytest.param(name, marks=marks[name]) for name in names]


every_family = pytest.mark.parametrize("name", families(*FAMILIES))
every_setting = pytest.mark.parametrize("setting", SETTINGS)


def classes_of(logits: Tensor, model: nn.Module) -> Tensor:
    """Those with the largest part that is no bias."""
    return (logits.detach() - logit_bias(model).detach()).abs().argmax(1)


def explained(model: nn.Module, logits: Tensor, classes: Tensor) -> Tensor:
    """What maps have to sum to."""
    rows = torch.arange(len(logits))
    return (logits - logit_bias(model))[rows, classes].detach()


def check_sums(model: nn.Module, x: Tensor) -> None:
    """The first check: maps sum to the logit less its bias."""
    logits = model(x)
    for classes in (classes_of(logits, model), torch.arange(len(x)) % logits.shape[1]):
        expected = explained(model, logits, classes)
        found = contribution_map(model, x, classes).sum((1, 2))
        bound = 1e-12 * logits.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=bound)


def check_pixels(model: nn.Module, x: Tensor) -> None:
    """The second check: every element is that of the reference, which takes no gradient."""
    target = int(classes_of(model(x[:1]), model))
    found = contribution_map(model, x[:1], target)[0]
    places = torch.cartesian_prod(*map(torch.arange, found.shape))
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(3))
    largest = found.flatten().abs().topk(8).indices
    chosen = places[torch.cat([largest, order[:PIXELS]])]
    expected = contributions(model, x[:1], target, chosen)
    bound = 1e-8 * found.abs().max().item()
    torch.testing.assert_close(found[chosen[:, 0], chosen[:, 1]], expected, rtol=0, atol=bound)


def check_gradients(model: nn.Module, x: Tensor, loss: str = "energy") -> None:
    """The third check: parameter gradients of a loss on maps equal central differences.

    Differences across a kink (of a ReLU, or of a cosine at zero) say nothing of a derivative. So where the
    first step disagrees shorter ones are taken, and where they do too, other images.
    """
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(3):
        found.append(worst_error(model, x, loss))
        if found[-1] < 1e-6:
            return
        x = (x + 0.05 * torch.rand(x.shape, generator=generator, dtype=x.dtype)) / 1.05
    raise AssertionError(f"relative errors of parameter gradients: {found}")


def worst_error(model: nn.Module, x: Tensor, loss: str) -> float:
    """Of all directions the largest relative error of the derivative along it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    guide = ExplanationGuidance(model, "input", attribution="bcos", loss=loss, target="all")

    def loss_at(direction: list[Tensor] | None = None, length: float = 0.0) -> Tensor:
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                shift = 0 if direction is None else length * direction[index]
                parameter.copy_(start[index] + shift)
        model(x)
        return guide.loss_loc(ANNOTATIONS)

    found = torch.autograd.grad(loss_at(), parameters, allow_unused=True)
    gradient = [
        torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)
    ]
    assert sum(bool(g.any()) for g in gradient) > 0.7 * len(gradient), "most parameters matter"
    length = torch.stack([g.norm() for g in gradient]).norm()
    size = length / math.sqrt(sum(p.numel() for p in parameters))  # along a random direction
    worst = 0.0
    for direction in directions(gradient):
        slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
        errors = [math.inf]
        for step in STEPS:
            if min(errors) > 1e-6:
                # The central stencil of fourth order: its error is far below the tolerance.
                ends = {k: loss_at(direction, k * step).detach() for k in (-2, -1, 1, 2)}
                expected = (8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / (12 * step)
                errors.append(float((slope - expected).abs() / torch.maximum(expected.abs(), size)))
        worst = max(worst, min(errors))
    loss_at()  # the parameters are as before
    guide.remove()
    return worst


def directions(gradient: list[Tensor]) -> Iterator[list[Tensor]]:
    """Random directions in all parameters, then single parameters: the steepest of a few tensors."""
    generator = torch.Generator().manual_seed(11)
    for _ in range(DIRECTIONS):
        direction = [torch.randn(g.shape, generator=generator).to(g) for g in gradient]
        norm = torch.stack([d.norm() for d in direction]).norm()
        yield [d / norm for d in direction]
    for index in torch.randperm(len(gradient), generator=generator)[:2].tolist():
        single = [torch.zeros(g.shape).to(g) for g in gradient]
        single[index].view(-1)[gradient[index].abs().argmax()] = 1
        yield single


def test_the_reference_by_hand() -> None:
    """Two pixels, two units with biases: only an open unit counts, at the pixel that is largest."""
    conv, head = nn.Conv2d(6, 2, 1).double(), nn.Linear(2, 1).double()
    with torch.no_grad():
        conv.weight.copy_(torch.arange(12.0).reshape(2, 6, 1, 1) - 3)
        conv.bias.copy_(torch.tensor([1.0, -1000.0]))
        head.weight.copy_(torch.tensor([[2.0, 5.0]]))
    model = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d((1, 2)), nn.Flatten(), head)
    image = torch.ones(1, 6, 1, 2, dtype=torch.float64)
    image[..., 1] = 2
    found = contributions(model, image, 0, torch.tensor([[0, 0], [0, 1]]))
    assert found.tolist() == [0, 0], "both are shut"
    image = -image  # now one is open, and the maximum takes the second pixel
    weights = sum(range(-3, 3))
    found = contributions(model, image, 0, torch.tensor([[0, 0], [0, 1]]))
    assert found.tolist() == [0, 2 * 2 * -weights]


CHECKS = {"sums": check_sums, "pixels": check_pixels, "gradients": check_gradients}


@pytest.mark.parametrize("check", CHECKS)
@every_setting
@every_family
def test_a_family(name: str, setting: str, check: str) -> None:
    CHECKS[check](converted(name, **SETTINGS[setting]), images(name))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("name", "options"), OTHERS)
def test_an_option(name: str, options: dict[str, Any], check: str) -> None:
    CHECKS[check](converted(name, **options), images(name))


@every_setting
@pytest.mark.parametrize("name", families(*CORE))
def test_gradients_of_another_loss(name: str, setting: str) -> None:
    check_gradients(converted(name, **SETTINGS[setting]), images(name), "l1")


@pytest.mark.parametrize("name", ["tv-resnet", "tv-densenet", "mobilenet-v3"])
def test_in_training_mode(name: str) -> None:
    """Statistics of the batch are factors as well."""
    model = converted(name, b=2.0).train()
    check_pixels(model, images(name))
    check_gradients(model, images(name))


@every_family
def test_the_guide_in_training_mode(name: str) -> None:
    """One forward pass serves the logits and the map, and moves running statistics once."""
    model = converted(name, b=2.0).train()
    x, classes = images(name, 3), torch.tensor([1, 0, 3])
    before = copy.deepcopy(model.state_dict())
    guide = ExplanationGuidance(model, "input", attribution="bcos")
    logits = model(x)
    once = copy.deepcopy(model.state_dict())
    guide.loss_loc(torch.ones(3, *x.shape[2:]).bool(), classes).backward()
    sums = guide.attributions["input"].sum((1, 2))
    torch.testing.assert_close(sums, explained(model, logits, classes), rtol=1e-9, atol=1e-12)
    moved = [key for key in before if not before[key].equal(once[key])]
    norms = [key for key in before if key.endswith(("running_var", "num_batches_tracked"))]
    assert sorted(moved) == sorted(norms)
    for key, value in model.state_dict().items():
        assert value.equal(once[key])
        if key.endswith("num_batches_tracked"):
            assert value == before[key] + 1


@every_family
def test_the_guide_and_the_function_agree(name: str) -> None:
    model, x = converted(name, b=2.0), images(name)
    guide = ExplanationGuidance(model, "input", attribution="bcos")
    classes = torch.tensor([3, 1])
    expected = contribution_map(model, x, classes)
    torch.testing.assert_close(guide.attribute(x, classes)[:, 0], expected)
    model(x)
    guide.loss_loc(torch.ones(2, *x.shape[2:]).bool(), classes)
    torch.testing.assert_close(guide.attributions["input"], expected)


# Layers through which everything goes that reaches the logits.
CUTS = {
    "tv-resnet": ("conv1", "maxpool", "layer1", "layer4.0"),
    "tv-densenet": ("features.pool0", "features.transition1", "features.denseblock3"),
    "tv-vgg": ("features.0", "features.2", "avgpool"),
    "tv-convnext": ("features.1", "features.5"),
    "tv-efficientnet": ("features.1", "features.3.0"),
    "tv-mobilenet-v2": ("features.2", "features.4"),
    "tv-mobilenet-v3": ("features.1", "features.4"),
    "convnext": ("stem", "stages.1", "stages.2"),
    "mobilenet-v3": ("conv_stem", "blocks.0", "blocks.1.0"),
    "vit": ("patch_embed.proj",),
    "vit-pooled": ("blocks.0", "blocks.1"),
}


@every_setting
@pytest.mark.parametrize("name", families(*CUTS))
def test_hidden_layers_through_which_everything_goes(name: str, setting: str) -> None:
    model, x = converted(name, **SETTINGS[setting]), images(name)
    guide = ExplanationGuidance(model, list(CUTS[name]), attribution="bcos")
    logits = model(x)
    classes = classes_of(logits, model)
    expected = explained(model, logits, classes)
    for layer in CUTS[name]:
        found = guide.attribute(x, classes, layer=layer, interpolate=False)
        torch.testing.assert_close(found.sum((1, 2, 3)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", ["input", "0"])
def test_with_the_encoding_as_the_first_module(layer: str) -> None:
    name = "tv-resnet"
    model = converted(name, b=2.0)
    both, x = nn.Sequential(AddInverse(), model), images(name)
    guide = ExplanationGuidance(both, layer, attribution="bcos")
    expected = contribution_map(model, x, 2)
    torch.testing.assert_close(guide.attribute(x[:, :3], 2)[:, 0], expected)


# Three mistakes. Each is caught by one of the three checks, and by no other.


def mistaken_bias(model: nn.Module) -> Any:
    """A bias is left in one norm."""
    norm = next(m for m in model.modules() if isinstance(m, BatchNormUncentered2d))
    norm.bias = nn.Parameter(torch.full_like(norm.weight, 0.1))
    return nullcontext()


@contextmanager
def mistaken_mode(model: nn.Module) -> Iterator[None]:
    """The mode is on in the forward pass only, so maps are image times gradient.

    The network is homogeneous, but for what is added to the lengths of patches: without that the sum of
    image times gradient is the logit, by Euler's theorem, and only single pixels are wrong.
    """
    for unit in model.modules():
        if isinstance(unit, BcosUnit):
            unit.square_eps = 1e-30
    with (
        mock.patch("explainguide.bcos.explanations.explanation_mode", nullcontext_of),
        mock.patch("explainguide.attr.bcos.explanation_mode", nullcontext_of),
    ):
        yield


def nullcontext_of(model: nn.Module) -> Any:
    return nullcontext()


@contextmanager
def mistaken_detach(model: nn.Module) -> Iterator[None]:
    """The factors are taken out of the graph in the forward pass."""

    def times_cosine(unit: BcosUnit, linear: Tensor, norm: Tensor) -> Tensor:
        output = linear * (linear / norm).abs().detach()
        return output if unit.scale is None else output * unit.scale

    with mock.patch.object(BcosUnit, "_times_cosine", times_cosine):
        yield


MISTAKES: dict[str, Callable[[nn.Module], Any]] = {
    "sums": mistaken_bias,
    "pixels": mistaken_mode,
    "gradients": mistaken_detach,
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("caught_by", MISTAKES)
def test_each_mistake_is_caught_by_its_check_and_by_no_other(caught_by: str, check: str) -> None:
    model, x = converted("tv-resnet", b=2.0), images("tv-resnet")
    outcome = pytest.raises(AssertionError) if check == caught_by else nullcontext()
    with MISTAKES[caught_by](model), outcome:
        CHECKS[check](model, x)


# B-cosification: at b = 1 the network is the one before.


MEAN, STD = (0.48, 0.46, 0.41), (0.23, 0.22, 0.225)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("normalised", [True, False])
@every_family
def test_b_of_one_gives_the_logits_of_the_model(
    name: str, normalised: bool, dtype: torch.dtype
) -> None:
    model, x = build(name, dtype), images(name, dtype=dtype)
    options: dict[str, Any] = {"mean": MEAN, "std": STD} if normalised else {}
    network = bcosify(model, 1.0, **options)
    image = normalize(x[:, :3], list(MEAN), list(STD)) if normalised else x[:, :3]
    with torch.no_grad():
        found, expected = network(x), model(image)
    # In float64 to 1e-7, because within 1e-6 of zero the gate that is a ReLU6 is open.
    bound = (1e-5 if dtype == torch.float32 else 1e-7) * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize(
    "name", families(*(n for n in FAMILIES if "vit" not in n and "deit" not in n))
)
def test_b_of_one_trains_as_the_model_does(name: str) -> None:
    """With statistics of the batch, and the same gradients of the logits."""
    model, x = build(name).train(), images(name, 4)
    network = bcosify(model, 1.0)
    weights = torch.randn(4, CLASSES, dtype=torch.float64)
    found, expected = network(x), model(x[:, :3])
    bound = 1e-6 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    before = dict(model.named_parameters())
    after = {key: p for key, p in network.named_parameters() if key in before and "bias" not in key}
    after = {key: p for key, p in after.items() if p.shape == before[key].shape}
    assert after
    ours = torch.autograd.grad((found * weights).sum(), list(after.values()))
    theirs = torch.autograd.grad((expected * weights).sum(), [before[key] for key in after])
    for key, one, other in zip(after, ours, theirs, strict=True):
        bound = 1e-6 * max(float(g.abs().max()) for g in theirs)
        torch.testing.assert_close(one, other, rtol=0, atol=bound, msg=key)


@pytest.mark.parametrize("options", [{"b": 1.0}, {"b": 2.0}, {"keep_weights": False}], ids=str)
@every_family
def test_the_model_stays_as_it_is(name: str, options: dict[str, Any]) -> None:
    model = build(name, torch.float32).train()
    next(model.children()).eval()
    state = copy.deepcopy(model.state_dict())
    modules = {key: (type(m), m.training) for key, m in model.named_modules()}
    network = bcosify(model, **options)
    assert {key: (type(m), m.training) for key, m in model.named_modules()} == modules
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    shared = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in shared for p in network.parameters())


@pytest.mark.parametrize("options", [{"b": 1.0}, {"b": 2.0}, {"keep_weights": False}], ids=str)
@every_family
def test_each_layer_stays_in_its_mode(name: str, options: dict[str, Any]) -> None:
    model = build(name, torch.float32).train()
    next(model.children()).eval()
    before = {key: module.training for key, module in model.named_modules()}
    network = bcosify(model, **options)
    changed = {k for k, m in network.named_modules() if m.training != before.get(k, m.training)}
    assert changed == set()
    assert not any(m.training for m in bcosify(model.eval(), **options).modules())


@pytest.mark.parametrize("options", [{"b": 1.0}, {"b": 2.0}], ids=str)
@every_family
def test_frozen_parameters_stay_frozen(name: str, options: dict[str, Any]) -> None:
    network = bcosify(build(name, torch.float32).requires_grad_(False), **options)
    assert [key for key, p in network.named_parameters() if p.requires_grad] == []


@every_family
def test_layers_that_are_frozen_in_part(name: str) -> None:
    model = build(name, torch.float32)
    before = dict(model.named_parameters())
    for parameter in list(before.values())[: len(before) // 2]:
        parameter.requires_grad = False
    compared = 0
    for key, parameter in bcosify(model, 1.0).named_parameters():
        old = before.get(key, before.get(key.replace(".norm.", ".")))  # timm's norm with activation
        if old is not None:
            compared += 1
            assert parameter.requires_grad == old.requires_grad, key
    assert compared > 0.6 * len(before)  # squeezes have other names


# Afterwards: schedules, copies, files.


@pytest.mark.parametrize("name", families(*FAMILIES))
def test_b_rises_on_a_schedule(name: str) -> None:
    model, x = converted(name, b=1.0), images(name)
    outputs = [model(x).detach()]
    for b in (1.25, 1.5, 2):
        set_b(model, b)
        assert {m.b for m in model.modules() if isinstance(m, BcosUnit)} == {b}
        outputs.append(model(x).detach())
    for earlier, later in pairwise(outputs):
        assert not earlier.allclose(later)
    set_b(model, 1)
    assert model(x).equal(outputs[0])
    with pytest.raises(OptionError, match=r"^set_b: b is 0\.9\."):
        set_b(model, 0.9)
    assert model(x).equal(outputs[0])


# Without the biases a ViT still has positions and class token, which are added to the tokens.
@pytest.mark.parametrize(
    "name", families(*(n for n in FAMILIES if "vit" not in n and "deit" not in n))
)
def test_maps_are_complete_without_biases(name: str) -> None:
    model, x = converted(name, b=1.0), images(name)
    before = model(x).detach()
    scale_biases(model, 1)
    assert model(x).equal(before)
    scale_biases(model, 0.5)
    assert not model(x).allclose(before)
    with pytest.raises(AssertionError):
        check_sums(model, x)
    scale_biases(model, 0)
    scale_biases(model, 0.5)
    for module in model.modules():
        if isinstance(module, DynamicLinear):
            assert getattr(module, "bias", None) is None
            assert getattr(module, "centering", None) is None
    check_sums(model, x)
    check_pixels(model, x)
    set_b(model, 1.5)
    calibrate(model, x)
    check_sums(model, x)
    check_sums(model.train(), x)


@pytest.mark.parametrize("name", families(*FAMILIES))
def test_copies_explain_themselves(name: str) -> None:
    model, x = converted(name, b=2.0), images(name)
    expected = contribution_map(model, x, 1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other(x).equal(model(x))
        assert contribution_map(other, x, 1).equal(expected)
        theirs = {m.mode for m in other.modules() if isinstance(m, DynamicLinear)}
        assert not theirs & {m.mode for m in model.modules() if isinstance(m, DynamicLinear)}
        with explanation_mode(model):
            assert not any(mode.explaining for mode in theirs)


@pytest.mark.parametrize("setting", [*SETTINGS, "b=1"])
@every_family
def test_a_state_dict_goes_into_another_conversion(name: str, setting: str) -> None:
    options = SETTINGS.get(setting, {"b": 1.0})
    model, x = converted(name, **options), images(name)
    fresh = FAMILIES[name]().double()
    fresh.pretrained_cfg = build(name).pretrained_cfg
    other = bcosify(fresh, **options).eval()
    assert not other(x).allclose(model(x))
    other.load_state_dict(model.state_dict())
    assert other(x).equal(model(x))
    assert contribution_map(other, x, 1).equal(contribution_map(model, x, 1))


def test_each_family_has_four_classes() -> None:
    for name in CORE:
        assert converted(name, b=2.0)(images(name)).shape == (2, CLASSES)
        assert maps.missing_share(converted(name, b=2.0), images(name)) < 1e-12
