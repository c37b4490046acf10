"""SFNet-Lite: one gated dual-flow alignment between the finest and the deepest features.

Li et al., "Semantic Flow for Fast and Accurate Scene Parsing", ECCV 2020 (flow alignment), and
"SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow", IJCV 2023 (the gated
dual-flow module and the Lite decoder with a single one of them).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.errors import ConfigError
from rtseg.models.backbones.resnet import ResNet
from rtseg.models.layers import ConvBNReLU, PyramidPooling, upsample_like

OUTPUT_STRIDE = 4
ALIGN_CORNERS = True
INPUT_MULTIPLE = 32
PAPER = "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow"
YEAR = 2023


def flow_warp(features: Tensor, flow: Tensor) -> Tensor:
    """Moves features along a flow field: bilinear sampling, zeros outside the map.

    Args:
        features: (N, C, H, W).
        flow: (N, 2, H, W), in pixels, x first.

    The base grid is built by `arange` with the sizes as graph values, because `linspace` is
    baked at the traced size on export; grid and sampling stay in float32, because float16
    coordinates are coarser than a pixel on large maps.
    """
    height, width = flow.shape[-2:]
    y = torch.arange(height, device=flow.device, dtype=torch.float32) * (2.0 / (height - 1)) - 1.0
    x = torch.arange(width, device=flow.device, dtype=torch.float32) * (2.0 / (width - 1)) - 1.0
    grid_x = x[None, None, :] + flow[:, 0].float() * (1.0 / width)
    grid_y = y[None, :, None] + flow[:, 1].float() * (1.0 / height)
    grid = torch.stack((grid_x, grid_y), dim=-1)
    with torch.autocast(flow.device.type, enabled=False):
        warped = F.grid_sample(
            features.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True
        )
    return warped.to(features.dtype)


class GatedDualFlowAlignment(nn.Module):
    """Aligns high-level and low-level features to each other and mixes them by a gate.

    One convolution predicts two flows: for the upsampled high level and for the low level.
    The gate looks at the mean and the maximum over the channels of both (IJCV 2023, section 3.3).

    Forward: low (N, C, H, W), high (N, C, h, w) to (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce_low = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.reduce_high = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.flow = nn.Conv2d(channels, 4, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(4, 1, 3, padding=1, bias=False)
        nn.init.zeros_(self.flow.weight)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        high_reduced = upsample_like(self.reduce_high(high), low)
        high = upsample_like(high, low)
        flow = self.flow(torch.cat((high_reduced, self.reduce_low(low)), dim=1))
        return self.mix(flow_warp(low, flow[:, 2:]), flow_warp(high, flow[:, :2]))

    def mix(self, low: Tensor, high: Tensor) -> Tensor:
        """The gate's share of each: two (N, C, H, W) to one."""
        statistics = (
            high.mean(dim=1, keepdim=True),
            low.mean(dim=1, keepdim=True),
            high.amax(dim=1, keepdim=True),
            low.amax(dim=1, keepdim=True),
        )
        gate = torch.sigmoid(self.gate(torch.cat(statistics, dim=1)))
        return high * gate + low * (1.0 - gate)


class SFNetLite(nn.Module):
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


def build(
    num_classes: int,
    *,
    stem_channels: tuple[int, int] = (32, 64),
    channels: tuple[int, int, int, int] = (64, 128, 256, 512),
    blocks: tuple[int, int, int, int] = (2, 2, 2, 2),
    width: int = 128,
    align_stride: int = 4,
) -> SFNetLite:
    """An SFNet-Lite over a ResNet of the given widths and depths; see the two classes."""
    return SFNetLite(num_classes, ResNet(stem_channels, channels, blocks), width, align_stride)
