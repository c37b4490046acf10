"""DeepLab v3: a dilated ResNet and a pyramid of dilations that also sees the whole image.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017: the pyramid
(section 3.3 and figure 5), its rates doubled from stride 16 to 8. The layout is torchvision's: a
3x3 convolution before the classifier, an auxiliary head on the stage before the last. Left out:
the multi-grid of section 3.1, which torchvision has not either.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.resnet import TORCHVISION_KEYS, ResNet, resnet
from rtseg.models.context import AtrousPyramid
from rtseg.models.layers import ConvBNReLU, Network, segmentation_head

PAPER = "Rethinking Atrous Convolution for Semantic Image Segmentation"
YEAR = 2017
VARIANTS = {
    "deeplab-v3-r18": Variant(),
    # On COCO: torchvision's own, on images that have the classes of PASCAL VOC. On Cityscapes:
    # the authors', trained with the coarse labels too, at several scales.
    "deeplab-v3-r50": Variant({"depth": 50}, (Reported(0.664, data="coco"),)),
    "deeplab-v3-r101": Variant(
        {"depth": 101}, (Reported(0.813, split="test"), Reported(0.674, data="coco"))
    ),
}
RELEASES = (
    Release(
        (
            *TORCHVISION_KEYS,
            (r"^classifier\.0\.convs\.([0-3])\.", r"context.branches.\1."),
            (r"^classifier\.0\.convs\.4\.1\.", "context.pooled.0."),
            (r"^classifier\.0\.convs\.4\.2\.", "context.pooled.1."),
            (r"^classifier\.0\.project\.", "context.project."),
            (r"^classifier\.1\.", "head.0.0."),
            (r"^classifier\.2\.", "head.0.1."),
            (r"^classifier\.4\.", "head.1."),
        ),
        dropped=(r"aux_classifier\.",),
        classifier="head.1.weight",
        source="torchvision",
    ),
)


class DeepLabV3(Network):
    """Dilated backbone, atrous pyramid, 3x3 convolution, classifier.

    Args:
        num_classes: C.
        backbone: its last map is at `output_stride`.
        output_stride: 8 or 16.

    Forward: (N, 3, H, W) to logits (N, C, H / output_stride, W / output_stride); in training mode
    a list with the auxiliary logits of the same size.
    """

    def __init__(self, num_classes: int, backbone: ResNet, output_stride: int = 8) -> None:
        super().__init__()
        self.output_stride = self.input_multiple = output_stride
        self.backbone = backbone
        *_, middle, deepest = backbone.channels
        step = 96 // output_stride
        self.context = AtrousPyramid(deepest, 256, (step, 2 * step, 3 * step))
        self.head = nn.Sequential(ConvBNReLU(256, 256), nn.Conv2d(256, num_classes, 1))
        self.auxiliary = segmentation_head(middle, middle // 4, num_classes)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        *_, middle, deepest = self.backbone(images)
        logits: Tensor = self.head(self.context(deepest))
        return [logits, self.auxiliary(middle)] if self.training else logits


def build(num_classes: int, *, depth: int = 18, output_stride: Literal[8, 16] = 8) -> DeepLabV3:
    """A DeepLab v3 over the ResNet of this depth."""
    return DeepLabV3(num_classes, resnet(depth, output_stride=output_stride), output_stride)
