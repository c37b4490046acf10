"""STDC-Seg: BiSeNet's decoder, with a level of the backbone in place of the spatial path.

Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation", CVPR 2021: section 3.2 and
figure 4; what is not described there is as in the authors' code. The detail head is taught where
classes meet, as `objective` does it for every network, not by BCE and Dice on a Laplacian pyramid
of the labels (section 3.2, figure 4c).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rtseg.models import Release, Variant, camvid_on_gtx_1080_ti, on_gtx_1080_ti
from rtseg.models.backbones.stdc import CLASSIFIER, RULES, STDC, stdc
from rtseg.models.context import BISENET_KEYS, ContextPath, FeatureFusion
from rtseg.models.layers import Network, segmentation_head

PAPER = "Rethinking BiSeNet For Real-time Semantic Segmentation"
YEAR = 2021

VARIANTS = {
    "stdc1-seg": Variant(
        {"backbone": 1},
        (
            *on_gtx_1080_ti((768, 1536), 0.745, 0.753, 126.7),
            *on_gtx_1080_ti((512, 1024), 0.722, 0.719, 250.4),
            camvid_on_gtx_1080_ti(0.730, 197.6),
        ),
    ),
    "stdc2-seg": Variant(
        {"backbone": 2},
        (
            *on_gtx_1080_ti((768, 1536), 0.770, 0.768, 97.0),
            *on_gtx_1080_ti((512, 1024), 0.742, 0.734, 188.6),
            camvid_on_gtx_1080_ti(0.739, 152.2),
        ),
    ),
}
RELEASES = (
    Release(
        rules=((r"^cp\.backbone\.", "backbone."), *RULES, *BISENET_KEYS),
        dropped=(CLASSIFIER, r"conv_out(16|32|_sp\d+)\."),
        classifier="head.2.weight",
        source="the authors' release",
    ),
)


class STDCSeg(Network):
    """Backbone, context path, fusion with the backbone's stride-8 level, classifier.

    Args:
        num_classes: C.
        backbone: gives four feature maps at strides 4, 8, 16 and 32.
        width: channels of the context path; the fusion and the head have twice as many.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the
    auxiliary logits of the context path at strides 8 and 16 and the detail head's
    (N, 1, H / 8, W / 8) as well.
    """

    output_stride = 8
    align_corners = True
    boundary_head = True

    def __init__(self, num_classes: int, backbone: STDC, width: int = 128) -> None:
        super().__init__()
        _, middle, coarse, deepest = backbone.channels
        self.backbone = backbone
        self.context = ContextPath(coarse, deepest, width)
        self.fusion = FeatureFusion(middle + width, 2 * width)
        self.head = segmentation_head(2 * width, 2 * width, num_classes, 0.0, bias=False)
        self.auxiliary = nn.ModuleList(
            segmentation_head(channels, 64, outputs, 0.0, bias=False)
            for channels, outputs in ((width, num_classes), (width, num_classes), (middle, 1))
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        _, middle, coarse, deepest = self.backbone(images)
        context = self.context(middle, coarse, deepest)
        logits: Tensor = self.head(self.fusion(middle, context[0]))
        if self.training:
            inputs = (*context, middle)
            return [logits, *(head(x) for head, x in zip(self.auxiliary, inputs, strict=True))]
        return logits


def build(num_classes: int, *, backbone: Literal[1, 2] = 1, width: int = 128) -> STDCSeg:
    """STDC-Seg over STDC1 or STDC2; see the class."""
    return STDCSeg(num_classes, stdc(backbone), width)
