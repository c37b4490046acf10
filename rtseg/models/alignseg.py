"""AlignSeg: features of all levels, and their context, moved onto each other before they are added.

Huang et al., "AlignSeg: Feature-Aligned Segmentation Networks", TPAMI 2021: aligned feature
aggregation (section 3.2, figure 3), aligned context modelling (section 3.3, figure 4), the network
(figure 2) with the residual refinement of Yu et al., "Learning a Discriminative Feature Network
for Semantic Segmentation", CVPR 2018. The aggregation runs from the finest level to the deepest,
at stride 4 throughout. As in the authors' code the decoder's activations are leaky, by 0.01, and
the context is pooled to 3x3; offsets are measured as `flow_warp` measures them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.backbones.resnet import DEEP_STEM, ResNet, resnet
from rtseg.models.context import adaptive_average
from rtseg.models.layers import ConvBNReLU, Network, segmentation_head
from rtseg.models.resampling import flow_warp, upsample_like

PAPER = "AlignSeg: Feature-Aligned Segmentation Networks"
YEAR = 2021
VARIANTS = {
    "alignseg-r50": Variant({"depth": 50}),
    "alignseg-r101": Variant({"depth": 101}, (Reported(0.826, split="test"),)),
}


class ResidualRefinement(nn.Module):
    """1x1 convolution, then a bottleneck of two 3x3: (N, in_channels, ...) to (N, width, ...)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.unify = nn.Conv2d(in_channels, width, 1, bias=False)
        self.residual = nn.Sequential(
            ConvBNReLU(width, width // 4, activation=nn.LeakyReLU),
            nn.Conv2d(width // 4, width, 3, padding=1, bias=False),
        )
        self.norm = nn.Sequential(nn.BatchNorm2d(width), nn.LeakyReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.unify(x)
        out: Tensor = self.norm(x + self.residual(x))
        return out


class Offsets(nn.Sequential):
    """Two maps side by side, (N, 2 * width, H, W), to offsets (N, 2, H, W): 0 at first."""

    def __init__(self, width: int) -> None:
        last = nn.Conv2d(width, 2, 3, padding=1, bias=False)
        nn.init.zeros_(last.weight)
        super().__init__(ConvBNReLU(2 * width, width, 1, activation=nn.LeakyReLU), last)


class AlignedAggregation(nn.Module):
    """Low (N, C, H, W) and high (N, C, h, w), each moved by its own offsets, to their sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.low_offsets, self.high_offsets = Offsets(width), Offsets(width)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        high = upsample_like(high, low)
        both = torch.cat((low, high), dim=1)
        return flow_warp(low, self.low_offsets(both)) + flow_warp(high, self.high_offsets(both))


class AlignedContext(nn.Module):
    """Each pixel picks its context from a 3x3 summary of the image.

    (N, in_channels, h, w) to (N, width, h, w).
    """

    bins = 3

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.summarise = self._convolutions(in_channels, width)
        self.adapt = self._convolutions(in_channels, width)
        self.offsets = Offsets(width)

    @staticmethod
    def _convolutions(in_channels: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            ConvBNReLU(in_channels, in_channels, 1, activation=nn.LeakyReLU),
            ConvBNReLU(in_channels, width, activation=nn.LeakyReLU),
        )

    def forward(self, x: Tensor) -> Tensor:
        summary = self.summarise(adaptive_average(x, self.bins))  # (N, width, 3, 3)
        local: Tensor = self.adapt(x)
        both = torch.cat((local, upsample_like(summary, local)), dim=1)
        return local + flow_warp(summary, self.offsets(both))


class AlignSeg(Network):
    """Backbone, aligned aggregation of its four levels and of their context, head.

    Args:
        num_classes: C.
        backbone: gives four feature maps at strides 4, 8, 16 and 32.
        width: channels of the decoder.

    Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode a list with the
    auxiliary logits of the first three levels' aggregate as well, at the same stride.
    """

    align_corners = True

    def __init__(self, num_classes: int, backbone: ResNet, width: int = 256) -> None:
        super().__init__()
        self.backbone = backbone
        first, *deeper = backbone.channels
        self.context = AlignedContext(deeper[-1], width)
        self.first = ResidualRefinement(first, width)
        self.refine = nn.ModuleList(ResidualRefinement(c, width) for c in (*deeper, width))
        self.aggregate = nn.ModuleList(AlignedAggregation(width) for _ in self.refine)
        self.merge = nn.ModuleList(ResidualRefinement(width, width) for _ in self.refine)
        self.head = segmentation_head(width, width, num_classes)
        self.auxiliary = segmentation_head(width, width, num_classes)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        first, *deeper = self.backbone(images)
        deeper.append(self.context(deeper[-1]))
        x = self.first(first)  # (N, width, H / 4, W / 4) throughout
        steps = []
        modules = zip(self.refine, self.aggregate, self.merge, deeper, strict=True)
        for refine, aggregate, merge, level in modules:
            x = merge(aggregate(x, refine(level)))
            steps.append(x)
        logits: Tensor = self.head(x)
        return [logits, self.auxiliary(steps[1])] if self.training else logits


def build(num_classes: int, *, depth: Literal[50, 101] = 50, width: int = 256) -> AlignSeg:
    """An AlignSeg over a ResNet with the deep stem."""
    return AlignSeg(num_classes, resnet(depth, stem_channels=DEEP_STEM), width)
