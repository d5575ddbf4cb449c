"""What the automatic layer and the roll-out of attention get right on models that nobody listed."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from explainguide import ExplanationGuidance
from explainguide.attr import AttentionRelevance, InputXGradient
from explainguide.errors import LayerError
from explainguide.hooks.probe import automatic_layer, input_size, probe_layers

os.environ.setdefault("HF_HUB_OFFLINE", "1")


class DropBlockedPoolStage(nn.Module):
    """A residual block whose name speaks of pooling, though it is none."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class MyPool(DropBlockedPoolStage):
    """And one that the name makes passed over: what is inside it is still a branch only."""


class MaxPool2dSame(nn.MaxPool2d):
    """As timm calls it."""


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (DropBlockedPoolStage(), "2"),
        (MyPool(), "1"),
        (MaxPool2dSame(3, 1, 1), "1"),
        (nn.Dropout2d(), "1"),
        (nn.AdaptiveAvgPool2d(4), "1"),
    ],
)
def test_names_that_speak_of_pooling(block: nn.Module, found: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4),
        nn.GELU(),
        block,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    layers = probe_layers(model, image_size=(32, 32))
    assert automatic_layer(model, layers) == found


def test_a_network_whose_signal_died_out_keeps_its_layers() -> None:
    """Weights as small as transformers draws them: activations are 0, gradients are not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[1]):
            layer.weight.mul_(1e-30)
    layers = probe_layers(model, image_size=(32, 32))
    assert automatic_layer(model, layers) == "2"


class Summary(nn.Module):
    """As many channels as tokens, pooled over tokens: (N, C, 1) is a vector, not places."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.last = nn.Conv2d(3, 16, 8, 8), nn.AdaptiveAvgPool1d(1)
        self.scale, self.fc = nn.Tanh(), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.proj(x).flatten(2)
        return self.fc(self.scale(self.last(tokens)).flatten(1))


def test_a_pooled_vector_is_no_row_of_tokens() -> None:
    model = Summary()
    layers = probe_layers(model, image_size=(32, 32))
    assert {one.name: one.layout for one in layers}["scale"] is None
    assert automatic_layer(model, layers) == "proj"
    with ExplanationGuidance(model, "scale") as guide:
        model(torch.rand(1, 3, 32, 32))
        with pytest.raises(LayerError, match="no spatial extent"):
            guide.loss_loc(torch.ones(1, 32, 32), target=1)


class Sized(nn.Module):
    """A wrapper around a model of timm's, which alone knows its size."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 3)
        self.inner.default_cfg = {"input_size": (3, 96, 48)}


def test_a_wrapped_model_says_its_size() -> None:
    assert input_size(Sized()) == (3, 96, 48)


# The roll-out of attention, with the class token elsewhere than in front.


class Vit(nn.Module):
    """Two blocks of one head; the class token at a place of the row of 16 patches."""

    def __init__(self, place: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place, self.proj = place, nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 1, 16, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.fc = nn.Linear(8, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        t = self.proj(x).flatten(2).mT
        t = torch.cat(
            [t[:, : self.place], self.token.expand(len(x), -1, -1), t[:, self.place :]], 1
        )
        for block in self.blocks:
            t = block(t)
        return self.fc(t[:, self.place])


@pytest.mark.parametrize("place", [0, 5, 8, 16])
def test_relevance_is_the_class_tokens_wherever_it_stands(place: int) -> None:
    """Attention knows no order, so that all of them are one model with one map."""
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    front, other = Vit(0), Vit(place)
    assert torch.allclose(front(x), other(x))
    expected = AttentionRelevance(front, image_size=32).attribute(x, 1)
    found = AttentionRelevance(other, image_size=32).attribute(x, 1)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(found, expected)


def test_relevance_takes_the_size_that_is_said() -> None:
    model: Any = nn.Sequential(Vit(0))
    model[0].fixed = nn.Parameter(torch.zeros(1, 17, 8, dtype=torch.float64))
    model[0].blocks[0].register_forward_pre_hook(lambda m, a: (a[0] + model[0].fixed,))
    with pytest.raises(LayerError, match=r"224 x 224 .*Say the size with image_size="):
        AttentionRelevance(model)
    assert AttentionRelevance(model, image_size=(32, 32)).attribute(
        torch.rand(1, 3, 32, 32).double(), 1
    ).shape == (1, 1, 4, 4)


def test_attribute_of_a_guide_takes_a_module() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(512, 4))
    x = torch.rand(1, 3, 32, 32)
    with ExplanationGuidance(model, [model[0], "1"]) as guide:
        by_module, by_name = (guide.attribute(x, 1, layer=one) for one in (model[1], "1"))
        assert torch.equal(by_module, by_name)
        assert not torch.equal(by_name, guide.attribute(x, 1, layer=model[0]))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_hiera_of_transformers_keeps_its_tokens_in_an_order_of_its_own(stage: int) -> None:
    """Its own hidden states, which it puts back in their places, are the independent word."""
    transformers = pytest.importorskip("transformers")
    config = transformers.HieraConfig(
        embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), num_labels=4
    )
    torch.manual_seed(0)
    model = transformers.HieraForImageClassification(config).eval()
    images = torch.rand(1, 3, 224, 224)
    layer, kept = f"hiera.encoder.stages.{stage}", {}
    map_ = InputXGradient(model, layer).attribute(images, 1)[0, 0]
    hook = model.get_submodule(layer).register_forward_hook(lambda m, a, o: kept.update(f=o))
    output = model(images, output_hidden_states=True)
    hook.remove()
    feature = kept["f"] if isinstance(kept["f"], Tensor) else kept["f"][0]
    (gradient,) = torch.autograd.grad(output.logits[0, 1], feature)
    products = (feature * gradient).sum(-1).flatten()
    # Where each token lies: a number a token, put in its place as the model does it itself.
    number = torch.arange(products.numel(), dtype=torch.float32).view(1, -1, 1)
    places = model.hiera.encoder.reroll(number, stage)[0, ..., 0].long()
    side = 56 // 2**stage if stage < 3 else 7
    assert map_.shape == (side, side) == places.shape
    torch.testing.assert_close(map_, products[places].detach())
    if stage < 2:
        assert not torch.allclose(map_, products.view(side, side).detach())


PART = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}


@pytest.mark.parametrize(
    ("family", "options", "layer"),
    [
        ("PoolFormer", PART, "norm"),
        ("MobileViT", {"image_size": 128}, "mobilevit.conv_1x1_exp"),
        ("ConvNext", PART, "convnext.encoder.stages.3"),
        ("Segformer", {"image_size": 128}, "segformer.stages.3"),
        ("Swin", {"image_size": 64, "patch_size": 2, "embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 2, 4), "window_size": 4}, "swin.layernorm"),
    ],
)  # fmt: skip
def test_the_automatic_layer_of_transformers(family: str, options: Any, layer: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(**options, num_labels=4)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForImageClassification")(config).eval()
    side = options.get("image_size", 128)
    layers = probe_layers(model, image_size=(side, side))
    assert automatic_layer(model, layers) == layer
