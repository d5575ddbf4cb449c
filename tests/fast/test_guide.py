"""A guide with fast second derivatives trains as one with PyTorch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from explainguide import ExplanationGuidance
from explainguide.bcos import AddInverse, bcosify
from explainguide.errors import OptionError
from explainguide.losses import LOSSES
from tests.networks import FOR_ANY_NETWORK, TARGETS, InPlaceCnn, SmallCnn, batch

D = torch.float64


def resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=4)


def convnext() -> nn.Module:
    return timm.create_model(
        "convnext_atto", num_classes=4, depths=(1, 1, 1, 1), dims=(8, 12, 16, 16)
    )


def torchvision_convnext() -> nn.Module:
    blocks = [torchvision.models.convnext.CNBlockConfig(12, 16, 1)]
    blocks.append(torchvision.models.convnext.CNBlockConfig(16, None, 1))
    return torchvision.models.ConvNeXt(blocks, num_classes=4)


def vit(**options: Any) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **sizes, **options)
    with torch.no_grad():  # norms of what is nearly 0 make any rounding 1e6 times larger
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def bcos() -> nn.Module:
    return nn.Sequential(AddInverse(), bcosify(SmallCnn(), b=2)).train()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str], int]] = {
    "small": (SmallCnn, ["input", "body", "stem"], 12),
    "in place": (InPlaceCnn, ["input", "features.0"], 12),
    "resnet18": (resnet, ["input", "layer1.0.conv1", "layer3"], 32),
    "timm's convnext": (convnext, ["input", "stages.1"], 64),
    "torchvision's convnext": (torchvision_convnext, ["features.1"], 32),
    "vit": (vit, ["input", "blocks.0", "blocks.1.norm1"], 32),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=4), ["features.2"], 64),
    "regnet": (lambda: timm.create_model("regnetx_002", num_classes=4), ["s2"], 64),
    "bcos": (bcos, ["1.body"], 12),
}
CASES = [(name, layer) for name, (_, layers, _) in NETWORKS.items() for layer in layers]


def targets(size: int) -> list[Any]:
    """The tests' boxes, on images of another size."""
    return [
        None if one is None else {**one, "boxes": one["boxes"] * (size / 12)} for one in TARGETS
    ]


def step(
    model: nn.Module, layer: Any, size: int = 12, *, fast: Any, **options: Any
) -> tuple[Tensor, dict[str, Tensor], ExplanationGuidance]:
    """The localization loss and its gradient alone, of a copy of the model."""
    model = copy.deepcopy(model)
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    guide = ExplanationGuidance(model, layer=layer, fast=fast, generator=generator, **options)
    model(batch(size=size, dtype=dtype).sigmoid())
    loss = guide.loss_loc(targets(size))
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    gradients |= {n: b.to(dtype) for n, b in model.named_buffers() if b.is_floating_point()}
    return loss.detach(), gradients, guide


