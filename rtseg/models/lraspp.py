"""LR-ASPP: a light head of two inputs over MobileNetV3.

Howard et al., "Searching for MobileNetV3", ICCV 2019, section 6.4 and figure 10. The code follows
torchvision's network: the weights of the channels are a global average, where the paper pools over
windows of 49x49, and the finer input is of stride 8.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.mobilenet import MobileNetV3Large
from rtseg.models.layers import ConvBNReLU, Network
from rtseg.models.resampling import resize_like

PAPER = "Searching for MobileNetV3"
YEAR = 2019
# Of torchvision, on the 21 classes of Pascal VOC.
VARIANTS = {"lraspp-mobilenetv3-large": Variant({}, (Reported(0.579, data="coco", split="val"),))}

RELEASES = (
    Release(
        rules=(
            (r"^backbone\.(\d)", r"backbone.layers.\1"),
            (r"^classifier\.scale\.1\.", "weigh."),
            (r"^classifier\.cbr\.", "reduce."),
            (r"^classifier\.(low|high)_classifier\.", r"\1_classifier."),
        ),
        classifier="low_classifier.weight",
        source="torchvision",
    ),
)


class LRASPP(Network):
    """MobileNetV3-large, attention over the channels of its last map, two classifiers summed.

    Args:
        num_classes: C.
        backbone: gives its second map at stride 8, the last at 16 or 32.
        width: channels of the reduced last map.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list of them alone.
    """

    output_stride = 8

    def __init__(self, num_classes: int, backbone: MobileNetV3Large, width: int = 128) -> None:
        super().__init__()
        self.backbone = backbone
        low, high = backbone.channels[1], backbone.channels[-1]
        self.reduce = ConvBNReLU(high, width, 1)
        self.weigh = nn.Conv2d(high, width, 1, bias=False)
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        _, low, _, high = self.backbone(images)
        weights = torch.sigmoid(self.weigh(high.mean(dim=(2, 3), keepdim=True)))
        context = resize_like(self.reduce(high) * weights, low)
        logits: Tensor = self.low_classifier(low) + self.high_classifier(context)
        return [logits] if self.training else logits


def build(num_classes: int, *, width: int = 128, output_stride: Literal[16, 32] = 16) -> LRASPP:
    """LR-ASPP over MobileNetV3-large, whose last blocks are dilated to `output_stride`."""
    return LRASPP(num_classes, MobileNetV3Large(output_stride=output_stride), width)
