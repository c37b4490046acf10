"""What DDRNet, PIDNet and SCTNet have in common: stem, residual stages, pyramid pooling.

Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of
Road Scenes", 2021 (arXiv:2101.06085), section III. PIDNet (Xu et al., CVPR 2023) and SCTNet (Xu et
al., AAAI 2024) take them over.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtseg.models.backbones.resnet import BasicBlock, Bottleneck
from rtseg.models.layers import NormReLUConv
from rtseg.models.resampling import resize_like

RELEASE_RULES: tuple[tuple[str, str], ...] = (
    (r"^conv1\.", "stem."),
    (r"^final_layer\.bn1\.", "head.norm."),
    (r"^final_layer\.conv1\.", "head.conv.0."),
    (r"^final_layer\.bn2\.", "head.conv.1."),
    (r"^final_layer\.conv2\.", "head.classifier."),
    (r"^spp\.scale(\d)\.", r"context.scales.\1."),
    (r"^spp\.process(\d)\.", r"context.refine.\1."),
    (r"^spp\.scale_process\.", "context.refine."),
    (r"^spp\.", "context."),
    (r"\.conv(\d)\.weight$", r".conv\1.0.weight"),
    (r"\.bn(\d)\.", r".conv\1.1."),
    (r"\.downsample\.", ".shortcut."),
)
"""`Release` rules for what the authors of DDRNet and of PIDNet name alike."""

_POOLS = ((5, 2), (9, 4), (17, 8))
"""(Kernel size, stride) of the average pools between the input itself and its global mean."""


def dual_stem(width: int) -> nn.Sequential:
    """Two 3x3 convolutions of stride 2, with a bias as published: (N, 3, H, W) to H / 4."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def residual_stage(
    in_channels: int, out_channels: int, depth: int, stride: int = 1
) -> nn.Sequential:
    """Basic blocks, at least two, the last without its final ReLU.

    (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)), any sign.
    """
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride),
        *(BasicBlock(out_channels, out_channels, relu=i < depth - 1) for i in range(1, depth)),
    )


def linear_bottleneck(in_channels: int, width: int, stride: int = 1) -> Bottleneck:
    """A bottleneck to twice its inner width, without the final ReLU.

    (N, in_channels, H, W) to (N, 2 width, ceil(H / stride), ceil(W / stride)), any sign.
    """
    return Bottleneck(in_channels, 2 * width, stride, relu=False, reduction=2)


class _Pyramid(nn.Module):
    """The input, three average pools of it and its global mean, each reduced to `width` channels.

    The pools count the zeros around the map, as published. The mean is spread by broadcasting,
    which is what bilinear up-sampling of one pixel gives.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int) -> None:
        super().__init__()
        pools = [nn.AvgPool2d(size, stride, padding=size // 2) for size, stride in _POOLS]
        self.scales = nn.ModuleList(
            nn.Sequential(*pool, *NormReLUConv(in_channels, width, 1))
            for pool in ((), *((p,) for p in pools), (nn.AdaptiveAvgPool2d(1),))
        )
        self.compression = NormReLUConv(5 * width, out_channels, 1)
        self.shortcut = NormReLUConv(in_channels, out_channels, 1)

    def levels(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The level of the input's own size, and the coarser ones, ready to be added to it."""
        finest, *pooled, mean = (scale(x) for scale in self.scales)
        return finest, [*(resize_like(level, x) for level in pooled), mean]

    def joined(self, levels: list[Tensor], x: Tensor) -> Tensor:
        out: Tensor = self.compression(torch.cat(levels, dim=1)) + self.shortcut(x)
        return out


class DeepAggregation(_Pyramid):
    """Deep aggregation pyramid pooling (DAPPM): each level is added to the one before and refined.

    Hong et al., section III, "Deep Aggregation Pyramid Pooling Module".
    (N, in_channels, h, w) to (N, out_channels, h, w).
    """

    def __init__(self, in_channels: int, width: int, out_channels: int) -> None:
        super().__init__(in_channels, width, out_channels)
        self.refine = nn.ModuleList(
            [nn.Identity(), *(NormReLUConv(width, width) for _ in range(4))]
        )

    def forward(self, x: Tensor) -> Tensor:
        finest, coarser = self.levels(x)
        levels = [self.refine[0](finest)]
        for level, refine in zip(coarser, self.refine[1:], strict=True):
            levels.append(refine(level + levels[-1]))
        return self.joined(levels, x)


class ParallelAggregation(_Pyramid):
    """Parallel aggregation pyramid pooling (PAPPM): all levels refined at once, none by another.

    Xu et al., "PIDNet", CVPR 2023, section 3: one grouped convolution for the four.
    (N, in_channels, h, w) to (N, out_channels, h, w).
    """

    def __init__(self, in_channels: int, width: int, out_channels: int) -> None:
        super().__init__(in_channels, width, out_channels)
        self.refine = NormReLUConv(4 * width, 4 * width, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        finest, coarser = self.levels(x)
        refined = self.refine(torch.cat([level + finest for level in coarser], dim=1))
        return self.joined([finest, refined], x)
