"""BiSeNet: a shallow spatial path for where, a deep context path for what, and their fusion.

Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation", ECCV
2018: section 3 and figure 2. The authors' weights are of another framework; in use is the
re-implementation CoinCheung/BiSeNet, whose order of the context path and widths this follows. Left
out: Xception39, the lighter backbone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.resnet import TORCHVISION_KEYS, ResNet, resnet
from rtseg.models.context import BISENET_KEYS, ContextPath, FeatureFusion
from rtseg.models.layers import ConvBNReLU, Network, segmentation_head

PAPER = "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation"
YEAR = 2018
_ON_R18 = (
    Reported(0.748, fps=65.5, size=(768, 1536), device="Titan XP"),
    Reported(0.747, split="test", fps=65.5, size=(768, 1536), device="Titan XP"),
)
VARIANTS = {
    "bisenetv1-r18": Variant({"depth": 18}, _ON_R18, editions=({"edition": 2019},)),
    "bisenetv1-r101": Variant({"depth": 101}, (Reported(0.803), Reported(0.789, split="test"))),
}
RELEASES = (
    Release(
        rules=(
            (r"^cp\.resnet\.", "backbone."),
            *TORCHVISION_KEYS,
            (r"^sp\.", "spatial."),
            *BISENET_KEYS,
        ),
        dropped=(r"conv_out(16|32)\.",),
        classifier="head.2.weight",
        mean=(0.3257, 0.3690, 0.3223),
        std=(0.2112, 0.2148, 0.2115),
        source="CoinCheung/BiSeNet",
    ),
)


class BiSeNetV1(Network):
    """Spatial path, context path over a backbone, fusion, classifier.

    Args:
        num_classes: C.
        backbone: gives four feature maps at strides 4, 8, 16 and 32.
        width: channels of either path; the fusion and the head have twice as many.
        edition: 2021, where the fusion's attention is one convolution with norm; 2019, where it is
            two convolutions, as in the paper, the classifiers have no bias and the logits' corners
            are aligned.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the
    auxiliary logits of the context path at strides 8 and 16 as well.
    """

    output_stride = 8

    def __init__(
        self,
        num_classes: int,
        backbone: ResNet,
        width: int = 128,
        edition: Literal[2019, 2021] = 2021,
    ) -> None:
        super().__init__()
        as_in_paper = edition == 2019
        self.align_corners = as_in_paper
        _, _, coarse, deepest = backbone.channels
        self.backbone = backbone
        self.spatial = nn.Sequential(
            OrderedDict(
                conv1=ConvBNReLU(3, 64, 7, 2),
                conv2=ConvBNReLU(64, 64, 3, 2),
                conv3=ConvBNReLU(64, 64, 3, 2),
                conv_out=ConvBNReLU(64, width, 1),
            )
        )
        self.context = ContextPath(coarse, deepest, width)
        self.fusion = FeatureFusion(2 * width, 2 * width, reduction=4 if as_in_paper else 0)
        bias = not as_in_paper
        self.head = segmentation_head(2 * width, 2 * width, num_classes, 0.0, bias=bias)
        self.auxiliary = nn.ModuleList(
            segmentation_head(width, 64, num_classes, 0.0, bias=bias) for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        spatial = self.spatial(images)  # (N, width, H / 8, W / 8)
        _, middle, coarse, deepest = self.backbone(images)
        context = self.context(middle, coarse, deepest)
        logits: Tensor = self.head(self.fusion(spatial, context[0]))
        if self.training:
            return [logits, *(head(x) for head, x in zip(self.auxiliary, context, strict=True))]
        return logits


def build(
    num_classes: int,
    *,
    depth: int = 18,
    width: int = 128,
    edition: Literal[2019, 2021] = 2021,
) -> BiSeNetV1:
    """A BiSeNet over a ResNet of this depth; see the class."""
    return BiSeNetV1(num_classes, resnet(depth), width, edition)
