"""What a street of the procedural drive is made of: its style, and the things along the road.

Places are (s, x): metres along the road, and metres right of its centre line.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from rtseg.data._drive_paint import BGR, F64
from rtseg.data._drive_textures import FACADES

CHUNK_M = 40.0
KERB_M = 0.1
ZONES = ("terrace", "shops", "houses", "park", "blocks", "carpark")


def rng_for(*key: int) -> random.Random:
    """A generator for a key of integers; unlike `hash`, the same in every process."""
    mixed = 0x9E3779B97F4A7C15
    for part in key:
        mixed = ((mixed ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 29
    return random.Random(mixed)


@dataclass(frozen=True, slots=True)
class Style:
    """What is the same all along one drive. Widths in metres, densities per chunk and side."""

    side: int  # which side traffic keeps to: -1 left, 1 right
    lane: float
    lanes: int
    parking: tuple[bool, bool]  # left, right
    pavement: tuple[float, float]
    zones: tuple[float, ...]
    trees: float
    parked: float
    people: float
    riders: float
    traffic_gap: float
    lead_gap: float | None
    poles: float
    signs: float
    dash: tuple[float, float]
    edge: str
    road: BGR
    slab: BGR
    grass: BGR
    asphalt: int
    houses_from: int
    pole_grey: float

    @classmethod
    def draw(cls, rng: random.Random) -> Style:
        """A random style."""
        busy = rng.random()
        grey = rng.uniform(58, 118)
        warm = rng.uniform(0.93, 1.0)
        pale = rng.uniform(0.95, 1.45)
        wide = rng.random() < 0.25
        weights = [rng.random() ** 2 + 0.05 for _ in ZONES]
        weights[0] += 0.35
        weights[1] += 0.35
        weights[5] *= 0.5
        return cls(
            side=-1 if rng.random() < 0.75 else 1,
            lane=rng.uniform(2.9, 3.7),
            lanes=2 if wide else 1,
            parking=(rng.random() < 0.5, rng.random() < 0.45),
            pavement=(rng.uniform(1.5, 3.6), rng.uniform(1.5, 3.6)),
            zones=tuple(weights),
            trees=rng.choice((0.4, 1.2, 2.2, 3.2)),
            parked=rng.uniform(0.25, 0.95),
            people=busy * rng.uniform(0.5, 3.4),
            riders=rng.choice((0.0, 0.4, 1.0)) + 0.6 * busy,
            traffic_gap=rng.uniform(16, 32) / (0.3 + busy),
            lead_gap=None if rng.random() < 0.35 else rng.uniform(8, 30),
            poles=rng.uniform(0.7, 2.2),
            signs=rng.uniform(0.7, 3.0),
            dash=rng.choice(((2.0, 4.0), (4.0, 2.0), (3.0, 6.0), (1.0, 1.5))),
            edge=rng.choice(("yellow", "yellow", "white", "none", "broken")),
            road=(grey * 1.02, grey, grey * warm),
            slab=(grey * pale, grey * pale, grey * pale * rng.uniform(0.97, 1.06)),
            grass=(rng.uniform(34, 60), rng.uniform(70, 96), rng.uniform(58, 86)),
            asphalt=rng.randrange(8),
            houses_from=rng.randrange(FACADES),
            pole_grey=rng.choice((34.0, 52.0, 88.0, 120.0)),
        )

    def half(self, right: int) -> float:
        """Distance of the left (0) or right (1) kerb from the centre line."""
        return self.lane * self.lanes + (2.2 if self.parking[right] else 0.3)


@dataclass(frozen=True, slots=True)
class Patch:
    """A flat polygon on the ground: points (N, 3) world, colour, label or None to leave it."""

    points: F64
    colour: BGR
    label: int | None
    begin: float = field(init=False)
    end: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "begin", float(self.points[:, 0].min()))
        object.__setattr__(self, "end", float(self.points[:, 0].max()))


@dataclass(frozen=True, slots=True)
class House:
    """A house from s1 to s2 with its front at x; `open_end`: its near end wall can be seen."""

    s1: float
    s2: float
    x: float
    side: int
    k: int
    height: float
    rise: float
    depth: float
    roof: BGR
    lum: float
    tint: BGR
    open_end: bool

    @property
    def chimney(self) -> float:
        """The s of its chimney, if it has room for one."""
        return self.s1 + 0.6 + (self.k % 5) * 0.7


@dataclass(frozen=True, slots=True)
class Plant:
    """A tree or bush; `k` picks the sprite."""

    s: float
    x: float
    k: int
    height: float
    flip: bool
    lum: float


@dataclass(frozen=True, slots=True)
class Panel:
    """A length of fence, wall or hedge from s1 to s2, at x."""

    s1: float
    s2: float
    x: float
    k: int
    height: float
    label: int


@dataclass(frozen=True, slots=True)
class Post:
    """A pole: kind "lamp", "sign", "signal", "belisha", "bollard" or "plain"."""

    s: float
    x: float
    kind: str
    k: int
    height: float
    side: int


@dataclass(frozen=True, slots=True)
class Vehicle:
    """A car, van or bus, parked or not; yaw in radians, 0 looks down the road."""

    s: float
    x: float
    yaw: float
    k: int
    brake: bool = False


@dataclass(frozen=True, slots=True)
class Walker:
    """A person at step `phase`; `side`: seen from the side, facing right unless `flip`."""

    s: float
    x: float
    k: int
    phase: int = 3
    side: bool = False
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Cyclist:
    """A person on a bicycle at pedal position `phase`; `away`: rides away from the camera."""

    s: float
    x: float
    k: int
    phase: int
    away: bool


Thing = House | Plant | Panel | Post | Vehicle | Walker | Cyclist


@dataclass(frozen=True, slots=True)
class Placed:
    """Things and the room they take.

    Attributes:
        boxes: (N, 7) what encloses each, in metres.
        outlines: of each the world points (M, 3) that it is painted from; None for sprites.
    """

    things: list[Thing]
    boxes: F64
    outlines: list[F64 | None]


@dataclass(slots=True)
class Chunk:
    """What is between s and s + CHUNK_M.

    Attributes:
        layers: ground patches, painted in order: cover, roads, pavements, paint.
        placed: the things as `_drive_sight.placed` gives them.
        crossing: where people cross the road, or None.
    """

    s: float
    layers: tuple[list[Patch], ...] = field(default_factory=lambda: ([], [], [], []))
    things: list[Thing] = field(default_factory=list)
    placed: Placed = field(default_factory=lambda: Placed([], np.zeros((0, 7)), []))
    crossing: float | None = None


def strip(s1: float, s2: float, x1: float, x2: float, y1: float = 0.0, y2: float = 0.0) -> F64:
    """(N, 3) outline of a band along the road, bent with it: points every 5 m."""
    n = max(2, int((s2 - s1) / 5.0) + 1)
    s = np.linspace(s1, s2, n)
    out = np.empty((2 * n, 3))
    out[:n, 0], out[n:, 0] = s, s[::-1]
    out[:n, 1], out[n:, 1] = x1, x2
    out[:n, 2], out[n:, 2] = y1, y2
    return out
