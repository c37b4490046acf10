"""Procedural textures of the drive: noise, asphalt, facades, fences and the sky.

Every function is a pure function of its arguments; what is cached is never written to.
"""

from __future__ import annotations

import random
from functools import lru_cache

import cv2
import numpy as np

from rtseg.data._drive_paint import BGR, F32, U8, Sprite, halve

FACADES = 160
FENCES = 12


def noise(shape: tuple[int, int], octaves: tuple[tuple[int, float], ...], seed: int) -> F32:
    """Smooth noise (h, w) float32 of about zero mean that tiles; octaves: (cells, amplitude)."""
    rng = np.random.default_rng(seed)
    h, w = shape
    total = np.zeros(shape, np.float32)
    for cells, amplitude in octaves:
        ch, cw = max(1, cells), max(1, round(cells * w / h))
        grid = rng.standard_normal((ch, cw), np.float32)
        # One ring of wrapped cells around, so that interpolation meets at the edges.
        ring = np.pad(grid, 2, mode="wrap")
        sx, sy = w / cw, h / ch
        m = np.array([[1 / sx, 0, 2 + 0.5 / sx - 0.5], [0, 1 / sy, 2 + 0.5 / sy - 0.5]])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        total += np.float32(amplitude) * np.asarray(
            cv2.warpAffine(ring, m, (w, h), flags=flags), np.float32
        )
    return total


def to_u8(values: F32) -> U8:
    """Rounds and clips to uint8."""
    return np.asarray(np.clip(values + 0.5, 0, 255).astype(np.uint8), np.uint8)


@lru_cache(maxsize=8)
def asphalt(kind: int) -> tuple[U8, ...]:
    """Brightness of the ground, (512, 512) uint8 around 200 (= factor 1), and smaller versions.

    The tile covers 16 m x 16 m and repeats.
    """
    rng = random.Random(9000 + kind)
    base = noise((512, 512), ((4, 6), (16, 5), (60, 6), (200, 9), (512, 12)), 100 + kind)
    tile = 200 + base * rng.uniform(0.6, 1.1)
    canvas = to_u8(tile)
    for _ in range(rng.randint(1, 4)):
        x, y = rng.randrange(512), rng.randrange(512)
        w, h = rng.randint(20, 60), rng.randint(30, 160)
        patch = canvas[y : y + h, x : x + w]
        patch[:] = cv2.convertScaleAbs(patch, alpha=rng.choice((0.82, 0.88, 1.1)))
    for _ in range(rng.randint(2, 7)):
        cx, cy = rng.uniform(30, 480), rng.uniform(0, 300)
        path = [(cx, cy)]
        for _ in range(14):
            cx, cy = cx + rng.uniform(-9, 9), cy + rng.uniform(2, 14)
            path.append((cx, cy))
        cv2.polylines(canvas, [np.rint(path).astype(np.int32)], False, 150, 1, cv2.LINE_AA)
    levels = [canvas]
    while len(levels) < 6:
        levels.append(halve(levels[-1]))
    return tuple(levels)


_WALLS: tuple[BGR, ...] = (
    (70, 88, 120),  # red brick
    (62, 76, 104),
    (104, 132, 150),  # yellow Cambridge brick
    (92, 112, 126),
    (150, 158, 160),  # light render
    (176, 184, 186),
    (190, 200, 206),
    (112, 118, 120),  # stone
    (88, 92, 92),  # concrete
    (120, 110, 104),
    (60, 70, 78),
    (120, 140, 168),
)
_SHOPS: tuple[BGR, ...] = (
    (40, 34, 30), (120, 50, 30), (40, 40, 130), (50, 90, 40), (30, 30, 30), (170, 165, 160),
    (90, 60, 60), (40, 110, 150), (110, 100, 40),
)  # fmt: skip


