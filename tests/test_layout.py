"""Layouts of activations, and the layer that is found when none is named."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import timm
import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision import models

from explainguide import ExplanationGuidance
from explainguide.attr import InputXGradient
from explainguide.errors import LayerError, OptionError
from explainguide.hooks.layout import Layout, infer_layout, to_nchw
from explainguide.hooks.layout_table import KINDS, layout_kind
from explainguide.hooks.probe import automatic_layer, probe_layers
from explainguide.hooks.reading import check_reading


class Vit(nn.Module):
    num_prefix_tokens = 1


class Swin(nn.Module):
    output_fmt = "NHWC"


CASES = [
    ((2, 8, 16, 16), (64, 64), nn.Module(), nn.Conv2d(3, 8, 1), Layout("NCHW", (16, 16))),
    ((2, 16, 16, 16), (64, 64), nn.Module(), nn.Conv2d(3, 16, 1), Layout("NCHW", (16, 16))),
    ((2, 7, 7, 96), (224, 224), Swin(), nn.LayerNorm(96), Layout("NHWC", (7, 7))),
    ((2, 7, 7, 96), (224, 224), nn.Module(), nn.LayerNorm(96), Layout("NHWC", (7, 7))),
    ((2, 96, 7, 7), (224, 224), Swin(), nn.Conv2d(3, 96, 1), Layout("NCHW", (7, 7))),
    ((2, 197, 64), (224, 224), Vit(), nn.LayerNorm(64), Layout("tokens", (14, 14), 1)),
    ((2, 196, 64), (224, 224), Vit(), nn.LayerNorm(64), Layout("tokens", (14, 14), 0)),
    ((2, 129, 64), (128, 256), Vit(), nn.LayerNorm(64), Layout("tokens", (8, 16), 1)),
    ((2, 50, 64), (224, 224), nn.Module(), nn.LayerNorm(64), Layout("tokens", (7, 7), 1)),
    ((2, 49, 64), (224, 224), nn.Module(), nn.LayerNorm(64), Layout("tokens", (7, 7), 0)),
    ((2, 5, 33, 65), (65, 129), nn.Module(), nn.Conv2d(3, 5, 1), Layout("NCHW", (33, 65))),
    ((2, 5, 50, 100), (128, 228), nn.Module(), nn.Conv2d(3, 5, 1), Layout("NCHW", (50, 100))),
]


@pytest.mark.parametrize(("shape", "size", "model", "module", "expected"), CASES)
def test_layouts(shape, size, model, module, expected) -> None:
    found = infer_layout("x", torch.zeros(shape), size, model=model, module=module, batch=2)
    assert found == expected
    assert to_nchw(torch.zeros(shape), found).shape[-2:] == expected.grid


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (torch.zeros(2, 5), "no spatial extent"),
        (torch.zeros(2, 13, 5), "no spatial extent"),
        (torch.zeros(2, 3, 4, 5, 6), "no spatial extent"),
        (torch.zeros(2, 4, 196, 192), "no spatial extent"),  # NesT's blocks of tokens
        (torch.zeros(2, 3, 197, 64), "no spatial extent"),  # queries of three heads
        ([torch.zeros(2, 3, 4, 4)], "returns a list"),
        (torch.zeros(2, 7, 7, 7), "NCHW 7 x 7 or NHWC 7 x 7"),
    ],
)
def test_what_cannot_be_read(output, reason) -> None:
    with pytest.raises(LayerError, match=reason):
        infer_layout(
            "x",
            output,
            (224, 224),
            model=nn.Module(),
            module=nn.LayerNorm(7),
            batch=2,
        )


def test_to_nchw_is_a_view_that_keeps_places() -> None:
    nhwc = torch.arange(24.0).reshape(1, 2, 3, 4)
    found = to_nchw(nhwc, Layout("NHWC", (2, 3)))
    assert found.shape == (1, 4, 2, 3)
    assert torch.equal(found[0, :, 1, 2], nhwc[0, 1, 2])
    tokens = torch.cat([torch.zeros(1, 2, 4), nhwc.flatten(1, 2)], 1)
    assert torch.equal(to_nchw(tokens, Layout("tokens", (2, 3), 2)), found)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: timm.create_model("resnet10t", num_classes=4), "layer4"),
        (lambda: models.resnet18(), "layer4"),
        (lambda: models.vgg11(), "features"),
        (lambda: models.densenet121(), "features"),
        (
            lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32),
            "encoder.layers.encoder_layer_1.ln_1",
        ),
        (lambda: timm.create_model("vit_tiny_patch16_224", depth=2), "blocks.1.norm1"),
        (lambda: timm.create_model("convnext_atto", num_classes=4), "stages"),
    ],
)
def test_the_automatic_layer(build, expected) -> None:
    model = build().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    layers = probe_layers(model)
    assert automatic_layer(model, layers) == expected
    assert all(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_model_without_a_grid_is_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2))
    with pytest.raises(LayerError, match="no layer of Sequential keeps a spatial grid"):
        automatic_layer(flat, probe_layers(flat))


def test_dead_layers_are_told_apart() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2)
    alive = {row.name: row.alive for row in probe_layers(model)}
    assert alive["blocks.0"]
    assert alive["blocks.1.norm1"]
    assert not alive["blocks.1"]  # only the class token goes on
    assert not alive["head"]


class Normalised(nn.Module):
    """A wrapper, as people write them; what the model says of itself is one level down."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((images - 0.5) / 0.25)


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2, "reg_tokens": 4}, "blocks.1.norm1"),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 2}, "blocks.1.norm1"),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2, "patch_size": (16, 8)}, "blocks.0"),
        ("hiera_tiny_224", {"stages": (1, 1, 1, 1), "embed_dim": 24}, "blocks.1"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}, "norm"),
        ("mambaout_femto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, "stages"),
    ],
)
def test_a_wrapper_changes_no_map(name: str, options: dict, layer: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **options).eval()
    size = options.get("img_size", 224)
    images = torch.rand(1, 3, size, size)
    inside = InputXGradient(model, layer).attribute((images - 0.5) / 0.25, 1)
    outside = InputXGradient(Normalised(model), f"model.{layer}").attribute(images, 1)
    assert torch.equal(inside, outside)
    own = automatic_layer(model, probe_layers(model))
    wrapped = Normalised(model)
    found = automatic_layer(wrapped, probe_layers(wrapped))
    assert found == f"model.{own}"


