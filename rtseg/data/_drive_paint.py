"""The canvas of the procedural drive: picture and labels, painted together by the same geometry.

It knows sprites, quads, polygons, light and haze; nothing of streets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, CYCLIST, VOID = range(12)

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
BGR = tuple[float, float, float]
PLAIN: BGR = (1.0, 1.0, 1.0)

FIXED_BITS = 4
_LIMIT = 30000.0
_BANDED_PX = 6000  # a sprite as large as this on screen is laid in bands, most of it empty
_BANDS = 4
# Column to x, row to x, x of the corner, row to y, y of the corner: a level's pixels to the frame.
_Affine = tuple[float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Light:
    """How a surface colour becomes a pixel value.

    Attributes:
        gain: factor per channel (B, G, R).
        haze: colour (B, G, R) that distance fades into.
        haze_m: distance at which 63 % of a colour has become haze.
        sun: strength of direct sun, 0 (overcast) to 1 (hard shadows).
        sun_side: lateral direction of the sun, -1 (left) to 1 (right).
        chroma: how colourful surfaces look, 0 (grey) to 1 (as painted).
    """

    gain: BGR
    haze: BGR
    haze_m: float
    sun: float
    sun_side: float
    chroma: float
    _own: F32 = field(init=False, repr=False, compare=False)
    _haze: F32 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mix = np.full((3, 3), (1 - self.chroma) / 3) + np.eye(3) * self.chroma
        own = np.array(self.gain)[:, None] * mix
        object.__setattr__(self, "_own", own.astype(np.float32))
        object.__setattr__(self, "_haze", np.diag(self.haze).astype(np.float32) / 255)

    def keep(self, distance_m: float) -> float:
        """Share of a surface's own colour that is left at a distance, 0..1."""
        return math.exp(-max(distance_m, 0.0) / self.haze_m)

    def colour(self, bgr: BGR, distance_m: float, lum: float = 1.0) -> tuple[float, ...]:
        """Pixel value (B, G, R, 255) of a surface colour at a distance; OpenCV clips it at 255."""
        t = math.exp(-distance_m / self.haze_m) if distance_m > 0 else 1.0
        (b, g, r), gain, haze = bgr, self.gain, self.haze
        a, f = lum * t * self.chroma, 1 - t
        grey = lum * t * (1 - self.chroma) * (b + g + r) / 3
        return (
            gain[0] * (b * a + grey) + haze[0] * f,
            gain[1] * (g * a + grey) + haze[1] * f,
            gain[2] * (r * a + grey) + haze[2] * f,
            255.0,
        )

    def colours(self, bgr: F64, distance_m: float, lum: F64) -> F64:
        """`colour` of many: (N, 3) and (N,) to (N, 4)."""
        t = self.keep(distance_m)
        grey = bgr.mean(axis=1, keepdims=True) * (1 - self.chroma)
        out = np.full((len(bgr), 4), 255.0)
        lit = (bgr * self.chroma + grey) * (lum * t)[:, None]
        out[:, :3] = lit * self.gain + np.array(self.haze) * (1 - t)
        return out

    def matrices(self, distance_m: float, lum: float, tint: BGR) -> tuple[F32, F32]:
        """Two (3, 3) float32 for a premultiplied sprite: of its colours, and of its alpha thrice.

        The sum of both is what is seen of it: its own light, and the haze in front of it.
        """
        t = self.keep(distance_m)
        own = self._own if tint == PLAIN else self._own * np.array(tint, np.float32)[:, None]
        return own * np.float32(lum * t), self._haze * np.float32(1 - t)


class Band(NamedTuple):
    """Rows top to bottom of a picture, and the columns left to right that are filled in them."""

    top: int
    bottom: int
    left: int
    right: int


