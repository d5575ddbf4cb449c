"""What the tap keeps is what the layer returned, whatever the model does to it afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from explainguide import ExplanationGuidance
from explainguide.attr import ATTRIBUTIONS, IntegratedGradients
from explainguide.errors import GuidanceError

from .networks import batch

CLASSES = torch.tensor([1, 3, 0])
NEAR = {"rtol": 1e-6, "atol": 1e-10}  # torch's derivative of hardsigmoid has a sixth in float32

# What follows the layer, in place and not. Input times gradient is the same after an in-place ReLU by
# chance, and the others differ from the gradient at the layer by what follows.
FOLLOWING: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (nn.ReLU(inplace=True), torch.relu),
    "silu": (nn.SiLU(inplace=True), F.silu),
    "hardswish": (nn.Hardswish(inplace=True), F.hardswish),
    "leaky_relu": (nn.LeakyReLU(0.3, inplace=True), lambda x: F.leaky_relu(x, 0.3)),
    "dropout": (nn.Dropout(0.4, inplace=True), nn.Dropout(0.4)),
    "hardsigmoid": (lambda x: [F.hardsigmoid(x, inplace=True), x][1], F.hardsigmoid),
    "add": (lambda x: x.add_(1.5), lambda x: x + 1.5),
    "scale": (lambda x: x.mul_(-2.0), lambda x: x * -2.0),
}

BY_HAND: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradient": lambda f, g: g.square().sum(1).sqrt(),
    "ixg": lambda f, g: (f * g).sum(1),
    "gradcam": lambda f, g: (g.mean((2, 3), keepdim=True) * f).sum(1).clamp(min=0),
    "layercam": lambda f, g: (g.clamp(min=0) * f).sum(1).clamp(min=0),
}


class Followed(nn.Module):
    """Two layers, each before an operation that may rewrite its output, and a head that is not linear."""

    def __init__(self, follow: Callable[[Tensor], Tensor], *, member: bool = False) -> None:
        super().__init__()
        self.layer = Pair() if member else nn.Conv2d(3, 5, 3, padding=1)
        self.above = nn.Conv2d(5, 6, 3)
        self.head = nn.Linear(6, 4)
        self.follow = [follow]  # in a list, so that it is no part of the state

    def forward(self, images: Tensor) -> Tensor:
        feature = self.layer(images)
        return self.rest(feature if isinstance(feature, Tensor) else feature[0])

    def rest(self, feature: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same places are dropped in every run
        above = self.follow[0](self.above(self.follow[0](feature)))
        return self.head(torch.tanh(above).mean((2, 3)))


class Pair(nn.Module):
    """A layer that returns two maps, as detection backbones do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(images), self.second(images)


def by_hand(network: Followed, name: str) -> Tensor:
    """The map of a network that rewrites nothing, from its parts."""
    output = network.layer(batch(dtype=torch.float64))
    feature = (output if isinstance(output, Tensor) else output[0]).detach().requires_grad_()
    score = network.rest(feature).gather(1, CLASSES[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, feature)
    return BY_HAND[name](feature.detach(), gradient)


def in_place_and_not(operation: str, *, member: bool = False) -> tuple[Followed, Followed]:
    networks = [Followed(follow, member=member).double() for follow in FOLLOWING[operation]]
    networks[1].load_state_dict(networks[0].state_dict())
    return networks[0], networks[1]


@pytest.mark.parametrize("operation", FOLLOWING)
@pytest.mark.parametrize("name", BY_HAND)
def test_silent_in_place_after_the_layer(operation: str, name: str) -> None:
    network, plain = in_place_and_not(operation)
    found = ATTRIBUTIONS[name](network, "layer").attribute(batch(dtype=torch.float64), CLASSES)
    torch.testing.assert_close(found[:, 0], by_hand(plain, name), **NEAR)


@pytest.mark.parametrize("operation", FOLLOWING)
@pytest.mark.parametrize("name", BY_HAND)
def test_silent_in_place_after_a_guided_layer(operation: str, name: str) -> None:
    """The maps in the loss, and the gradient that the loss has, are those of the plain network."""
    network, plain = in_place_and_not(operation)
    mask = torch.zeros(3, 12, 12)
    mask[:, 2:7, 3:9] = 1
    for model in (network, plain):
        guide = ExplanationGuidance(model, "layer", attribution=name, loss="l1")
        model(batch(dtype=torch.float64))
        guide.loss_loc(mask, target=CLASSES).backward()
        expected = by_hand(plain, name)
        torch.testing.assert_close(guide.attributions["layer"], expected, **NEAR)
        guide.remove()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **NEAR)


