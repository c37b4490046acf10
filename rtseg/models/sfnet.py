"""SFNet: a feature pyramid whose levels are aligned by flow before they are added.

Li et al., "Semantic Flow for Fast and Accurate Scene Parsing", ECCV 2020: the flow alignment
module (section 3.2, figure 3), the network (section 3.3, figure 4). Where the paper is silent the
authors' release counts: ResNets with the deep stem and dilated convolutions beside their full
strides; of DF1 the maps at strides 16, 32 and 32, so that its logits have stride 16; no activation
in the pooling's branches. The STDC backbones are of the IJCV version of 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.semantic_flow import (
    DROPPED,
    RULES,
    Backbone,
    released_backbone,
    released_context,
)
from rtseg.models.layers import ConvBNReLU, Network, segmentation_head
from rtseg.models.resampling import SemanticFlow, flow_warp, upsample_like

PAPER = "Semantic Flow for Fast and Accurate Scene Parsing"
YEAR = 2020
_IJCV = "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow"

VARIANTS = {
    "sfnet-dfnet1": Variant(
        {"backbone": "dfnet1", "width": 64}, (Reported(0.722), Reported(0.745, split="test"))
    ),
    "sfnet-dfnet2": Variant(
        {"backbone": "dfnet2", "width": 64}, (Reported(0.758), Reported(0.778, split="test"))
    ),
    "sfnet-stdc1": Variant({"backbone": "stdc1", "width": 64}, paper=_IJCV, year=2023),
    "sfnet-stdc2": Variant({"backbone": "stdc2", "width": 64}, paper=_IJCV, year=2023),
    "sfnet-r18": Variant(
        {"backbone": "r18", "width": 128},
        (
            Reported(0.790),
            Reported(0.789, split="test"),
            # With Mapillary as pre-training.
            Reported(0.804, split="test", fps=26, size=(1024, 2048), device="GTX 1080 Ti"),
        ),
    ),
    "sfnet-r50": Variant({"backbone": "r50", "width": 256}, (Reported(0.804),)),
    "sfnet-r101": Variant({"backbone": "r101", "width": 256}, (Reported(0.818, split="test"),)),
}

RELEASES = (
    Release(
        rules=(
            *RULES,
            (r"^head\.fpn_in\.", "laterals."),
            (r"^head\.fpn_out\.(\d)\.0\.", r"levels.\1."),
            (r"^head\.fpn_out_align\.(\d)\.down_h\.", r"align.\1.reduce_high."),
            (r"^head\.fpn_out_align\.(\d)\.down_l\.", r"align.\1.reduce_low."),
            (r"^head\.fpn_out_align\.(\d)\.flow_make\.", r"align.\1.flow."),
            (r"^head\.conv_last\.", "head."),
        ),
        dropped=DROPPED,
        classifier="head.1.weight",
        source="the authors' release",
    ),
)

STRIDE = {"dfnet1": 16, "dfnet2": 8}
"""Of the finest level, where it is not 4."""


class FlowAlignment(SemanticFlow):
    """Brings a high level onto a low one: low (N, C, H, W), high (N, C, h, w) to (N, C, H, W)."""

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return flow_warp(high, self.flow(self.joined(low, high)))


class SFNet(Network):
    """Backbone, pyramid pooling, a top-down pathway with flow alignment, all levels joined.

    Args:
        num_classes: C.
        backbone: gives feature maps, finest first.
        width: channels of the pyramid.
        output_stride: of the backbone's finest map.

    Forward: (N, 3, H, W) to logits (N, C, H / output_stride, W / output_stride); in training mode
    a list with the logits of each sum's auxiliary head as well, finest first.
    """

    align_corners = True

    def __init__(
        self, num_classes: int, backbone: Backbone, width: int, output_stride: int = 4
    ) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.backbone = backbone
        *finer, deepest = backbone.channels
        self.context = released_context(deepest, width)
        self.laterals = nn.ModuleList(ConvBNReLU(c, width, 1) for c in finer)
        self.align = nn.ModuleList(FlowAlignment(width) for _ in finer)
        self.levels = nn.ModuleList(ConvBNReLU(width, width) for _ in finer)
        self.head = nn.Sequential(
            ConvBNReLU((len(finer) + 1) * width, width), nn.Conv2d(width, num_classes, 1)
        )
        self.auxiliary = nn.ModuleList(segmentation_head(width, width, num_classes) for _ in finer)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        *finer, deepest = self.backbone(images)
        context = self.context(deepest)  # (N, width, H / 32, W / 32)
        sums = [context]  # finest first
        for i in reversed(range(len(finer))):
            low = self.laterals[i](finer[i])
            sums.insert(0, low + self.align[i](low, sums[0]))
        fine, *coarser = (conv(x) for conv, x in zip(self.levels, sums[:-1], strict=True))
        coarser = [upsample_like(x, fine) for x in (*coarser, context)]
        logits: Tensor = self.head(torch.cat((fine, *coarser), dim=1))
        if self.training:
            auxiliary = zip(self.auxiliary, sums[:-1], strict=True)
            return [logits, *(head(x) for head, x in auxiliary)]
        return logits


def build(num_classes: int, *, backbone: str = "r18", width: int = 128) -> SFNet:
    """An SFNet over a backbone of `semantic_flow.released_backbone`."""
    return SFNet(
        num_classes, released_backbone(backbone, fine=False), width, STRIDE.get(backbone, 4)
    )
