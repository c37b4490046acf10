"""Cars, vans and buses of the drive: convex parts in perspective."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from rtseg.data._drive_paint import BGR, CAR, F64, Canvas, Outline

CARS = 64
_DETAIL_M = 36.0
REACH_M = 150.0
HULL = 16  # points of a model that are corners of its body and cabin
_PIECES = HULL + 4 * 12

_PAINT: tuple[BGR, ...] = (
    (36, 34, 33), (50, 48, 46), (96, 94, 92), (140, 140, 139), (180, 181, 181), (205, 206, 206),
    (92, 52, 30), (60, 36, 24), (36, 32, 110), (30, 28, 80), (52, 70, 40), (110, 100, 80),
    (44, 60, 70), (150, 110, 70),
)  # fmt: skip
_BRAKE: BGR = (60.0, 50.0, 230.0)


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle on a face of the body (0..4) or cabin (5..9)."""

    face: int
    tone: BGR
    lum: float
    near_only: bool
    brake: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A vehicle in its own metres (along, across, up); the middle of its footprint is the origin.

    Attributes:
        points: (N, 3): body 0..7, cabin 8..15, four wheels of 12, four for each piece,
            and last the four of its shadow.
        faces, lum, near_only, brake: (P,) of the pieces, in the order of painting.
        tones: (P, 3) their colours.
        sides: (P,) 1 on a right side, -1 on a left one, else 0.
    """

    length: float
    width: float
    height: float
    colour: BGR
    points: F64
    faces: NDArray[np.intp]
    tones: F64
    lum: F64
    sides: F64
    near_only: NDArray[np.bool_]
    brake: NDArray[np.bool_]


def _solid(
    bottom: tuple[float, float, float], top: tuple[float, float, float], z: tuple[float, float]
) -> F64:
    """Eight corners; bottom and top are (rear, front, half width), at heights z.

    Order: rear left, rear right, front right, front left; first below, then above.
    """
    rows = []
    for (rear, front, half), up in zip((bottom, top), z, strict=True):
        rows += [(rear, -half, up), (rear, half, up), (front, half, up), (front, -half, up)]
    return np.array(rows)


# Corners of each face, anticlockwise from outside with the lower edge first.
_REAR, _RIGHT, _FRONT, _LEFT, _TOP = range(5)
_CORNERS = ((0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7), (4, 5, 6, 7))
_LUM = (0.82, 0.9, 0.88, 0.9, 1.25)
_TEN_FACES = np.concatenate([_CORNERS, np.array(_CORNERS) + 8])
_TURN = np.linspace(0, 2 * np.pi, 13)[:-1]
_RIM = np.stack([np.cos(_TURN), np.zeros(12), np.sin(_TURN)], axis=1)


def _inset(face: F64, u1: float, u2: float, v1: float, v2: float) -> F64:
    """Part of a face (4, 3): from u1 to u2 along its lower edge, from v1 to v2 upwards."""
    uv = np.array([(u1, v1), (u2, v1), (u2, v2), (u1, v2)])
    u, v = uv[:, :1], uv[:, 1:]
    low = face[0] + (face[1] - face[0]) * u
    high = face[3] + (face[2] - face[3]) * u
    return np.asarray(low + (high - low) * v, np.float64)


class _Builder:
    """Collects the points and pieces of one model."""

    def __init__(self, body: F64, cabin: F64, wheels: F64, colour: BGR) -> None:
        self.solids = (body, cabin)
        self.points = [body, cabin, wheels]
        self.pieces: list[Piece] = []
        self.colour = colour

    def add(
        self,
        solid: int,
        face: int,
        box: tuple[float, float, float, float],
        tone: BGR | None,
        near_only: bool = True,
        lum: float | None = None,
        brake: bool = False,
    ) -> None:
        """Adds a rectangle on a face; tone None is the vehicle's colour."""
        points = _inset(self.solids[solid][list(_CORNERS[face])], *box)
        light = (_LUM[face] if tone is None else 1.0) if lum is None else lum
        self.pieces.append(Piece(face + 5 * solid, tone or self.colour, light, near_only, brake))
        self.points.append(points)


