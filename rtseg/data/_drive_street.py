"""Painting what stands along the street: houses, plants, fences, posts and people."""

from __future__ import annotations

import numpy as np

from rtseg.data._drive_camera import NEAR_M, View
from rtseg.data._drive_cars import paint_car
from rtseg.data._drive_paint import (
    BUILDING, CYCLIST, F64, PEDESTRIAN, POLE, SIGN, TREE, Canvas,
)  # fmt: skip
from rtseg.data._drive_sprites import PHASES, person, rider, sign, tree
from rtseg.data._drive_textures import facade, fence
from rtseg.data._drive_world import House, Panel, Parked, Plant, Post, Stander, Style, Thing

REACH_M = 240.0


def far_end(thing: Thing) -> float:
    """Where the thing ends, for painting from far to near."""
    return thing.s2 if isinstance(thing, House | Panel) else thing.s


def paint(canvas: Canvas, view: View, thing: Thing, style: Style) -> None:
    """Paints one thing."""
    if isinstance(thing, House):
        _house(canvas, view, thing)
    elif isinstance(thing, Panel):
        _panel(canvas, view, thing)
    elif isinstance(thing, Plant):
        _plant(canvas, view, thing)
    elif isinstance(thing, Post):
        _post(canvas, view, thing, style)
    elif isinstance(thing, Parked):
        if thing.s - view.s < 160:
            paint_car(canvas, view, thing.k, thing.s, thing.x, thing.yaw)
    else:
        walker(canvas, view, thing.s, thing.x, thing.k, 3, False, False)


def _outside(canvas: Canvas, points: F64) -> bool:
    low, high = points.min(axis=0), points.max(axis=0)
    return bool(
        high[0] < 0 or low[0] > canvas.width or high[1] < 0 or low[1] > canvas.height
        or high[1] - low[1] < 0.8
    )  # fmt: skip


def _house(canvas: Canvas, view: View, h: House) -> None:
    d = max(h.s1 - view.s, 1.0)
    s1 = max(h.s1, view.s + NEAR_M * 2)
    if h.s2 - s1 < 0.1 or h.s1 - view.s > REACH_M:
        return
    back, ridge = h.x + h.side * h.depth, h.x + h.side * h.depth / 2
    top, peak = h.height, h.height + h.rise
    world = np.array(
        [
            (s1, h.x, top), (h.s2, h.x, top), (h.s2, h.x, 0.0), (s1, h.x, 0.0),  # front
            (s1, back, 0.0), (s1, back, top),  # near end
            (s1, ridge, peak), (h.s2, ridge, peak), (h.s2, back, top),
        ]
    )  # fmt: skip
    px = view.project(world)
    if _outside(canvas, px):
        return
    sprite, _, _, wall = facade(h.k)
    light = canvas.light
    sunny = 1 + 0.28 * light.sun * (-1 if light.sun_side * h.side > 0 else 1)
    lum = h.lum * sunny
    if h.s1 > view.s + NEAR_M * 2:  # the end wall that faces the camera, and its gable
        plain = tuple(c * t for c, t in zip(wall, h.tint, strict=True))
        tone = light.colour((plain[0], plain[1], plain[2]), d, lum * 0.8)
        canvas.fill(px[[0, 3, 4, 5, 6] if h.rise else [0, 3, 4, 5]], tone, BUILDING)
        if h.open_end and d < 60 and not h.rise:
            canvas.quad(sprite, px[[5, 0, 3, 4]], None, d, lum * 0.8, h.tint)
    if h.rise:
        canvas.convex(px[[0, 1, 7, 6]], light.colour(h.roof, d, sunny), BUILDING)
        if d < 90:
            _chimney(canvas, view, h, ridge, peak, d)
    quad = px[:4] if h.side < 0 else px[[1, 0, 3, 2]]
    shown = (s1 - h.s1) / (h.s2 - h.s1)
    # Seen from the road, a front on the left runs away from its left edge to its right one.
    span = (shown, 1.0) if h.side < 0 else (0.0, 1.0 - shown)
    middle = max((s1 + h.s2) / 2 - view.s, 1.0)
    if float(np.ptp(quad[:, 0])) < 2.0:
        canvas.convex(quad, light.colour(wall, middle, lum * 0.8), BUILDING)
    else:
        canvas.quad(sprite, quad, BUILDING, middle, lum, h.tint, span)


