"""Which places a layer's numbers belong to: grids, token orders and prefix tokens of models nobody listed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainguide import ExplainGuideWarning, ExplanationGuidance
from explainguide.attr import GradCam, InputXGradient, IntegratedGradients
from explainguide.errors import LayerError, OptionError

C = 16


class Vit(nn.Module):
    """Two blocks on tokens that subclasses make; `body` is what a guide reads."""

    def __init__(self, patch: Any = (8, 8), width: int = C) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = patch
        self.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.extra = nn.Parameter(torch.randn(1, 2, width))
        self.one = nn.TransformerEncoderLayer(width, 2, 32, 0.0, batch_first=True, norm_first=True)
        self.two = nn.TransformerEncoderLayer(width, 2, 32, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 4)
        self.double().eval()

    def patches(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)

    def tokens(self, x: Tensor) -> Tensor:
        return self.patches(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.tokens(x))).mean(1))


class Front(Vit):
    def tokens(self, x: Tensor) -> Tensor:
        return torch.cat([self.extra.expand(len(x), -1, -1), self.patches(x)], 1)


class Back(Vit):
    def tokens(self, x: Tensor) -> Tensor:
        return torch.cat([self.patches(x), self.extra.expand(len(x), -1, -1)], dim=1)


class Middle(Vit):
    """As Vision Mamba has its class token."""

    def tokens(self, x: Tensor) -> Tensor:
        t, e = self.patches(x), self.extra.expand(len(x), -1, -1)
        half = t.shape[1] // 2
        return torch.cat((t[:, :half], e, t[:, half:]), 1)


class Registers(Vit):
    """The class token first, then registers put in behind it, as DINOv2 does."""

    def tokens(self, x: Tensor) -> Tensor:
        t = torch.cat([self.extra[:, :1].expand(len(x), -1, -1), self.patches(x)], 1)
        return torch.cat([t[:, :1], self.extra[:, 1:].expand(len(x), -1, -1), t[:, 1:]], 1)


class Written(Vit):
    """Tokens that go through NumPy: nothing is seen of where they stand."""

    def tokens(self, x: Tensor) -> Tensor:
        t = self.patches(x)
        extra = self.extra.expand(len(t), -1, -1)
        whole = np.concatenate([part.detach().numpy() for part in (extra, t)], 1)
        return torch.from_numpy(whole)


class OneWritten(Written):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(self.extra.detach()[:, :1])


class Unfolded(Vit):
    def patches(self, x: Tensor) -> Tensor:
        t = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        return t @ self.proj.weight.flatten(1).T + self.proj.bias


class Reshaped(Vit):
    """Patches by reshaping, as einops' rearrange does it, and a linear layer."""

    def patches(self, x: Tensor) -> Tensor:
        (p, q), (n, c, h, w) = self.patch, x.shape
        t = x.reshape(n, c, h // p, p, w // q, q).permute(0, 2, 4, 1, 3, 5)
        return t.reshape(n, -1, c * p * q) @ self.proj.weight.flatten(1).T + self.proj.bias


class Overlapping(Vit):
    """A compact convolutional transformer's stem."""

    def __init__(self, patch: Any = (8, 8), width: int = C) -> None:
        super().__init__(patch, width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        ).double()
        self.flat = nn.Flatten(2, 3)

    def patches(self, x: Tensor) -> Tensor:
        return self.flat(self.stem(x)).mT


class Resized(Vit):
    def patches(self, x: Tensor) -> Tensor:
        return super().patches(F.interpolate(x, (40, 64), mode="bilinear"))


class Columns(Vit):
    """Column by column: as many tokens, of the same grid, in another order."""

    def patches(self, x: Tensor) -> Tensor:
        return self.proj(x).transpose(2, 3).flatten(2).mT


class Backwards(Vit):
    def patches(self, x: Tensor) -> Tensor:
        return super().patches(x).flip(1)


class Windows(Vit):
    """The four tokens of a window of 2 x 2 stand together."""

    def patches(self, x: Tensor) -> Tensor:
        n, c, h, w = (t := self.proj(x)).shape
        t = t.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
        return t.reshape(n, h * w, c)


class Shuffled(Vit):
    def patches(self, x: Tensor) -> Tensor:
        return super().patches(x)[:, torch.tensor(SHUFFLE)]


class WrittenIn(Vit):
    """Tokens written into an empty tensor."""

    def tokens(self, x: Tensor) -> Tensor:
        t = self.patches(x)
        whole = t.new_zeros(len(t), t.shape[1] + 2, t.shape[2])
        whole[:, :2], whole[:, 2:] = self.extra, t
        return whole


class Attended(Vit):
    """Attention by explicit products, without a skip connection and with one."""

    def tokens(self, x: Tensor) -> Tensor:
        t = torch.cat([self.patches(x).flip(1), self.extra.expand(len(x), -1, -1)], 1)
        t = (3 * t @ t.mT).softmax(-1) @ t
        return t + torch.einsum("nij,njc->nic", (t @ t.mT).softmax(-1), t)


SHUFFLE = [7, 0, 12, 3, 15, 8, 1, 10, 4, 13, 2, 14, 9, 5, 11, 6]


def picture(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)).double()


