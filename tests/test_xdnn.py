"""Networks without biases: what conversion changes and refuses, and maps of one backward pass."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import explainguide
from explainguide import ExplanationGuidance
from explainguide.attr import InputXGradient, IntegratedGradients
from explainguide.errors import GuidanceError
from explainguide.xdnn import (
    ChannelScale,
    changes,
    conversion,
    is_homogeneous,
    remove_bias,
    scaling_fault,
)

from .networks import TARGETS, batch
from .test_finite_difference import assert_gradients_are_right

CLASSES = torch.tensor([0, 2, 3])
SIZE = (3, 12, 12)


class Residual(nn.Module):
    """A small network with ReLU, BatchNorm and a skip connection; 12-pixel images."""

    def __init__(self, num_classes: int = 4, width: int = 6, norm: type = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), norm(width), nn.ReLU(inplace=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )
        self.short = nn.Conv2d(width, width, 1, bias=False)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.stem(images))
        features = self.last(F.relu(self.mix(self.branch(features) + self.short(features))))
        return self.head(self.drop(features.mean((2, 3))))

    def last(self, features: Tensor) -> Tensor:
        return features


class Gelu(Residual):
    def last(self, features: Tensor) -> Tensor:
        return F.gelu(features)


class Clamped(Residual):
    """Alike for a random image, other for a strong one."""

    def last(self, features: Tensor) -> Tensor:
        return features.clamp(max=100)


class Shifted(Residual):
    def last(self, features: Tensor) -> Tensor:
        return features + 1e-3


class Gated(Residual):
    def last(self, features: Tensor) -> Tensor:
        return features * torch.sigmoid(features.mean((2, 3), keepdim=True))


class Normalised(Residual):
    def last(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1)


class Token(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1))


def residual(kind: type[Residual] = Residual, *, trained: bool = True) -> nn.Module:
    """With statistics, shifts and biases as training leaves them."""
    torch.manual_seed(5)
    model = kind().double().eval()
    if trained:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight.data, module.running_var):
                    tensor.uniform_(0.5, 2)
                for tensor in (module.bias.data, module.running_mean):
                    tensor.normal_()
    return model


def converted(kind: type[Residual] = Residual, **how) -> nn.Module:
    return remove_bias(residual(kind), image_size=(12, 12), **how)


def without_check(kind: type[Residual]) -> nn.Module:
    """What `remove_bias` would refuse, of modules that are allowed."""
    model = kind().double().eval()
    for module in (model.stem, model.branch):
        module[1] = nn.Identity()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.bias = None
    return model


def images() -> Tensor:
    return batch(dtype=torch.float64)


def counted(model: nn.Module) -> list[int]:
    """Grows by one with each forward pass."""
    passes: list[int] = []
    model.head.register_forward_hook(lambda *_: passes.append(1))
    return passes


def steps(model: nn.Module, layer: str | None = None, **how) -> IntegratedGradients:
    """Integrated gradients that do not know of X-DNNs."""
    found = IntegratedGradients(model, layer, **how)
    found._homogeneous = False
    return found


# Conversion


@pytest.mark.parametrize("normalization", ["fold", "remove"])
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: torchvision.models.resnet18(), id="resnet18"),
        pytest.param(lambda: torchvision.models.vgg11_bn(), id="vgg11_bn", marks=pytest.mark.slow),
        pytest.param(
            lambda: torchvision.models.mnasnet0_5(), id="mnasnet0_5"
        ),  # MobileNet's blocks
        pytest.param(lambda: torchvision.models.squeezenet1_1(), id="squeezenet1_1"),
        pytest.param(lambda: torchvision.models.densenet121(), id="densenet121"),
        pytest.param(lambda: timm.create_model("resnet18"), id="timm-resnet18"),
        pytest.param(lambda: timm.create_model("regnetx_002"), id="timm-regnetx_002"),
        pytest.param(
            lambda: timm.create_model("cspdarknet53"), id="timm-leaky", marks=pytest.mark.slow
        ),
    ],
)
def test_xdnn_is_homogeneous(build, normalization: str) -> None:
    model = build()
    assert not is_homogeneous(model)
    found = remove_bias(model, normalization=normalization, image_size=(64, 64)).eval()
    assert is_homogeneous(found)
    assert not any(name.endswith("bias") for name in found.state_dict())
    x = batch(2, 64)
    with torch.no_grad():
        logits = found(x)
        scale = logits.abs().max()
        assert scale > 0
        for factor in (0.0, 0.3, 2.0, 7.0):
            error = (found(factor * x) - factor * logits).abs().max()
            assert error <= 3e-5 * scale * max(factor, 1)


def test_xdnn_leaves_the_model_as_it_was() -> None:
    model = residual().train()
    model.stem.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    kinds = [type(module) for module in model.modules()]
    random = torch.get_rng_state()
    found = remove_bias(model, image_size=(12, 12))
    assert torch.equal(torch.get_rng_state(), random)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [type(module) for module in model.modules()] == kinds
    assert not set(map(id, found.parameters())) & set(map(id, model.parameters()))
    assert found.training and found.branch[1].training and found.head.training
    assert not (found.stem.training or found.stem[0].training or found.stem[1].training)
    assert found.head.weight.dtype == torch.float64
    assert found.stem[1].weight.dtype == torch.float64


def test_xdnn_says_what_it_changed() -> None:
    found = converted()
    assert changes(found) == [
        "stem.0: bias removed",
        "stem.1: BatchNorm2d is now ChannelScale",
        "branch.0: bias removed",
        "branch.1: BatchNorm2d is now ChannelScale",
        "branch.3: bias removed",
        "mix: bias removed",
        "head: bias removed",
    ]
    assert changes(copy.deepcopy(found)) == changes(found)
    assert changes(remove_bias(found, image_size=(12, 12))) == changes(found)
    assert changes(residual()) == []
    assert not any("xdnn" in name for name in found.state_dict())
    assert "stem.1: BatchNorm2d is now Identity" in changes(converted(normalization="remove"))


def test_xdnn_fold_is_the_network_in_evaluation_where_nothing_is_shifted() -> None:
    model = residual()
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
    found = remove_bias(model, image_size=(12, 12))
    torch.testing.assert_close(found(images()), model(images()), rtol=1e-12, atol=1e-12)
    dropped = remove_bias(model, normalization="remove", image_size=(12, 12))
    assert (dropped(images()) - model(images())).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4), (2, 4)),
        (nn.BatchNorm1d(4), (2, 4, 5)),
        (nn.BatchNorm2d(4, affine=False), (2, 4, 3, 3)),
        (nn.BatchNorm3d(4), (2, 4, 2, 3, 3)),
        (nn.SyncBatchNorm(4), (2, 4, 3, 3)),
        (FrozenBatchNorm2d(4), (2, 4, 3, 3)),
        (FrozenBatchNormAct2d(4), (2, 4, 3, 3)),
        (BatchNormAct2d(4), (2, 4, 3, 3)),
        (BatchNormAct2d(4, apply_act=False), (2, 4, 3, 3)),
        (BatchNormAct2d(4, act_layer=nn.LeakyReLU), (2, 4, 3, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_xdnn_folds_every_batchnorm(norm: nn.Module, shape: tuple[int, ...]) -> None:
    norm = copy.deepcopy(norm).eval()
    norm.running_var.uniform_(0.3, 3)
    if norm.weight is not None:
        norm.weight.data.normal_()
    found = conversion._without_norm(norm, fold=True)
    features = torch.randn(shape)
    torch.testing.assert_close(found(features), norm(features))
    assert not any(module.training for module in found.modules())
    trainable = [p.requires_grad for p in found.parameters()]
    assert trainable == [isinstance(norm.weight, nn.Parameter)]  # as trainable as the norm was
    dropped = conversion._without_norm(norm, fold=False)
    assert torch.equal(dropped(features), getattr(norm, "act", nn.Identity())(features))


def test_xdnn_scales_in_the_features_own_dtype() -> None:
    scale = ChannelScale(torch.tensor([1.0, 2.0]))
    assert scale(torch.ones(1, 2, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_xdnn_exchanges_a_shared_norm_once() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.ReLU(), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = remove_bias(model, image_size=(12, 12))
    assert found[0] is found[2]
    assert isinstance(found[0], ChannelScale)
    assert len(list(found.parameters())) == 1


def test_xdnn_drops_scale_invariant_norms_only_on_request() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    with pytest.raises(GuidanceError, match="normalization='remove' drops"):
        remove_bias(model)
    assert is_homogeneous(remove_bias(model, normalization="remove"))


def test_xdnn_keeps_what_adds_nothing() -> None:
    model = nn.Sequential(
        nn.ZeroPad2d(1),
        nn.Conv2d(3, 4, 3),
        nn.PReLU(4),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ConvTranspose2d(4, 4, 2, 2),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2),
        timm.layers.DropPath(0.3),
        timm.layers.LayerScale2d(4),
        torchvision.ops.StochasticDepth(0.3, "row"),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16, 3),
    )
    assert is_homogeneous(remove_bias(model, image_size=(12, 12)))


@pytest.mark.parametrize("kind", [Gelu, Clamped, Shifted, Gated, Normalised])
def test_xdnn_finds_operations_that_are_no_module(kind: type[Residual]) -> None:
    assert is_homogeneous(without_check(kind))
    with pytest.raises(GuidanceError, match=r"still not positively homogeneous: f\("):
        converted(kind)


@pytest.mark.parametrize("zero", ["head", "branch.3", "mix"])
def test_xdnn_finds_them_behind_weights_that_are_zero(zero: str) -> None:
    model = residual(Gelu)
    model.get_submodule(zero).weight.data.zero_()
    with pytest.raises(GuidanceError, match="still not positively homogeneous"):
        remove_bias(model, image_size=(12, 12))


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError, TypeError, ValueError])
def test_xdnn_says_that_a_model_does_not_run(kind: type[Exception]) -> None:
    class Strict(Residual):
        def last(self, features: Tensor) -> Tensor:
            raise kind("a side of 12 is too short")

    with pytest.raises(GuidanceError) as caught:
        converted(Strict)
    assert str(caught.value) == (
        "remove_bias: the result did not run on a random image of 3 x 12 x 12 (a side of 12 is too "
        "short). Give the size that the model was made for with image_size=(height, width). One "
        "image must be enough input."
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_xdnn_of_other_dtypes(dtype: torch.dtype) -> None:
    model = residual().to(dtype)
    assert next(remove_bias(model, image_size=(12, 12)).parameters()).dtype == dtype
    with pytest.raises(GuidanceError, match="still not positively homogeneous"):
        remove_bias(residual(Gelu).to(dtype), image_size=(12, 12))


def test_xdnn_structure() -> None:
    by_hand = torchvision.models.resnet18(norm_layer=lambda _: nn.Identity())
    assert not is_homogeneous(by_hand)
    by_hand.fc = nn.Linear(512, 7, bias=False)
    assert is_homogeneous(by_hand)
    by_hand.relu = nn.ReLU6()
    assert not is_homogeneous(by_hand)
    assert not is_homogeneous(residual())
    assert is_homogeneous(converted())
    with_token = converted()
    with_token.token = nn.Parameter(torch.ones(1))
    assert not is_homogeneous(with_token)
    assert not is_homogeneous(nn.Sequential(nn.ConstantPad2d(1, 0.5)))
    assert not is_homogeneous(nn.Sequential(nn.AlphaDropout()))


def test_xdnn_is_a_room_of_the_package() -> None:
    assert explainguide.xdnn.remove_bias is remove_bias
    assert "xdnn" in dir(explainguide)


# Integrated gradients


@pytest.mark.parametrize("layer", [None, "stem", "pool", "mix"])
def test_xdnn_takes_one_backward_pass(layer: str | None) -> None:
    model = converted()
    passes = counted(model)
    attribution = IntegratedGradients(model, layer)
    for count in (1, 2):
        found = attribution.attribute(images(), CLASSES)
        assert len(passes) == count
    scores = model(images()).gather(1, CLASSES[:, None])[:, 0]
    assert_near(found.sum((1, 2, 3)), scores.detach())
    assert_near(found, InputXGradient(model, layer).attribute(images(), CLASSES))
    assert_near(found, steps(model, layer, n_steps=3).attribute(images(), CLASSES))
    assert "one backward pass" in repr(attribution)


@pytest.mark.parametrize("layer", ["branch", "branch.0", "short"])
def test_xdnn_takes_the_steps_where_a_skip_connection_passes_by(layer: str) -> None:
    model = converted()
    passes = counted(model)
    attribution = IntegratedGradients(model, layer, n_steps=3)
    found = attribution.attribute(images(), CLASSES)
    assert len(passes) == 5  # the images, the baseline, the steps
    assert_near(found, steps(model, layer, n_steps=3).attribute(images(), CLASSES))
    assert "n_steps=3" in repr(attribution)
    assert "one backward pass" in repr(attribution.at("mix"))


@pytest.mark.parametrize("layer", ["short", "branch"])
def test_xdnn_does_not_take_a_dead_branch_for_none(layer: str) -> None:
    """At the start of training the other branch may carry nothing; later it does."""
    model = converted()
    other = {"short": model.branch[3], "branch": model.short}[layer].weight
    start = other.detach().clone()
    other.data.zero_()
    attribution = IntegratedGradients(model, layer, n_steps=3)
    attribution.attribute(images(), CLASSES)
    other.data.copy_(start)
    assert_near(
        attribution.attribute(images(), CLASSES),
        steps(model, layer, n_steps=3).attribute(images(), CLASSES),
    )


@pytest.mark.parametrize("layer", [None, "stem", "mix"])
@pytest.mark.parametrize("kind", [Gelu, Clamped, Shifted, Gated, Normalised])
def test_xdnn_that_is_none_takes_the_steps(kind: type[Residual], layer: str | None) -> None:
    model = without_check(kind)
    attribution = IntegratedGradients(model, layer, n_steps=4)
    found = attribution.attribute(images(), CLASSES)
    assert_near(found, steps(model, layer, n_steps=4).attribute(images(), CLASSES))
    assert "n_steps=4" in repr(attribution)


def test_xdnn_with_a_constant_below_the_layer_takes_the_steps() -> None:
    class Below(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 1)

    model = without_check(Below)
    found = IntegratedGradients(model, "stem", n_steps=4).attribute(images(), CLASSES)
    assert_near(found, steps(model, "stem", n_steps=4).attribute(images(), CLASSES))
    assert (found - InputXGradient(model, "stem").attribute(images(), CLASSES)).abs().max() > 1e-3


def test_xdnn_reads_the_baseline() -> None:
    model = converted()
    passes = counted(model)
    for baselines, count in (
        (0, 1),
        (torch.zeros(3, 1, 1), 1),
        (0.5, 4),
        (torch.full((1,), 0.5), 4),
    ):
        passes.clear()
        IntegratedGradients(model, n_steps=3, baselines=baselines).attribute(images(), CLASSES)
        assert len(passes) == count


@pytest.mark.parametrize("score", ["log_prob", "sum_log_probs"])
def test_xdnn_takes_the_steps_for_other_scores(score: str) -> None:
    """Also where the same attribution was used for logits before, or nothing is to be explained."""
    model = converted()
    attribution = IntegratedGradients(model, n_steps=3)
    attribution.attribute(images(), CLASSES)
    passes = counted(model)

    def loss(chosen: IntegratedGradients, targets: list) -> Tensor:
        with ExplanationGuidance(
            model, "input", attribution=chosen, score=score, target="all"
        ) as guide:
            model(images())
            return guide.loss_loc(targets).detach()

    loss(attribution, [None, None, None])
    found = loss(attribution, TARGETS)
    assert len(passes) == 2 * 4
    assert torch.equal(found, loss(steps(model, n_steps=3), TARGETS))


@pytest.mark.parametrize("layers", ["input", ["branch", "input", "short", "mix"]])
@pytest.mark.parametrize("target", ["all", "sample"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_xdnn_guidance_equals_that_of_the_steps(layers, target: str, mode: str) -> None:
    """In training mode too: value, maps and parameter gradients, also of layers that differ."""
    model = converted().train(mode == "train")
    model.drop.p = 0.0  # the steps draw anew each time
    got = []
    for attribution in (IntegratedGradients(model, n_steps=3), steps(model, n_steps=3)):
        with ExplanationGuidance(
            model,
            layers,
            attribution=attribution,
            target=target,
            layer_weights=None if layers == "input" else [1.0, 2.0, 3.0, 4.0],
            generator=torch.Generator().manual_seed(0),
        ) as guide:
            model(images())
            loss = guide.loss_loc(TARGETS)
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        got.append((loss.detach(), guide.attributions, gradients))
    torch.testing.assert_close(*got, rtol=1e-9, atol=1e-9)
    assert all(gradient is not None and gradient.any() for gradient in got[0][2])


def test_xdnn_guidance_runs_the_model_once() -> None:
    model = converted().train()
    passes = counted(model)
    with ExplanationGuidance(model, "mix", attribution="intgrad") as guide:
        for count in (1, 2):
            model(images())
            guide.loss_loc(TARGETS)
            assert len(passes) == count
        assert model.training
        with pytest.raises(GuidanceError, match="no forward pass is waiting"):
            guide.loss_loc(TARGETS)  # the trial was none of the guide's passes


@pytest.mark.parametrize("layer", ["input", "stem", "mix"])
@pytest.mark.parametrize("loss", ["energy", "l1"])
def test_xdnn_finite_difference(layer: str, loss: str) -> None:
    model = converted()
    guide = ExplanationGuidance(model, layer, attribution="intgrad", loss=loss, target="all")
    assert_gradients_are_right(model, guide, images())
    model(images())
    scales = [model.stem[1].weight, model.branch[1].weight]
    for gradient in torch.autograd.grad(guide.loss_loc(TARGETS), scales):
        assert gradient.abs().max() > 1e-6
    guide.remove()


def test_xdnn_map_is_differentiable_exactly() -> None:
    """The second derivative of the product is that of the path."""
    model = converted()
    parameters = list(model.parameters())
    got = []
    for attribution in (IntegratedGradients(model), steps(model, n_steps=3)):
        found = attribution.attribute(images(), CLASSES, create_graph=True)
        got.append(torch.autograd.grad(found.square().sum(), parameters))
    torch.testing.assert_close(*got, rtol=1e-9, atol=1e-12)


def test_xdnn_of_a_model_that_needs_more_than_an_image_takes_the_steps() -> None:
    class Asking(Residual):
        def forward(self, x: Tensor, factor: float) -> Tensor:
            return super().forward(factor * x)

    model = without_check(Asking)
    one = IntegratedGradients(model, n_steps=3)
    found = one.attribute(images(), CLASSES, additional_forward_args=2.0)
    plain = InputXGradient(model).attribute(images(), CLASSES, additional_forward_args=2.0)
    assert_near(found, plain)
    assert "n_steps=3" in repr(one)


def test_xdnn_trial_does_not_copy_who_watches() -> None:
    class Watcher:
        def keep(self, module: nn.Module, args: object, output: Tensor) -> None:
            self.output = output  # not a leaf, so it cannot be copied

    model, watcher = converted(), Watcher()
    model.mix.register_forward_hook(watcher.keep)
    attribution = IntegratedGradients(model)
    attribution.attribute(images(), CLASSES)
    assert "one backward pass" in repr(attribution)
    assert len(watcher.output) == len(images())


def test_xdnn_scaling_fault_says_what() -> None:
    def fault(model: nn.Module, layer: str = "input") -> str | None:
        return scaling_fault(model, layer, SIZE)

    assert fault(converted()) is None
    assert fault(without_check(Shifted)) == "f(0) is not 0"
    assert fault(without_check(Clamped)) == "f(1024 x) is not 1024 f(x)"
    assert fault(converted(), "short") == "f(0) is not 0"
    silent = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(432, 2, bias=False), nn.ReLU())
    silent[2].weight.data.fill_(-1.0)
    assert fault(silent) == "f(x) is 0 for a random x"


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
