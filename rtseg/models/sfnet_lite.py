"""SFNet-Lite: one gated dual-flow alignment between the finest and the deepest features.

Li et al., "Semantic Flow for Fast and Accurate Scene Parsing", ECCV 2020 (flow alignment), and
"SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow", IJCV 2023 (the gated
dual-flow module and the Lite decoder with a single one of them).

There are two decoders. `SFNetLite`, for ResNets of any width, reads every level and is what the
shipped networks have. `ReleasedSFNetLite` is the paper's: the pyramid pooling is aligned with the
finest level at once, the stride-16 level joins in the head, the stride-8 level is not read. Of it
the authors released ResNet-18 and the STDCs, these with two gates; the rest follows by analogy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rtseg.errors import ConfigError
from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.resnet import ResNet
from rtseg.models.backbones.semantic_flow import (
    DROPPED,
    RULES,
    Backbone,
    released_backbone,
    released_context,
)
from rtseg.models.context import PyramidPooling
from rtseg.models.layers import ConvBNReLU, Network, segmentation_head
from rtseg.models.resampling import SemanticFlow, flow_warp, upsample_like

PAPER = "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow"
YEAR = 2023

VARIANTS = {
    "sfnet-lite-dfnet1": Variant({"backbone": "dfnet1"}),
    "sfnet-lite-dfnet2": Variant({"backbone": "dfnet2"}),
    "sfnet-lite-stdc1": Variant(
        {"backbone": "stdc1", "gate": "features"},
        (Reported(0.788, split="test", fps=120, device="RTX 3090"),),
        editions=({"gate": "pooled"},),
    ),
    "sfnet-lite-stdc2": Variant(
        {"backbone": "stdc2", "gate": "features"}, editions=({"gate": "pooled"},)
    ),
    "sfnet-lite": Variant(),
    "sfnet-lite-r18": Variant(
        {"backbone": "r18"}, (Reported(0.801, split="test", fps=60, device="RTX 3090"),)
    ),
    "sfnet-lite-r50": Variant({"backbone": "r50"}),
    "sfnet-lite-r101": Variant({"backbone": "r101"}),
}

RELEASES = (
    Release(
        rules=(
            *RULES,
            (r"^head\.fpn_in\.0\.", "lateral_fine."),
            (r"^head\.fpn_in\.1\.", "lateral_coarse."),
            (r"^head\.flow_align_module\.down_h\.", "align.reduce_high."),
            (r"^head\.flow_align_module\.down_l\.", "align.reduce_low."),
            (r"^head\.flow_align_module\.flow_make\.", "align.flow."),
            (r"^head\.flow_align_module\.flow_gate\.0\.", "align.gate."),
            (r"^head\.conv_last\.", "head."),
        ),
        dropped=(*DROPPED, r"head\.fpn_in\.2\."),  # the deepest level's lateral is never used
        classifier="head.1.weight",
        source="the authors' release",
    ),
)


class GatedDualFlowAlignment(SemanticFlow):
    """Aligns high-level and low-level features to each other and mixes them by a gate.

    One convolution predicts two flows: for the upsampled high level and for the low level.
    The gate looks at the mean and the maximum over the channels of both (IJCV 2023, section 3.3).

    Forward: low (N, C, H, W), high (N, C, h, w) to (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, flows=2)
        self.gate = nn.Conv2d(4, 1, 3, padding=1, bias=False)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        flow = self.flow(self.joined(low, high))
        high = upsample_like(high, low)
        return self.mix(flow_warp(low, flow[:, 2:]), flow_warp(high, flow[:, :2]))

    def mix(self, low: Tensor, high: Tensor) -> Tensor:
        """The gate's share of each: two (N, C, H, W) to one."""
        gate = torch.sigmoid(self.gate(_statistics(low, high)))
        return high * gate + low * (1.0 - gate)