def by_hand(model: Vit, x: Tensor, places: list[int], grid: tuple[int, int]) -> Tensor:
    """Input times gradient of class 1 at the output of the first block, at given tokens."""
    tokens = model.one(model.tokens(x)).detach().requires_grad_()
    score = model.head(model.two(tokens).mean(1))[:, 1].sum()
    (gradient,) = torch.autograd.grad(score, tokens)
    return (tokens * gradient).sum(-1)[:, places].unflatten(1, grid).detach()


CASES = [
    (Vit, (8, 8), (32, 48), (4, 6), range(24)),
    (Vit, (25, 1), (25, 60), (1, 60), range(60)),
    (Vit, (4, 16), (32, 32), (8, 2), range(16)),
    (Vit, (16, 4), (32, 32), (2, 8), range(16)),
    (Front, (25, 1), (25, 60), (1, 60), range(2, 62)),
    (Front, (4, 16), (64, 64), (16, 4), range(2, 66)),
    (Back, (8, 8), (32, 32), (4, 4), range(16)),
    (Middle, (8, 8), (32, 32), (4, 4), [*range(8), *range(10, 18)]),
    (Registers, (8, 8), (32, 48), (4, 6), range(2, 26)),
    (Unfolded, (8, 4), (32, 32), (4, 8), range(32)),
    (Reshaped, (8, 4), (48, 20), (6, 5), range(30)),
    (Overlapping, (8, 8), (32, 48), (8, 12), range(96)),
    (Resized, (8, 8), (30, 30), (5, 8), range(40)),
    (Columns, (8, 8), (32, 32), (4, 4), [c * 4 + r for r in range(4) for c in range(4)]),
    (Columns, (8, 8), (32, 48), (4, 6), [c * 4 + r for r in range(4) for c in range(6)]),
    (Backwards, (8, 8), (32, 48), (4, 6), range(23, -1, -1)),
    (Windows, (8, 8), (32, 32), (4, 4), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]),
    (Shuffled, (8, 8), (32, 32), (4, 4), [SHUFFLE.index(i) for i in range(16)]),
    (WrittenIn, (8, 8), (32, 32), (4, 4), range(2, 18)),
    (Attended, (8, 8), (32, 32), (4, 4), range(15, -1, -1)),
]


@pytest.mark.parametrize(("kind", "patch", "size", "grid", "places"), CASES)
def test_the_grid_is_that_of_the_pass(
    kind: Any, patch: Any, size: tuple[int, int], grid: tuple[int, int], places: Any
) -> None:
    model, x = kind(patch), picture(*size)
    expected = by_hand(model, x, list(places), grid)
    found = InputXGradient(model, "one").attribute(x, 1)[:, 0]
    torch.testing.assert_close(found, expected)
    guide = ExplanationGuidance(model, "one")
    model(x)
    guide.loss_loc(torch.ones(2, *size), target=1)
    torch.testing.assert_close(guide.attributions["one"], expected)
    # A layer inside the block has the same places, and another attribution reads them alike.
    assert GradCam(model, "two.norm1").attribute(x, 1).shape[2:] == grid
    assert IntegratedGradients(model, "one", n_steps=2).attribute(x, 1).shape[2:] == grid