def _bands(shape: U8, count: int) -> list[Band]:
    """Cuts (h, w) into bands; two rows more are looked at, for what sampling between rows needs."""
    edges = [len(shape) * i // count for i in range(count + 1)]
    bands = []
    for top, bottom in pairwise(edges):
        filled = np.flatnonzero(shape[max(0, top - 2) : bottom + 2].any(axis=0))
        if len(filled):
            bands.append(Band(top, bottom, int(filled[0]), int(filled[-1]) + 1))
    return bands


class Sprite:
    """A picture with transparency, and its smaller versions.

    Attributes:
        levels: (h, w, 4) uint8 premultiplied BGRA, each half the size of the one before.
        masks: (h, w) uint8 shapes to label where they differ from the alpha channel, or None.
    """

    def __init__(self, bgra: U8, mask: U8 | None = None, premultiplied: bool = True) -> None:
        if not premultiplied:
            bgra = bgra.copy()
            alpha = cv2.cvtColor(bgra[..., 3], cv2.COLOR_GRAY2BGR)
            bgra[..., :3] = cv2.multiply(bgra[..., :3], alpha, scale=1 / 255)
        self.levels: list[U8] = [bgra]
        self.masks: list[U8] | None = None if mask is None else [mask]
        while min(self.levels[-1].shape[:2]) > 5:
            self.levels.append(halve(self.levels[-1]))
            if self.masks is not None:
                self.masks.append(halve(self.masks[-1]))
        self._narrow: dict[tuple[int, int], U8] = {}
        self._bands: dict[tuple[int, int], list[Band]] = {}

    def bands(self, n: int, count: int) -> list[Band]:
        """Level n in `count` bands of rows, each as wide as what is in it; empty ones left out."""
        if (n, count) not in self._bands:
            shape = self.levels[n][..., 3]
            if self.masks is not None:
                shape = np.maximum(shape, self.masks[n])
            self._bands[n, count] = _bands(shape, count)
        return self._bands[n, count]

    def level(self, nx: int, ny: int) -> U8:
        """The picture reduced by 2**nx across and 2**ny down, as far as it goes."""
        if nx == ny:
            return self.levels[min(nx, len(self.levels) - 1)]
        if (nx, ny) not in self._narrow:
            h, w = self.levels[0].shape[:2]
            size = (max(2, w >> nx), max(2, h >> ny))
            reduced = cv2.resize(self.levels[0], size, interpolation=cv2.INTER_AREA)
            self._narrow[nx, ny] = np.asarray(reduced, np.uint8)
        return self._narrow[nx, ny]


def halve(image: U8) -> U8:
    """The image at half its size, area-averaged."""
    h, w = image.shape[:2]
    small = cv2.resize(image, (max(1, w // 2), max(1, h // 2)), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def _steps(ratio: float) -> int:
    """How many halvings bring `ratio` source pixels per screen pixel down to at most about 1.4."""
    return max(0, min(6, math.floor(math.log2(max(ratio, 1.0)) + 0.5)))


def to_fixed(points: F64) -> I32:
    """Pixels (..., 2) as the fixed-point integers that OpenCV's polygons take."""
    scaled = np.rint(np.minimum(np.maximum(points, -_LIMIT), _LIMIT) * (1 << FIXED_BITS))
    return np.asarray(scaled.astype(np.int32), np.int32)


class Outline(NamedTuple):
    """Points of a thing on screen: (N, 2) in pixels, and the same from `to_fixed`."""

    px: F64
    fixed: I32


class Canvas:
    """A picture (H, W, 3) uint8 and its labels (H, W) uint8, painted from far to near."""

    def __init__(self, size_hw: tuple[int, int], light: Light) -> None:
        self.height, self.width = size_hw
        self.image: U8 = np.zeros((*size_hw, 3), np.uint8)
        self.labels: U8 = np.zeros(size_hw, np.uint8)
        self.light = light

    def convex(self, points: F64, colour: Sequence[float], label: int | None) -> None:
        """Fills a convex polygon: points (N, 2) in pixels, colour BGRA; label None: no label."""
        self.convex_fixed(to_fixed(points), colour, label)

    def convex_fixed(self, fixed: I32, colour: Sequence[float], label: int | None) -> None:
        """`convex` with points from `to_fixed`."""
        cv2.fillConvexPoly(self.image, fixed, colour, cv2.LINE_AA, FIXED_BITS)
        if label is not None:
            cv2.fillConvexPoly(self.labels, fixed, label, cv2.LINE_8, FIXED_BITS)

    def fill(self, points: F64, colour: Sequence[float], label: int | None) -> None:
        """Fills any polygon: points (N, 2) in pixels, colour BGRA."""
        self.fill_fixed(to_fixed(points), colour, label)

    def fill_fixed(self, fixed: I32, colour: Sequence[float], label: int | None) -> None:
        """`fill` with points from `to_fixed`."""
        cv2.fillPoly(self.image, [fixed], colour, cv2.LINE_AA, FIXED_BITS)
        if label is not None:
            cv2.fillPoly(self.labels, [fixed], label, cv2.LINE_8, FIXED_BITS)

    def _roi(self, points: F64) -> tuple[int, int, int, int] | None:
        """(x0, y0, x1, y1) of the part of the frame the points enclose, None if there is none."""
        xs, ys = points.T.tolist()  # of four points, plain numbers are found faster
        x0, y0 = max(0, math.floor(min(xs))), max(0, math.floor(min(ys)))
        x1 = min(self.width, math.ceil(max(xs)) + 1)
        y1 = min(self.height, math.ceil(max(ys)) + 1)
        return None if x1 - x0 < 1 or y1 - y0 < 1 else (x0, y0, x1, y1)

    def _over(
        self, box: tuple[int, int, int, int], drawn: U8, light: tuple[F32, F32], fade: float
    ) -> U8:
        """Lays a premultiplied patch over the picture; returns its alpha (h, w) as laid."""
        x0, y0, x1, y1 = box
        alpha = cv2.extractChannel(drawn, 3)
        colours = cv2.cvtColor(drawn, cv2.COLOR_BGRA2BGR)
        if fade < 1:
            alpha = cv2.convertScaleAbs(alpha, alpha=fade)
            colours = cv2.convertScaleAbs(colours, alpha=fade)
        cover = cv2.cvtColor(alpha, cv2.COLOR_GRAY2BGR)
        # OpenCV transforms three channels many times faster than four.
        lit = cv2.add(cv2.transform(colours, light[0]), cv2.transform(cover, light[1]))
        below = self.image[y0:y1, x0:x1]
        cv2.add(cv2.multiply(below, cv2.bitwise_not(cover), scale=1 / 255), lit, dst=below)
        return np.asarray(alpha, np.uint8)

    def _mark(self, box: tuple[int, int, int, int], shape: U8, label: int) -> None:
        """Labels a box where its shape (h, w) is above the middle."""
        x0, y0, x1, y1 = box
        _, marked = cv2.threshold(shape, 127, label, cv2.THRESH_BINARY)
        cv2.copyTo(marked, marked, self.labels[y0:y1, x0:x1])

    def sprite(
        self,
        sprite: Sprite,
        foot: tuple[float, float],
        size_px: tuple[float, float],
        label: int | None,
        distance_m: float,
        lum: float = 1.0,
        tint: BGR = PLAIN,
        fade: float = 1.0,
        flip: bool = False,
        lean: float = 0.0,
    ) -> None:
        """Stands a sprite on a point.

        Args:
            foot: (x, y) in pixels of the middle of its lower edge.
            size_px: (width, height) on screen.
            lean: pixels that the top is moved right, per pixel of height (camera roll).
        """
        w, h = size_px
        if h < 1.2 or w < 0.5:
            return
        full_h, full_w = sprite.levels[0].shape[:2]
        n = min(_steps(min(full_h / h, full_w / w)), len(sprite.levels) - 1)
        sh, sw = sprite.levels[n].shape[:2]
        x, y = foot
        ax = (-w if flip else w) / sw
        ay = h / sh
        m = (ax, -lean * ay, x - ax * sw / 2 + lean * h, ay, y - h)
        light = self.light.matrices(distance_m, lum, tint)
        for band in sprite.bands(n, _BANDS if w * h > _BANDED_PX else 1):
            box = self._band_box(band, m, sh)
            if box is not None:
                self._stand(sprite, n, box, m, light, fade, label)

    def _band_box(self, band: Band, m: _Affine, rows: int) -> tuple[int, int, int, int] | None:
        """The part of the frame that a band of a level with so many rows takes; None if outside."""
        ax, shear, left, ay, top = m
        low, high = ax * (band.left - 1), ax * (band.right + 1)
        if ax < 0:
            low, high = high, low
        lean, more = shear * (band.top - 1), shear * (band.bottom + 1)
        if shear < 0:
            lean, more = more, lean
        x0 = max(0, math.floor(left + low + lean))
        x1 = min(self.width, math.ceil(left + high + more) + 1)
        # Neighbours share an edge, so that no row of the frame is painted twice.
        first, last = top + ay * band.top, top + ay * band.bottom
        y0 = max(0, math.floor(first))
        y1 = min(self.height, math.ceil(last) + 1 if band.bottom == rows else math.floor(last))
        return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None

    def _stand(
        self,
        sprite: Sprite,
        n: int,
        box: tuple[int, int, int, int],
        m: _Affine,
        light: tuple[F32, F32],
        fade: float,
        label: int | None,
    ) -> None:
        """Draws what a box of the frame holds of level n, placed by m."""
        x0, y0, x1, y1 = box
        # Pixel centres: source (i + .5) maps to screen (j + .5).
        ax, shear, left, ay, top = m
        placed = np.array(
            (
                (ax, shear, left + (ax + shear) / 2 - 0.5 - x0),
                (0.0, ay, top + ay / 2 - 0.5 - y0),
            )
        )
        size = (x1 - x0, y1 - y0)
        drawn = cv2.warpAffine(sprite.levels[n], placed, size, flags=cv2.INTER_LINEAR)
        alpha = self._over(box, np.asarray(drawn, np.uint8), light, fade)
        if label is None:
            return
        if sprite.masks is None:
            shape = alpha
        elif fade > 0.5:
            shape = np.asarray(cv2.warpAffine(sprite.masks[n], placed, size), np.uint8)
        else:
            return
        self._mark(box, shape, label)

    def quad(
        self,
        sprite: Sprite,
        corners: F64,
        label: int | None,
        distance_m: float,
        lum: float = 1.0,
        tint: BGR = PLAIN,
        span: tuple[float, float] = (0.0, 1.0),
        solid: bool = False,
    ) -> None:
        """Warps a sprite onto a quadrilateral.

        Args:
            corners: (4, 2) pixels: the sprite's top left, top right, bottom right, bottom left.
            span: part of the sprite's width that is shown, 0..1 each.
            solid: label the whole quadrilateral, holes included.
        """
        box = self._roi(corners)
        if box is None:
            return
        full_h, full_w = sprite.levels[0].shape[:2]
        shown = max(span[1] - span[0], 1e-3)
        across = max(abs(float(corners[1, 0] - corners[0, 0])), 0.5)
        tall = max(float(corners[3, 1] - corners[0, 1]), float(corners[2, 1] - corners[1, 1]), 0.5)
        picture = sprite.level(_steps(full_w * shown / across), _steps(full_h / tall))
        sh, sw = picture.shape[:2]
        x0, y0, x1, y1 = box
        a, b = span[0] * sw - 0.5, span[1] * sw - 0.5
        source = np.array([(a, -0.5), (b, -0.5), (b, sh - 0.5), (a, sh - 0.5)], np.float32)
        target = (corners - (x0 + 0.5, y0 + 0.5)).astype(np.float32)
        m = cv2.getPerspectiveTransform(source, target)
        size = (x1 - x0, y1 - y0)
        drawn = np.asarray(cv2.warpPerspective(picture, m, size, flags=cv2.INTER_LINEAR), np.uint8)
        alpha = self._over(box, drawn, self.light.matrices(distance_m, lum, tint), 1.0)
        if label is None:
            return
        if solid:
            cv2.fillConvexPoly(self.labels, to_fixed(corners), label, cv2.LINE_8, FIXED_BITS)
        else:
            self._mark(box, alpha, label)
