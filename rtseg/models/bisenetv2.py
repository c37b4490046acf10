"""BiSeNet V2: a wide, shallow detail branch and a narrow, deep semantic one that guide each other.

Yu et al., "BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic
Segmentation", IJCV 2021: the branches (section 4 and table 1), the blocks (figures 4 and 5), guided
aggregation (figure 6), the large network (section 5.3). The authors published no code; in use is
the re-implementation CoinCheung/BiSeNet, which this follows where it departs from the paper: the
gather-and-expansion layer widens in its depthwise convolution, not in the 3x3 one before, and a
norm and an activation follow the convolutions at the end of context embedding and of aggregation.
Left out: enlarging the map within the auxiliary heads, as that re-implementation does.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models import Release, Reported, Variant
from rtseg.models.layers import ConvBNReLU, Network, segmentation_head

PAPER = "BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation"
YEAR = 2021


def _reported(val: float, test: float, fps: float) -> tuple[Reported, Reported]:
    return (
        Reported(val, fps=fps, size=(512, 1024), device="GTX 1080 Ti"),
        Reported(test, split="test", fps=fps, size=(512, 1024), device="GTX 1080 Ti"),
    )


_CAMVID = Reported(0.724, "camvid", "test", 124.5, (720, 960), "GTX 1080 Ti")
VARIANTS = {
    "bisenetv2": Variant({}, (*_reported(0.734, 0.726, 156.0), _CAMVID)),
    "bisenetv2-large": Variant({"width": 2.0, "depth": 3}, _reported(0.758, 0.753, 47.3)),
}
RELEASES = (
    Release(
        rules=(
            (r"^segment\.S1S2\.", "semantic.stem."),
            (r"^segment\.S5_5\.bn\.", "semantic.context.pooled.0."),
            (r"^segment\.S5_5\.conv_gap\.", "semantic.context.pooled.1."),
            (r"^segment\.S5_5\.conv_last\.", "semantic.context.conv."),
            (r"^segment\.", "semantic."),
            (r"\.S(\d)(?:_4)?\.", r".s\1."),
            (r"\.dwconv2\.", ".depthwise.1."),
            (r"\.dwconv1?\.", ".depthwise.0."),
            (r"^head\.conv\.", "head.0."),
            (r"^head\.conv_out\.(?:1\.)?(weight|bias)$", r"head.2.\1"),
            (r"\.conv\.weight$", ".0.weight"),
            (r"\.bn\.", ".1."),
        ),
        dropped=(r"aux\d",),
        classifier="head.2.weight",
        mean=(0.3257, 0.3690, 0.3223),
        std=(0.2112, 0.2148, 0.2115),
        source="CoinCheung/BiSeNet",
    ),
)


class Stem(nn.Module):
    """Convolutions beside a max-pool: (N, 3, H, W) to (N, channels, H / 4, W / 4); figure 4a."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(3, channels, stride=2)
        self.left = nn.Sequential(
            ConvBNReLU(channels, channels // 2, 1), ConvBNReLU(channels // 2, channels, stride=2)
        )
        self.right = nn.MaxPool2d(3, stride=2, padding=1)
        self.fuse = ConvBNReLU(2 * channels, channels)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        out: Tensor = self.fuse(torch.cat((self.left(x), self.right(x)), dim=1))
        return out


class GatherExpand(nn.Module):
    """3x3 convolution, depthwise expansion, 1x1 projection and a shortcut; figure 5.

    (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)). With stride 2
    there are two depthwise convolutions, and one and a 1x1 convolution on the shortcut.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = 6
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.conv1 = ConvBNReLU(in_channels, in_channels)
        self.depthwise = nn.Sequential(ConvBNReLU(in_channels, wide, groups=in_channels))
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.depthwise = nn.Sequential(
                ConvBNReLU(in_channels, wide, stride=2, relu=False, groups=in_channels),
                ConvBNReLU(wide, wide, groups=wide),
            )
            self.shortcut = nn.Sequential(
                *ConvBNReLU(in_channels, in_channels, stride=2, relu=False, groups=in_channels),
                *ConvBNReLU(in_channels, out_channels, 1, relu=False),
            )
        self.conv2 = ConvBNReLU(wide, out_channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.depthwise(self.conv1(x)))
        return torch.relu(out + self.shortcut(x))


class ContextEmbedding(nn.Module):
    """Adds a map's global average to it: (N, channels, h, w) to the same; figure 4b."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pooled = nn.Sequential(nn.BatchNorm2d(channels), ConvBNReLU(channels, channels, 1))
        self.conv = ConvBNReLU(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x + self.pooled(x.mean(dim=(2, 3), keepdim=True)))
        return out


class SemanticBranch(nn.Module):
    """(N, 3, H, W) to maps at strides 4, 8, 16, 32 and, with context, 32 again.

    Args:
        channels: of the maps at strides 4, 8, 16 and 32.
        depths: layers of the stages at strides 8, 16 and 32.
    """

    def __init__(self, channels: tuple[int, ...], depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = Stem(channels[0])
        self.s3, self.s4, self.s5 = (
            nn.Sequential(
                GatherExpand(channels[i], channels[i + 1], 2),
                *(GatherExpand(channels[i + 1], channels[i + 1]) for _ in range(depth - 1)),
            )
            for i, depth in enumerate(depths)
        )
        self.context = ContextEmbedding(channels[-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for stage in (self.s3, self.s4, self.s5, self.context):
            maps.append(stage(maps[-1]))
        return maps


class GuidedAggregation(nn.Module):
    """Each branch weighs the other at its own stride; the sum at the finer one; figure 6.

    Forward: detail (N, channels, H, W), semantic (N, channels, H / 4, W / 4) to (N, channels, H,
    W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left1 = _separable(channels)
        self.left2 = nn.Sequential(
            *ConvBNReLU(channels, channels, stride=2, relu=False),
            nn.AvgPool2d(3, stride=2, padding=1),
        )
        self.right1 = ConvBNReLU(channels, channels, relu=False)
        self.right2 = _separable(channels)
        self.conv = ConvBNReLU(channels, channels)

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        size = detail.shape[-2:]
        gate = torch.sigmoid(F.interpolate(self.right1(semantic), size=size, mode="nearest"))
        fine = self.left1(detail) * gate
        coarse = self.left2(detail) * torch.sigmoid(self.right2(semantic))
        out: Tensor = self.conv(fine + F.interpolate(coarse, size=size, mode="nearest"))
        return out


def _separable(channels: int) -> nn.Sequential:
    return nn.Sequential(
        *ConvBNReLU(channels, channels, relu=False, groups=channels),
        nn.Conv2d(channels, channels, 1, bias=False),
    )


class BiSeNetV2(Network):
    """Detail branch, semantic branch, guided aggregation, classifier.

    Args:
        num_classes: C.
        width: the paper's alpha, of all channels.
        depth: the paper's d: how many times as many layers the semantic branch's stages have.

    Forward: (N, 3, H, W) to logits (N, C, H / 8, W / 8); in training mode a list with the
    auxiliary logits of the semantic branch at strides 4, 8, 16 and 32 as well.
    """

    output_stride = 8

    def __init__(self, num_classes: int, width: float = 1.0, depth: int = 1) -> None:
        super().__init__()
        fine, wide, head = (int(c * width) for c in (64, 128, 1024))
        narrow = tuple(int(c * width) for c in (16, 32, 64, 128))
        self.detail = nn.Sequential(
            OrderedDict(
                s1=nn.Sequential(ConvBNReLU(3, fine, stride=2), ConvBNReLU(fine, fine)),
                s2=_detail_stage(fine, fine),
                s3=_detail_stage(fine, wide),
            )
        )
        self.semantic = SemanticBranch(narrow, (2 * depth, 2 * depth, 4 * depth))
        self.bga = GuidedAggregation(wide)
        self.head = segmentation_head(wide, head, num_classes)
        self.auxiliary = nn.ModuleList(segmentation_head(c, 128, num_classes) for c in narrow)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        *maps, context = self.semantic(images)
        logits: Tensor = self.head(self.bga(self.detail(images), context))
        if self.training:
            return [logits, *(head(x) for head, x in zip(self.auxiliary, maps, strict=True))]
        return logits


def _detail_stage(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvBNReLU(in_channels, out_channels, stride=2),
        ConvBNReLU(out_channels, out_channels),
        ConvBNReLU(out_channels, out_channels),
    )


def build(num_classes: int, *, width: float = 1.0, depth: int = 1) -> BiSeNetV2:
    """A BiSeNet V2; see the class."""
    return BiSeNetV2(num_classes, width, depth)
