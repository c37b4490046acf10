"""DeepLab v1: VGG-16 with dilated convolutions, so that its scores are eight times finer.

Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs",
ICLR 2015: section 3.1 (dilation: the "hole algorithm"), section 3.2 and table 2 (the field of view
of fc6: "DeepLab-LargeFOV", 3x3 with a dilation of 12, 1024 channels). As in the authors' release
the last two poolings are 3x3 with stride 1; the first three are VGG-16's own.

The fully connected CRF that the paper refines the scores with (section 3.3) is no part of the
network: `rtseg.crf.refine` does that to full-size logits, for still images.
"""

from __future__ import annotations

from torch import Tensor, nn

from rtseg.models import Reported, Variant
from rtseg.models.backbones.vgg import VGG16, fully_convolutional
from rtseg.models.layers import Network

PAPER = "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs"
YEAR = 2015
VARIANTS = {
    # Table 1, DeepLab-LargeFOV without the CRF; 0.6764 with it.
    "deeplab-v1": Variant({}, (Reported(0.6225, data="pascal-voc"),)),
}


class DeepLabV1(Network):
    """Dilated VGG-16, fc6 with a large field of view, fc7, scores.

    Args:
        num_classes: C.
        width: channels of fc6 and fc7.
        dilation: of fc6, whose kernel is 3x3.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list of them alone.
    """

    output_stride = 8
    input_multiple = 8

    def __init__(self, num_classes: int, width: int = 1024, dilation: int = 12) -> None:
        super().__init__()
        self.backbone = VGG16(output_stride=8)
        self.fully = fully_convolutional(self.backbone.channels[-1], width, 3, dilation)
        self.score = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.score.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        deepest = self.backbone(images)[-1]  # (N, 512, H / 8, W / 8)
        scores: Tensor = self.score(self.fully(deepest))
        return [scores] if self.training else scores


def build(num_classes: int, *, width: int = 1024, dilation: int = 12) -> DeepLabV1:
    """A DeepLab v1 over VGG-16; see the class."""
    return DeepLabV1(num_classes, width, dilation)
