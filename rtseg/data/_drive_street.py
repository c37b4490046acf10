"""Painting what stands along the street: houses, plants, fences, posts and people."""

from __future__ import annotations

import numpy as np

from rtseg.data._drive_camera import View
from rtseg.data._drive_cars import paint_car
from rtseg.data._drive_paint import (
    BUILDING,
    CYCLIST,
    F64,
    PEDESTRIAN,
    POLE,
    SIGN,
    TREE,
    Canvas,
    Outline,
)  # fmt: skip
from rtseg.data._drive_sight import OPENING_M
from rtseg.data._drive_sprites import PHASES, person, rider, sign, tree
from rtseg.data._drive_textures import facade, fence
from rtseg.data._drive_things import (
    Cyclist,
    House,
    Panel,
    Plant,
    Post,
    Style,
    Thing,
    Walker,
)

_CLOSE_M = 0.7
# Corners of a house's outline, as `_drive_sight` orders them.
_LEFT, _RIGHT, _ROOF = [0, 1, 2, 3], [1, 0, 3, 2], [0, 1, 7, 6]
_END, _GABLE = [0, 3, 4, 5], [0, 3, 4, 5, 6]


def paint(canvas: Canvas, view: View, thing: Thing, outline: Outline | None, style: Style) -> None:
    """Paints one thing; outline: on screen, of what `Placed` has one for."""
    if isinstance(thing, Plant):
        _plant(canvas, view, thing)
    elif isinstance(thing, Post):
        _post(canvas, view, thing, style)
    elif isinstance(thing, Walker):
        _walker(canvas, view, thing)
    elif isinstance(thing, Cyclist):
        _cyclist(canvas, view, thing)
    elif outline is None:
        raise AssertionError(thing)
    elif isinstance(thing, House):
        _house(canvas, view, thing, outline)
    elif isinstance(thing, Panel):
        _panel(canvas, view, thing, outline.px)
    else:
        paint_car(canvas, thing.k, thing.s - view.s, thing.yaw, outline, thing.brake)


def _low(px: F64) -> bool:
    """Whether an outline is too low on screen to be painted."""
    ys = px[:, 1].tolist()
    return bool(max(ys) - min(ys) < 0.8)


def _house(canvas: Canvas, view: View, h: House, outline: Outline) -> None:
    px, fixed = outline
    d = max(h.s1 - view.s, 1.0)
    s1 = max(h.s1, view.s + OPENING_M)
    if h.s2 - s1 < 0.1 or _low(px):
        return
    sprite, _, _, wall = facade(h.k)
    light = canvas.light
    sunny = 1 + 0.45 * light.sun * (-1 if light.sun_side * h.side > 0 else 1)
    lum = h.lum * sunny
    if h.s1 > view.s + OPENING_M:  # the end wall that faces the camera, and its gable
        plain = (wall[0] * h.tint[0], wall[1] * h.tint[1], wall[2] * h.tint[2])
        tone = light.colour(plain, d, lum * 0.8)
        canvas.fill_fixed(fixed[_GABLE if h.rise else _END], tone, BUILDING)
        if h.open_end and d < 60 and not h.rise:
            canvas.quad(sprite, px[[5, 0, 3, 4]], None, d, lum * 0.8, h.tint)
    if h.rise:
        canvas.convex_fixed(fixed[_ROOF], light.colour(h.roof, d, sunny), BUILDING)
        if d < 90 and view.s + 2 <= h.chimney <= h.s2 - 0.5:
            canvas.convex_fixed(fixed[9:], light.colour((66, 80, 106), d), BUILDING)
    # Seen from the road, a front on the left runs away from its left edge to its right one.
    shown = (s1 - h.s1) / (h.s2 - h.s1)
    corners, span = (_LEFT, (shown, 1.0)) if h.side < 0 else (_RIGHT, (0.0, 1.0 - shown))
    middle = max((s1 + h.s2) / 2 - view.s, 1.0)
    # A plain front first: it closes the hairline seams between neighbours, and is the label.
    canvas.convex_fixed(fixed[corners], light.colour(wall, middle, lum * 0.8), BUILDING)
    if abs(px[1, 0] - px[0, 0]) > 2.0:
        canvas.quad(sprite, px[corners], None, middle, lum, h.tint, span)


def _panel(canvas: Canvas, view: View, p: Panel, px: F64) -> None:
    s1 = max(p.s1, view.s + OPENING_M)
    if p.s2 - s1 < 0.1:
        return
    if p.k < 0:
        _hedge(canvas, view, p)
        return
    if _low(px):
        return
    sprite, _, _ = fence(p.k)
    shown = (s1 - p.s1) / 4
    end = (p.s2 - p.s1) / 4
    left = p.x < view.x
    quad = px if left else px[[1, 0, 3, 2]]
    span = (shown, end) if left else (1 - end, 1 - shown)
    d = max((s1 + p.s2) / 2 - view.s, 1.0)
    canvas.quad(sprite, quad, p.label, d, 0.95, (1.0, 1.0, 1.0), span, solid=True)