def _chimney(canvas: Canvas, view: View, h: House, x: float, peak: float, d: float) -> None:
    s = h.s1 + 0.6 + (h.k % 5) * 0.7
    if s > h.s2 - 0.5 or s < view.s + 2:
        return
    a, b = peak - 0.7, peak + 0.9
    box = np.array([(s, x - 0.45, a), (s, x + 0.45, a), (s, x + 0.45, b), (s, x - 0.45, b)])
    canvas.convex(view.project(box), canvas.light.colour((66, 80, 106), d), BUILDING)


def _panel(canvas: Canvas, view: View, p: Panel) -> None:
    s1 = max(p.s1, view.s + NEAR_M * 2)
    if p.s2 - s1 < 0.1 or p.s1 - view.s > 140:
        return
    if p.k < 0:
        _hedge(canvas, view, p, s1)
        return
    h = p.height
    px = view.project(np.array([(s1, p.x, h), (p.s2, p.x, h), (p.s2, p.x, 0.0), (s1, p.x, 0.0)]))
    if _outside(canvas, px):
        return
    sprite, _, _ = fence(p.k)
    shown = (s1 - p.s1) / 4
    end = (p.s2 - p.s1) / 4
    left = p.x < view.x
    quad = px if left else px[[1, 0, 3, 2]]
    span = (shown, end) if left else (1 - end, 1 - shown)
    d = max((s1 + p.s2) / 2 - view.s, 1.0)
    canvas.quad(sprite, quad, p.label, d, 0.95, (1.0, 1.0, 1.0), span, solid=True)


def _hedge(canvas: Canvas, view: View, p: Panel, s1: float) -> None:
    """A row of bush sprites that overlap."""
    step = 1.5
    n = int((p.s2 - p.s1) / step)
    k = 5 + 6 * ((-1 - p.k) % 4)
    sprite = tree(k)[0]
    for i in range(n, -1, -1):
        s = p.s1 + i * step
        if s < view.s + 1.2:
            return
        foot = view.project(np.array([(s, p.x, 0.0)]))[0]
        scale = view.scale(s)
        wide = 2.6 * scale
        if -wide < foot[0] < canvas.width + wide:
            lum = 0.85 + 0.12 * ((i * 7) % 5) / 4
            size = (wide, p.height * 1.1 * scale)
            canvas.sprite(sprite, (foot[0], foot[1]), size, TREE, s - view.s, lum, flip=bool(i % 2))


def _fade(d: float, reach: float) -> float:
    return float(np.clip((reach - d) / (0.2 * reach), 0.0, 1.0))


def _plant(canvas: Canvas, view: View, p: Plant) -> None:
    d = p.s - view.s
    if d < 1.4 or d > 200:
        return
    sprite, _, ratio = tree(p.k)
    foot = view.project(np.array([(p.s, p.x, 0.0)]))[0]
    scale = view.scale(p.s)
    size = (p.height * ratio * scale, p.height * scale)
    canvas.sprite(
        sprite, (foot[0], foot[1]), size, TREE, d, p.lum, fade=_fade(d, 200), flip=p.flip,
        lean=view.roll,
    )  # fmt: skip


def walker(
    canvas: Canvas, view: View, s: float, x: float, k: int, phase: int, side: bool, flip: bool
) -> None:
    """Paints a person on foot."""
    d = s - view.s
    if d < 1.5 or d > 90:
        return
    tall = 1.58 + 0.3 * ((k * 37) % 11) / 10
    foot = view.project(np.array([(s, x, 0.03)]))[0]
    size = (tall * 0.5 * view.scale(s), tall * view.scale(s))
    picture = person(k, phase % PHASES, side)
    point = (foot[0], foot[1])
    canvas.sprite(picture, point, size, PEDESTRIAN, d, fade=_fade(d, 90), flip=flip)


