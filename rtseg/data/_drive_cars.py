"""Cars, vans and buses of the drive: convex parts in perspective, and their shadows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from rtseg.data._drive_camera import View
from rtseg.data._drive_paint import BGR, CAR, F64, Canvas

CARS = 64
_DETAIL_M = 42.0

_PAINT: tuple[BGR, ...] = (
    (36, 34, 33), (50, 48, 46), (96, 94, 92), (140, 140, 139), (180, 181, 181), (205, 206, 206),
    (92, 52, 30), (60, 36, 24), (36, 32, 110), (30, 28, 80), (52, 70, 40), (110, 100, 80),
    (44, 60, 70), (150, 110, 70),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """A vehicle. `parts`: convex solids (8, 3) as (along, across, up) in metres, first the body."""

    length: float
    width: float
    height: float
    colour: BGR
    body: F64
    cabin: F64
    kind: str


def _solid(bottom: tuple[float, float, float], top: tuple[float, float, float], h: tuple[float, float]) -> F64:
    """Eight corners: (rear, front, half width) below at h[0] and above at h[1].

    Order: rear left, rear right, front right, front left; first below, then above.
    """
    rows = []
    for (rear, front, half), z in zip((bottom, top), h, strict=True):
        rows += [(rear, -half, z), (rear, half, z), (front, half, z), (front, -half, z)]
    return np.array(rows)


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
    length *= rng.uniform(0.95, 1.05)
    height *= rng.uniform(0.97, 1.04)
    r, f, half = -length / 2, length / 2, width / 2
    body = _solid((r + 0.06, f - 0.05, half * 0.97), (r + 0.1, f - 0.14, half * 0.96), (0.22, belt))
    boot = {"saloon": 0.85, "hatch": 0.12, "estate": 0.1, "suv": 0.12}.get(kind, 0.1)
    slope = {"saloon": 0.5, "hatch": 0.42, "estate": 0.3, "suv": 0.3}.get(kind, 0.04)
    rake = 0.75 if kind not in ("van", "bus") else (0.5 if kind == "van" else 0.08)
    top = half * (0.76 if kind not in ("van", "bus") else 0.92)
    cabin = _solid(
        (r + boot, f - hood, half * 0.94), (r + boot + slope, f - hood - rake, top), (belt, height)
    )
    return Model(length, width, height, colour, body, cabin, kind)


_FACES = {  # corners seen anticlockwise from outside, and how much light falls on each
    "rear": ((0, 1, 5, 4), 0.82),
    "right": ((1, 2, 6, 5), 0.9),
    "front": ((2, 3, 7, 6), 0.88),
    "left": ((3, 0, 4, 7), 0.9),
    "top": ((4, 5, 6, 7), 1.25),
}


def _facing(points: F64) -> bool:
    """True if a face (4, 2) in pixels turns to the camera: its corners run anticlockwise."""
    a, b, c, d = points
    area = (c[0] - a[0]) * (d[1] - b[1]) - (c[1] - a[1]) * (d[0] - b[0])
    return bool(area < 0)


def place(m: Model, local: F64, s: float, x: float, yaw: float) -> F64:
    """Local (N, 3) to world (N, 3); yaw in radians, 0 looks down the road."""
    c, n = float(np.cos(yaw)), float(np.sin(yaw))
    out = local.copy()
    out[..., 0] = s + local[..., 0] * c - local[..., 1] * n
    out[..., 1] = x + local[..., 0] * n + local[..., 1] * c
    return out


def footprint(k: int, s: float, x: float, yaw: float, grow: float) -> F64:
    """(4, 3) world outline of vehicle k on the ground."""
    m = model(k)
    a, b = m.length / 2 + grow, m.width / 2 + grow
    flat = np.array([(-a, -b, 0.0), (-a, b, 0.0), (a, b, 0.0), (a, -b, 0.0)])
    return place(m, flat, s, x, yaw)


def _inset(face: F64, u1: float, u2: float, v1: float, v2: float) -> F64:
    """Part of a face (4, N): from u1 to u2 along its lower edge, from v1 to v2 upwards."""
    low = lambda u: face[0] + (face[1] - face[0]) * u  # noqa: E731
    high = lambda u: face[3] + (face[2] - face[3]) * u  # noqa: E731
    return np.array(
        [
            low(u1) + (high(u1) - low(u1)) * v1,
            low(u2) + (high(u2) - low(u2)) * v1,
            low(u2) + (high(u2) - low(u2)) * v2,
            low(u1) + (high(u1) - low(u1)) * v2,
        ]
    )


_TURN = np.linspace(0, 2 * np.pi, 13)[:-1]
_RIM = np.stack([np.cos(_TURN), np.zeros(12), np.sin(_TURN)], axis=1)


def paint_car(
    canvas: Canvas, view: View, k: int, s: float, x: float, yaw: float, braking: bool = False
) -> None:
    """Paints vehicle k standing at (s, x)."""
    m = model(k)
    d = s - view.s
    if d + m.length / 2 < 1.2:
        return
    light = canvas.light
    wheel_r = 0.31 if m.kind not in ("van", "bus") else 0.4
    half = m.width / 2
    base = m.length / 2 - (0.75 if m.kind != "bus" else 2.2)
    hubs = np.array([(b, a, wheel_r) for a in (-half * 0.98, half * 0.98) for b in (-base, base)])
    rims = hubs[:, None] + _RIM * wheel_r
    local = np.concatenate([m.body, m.cabin, rims.reshape(-1, 3)])
    world = place(m, local, s, x, yaw)
    px = view.project(world)
    body, cabin, wheels = px[:8], px[8:16], px[16:].reshape(4, 12, 2)
    low, high = px.min(axis=0), px.max(axis=0)
    if high[0] < 0 or low[0] > canvas.width or high[1] - low[1] < 1.5:
        return
    detail = d < _DETAIL_M
    black = light.colour((24, 24, 25), d)
    left = _facing(body[[3, 0, 4, 7]])
    right = _facing(body[[1, 2, 6, 5]])
    for i, wheel in enumerate(wheels):
        seen = left if i < 2 else right
        hidden = not seen
        if hidden or not detail:
            canvas.convex(wheel, black, CAR)
    hull = np.asarray(cv2.convexHull(body.astype(np.float32)), np.float64)[:, 0]
    canvas.convex(hull, light.colour(m.colour, d, 0.75), CAR)
    roof = np.asarray(cv2.convexHull(cabin.astype(np.float32)), np.float64)[:, 0]
    canvas.convex(roof, light.colour(m.colour, d, 0.8), CAR)
    solid_side = m.kind == "van"
    for part, corners in (("body", body), ("cabin", cabin)):
        for name, (index, lum) in _FACES.items():
            face = corners[list(index)]
            if not _facing(face):
                continue
            if name in ("left", "right"):
                lum *= 1 + 0.25 * light.sun * light.sun_side * (1 if name == "right" else -1)
            canvas.convex(face, light.colour(m.colour, d, lum), None)
            if part == "cabin" and name != "top":
                glass = (58.0, 54.0, 50.0) if name != "front" else (70.0, 66.0, 60.0)
                if name in ("left", "right"):
                    if solid_side:
                        spans = [(0.7, 0.94)] if name == "right" else [(0.06, 0.3)]
                    elif m.kind == "bus":
                        spans = [(i / 7 + 0.01, (i + 1) / 7 - 0.01) for i in range(7)]
                    else:
                        spans = [(0.06, 0.48), (0.52, 0.94)]
                else:
                    spans = [(0.06, 0.94)]
                for u1, u2 in spans if detail else spans[:1]:
                    pane = _inset(face, u1 if detail else 0.06, u2 if detail else 0.94, 0.12, 0.86)
                    canvas.convex(pane, light.colour(glass, d), None)
                    if detail:
                        shine = _inset(pane, 0.0, 1.0, 0.55, 1.0)
                        canvas.convex(shine, light.colour((92, 86, 80), d), None)
            elif part == "body" and name in ("rear", "front"):
                _ends(canvas, face, name, d, detail, braking, m)
            elif part == "body" and name != "top" and detail:
                canvas.convex(_inset(face, 0, 1, 0, 0.16), light.colour((40, 40, 40), d), None)
    if not detail:
        return
    for i, wheel in enumerate(wheels):
        if left if i < 2 else right:
            centre = wheel.mean(axis=0)
            canvas.convex(centre + (wheel - centre) * 1.12, light.colour((14, 14, 14), d), CAR)
            canvas.convex(centre + (wheel - centre) * 0.62, light.colour((120, 120, 118), d), None)
            canvas.convex(centre + (wheel - centre) * 0.2, black, None)


def _ends(
    canvas: Canvas, face: F64, name: str, d: float, detail: bool, braking: bool, m: Model
) -> None:
    """Lights, plate and bumper of the rear or front face of a body."""
    light = canvas.light
    if name == "rear":
        tone: BGR = (60, 50, 230) if braking else (34, 28, 120)
        for u in (0.02, 0.84):
            canvas.convex(_inset(face, u, u + 0.14, 0.55, 0.9), light.colour(tone, d), None)
    else:
        for u in (0.03, 0.79):
            lamp = _inset(face, u, u + 0.18, 0.58, 0.82)
            canvas.convex(lamp, light.colour((205, 210, 210), d, 1.1), None)
        grille = _inset(face, 0.28, 0.72, 0.45, 0.72)
        canvas.convex(grille, light.colour((28, 28, 28), d), None)
    if not detail:
        return
    canvas.convex(_inset(face, 0.0, 1.0, 0.0, 0.3), light.colour(m.colour, d, 0.62), None)
    canvas.convex(_inset(face, 0.0, 1.0, 0.0, 0.1), light.colour((26, 26, 26), d), None)
    plate = (60.0, 170.0, 190.0) if name == "rear" else (180.0, 184.0, 184.0)
    canvas.convex(_inset(face, 0.34, 0.66, 0.32, 0.46), light.colour(plate, d), None)
