"""Mix Transformer: four stages of attention over a shrunk map, without position codes.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021, section 3.1. A map (N, C, h, w) goes through the blocks as tokens (N, h w, C). The
attention is plain matrix products and a softmax, which every runtime has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHRINK = (8, 4, 2, 1)
"""Of each stage's keys and values along both axes."""


def as_tokens(x: Tensor) -> Tensor:
    """(N, C, h, w) to (N, h w, C)."""
    return x.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h w, C) to (N, C, h, w), size being (h, w)."""
    n, _, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(n, channels, *size)


class Pointwise(nn.Linear):
    """A linear layer over the channels of a map: (N, in, h, w) to (N, out, h, w).

    A 1x1 convolution whose weights are stored as the published ones are, with two axes.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight.ndim == 4 else self.weight[:, :, None, None]
        return F.conv2d(x, weight, self.bias)

    def fold(self) -> None:
        """Stores the weights as a convolution's, for inference."""
        self.weight = nn.Parameter(self.weight.detach().reshape(*self.weight.shape[:2], 1, 1))


class PatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution and a norm: (N, in, H, W) to (N, C, h, w)."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens, and the (h, w) that they came from."""
        x = self.proj(x)
        return self.norm(as_tokens(x)), (x.shape[2], x.shape[3])


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a shrunk map (equation 2).

    (N, h w, C) to the same.
    """

    def __init__(self, channels: int, heads: int, shrink: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.reduce = nn.Conv2d(channels, channels, shrink, shrink) if shrink > 1 else None
        self.reduce_norm = nn.LayerNorm(channels) if shrink > 1 else None

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        source = tokens
        if self.reduce is not None and self.reduce_norm is not None:
            source = self.reduce_norm(as_tokens(self.reduce(as_map(tokens, size))))
        query = self._split(self.query(tokens)) * self.scale  # (N, heads, h w, C / heads)
        key, value = self._split(self.key(source)), self._split(self.value(source))
        weights = torch.softmax(query @ key.transpose(2, 3), dim=-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        out: Tensor = self.output(mixed)
        return out

    def _split(self, tokens: Tensor) -> Tensor:
        n, count, channels = tokens.shape
        return tokens.reshape(n, count, self.heads, channels // self.heads).transpose(1, 2)


class MixFFN(nn.Module):
    """Four times wider inside, with a 3x3 depthwise convolution that tells positions (equation 3).

    A map (N, C, h, w) to the same: as tokens, the wide part would be turned over twice.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inside = 4 * channels
        self.expand = Pointwise(channels, inside)
        self.depthwise = nn.Conv2d(inside, inside, 3, padding=1, groups=inside)
        self.project = Pointwise(inside, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(F.gelu(self.depthwise(self.expand(x))))
        return out


class Block(nn.Module):
    """Attention and Mix-FFN, each behind a norm and beside a shortcut: (N, h w, C) to the same.

    In training each is left out for a share `drop` of the images (Huang et al., "Deep Networks
    with Stochastic Depth", ECCV 2016).
    """

    def __init__(self, channels: int, heads: int, shrink: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attention = EfficientAttention(channels, heads, shrink)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MixFFN(channels)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        tokens = tokens + self._kept(self.attention(self.norm1(tokens), size))
        mixed = as_tokens(self.mlp(as_map(self.norm2(tokens), size)))
        return tokens + self._kept(mixed)

    def _kept(self, x: Tensor) -> Tensor:
        if not self.training or self.drop == 0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device, dtype=x.dtype) >= self.drop
        return x * keep / (1 - self.drop)


class MixTransformer(nn.Module):
    """Four stages at strides 4, 8, 16 and 32.

    Args:
        channels: of the stages.
        depths: how many blocks each has.
        heads: of each stage's attention.
        drop: largest share of `Block`'s drop; it grows from 0 with the depth.

    Forward: (N, 3, H, W) to four maps (N, channels[i], ceil(H / 2**(i + 2)), ...).
    """

    def __init__(
        self,
        channels: tuple[int, int, int, int] = (32, 64, 160, 256),
        depths: tuple[int, int, int, int] = (2, 2, 2, 2),
        heads: tuple[int, int, int, int] = (1, 2, 5, 8),
        drop: float = 0.1,
    ) -> None:
        super().__init__()
        self.channels = channels
        inputs = (3, *channels[:-1])
        self.embeddings = nn.ModuleList(
            PatchEmbedding(before, after, 7 if i == 0 else 3, 4 if i == 0 else 2)
            for i, (before, after) in enumerate(zip(inputs, channels, strict=True))
        )
        last = max(sum(depths) - 1, 1)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Block(channels[i], heads[i], SHRINK[i], drop * (sum(depths[:i]) + j) / last)
                for j in range(depths[i])
            )
            for i in range(4)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-6) for c in channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for embedding, blocks, norm in zip(self.embeddings, self.stages, self.norms, strict=True):
            tokens, size = embedding(x)
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                tokens = block(tokens, size)
            x = as_map(norm(tokens), size)
            features.append(x)
        return features
