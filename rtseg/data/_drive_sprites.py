"""Sprites of the drive: trees, people, cyclists, signs, distant skyline. Pure functions, cached."""

from __future__ import annotations

import math
import random
from functools import lru_cache

import cv2
import numpy as np

from rtseg.data._drive_paint import BGR, U8, Sprite
from rtseg.data._drive_textures import noise, to_u8

TREES = 24
PEOPLE = 40
RIDERS = 12
SIGNS = 30
PHASES = 16
_FINE = 4


def _alpha_mask(alpha: U8, reach: int) -> U8:
    """The outline of something with holes: small gaps closed, as an annotator would draw it."""
    kernel = np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)), np.uint8)
    solid = np.where(alpha > 70, 255, 0).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(solid, cv2.MORPH_CLOSE, kernel), np.uint8)


def _branch(
    img: U8, at: tuple[float, float], angle: float, length: float, width: float, rng: random.Random
) -> None:
    """Draws a branch and, from it, thinner ones."""
    x, y = at
    ex, ey = x + length * math.sin(angle), y - length * math.cos(angle)
    tone = rng.uniform(38, 72)
    ink = (tone * 0.86, tone * 0.95, tone, 255)
    a, b = (round(x * 16), round(y * 16)), (round(ex * 16), round(ey * 16))
    cv2.line(img, a, b, ink, max(1, round(width)), cv2.LINE_AA, 4)
    if length < 6:
        return
    for _ in range(2 if width > 5 or rng.random() < 0.55 else 3):
        turn = rng.uniform(0.1, 0.55) * rng.choice((-1, 1))
        _branch(
            img, (ex, ey), angle * 0.86 + turn, length * rng.uniform(0.66, 0.86), width * 0.66, rng
        )


