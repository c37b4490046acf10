"""Semantic FPN: a feature pyramid over a plain ResNet, its levels summed at stride 4.

Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, the semantic branch (section 3),
over the pyramid of Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017. This is
the plainest form: one 3x3 convolution on each of the four levels of the top-down pathway, where
the paper has up to three more on the way to stride 4; then bilinear upsampling, a sum, and a 1x1
classifier. `build`'s defaults are `fpn-r18`: a plain ResNet-18 and 128 channels, 9.1 GMACs at
384x480 with 11 classes. It is the yardstick of `benchmarks/speed.py`, so nothing here is tuned.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.errors import ConfigError
from rtseg.models import Variant
from rtseg.models.backbones.efficientnet_lite import efficientnet_lite0
from rtseg.models.backbones.mobilenet import InvertedResiduals
from rtseg.models.backbones.resnet import DEPTHS, ResNet
from rtseg.models.layers import ConvBNReLU, Network
from rtseg.models.resampling import resize_like

PAPER = "Panoptic Feature Pyramid Networks"
YEAR = 2019

_WIDE = {"channels": (256, 512, 1024, 2048), "block": "bottleneck"}
VARIANTS = {
    "fpn-r18": Variant(),
    "fpn-r50": Variant({**_WIDE, "blocks": DEPTHS[50]}),
    "fpn-r101": Variant({**_WIDE, "blocks": DEPTHS[101]}),
    "fpn-efficientnet-lite0": Variant({"backbone": "efficientnet-lite0"}),
}


class SemanticFPN(Network):
    """Backbone, top-down pathway, a 3x3 convolution per level, their sum, classifier.

    Args:
        num_classes: C.
        backbone: gives four feature maps at strides 4, 8, 16 and 32.
        width: channels of the pyramid.

    Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode a list of them alone.
    """

    def __init__(
        self, num_classes: int, backbone: ResNet | InvertedResiduals, width: int = 128
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in backbone.channels)
        self.levels = nn.ModuleList(ConvBNReLU(width, width) for _ in backbone.channels)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        features = self.backbone(images)
        pyramid: list[Tensor] = []  # coarsest first
        for lateral, x in zip(reversed(self.laterals), reversed(features), strict=True):
            level = lateral(x)
            if pyramid:
                above = F.interpolate(pyramid[-1], size=level.shape[-2:], mode="nearest")
                level = level + above
            pyramid.append(level)
        fine, *coarser = (conv(x) for conv, x in zip(self.levels, pyramid[::-1], strict=True))
        for level in coarser:
            fine = fine + resize_like(level, fine)
        logits: Tensor = self.classifier(fine)
        return [logits] if self.training else logits


def build(
    num_classes: int,
    *,
    stem_channels: tuple[int, ...] = (64,),
    channels: tuple[int, int, int, int] = (64, 128, 256, 512),
    blocks: tuple[int, int, int, int] = (2, 2, 2, 2),
    width: int = 128,
    block: Literal["basic", "bottleneck"] = "basic",
    backbone: Literal["resnet", "efficientnet-lite0"] = "resnet",
) -> SemanticFPN:
    """A semantic FPN over a ResNet of the given widths and depths, or over EfficientNet-Lite0."""
    if backbone == "efficientnet-lite0":
        return SemanticFPN(num_classes, efficientnet_lite0(), width)
    if backbone != "resnet":
        raise ConfigError(f"backbone is resnet or efficientnet-lite0, not {backbone!r}")
    return SemanticFPN(num_classes, ResNet(stem_channels, channels, blocks, block=block), width)
