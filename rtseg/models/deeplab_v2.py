"""DeepLab v2: a ResNet dilated to stride 8, and scores that are summed over four dilations.

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs", TPAMI 2018: dilation (section 3.1), atrous spatial pyramid
pooling (section 3.2 and figure 4, rates of "ASPP-L"). With ResNet each branch of it is a single
convolution to the classes. Left out: the maximum over three scales of the input, the VGG-16
variant, and the fully connected CRF after the network.
"""

from __future__ import annotations

from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.backbones.resnet import ResNet, resnet
from rtseg.models.layers import Network

PAPER = (
    "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, "
    "and Fully Connected CRFs"
)
YEAR = 2018
VARIANTS = {
    "deeplab-v2-r18": Variant(),
    # With the CRF and at three scales.
    "deeplab-v2-r101": Variant({"depth": 101}, (Reported(0.704, split="test, with CRF"),)),
}


class DeepLabV2(Network):
    """Dilated backbone, four dilated 3x3 classifiers, their sum.

    Args:
        num_classes: C.
        backbone: its last map is at stride 8.
        rates: the classifiers' dilations.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list of them alone.
    """

    output_stride = 8
    align_corners = True
    input_multiple = 8

    def __init__(
        self, num_classes: int, backbone: ResNet, rates: tuple[int, ...] = (6, 12, 18, 24)
    ) -> None:
        super().__init__()
        self.backbone = backbone
        deepest = backbone.channels[-1]
        self.classifiers = nn.ModuleList(
            nn.Conv2d(deepest, num_classes, 3, padding=rate, dilation=rate) for rate in rates
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        *_, deepest = self.backbone(images)
        first, *others = (classifier(deepest) for classifier in self.classifiers)
        logits: Tensor = first
        for scores in others:
            logits = logits + scores
        return [logits] if self.training else logits


def build(num_classes: int, *, depth: int = 18) -> DeepLabV2:
    """A DeepLab v2 over the ResNet of this depth."""
    return DeepLabV2(num_classes, resnet(depth, output_stride=8, dilate_entry=True))
