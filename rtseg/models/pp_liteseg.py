"""PP-LiteSeg: simple pyramid pooling, then fusions by spatial attention in a narrowing decoder.

Peng et al., "PP-LiteSeg: A Superior Real-Time Semantic Segmentation Model", 2022
(arXiv:2204.02681): the flexible and lightweight decoder (section 3.1), the unified attention fusion
module with spatial attention (section 3.2 and figure 4), simple pyramid pooling (section 3.3 and
figure 5), over STDC1 and STDC2. Widths as in the authors' code in PaddleSeg, where the three levels
at strides 8, 16 and 32 are fused. Left out: fusion by channel attention, the paper's other choice.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from rtseg.models import Variant, camvid_on_gtx_1080_ti, on_gtx_1080_ti
from rtseg.models.backbones.stdc import STDC, stdc
from rtseg.models.context import adaptive_average
from rtseg.models.layers import ConvBNReLU, Network, segmentation_head
from rtseg.models.resampling import resize_like

PAPER = "PP-LiteSeg: A Superior Real-Time Semantic Segmentation Model"
YEAR = 2022

VARIANTS = {
    "pp-liteseg-t": Variant(
        {"backbone": 1, "widths": (32, 64, 128), "head_width": 32},
        (
            *on_gtx_1080_ti((768, 1536), 0.760, 0.749, 143.6),
            *on_gtx_1080_ti((512, 1024), 0.731, 0.720, 273.6),
            camvid_on_gtx_1080_ti(0.733, 222.3),
        ),
    ),
    "pp-liteseg-b": Variant(
        {"backbone": 2, "widths": (64, 96, 128), "head_width": 64},
        (
            *on_gtx_1080_ti((768, 1536), 0.782, 0.775, 102.6),
            *on_gtx_1080_ti((512, 1024), 0.753, 0.739, 195.3),
            camvid_on_gtx_1080_ti(0.750, 154.8),
        ),
    ),
}


class SimplePyramidPooling(nn.Module):
    """Context at three grid sizes, summed: (N, in_channels, h, w) to (N, width, h, w)."""

    def __init__(
        self, in_channels: int, width: int = 128, bins: tuple[int, ...] = (1, 2, 4)
    ) -> None:
        super().__init__()
        self.bins = bins
        self.branches = nn.ModuleList(ConvBNReLU(in_channels, width, 1) for _ in bins)
        self.conv = ConvBNReLU(width, width)

    def forward(self, x: Tensor) -> Tensor:
        levels = [
            resize_like(branch(adaptive_average(x, bins)), x)
            for bins, branch in zip(self.bins, self.branches, strict=True)
        ]
        out: Tensor = self.conv(reduce(torch.add, levels))
        return out


class AttentionFusion(nn.Module):
    """Mixes a level with the one below it, by shares that are predicted for every pixel.

    The attention looks at the mean and the maximum over the channels of both.

    Args:
        low_channels, high_channels: of the finer level, of the coarser one.
        out_channels: of the result.

    Forward: low (N, low_channels, H, W), high (N, high_channels, h, w) to (N, out_channels, H, W).
    """

    def __init__(self, low_channels: int, high_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = ConvBNReLU(low_channels, high_channels)
        self.attention = nn.Sequential(ConvBNReLU(4, 2), ConvBNReLU(2, 1, relu=False))
        self.conv = ConvBNReLU(high_channels, out_channels)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        low = self.reduce(low)
        high = resize_like(high, low)
        statistics = [s for x in (low, high) for s in (x.mean(1, True), x.amax(1, True))]
        share = torch.sigmoid(self.attention(torch.cat(statistics, dim=1)))  # (N, 1, H, W)
        out: Tensor = self.conv(low * share + high * (1.0 - share))
        return out


class PPLiteSeg(Network):
    """Backbone, pyramid pooling, three fusions from coarse to fine, classifier.

    Args:
        num_classes: C.
        backbone: gives four feature maps at strides 4, 8, 16 and 32.
        widths: channels of the decoder at strides 8, 16 and 32.
        head_width: channels of the head; the auxiliary ones have 64.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the
    auxiliary logits of the decoder at strides 16 and 32 as well.
    """

    output_stride = 8

    def __init__(
        self,
        num_classes: int,
        backbone: STDC,
        widths: tuple[int, int, int] = (32, 64, 128),
        head_width: int = 32,
        context_width: int = 128,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.context = SimplePyramidPooling(backbone.channels[-1], context_width)
        above = (*widths[1:], context_width)
        self.fusions = nn.ModuleList(
            AttentionFusion(low, high, out)
            for low, high, out in zip(backbone.channels[1:], above, widths, strict=True)
        )
        self.head = segmentation_head(widths[0], head_width, num_classes, 0.0, bias=False)
        self.auxiliary = nn.ModuleList(
            segmentation_head(width, 64, num_classes, 0.0, bias=False) for width in widths[1:]
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        _, *levels = self.backbone(images)
        x = self.context(levels[-1])
        decoded: list[Tensor] = []  # finest first
        for fusion, level in zip(reversed(self.fusions), reversed(levels), strict=True):
            x = fusion(level, x)
            decoded.insert(0, x)
        logits: Tensor = self.head(x)
        if self.training:
            heads = zip(self.auxiliary, decoded[1:], strict=True)
            return [logits, *(head(level) for head, level in heads)]
        return logits


def build(
    num_classes: int,
    *,
    backbone: Literal[1, 2] = 1,
    widths: tuple[int, int, int] = (32, 64, 128),
    head_width: int = 32,
) -> PPLiteSeg:
    """PP-LiteSeg over STDC1 or STDC2; see the class."""
    return PPLiteSeg(num_classes, stdc(backbone), widths, head_width)
