"""The vision transformer of the published B-cos networks, which neither timm nor torchvision has."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Attention  # timm.layers has it since 1.0.16
from torch import Tensor, nn

from explainguide.bcos.modules import LogitBias
from explainguide.bcos.norms import DetachableGroupNorm2d, DetachableLayerNorm
from explainguide.bcos.tokens import to_bcos
from explainguide.bcos.units import BcosConv2d, BcosLinear
from explainguide.errors import OptionError, ShapeError, operation

__all__ = ["SimpleViT"]

# Their linear layers add 1e-12 to a length: the same at zero, and to rounding elsewhere.
_SQUARE_EPS = 1e-24


class SimpleViT(nn.Module):
    """A plain vision transformer as a B-cos network: no class token, no biases, no activations.

    Sine and cosine of the places are added to the tokens, as published. What they add to a logit is not
    the image's and is in no map, so a map does not sum to the logit less its bias. (`bcosify` gives
    positions to queries and keys alone, and its maps are complete.)

    Args:
        num_classes: K.
        patch_size: Side of a patch, in pixels, or in cells of the stem's output.
        dim: Size of a token, a multiple of 4 and of `heads`.
        depth: Number of blocks.
        heads: Heads of each attention.
        stem: Channels of 3 x 3 convolutions before the patches; each halves the image if it has more
            channels than the one before it.
        b: The exponent B.
        logit_bias: Added to every logit. Default: ``-log(K - 1)``.

    Raises:
        OptionError: If `dim` cannot be divided.

    References:
        Beyer et al., 2022 (the transformer); Xiao et al., 2021 (its stem); Boehle et al., 2024.

    Example:
        >>> network = SimpleViT(10, dim=48, depth=2, heads=3)
        >>> network(torch.rand(1, 6, 64, 64)).shape
        torch.Size([1, 10])
    """

    num_prefix_tokens = 0  # for what reads tokens as a grid

    @operation("SimpleViT")
    def __init__(
        self,
        num_classes: int = 1000,
        *,
        patch_size: int = 16,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        stem: Sequence[int] = (),
        b: float = 2.0,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        step = math.lcm(4, heads)
        if dim % step or dim < 8:
            nearest = step * math.ceil(max(dim, 8) / step)
            raise OptionError(
                f"dim is {dim} with {heads} heads. Use {nearest}. "
                "Multiples of 4 and of heads, from 8 on, are allowed."
            )
        self.stem = nn.Sequential()
        channels = 6
        for wider in stem:
            stride = 2 if wider > channels else 1
            self.stem.append(BcosConv2d(channels, wider, 3, stride, padding=1, b=b))
            self.stem.append(DetachableGroupNorm2d(1, wider))
            channels = wider
        self.embed = BcosConv2d(channels, dim, patch_size, patch_size, b=b, square_eps=_SQUARE_EPS)
        self.blocks = nn.Sequential(*(_Block(dim, heads, b) for _ in range(depth)))
        self.norm = DetachableLayerNorm(dim)
        self.head = BcosLinear(dim, num_classes, b=b)
        self.logit_bias = LogitBias(
            -math.log(max(num_classes - 1, 1)) if logit_bias is None else logit_bias
        )

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 6, H, W)`` to ``(N, K)``."""
        features = self.stem(images)
        (patch, _), (height, width) = self.embed.kernel_size, features.shape[-2:]
        if height % patch or width % patch:
            with operation("SimpleViT"):
                raise ShapeError(
                    f"patches of {patch} x {patch} do not cover {height} x {width}, from images "
                    f"of shape {tuple(images.shape)}. Resize them. Multiples of the patch's side are "
                    "allowed."
                )
        places = self.embed(features)
        tokens = (places + _positions(places)).flatten(2).mT
        output: Tensor = self.logit_bias(self.head(self.norm(self.blocks(tokens).mean(1))))
        return output


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, b: float) -> None:
        super().__init__()
        self.norm1 = DetachableLayerNorm(dim)
        self.attn = Attention(dim, heads)
        to_bcos(self.attn, None)
        self.attn.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attn.proj = BcosLinear(dim, dim, b=b)
        self.norm2 = DetachableLayerNorm(dim)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["fc1"] = BcosLinear(dim, 4 * dim, b=b)
        layers["fc2"] = BcosLinear(4 * dim, dim, b=b)
        self.mlp = nn.Sequential(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, tokens, dim)`` to the same shape."""
        tokens = tokens + self.attn(self.norm1(tokens))
        output: Tensor = tokens + self.mlp(self.norm2(tokens))
        return output


def _positions(places: Tensor) -> Tensor:
    """Sines and cosines of column and row, ``(C, h, w)`` for ``(N, C, h, w)``.

    In float32 for every dtype of the network, as the published weights know them.
    """
    _, channels, height, width = places.shape
    count = channels // 4
    steps = torch.arange(max(height, width, count), dtype=torch.float32, device=places.device)
    frequencies = 1 / 10_000 ** (steps[:count] / (count - 1))
    columns = (frequencies[:, None] * steps[:width])[:, None, :]
    rows = (frequencies[:, None] * steps[:height])[:, :, None]
    waves = [wave.expand(-1, height, width) for x in (columns, rows) for wave in (x.sin(), x.cos())]
    return torch.cat(waves).to(places.dtype)
