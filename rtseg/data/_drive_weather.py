"""Light and weather of the drive, and what the camera adds to the picture."""

from __future__ import annotations

import random
from dataclasses import dataclass

import cv2
import numpy as np
from cv2.typing import MatLike

from rtseg.data._drive_camera import View
from rtseg.data._drive_paint import BGR, F32, ROAD, U8, Canvas, Light
from rtseg.data._drive_textures import noise, sky, to_u8

WEATHERS = ("clear", "overcast", "rain", "dusk", "fog")
_SHARES = (0.42, 0.38, 0.09, 0.06, 0.05)


@dataclass(frozen=True, slots=True)
class Weather:
    """The light and air of one drive."""

    kind: str
    light: Light
    zenith: BGR
    low: BGR
    cloud: BGR
    cover: float
    wet: float
    noise: float
    vignette: float
    glare: float
    soft: bool
    rush: float
    contrast: float

    @classmethod
    def draw(cls, rng: random.Random, kind: str) -> Weather:
        """Random weather of a kind of WEATHERS; "auto" draws the kind too."""
        auto = rng.choices(WEATHERS, _SHARES)[0]
        kind = auto if kind == "auto" else kind
        under = rng.random() < 0.25  # exposed for the sky: the street goes dark
        level = {
            "clear": rng.uniform(0.9, 1.4), "overcast": rng.uniform(0.75, 1.3),
            "rain": rng.uniform(0.65, 1.1), "dusk": rng.uniform(0.35, 0.65), "fog": 0.95,
        }[kind]  # fmt: skip
        if under and kind in ("clear", "overcast", "rain"):
            level *= rng.uniform(0.35, 0.6)
        warm = {"clear": rng.uniform(0.98, 1.1), "dusk": rng.uniform(1.0, 1.2)}.get(kind, 1.0)
        cold = {"dusk": 1.06}.get(kind, 1.03)
        bright = rng.uniform(238, 262)
        zenith: BGR = (bright, bright * 0.97, bright * 0.93)
        low: BGR = (258, 256, 254)
        cloud: BGR = (258, 257, 256)
        cover = rng.uniform(0.45, 0.9)
        if kind == "clear":
            blue = rng.random()
            zenith = (252, 246 - 62 * blue, 240 - 115 * blue)
            cover = rng.uniform(0.05, 0.6)
        elif kind in ("overcast", "rain") and (under or rng.random() < 0.15):
            grey = rng.uniform(140, 215)
            cloud = (grey * 1.02, grey, grey * 0.98)
            low = (grey + 50, grey + 49, grey + 47)
            cover = rng.uniform(0.6, 0.95)
        elif kind == "dusk":
            zenith = (150, 112, 86)
            low = (150, 178, 226)
            cloud = (138, 124, 120)
            cover = rng.uniform(0.2, 0.7)
        elif kind == "fog":
            zenith = low = cloud = (214, 213, 211)
        mist = {"clear": (400, 900), "overcast": (300, 700), "rain": (130, 260), "dusk": (250, 600)}
        haze_m = rng.uniform(35, 80) if kind == "fog" else rng.uniform(*mist[kind])
        haze = tuple(0.75 * a + 0.1 * b for a, b in zip(low, zenith, strict=True))
        sun = rng.uniform(0.5, 1.0) if kind == "clear" else (0.3 if kind == "dusk" else 0.0)
        low_sun = kind in ("clear", "dusk") and rng.random() < 0.3
        light = Light(
            (level * cold, level, level * warm), (haze[0], haze[1], haze[2]), haze_m, sun,
            rng.choice((-1, 1)) * rng.uniform(0.4, 1.0), rng.uniform(0.45, 0.95),
        )  # fmt: skip
        return cls(
            kind, light, zenith, low, cloud, cover,
            wet=rng.uniform(0.6, 1.0) if kind == "rain" else 0.0,
            noise={"dusk": 5.0, "rain": 4.0}.get(kind, rng.uniform(1.5, 4.0)),
            vignette=rng.uniform(0.0, 0.3),
            glare=rng.uniform(0.3, 0.8) if low_sun else 0.0,
            soft=rng.random() < 0.4,
            rush=rng.uniform(0.0, 1.0),
            contrast=1.0 if kind == "fog" else rng.uniform(1.0, 1.55),
        )  # fmt: skip


