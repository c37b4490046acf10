"""RegSeg: a backbone of stride 16 that sees far by dilated convolutions instead of by more strides.

Gao, "Rethinking Dilated Convolution for Real-time Semantic Segmentation", 2021 (arXiv:2111.09957;
CVPR Workshops 2023): the D block and the backbone of section 3, its decoder, the smaller network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.layers import ConvBNReLU, Network
from rtseg.models.resampling import resize_like

PAPER = "Rethinking Dilated Convolution for Real-time Semantic Segmentation"
YEAR = 2021
VARIANTS = {
    "regseg": Variant(
        {},
        (
            Reported(0.785),
            Reported(0.783, split="test", fps=37, size=(1024, 2048), device="T4"),
            Reported(0.809, data="camvid", split="test", fps=112, size=(720, 960), device="T4"),
        ),
    )
}

GROUP_WIDTH = 16
"""Channels per group of the 3x3 convolutions, as in RegNet."""


class DilatedBlock(nn.Module):
    """D block: an SE-ResNeXt block whose 3x3 convolution is shared out between dilations.

    Section 3, "Dilated block": the channels are split, each part has its own dilation, and the
    attention over channels comes after them. A stride lies in the 3x3 convolutions, and in the
    shortcut as a 2x2 average pool.

    Forward: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: tuple[int, ...] = (1,),
        stride: int = 1,
    ) -> None:
        super().__init__()
        part = out_channels // len(dilations)
        self.reduce = ConvBNReLU(in_channels, out_channels, 1)
        self.parts = nn.ModuleList(
            ConvBNReLU(part, part, 3, stride, dilation=d, groups=part // GROUP_WIDTH)
            for d in dilations
        )
        self.attention = nn.Sequential(
            nn.Conv2d(out_channels, in_channels // 4, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels // 4, out_channels, 1),
            nn.Sigmoid(),
        )
        self.expand = ConvBNReLU(out_channels, out_channels, 1, relu=False)
        shortcut: list[nn.Module] = [nn.AvgPool2d(2, ceil_mode=True)] if stride == 2 else []
        if stride == 2 or in_channels != out_channels:
            shortcut += [*ConvBNReLU(in_channels, out_channels, 1, relu=False)]
        self.shortcut = nn.Sequential(*shortcut)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        split = self.reduce(x).chunk(len(self.parts), dim=1)
        out = torch.cat([conv(c) for conv, c in zip(self.parts, split, strict=True)], dim=1)
        out = out * self.attention(out.mean(dim=(2, 3), keepdim=True))
        result: Tensor = self.relu(self.expand(out) + self.shortcut(x))
        return result


class RegSeg(Network):
    """Stem, D blocks down to stride 16, a decoder over strides 16, 8 and 4.

    Args:
        num_classes: C.
        dilations: the second dilation of each D block at stride 16 after the first one; the first
            is 1, and 1 alone where the second is 1 too.

    Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode a list of them alone.
    """

    input_multiple = 16

    def __init__(self, num_classes: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        pairs = [(1,) if d == 1 else (1, d) for d in dilations]
        self.stem = ConvBNReLU(3, 32, stride=2)
        self.stage4 = DilatedBlock(32, 48, stride=2)
        self.stage8 = nn.Sequential(
            DilatedBlock(48, 128, stride=2), DilatedBlock(128, 128), DilatedBlock(128, 128)
        )
        self.stage16 = nn.Sequential(
            DilatedBlock(128, 256, stride=2),
            *(DilatedBlock(256, 256, pair) for pair in pairs[:-1]),
            DilatedBlock(256, 320, pairs[-1]),
        )
        self.head16 = ConvBNReLU(320, 128, 1)
        self.head8 = ConvBNReLU(128, 128, 1)
        self.head4 = ConvBNReLU(48, 8, 1)
        self.fuse8 = ConvBNReLU(128, 64)
        self.fuse4 = ConvBNReLU(64 + 8, 64)
        self.classifier = nn.Conv2d(64, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        fine = self.stage4(self.stem(images))  # (N, 48, H / 4, W / 4)
        middle = self.stage8(fine)  # (N, 128, H / 8, W / 8)
        coarse = self.head16(self.stage16(middle))  # (N, 128, H / 16, W / 16)
        middle = self.head8(middle)
        middle = self.fuse8(middle + resize_like(coarse, middle))  # (N, 64, H / 8, W / 8)
        fine = self.head4(fine)
        fine = self.fuse4(torch.cat((resize_like(middle, fine), fine), dim=1))
        logits: Tensor = self.classifier(fine)
        return [logits] if self.training else logits


def build(
    num_classes: int,
    *,
    dilations: tuple[int, ...] = (1, 2, 4, 4, 4, 4, 14, 14, 14, 14, 14, 14, 14),
) -> RegSeg:
    """A RegSeg; see the class."""
    return RegSeg(num_classes, tuple(dilations))