def _window(img: U8, box: tuple[int, int, int, int], rng: random.Random, frame: BGR) -> None:
    """Draws one window: frame, glass that reflects some sky, bars, sill."""
    x0, y0, x1, y1 = box
    cv2.rectangle(img, (x0 - 1, y0 - 1), (x1 + 1, y1 + 1), frame, -1)
    dark = rng.uniform(18, 62)
    cv2.rectangle(img, (x0, y0), (x1, y1), (dark * 1.12, dark * 1.04, dark), -1)
    mid = y0 + int((y1 - y0) * rng.uniform(0.3, 0.7))
    shine = dark + rng.uniform(8, 60)
    if rng.random() < 0.7:
        cv2.rectangle(img, (x0, y0), (x1, mid), (shine * 1.08, shine * 1.03, shine), -1)
    if rng.random() < 0.3:  # a curtain or blind
        c = rng.uniform(90, 170)
        cv2.rectangle(img, (x0, y0), (x0 + (x1 - x0) // 3, y1), (c, c, c), -1)
    cv2.line(img, (x0, (y0 + y1) // 2), (x1, (y0 + y1) // 2), frame, 1)
    if x1 - x0 > 12:
        cv2.line(img, ((x0 + x1) // 2, y0), ((x0 + x1) // 2, y1), frame, 1)
    cv2.line(img, (x0 - 2, y1 + 2), (x1 + 2, y1 + 2), (140, 145, 146), 2)


def _shopfront(img: U8, top: int, rng: random.Random) -> None:
    """Draws a ground-floor shop below row `top`: sign board, panes, door."""
    h, w = img.shape[:2]
    body = rng.choice(_SHOPS)
    cv2.rectangle(img, (0, top), (w, h), body, -1)
    board = rng.choice(_SHOPS)
    cv2.rectangle(img, (4, top + 3), (w - 4, top + 20), board, -1)
    ink = (210, 215, 215) if sum(board) < 330 else (40, 40, 40)
    x = int(w * rng.uniform(0.1, 0.35))
    while x < w * rng.uniform(0.6, 0.9):
        step = rng.randint(4, 9)
        cv2.rectangle(img, (x, top + 7), (x + step - 2, top + 15), ink, -1)
        x += step + (5 if rng.random() < 0.2 else 0)
    panes = max(2, w // rng.randint(46, 80))
    door = rng.randrange(panes)
    for i in range(panes):
        x0, x1 = int(i * w / panes) + 4, int((i + 1) * w / panes) - 4
        glass = rng.uniform(16, 50)
        bottom = h - (3 if i == door else 14)
        cv2.rectangle(img, (x0, top + 25), (x1, bottom), (glass * 1.1, glass * 1.03, glass), -1)
        for _ in range(rng.randint(2, 6)):  # goods and posters
            gx, gy = rng.randint(x0, max(x0, x1 - 8)), rng.randint(top + 34, h - 22)
            tone = tuple(rng.uniform(30, 190) for _ in range(3))
            cv2.rectangle(img, (gx, gy), (min(x1, gx + rng.randint(4, 16)), gy + 9), tone, -1)
        if i == door:
            cv2.rectangle(img, (x0, top + 25), (x1, bottom), (ink[0], ink[1], ink[2]), 1)


@lru_cache(maxsize=FACADES)
def facade(k: int) -> tuple[Sprite, float, float, BGR]:
    """Front of house k: (sprite, width in m, height in m, wall colour)."""
    rng = random.Random(7000 + k)
    modern = rng.random() < 0.2
    floors = rng.choice((2, 2, 3, 3, 4)) + (1 if modern else 0)
    floor_m = rng.uniform(2.7, 3.4)
    width_m = rng.uniform(9, 18) if modern else rng.uniform(4.8, 11)
    height_m = floors * floor_m + rng.uniform(0.3, 0.9)
    ppm = 22.0
    w, h = int(width_m * ppm), int(height_m * ppm)
    wall = rng.choice(_WALLS)
    shade = rng.uniform(0.5, 1.4)
    wall = (wall[0] * shade, wall[1] * shade, wall[2] * shade)
    img = np.zeros((h, w, 3), np.uint8)
    img[:] = np.clip(wall, 0, 235)
    brick = not modern and rng.random() < 0.7
    if brick:
        img[::4] = (np.asarray(wall) * 0.88 + 8).clip(0, 255).astype(np.uint8)
    floor_px = int(floor_m * ppm)
    frame: BGR = rng.choice(((190, 195, 195), (150, 155, 155), (60, 60, 60), (210, 212, 212)))
    shop = rng.random() < (0.35 if modern else 0.5)
    cols = max(2, round(width_m / rng.uniform(1.9, 3.0)))
    wide = rng.uniform(0.4, 0.85 if modern else 0.6)
    tall = rng.uniform(0.42, 0.62)
    for floor in range(floors):
        bottom = h - floor * floor_px
        if floor == 0 and shop:
            continue
        sink = int(floor_px * rng.uniform(0.2, 0.28))
        for c in range(cols):
            cell = w / cols
            x0 = int((c + 0.5 - wide / 2) * cell)
            x1 = int((c + 0.5 + wide / 2) * cell)
            if floor == 0 and c == k % cols:
                paint = rng.choice(_SHOPS)
                cv2.rectangle(img, (x0, bottom - 50), (x0 + 22, bottom), (180, 182, 182), -1)
                cv2.rectangle(img, (x0 + 2, bottom - 46), (x0 + 20, bottom), paint, -1)
                continue
            y1 = bottom - sink
            _window(img, (x0, y1 - int(tall * floor_px), x1, y1), rng, frame)
    if shop:
        _shopfront(img, h - floor_px, rng)
    if rng.random() < 0.5:  # a band between floors
        for floor in range(1, floors):
            y = h - floor * floor_px
            cv2.line(img, (0, y), (w, y), tuple(c * 1.15 for c in wall), 2)
    cv2.rectangle(img, (0, 0), (w, 7), tuple(c * rng.uniform(0.6, 1.2) for c in wall), -1)
    cv2.line(img, (0, 8), (w, 8), tuple(c * 0.5 for c in wall), 2)
    pipe = rng.randrange(w)
    cv2.line(img, (pipe, 8), (pipe, h), (50, 50, 50), 2)
    stains = noise((h, w), ((3, 0.05), (12, 0.03), (h // 3, 0.035)), k)
    column = np.linspace(1.04, 0.88, h, dtype=np.float32)[:, None]
    lit = to_u8(img * ((1 + stains) * column)[..., None])
    opaque = np.full((h, w, 1), 255, np.uint8)
    return Sprite(np.concatenate([lit, opaque], axis=2)), width_m, height_m, wall


@lru_cache(maxsize=FENCES)
def fence(k: int) -> tuple[Sprite, float, bool]:
    """A 4 m length of fence k: (sprite, height in m, True if it is a solid wall)."""
    rng = random.Random(5000 + k)
    w, h = 256, 80
    img = np.zeros((h, w, 4), np.uint8)
    tone: BGR = rng.choice(
        ((40, 42, 42), (60, 62, 60), (150, 152, 152), (50, 80, 105), (46, 60, 50))
    )
    ink = (*tone, 255)
    kind = k % 4
    if kind == 3:  # brick wall
        img[:] = (*rng.choice(_WALLS[:4]), 255)
        img[::8] = (120, 124, 126, 255)
        for row in range(0, h, 8):
            for x in range((row // 8 % 2) * 8, w, 16):
                img[row : row + 8, x] = (120, 124, 126, 255)
        img[:6] = (130, 134, 136, 255)
        grain = noise((h, w), ((10, 0.08), (40, 0.08)), k)
        img[..., :3] = to_u8(img[..., :3] * (0.75 + grain)[..., None])
        return Sprite(img), rng.uniform(1.0, 2.2), True
    if kind == 2:  # close boards
        for x in range(0, w, 12):
            c = rng.uniform(0.7, 1.1)
            cv2.rectangle(img, (x, 4), (x + 10, h), (55 * c, 78 * c, 98 * c, 255), -1)
        cv2.rectangle(img, (0, 8), (w, 12), (50, 70, 88, 255), -1)
        return Sprite(img), rng.uniform(1.2, 1.8), False
    step = rng.choice((8, 10, 13)) if kind == 0 else 24
    for x in range(2, w, step):  # railings or guard rail
        cv2.rectangle(img, (x, 3), (x + 2, h), ink, -1)
    for x in range(0, w, 64):
        cv2.rectangle(img, (x, 0), (x + 5, h), ink, -1)
    for y in (5, h - 12) if kind == 0 else (4, 30, 56):
        cv2.rectangle(img, (0, y), (w, y + 4), ink, -1)
    return Sprite(img), rng.uniform(0.95, 1.4), False


def sky(seed: int, cover: float, zenith: BGR, low: BGR, cloud: BGR) -> U8:
    """A piece of sky, (256, 1024, 3) uint8; it tiles sideways. cover: share of cloud, 0..1."""
    h, w = 256, 1024
    field = noise((h, w), ((3, 1.0), (6, 0.55), (13, 0.3), (28, 0.16), (60, 0.08)), seed)
    up = np.linspace(1, 0, h, dtype=np.float32)[:, None]
    clear = np.asarray(zenith, np.float32) * up[..., None] + np.asarray(low, np.float32) * (
        1 - up[..., None]
    )
    density = np.clip((field / 1.2 + (cover - 0.5) * 3.2) * 0.9, 0, 1) * (0.45 + 0.55 * up)
    shade = np.clip(1.0 - 0.13 * np.roll(field, 9, axis=0) * up, 0.7, 1.2)
    puff = np.asarray(cloud, np.float32) * shade[..., None]
    mixed = clear + (puff - clear) * density[..., None]
    return to_u8(mixed)