@lru_cache(maxsize=CARS)
def model(k: int) -> Model:
    """Vehicle k; a pure function."""
    rng = random.Random(8000 + k)
    kind = rng.choices(("hatch", "saloon", "estate", "suv", "van", "bus"), (8, 5, 4, 4, 3, 1))[0]
    colour = rng.choice(_PAINT)
    length, width, height, belt, hood = {
        "hatch": (3.9, 1.68, 1.47, 0.9, 0.85), "saloon": (4.5, 1.76, 1.43, 0.9, 1.15),
        "estate": (4.6, 1.76, 1.48, 0.92, 1.1), "suv": (4.5, 1.84, 1.74, 1.04, 1.0),
        "van": (5.0, 1.95, 2.25, 1.15, 0.75), "bus": (10.5, 2.5, 3.0, 1.25, 0.1),
    }[kind]  # fmt: skip
    tall = kind in ("van", "bus")
    length *= rng.uniform(0.95, 1.05)
    height *= rng.uniform(0.97, 1.04)
    r, f, half = -length / 2, length / 2, width / 2
    body = _solid((r + 0.06, f - 0.05, half), (r + 0.1, f - 0.16, half * 0.95), (0.22, belt))
    boot = 0.85 if kind == "saloon" else 0.12
    slope = {"saloon": 0.5, "hatch": 0.42, "estate": 0.3, "suv": 0.3}.get(kind, 0.04)
    rake = {"van": 0.5, "bus": 0.08}.get(kind, 0.75)
    top = half * (0.92 if tall else 0.76)
    cabin = _solid(
        (r + boot, f - hood, half * 0.93), (r + boot + slope, f - hood - rake, top), (belt, height)
    )
    wheel = 0.4 if tall else 0.31
    base = length / 2 - (2.2 if kind == "bus" else 0.75)
    hubs = np.array([(b, a, wheel) for a in (-half, half) for b in (-base, base)])
    b = _Builder(body, cabin, (hubs[:, None] + _RIM * wheel).reshape(-1, 3), colour)
    _dress(b, kind)
    a, c = length / 2 + 0.12, width / 2 + 0.12
    b.points.append(np.array([(-a, -c, 0.0), (-a, c, 0.0), (a, c, 0.0), (a, -c, 0.0)]))
    faces = np.array([p.face for p in b.pieces])
    return Model(
        length, width, height, colour, np.concatenate(b.points), faces,
        np.array([p.tone for p in b.pieces]), np.array([p.lum for p in b.pieces]),
        1.0 * (faces % 5 == _RIGHT) - 1.0 * (faces % 5 == _LEFT),
        np.array([p.near_only for p in b.pieces]), np.array([p.brake for p in b.pieces]),
    )  # fmt: skip


