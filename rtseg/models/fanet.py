"""FANet: every level of a ResNet attends to all of itself, at a cost linear in its pixels.

Hu et al., "Real-time Semantic Segmentation with Fast Attention", IEEE RA-L 2021: fast attention,
the extra spatial reduction (the first stage strides too, so all levels lie one octave lower than
usual) and the decoder of section III, with the two auxiliary heads of its training. The backbone
keeps ReLU inside its blocks, as its pre-training does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.backbones.resnet import DEPTHS, BasicBlock
from rtseg.models.layers import ConvBNReLU, Network
from rtseg.models.resampling import upsample_like

PAPER = "Real-time Semantic Segmentation with Fast Attention"
YEAR = 2021


def _reported(test: float, fps: float) -> Reported:
    return Reported(test, split="test", fps=fps, size=(1024, 2048), device="Titan X")


VARIANTS = {
    "fanet-18": Variant({"depth": 18}, (Reported(0.750), _reported(0.744, 72))),
    "fanet-34": Variant({"depth": 34}, (_reported(0.755, 58),)),
}


class FastAttention(nn.Module):
    """Self-attention without softmax, so that keys and values can be multiplied first.

    Section III, "fast attention": queries and keys of length 1 make their products cosines, and
    the sum over the n pixels of cosine times value is divided by n. Keys are divided by h and
    values by w, so that no factor of the product leaves the range of float16. The result goes
    through a 1x1 convolution and is added to the input.
    Forward: (N, C, h, w) to the same.
    """

    def __init__(self, channels: int, embedding: int = 32) -> None:
        super().__init__()
        self.query = ConvBNReLU(channels, embedding, 1, relu=False)
        self.key = ConvBNReLU(channels, embedding, 1, relu=False)
        self.value = _leaky(channels, channels, 1)
        self.out = _leaky(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        query = _unit(self.query(x)).flatten(2)  # (N, 32, h w)
        key = _unit(self.key(x)).flatten(2) / height
        value = self.value(x).flatten(2) / width  # (N, C, h w)
        summary = value @ key.transpose(1, 2)  # (N, C, 32)
        attended = (summary @ query).reshape(n, channels, height, width)
        out: Tensor = x + self.out(attended)
        return out


def _unit(x: Tensor) -> Tensor:
    """(N, C, h, w) with every pixel's vector at length 1."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.clamp_min(1e-4)  # what float16 can hold


class FANet(Network):
    """ResNet with an extra stride, fast attention on its four levels, top-down sums, head.

    Args:
        num_classes: C.
        depth: 18 or 34.
        width: channels of either map that the head joins.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the auxiliary
    logits at strides 64 and 32 as well.
    """

    output_stride = 8
    align_corners = True

    def __init__(self, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        channels = (64, 128, 256, 512)
        self.stem = nn.Sequential(ConvBNReLU(3, 64, 7, 2), nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(before, now, 2), *(BasicBlock(now, now) for _ in range(n - 1)))
            for before, now, n in zip((64, *channels), channels, DEPTHS[depth], strict=False)
        )
        self.attention = nn.ModuleList(FastAttention(c) for c in channels)
        self.up = nn.ModuleList(_leaky(c, c // 2, 1) for c in channels[1:])
        self.smooth8 = _leaky(64, width)
        self.smooth32 = _leaky(256, width)
        self.head = _head(2 * width, 2 * width, num_classes)
        self.auxiliary = nn.ModuleList(
            (
                nn.Sequential(_leaky(512, width), *_head(width, 64, num_classes)),
                _head(width, 64, num_classes),
            )
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        x = self.stem(images)  # (N, 64, H / 4, W / 4)
        levels = []
        for stage, attention in zip(self.stages, self.attention, strict=True):
            x = stage(x)
            levels.append(attention(x))
        for i in (2, 1, 0):  # from (N, 512, H / 64, W / 64) to (N, 64, H / 8, W / 8)
            levels[i] = levels[i] + upsample_like(self.up[i](levels[i + 1]), levels[i])
        fine, middle = self.smooth8(levels[0]), self.smooth32(levels[2])
        logits: Tensor = self.head(torch.cat((upsample_like(middle, fine), fine), dim=1))
        if self.training:
            return [logits, self.auxiliary[0](levels[3]), self.auxiliary[1](middle)]
        return logits


def _leaky(in_channels: int, out_channels: int, kernel_size: int = 3) -> ConvBNReLU:
    return ConvBNReLU(in_channels, out_channels, kernel_size, activation=nn.LeakyReLU)


def _head(in_channels: int, width: int, num_classes: int) -> nn.Sequential:
    """3x3 convolution with norm and leaky ReLU, 1x1 classifier: (N, in, h, w) to (N, C, h, w)."""
    return nn.Sequential(_leaky(in_channels, width), nn.Conv2d(width, num_classes, 1, bias=False))


def build(num_classes: int, *, depth: int = 18, width: int = 128) -> FANet:
    """A FANet over ResNet-18 or 34; see the class."""
    return FANet(num_classes, depth, width)