class Lens:
    """Sky, rain, glare and camera effects for one drive and size; all maps made once."""

    def __init__(self, weather: Weather, size_hw: tuple[int, int], seed: int) -> None:
        h, w = size_hw
        self.weather = weather
        tile = sky(seed % 1000, weather.cover, weather.zenith, weather.low, weather.cloud)
        # Four channels where the picture is warped: OpenCV warps three at half the pace.
        self._sky = cv2.cvtColor(np.concatenate([tile, tile], axis=1), cv2.COLOR_BGR2BGRA)
        yy, xx = (axis.astype(np.float32) for axis in np.mgrid[0:h, 0:w])
        far = ((xx / w - 0.5) ** 2 + (yy / h - 0.5) ** 2) * 2
        shade = to_u8(np.asarray((1 - weather.vignette * far) * 255, np.float32))
        self._vignette = np.asarray(cv2.cvtColor(shade, cv2.COLOR_GRAY2BGR), np.uint8)
        rng = np.random.default_rng(seed)
        grid = rng.standard_normal((h + 64, w + 64, 4), np.float32)[..., :3]
        common = rng.standard_normal((h + 64, w + 64, 1), np.float32)
        grain = np.asarray(weather.noise * (0.5 * grid + 0.8 * common), np.float32)
        self._noise = to_u8(128 + grain)
        self._ripple: F32 = noise((h, w), ((40, 1.0), (90, 0.7)), seed % 97) * (0.004 * w)
        self._rain = self._streaks(size_hw, seed) if weather.wet else None
        self._rows, self._cols = yy, xx
        self._sun_x = 0.5 + 0.35 * weather.light.sun_side

    @staticmethod
    def _streaks(size_hw: tuple[int, int], seed: int) -> U8:
        h, w = size_hw
        rng = random.Random(seed)
        out = np.zeros((2 * h, w, 3), np.uint8)
        for _ in range(int(260 * rng.uniform(0.5, 1.2))):
            x, y = rng.uniform(0, w), rng.uniform(0, 2 * h)
            length = rng.uniform(0.02, 0.09) * h
            tone = rng.uniform(20, 60)
            a = (round(x * 16), round(y * 16))
            b = (round((x + 0.12 * length) * 16), round((y + length) * 16))
            cv2.line(out, a, b, (tone, tone, tone), max(1, h // 360), cv2.LINE_AA, 4)
        return out

    def paint_sky(self, canvas: Canvas, view: View) -> None:
        """Fills the frame with sky; it turns with the camera and drifts slowly."""
        h, w = canvas.height, canvas.width
        horizon = max(view.horizon, 8.0)
        sy = 256 / (1.1 * horizon)
        sx = 1024 / (2.6 * w)
        shift = ((view.yaw * view.focal + view.t * 0.002 * w) * sx) % 1024.0
        m = np.array([[sx, view.roll * sx, shift], [-view.roll * sy, sy, 256 - sy * horizon]])
        rows = min(h, int(horizon + 0.02 * w) + 4)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        if self.weather.kind == "fog":
            canvas.image[:rows] = self.weather.light.haze
            return
        turned = cv2.warpAffine(
            self._sky, m, (w, rows), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        cv2.cvtColor(turned, cv2.COLOR_BGRA2BGR, dst=canvas.image[:rows])

    def wet(self, canvas: Canvas, view: View) -> None:
        """Mirrors what stands above the road in the wet road."""
        amount = self.weather.wet
        if not amount:
            return
        h = canvas.height
        top = int(min(max(view.horizon + 2, 1), h - 2))
        rows = self._rows[top:h]
        cols = self._cols[top:h] + self._ripple[top:h]
        source = np.float32(2 * view.horizon) - rows + 2 * self._ripple[top:h]
        mirror = cv2.remap(
            canvas.image, cols, source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        mirror = cv2.blur(mirror, (3, max(3, h // 24)))
        part = canvas.image[top:h]
        share = 0.34 * amount
        mixed = cv2.addWeighted(part, 0.72, mirror, share, 0)
        cv2.copyTo(mixed, cv2.inRange(canvas.labels[top:h], ROAD, ROAD), part)

    def finish(self, canvas: Canvas, view: View, index: int, rng: random.Random) -> U8:
        """Adds what air and camera do; returns the (H, W, 3) uint8 BGR picture."""
        image: MatLike = canvas.image
        h, w = canvas.height, canvas.width
        weather = self.weather
        if weather.glare:
            self._glare(canvas.image, view)
        if self._rain is not None:
            start = int((index * 0.37 * h) % h)
            image = cv2.add(image, self._rain[h - start : 2 * h - start])
        if weather.rush > 0.35:
            zoom = 1 + 0.012 * weather.rush
            cx, cy = view.cx, view.horizon
            m = np.array([[zoom, 0, cx * (1 - zoom)], [0, zoom, cy * (1 - zoom)]])
            four = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
            near = cv2.warpAffine(four, m, (w, h), borderMode=cv2.BORDER_REPLICATE)
            image = cv2.addWeighted(image, 0.55, cv2.cvtColor(near, cv2.COLOR_BGRA2BGR), 0.45, 0)
        elif weather.soft:
            image = cv2.blur(image, (2, 2), anchor=(0, 0))
        image = cv2.multiply(image, self._vignette, scale=1 / 255)
        a, b = rng.randrange(64), rng.randrange(64)
        c = weather.contrast
        black = -128 - 88 * (c - 1)
        image = cv2.addWeighted(image, c, self._noise[a : a + h, b : b + w], 1, black)
        return np.ascontiguousarray(image, dtype=np.uint8)

    def _glare(self, image: U8, view: View) -> None:
        """A low sun: a bright halo that lifts the blacks."""
        h, w = image.shape[:2]
        x = (self._sun_x * w - view.yaw * view.focal) / 8
        y = view.horizon * 0.35 / 8
        small = (
            self._cols[: (h + 7) // 8, : (w + 7) // 8],
            self._rows[: (h + 7) // 8, : (w + 7) // 8],
        )
        far = (small[0] - np.float32(x)) ** 2 + (small[1] - np.float32(y)) ** 2
        reach = (w / 8) ** 2
        glow = np.exp(-far / (0.006 * reach)) + 0.3 * np.exp(-far / (0.12 * reach))
        halo = 255 * self.weather.glare * glow
        bright = cv2.resize(to_u8(halo), (w, h), interpolation=cv2.INTER_LINEAR)
        cv2.add(image, cv2.cvtColor(bright, cv2.COLOR_GRAY2BGR), dst=image)