def test_the_patch_embedding_knows_a_grid_of_long_patches() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, patch_size=(16, 8), num_classes=3
    )
    layers = {info.name: info for info in probe_layers(model)}
    assert layers["blocks.1.norm1"].layout == Layout("tokens", (4, 8), 1)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_images_of_other_channels(channels: int) -> None:
    model = timm.create_model("resnet10t", num_classes=3, in_chans=channels)
    found = automatic_layer(model, probe_layers(model))
    assert found == "layer4"


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("training", [True, False])
def test_checkpointed_models_are_probed_as_they_are_without(name: str, training: bool) -> None:
    options = {"img_size": 64, "depth": 2} if "vit" in name else {"zero_init_last": True}
    model = timm.create_model(name, num_classes=3, **options).train(training)
    plain = {i.name: i.usable for i in probe_layers(model, image_size=(64, 64))}
    model.set_grad_checkpointing(True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = {i.name: i.usable for i in probe_layers(model, image_size=(64, 64))}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(found) <= set(plain)  # stages whose blocks are called one by one do not run
    assert all(plain[layer] == usable for layer, usable in found.items())


@pytest.mark.parametrize(("prefix", "side"), [(5, 2), (7, 3), (9, 4)])
def test_silent_tokens_that_fit_a_grid_with_and_without_their_prefix(
    prefix: int, side: int
) -> None:
    """Five tokens in front of 2 x 2 are nine, which is 3 x 3 too: what the model says comes first."""

    class Tokens(nn.Module):
        num_prefix_tokens = prefix

        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 6, 8, stride=8)
            self.front = nn.Parameter(torch.randn(1, prefix, 6))
            self.norm = nn.LayerNorm(6)
            self.head = nn.Linear(6, 4)

        def forward(self, images: Tensor) -> Tensor:
            patches = self.patches(images).flatten(2).mT
            tokens = torch.cat([self.front.expand(len(images), -1, -1), patches], 1)
            return self.head(torch.tanh(self.norm(tokens)).mean(1))

    model = Tokens().double().eval()
    images = torch.randn(2, 3, 8 * side, 8 * side, dtype=torch.float64)
    assert round((prefix + side**2) ** 0.5) ** 2 == prefix + side**2
    found = InputXGradient(model, "norm").attribute(images, 0)
    front, patches = model.front.expand(2, -1, -1), model.patches(images).flatten(2).mT
    tokens = model.norm(torch.cat([front, patches], 1)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.head(torch.tanh(tokens).mean(1))[:, 0].sum(), tokens)
    expected = (tokens * gradient).sum(2)[:, prefix:].reshape(2, 1, side, side)
    torch.testing.assert_close(found, expected.detach())