def cyclist(canvas: Canvas, view: View, s: float, x: float, k: int, phase: int, away: bool) -> None:
    """Paints a person on a bicycle."""
    d = s - view.s
    if d < 1.5 or d > 100:
        return
    foot = view.project(np.array([(s, x, 0.0)]))[0]
    size = (0.92 * view.scale(s), 1.84 * view.scale(s))
    picture = rider(k, phase % PHASES, away)
    canvas.sprite(picture, (foot[0], foot[1]), size, CYCLIST, d, fade=_fade(d, 100))


def _post(canvas: Canvas, view: View, p: Post, style: Style) -> None:
    d = p.s - view.s
    if d < 1.3 or d > 130 or (p.kind == "bollard" and d > 50):
        return
    light = canvas.light
    g = style.pole_grey
    grey = (g, g, g * 0.98)
    r = {"lamp": 0.075, "wire": 0.12, "signal": 0.07, "bollard": 0.07}.get(p.kind, 0.042)
    tall = p.height + (1.0 if p.kind in ("signal", "sign") else 0.0)
    toward = -p.side
    world = np.array(
        [
            (p.s, p.x - r, 0.0), (p.s, p.x + r, 0.0),
            (p.s, p.x + r * 0.7, tall), (p.s, p.x - r * 0.7, tall),
            (p.s, p.x, tall), (p.s, p.x + toward * 1.3, tall + 0.35),
            (p.s, p.x, p.height),
        ]
    )  # fmt: skip
    px = view.project(world)
    if _outside(canvas, px):
        return
    tone = light.colour(grey, d)
    shaft = px[:4].copy()
    thin = 1.3 - float(shaft[1, 0] - shaft[0, 0])
    if thin > 0:  # a far pole is never thinner than a pixel
        shaft[[0, 3], 0] -= thin / 2
        shaft[[1, 2], 0] += thin / 2
    if p.kind == "belisha":
        _banded(canvas, shaft, d)
    else:
        canvas.convex(shaft, tone, POLE)
    scale = view.scale(p.s)
    if p.kind == "lamp":
        thick = max(0.06 * scale, 1.1)
        arm = np.array([px[4], px[5], px[5] + (0, thick), px[4] + (0, thick)])
        canvas.convex(arm, tone, POLE)
        head = px[5] + np.array([(-0.3, -0.05), (0.3, -0.05), (0.3, 0.1), (-0.3, 0.1)]) * scale
        canvas.convex(head, light.colour((150, 152, 152), d), POLE)
    elif p.kind == "wire":
        bar = px[4] + np.array([(-0.7, 0.4), (0.7, 0.4), (0.7, 0.55), (-0.7, 0.55)]) * scale
        canvas.convex(bar, tone, POLE)
    elif p.kind in ("sign", "signal"):
        lamp = int((view.t / 7.0 + p.k) % 3)
        sprite, height, ratio = sign(p.k if p.kind == "sign" else p.k % 6, lamp if p.kind == "signal" else 0)
        size = (height * ratio * scale, height * scale)
        # Signs turned away show their grey backs.
        lum = 1.0
        canvas.sprite(sprite, (px[6, 0], px[6, 1]), size, SIGN, d, lum, lean=view.roll)
    elif p.kind == "belisha":
        globe = px[4] + 0.17 * scale * np.array(
            [(np.cos(a), np.sin(a) - 0.6) for a in np.linspace(0, 6.283, 13)[:-1]]
        )
        canvas.convex(globe, light.colour((40, 150, 240), d, 1.1), SIGN)


def _banded(canvas: Canvas, shaft: F64, d: float) -> None:
    """A black and white crossing pole."""
    for i in range(6):
        a, b = i / 6, (i + 1) / 6
        left, right = shaft[3] - shaft[0], shaft[2] - shaft[1]
        part = np.array(
            [shaft[0] + left * a, shaft[1] + right * a, shaft[1] + right * b, shaft[0] + left * b]
        )
        tone = canvas.light.colour((190, 194, 194) if i % 2 else (34, 34, 34), d)
        canvas.convex(part, tone, POLE)