@pytest.mark.parametrize("operation", FOLLOWING)
@pytest.mark.parametrize("name", ["gradient", "gradcam", "layercam"])
def test_silent_in_place_after_a_member_of_a_layer(operation: str, name: str) -> None:
    network, plain = in_place_and_not(operation, member=True)
    found = ATTRIBUTIONS[name](network, "layer[0]").attribute(batch(dtype=torch.float64), CLASSES)
    torch.testing.assert_close(found[:, 0], by_hand(plain, name), **NEAR)


@pytest.mark.parametrize("name", ["gradient", "gradcam", "layercam", "intgrad"])
def test_silent_in_place_on_the_image(name: str) -> None:
    """Models that normalise their input in place: what is explained is the image that came in."""

    class Normalizes(Followed):
        in_place = True

        def forward(self, images: Tensor) -> Tensor:
            if self.in_place:
                return super().forward(images.sub_(0.5).mul_(2.0))
            return super().forward((images - 0.5) * 2.0)

    network = Normalizes(torch.relu).double()
    found = ATTRIBUTIONS[name](network).attribute(batch(dtype=torch.float64), CLASSES)
    network.in_place = False
    expected = ATTRIBUTIONS[name](network).attribute(batch(dtype=torch.float64), CLASSES)
    torch.testing.assert_close(found, expected, **NEAR)


@pytest.mark.parametrize("operation", FOLLOWING)
def test_silent_in_place_after_integrated_layers(operation: str) -> None:
    """A run from other features neither rewrites them, nor what the layers above them return."""
    maps = []
    for model in in_place_and_not(operation):
        guide = ExplanationGuidance(model, ["layer", "above"], attribution="intgrad")
        model(batch(dtype=torch.float64))
        guide.loss_loc(torch.ones(3, 12, 12), target=CLASSES).backward()
        maps.append(guide.attributions)
        guide.remove()
    torch.testing.assert_close(*maps, **NEAR)


def test_silent_reruns_compute_in_the_type_of_the_forward_pass() -> None:
    """The passes of integrated gradients come after the caller has left his autocast."""
    network, seen = Followed(torch.relu), []
    network.above.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    guide = ExplanationGuidance(
        network, "layer", attribution=IntegratedGradients(network, n_steps=3)
    )
    with torch.autocast("cpu", torch.bfloat16):
        network(batch())
    guide.loss_loc(torch.ones(3, 12, 12), target=CLASSES)
    assert len(seen) > 3
    assert set(seen) == {torch.bfloat16}


class Interrupted(nn.Module):
    """A network that Ctrl-C stops after its first layer, within an operation or between two."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.layer, self.head, self.where = nn.Conv2d(3, 5, 3), nn.Linear(5, 4), where

    def forward(self, images: Tensor) -> Tensor:
        feature = self.layer(images)
        if self.where == "within":
            feature.detach().clone().apply_(self.stop)
        if self.where == "between":
            self.stop()
        return self.head(feature.tanh().mean((2, 3)))

    def stop(self, *_: float) -> float:
        raise KeyboardInterrupt


def modes() -> list[object]:
    count = torch._C._len_torch_function_stack()
    return [torch._C._get_function_stack_at(i) for i in range(count)]


@pytest.mark.parametrize("where", ["within", "between"])
@pytest.mark.parametrize("by", ["loss_loc", "remove", "check", "forward"])
def test_an_interrupted_pass_leaves_no_mode_behind(where: str, by: str) -> None:
    model, (images, targets) = (
        Interrupted(where),
        (torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16)),
    )
    targets[:, :8] = 1
    guides = [ExplanationGuidance(model, "layer"), ExplanationGuidance(model, "input")]
    with pytest.raises(KeyboardInterrupt):
        model(images)
    with BaseTorchFunctionMode() as other:  # what was entered since stays
        if where == "within":  # what the modes have seen interrupted they do not go on with
            seen = [copy.deepcopy(guide._tap._mode.steps) for guide in guides]
            nn.Linear(3, 3)(torch.rand(2, 3)).reshape(3, 2)
            assert [guide._tap._mode.steps for guide in guides] == seen
        for guide in guides:
            if by == "loss_loc":
                with pytest.raises(GuidanceError, match="no forward pass is waiting"):
                    guide.loss_loc(targets, target=1)
            elif by == "remove":
                guide.remove()
            elif by == "check":
                model.where = ""
                guide.check(images, targets, target=1)
        model.where = ""
        model(images)
        assert modes() == [other]
    assert modes() == []
    if by != "remove":
        assert all(guide.loss_loc(targets, target=1) > 0 for guide in guides)