@pytest.fixture
def five_dimensions() -> Iterator[None]:
    """A layout of a user: frames before places, as networks of videos have it, and one frame."""
    with mock.patch.dict(KINDS):
        KINDS.pop("NLhwC", None)  # that of a page of docs/

        @layout_kind("NLhwC", ndim=5, grid=(2, 3))
        def one_frame(feature: Tensor, layout: Layout) -> Tensor:
            return feature.squeeze(-4).movedim(-1, -3)

        yield


class Video(nn.Module):
    """A network whose block returns (N, 1, h, w, C), or the same as (N, C, h, w)."""

    def __init__(self, framed: bool) -> None:
        super().__init__()
        self.framed = framed
        self.stem, self.block = nn.Conv2d(3, 6, 4, stride=4), nn.Tanh()
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        if not self.framed:
            return self.head(self.block(stem).square().mean((2, 3)))
        return self.head(self.block(stem.movedim(1, 3).unsqueeze(1)).square().mean((1, 2, 3)))


@pytest.mark.usefixtures("five_dimensions")
@pytest.mark.parametrize("attribution", ["ixg", "gradient", "gradcam", "layercam"])
def test_a_layout_of_a_user_is_guided(attribution: str) -> None:
    torch.manual_seed(0)
    framed, plain = Video(True).double(), Video(False).double()
    plain.load_state_dict(framed.state_dict())
    images = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    targets = [
        {"boxes": torch.tensor([[0.0, 4, 20, 30]]), "labels": torch.tensor([k])} for k in (1, 2)
    ]
    found = []
    for model, layout in ((framed, "NLhwC"), (plain, "NCHW")):
        guide = ExplanationGuidance(model, "block", attribution=attribution, layout=layout)
        model(images)
        loss = guide.loss_loc(targets)
        loss.backward()
        found.append((loss, guide.attributions["block"], model.stem.weight.grad))
        guide.remove()
    assert found[0][1].shape == (2, 8, 12)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-15)
    assert found[0][2].any()


@pytest.mark.usefixtures("five_dimensions")
def test_a_layout_of_a_user_has_its_own_dimensions_and_words() -> None:
    def read(shape: tuple[int, ...]) -> Layout:
        reading = check_reading(layout="NLhwC")
        module, output = nn.Conv2d(3, 8, 1), torch.zeros(shape)
        return infer_layout(
            "x", output, (64, 64), model=nn.Module(), module=module, batch=2, reading=reading
        )

    assert str(read((2, 1, 4, 6, 8))) == "NLhwC 4 x 6"
    assert read((2, 8, 16, 16)) == Layout("NCHW", (16, 16))  # a layer of four dimensions
    with pytest.raises(OptionError, match="'NCHW' and 'NHWC' and 'NLhwC', and for tokens 'NLC'"):
        check_reading(layout="HWC")


