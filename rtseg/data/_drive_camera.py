"""Where the camera of the procedural drive is, and what it projects: a pure function of time.

World coordinates are (s, x, y): metres along the road, metres right of its centre line, metres up.
The road bends by shearing: a cross-section stays flat to the camera, which holds for gentle curves.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from rtseg.data._drive_paint import F64

NEAR_M = 0.6


@dataclass(frozen=True, slots=True)
class Road:
    """The centre line: a sum of sines, amplitude (m), wavelength / 2 pi (m) and phase (rad)."""

    waves: tuple[tuple[float, float, float], ...]

    @classmethod
    def draw(cls, rng: random.Random) -> Road:
        """A road of random, gentle bends."""
        bend = rng.choice((0.15, 0.5, 0.8, 1.0))
        lengths = (rng.uniform(32, 45), rng.uniform(60, 90), rng.uniform(120, 200))
        slopes = (0.022, 0.05, 0.09)
        return cls(
            tuple(
                (bend * slope * length * rng.uniform(0.5, 1), length, rng.uniform(0, 2 * math.pi))
                for slope, length in zip(slopes, lengths, strict=True)
            )
        )

    def offset(self, s: F64) -> F64:
        """Lateral position of the centre line at s, metres; same shape as s."""
        total = np.zeros_like(s)
        for a, length, phase in self.waves:
            total += a * np.sin(s * (1 / length) + phase)
        return total

    def offset_at(self, s: float) -> float:
        """The same for one s."""
        return sum(a * math.sin(s / length + phase) for a, length, phase in self.waves)

    def slope(self, s: float) -> float:
        """Lateral metres per metre along the road."""
        return sum(a / length * math.cos(s / length + phase) for a, length, phase in self.waves)


@dataclass(frozen=True, slots=True)
class Rig:
    """The camera in its car.

    Attributes:
        focal: focal length over image width.
        horizon: row of the horizon over image height, at rest.
        height_m: above the road.
        lane_x: lateral position in metres from the centre line.
        speed: mean metres per second.
        sway: phases of the small motions.
    """

    focal: float
    horizon: float
    height_m: float
    lane_x: float
    speed: float
    sway: tuple[float, ...]

    def distance(self, t: float) -> float:
        """Metres driven at time t (s); smooth and monotone."""
        a, b = self.sway[0], self.sway[1]
        swing = 0.18 * self.speed
        return self.speed * t + swing * (3.1 * math.sin(t / 3.1 + a) + 0.6 * math.sin(t / 1.7 + b))

    def time_at(self, s: float) -> float:
        """About when the camera is at s, seconds (the small changes of speed left out)."""
        return s / self.speed


class View:
    """The projection at one moment, for one image size."""

    def __init__(self, road: Road, rig: Rig, t: float, size_hw: tuple[int, int]) -> None:
        h, w = size_hw
        p = rig.sway
        self.road = road
        self.t = t
        self.s = rig.distance(t)
        self.focal = rig.focal * w
        self.cx = (w - 1) / 2
        self.cy = (h - 1) / 2
        rough = 0.6 + 0.4 * math.sin(t / 2.3 + p[2])
        bounce = rough * (math.sin(t * 7.9 + p[3]) + 0.6 * math.sin(t * 12.7 + p[4]))
        self.height = rig.height_m + 0.006 * bounce
        self.x = rig.lane_x + 0.14 * math.sin(t / 2.9 + p[5])
        self.pitch_px = self.focal * (0.0011 * bounce + 0.003 * math.sin(t / 1.9 + p[6]))
        self.horizon = rig.horizon * h + self.pitch_px
        self.roll = 0.004 * math.sin(t / 1.3 + p[7]) + 0.0012 * rough * math.sin(t * 9.1 + p[8])
        # The driver looks into the bend, a few metres ahead.
        self.yaw = road.slope(self.s + 9.0) + 0.006 * math.sin(t / 2.2 + p[9])
        self._base = road.offset_at(self.s)

    def lateral(self, s: F64, x: F64) -> F64:
        """Metres right of the optical axis; s, x of one shape."""
        d = s - self.s
        return np.asarray(x - self.x + self.road.offset(s) - self._base - self.yaw * d, np.float64)

    def project(self, points: F64) -> F64:
        """World (..., 3) as (s, x, y) to pixels (..., 2); behind the camera: as if at NEAR_M."""
        d = np.maximum(points[..., 0] - self.s, NEAR_M)
        u = self.focal * self.lateral(points[..., 0], points[..., 1]) / d
        v = self.focal * (self.height - points[..., 2]) / d + self.horizon - self.cy
        out = np.empty((*points.shape[:-1], 2))
        out[..., 0] = self.cx + u - self.roll * v
        out[..., 1] = self.cy + v + self.roll * u
        return out

    def point(self, s: float, x: float, y: float) -> tuple[float, float]:
        """`project` for one point."""
        ahead = s - self.s
        d = max(ahead, NEAR_M)
        side = x - self.x + self.road.offset_at(s) - self._base - self.yaw * ahead
        u = self.focal * side / d
        v = self.focal * (self.height - y) / d + self.horizon - self.cy
        return self.cx + u - self.roll * v, self.cy + v + self.roll * u

    def scale(self, s: float) -> float:
        """Pixels per metre at s."""
        return self.focal / max(s - self.s, NEAR_M)