def nudged(model: nn.Module) -> nn.Module:
    """The same weights, up to the rounding of each."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, dtype=D, generator=generator)
            parameter.mul_(1 + 1e-16 * noise.sign())
    return model


def same(model: nn.Module, layer: Any, size: int = 12, **options: Any) -> ExplanationGuidance:
    """To 1e-12 of the largest gradient, or to what rounding the weights changes, if that is more."""
    loss, gradients, _ = step(model, layer, size, fast=False, **options)
    _, other, _ = step(nudged(model), layer, size, fast=False, **options)
    own_loss, own, guide = step(model, layer, size, fast=True, **options)
    assert own.keys() == gradients.keys()
    own["loss"], gradients["loss"], other["loss"] = own_loss, loss, loss
    largest = max(float(g.abs().max()) for g in gradients.values())
    rounding = max(float((other[n] - g).abs().max()) for n, g in gradients.items())
    assert largest > 0 and rounding < 1e-8 * largest
    for name, gradient in gradients.items():
        error = float((own[name] - gradient).abs().max())
        assert error <= max(1e-12 * largest, 10 * rounding), (name, error, largest, rounding)
    return guide


@pytest.mark.parametrize(("network", "layer"), CASES)
def test_networks(network: str, layer: str) -> None:
    build, _, size = NETWORKS[network]
    torch.manual_seed(0)
    guide = same(build().to(D).train(), layer, size)
    assert guide.fast and not guide.slow


@pytest.mark.parametrize("network", [n for n in NETWORKS if n != "vit"])
@pytest.mark.parametrize("training", [True, False])
def test_the_logits_stay_bit_by_bit(network: str, training: bool) -> None:
    build, layers, size = NETWORKS[network]
    model = build().train(training)
    images = batch(size=size).sigmoid()
    torch.manual_seed(1)  # of dropout
    expected = copy.deepcopy(model)(images)
    guide = ExplanationGuidance(model, layer=layers[0], fast=True)
    torch.manual_seed(1)
    assert torch.equal(model(images), expected)
    guide.loss_loc(targets(size))
    assert guide.fast


@pytest.mark.parametrize("network", ["small", "resnet18", "vit"])
def test_evaluation_mode(network: str) -> None:
    build, layers, size = NETWORKS[network]
    same(build().to(D).eval(), layers[1], size)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("attribution", FOR_ANY_NETWORK)
def test_attributions_and_losses(attribution: str, loss: str) -> None:
    same(SmallCnn().to(D).train(), "body", attribution=attribution, loss=loss)


def test_relevance() -> None:
    same(vit().to(D), None, 32, attribution="relevance", loss="relevance")


def test_all_targets_and_several_layers() -> None:
    same(SmallCnn().to(D), ["input", "body"], target="all")
    same(vit().to(D), ["blocks.0", "blocks.1.norm1"], 32, target="all", layer_weights=[1, 0.5])


@pytest.mark.parametrize("fused", [True, False])
def test_attention_of_both_kinds(fused: bool) -> None:
    model = vit().to(D)
    for block in model.blocks:
        block.attn.fused_attn = fused
    guide = same(model, "blocks.0", 32)
    assert ("scaled_dot_product_attention" if fused else "softmax") in guide.fast


def test_frozen_parts() -> None:
    model = SmallCnn().to(D)
    model.stem.requires_grad_(False)
    model.body[1].weight.requires_grad_(False)
    same(model, "input")
    same(model, "stem")


def test_running_statistics_are_those_of_a_plain_pass() -> None:
    plain, guided = SmallCnn().train(), SmallCnn().train()
    guided.load_state_dict(plain.state_dict())
    guide = ExplanationGuidance(guided, layer="stem", fast=True)
    for model in (plain, guided):
        model(batch())
    guide.loss_loc(TARGETS)
    assert "batch_norm" in guide.fast
    for own, other in zip(guided.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)


def test_repr_says_what_is_fast_and_what_is_not() -> None:
    class Odd(SmallCnn):
        def forward(self, images: Tensor) -> Tensor:
            features = self.stem[:2](images)
            features = nn.functional.gelu(features, approximate="tanh")
            return self.head(features.mean((2, 3)))

    loss, _, guide = step(Odd(), "input", fast=True)
    assert loss.isfinite()
    assert "fast=['batch_norm', 'conv2d']" in repr(guide)
    assert guide.slow == {"gelu": "its approximation by tanh"}
    assert "slow={'gelu': 'its approximation by tanh'}" in repr(guide)
    _, _, plain = step(Odd(), "input", fast=False)
    assert not plain.fast and "slow" not in repr(plain)


def test_auto_leaves_small_operations_to_pytorch() -> None:
    model = SmallCnn(width=32)
    _, _, small = step(model, "input", fast="auto")
    assert small.fast == {"conv2d"} and small.slow["batch_norm"].startswith("too little to do")
    _, _, large = step(model, "input", 96, fast="auto")
    assert {"batch_norm", "conv2d"} <= large.fast


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision(kind: torch.dtype) -> None:
    """All of it, as `model.bfloat16()` makes it: as near to float64 as with PyTorch's own."""
    networks = [(SmallCnn, "stem", 12), (vit, "blocks.0", 32)]
    for build, layer, size in networks[: 1 if kind == torch.float16 else 2]:  # 65504 is soon left
        torch.manual_seed(0)
        model = build().train()
        _, exact, _ = step(copy.deepcopy(model).to(D), layer, size, fast=False)
        errors = []
        for fast in (True, False):
            _, found, _ = step(copy.deepcopy(model).to(kind), layer, size, fast=fast)
            assert found.keys() == exact.keys()
            apart = [(found[n].to(D) - exact[n]).flatten() for n in exact]
            errors.append(float(torch.cat(apart).norm()))
        assert errors[0] < 1.5 * errors[1]


def test_nothing_below_the_layer_is_touched() -> None:
    _, _, guide = step(SmallCnn(), "mix", fast=True)
    assert not guide.fast & {"conv2d", "batch_norm"}