class Windows(nn.Module):
    """A network whose `order` puts the 2 x 2 places of a window side by side, after a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.order = nn.Conv2d(3, 6, 4, stride=4), Order()
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.order(self.stem(images))).square().mean(1))


class Order(nn.Module):
    def forward(self, stem: Tensor) -> Tensor:
        tokens = rearrange(stem, "n c (h a) (w b) -> n (h w a b) c", a=2, b=2)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)


@pytest.fixture
def windows() -> Iterator[None]:
    with mock.patch.dict(KINDS):

        @layout_kind("windows", ndim=3)
        def read(feature: Tensor, layout: Layout) -> Tensor:
            h, w = layout.grid
            pattern = "... (h w a b) c -> ... c (h a) (w b)"
            return rearrange(feature[..., layout.prefix :, :], pattern, h=h // 2, w=w // 2, a=2)

        yield


@pytest.mark.usefixtures("windows")
def test_tokens_of_a_user_lie_where_the_layout_says() -> None:
    torch.manual_seed(0)
    model, images = Windows().double(), torch.rand(2, 3, 32, 48, dtype=torch.float64)
    said = {"layout": "windows", "grid": (8, 12), "prefix_tokens": 1}
    found = InputXGradient(model, "order", **said).attribute(images, 1)
    tokens = model.order(model.stem(images)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(
        model.head(torch.tanh(tokens).square().mean(1))[:, 1].sum(), tokens
    )
    expected = (tokens * gradient).sum(2)[:, 1:]
    expected = rearrange(expected, "n (h w a b) -> n 1 (h a) (w b)", h=4, a=2, b=2)
    torch.testing.assert_close(found, expected.detach())
    guide = ExplanationGuidance(model, "order", **said)
    model(images)
    boxes = {"boxes": torch.tensor([[0.0, 4, 20, 30]]), "labels": torch.tensor([1])}
    guide.loss_loc([boxes, boxes]).backward()
    torch.testing.assert_close(guide.attributions["order"][:, None], found)
    assert model.stem.weight.grad.any()
    guide.remove()


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, r"is read as 'windows', tokens whose grid no shape tells. Say grid=\(h, w\)"),
        ({"grid": (8, 12)}, r"'windows' with grid=\(8, 12\) and 0 prefix tokens reads as"),
        ({"grid": (4, 12), "prefix_tokens": 1}, r"with grid=\(4, 12\) and 1 prefix tokens"),
    ],
)
def test_tokens_of_a_user_that_are_not_counted_right(said: dict, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        InputXGradient(Windows(), "order", layout="windows", **said).attribute(
            torch.rand(2, 3, 32, 48), 1
        )


def test_what_layouts_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KINDS, "NLhwC", raising=False)  # a page of docs/ enters it
    with pytest.raises(OptionError) as refused:
        check_reading(layout="HWC")
    assert str(refused.value) == (
        "unknown layout 'HWC'. Leave it out: shapes tell it nearly always. 'NCHW' and 'NHWC', and "
        "for tokens 'NLC' and 'NCL', are allowed."
    )


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout("NCHW", (2, 3)), "NCHW 2 x 3"),
        (Layout("NHWC", (2, 3)), "NHWC 2 x 3"),
        (Layout("tokens", (2, 3)), "2 x 3 tokens"),
        (Layout("tokens", (2, 3), 1), "1 + 2 x 3 tokens"),
        (Layout("tokens", (2, 3), 1, (3,)), "2 x 3 tokens, 1 among them"),
        (Layout("channels", (2, 3), 1), "1 + 2 x 3 tokens, channels first"),
    ],
)
def test_layouts_in_words(layout: Layout, words: str) -> None:
    assert str(layout) == words


def test_a_layout_of_tokens_says_nothing_of_four_dimensions() -> None:
    """With layout="NLC" for a later layer, a convolution is still (N, C, h, w)."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(5 * 8 * 8, 2)
    )
    images, masks = torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8)
    masks[:, :4] = 1
    values = []
    for layout in (None, "NLC", "NCL", "NCHW"):
        with ExplanationGuidance(model, "0", layout=layout) as guide:
            model(images)
            values.append(guide.loss_loc(masks, torch.tensor([0, 1])).detach())
            assert guide.attributions["0"].shape == (2, 8, 8)
    assert all(torch.equal(value, values[0]) for value in values)


class Turned(nn.Module):
    """(N, C, h, w) to (N, h, w, C), or the mean over places of that."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        return x.square().mean((1, 2)) if self.mean else x.movedim(1, 3)


def test_an_image_is_channels_first_whatever_its_layers_are() -> None:
    """With layout="NHWC" for a layer that needs it, the map of the image is its size."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), Turned(False), nn.LayerNorm(8), Turned(True), nn.Linear(8, 2)
    ).double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    masks = torch.zeros(2, 32, 32).bool()
    masks[:, 4:20, 8:30] = True

    def loss(layer: str | list[str], **options: str) -> float:
        with ExplanationGuidance(model, layer, reduction="sum", **options) as guide:
            model(images)
            return guide.loss_loc(masks, target=0).item()

    assert loss("input", layout="NHWC") == loss("input")
    apart = loss("input") + loss("2", layout="NHWC")
    assert loss(["input", "2"], layout="NHWC") == pytest.approx(apart, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((2, 512, 2, 2), "NHWC"), ((2, 7, 7, 512), "NCHW"), ((2, 3, 8, 8), "NHWC")],
)
def test_a_layout_that_the_shape_contradicts_is_refused(shape: tuple, layout: str) -> None:
    reading = check_reading(layout=layout)
    with pytest.raises(LayerError, match=f"layout='{layout}' makes .* Leave layout= out"):
        infer_layout(
            "x", torch.zeros(shape), (64, 64), model=Vit(), module=Vit(), batch=2, reading=reading
        )
