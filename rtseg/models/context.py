"""Context modules that several networks share: pooling pyramids, attention over channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtseg.models.layers import ConvBNReLU, DepthwiseSeparable
from rtseg.models.resampling import resize_like, upsample_like


def adaptive_average(x: Tensor, bins: int | tuple[int, int]) -> Tensor:
    """(N, C, H, W) averaged over a grid of bins (rows, columns), or a square one, for any H and W.

    The same values as `adaptive_avg_pool2d`, but as two products with averaging matrices that
    are computed from H and W, so that the exported graph keeps dynamic shapes. Cell i covers
    the rows floor(i H / rows) to ceil((i + 1) H / rows).
    """
    if bins == 1:
        return x.mean(dim=(2, 3), keepdim=True)
    cells = (bins, bins) if isinstance(bins, int) else bins
    rows = _bin_weights(x.shape[2], cells[0], x)
    columns = _bin_weights(x.shape[3], cells[1], x)
    return rows @ x @ columns.transpose(0, 1)


def _bin_weights(length: int, bins: int, like: Tensor) -> Tensor:
    """(bins, length): row i holds 1 / n over the n positions of cell i."""
    position = torch.arange(length, device=like.device, dtype=torch.float32)[None]
    cell = torch.arange(bins, device=like.device, dtype=torch.float32)[:, None]
    first = torch.floor(cell * length / bins)
    last = torch.ceil((cell + 1) * length / bins)
    inside = ((position >= first) & (position < last)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class PyramidPooling(nn.Module):
    """Pyramid pooling module: context at several grid sizes, joined to the input.

    Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3.2.
    (N, in_channels, h, w) to (N, out_channels, h, w).

    Args:
        branch_channels: of each level; half of `out_channels` if not given.
        kernel_size: of the convolution that joins the levels.
        branch_relu: whether an activation follows in the branches.
        input_first: whether the input stands before the levels where all are joined, or last.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        *,
        branch_channels: int | None = None,
        kernel_size: int = 1,
        branch_relu: bool = True,
        input_first: bool = True,
    ) -> None:
        super().__init__()
        width = out_channels // 2 if branch_channels is None else branch_channels
        self.bins, self.input_first = bins, input_first
        self.branches = nn.ModuleList(
            ConvBNReLU(in_channels, width, 1, relu=branch_relu) for _ in bins
        )
        self.bottleneck = ConvBNReLU(in_channels + len(bins) * width, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        levels = [
            upsample_like(branch(adaptive_average(x, bins)), x)
            for bins, branch in zip(self.bins, self.branches, strict=True)
        ]
        levels.insert(0 if self.input_first else len(levels), x)
        out: Tensor = self.bottleneck(torch.cat(levels, dim=1))
        return out


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: one map seen at several dilations, and its global average.

    Chen et al., "Rethinking Atrous Convolution", 2017, section 3.3 and figure 5.
    (N, in_channels, h, w) to (N, out_channels, h, w).

    Args:
        rates: dilations of the 3x3 branches, beside which there is a 1x1 one.
        separable: 3x3 branches per channel and 1x1 (Chen et al., ECCV 2018, section 3.1).
        dropout: of the joined branches' values.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: tuple[int, ...] = (12, 24, 36),
        *,
        separable: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        branches: list[nn.Module] = [ConvBNReLU(in_channels, out_channels, 1)]
        for rate in rates:
            conv = DepthwiseSeparable if separable else ConvBNReLU
            branches.append(conv(in_channels, out_channels, dilation=rate))
        self.branches = nn.ModuleList(branches)
        self.pooled = ConvBNReLU(in_channels, out_channels, 1)
        self.project = ConvBNReLU((len(branches) + 1) * out_channels, out_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        views = [branch(x) for branch in self.branches]
        views.append(resize_like(self.pooled(x.mean(dim=(2, 3), keepdim=True)), x))
        out: Tensor = self.dropout(self.project(torch.cat(views, dim=1)))
        return out


class AttentionRefinement(nn.Module):
    """3x3 convolution whose channels are weighed by their own global average.

    Yu et al., "BiSeNet", ECCV 2018, section 3.2 and figure 2b: the attention is a 1x1 convolution
    with norm and sigmoid. (N, in_channels, h, w) to (N, out_channels, h, w).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels)
        self.attention = ConvBNReLU(out_channels, out_channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.attention(x.mean(dim=(2, 3), keepdim=True)))


class ContextPath(nn.Module):
    """From a backbone's deep levels, refined and joined from coarse to fine, what is where.

    Yu et al., "BiSeNet", ECCV 2018, section 3.2 and figure 2a: the deepest level with its global
    average, then the next, each attended to and enlarged (to the nearest neighbour, then a 3x3
    convolution).

    Args:
        coarse, deepest: channels of the levels at strides 16 and 32.
        width: channels of the path.

    Forward: the maps at strides 8, 16 and 32, of the first only its size, to the path's two at 8
    and 16, (N, width, h, w) each.
    """

    def __init__(self, coarse: int, deepest: int, width: int = 128) -> None:
        super().__init__()
        self.arm16 = AttentionRefinement(coarse, width)
        self.arm32 = AttentionRefinement(deepest, width)
        self.average = ConvBNReLU(deepest, width, 1)
        self.head16 = ConvBNReLU(width, width)
        self.head32 = ConvBNReLU(width, width)

    def forward(self, middle: Tensor, coarse: Tensor, deepest: Tensor) -> tuple[Tensor, Tensor]:
        x = self.arm32(deepest) + self.average(deepest.mean(dim=(2, 3), keepdim=True))
        at_16 = self.head32(F.interpolate(x, size=coarse.shape[-2:], mode="nearest"))
        x = self.arm16(coarse) + at_16
        at_8 = self.head16(F.interpolate(x, size=middle.shape[-2:], mode="nearest"))
        return at_8, at_16


class FeatureFusion(nn.Module):
    """Joins two paths by a 1x1 convolution, then adds what its own global average weighs up.

    Yu et al., "BiSeNet", ECCV 2018, section 3.2 and figure 2c.
    (N, in_channels, h, w) of the concatenated paths to (N, out_channels, h, w).

    Args:
        reduction: how many times narrower the attention is between its two 1x1 convolutions; 0 for
            a single one with norm.
    """

    def __init__(self, in_channels: int, out_channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels, 1)
        self.attention: nn.Sequential = ConvBNReLU(out_channels, out_channels, 1, relu=False)
        if reduction:
            self.attention = nn.Sequential(
                nn.Conv2d(out_channels, out_channels // reduction, 1, bias=False),
                nn.ReLU(inplace=True),
                nn.Conv2d(out_channels // reduction, out_channels, 1, bias=False),
            )

    def forward(self, *paths: Tensor) -> Tensor:
        x: Tensor = self.conv(torch.cat(paths, dim=1))
        return x + x * torch.sigmoid(self.attention(x.mean(dim=(2, 3), keepdim=True)))


BISENET_KEYS: tuple[tuple[str, str], ...] = (
    (r"^cp\.conv_avg\.", "context.average."),
    (r"^cp\.(?:conv_)?", "context."),
    (r"\.conv_atten\.", ".attention.0."),
    (r"\.bn_atten\.", ".attention.1."),
    (r"^ffm\.convblk\.", "fusion.conv."),
    (r"^ffm\.conv1?\.", "fusion.attention.0."),
    (r"^ffm\.bn\.", "fusion.attention.1."),
    (r"^ffm\.conv2\.", "fusion.attention.2."),
    (r"^conv_out\.conv\.", "head.0."),
    (r"^conv_out\.conv_out\.", "head.2."),
    (r"\.conv\.weight$", ".0.weight"),
    (r"\.bn\.", ".1."),
)
"""`Release` rules of context path, fusion and head of BiSeNet and STDC-Seg, backbone apart."""


class BranchFusion(nn.Module):
    """Adds a coarse branch, spread by a dilated depthwise convolution, to a fine one.

    Poudel et al., "ContextNet", BMVC 2018, table 2, and "Fast-SCNN", BMVC 2019, table 3: the
    dilation is the factor between the branches. Fine (N, fine_channels, H, W) and coarse
    (N, coarse_channels, h, w) to (N, out_channels, H, W).
    """

    def __init__(
        self, fine_channels: int, coarse_channels: int, out_channels: int, dilation: int = 4
    ) -> None:
        super().__init__()
        self.fine = ConvBNReLU(fine_channels, out_channels, 1, relu=False)
        self.coarse = nn.Sequential(
            ConvBNReLU(coarse_channels, coarse_channels, dilation=dilation, groups=coarse_channels),
            ConvBNReLU(coarse_channels, out_channels, 1, relu=False),
        )

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return torch.relu(self.fine(fine) + self.coarse(upsample_like(coarse, fine)))
