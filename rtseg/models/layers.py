"""Layers that several networks share: convolution blocks, pyramid pooling, upsampling.

Everything here exports to ONNX with dynamic height and width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def upsample_like(x: Tensor, reference: Tensor) -> Tensor:
    """Bilinear upsampling, align_corners=True, of (N, C, h, w) to the reference's (H, W)."""
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=True)


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, batch normalisation, ReLU; "same" padding for odd kernels.

    (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        relu: bool = True,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        if relu:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


def adaptive_average(x: Tensor, bins: int) -> Tensor:
    """(N, C, H, W) averaged over a bins x bins grid, for any H and W.

    The same values as `adaptive_avg_pool2d`, but as two products with averaging matrices that
    are computed from H and W, so that the exported graph keeps dynamic shapes. Cell i covers
    the rows floor(i H / bins) to ceil((i + 1) H / bins).
    """
    if bins == 1:
        return x.mean(dim=(2, 3), keepdim=True)
    rows = _bin_weights(x.shape[2], bins, x)
    columns = _bin_weights(x.shape[3], bins, x)
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
    """

    def __init__(
        self, in_channels: int, out_channels: int, bins: tuple[int, ...] = (1, 2, 3, 6)
    ) -> None:
        super().__init__()
        branch_channels = out_channels // 2
        self.bins = bins
        self.branches = nn.ModuleList(
            ConvBNReLU(in_channels, branch_channels, kernel_size=1) for _ in bins
        )
        self.bottleneck = ConvBNReLU(
            in_channels + len(bins) * branch_channels, out_channels, kernel_size=1
        )

    def forward(self, x: Tensor) -> Tensor:
        levels = [x]
        for bins, branch in zip(self.bins, self.branches, strict=True):
            levels.append(upsample_like(branch(adaptive_average(x, bins)), x))
        out: Tensor = self.bottleneck(torch.cat(levels, dim=1))
        return out


def fuse_batch_norm(module: nn.Module) -> nn.Module:
    """Folds every BatchNorm that follows a convolution in an `nn.Sequential` into it, in place.

    For inference only: the module must be in eval mode. Returns the module.
    """
    for child in module.modules():
        if not isinstance(child, nn.Sequential):
            continue
        names = list(child._modules)
        for first, second in pairwise(names):
            conv, norm = child._modules[first], child._modules[second]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                child._modules[first] = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
                child._modules[second] = nn.Identity()
    return module
