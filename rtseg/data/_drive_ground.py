"""The ground of the drive: flat patches, their grain, and the shade that lies on them."""

from __future__ import annotations

import cv2
import numpy as np

from rtseg.data._drive_camera import View
from rtseg.data._drive_paint import F32, F64, U8, Canvas, Light, to_fixed
from rtseg.data._drive_textures import asphalt
from rtseg.data._drive_things import Chunk, House, Patch, Placed, Plant, Vehicle

_TILE_M = 16.0
_FAR_M = 220.0
_EDGES_M = (7.0, 14.0, 26.0, 60.0)
# Tiles along and across that reach as far as each edge; a lens sees _WIDEST of it to each side.
_REPEATS = ((2, 2), (2, 3), (3, 4), (5, 6))
_WIDEST = 0.66
_TURN = np.linspace(0, 2 * np.pi, 11)[:-1]
_BLOB = np.stack(
    [np.sin(_TURN) * (1 + 0.2 * np.sin(3 * _TURN)), 1.5 * np.cos(_TURN), 0 * _TURN], axis=1
)


class Ground:
    """Paints the ground for one image size; holds the pixel grid, not the frame's state."""

    def __init__(self, size_hw: tuple[int, int], kind: int) -> None:
        h, w = size_hw
        self._cols: F32 = np.arange(w, dtype=np.float32)[None, :]
        self._rows: F32 = np.arange(h, dtype=np.float32)[:, None]
        # Repeated until all that a frame sees of a level lies within: OpenCV is slow to wrap.
        levels = zip(asphalt(kind), _REPEATS, strict=False)
        self._grain = [(np.tile(tile, n), tile.shape[0] / _TILE_M) for tile, n in levels]

    def patches(self, canvas: Canvas, view: View, chunks: list[Chunk]) -> None:
        """Paints all patches of the chunks, layer by layer."""
        near = view.s + 0.75 * view.height * view.focal / (canvas.height - view.horizon)
        chosen: list[Patch] = []
        for layer in range(4):
            for chunk in reversed(chunks):
                for patch in chunk.layers[layer]:
                    reach = _FAR_M if patch.label is not None else (80.0 if layer == 3 else 32.0)
                    if patch.end > near and patch.begin < view.s + reach:
                        chosen.append(patch)
        if not chosen:
            return
        world = np.concatenate([p.points for p in chosen])
        world[:, 0] = np.maximum(world[:, 0], near)
        px = view.project(world)
        starts = np.cumsum([0] + [len(p.points) for p in chosen])
        low = np.minimum.reduceat(px, starts[:-1], axis=0)
        high = np.maximum.reduceat(px, starts[:-1], axis=0)
        seen = (high[:, 0] > 0) & (low[:, 0] < canvas.width) & (low[:, 1] < canvas.height)
        tall = high[:, 1] - low[:, 1]
        fixed = to_fixed(px)
        for i in np.flatnonzero(seen):
            patch = chosen[i]
            lum = 1.0
            if patch.label is None:
                if tall[i] < 0.35:
                    continue
                lum = min(1.0, 0.8 + 0.2 * float(tall[i]))
            d = max(near, 0.5 * (patch.begin + patch.end)) - view.s
            tone = canvas.light.colour(patch.colour, d, lum)
            canvas.fill_fixed(fixed[starts[i] : starts[i + 1]], tone, patch.label)

    def shade(self, canvas: Canvas, view: View, shadows: list[tuple[F64, float]]) -> None:
        """Lays grain and shadows over the ground. shadows: world outlines (N, 3) and light left."""
        top = int(np.clip(view.horizon - 0.02 * canvas.width, 0, canvas.height - 2))
        if shadows:
            dim = np.full((canvas.height - top, canvas.width), 255, np.uint8)
            world = np.concatenate([points for points, _ in shadows])
            world[:, 0] = np.maximum(world[:, 0], view.s + 1.2)
            fixed = to_fixed(view.project(world) - (0, top))
            start = 0
            for points, left in shadows:
                outline = fixed[start : start + len(points)]
                start += len(points)
                cv2.fillConvexPoly(dim, outline, int(left * 255), cv2.LINE_AA, 4)
            dim = np.asarray(cv2.blur(dim, (5, 3)), np.uint8)
        grain = self._grain_map(view, top, canvas)
        if shadows:
            grain = np.asarray(cv2.multiply(grain, dim, scale=1 / 255), np.uint8)
        ground = canvas.image[top:]
        cv2.multiply(ground, cv2.cvtColor(grain, cv2.COLOR_GRAY2BGR), dst=ground, scale=1 / 200)

    def _grain_map(self, view: View, top: int, canvas: Canvas) -> U8:
        """Brightness of the ground's texture for the rows from `top` down, (h, W) uint8."""
        h, w = canvas.height, canvas.width
        out = np.full((h - top, w), 200, np.uint8)
        focal, height = view.focal, view.height
        # From near to far in bands of distance; each takes the texture level that fits its rows.
        u = self._cols - np.float32(view.cx)
        level_row = view.horizon
        bottom = h
        for n, edge_m in enumerate(_EDGES_M):
            first = int(np.ceil(level_row + focal * height / edge_m))
            first = max(first, top)
            if first >= bottom:
                continue
            tile, ppm = self._grain[n]
            rows = self._rows[first:bottom]
            below = rows - np.float32(level_row) - np.float32(view.roll) * u
            d = np.float32(focal * height) / np.maximum(below, 0.5)
            middle = d[:, w // 2]
            s = view.s + middle.astype(np.float64)
            bend = s * 0 + view.x - view.lateral(s, s * 0 + view.x)
            left = (view.x + bend - _WIDEST * middle) % _TILE_M + _WIDEST * middle
            x = d * (u / np.float32(focal)) + left.astype(np.float32)[:, None]
            back = np.float32(tile.shape[0] / ppm - view.s % _TILE_M) - d
            x *= np.float32(ppm)
            back *= np.float32(ppm)
            grain = cv2.remap(tile, x, back, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
            if n == 3:  # fade into the distance
                fade = np.clip(2.0 - middle / 30.0, 0, 1).astype(np.float32)[:, None]
                grain = (200 + (grain.astype(np.float32) - 200) * fade).astype(np.uint8)
            out[first - top : bottom - top] = grain
            bottom = first
        return out


def shadows(groups: list[Placed], view: View, light: Light) -> list[tuple[F64, float]]:
    """World outlines (N, 3) of the shade on the ground, and the light left in each, 0..1."""
    out: list[tuple[F64, float]] = []
    sunny = light.sun > 0.2
    for group in groups:
        # A little behind the camera too: crowns reach forward.
        near = (group.boxes[:, 1] > view.s - 10) & (group.boxes[:, 0] < view.s + 110)
        for i in np.flatnonzero(near).tolist():
            thing, outline = group.things[i], group.outlines[i]
            if isinstance(thing, Vehicle) and outline is not None:
                if thing.s > view.s:
                    out.append((outline[-4:], 0.38))
            elif sunny and isinstance(thing, Plant):
                out.append((_crown_shade(thing, light), 1 - 0.45 * light.sun))
            elif sunny and isinstance(thing, House) and light.sun_side * thing.side > 0:
                out.append((_house_shade(thing, light), 1 - 0.5 * light.sun))
    return out


def _crown_shade(p: Plant, light: Light) -> F64:
    """World outline (10, 3) of a plant's shadow."""
    x, r = p.x - light.sun_side * p.height * 0.6, p.height * 0.33
    return np.asarray(_BLOB * r + (p.s, x, 0.0), np.float64)


def _house_shade(h: House, light: Light) -> F64:
    """World outline (4, 3) of the shadow in front of a house."""
    x = h.x - h.side * h.height * 0.54 / max(abs(light.sun_side), 0.3)
    return np.array([(h.s1, h.x, 0), (h.s2, h.x, 0), (h.s2 + 1, x, 0), (h.s1 + 1, x, 0)])
