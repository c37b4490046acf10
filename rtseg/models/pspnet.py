"""PSPNet: a ResNet dilated to stride 8, and averages over four grids as its context.

Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017: pyramid pooling (section 3.2 and figure
3), dilated ResNet with an auxiliary loss on the stage before the last (section 3.3, figure 4). The
stem of three 3x3 convolutions and the widths are those of the authors' code (semseg).
"""

from __future__ import annotations

from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.resnet import DEEP_STEM, PLAIN_STEM, TORCHVISION_KEYS, ResNet, resnet
from rtseg.models.context import PyramidPooling
from rtseg.models.layers import Network, segmentation_head

PAPER = "Pyramid Scene Parsing Network"
YEAR = 2017
VARIANTS = {
    "pspnet-r18": Variant(),
    # Those on val are of the authors' later code, on one scale.
    "pspnet-r50": Variant({"depth": 50, "deep_stem": True}, (Reported(0.773),)),
    "pspnet-r101": Variant(
        {"depth": 101, "deep_stem": True}, (Reported(0.784, split="test"), Reported(0.7863))
    ),
}
RELEASES = (
    Release(
        (
            *((rf"^layer0\.{i}\.", f"backbone.stem.{i // 3}.{i % 3}.") for i in (0, 1, 3, 4, 6, 7)),
            *TORCHVISION_KEYS,
            (r"^ppm\.features\.(\d)\.1\.", r"context.branches.\1.0."),
            (r"^ppm\.features\.(\d)\.2\.", r"context.branches.\1.1."),
            (r"^cls\.([01])\.", r"context.bottleneck.\1."),
            (r"^cls\.4\.", "head.1."),
        ),
        dropped=(r"aux\.",),
        classifier="head.1.weight",
        source="the authors' release (semseg)",
    ),
)


class PSPNet(Network):
    """Dilated backbone, pyramid pooling, classifier.

    Args:
        num_classes: C.
        backbone: its last map is at stride 8.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the
    auxiliary logits of the same size.
    """

    output_stride = 8
    align_corners = True
    input_multiple = 8

    def __init__(self, num_classes: int, backbone: ResNet) -> None:
        super().__init__()
        self.backbone = backbone
        *_, middle, deepest = backbone.channels
        self.context = PyramidPooling(
            deepest, deepest // 4, branch_channels=deepest // 4, kernel_size=3
        )
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(deepest // 4, num_classes, 1))
        self.auxiliary = segmentation_head(middle, middle // 4, num_classes)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        *_, middle, deepest = self.backbone(images)
        logits: Tensor = self.head(self.context(deepest))
        return [logits, self.auxiliary(middle)] if self.training else logits


def build(num_classes: int, *, depth: int = 18, deep_stem: bool = False) -> PSPNet:
    """A PSPNet over the ResNet of this depth, with the plain or the deep stem."""
    stem = DEEP_STEM if deep_stem else PLAIN_STEM
    backbone = resnet(depth, stem_channels=stem, output_stride=8, dilate_entry=True)
    return PSPNet(num_classes, backbone)
