"""Layers that change the size of a map or move its values: resizing, unpooling, warping."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize_like(x: Tensor, reference: Tensor, *, align_corners: bool = False) -> Tensor:
    """Bilinear: (N, C, h, w) to the reference's (N, C, H, W)."""
    size = reference.shape[-2:]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def upsample_like(x: Tensor, reference: Tensor) -> Tensor:
    """`resize_like` with align_corners=True."""
    return resize_like(x, reference, align_corners=True)


def crop_like(x: Tensor, reference: Tensor) -> Tensor:
    """The top left (H, W) of (N, C, H + a, W + b), with H and W of the reference."""
    height, width = reference.shape[-2:]
    return x[..., :height, :width]


def max_pool_with_place(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max-pooling of stride 2 that remembers where each maximum stood.

    (N, C, H, W), H and W even, to the maxima (N, C, H / 2, W / 2) and their places: a one-hot
    (N, C, 4, H / 2, W / 2) of x's dtype over the window's pixels, row by row; of equal values the
    first counts. Made of slices and comparisons, because TensorRT has no pooling with indices.
    """
    corners = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    top = torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(*corners[2:]))
    places, left = [], torch.ones_like(top)
    for corner in corners:
        here = (corner >= top).to(x.dtype) * left
        left = left - here
        places.append(here)
    return top, torch.stack(places, dim=2)


def max_unpool(x: Tensor, place: Tensor) -> Tensor:
    """Puts (N, C, h, w) to the remembered places of (N, C, 2h, 2w), zeros elsewhere.

    Badrinarayanan et al., "SegNet", TPAMI 2017, section 3 and figure 3.
    """
    n, channels, _, height, width = place.shape
    spread = (x[:, :, None] * place).reshape(n, channels * 4, height, width)
    return F.pixel_shuffle(spread, 2)


def flow_warp(features: Tensor, flow: Tensor) -> Tensor:
    """Moves features along a flow field: bilinear sampling, zeros outside the map.

    Li et al., "Semantic Flow for Fast and Accurate Scene Parsing", ECCV 2020, section 3.2.

    Args:
        features: (N, C, H, W).
        flow: (N, 2, H, W), in pixels, x first.

    The base grid is built by `arange` with the sizes as graph values, because `linspace` is
    baked at the traced size on export; grid and sampling stay in float32, because float16
    coordinates are coarser than a pixel on large maps.
    """
    height, width = flow.shape[-2:]
    rows = torch.sym_max(height - 1, 1)  # type: ignore[no-untyped-call]
    columns = torch.sym_max(width - 1, 1)  # type: ignore[no-untyped-call]
    y = torch.arange(height, device=flow.device, dtype=torch.float32) * (2.0 / rows) - 1.0
    x = torch.arange(width, device=flow.device, dtype=torch.float32) * (2.0 / columns) - 1.0
    grid_x = x[None, None, :] + flow[:, 0].float() * (1.0 / width)
    grid_y = y[None, :, None] + flow[:, 1].float() * (1.0 / height)
    grid = torch.stack((grid_x, grid_y), dim=-1)
    kind = flow.device.type
    with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):  # meta has none
        warped = F.grid_sample(
            features.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=True
        )
    return warped.to(features.dtype)


class SemanticFlow(nn.Module):
    """What predicts flow between two levels of a pyramid; alignment modules derive from it.

    Li et al., "Semantic Flow for Fast and Accurate Scene Parsing", ECCV 2020, figure 3: both
    levels, halved in channels, decide together. The flow is zero at first.

    Args:
        channels: C of both levels.
        flows: how many flow fields.
    """

    def __init__(self, channels: int, flows: int = 1) -> None:
        super().__init__()
        self.reduce_low = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.reduce_high = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.flow = nn.Conv2d(channels, 2 * flows, 3, padding=1, bias=False)
        nn.init.zeros_(self.flow.weight)

    def joined(self, low: Tensor, high: Tensor) -> Tensor:
        """Low (N, C, H, W), high (N, C, h, w) to what `flow` looks at, (N, C, H, W): high first."""
        reduced = upsample_like(self.reduce_high(high), low)
        return torch.cat((reduced, self.reduce_low(low)), dim=1)