def _dress(b: _Builder, kind: str) -> None:
    """Faces, windows, lights, plates and bumpers."""
    everything = (0.0, 1.0, 0.0, 1.0)
    for face in range(5):
        b.add(0, face, everything, None, near_only=False)
    for face in (_LEFT, _RIGHT):
        b.add(0, face, (0, 1, 0, 0.16), (40, 40, 40))
        if kind != "bus":
            for u in (0.34, 0.62):
                b.add(0, face, (u, u + 0.006, 0.2, 1.0), None, lum=0.5)
        b.add(0, face, (0.0, 1.0, 0.86, 1.0), None, lum=1.05)
    b.add(0, _REAR, (0.0, 1.0, 0.0, 0.3), None, lum=0.62)
    b.add(0, _FRONT, (0.0, 1.0, 0.0, 0.32), None, lum=0.66)
    for u in (0.02, 0.84):
        b.add(0, _REAR, (u, u + 0.14, 0.55, 0.9), (34, 28, 125), False, brake=True)
        b.add(0, _FRONT, (u, u + 0.16, 0.58, 0.82), (205, 210, 210), False)
    b.add(0, _FRONT, (0.28, 0.72, 0.45, 0.74), (28, 28, 28), False)
    for face, tone in ((_REAR, (60.0, 170.0, 190.0)), (_FRONT, (180.0, 184.0, 184.0))):
        b.add(0, face, (0.0, 1.0, 0.0, 0.1), (26, 26, 26))
        b.add(0, face, (0.34, 0.66, 0.34, 0.48), tone)
    for face in range(5):
        b.add(1, face, everything, None, near_only=False)
        if face == _TOP:
            continue
        spans = [(0.06, 0.94)]
        if face in (_LEFT, _RIGHT):
            if kind == "van":
                spans = [(0.7, 0.94)] if face == _RIGHT else [(0.06, 0.3)]
            elif kind == "bus":
                spans = [(i / 7 + 0.01, (i + 1) / 7 - 0.01) for i in range(7)]
            else:
                spans = [(0.06, 0.48), (0.52, 0.94)]
        for u1, u2 in spans:
            glass = (72.0, 68.0, 62.0) if face == _FRONT else (52.0, 48.0, 45.0)
            b.add(1, face, (u1, u2, 0.1, 0.86), glass, False)
            b.add(1, face, (u1, u2, 0.5, 0.86), (glass[0] + 34, glass[1] + 32, glass[2] + 30))


def place(points: F64, s: float, x: float, yaw: float) -> F64:
    """Local (N, 3) to world (N, 3); yaw in radians, 0 looks down the road."""
    c, n = float(np.cos(yaw)), float(np.sin(yaw))
    out = np.array(points, np.float64)
    out[:, 0] = s + points[:, 0] * c - points[:, 1] * n
    out[:, 1] = x + points[:, 0] * n + points[:, 1] * c
    return out


def paint_car(
    canvas: Canvas, k: int, d: float, yaw: float, outline: Outline, braking: bool = False
) -> None:
    """Paints vehicle k at a distance of d metres; outline: its model's points on screen."""
    px, fixed = outline
    m = model(k)
    if d + m.length / 2 < 1.2:
        return
    near = d < _DETAIL_M
    light = canvas.light
    black = light.colour((22, 22, 23), d)
    visible = _visible(px)
    sides = (visible[_LEFT], visible[_LEFT], visible[_RIGHT], visible[_RIGHT])
    for i in range(4):
        if not near or not sides[i]:
            canvas.convex_fixed(fixed[16 + 12 * i : 28 + 12 * i], black, CAR)
    for solid, lum in ((fixed[:8], 0.75), (fixed[8:HULL], 0.8)):
        hull = np.asarray(cv2.convexHull(solid), np.int32)
        canvas.convex_fixed(hull, light.colour(m.colour, d, lum), CAR)
    shown = visible[m.faces] if near else visible[m.faces] & ~m.near_only
    sun = 0.25 * light.sun * light.sun_side * math.cos(yaw)
    tones = np.where(m.brake[:, None], _BRAKE, m.tones) if braking else m.tones
    colours = light.colours(tones, d, m.lum * (1 + sun * m.sides)).tolist()
    pieces = fixed[_PIECES:-4].reshape(-1, 4, 2)
    for i in np.flatnonzero(shown).tolist():
        canvas.convex_fixed(pieces[i], colours[i], None)
    if not near:
        return
    hub = light.colour((118, 118, 116), d)
    for i in range(4):
        if sides[i]:
            rim = px[16 + 12 * i : 28 + 12 * i]
            centre = rim.mean(axis=0)
            canvas.convex(centre + (rim - centre) * 1.1, black, CAR)
            canvas.convex(centre + (rim - centre) * 0.62, hub, None)
            canvas.convex(centre + (rim - centre) * 0.2, black, None)


def _visible(px: F64) -> NDArray[np.bool_]:
    """Which of the ten faces (body, then cabin) turn to the camera: corners run anticlockwise."""
    corners = px[_TEN_FACES]
    across, up = (corners[:, 2] - corners[:, 0]).T, (corners[:, 3] - corners[:, 1]).T
    return np.asarray(across[0] * up[1] - across[1] * up[0] < 0)