@lru_cache(maxsize=TREES)
def tree(k: int) -> tuple[Sprite, float, float]:
    """Tree or bush k: (sprite, height in m, width over height)."""
    rng = random.Random(3000 + k)
    kind = ("leafy", "bare", "leafy", "bare", "dark", "bush")[k % 6]
    w, h = (200, 110) if kind == "bush" else (200, 240)
    img = np.zeros((h, w, 4), np.uint8)
    if kind == "bare":
        img = np.zeros((320, 400, 4), np.uint8)
        _branch(img, (200, 320), rng.uniform(-0.04, 0.04), rng.uniform(44, 58), 6, rng)
        ys, xs = np.nonzero(img[..., 3])
        reach = int(np.abs(xs - 200).max()) + 3
        img = np.ascontiguousarray(img[max(0, int(ys.min()) - 2) :, 200 - reach : 200 + reach])
        shape = (img.shape[1] / img.shape[0], _alpha_mask(img[..., 3], 11))
        return Sprite(img, shape[1]), rng.uniform(6, 12), shape[0]
    crown_h = h if kind == "bush" else h * rng.uniform(0.68, 0.84)
    trunk_x = w / 2
    if kind != "bush":
        for dx in (-14, -6, 5, 13):
            foot, fork = (round(trunk_x), h), (round(trunk_x + dx), int(crown_h * 0.55))
            cv2.line(img, foot, fork, (34, 40, 46, 255), 5, cv2.LINE_AA)
        cv2.rectangle(img, (w // 2 - 4, int(crown_h * 0.8)), (w // 2 + 4, h), (40, 47, 54, 255), -1)
    yy, xx = np.mgrid[0:h, 0:w].astype(np.float32)
    field = np.full((h, w), -1, np.float32)
    for _ in range(9 if kind == "bush" else 22):
        grow = rng.uniform(0.11, 0.2) * w
        narrow = {"dark": 0.2, "bush": 0.34}.get(kind, 0.28)
        turn, far = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random())
        bx = w / 2 + far * narrow * w * math.cos(turn)
        low, spread = (0.66, 0.25) if kind == "bush" else (0.47, 0.27)
        by = crown_h * low + far * spread * crown_h * math.sin(turn)
        np.maximum(field, 1 - ((xx - bx) ** 2 + (yy - by) ** 2) / grow**2, out=field)
    leaf = noise((h, w), ((14, 0.2), (40, 0.2), (100, 0.22)), 40 + k)
    inside = np.clip((field + leaf - 0.26) * 7, 0, 1)
    inside *= np.clip(np.minimum(np.minimum(xx, w - 1 - xx), yy) / 8, 0, 1)
    green: BGR = rng.choice(((38, 68, 62), (44, 76, 76), (40, 62, 50), (50, 84, 88), (48, 70, 84)))
    if kind == "dark":
        green = (36, 50, 40)
    lit = 0.62 + 0.55 * np.clip(1 - yy / crown_h, 0, 1) + 0.5 * leaf + 0.35 * np.clip(field, 0, 1)
    leaves = np.asarray(green, np.float32) * lit[..., None] * rng.uniform(0.8, 1.15)
    alpha = inside[..., None]
    img[..., :3] = to_u8(img[..., :3] * (1 - alpha) + leaves * alpha)
    img[..., 3] = np.maximum(img[..., 3], to_u8(inside * 255))
    height = rng.uniform(0.9, 2.4) if kind == "bush" else rng.uniform(4.5, 12)
    return Sprite(img, _alpha_mask(img[..., 3], 9)), height, w / h


_CLOTHES: tuple[BGR, ...] = (
    (26, 24, 24), (40, 34, 32), (30, 30, 38), (60, 44, 34), (44, 48, 56), (34, 34, 34),
    (36, 40, 96), (70, 76, 80), (150, 152, 156), (90, 60, 40), (40, 70, 52), (60, 100, 130),
)  # fmt: skip
_SKIN: tuple[BGR, ...] = ((120, 140, 176), (96, 116, 150), (60, 80, 110), (44, 58, 84))


def _limb(img: U8, points: list[tuple[float, float]], width: float, tone: BGR) -> None:
    """Draws a jointed limb, round at its ends; coordinates in units of a 1 x 2 figure."""
    path = np.rint(np.asarray(points) * 64 * 16).astype(np.int32)
    cv2.polylines(img, [path], False, (*tone, 255), max(1, round(width * 64)), cv2.LINE_AA, 4)


def _darker(tone: BGR, factor: float) -> BGR:
    return (tone[0] * factor, tone[1] * factor, tone[2] * factor)


@lru_cache(maxsize=PEOPLE * PHASES)
def person(k: int, phase: int, side: bool) -> Sprite:
    """Walker k at step `phase` of PHASES, seen from the side (facing right) or along its way.

    The sprite is one wide and two high; its height is the person's.
    """
    rng = random.Random(1000 + k)
    img = np.zeros((128, 64, 4), np.uint8)
    coat, legs = rng.choice(_CLOTHES), rng.choice(_CLOTHES[:7])
    skin, hair = rng.choice(_SKIN), _darker(rng.choice(_SKIN), rng.uniform(0.2, 0.6))
    broad = rng.uniform(0.24, 0.32)
    long_coat = rng.random() < 0.35
    bag = rng.random() < 0.3
    a = 2 * math.pi * phase / PHASES
    hip, neck, mid = 1.02, 0.36, 0.5
    for sign in (-1, 1):  # far leg and arm first
        swing = sign * math.sin(a)
        lift = max(0.0, sign * math.cos(a)) * 0.1
        tone = _darker(legs, 0.75 if sign < 0 else 1.0)
        sleeve = _darker(coat, 0.78 if sign < 0 else 0.95)
        if side:
            knee = (mid + 0.13 * swing + 0.05, 1.45 - lift * 0.4)
            foot = (mid + 0.3 * swing - lift * 0.6, 1.9 - lift)
            _limb(img, [(mid, hip), knee, foot], 0.13, tone)
            _limb(img, [foot, (foot[0] + 0.1, foot[1] + 0.03)], 0.09, (22, 22, 24))
            if sign > 0:
                continue
            _limb(
                img,
                [(mid, 0.46), (mid - 0.1 * swing, 0.75), (mid - 0.22 * swing, 0.98)],
                0.1,
                sleeve,
            )
        else:
            x = mid + sign * 0.09
            foot = (x + 0.02 * sign, 1.92 - lift * 1.6)
            _limb(img, [(x, hip), (x, 1.45 - lift), foot], 0.145, tone)
            _limb(img, [foot, (foot[0], foot[1] + 0.02)], 0.12, (22, 22, 24))
            hand = (mid + sign * (broad * 0.62 + 0.07), 1.02 + 0.05 * swing)
            _limb(img, [(mid + sign * broad * 0.5, 0.46), hand], 0.1, sleeve)
    wide = broad * (0.72 if side else 1.0)
    hem = 1.3 if long_coat else 1.05
    torso = [(mid - wide * 0.55, neck + 0.05), (mid + wide * 0.55, neck + 0.05),
             (mid + wide * 0.62, hem), (mid - wide * 0.62, hem)]  # fmt: skip
    cv2.fillPoly(img, [np.rint(np.asarray(torso) * 1024).astype(np.int32)], (*coat, 255), 16, 4)
    _limb(img, [(mid - wide * 0.4, neck + 0.07), (mid + wide * 0.4, neck + 0.07)], 0.12, coat)
    if side:
        swing = math.sin(a)
        hand = (mid - 0.22 * swing, 0.98)
        _limb(img, [(mid, 0.46), (mid - 0.1 * swing, 0.75), hand], 0.1, _darker(coat, 0.88))
    if bag:
        spot = (mid - 0.16, 0.62) if side else (mid, 0.62)
        _limb(img, [spot, (spot[0], spot[1] + 0.18)], 0.18, rng.choice(_CLOTHES))
    head = (round((mid + (0.03 if side else 0)) * 1024), round(0.18 * 1024))
    cv2.ellipse(img, head, (108, 140), 0, 0, 360, (*skin, 255), -1, cv2.LINE_AA, 4)
    away = k % 2 == 0
    cap = (150, 400) if side else ((0, 360) if away else (180, 360))
    cv2.ellipse(img, head, (118, 146), 0, *cap, (*hair, 255), -1, cv2.LINE_AA, 4)
    return Sprite(img)


@lru_cache(maxsize=RIDERS * PHASES)
def rider(k: int, phase: int, away: bool) -> Sprite:
    """Cyclist k at pedal position `phase` of PHASES, from behind (away) or the front; 1 x 2."""
    rng = random.Random(2000 + k)
    img = np.zeros((128, 64, 4), np.uint8)
    coat, legs = rng.choice(_CLOTHES), rng.choice(_CLOTHES[:6])
    skin = rng.choice(_SKIN)
    a = 2 * math.pi * phase / PHASES
    mid = 0.5
    tyre = (30, 30, 32, 255)
    cv2.ellipse(img, (512, round(1.62 * 1024)), (52, 370), 0, 0, 360, tyre, -1, cv2.LINE_AA, 4)
    _limb(img, [(mid, 1.1), (mid, 1.6)], 0.05, rng.choice(_CLOTHES))
    if away:
        cv2.rectangle(img, (30, 72), (34, 76), (40, 40, 190, 255), -1)
    else:
        cv2.circle(img, (32, 68), 3, (220, 230, 230, 255), -1)
    _limb(img, [(mid - 0.3, 0.92), (mid + 0.3, 0.92)], 0.045, (36, 36, 38))
    for sign in (-1, 1):
        up = sign * math.sin(a) * 0.15
        x = mid + sign * 0.11
        _limb(img, [(x, 1.0), (x + sign * 0.05, 1.28 - up), (x, 1.62 - up)], 0.135, legs)
        _limb(img, [(x, 1.64 - up), (x, 1.66 - up)], 0.12, (24, 24, 26))
        elbow = (mid + sign * 0.3, 0.68)
        _limb(
            img,
            [(mid + sign * 0.16, 0.44), elbow, (mid + sign * 0.27, 0.9)],
            0.11,
            _darker(coat, 0.85),
        )
    torso = [(0.33, 0.38), (0.67, 0.38), (0.66, 1.05), (0.34, 1.05)]
    cv2.fillPoly(img, [np.rint(np.asarray(torso) * 1024).astype(np.int32)], (*coat, 255), 16, 4)
    _limb(img, [(0.4, 0.4), (0.6, 0.4)], 0.14, coat)
    if away and rng.random() < 0.4:
        _limb(img, [(mid, 0.56), (mid, 0.8)], 0.24, rng.choice(_CLOTHES))
    head = (512, round(0.2 * 1024))
    cv2.ellipse(img, head, (105, 138), 0, 0, 360, (*skin, 255), -1, cv2.LINE_AA, 4)
    helmet = rng.choice(((40, 40, 44), (180, 184, 186), (40, 50, 150), (44, 36, 30)))
    arc = (0, 360) if away else (180, 360)
    cv2.ellipse(img, head, (116, 140), 0, *arc, (*helmet, 255), -1, cv2.LINE_AA, 4)
    return Sprite(img)


def _glyphs(
    img: U8, box: tuple[int, int, int, int], ink: tuple[int, ...], rng: random.Random
) -> None:
    """Rows of letter-like blocks."""
    x0, y0, x1, y1 = box
    for y in range(y0, y1 - 5, 11):
        x = x0
        while x < x1 - 6:
            step = rng.randint(3, 8)
            cv2.rectangle(img, (x, y), (x + step - 2, y + 6), ink, -1)
            x += step + (4 if rng.random() < 0.25 else 0)
            if rng.random() < 0.06:
                break


@lru_cache(maxsize=SIGNS * 3)
def sign(k: int, lamp: int = 0) -> tuple[Sprite, float, float]:
    """Sign k: (sprite, height in m, width over height). k < 6: traffic lights showing lamp 0..2."""
    rng = random.Random(4000 + k)
    white, red, blue, black = (205, 208, 208), (44, 40, 170), (150, 84, 30), (26, 26, 26)
    if k < 6:
        img = np.zeros((96, 44, 4), np.uint8)
        cv2.rectangle(img, (2, 2), (41, 93), (*(white if k == 0 else black), 255), -1)
        cv2.rectangle(img, (6, 5), (37, 90), (22, 22, 22, 255), -1)
        lit = ((60, 60, 245), (40, 190, 250), (140, 230, 90))
        for i in range(3):
            tone = lit[i] if i == lamp else tuple(c * 0.16 + 14 for c in lit[i])
            cv2.circle(img, (22, 20 + 28 * i), 11, (*tone, 255), -1, cv2.LINE_AA)
        return Sprite(img), 0.95, 44 / 96
    kind = k % 6
    s = 72
    img = np.zeros((s, s, 4), np.uint8)
    height = rng.uniform(0.6, 0.85)
    if kind in (0, 1):  # round
        field, rim = (white, red) if kind == 0 else (blue, white)
        cv2.circle(img, (36, 36), 34, (*rim, 255), -1, cv2.LINE_AA)
        cv2.circle(img, (36, 36), 27 if kind == 0 else 31, (*field, 255), -1, cv2.LINE_AA)
        ink = (*(black if kind == 0 else white), 255)
        if kind == 0 and rng.random() < 0.25:
            cv2.circle(img, (36, 36), 33, (*red, 255), -1, cv2.LINE_AA)
            cv2.rectangle(img, (14, 30), (58, 42), (*white, 255), -1)
        elif rng.random() < 0.5:
            cv2.arrowedLine(img, (20, 52), (52, 20), ink, 6, cv2.LINE_AA, tipLength=0.4)
        else:
            alpha = img[..., 3].copy()
            cv2.putText(img, str(rng.choice((20, 30, 40))), (14, 48), 1, 2.2, ink, 4, cv2.LINE_AA)
            img[..., 3] = alpha
    elif kind == 2:  # warning triangle
        for inset, tone in ((0, red), (9, white)):
            tri = np.array(
                [
                    (36, 3 + inset * 1.6),
                    (69 - inset * 1.3, 66 - inset),
                    (3 + inset * 1.3, 66 - inset),
                ]
            )
            cv2.fillPoly(img, [np.rint(tri * 16).astype(np.int32)], (*tone, 255), 16, 4)
        cv2.rectangle(img, (33, 28), (39, 46), (*black, 255), -1)
        cv2.circle(img, (36, 53), 3, (*black, 255), -1)
        height = 0.8
    elif kind == 3:  # blue or green direction board
        img = np.zeros((80, 130, 4), np.uint8)
        field = rng.choice((blue, (70, 92, 24), (196, 200, 200)))
        cv2.rectangle(img, (0, 0), (129, 79), (*white, 255), -1)
        cv2.rectangle(img, (3, 3), (126, 76), (*field, 255), -1)
        ink = (*(white if field != (196, 200, 200) else black), 255)
        _glyphs(img, (10, 10, 118, 72), ink, rng)
        return Sprite(img), rng.uniform(0.8, 1.5), 130 / 80
    elif kind == 4:  # advertising or bus-stop board
        img = np.zeros((140, 72, 4), np.uint8)
        poster = (rng.uniform(30, 180), rng.uniform(30, 150), rng.uniform(30, 190))
        cv2.rectangle(img, (0, 0), (71, 139), (50, 52, 52, 255), -1)
        cv2.rectangle(img, (4, 4), (67, 135), (*poster, 255), -1)
        _glyphs(img, (10, 12, 64, 60), (*white, 255), rng)
        cv2.ellipse(img, (36, 98), (22, 28), 0, 0, 360, (*(255 - c for c in poster), 255), -1)
        return Sprite(img), rng.uniform(1.2, 2.0), 72 / 140
    else:  # square
        cv2.rectangle(img, (2, 2), (69, 69), (*white, 255), -1)
        cv2.rectangle(img, (5, 5), (66, 66), (*rng.choice((blue, (40, 170, 210), white)), 255), -1)
        _glyphs(img, (12, 14, 62, 60), (*black, 255), rng)
    return Sprite(img), height, 1.0


@lru_cache(maxsize=16)
def skyline(k: int, houses: bool) -> Sprite:
    """A distant row of trees or roofs, 96 x 1024, that tiles sideways."""
    rng = random.Random(6000 + 2 * k + houses)
    img = np.zeros((96, 1024, 4), np.uint8)
    if houses:
        x = 0
        while x < 1024:
            w, top = rng.randint(16, 60), rng.randint(36, 76)
            tone = rng.uniform(70, 130)
            if rng.random() < 0.35:
                x += w
                continue
            ink = (tone * 1.04, tone, tone * rng.uniform(0.95, 1.1), 255)
            cv2.rectangle(img, (x, top), (x + w, 96), ink, -1)
            roof = np.array(
                [(x - 1, top), (x + w + 1, top), (x + w * 0.8, top - 12), (x + w * 0.2, top - 12)]
            )
            cv2.fillPoly(
                img, [np.rint(roof).astype(np.int32)], (tone * 0.7, tone * 0.68, tone * 0.7, 255)
            )
            for wx in range(x + 3, x + w - 4, 8):
                cv2.rectangle(img, (wx, top + 5), (wx + 3, top + 10), (60, 58, 56, 255), -1)
            x += w
        return Sprite(img)
    base = noise((96, 1024), ((2, 10), (6, 8), (20, 6)), 60 + k)
    rows = np.arange(96, dtype=np.float32)[:, None]
    inside = np.clip((rows - (50 + base)) * 0.4, 0, 1)
    speckle = noise((96, 1024), ((30, 7), (90, 9)), 80 + k)
    leaves = np.asarray((58, 72, 74), np.float32) + speckle[..., None]
    img[..., :3] = to_u8(leaves)
    img[..., 3] = to_u8(inside * 255)
    return Sprite(img, premultiplied=False)
