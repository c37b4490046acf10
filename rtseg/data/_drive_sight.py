"""What of a street can be seen: what is outside the frame or hidden by nearer things is left out.

Most things of a street are hidden, and painting is what a frame's time goes into. A thing is left
out only if nearer ones cover the whole of its box: no label depends on it, and of the picture only
the blended seams between neighbours, which let a little of what is behind them through.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from rtseg.data._drive_camera import NEAR_M, View
from rtseg.data._drive_cars import HULL, model, place
from rtseg.data._drive_cars import REACH_M as CAR_REACH_M
from rtseg.data._drive_paint import BUILDING, F64, FIXED_BITS, I32, U8, Outline, to_fixed
from rtseg.data._drive_sprites import tree
from rtseg.data._drive_things import House, Panel, Placed, Plant, Post, Thing, Vehicle, Walker

OPENING_M = 2 * NEAR_M

# Columns of a box: from s1 to s2 along the road, from x1 to x2 across, `top` high (all metres);
# `end` is the s by which things are painted from far to near, `reach` the farthest s1 to paint.
_S1, _S2, _X1, _X2, _TOP, _END, _REACH = range(7)
_MARGIN_PX = 1.0


def _post_box(p: Post) -> tuple[float, ...]:
    half, more = (1.5, 2.6) if p.kind == "sign" else (1.7, 1.2)
    reach = 50.0 if p.kind == "bollard" else 130.0
    return p.s, p.s, p.x - half, p.x + half, p.height + more, p.s, reach


def _vehicle_box(v: Vehicle) -> tuple[float, ...]:
    m = model(v.k)
    c, n = abs(math.cos(v.yaw)) / 2, abs(math.sin(v.yaw)) / 2
    along, across = m.length * c + m.width * n + 0.1, m.length * n + m.width * c + 0.1
    reach = CAR_REACH_M - along
    return v.s - along, v.s + along, v.x - across, v.x + across, m.height, v.s, reach


def _box(thing: Thing) -> tuple[float, ...]:
    """The space a thing is painted in, and how far it is seen: the 7 columns named above."""
    if isinstance(thing, House):
        h = thing
        x1, x2 = sorted((h.x, h.x + h.side * h.depth))
        reach = min(240.0, 260.0 - (h.s2 - h.s1))
        return h.s1, h.s2, x1, x2, h.height + h.rise + 1.0, h.s2, reach
    if isinstance(thing, Panel):
        p = thing
        wide = 1.3 if p.k < 0 else 0.0
        return p.s1, p.s2, p.x - wide, p.x + wide, 1.1 * p.height, p.s2, 140.0
    if isinstance(thing, Vehicle):
        return _vehicle_box(thing)
    if isinstance(thing, Post):
        return _post_box(thing)
    s, x = thing.s, thing.x
    if isinstance(thing, Plant):
        half = 0.5 * thing.height * tree(thing.k)[2]
        return s, s, x - half, x + half, thing.height, s, 200.0
    return s, s, x - 0.5, x + 0.5, 2.0, s, 90.0 if isinstance(thing, Walker) else 100.0


def _frames(chosen: F64, view: View) -> F64:
    """Boxes (N, 7) to what encloses them on screen: (N, 4) pixels x0, y0, x1, y1."""
    corners = np.empty((len(chosen), 8, 3))
    near = np.maximum(chosen[:, _S1], view.s + NEAR_M)
    for i, s in enumerate((near, chosen[:, _S2])):
        corners[:, 4 * i : 4 * i + 4, 0] = s[:, None]
    corners[:, 0::2, 1] = chosen[:, _X1, None]
    corners[:, 1::2, 1] = chosen[:, _X2, None]
    corners[:, [0, 1, 4, 5], 2] = -0.05
    corners[:, [2, 3, 6, 7], 2] = chosen[:, _TOP, None]
    px = view.project(corners)
    low, high = px.min(axis=1), px.max(axis=1)
    # Sprites stand upright whatever the roll.
    margin = _MARGIN_PX + abs(view.roll) * (high[:, 1:] - low[:, 1:])
    return np.concatenate([low - margin, high + margin], axis=1)


def _outline(thing: Thing) -> F64 | None:
    """World points (N, 3) that a house, panel or vehicle is painted from."""
    if isinstance(thing, House):
        h = thing
        back, ridge = h.x + h.side * h.depth, h.x + h.side * h.depth / 2
        top, peak = h.height, h.height + h.rise
        pot, half = h.chimney, 0.45
        return np.array(
            [
                (h.s1, h.x, top), (h.s2, h.x, top), (h.s2, h.x, 0.0), (h.s1, h.x, 0.0),  # front
                (h.s1, back, 0.0), (h.s1, back, top),  # near end
                (h.s1, ridge, peak), (h.s2, ridge, peak), (h.s2, back, top),
                (pot, ridge - half, peak - 0.7), (pot, ridge + half, peak - 0.7),  # chimney
                (pot, ridge + half, peak + 0.9), (pot, ridge - half, peak + 0.9),
            ]
        )  # fmt: skip
    if isinstance(thing, Panel):
        s1, s2, x, top = thing.s1, thing.s2, thing.x, thing.height
        return np.array([(s1, x, top), (s2, x, top), (s2, x, 0.0), (s1, x, 0.0)])
    if isinstance(thing, Vehicle):
        return place(model(thing.k).points, thing.s, thing.x, thing.yaw)
    return None


def placed(things: list[Thing]) -> Placed:
    """The things with their boxes and outlines."""
    boxes = np.array([_box(thing) for thing in things], np.float64).reshape(-1, 7)
    return Placed(things, boxes, [_outline(thing) for thing in things])


def _project(things: list[Thing], outlines: list[F64], view: View) -> list[Outline]:
    """Outlines on screen. What is fixed to the ground is cut off near the camera."""
    if not things:
        return []
    sizes = [len(outline) for outline in outlines]
    begin = [-np.inf if isinstance(t, Vehicle) else view.s + OPENING_M for t in things]
    world = np.concatenate(outlines)
    world[:, 0] = np.maximum(world[:, 0], np.repeat(begin, sizes))
    px = view.project(world)
    fixed = to_fixed(px)
    ends = np.cumsum(sizes).tolist()
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [Outline(px[part], fixed[part]) for part in parts]


def _hide(space: U8, thing: Thing, fixed: I32) -> None:
    """Takes from the open `space` (H, W) what cannot be seen through the thing of an outline."""
    if isinstance(thing, Vehicle):
        for solid in (fixed[:8], fixed[8:]):
            hull = np.asarray(cv2.convexHull(solid), np.int32)
            cv2.fillConvexPoly(space, hull, 0, cv2.LINE_8, FIXED_BITS)
    elif isinstance(thing, House) or (isinstance(thing, Panel) and thing.label == BUILDING):
        cv2.fillConvexPoly(space, fixed[:4], 0, cv2.LINE_8, FIXED_BITS)


class _Candidates:
    """What is within reach and within the frame, from near to far.

    Attributes:
        things, outlines: as in `Placed`.
        windows: (N, 4) whole pixels x0, y0, x1, y1 of the frame, which enclose each.
    """

    def __init__(self, groups: list[Placed], view: View, size_hw: tuple[int, int]) -> None:
        boxes = np.concatenate([group.boxes for group in groups])
        ahead = np.flatnonzero(
            (boxes[:, _S2] > view.s + NEAR_M) & (boxes[:, _S1] - view.s <= boxes[:, _REACH])
        )
        frames = _frames(boxes[ahead], view)
        low = np.floor(frames[:, :2]).clip(0)
        high = np.ceil(frames[:, 2:]).clip(None, size_hw[::-1])
        inside = np.flatnonzero((low < high).all(axis=1))
        near_first = inside[np.argsort(-boxes[ahead[inside], _END], kind="stable")[::-1]]
        chosen = ahead[near_first].tolist()
        things = [thing for group in groups for thing in group.things]
        outlines = [outline for group in groups for outline in group.outlines]
        self.things = [things[i] for i in chosen]
        self.outlines = [outlines[i] for i in chosen]
        windows = np.concatenate([low, high], axis=1)[near_first]
        self.windows: list[list[int]] = windows.astype(np.int32).tolist()


def visible(
    groups: list[Placed], view: View, size_hw: tuple[int, int]
) -> list[tuple[Thing, Outline | None]]:
    """The things that can be seen, from far to near, each with its outline on screen."""
    found = _Candidates(groups, view, size_hw)
    things = found.things
    solid = [i for i, outline in enumerate(found.outlines) if outline is not None]
    corners = [o[:HULL] for o in found.outlines if o is not None]
    px = dict(zip(solid, _project([things[i] for i in solid], corners, view), strict=True))
    space = np.full(size_hw, 255, np.uint8)
    seen = []
    for i, (x0, y0, x1, y1) in enumerate(found.windows):
        if cv2.hasNonZero(space[y0:y1, x0:x1]):
            seen.append(i)
            if i in px:
                _hide(space, things[i], px[i].fixed)
    # Of vehicles, all points; most of those above were hidden.
    cars = [i for i in seen if isinstance(things[i], Vehicle)]
    parts = [o for i in cars if (o := found.outlines[i]) is not None]
    px.update(zip(cars, _project([things[i] for i in cars], parts, view), strict=True))
    return [(things[i], px.get(i)) for i in reversed(seen)]
