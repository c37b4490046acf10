"""The canvas of the procedural drive: picture and labels, painted together by the same geometry.

It knows sprites, quads, polygons, light and haze; nothing of streets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, CYCLIST, VOID = range(12)

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
BGR = tuple[float, float, float]

_SHIFT = 4
_LIMIT = 30000.0


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

    def keep(self, distance_m: float) -> float:
        """Share of a surface's own colour that is left at a distance, 0..1."""
        return math.exp(-max(distance_m, 0.0) / self.haze_m)

    def colour(self, bgr: BGR, distance_m: float, lum: float = 1.0) -> tuple[float, ...]:
        """Pixel value (B, G, R, 255) of a surface colour at a distance."""
        t = self.keep(distance_m)
        a, f = lum * t * self.chroma, 1 - t
        grey = lum * t * (1 - self.chroma) * (bgr[0] + bgr[1] + bgr[2]) / 3
        return (
            min(255.0, self.gain[0] * (bgr[0] * a + grey) + self.haze[0] * f),
            min(255.0, self.gain[1] * (bgr[1] * a + grey) + self.haze[1] * f),
            min(255.0, self.gain[2] * (bgr[2] * a + grey) + self.haze[2] * f),
            255.0,
        )

    def matrix(self, distance_m: float, lum: float, tint: BGR, fade: float) -> F32:
        """(4, 4) float32 colour matrix for premultiplied BGRA: light, tint, haze and fade-in."""
        t = self.keep(distance_m)
        m = np.zeros((4, 4), np.float32)
        for i in range(3):
            part = self.gain[i] * tint[i] * lum * t
            m[i, :3] = part * (1 - self.chroma) / 3
            m[i, i] += part * self.chroma
            m[i, 3] = self.haze[i] / 255.0 * (1 - t)
        m[3, 3] = 1.0
        return np.asarray(m * np.float32(fade), np.float32)


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
    scaled = np.rint(points.clip(-_LIMIT, _LIMIT) * (1 << _SHIFT))
    return np.asarray(scaled.astype(np.int32), np.int32)


class Canvas:
    """A picture (H, W, 4) uint8 and its labels (H, W) uint8, painted from far to near."""

    def __init__(self, size_hw: tuple[int, int], light: Light) -> None:
        self.height, self.width = size_hw
        self.image: U8 = np.zeros((*size_hw, 4), np.uint8)
        self.labels: U8 = np.zeros(size_hw, np.uint8)
        self.light = light

    def convex(self, points: F64, colour: Sequence[float], label: int | None) -> None:
        """Fills a convex polygon: points (N, 2) in pixels, colour BGRA; label None: no label."""
        self.convex_fixed(to_fixed(points), colour, label)

    def convex_fixed(self, fixed: I32, colour: Sequence[float], label: int | None) -> None:
        """`convex` with points from `to_fixed`."""
        cv2.fillConvexPoly(self.image, fixed, colour, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillConvexPoly(self.labels, fixed, label, cv2.LINE_8, _SHIFT)

    def fill(self, points: F64, colour: Sequence[float], label: int | None) -> None:
        """Fills any polygon: points (N, 2) in pixels, colour BGRA."""
        self.fill_fixed(to_fixed(points), colour, label)

    def fill_fixed(self, fixed: I32, colour: Sequence[float], label: int | None) -> None:
        """`fill` with points from `to_fixed`."""
        cv2.fillPoly(self.image, [fixed], colour, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.labels, [fixed], label, cv2.LINE_8, _SHIFT)

    def _roi(self, points: F64) -> tuple[int, int, int, int] | None:
        """(x0, y0, x1, y1) of the part of the frame the points enclose, None if there is none."""
        low, high = points.min(axis=0), points.max(axis=0)
        x0, y0 = max(0, int(np.floor(low[0]))), max(0, int(np.floor(low[1])))
        x1 = min(self.width, int(np.ceil(high[0])) + 1)
        y1 = min(self.height, int(np.ceil(high[1])) + 1)
        return None if x1 - x0 < 1 or y1 - y0 < 1 else (x0, y0, x1, y1)

    def _over(self, box: tuple[int, int, int, int], drawn: U8, colour: F32) -> U8:
        """Lays a premultiplied patch over the picture; returns the patch as laid."""
        x0, y0, x1, y1 = box
        lit = np.asarray(cv2.transform(drawn, colour), np.uint8)
        below = self.image[y0:y1, x0:x1]
        hole = cv2.cvtColor(cv2.bitwise_not(cv2.extractChannel(lit, 3)), cv2.COLOR_GRAY2BGRA)
        cv2.add(cv2.multiply(below, hole, scale=1 / 255), lit, dst=below)
        return lit

    def sprite(
        self,
        sprite: Sprite,
        foot: tuple[float, float],
        size_px: tuple[float, float],
        label: int | None,
        distance_m: float,
        lum: float = 1.0,
        tint: BGR = (1.0, 1.0, 1.0),
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
        picture = sprite.levels[n]
        sh, sw = picture.shape[:2]
        x, y = foot
        reach = abs(lean) * h
        x0, y0 = max(0, math.floor(x - w / 2 - reach)), max(0, math.floor(y - h))
        x1 = min(self.width, math.ceil(x + w / 2 + reach) + 1)
        y1 = min(self.height, math.ceil(y) + 1)
        if x1 - x0 < 1 or y1 - y0 < 1:
            return
        box = (x0, y0, x1, y1)
        ax = (-w if flip else w) / sw
        ay = h / sh
        left = x + w / 2 if flip else x - w / 2
        # Pixel centres: source (i + .5) maps to screen (j + .5).
        m = np.array(
            [
                [ax, -lean * ay, left + lean * h - x0 - 0.5 + 0.5 * ax - 0.5 * lean * ay],
                [0.0, ay, y - h - y0 - 0.5 + 0.5 * ay],
            ]
        )
        size = (x1 - x0, y1 - y0)
        drawn = np.asarray(cv2.warpAffine(picture, m, size, flags=cv2.INTER_LINEAR), np.uint8)
        lit = self._over(box, drawn, self.light.matrix(distance_m, lum, tint, fade))
        if label is None:
            return
        if sprite.masks is None:
            shape = lit[..., 3]
        elif fade > 0.5:
            shape = np.asarray(cv2.warpAffine(sprite.masks[n], m, size), np.uint8)
        else:
            return
        np.copyto(self.labels[y0:y1, x0:x1], np.uint8(label), where=shape > 127)

    def quad(
        self,
        sprite: Sprite,
        corners: F64,
        label: int | None,
        distance_m: float,
        lum: float = 1.0,
        tint: BGR = (1.0, 1.0, 1.0),
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
        lit = self._over(box, drawn, self.light.matrix(distance_m, lum, tint, 1.0))
        if label is None:
            return
        if solid:
            cv2.fillConvexPoly(self.labels, to_fixed(corners), label, cv2.LINE_8, _SHIFT)
        else:
            np.copyto(self.labels[y0:y1, x0:x1], np.uint8(label), where=lit[..., 3] > 127)