def test_a_checkpointed_segment_keeps_pytorchs_own() -> None:
    class Checkpointed(SmallCnn):
        def forward(self, images: Tensor) -> Tensor:
            features = checkpoint(self.body, self.stem(images), use_reentrant=False)
            return self.head(nn.functional.silu(self.mix(features)).mean((2, 3)))

    guide = same(Checkpointed().to(D), "stem")
    assert guide.slow["batch_norm"] == "in a checkpointed segment" and "conv2d" in guide.fast


def test_functional_call() -> None:
    model = SmallCnn().to(D)
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    found = []
    for fast in (False, True):
        guide = ExplanationGuidance(model, layer="stem", fast=fast)
        torch.func.functional_call(model, weights, (batch(dtype=D),))
        found.append(
            torch.autograd.grad(guide.loss_loc(TARGETS), weights.values(), allow_unused=True)
        )
        guide.remove()
    for own, other in zip(*found, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("network", ["small", "vit"])
def test_autocast(network: str) -> None:
    """Half precision in the same places: the gradients are as near as half precision lets them be."""
    build, layers, size = NETWORKS[network]
    model = build().train()
    exact = step(copy.deepcopy(model).double(), layers[1], size, fast=False)[1]
    errors = {}
    for fast in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            found = step(model, layers[1], size, fast=fast)[1]
        own, other = (
            torch.cat([g[n].double().flatten() for n in exact if "running" not in n])
            for g in (found, exact)
        )
        errors[fast] = float((own - other).norm() / other.norm())
    assert errors[True] <= 1.5 * errors[False] + 0.01, errors


def test_gradients_accumulate_over_steps() -> None:
    found = []
    for fast in (False, True):
        torch.manual_seed(0)
        model = SmallCnn().to(D)
        guide = ExplanationGuidance(
            model, layer="stem", fast=fast, generator=torch.Generator().manual_seed(1)
        )
        for _ in range(3):
            logits = model(batch(dtype=D))
            (logits.square().mean() + guide.loss_loc(TARGETS)).backward()
        found.append([p.grad for p in model.parameters()])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-13)


def test_the_image_gets_no_gradient_of_its_own() -> None:
    images = batch(dtype=D)
    model = SmallCnn().to(D)
    guide = ExplanationGuidance(model, layer="input", fast=True)
    model(images)
    guide.loss_loc(TARGETS).backward()
    assert images.grad is None and not images.requires_grad
    # An image whose gradient the user wants gets it.
    wanted = []
    for fast in (False, True):
        images = batch(dtype=D).requires_grad_()
        guide = ExplanationGuidance(
            model, layer="input", fast=fast, generator=torch.Generator().manual_seed(1)
        )
        (model(images).square().sum() + guide.loss_loc(TARGETS)).backward()
        wanted.append(images.grad)
        guide.remove()
    torch.testing.assert_close(*wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("fast", ["yes", 2, None])
def test_other_values_are_refused(fast: Any) -> None:
    with pytest.raises(OptionError, match=r"ExplanationGuidance: .*fast .*'auto', True, False are"):
        ExplanationGuidance(SmallCnn(), fast=fast)


@pytest.mark.parametrize("network", ["small", "resnet18", "timm's convnext"])
def test_no_more_is_kept_for_the_backward_pass(network: str) -> None:
    build, _, size = NETWORKS[network]
    kept = {}
    for fast in (False, True):
        found: dict[int, tuple[int, Tensor]] = {}

        def pack(tensor: Tensor, found: dict[int, tuple[int, Tensor]] = found) -> Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes(), tensor.detach()
            return tensor

        torch.manual_seed(0)
        model = build().train()
        guide = ExplanationGuidance(model, layer="input", fast=fast)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(batch(size=size).sigmoid())
            guide.loss_loc(targets(size))
        kept[fast] = sum(count for count, _ in found.values())
    # y' of GELU is kept; sums and means of channels are small.
    assert kept[True] <= (1.01 if network == "resnet18" else 1.15) * kept[False]


def test_what_a_form_is_not_for_runs_as_pytorchs_own() -> None:
    class Odd(SmallCnn):
        """Complex numbers and an empty batch between the layer and the logits."""

        def forward(self, images: Tensor) -> Tensor:
            features = self.stem(images)
            weight = self.mix.weight.to(torch.complex128)
            turned = nn.functional.conv2d(
                features * torch.exp(torch.tensor(0.3j)), weight, padding=1
            )
            nothing = self.body[0](features[:0])
            return self.head((turned.real + turned.imag + nothing.sum()).mean((2, 3)))

    guide = same(Odd().to(D).train(), "input")
    assert guide.slow["conv2d"].startswith("on an empty batch, or on numbers that are not floating")