class ReleasedAlignment(GatedDualFlowAlignment):
    """The same module as it was released: the high level is warped from its own size at once.

    Args:
        channels: C.
        gate: what it looks at. "pooled", the paper's: statistics of the low level and of the
            reduced high one, before they are warped. "features": the reduced features of both.

    Forward: low (N, C, H, W), high (N, C, h, w) to (N, C, H, W).
    """

    def __init__(self, channels: int, gate: str) -> None:
        super().__init__(channels)
        self.pooled = gate == "pooled"
        if not self.pooled:
            self.gate = nn.Conv2d(channels, 1, 3, padding=1, bias=False)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        joined = self.joined(low, high)
        flow = self.flow(joined)
        reduced = joined[:, : joined.shape[1] // 2]  # of the high level
        gate = torch.sigmoid(self.gate(_statistics(low, reduced) if self.pooled else joined))
        return flow_warp(high, flow[:, :2]) * gate + flow_warp(low, flow[:, 2:]) * (1.0 - gate)


def _statistics(low: Tensor, high: Tensor) -> Tensor:
    """Mean and maximum over the channels of both: (N, 4, H, W)."""
    statistics = (
        high.mean(dim=1, keepdim=True),
        low.mean(dim=1, keepdim=True),
        high.amax(dim=1, keepdim=True),
        low.amax(dim=1, keepdim=True),
    )
    return torch.cat(statistics, dim=1)


class SFNetLite(Network):
    """Backbone, pyramid pooling, one gated dual-flow alignment at stride 4, classifier.

    Args:
        num_classes: C.
        backbone: gives four feature maps at strides 4, 8, 16 and 32.
        width: channels of the decoder.
        align_stride: 4 is the paper's place of the alignment. 8 aligns the stride-16 level to the
            stride-8 one and adds the sum to the finest: a quarter of the sampling, which is slow
            for what it computes, and a head of half the input.

    Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode a list with the
    auxiliary logits of the stride-16 level (N, C, H / 16, W / 16) as well.
    """

    align_corners = True

    def __init__(
        self, num_classes: int, backbone: ResNet, width: int = 128, align_stride: int = 4
    ) -> None:
        super().__init__()
        if align_stride not in (4, 8):
            raise ConfigError(f"align_stride is 4 or 8, not {align_stride}")
        self.backbone = backbone
        self.align_stride = align_stride
        fine, middle, coarse, deepest = backbone.channels
        self.context = PyramidPooling(deepest, width)
        self.lateral_fine = ConvBNReLU(fine, width, kernel_size=1)
        self.lateral_middle = ConvBNReLU(middle, width, kernel_size=1)
        self.lateral_coarse = ConvBNReLU(coarse, width, kernel_size=1)
        self.align = GatedDualFlowAlignment(width)
        self.head = nn.Sequential(
            ConvBNReLU(2 * width if align_stride == 4 else width, width),
            nn.Dropout2d(0.1),
            nn.Conv2d(width, num_classes, 1),
        )
        self.auxiliary = nn.Sequential(
            ConvBNReLU(width, width), nn.Dropout2d(0.1), nn.Conv2d(width, num_classes, 1)
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        fine, middle, coarse, deepest = self.backbone(images)
        coarse = self.lateral_coarse(coarse)
        coarse = coarse + upsample_like(self.context(deepest), coarse)
        middle = self.lateral_middle(middle)
        low = self.lateral_fine(fine)
        if self.align_stride == 4:
            fused = self.align(low, middle + upsample_like(coarse, middle))
            features = torch.cat((fused, upsample_like(coarse, fused)), dim=1)
        else:
            features = low + upsample_like(self.align(middle, coarse), low)
        logits: Tensor = self.head(features)
        if self.training:
            return [logits, self.auxiliary(coarse)]
        return logits


class ReleasedSFNetLite(Network):
    """Backbone, pyramid pooling, its alignment with the finest level, the stride-16 level, head.

    IJCV 2023, section 3.4. Forward: (N, 3, H, W) to logits (N, C, H / 4, W / 4); in training mode
    a list with the auxiliary logits of the stride-16 level (N, C, H / 16, W / 16) as well.

    Args:
        num_classes: C.
        backbone: gives four feature maps at strides 4, 8, 16 and 32.
        width: channels of the decoder.
        gate: see `ReleasedAlignment`.
    """

    align_corners = True

    def __init__(self, num_classes: int, backbone: Backbone, width: int, gate: str) -> None:
        super().__init__()
        self.backbone = backbone
        fine, _, coarse, deepest = backbone.channels
        self.context = released_context(deepest, width)
        self.lateral_fine = ConvBNReLU(fine, width, kernel_size=1)
        self.lateral_coarse = ConvBNReLU(coarse, width, kernel_size=1)
        self.align = ReleasedAlignment(width, gate)
        self.head = nn.Sequential(ConvBNReLU(2 * width, width), nn.Conv2d(width, num_classes, 1))
        self.auxiliary = segmentation_head(width, width, num_classes)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        fine, _, coarse, deepest = self.backbone(images)
        coarse = self.lateral_coarse(coarse)  # (N, width, H / 16, W / 16)
        fused = self.align(self.lateral_fine(fine), self.context(deepest))  # (N, width, H / 4, ...)
        logits: Tensor = self.head(torch.cat((fused, upsample_like(coarse, fused)), dim=1))
        if self.training:
            return [logits, self.auxiliary(coarse)]
        return logits


def build(
    num_classes: int,
    *,
    stem_channels: tuple[int, int] = (32, 64),
    channels: tuple[int, int, int, int] = (64, 128, 256, 512),
    blocks: tuple[int, int, int, int] = (2, 2, 2, 2),
    width: int = 128,
    align_stride: int = 4,
    backbone: str = "",
    gate: str = "pooled",
) -> SFNetLite | ReleasedSFNetLite:
    """An SFNet-Lite over a ResNet of the given widths and depths; see the two classes.

    Args:
        backbone: "r18", "r50", "r101", "stdc1", "stdc2", "dfnet1" or "dfnet2" gives the paper's
            decoder over this one, and `stem_channels`, `channels`, `blocks` and `align_stride`
            mean nothing.
        gate: of the paper's decoder, "pooled" or "features".
    """
    if not backbone:
        return SFNetLite(num_classes, ResNet(stem_channels, channels, blocks), width, align_stride)
    if gate not in ("pooled", "features"):
        raise ConfigError(f"gate is pooled or features, not {gate!r}")
    return ReleasedSFNetLite(num_classes, released_backbone(backbone), width, gate)
