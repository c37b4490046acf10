"""The ground of the drive: flat patches, their grain, and the shade that lies on them."""

from __future__ import annotations

import cv2
import numpy as np

from rtseg.data._drive_camera import View
from rtseg.data._drive_paint import F32, F64, U8, Canvas
from rtseg.data._drive_textures import asphalt
from rtseg.data._drive_world import Chunk

_TILE_M = 16.0
_FAR_M = 220.0


class Ground:
    """Paints the ground for one image size; holds the pixel grid, not the frame's state."""

    def __init__(self, size_hw: tuple[int, int], kind: int) -> None:
        h, w = size_hw
        self._cols: F32 = np.arange(w, dtype=np.float32)[None, :]
        self._rows: F32 = np.arange(h, dtype=np.float32)[:, None]
        self._grain = asphalt(kind)

    def patches(self, canvas: Canvas, view: View, chunks: list[Chunk]) -> None:
        """Paints all patches of the chunks, layer by layer."""
        near = view.s + 0.75 * view.height * view.focal / (canvas.height - view.horizon)
        chosen = []
        for layer in range(4):
            reach = (_FAR_M, _FAR_M, _FAR_M, 70.0)[layer]
            for chunk in reversed(chunks):
                for patch in chunk.layers[layer]:
                    s = patch.points[:, 0]
                    if s.max() > near and s.min() < view.s + reach:
                        chosen.append(patch)
        if not chosen:
            return
        world = np.concatenate([p.points for p in chosen])
        world[:, 0] = np.maximum(world[:, 0], near)
        px = view.project(world)
        start = 0
        for patch in chosen:
            n = len(patch.points)
            points = px[start : start + n]
            d = float(world[start : start + n, 0].mean()) - view.s
            start += n
            low, high = points.min(axis=0), points.max(axis=0)
            if high[0] < 0 or low[0] > canvas.width or low[1] > canvas.height:
                continue
            if patch.label is None and high[1] - low[1] < 0.35:
                continue
            lum = 1.0
            if patch.label is None and patch.points.shape[0] < 10:
                lum = min(1.0, 0.8 + 0.2 * float(high[1] - low[1]))
            canvas.fill(points, canvas.light.colour(patch.colour, d, lum), patch.label)

    def shade(self, canvas: Canvas, view: View, shadows: list[tuple[F64, float]]) -> None:
        """Lays grain and shadows over the ground. shadows: world outlines (N, 3) and light left."""
        top = int(np.clip(view.horizon - 0.02 * canvas.width, 0, canvas.height - 2))
        if shadows:
            dim = np.full((canvas.height - top, canvas.width), 255, np.uint8)
            world = np.concatenate([points for points, _ in shadows])
            world[:, 0] = np.maximum(world[:, 0], view.s + 1.2)
            px = view.project(world) - (0, top)
            start = 0
            for points, left in shadows:
                fixed = np.rint(np.clip(px[start : start + len(points)], -30000, 30000) * 16)
                start += len(points)
                level = int(left * 255)
                cv2.fillConvexPoly(dim, fixed.astype(np.int32), level, cv2.LINE_AA, 4)
            dim = cv2.blur(dim, (5, 3))
        grain = self._grain_map(view, top, canvas)
        if shadows:
            grain = np.asarray(cv2.multiply(grain, dim, scale=1 / 255), np.uint8)
        ground = canvas.image[top:]
        cv2.multiply(ground, cv2.cvtColor(grain, cv2.COLOR_GRAY2BGRA), dst=ground, scale=1 / 200)

    def _grain_map(self, view: View, top: int, canvas: Canvas) -> U8:
        """Brightness of the ground's texture for the rows from `top` down, (h, W) uint8."""
        h, w = canvas.height, canvas.width
        out = np.full((h - top, w), 200, np.uint8)
        focal, height = view.focal, view.height
        # From near to far in bands of distance; each takes the texture level that fits its rows.
        edges_m = (0.0, 7.0, 14.0, 26.0, 60.0)
        u = self._cols - np.float32(view.cx)
        level_row = view.horizon
        bottom = h
        for n in range(len(edges_m) - 1):
            first = int(np.ceil(level_row + focal * height / edges_m[n + 1]))
            first = max(first, top)
            if first >= bottom:
                continue
            tile = self._grain[n]
            ppm = tile.shape[0] / _TILE_M
            rows = self._rows[first:bottom]
            below = rows - np.float32(level_row) - np.float32(view.roll) * u
            d = np.float32(focal * height) / np.maximum(below, 0.5)
            middle = d[:, w // 2]
            s = view.s + middle.astype(np.float64)
            bend = s * 0 + view.x - view.lateral(s, s * 0 + view.x)
            x = d * (u / np.float32(focal)) + (view.x + bend).astype(np.float32)[:, None]
            along = d + np.float32(view.s % _TILE_M)
            grain = cv2.remap(
                tile, x * np.float32(ppm), along * np.float32(-ppm), cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_WRAP,
            )  # fmt: skip
            if n == 3:  # fade into the distance
                fade = np.clip(2.0 - middle / 30.0, 0, 1).astype(np.float32)[:, None]
                grain = (200 + (grain.astype(np.float32) - 200) * fade).astype(np.uint8)
            out[first - top : bottom - top] = grain
            bottom = first
        return out
