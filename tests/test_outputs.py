"""Models and layers that return more than one tensor."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import googlenet, inception_v3

from explainguide import ExplanationGuidance
from explainguide.attr import InputXGradient, IntegratedGradients
from explainguide.hooks.probe import probe_layers

from .networks import TARGETS, SmallCnn, batch

Output = namedtuple("Output", ["aux", "logits"])


class Wrapped(SmallCnn):
    """Its output in another form."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(super().forward(images))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: {"logits": z},
        lambda z: OrderedDict(out=z, aux=z.mean()),
        lambda z: (z, None),
        lambda z: [z, (2 * z)[..., None, None]],
        lambda z: (z.mean(), z),
        lambda z: Output(None, z),
    ],
)
def test_the_main_logits_are_found(wrap: Any) -> None:
    plain = SmallCnn().eval()
    model = Wrapped(wrap).eval()
    model.load_state_dict(plain.state_dict())
    losses = []
    for network in (plain, model):
        guide = ExplanationGuidance(network, target="all")
        network(batch())
        losses.append(guide.loss_loc(TARGETS))
        assert guide.layers == ["mix"]
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("build", "size"), [(googlenet, 128), pytest.param(inception_v3, 299, marks=pytest.mark.slow)]
)
def test_auxiliary_heads_in_training(build: Any, size: int) -> None:
    model = build(num_classes=4, init_weights=False, aux_logits=True).train()
    guide = ExplanationGuidance(model, target="all")
    output = model(batch(3, size))
    guide.loss_loc(TARGETS).backward()
    assert isinstance(output.logits, Tensor)
    assert model.fc.weight.grad.any()


class Branches(nn.Module):
    """Two resolutions side by side, as in HRNet; `kind` is what the stage returns."""

    def __init__(self, kind: Any = list) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.stage = _Stage(kind)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        fine, coarse = self.stage(self.stem(images))[:2]
        return self.head(torch.tanh(fine).mean((2, 3)) + torch.tanh(coarse).mean((2, 3)))


class _Stage(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self.mix = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, features: Tensor) -> Any:
        fine = torch.nn.functional.gelu(self.mix(features))
        return self.kind([fine, torch.nn.functional.avg_pool2d(fine, 2)])


@pytest.mark.parametrize("kind", [list, tuple, lambda x: Output(*x)])
@pytest.mark.parametrize(("index", "size"), [(0, 12), (1, 6)])
def test_a_member_of_a_layers_output(kind: Any, index: int, size: int) -> None:
    model = Branches(kind)
    layer = f"stage[{index}]"
    plain = model(batch())
    with ExplanationGuidance(model, layer, target="all") as guide:
        assert torch.equal(model(batch()), plain)
        guide.loss_loc(TARGETS).backward()
    assert guide.attributions[layer].shape == (3, size, size)
    assert model.stem.weight.grad.any() and model.head.weight.grad.any()
    # Elementwise, against the derivative written out by hand.
    features = model.stage(model.stem(batch()))[index].detach().requires_grad_()
    weight = model.head.weight[1] @ torch.tanh(features).mean((2, 3)).T
    (gradient,) = torch.autograd.grad(weight.sum(), features)
    found = InputXGradient(model, layer).attribute(batch(), 1)
    torch.testing.assert_close(found[:, 0], (features * gradient).sum(1))
    path = IntegratedGradients(model, layer, n_steps=3).attribute(batch(), 1)
    assert path.shape == (3, 1, size, size) and path.any()


def test_both_members_at_once_and_a_wrappers_prefix() -> None:
    model = Branches()
    guide = ExplanationGuidance(model, ["stage[0]", "module.stage[1]"], target="all")
    assert guide.layers == ["stage[0]", "stage[1]"]
    model(batch())
    guide.loss_loc(TARGETS).backward()
    assert model.stem.weight.grad.any()


def test_the_only_map_of_a_tuple_needs_no_number() -> None:
    class Stateful(SmallCnn):
        def __init__(self) -> None:
            super().__init__()
            self.pair = _Pair()

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.pair(self.stem(images))[1].mean((2, 3)))

    model = Stateful()
    guide = ExplanationGuidance(model, "pair", target="all")
    model(batch())
    guide.loss_loc(TARGETS).backward()
    assert guide.attributions["pair"].shape == (3, 6, 6)


class _Pair(nn.Module):
    def forward(self, features: Tensor) -> tuple[int, Tensor]:
        return 3, features.square()


def test_the_probe_shows_members() -> None:
    found = {info.name: info for info in probe_layers(Branches())}
    assert found["stage[0]"].usable and found["stage[1]"].usable
    assert str(found["stage[1]"].layout) == "NCHW 112 x 112"


def test_an_ambiguous_layer_asks_for_the_layout() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)
            self.head = nn.Linear(6, 4)

        def forward(self, images: Tensor) -> Tensor:
            patches = images.repeat(1, 2, 1, 1)[..., ::2, ::2]
            return self.head(self.norm(patches.movedim(1, 3)).square().mean((1, 2)))

    model = Square()
    guide = ExplanationGuidance(model, "norm", target="all")
    model(batch())
    with pytest.raises(Exception, match="Say layout='NCHW' or layout='NHWC'"):
        guide.loss_loc(TARGETS)
    maps = []
    for layout in ("NCHW", "NHWC"):
        guide = ExplanationGuidance(model, "norm", target="all", layout=layout)
        model(batch())
        guide.loss_loc(TARGETS)
        maps.append(guide.attributions["norm"])
        one = InputXGradient(model, "norm", layout=layout).attribute(batch(), 2)
        assert torch.equal(one, guide.attribute(batch(), 2, interpolate=False))
    assert not torch.equal(*maps)


def test_a_model_traced_by_fx() -> None:
    plain = SmallCnn().eval()
    losses = []
    for model in (plain, torch.fx.symbolic_trace(plain)):
        guide = ExplanationGuidance(model, "mix", target="all")
        model(batch())
        losses.append(guide.loss_loc(TARGETS))
        guide.remove()
    assert torch.equal(*losses)


@pytest.mark.parametrize("operation", [torch._C._nn.hardsigmoid, torch._C._nn.hardsigmoid_])
def test_hardsigmoid_under_another_name(operation: Any) -> None:
    class Gated(SmallCnn):
        def forward(self, images: Tensor) -> Tensor:
            return self.head(operation(self.mix(self.stem(images))).mean((2, 3)))

    model = Gated()
    plain = model(batch())
    guide = ExplanationGuidance(model, "mix", target="all")
    torch.testing.assert_close(model(batch()), plain)
    guide.loss_loc(TARGETS).backward()
    assert guide.replaced == {"hardsigmoid"} and model.mix.weight.grad.any()
