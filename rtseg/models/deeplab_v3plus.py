"""DeepLab v3+: DeepLab v3 as an encoder, and a small decoder that brings edges back.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation",
ECCV 2018: the decoder (section 3.1 and figure 2; its widths, 48 channels and two 3x3 convolutions
of 256, section 4.1), separable convolutions in pyramid and decoder for the light encoder, as the
paper has them for Xception (section 4.3). Left out: Xception itself.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from rtseg.errors import ConfigError
from rtseg.models import Reported, Variant
from rtseg.models.backbones.mobilenet import InvertedResiduals, mobilenet_v2
from rtseg.models.backbones.resnet import ResNet, resnet
from rtseg.models.context import AtrousPyramid
from rtseg.models.layers import ConvBNReLU, DepthwiseSeparable, Network
from rtseg.models.resampling import upsample_like

PAPER = "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation"
YEAR = 2018
BACKBONES = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101}
"""ResNets by depth, beside "mobilenetv2"."""
VARIANTS = {
    "deeplab-v3plus-mobilenetv2": Variant(),
    "deeplab-v3plus-r50": Variant({"backbone": "resnet50", "separable": False}),
    "deeplab-v3plus-r101": Variant(
        {"backbone": "resnet101", "separable": False},
        (Reported(0.7885, data="pascal-voc"),),  # table 3
    ),
}


class DeepLabV3Plus(Network):
    """Dilated backbone, atrous pyramid, decoder with the features of stride 4, classifier.

    Args:
        num_classes: C.
        backbone: four maps, the first at stride 4, the last at `output_stride`.
        output_stride: of the backbone: 16 or 8.
        separable: whether 3x3 convolutions outside the backbone are depthwise separable.

    Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode a list of them alone.
    """

    align_corners = True

    def __init__(
        self,
        num_classes: int,
        backbone: ResNet | InvertedResiduals,
        output_stride: int = 16,
        *,
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.input_multiple = output_stride
        self.backbone = backbone
        fine, *_, deepest = backbone.channels
        step = 96 // output_stride
        self.context = AtrousPyramid(
            deepest, 256, (step, 2 * step, 3 * step), separable=separable, dropout=0.1
        )
        self.lateral = ConvBNReLU(fine, 48, 1)
        conv = DepthwiseSeparable if separable else ConvBNReLU
        self.decoder = nn.Sequential(conv(256 + 48, 256), conv(256, 256))
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        fine, *_, deepest = self.backbone(images)
        low = self.lateral(fine)  # (N, 48, H / 4, W / 4)
        high = upsample_like(self.context(deepest), low)  # (N, 256, H / 4, W / 4)
        logits: Tensor = self.classifier(self.decoder(torch.cat((high, low), dim=1)))
        return [logits] if self.training else logits


def build(
    num_classes: int,
    *,
    backbone: str = "mobilenetv2",
    output_stride: Literal[8, 16] = 16,
    separable: bool = True,
) -> DeepLabV3Plus:
    """A DeepLab v3+ over MobileNetV2 or one of `BACKBONES`."""
    if backbone == "mobilenetv2":
        encoder: ResNet | InvertedResiduals = mobilenet_v2(output_stride=output_stride)
    elif backbone in BACKBONES:
        encoder = resnet(BACKBONES[backbone], output_stride=output_stride)
    else:
        raise ConfigError(f"backbone is mobilenetv2, {', '.join(BACKBONES)}, not {backbone!r}")
    return DeepLabV3Plus(num_classes, encoder, output_stride, separable=separable)