def _hedge(canvas: Canvas, view: View, p: Panel) -> None:
    """A row of bush sprites that overlap."""
    step = 1.5
    n = int((p.s2 - p.s1) / step)
    k = 5 + 6 * ((-1 - p.k) % 4)
    sprite = tree(k)[0]
    for i in range(n, -1, -1):
        s = p.s1 + i * step
        if s < view.s + _CLOSE_M:
            return
        foot = view.point(s, p.x, 0.0)
        scale = view.scale(s)
        wide = 2.6 * scale
        if -wide < foot[0] < canvas.width + wide:
            lum = 0.85 + 0.12 * ((i * 7) % 5) / 4
            size = (wide, p.height * 1.1 * scale)
            canvas.sprite(sprite, foot, size, TREE, s - view.s, lum, flip=bool(i % 2))


def _fade(d: float, reach: float) -> float:
    return min(1.0, max(0.0, (reach - d) / (0.2 * reach)))


def _plant(canvas: Canvas, view: View, p: Plant) -> None:
    d = p.s - view.s
    if d < _CLOSE_M:
        return
    sprite, _, ratio = tree(p.k)
    foot = view.point(p.s, p.x, 0.0)
    scale = view.scale(p.s)
    size = (p.height * ratio * scale, p.height * scale)
    canvas.sprite(
        sprite, foot, size, TREE, d, p.lum, fade=_fade(d, 200), flip=p.flip,
        lean=view.roll,
    )  # fmt: skip


def _walker(canvas: Canvas, view: View, p: Walker) -> None:
    d = p.s - view.s
    if d < _CLOSE_M:
        return
    tall = (1.58 + 0.3 * ((p.k * 37) % 11) / 10) * view.scale(p.s)
    picture = person(p.k, p.phase % PHASES, p.side)
    foot = view.point(p.s, p.x, 0.03)
    size = (0.5 * tall, tall)
    canvas.sprite(picture, foot, size, PEDESTRIAN, d, fade=_fade(d, 90), flip=p.flip)


def _cyclist(canvas: Canvas, view: View, p: Cyclist) -> None:
    d = p.s - view.s
    if d < _CLOSE_M:
        return
    tall = 1.84 * view.scale(p.s)
    picture = rider(p.k, p.phase % PHASES, p.away)
    foot = view.point(p.s, p.x, 0.0)
    canvas.sprite(picture, foot, (0.5 * tall, tall), CYCLIST, d, fade=_fade(d, 100))


def _post(canvas: Canvas, view: View, p: Post, style: Style) -> None:
    d = p.s - view.s
    if d < _CLOSE_M:
        return
    light = canvas.light
    g = style.pole_grey
    r = {"lamp": 0.075, "plain": 0.06, "signal": 0.07, "bollard": 0.07}.get(p.kind, 0.042)
    tall = p.height + (1.0 if p.kind in ("signal", "sign") else 0.0)
    scale = view.scale(p.s)
    foot, head = view.point(p.s, p.x, 0.0), view.point(p.s, p.x, tall)
    margin = 2 * scale
    if foot[1] - head[1] < 1.5 or not -margin < foot[0] < canvas.width + margin:
        return
    half = max(r * scale, 0.65)  # a far pole is never thinner than a pixel
    tip = max(0.7 * r * scale, 0.65)
    shaft = np.array([(foot[0] - half, foot[1]), (foot[0] + half, foot[1]),
                      (head[0] + tip, head[1]), (head[0] - tip, head[1])])  # fmt: skip
    tone = light.colour((g, g, g * 0.98), d)
    if p.kind == "belisha":
        _banded(canvas, shaft, d)
    else:
        canvas.convex(shaft, tone, POLE)
    if p.kind == "lamp":
        end = np.array(view.point(p.s, p.x - 1.3 * p.side, tall + 0.35))
        thick = max(0.06 * scale, 1.1)
        arm = np.array([head, end, (end[0], end[1] + thick), (head[0], head[1] + thick)])
        canvas.convex(arm, tone, POLE)
        lantern = end + np.array([(-0.3, -0.05), (0.3, -0.05), (0.3, 0.1), (-0.3, 0.1)]) * scale
        canvas.convex(lantern, light.colour((150, 152, 152), d), POLE)
    elif p.kind in ("sign", "signal"):
        signal = p.kind == "signal"
        lamp = int((view.t / 7.0 + p.k) % 3) if signal else 0
        sprite, height, ratio = sign(p.k % 6 if signal else p.k, lamp)
        grow = scale if signal else 1.2 * scale
        size = (height * ratio * grow, height * grow)
        base = view.point(p.s, p.x, p.height)
        canvas.sprite(sprite, base, size, SIGN, d, lean=view.roll)
    elif p.kind == "belisha":
        globe = np.array(head) + 0.17 * scale * np.array(
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
