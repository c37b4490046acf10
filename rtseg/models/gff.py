"""GFF: all levels exchange what their gates let through, then a dense pyramid adds the context.

Li et al., "Gated Fully Fusion for Semantic Segmentation", AAAI 2020: gated fully fusion (figure 2),
dense feature pyramid and network (figure 3), over a PSPNet of stride 8. A gate is one number per
pixel, of its level's reduced features. The pyramid's maps keep their own strides, 8 and in the end
4, where the paper does not say; the head is a 3x3 convolution and the classifier.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.backbones.resnet import DEEP_STEM, ResNet, resnet
from rtseg.models.context import PyramidPooling
from rtseg.models.layers import ConvBNReLU, Network, segmentation_head
from rtseg.models.resampling import upsample_like

PAPER = "Gated Fully Fusion for Semantic Segmentation"
YEAR = 2020
VARIANTS = {
    "gff-r50": Variant({"depth": 50}),
    "gff-r101": Variant({"depth": 101}, (Reported(0.823, split="test"),)),
}


class GatedFullyFusion(nn.Module):
    """Each level takes from the others what their gates give and its own gate lacks.

    With gates G = sigmoid(conv(X)), one number per pixel, level l becomes
    (1 + G_l) X_l + (1 - G_l) * sum over i != l of G_i X_i, resized to it.

    A list of maps (N, C, h_l, w_l) to one of the same shapes.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in range(levels))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        gates = [torch.sigmoid(gate(x)) for gate, x in zip(self.gates, features, strict=True)]
        given = [gate * x for gate, x in zip(gates, features, strict=True)]
        fused = []
        for i, (gate, x) in enumerate(zip(gates, features, strict=True)):
            taken = sum(upsample_like(g, x) for j, g in enumerate(given) if j != i)
            fused.append(x + given[i] + (1.0 - gate) * taken)
        return fused


class DenseFeaturePyramid(nn.Module):
    """Context flows down to the finest level, each level seeing all maps above it.

    Context (N, C, h, w) and levels (N, C, h_l, w_l), deepest first, to the list of the context
    and one map per level, of the same shapes.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvBNReLU((i + 2) * channels, channels) for i in range(levels))

    def forward(self, context: Tensor, levels: list[Tensor]) -> list[Tensor]:
        maps = [context]
        for conv, x in zip(self.convs, levels, strict=True):
            above = [upsample_like(y, x) for y in maps]
            maps.append(conv(torch.cat((*above, x), dim=1)))
        return maps


class GFFNet(Network):
    """Backbone, pyramid pooling, gated fully fusion, dense feature pyramid, head.

    Args:
        num_classes: C.
        backbone: gives four feature maps, of which the last three at stride 8.
        width: channels of the decoder.

    Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode a list with the
    auxiliary logits of the backbone's third stage (N, C, H / 8, W / 8) as well.
    """

    align_corners = True
    input_multiple = 8

    def __init__(self, num_classes: int, backbone: ResNet, width: int = 256) -> None:
        super().__init__()
        self.backbone = backbone
        deepest, levels = backbone.channels[-1], len(backbone.channels)
        self.context = PyramidPooling(deepest, width, branch_channels=deepest // 4, kernel_size=3)
        self.reduce = nn.ModuleList(ConvBNReLU(c, width, 1) for c in backbone.channels)
        self.fusion = GatedFullyFusion(width, levels)
        self.refine = nn.ModuleList(
            nn.Sequential(ConvBNReLU(width, width), ConvBNReLU(width, width)) for _ in range(levels)
        )
        self.pyramid = DenseFeaturePyramid(width, levels)
        self.head = segmentation_head((levels + 1) * width, width, num_classes)
        self.auxiliary = segmentation_head(backbone.channels[2], width, num_classes)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        features = self.backbone(images)
        reduced = [conv(x) for conv, x in zip(self.reduce, features, strict=True)]
        fused = [conv(x) for conv, x in zip(self.refine, self.fusion(reduced), strict=True)]
        maps = self.pyramid(self.context(features[-1]), fused[::-1])  # the finest one is last
        joined = torch.cat([upsample_like(y, maps[-1]) for y in maps], dim=1)
        logits: Tensor = self.head(joined)
        return [logits, self.auxiliary(features[2])] if self.training else logits


def build(num_classes: int, *, depth: Literal[50, 101] = 50, width: int = 256) -> GFFNet:
    """A GFF over a ResNet with the deep stem and stride 8."""
    backbone = resnet(depth, stem_channels=DEEP_STEM, output_stride=8, dilate_entry=True)
    return GFFNet(num_classes, backbone, width)
