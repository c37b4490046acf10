"""PIDNet: branches for detail (P), context (I) and boundaries (D), which lead their fusion.

Xu et al., "PIDNet: A Real-time Semantic Segmentation Network Inspired by PID Controllers", CVPR
2023, section 3: the authors' prediction model, and for training the auxiliary head of the P
branch and the boundary head of the D branch (figure 4, seg head S0 and S1).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.backbones.dual_resolution import (
    RELEASE_RULES,
    DeepAggregation,
    ParallelAggregation,
    dual_stem,
    linear_bottleneck,
    residual_stage,
)
from rtseg.models.backbones.resnet import BasicBlock
from rtseg.models.layers import ConvBNReLU, Network, NormReLUConv, preactivated_head
from rtseg.models.resampling import resize_like

PAPER = "PIDNet: A Real-time Semantic Segmentation Network Inspired by PID Controllers"
YEAR = 2023


def _reported(val: float, test: float, fps: float) -> tuple[Reported, Reported]:
    return (
        Reported(val),
        Reported(test, split="test", fps=fps, size=(1024, 2048), device="RTX 3090"),
    )


_CAMVID = Reported(
    0.801, data="camvid", split="test", fps=153.7, size=(720, 960), device="RTX 3090"
)
_LARGE = {"fine_depth": 3, "coarse_depth": 4, "context_width": 112, "head_width": 256}
VARIANTS = {
    "pidnet-s": Variant({}, (*_reported(0.788, 0.786, 93.2), _CAMVID)),
    "pidnet-m": Variant({"width": 64}, _reported(0.799, 0.798, 42.2)),
    "pidnet-l": Variant({"width": 64, **_LARGE, "light": False}, _reported(0.809, 0.806, 31.1)),
}

RELEASES = (
    Release(
        rules=(
            *RELEASE_RULES,
            (r"^layer([345])_d\.(?:0\.)?", r"d\1."),
            (r"^layer([34])_\.", r"p\1."),
            (r"^layer5_\.0\.", "p5."),
            (r"^layer([345])\.", r"i\1."),
            (r"^(pag\d)\.f_x\.", r"\1.detail."),
            (r"^(pag\d)\.f_y\.", r"\1.context."),
            (r"^dfm\.conv_p\.", "fusion.detail."),
            (r"^dfm\.conv_i\.", "fusion.context."),
            (r"^dfm\.conv\.", "head."),
        ),
        dropped=(r"seghead_[pd]\.",),
        classifier="head.classifier.weight",
        source="the authors' release",
    ),
)


class PixelAttentionFusion(nn.Module):
    """Pag: the detail branch takes from the context branch where both agree on a pixel.

    Section 3, "Pag: Learning High-level Semantics Selectively": what is taken is the sigmoid of
    the product of the pixel's two embeddings.
    Forward: (N, C, H, W) and the context (N, C, h, w) to (N, C, H, W).
    """

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.detail = ConvBNReLU(channels, embedding, 1, relu=False)
        self.context = ConvBNReLU(channels, embedding, 1, relu=False)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        alike = self.detail(detail) * resize_like(self.context(context), detail)
        share = torch.sigmoid(alike.sum(dim=1, keepdim=True))
        return (1 - share) * detail + share * resize_like(context, detail)


class BoundaryFusion(nn.Module):
    """Bag: detail near boundaries, context elsewhere.

    Section 3, "Bag: Balancing the Details and Contexts"; its 3x3 convolution stands in the head,
    beside the norm that follows it and can be folded into it.
    Forward: detail, context, boundary, each (N, C, h, w), to the same.
    """

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        edge = torch.sigmoid(boundary)
        return edge * detail + (1 - edge) * context


class LightBoundaryFusion(nn.Module):
    """Light-Bag: Bag with a 1x1 convolution for each branch in place of the 3x3 one.

    As in PIDNet-S and -M.
    Forward: detail, context, boundary, each (N, C, h, w), to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.detail = ConvBNReLU(channels, channels, 1, relu=False)
        self.context = ConvBNReLU(channels, channels, 1, relu=False)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        edge = torch.sigmoid(boundary)
        left = self.detail(detail + (1 - edge) * context)
        right = self.context(context + edge * detail)
        out: Tensor = left + right
        return out


