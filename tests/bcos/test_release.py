"""Published networks and their weights, against the authors' package with random ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from explainguide import ExplanationGuidance
from explainguide.bcos import (
    BatchNormUncentered2d,
    BcosConv2d,
    BcosLinear,
    DetachablePositionNorm2d,
    bcosify,
    dynamic_weights,
    explanation_mode,
    logit_bias,
    norms,
    simple_vit,
)
from explainguide.bcos import release as ours
from explainguide.bcos.explanations import missing_share
from explainguide.bcos.release import load_published, published
from explainguide.bcos.simple_vit import SimpleViT

STAGES = [(8, 12, 1), (12, 16, 2), (16, 20, 1), (20, None, 1)]
VITS: dict[str, dict[str, Any]] = {
    "simple_vit": {"patch_size": 8, "dim": 24, "depth": 2, "heads": 3},
    "vitc": {"patch_size": 1, "dim": 24, "depth": 2, "heads": 2, "stem": [8, 12, 12, 16]},
}


def converted(name: str) -> nn.Module:
    """torchvision's, told of small images, so that it is converted quickly."""
    model = torchvision.models.get_model(name, num_classes=5)
    model.image_size = 64
    return bcosify(model, norm=ours._CONVERTED[name], keep_weights=False)


def convnext(norm: Any) -> nn.Module:
    model = ConvNeXt([CNBlockConfig(*stage) for stage in STAGES], num_classes=5)
    model.image_size = 64
    return bcosify(model, norm=norm, keep_weights=False)


def authors(name: str) -> nn.Module:
    """The same network of their package."""
    bcos = pytest.importorskip("bcos")
    import bcos.models.convnext as their_convnext
    import bcos.models.vit as their_vit
    from bcos.modules import BcosSequential, LogitLayer
    from bcos.modules import norms as their_norms

    if name in ours._CONVERTED:
        return getattr(bcos.pretrained, name)(num_classes=5)
    if "convnext" in name:
        bnu = their_norms.NoBias(their_norms.BatchNormUncentered2d)
        stages = [their_convnext.CNBlockConfig(*stage) for stage in STAGES]
        norm = bnu if name.endswith("bnu") else None
        return their_convnext.BcosConvNeXt(stages, num_classes=5, norm_layer=norm)
    options = dict(VITS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every use outside of its own configurations
        network = their_vit.SimpleViT(
            image_size=64,
            num_classes=5,
            mlp_dim=4 * options["dim"],
            conv_stem=options.pop("stem", None),
            linear_layer=bcos.modules.BcosLinear,
            conv2d_layer=bcos.modules.BcosConv2d,
            norm_layer=their_norms.NoBias(their_norms.DetachableLayerNorm),
            norm2d_layer=their_norms.NoBias(their_norms.DetachableGNLayerNorm2d),
            act_layer=nn.Identity,
            **options,
        )
    return BcosSequential(network, LogitLayer(logit_bias=-2.0))


def images(size: int = 64) -> Tensor:
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)).double()
    return torch.cat([image, 1 - image], 1)


def randomised(network: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with running variances of the random weights."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        flat = parameter.ndim == 1 or "layer_scale" in name
        parameter.data = 1 + 0.1 * noise if flat else noise
    found = [m for m in network.double().modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in found:
        norm.momentum = 1.0
    if found:
        network.train()(images())
    return network.eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{n: partial(converted, n) for n in ("resnet18", "resnext50_32x4d", "densenet121")},
    "convnext_small": partial(convnext, "detached"),
    "convnext_small_bnu": partial(convnext, BatchNormUncentered2d),
    **{n: partial(SimpleViT, 5, **options) for n, options in VITS.items()},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n.startswith("resnext") else n for n in NETWORKS],
)
def test_bcos_weights_give_the_authors_logits_and_maps(name: str) -> None:
    theirs = randomised(authors(name))
    model = NETWORKS[name]().double().eval()
    assert load_published(model, theirs.state_dict()) is model
    x = images().requires_grad_()
    with torch.no_grad():
        found = model(x) - logit_bias(model)
        layer = next(m for m in theirs.modules() if type(m).__name__ == "LogitLayer")
        expected = theirs(x) - layer.logit_bias
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    with theirs.explanation_mode():
        (weights,) = torch.autograd.grad(theirs(x)[:, 3].sum(), x)
    x = x.detach()
    ours, expected = dynamic_weights(model, x, 3) * x, weights * x
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_bcos_weights_with_prefixes_and_scales() -> None:
    theirs = randomised(authors("convnext_small_bnu")).state_dict()
    model = NETWORKS["convnext_small_bnu"]().double().eval()
    load_published(model, theirs)
    expected = model(images())
    for prefix in ("module.", "0.", "model.", "module.0."):
        other = NETWORKS["convnext_small_bnu"]().double().eval()
        for unit in other.modules():
            if isinstance(unit, BcosConv2d):  # as where no norm follows, and logits would vanish
                unit.scale = torch.tensor(3.0)
        load_published(other, {prefix + k: v for k, v in theirs.items()})
        assert other(images()).equal(expected)