def test_a_single_token_of_no_place_is_told_as_one() -> None:
    message = r"the first token of 17 belongs to no place\. .*positions\) where it does"
    with pytest.warns(ExplainGuideWarning, match=message):
        InputXGradient(OneWritten(), "one").attribute(picture(32, 32), 1)


def test_what_is_not_seen_is_told_once_and_can_be_said() -> None:
    model, x = Written(), picture(32, 32)
    expected = by_hand(model, x, list(range(2, 18)), (4, 4))
    guide = ExplanationGuidance(model, "one")
    model(x)
    with pytest.warns(
        ExplainGuideWarning, match=r"first 2 tokens of 18 belong to no place. Say prefix_tokens="
    ):
        guide.loss_loc(torch.ones(2, 32, 32), target=1)
    torch.testing.assert_close(guide.attributions["one"], expected)
    model(x)
    guide.loss_loc(torch.ones(2, 32, 32), target=1)  # warnings are errors: once
    for said in ({"prefix_tokens": 2}, {"prefix_tokens": (0, 1)}, {"grid": (4, 4)}):
        torch.testing.assert_close(
            InputXGradient(model, "one", **said).attribute(x, 1)[:, 0], expected
        )
    # Another word is taken, too: the last two, as far as the library can know.
    last = InputXGradient(model, "one", prefix_tokens=(16, 17)).attribute(x, 1)[:, 0]
    torch.testing.assert_close(last, by_hand(model, x, list(range(16)), (4, 4)))


class Dropped(Front):
    """Keeps nine patches of sixteen, as token pruning does: they are on no grid."""

    def tokens(self, x: Tensor) -> Tensor:
        return super().tokens(x)[:, :11]


class Half(Vit):
    """The upper half of the image, which would be a grid of its own."""

    def tokens(self, x: Tensor) -> Tensor:
        return self.patches(x)[:, :8]


class Merged(Vit):
    def tokens(self, x: Tensor) -> Tensor:
        t = self.patches(x)
        return (t[:, :8] + t[:, 8:]) / 2


@pytest.mark.parametrize("kind", [Dropped, Half, Merged])
def test_tokens_that_are_dropped_or_merged_are_refused(kind: Any) -> None:
    model, x = kind(), picture(32, 32)
    with pytest.raises(LayerError, match=r"where tokens are dropped, merged or added, say grid="):
        InputXGradient(model, "one").attribute(x, 1)
    grid, prefix = ((3, 3), 2) if kind is Dropped else ((2, 4), 0)
    places = list(range(prefix, prefix + grid[0] * grid[1]))
    said = InputXGradient(model, "one", grid=grid, prefix_tokens=prefix).attribute(x, 1)[:, 0]
    torch.testing.assert_close(said, by_hand(model, x, places, grid))


def test_a_word_of_the_user_comes_before_what_the_pass_shows() -> None:
    model, x = Front(), picture(32, 32)
    for said in ({"prefix_tokens": (16, 17)}, {"prefix_tokens": (16, 17), "grid": (4, 4)}):
        found = InputXGradient(model, "one", **said).attribute(x, 1)[:, 0]
        torch.testing.assert_close(found, by_hand(model, x, list(range(16)), (4, 4)))


def test_a_pass_that_raised_leaves_nothing_behind() -> None:
    model, x = Columns(), picture(32, 32)
    guide = ExplanationGuidance(model, "one")
    hook = model.proj.register_forward_hook(lambda *call: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x)
    hook.remove()
    for _ in range(2):  # followed, and as known from then on
        model(x)
        guide.loss_loc(torch.ones(2, 32, 32), target=1)
        expected = by_hand(model, x, [c * 4 + r for r in range(4) for c in range(4)], (4, 4))
        torch.testing.assert_close(guide.attributions["one"], expected)