class PIDNet(Network):
    """Shared stages to stride 8, three branches, their fusion, head.

    Args:
        num_classes: C.
        width: w, channels of the first stage.
        fine_depth: blocks of the first two stages and of the P branch's.
        coarse_depth: blocks of the I branch's stages at strides 16 and 32.
        context_width: channels of each level of the pyramid pooling.
        head_width: channels in front of the classifier.
        light: PAPPM, Light-Bag and a narrow D branch as in PIDNet-S and -M; else DAPPM, Bag and a
            wide one as in PIDNet-L.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the auxiliary
    logits of the P branch at stage 3 and boundary logits (N, 1, H / 8, W / 8) of the D branch at
    stage 4 as well.
    """

    output_stride = 8
    align_corners = True
    boundary_head = True

    def __init__(
        self,
        num_classes: int,
        width: int,
        fine_depth: int,
        coarse_depth: int,
        context_width: int,
        head_width: int,
        light: bool,
    ) -> None:
        super().__init__()
        w, m, n = width, fine_depth, coarse_depth
        self.stem = dual_stem(w)
        self.layer1 = residual_stage(w, w, m)
        self.layer2 = residual_stage(w, 2 * w, m, 2)
        self.i3 = residual_stage(2 * w, 4 * w, n, 2)
        self.i4 = residual_stage(4 * w, 8 * w, n, 2)
        self.i5 = nn.Sequential(
            linear_bottleneck(8 * w, 8 * w, stride=2), linear_bottleneck(16 * w, 8 * w)
        )
        pooling = ParallelAggregation if light else DeepAggregation
        self.context = pooling(16 * w, context_width, 4 * w)

        self.p3 = residual_stage(2 * w, 2 * w, m)
        self.p4 = residual_stage(2 * w, 2 * w, m)
        self.p5 = linear_bottleneck(2 * w, 2 * w)
        self.compression3 = ConvBNReLU(4 * w, 2 * w, 1, relu=False)
        self.compression4 = ConvBNReLU(8 * w, 2 * w, 1, relu=False)
        self.pag3 = PixelAttentionFusion(2 * w, w)
        self.pag4 = PixelAttentionFusion(2 * w, w)

        boundary = w if light else 2 * w
        self.d3 = BasicBlock(2 * w, boundary, relu=False)
        self.d4 = linear_bottleneck(w, w) if light else BasicBlock(2 * w, 2 * w, relu=False)
        self.d5 = linear_bottleneck(2 * w, 2 * w)
        self.diff3 = ConvBNReLU(4 * w, boundary, relu=False)
        self.diff4 = ConvBNReLU(8 * w, 2 * w, relu=False)

        self.fusion = LightBoundaryFusion(4 * w) if light else BoundaryFusion()
        self.head = preactivated_head(4 * w, head_width, num_classes)
        if not light:
            parts = (*NormReLUConv(4 * w, 4 * w).named_children(), *self.head.named_children())
            self.head = nn.Sequential(OrderedDict(parts))
        self.auxiliary = nn.ModuleList(
            (preactivated_head(2 * w, head_width, num_classes), preactivated_head(2 * w, w, 1))
        )

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        x = self.layer1(self.stem(images))  # (N, w, H / 4, W / 4)
        x = F.relu(self.layer2(F.relu(x)))  # (N, 2w, H / 8, W / 8)
        p, d = self.p3(x), self.d3(x)  # both stay at H / 8, W / 8

        x = F.relu(self.i3(x))  # (N, 4w, H / 16, W / 16)
        p = middle = self.pag3(p, self.compression3(x))
        d = d + resize_like(self.diff3(x), d)

        x = F.relu(self.i4(x))  # (N, 8w, H / 32, W / 32)
        p = self.pag4(self.p4(F.relu(p)), self.compression4(x))
        d = self.d4(F.relu(d))
        d = edges = d + resize_like(self.diff4(x), d)

        p, d = self.p5(F.relu(p)), self.d5(F.relu(d))  # (N, 4w, H / 8, W / 8)
        x = self.context(self.i5(x))  # (N, 4w, H / 64, W / 64)
        logits: Tensor = self.head(self.fusion(p, resize_like(x, p), d))
        if not self.training:
            return logits
        semantic, boundary = self.auxiliary
        return [logits, semantic(middle), boundary(edges)]


def build(
    num_classes: int,
    *,
    width: int = 32,
    fine_depth: int = 2,
    coarse_depth: int = 3,
    context_width: int = 96,
    head_width: int = 128,
    light: bool = True,
) -> PIDNet:
    """A PIDNet, PIDNet-S by default; see the class."""
    return PIDNet(num_classes, width, fine_depth, coarse_depth, context_width, head_width, light)