def test_bcos_weights_that_do_not_fit_change_nothing() -> None:
    model = SimpleViT(5, **VITS["vitc"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = randomised(authors("vitc")).state_dict()
    state["0.linear_head.linear.linear.weight"] = torch.zeros(7, 24)
    with pytest.raises(ValueError, match=r"weight is \(7, 24\) instead of \(5, 24\)"):
        load_published(model, state)
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())


def test_bcos_published_names_are_the_authors() -> None:
    bcos = pytest.importorskip("bcos")
    theirs = {n for n in bcos.pretrained.list_available() if not n.startswith("standard")}
    assert theirs - {"vgg11_bnu"} == {*ours._CONVERTED, *ours._BUILT}


@pytest.mark.parametrize("name", ours._BUILT)
def test_bcos_published_transformers_have_the_authors_shapes(name: str) -> None:
    bcos = pytest.importorskip("bcos")
    with torch.device("meta"):
        theirs = getattr(bcos.pretrained, name)()
        model = published(name)
        load_published(model, theirs.state_dict())
    heads = {m.heads for m in theirs.modules() if type(m).__name__ == "Attention"}
    assert heads == {m.attn.num_heads for m in model.blocks}
    strides = [m.stride for m in theirs.modules() if isinstance(m, bcos.modules.BcosConv2d)]
    assert [(s, s) for s in strides] == [m.stride for m in model.stem if isinstance(m, BcosConv2d)]


@pytest.mark.parametrize("name", ours._CONVERTED)
def test_bcos_published_networks_have_the_authors_norms(name: str) -> None:
    bcos = pytest.importorskip("bcos")
    with torch.device("meta"):
        theirs = getattr(bcos.pretrained, name)()
    pixels = {
        m for m in theirs.modules() if isinstance(m, bcos.modules.norms.DetachablePositionNorm2d)
    }
    batches = {
        m for m in theirs.modules() if isinstance(m, bcos.modules.norms.BatchNormUncentered2d)
    }
    centred = ours._CONVERTED[name] == "detached"
    assert bool(pixels) == centred
    assert bool(batches) != centred
    assert {m.eps for m in pixels | batches} == {1e-6 if centred else 1e-5}
    assert all(m.bias is None for m in pixels | batches)


def test_bcos_published_network_is_built() -> None:
    state = authors("resnet18").state_dict()
    model = load_published(published("resnet18", 5), state)
    assert model.conv1.weight.equal(state["conv1.linear.weight"])
    assert model.avgpool.classifier.weight.equal(state["fc.linear.weight"])


def test_bcos_linear_layers_that_were_convolutions_have_their_epsilon() -> None:
    model = NETWORKS["convnext_small"]()
    load_published(model, authors("convnext_small").state_dict())
    linear = [m for m in model.modules() if isinstance(m, BcosLinear)]
    assert len(linear) == 10
    assert {(m.square_eps, m.norm_eps) for m in linear} == {(1e-6, 0.0)}


@pytest.mark.parametrize("name", VITS)
def test_bcos_transformer_maps_leave_out_what_positions_add(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SimpleViT(5, **VITS[name]).double()
    assert missing_share(model, images()) > 0.01
    monkeypatch.setattr(simple_vit, "_positions", lambda places: torch.zeros_like(places[0]))
    assert missing_share(model, images()) < 1e-12


@pytest.mark.parametrize("layer", ["input", "embed", "blocks.0"])
def test_bcos_transformer_can_be_guided(layer: str) -> None:
    model = SimpleViT(5, **VITS["simple_vit"]).double()
    masks = torch.zeros(2, 64, 64)
    masks[:, :32, :16] = 1
    with ExplanationGuidance(model, layer, attribution="bcos") as guide:
        model(images())
        guide.loss_loc(masks, torch.tensor([1, 4])).backward()
    side = 64 if layer == "input" else 8
    assert guide.attributions[layer].shape == (2, side, side)
    assert all(bool(p.grad.any()) for p in model.blocks.parameters())
    assert bool(model.embed.weight.grad.any())
    assert bool(model.head.weight.grad.any())


@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (2, 7, 8), (2, 8)])
def test_bcos_norm_with_channels_last(shape: tuple[int, ...]) -> None:
    plain = DetachablePositionNorm2d(8).double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    expected = nn.functional.layer_norm(x, (8,))
    found = norms.ChannelsLast(plain)(x)
    torch.testing.assert_close(found, expected)
    with explanation_mode(norms.ChannelsLast(plain)):
        (gradient,) = torch.autograd.grad((found * x.detach()).sum(), x)
    centred = x.detach() - x.detach().mean(-1, keepdim=True)
    std = (x.detach().var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(gradient, centred / std)


def test_bcos_conversion_keeps_the_weights_of_norms_with_channels_last() -> None:
    model = ConvNeXt([CNBlockConfig(*stage) for stage in STAGES], num_classes=5)
    model.image_size = 64
    nn.init.normal_(model.features[1][0].block[2].weight)
    network = bcosify(model, norm=DetachablePositionNorm2d)
    wrapped = network.features[1][0].block[2]
    assert isinstance(wrapped, norms.ChannelsLast)
    assert wrapped.norm.weight.equal(model.features[1][0].block[2].weight)