class Doubled(Vit):
    def tokens(self, x: Tensor) -> Tensor:
        t = self.patches(x)
        return torch.cat([t, t.flip(1)], 1)


def test_two_tokens_of_one_place_are_no_grid() -> None:
    with pytest.raises(LayerError, match=r"\(2, 32, 16\), which has no spatial extent"):
        InputXGradient(Doubled(), "one").attribute(picture(32, 32), 1)


class Padded(Vit):
    def patches(self, x: Tensor) -> Tensor:
        return super().patches(F.pad(x, (0, -x.shape[3] % 8, 0, -x.shape[2] % 8)))


class Cropped(Vit):
    def patches(self, x: Tensor) -> Tensor:
        return super().patches(x[:, :, 4:28, :24])


class Strided(Vit):
    """Every second pixel: all of the image is still there."""

    def patches(self, x: Tensor) -> Tensor:
        return super().patches(x[:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        (Padded, (28, 28), "pads its images from 28 x 28 to 32 x 32"),
        (Cropped, (32, 32), "crops its images from 32 x 32 to 24 x 24"),
        (Padded, (32, 32), None),
        (Strided, (32, 32), None),
    ],
)
def test_padding_and_cropping_in_the_forward_are_told(kind: Any, size: Any, said: Any) -> None:
    attribution, x = InputXGradient(kind(), "one"), picture(*size)
    if said is None:
        attribution.attribute(x, 1)
        return
    with pytest.warns(ExplainGuideWarning, match=said):
        attribution.attribute(x, 1)
    attribution.attribute(x, 1)


@pytest.mark.parametrize("said", [{"grid": (5, 5)}, {"grid": (4, 4), "prefix_tokens": 3}, {"grid": (4, 4), "prefix_tokens": (0, 30)}])  # fmt: skip
def test_a_grid_that_does_not_fit_is_refused(said: Any) -> None:
    with pytest.raises(
        LayerError, match=r"which do not make the output of layer 'one', \(2, 18, 16\)"
    ):
        InputXGradient(Front(), "one", **said).attribute(picture(32, 32), 1)


@pytest.mark.parametrize(
    "said", [{"grid": 4}, {"grid": (4, 0)}, {"prefix_tokens": -1}, {"prefix_tokens": "all"}, {"layout": "LNC"}, {"image_size": (0, 4)}]
)  # fmt: skip
def test_what_may_be_said_of_tokens(said: Any) -> None:
    (name,) = said
    with pytest.raises(OptionError, match=name):
        ExplanationGuidance(Front(), "one", **said)


# Channels before tokens.


class Bag(nn.Module):
    """nn.Flatten(2): (N, C, tokens)."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(
            nn.Conv2d(3, 32, 4, 4), nn.GELU(), nn.Conv2d(32, width, 3, padding=1), nn.GELU()
        )
        self.flat, self.drop, self.fc = nn.Flatten(2), nn.Tanh(), nn.Linear(width, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.flat(self.conv(x))).mean(-1))


@pytest.mark.parametrize("width", [256, 64, 36, 16])
@pytest.mark.parametrize("layer", ["flat", "drop"])
def test_channels_before_tokens(width: int, layer: str) -> None:
    model, x = Bag(width), picture(32, 32)
    feature = model.conv(x).detach().requires_grad_()
    seen = feature if layer == "flat" else torch.tanh(feature)
    (gradient,) = torch.autograd.grad(
        model.fc(torch.tanh(feature).flatten(2).mean(-1))[:, 1].sum(), feature
    )
    if layer == "drop":  # the derivative with respect to what tanh returns
        gradient = gradient / (1 - seen**2)
    expected = (seen * gradient).sum(1, keepdim=True).detach()
    attribution = InputXGradient(model, layer)
    torch.testing.assert_close(attribution.attribute(x, 1), expected)


def test_the_automatic_layer_reads_a_flattened_one_rightly() -> None:
    model, x = Bag(), picture(32, 32)
    guide = ExplanationGuidance(model)
    model(x)
    guide.loss_loc(torch.ones(2, 32, 32), target=1)
    assert next(iter(guide.attributions.values())).shape == (2, 8, 8)
