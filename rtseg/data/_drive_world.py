"""The endless street of one seed, built chunk by chunk.

What stands in a chunk of CHUNK_M metres follows from (seed, chunk) alone.
"""

from __future__ import annotations

import random

import numpy as np

from rtseg.data._drive_cars import CARS
from rtseg.data._drive_paint import BGR, BUILDING, FENCE, PAVEMENT, ROAD, TREE
from rtseg.data._drive_sight import placed
from rtseg.data._drive_sprites import PEOPLE, SIGNS, TREES
from rtseg.data._drive_sprites import tree as tree_sprite
from rtseg.data._drive_textures import FACADES, FENCES, facade, fence
from rtseg.data._drive_things import (
    CHUNK_M,
    KERB_M,
    ZONES,
    Chunk,
    House,
    Panel,
    Patch,
    Plant,
    Post,
    Style,
    Vehicle,
    Walker,
    rng_for,
    strip,
)


def _shaded(colour: BGR, factor: float, lift: float = 0.0) -> BGR:
    return (colour[0] * factor + lift, colour[1] * factor + lift, colour[2] * factor + lift)


class World:
    """The endless street of one seed."""

    def __init__(self, seed: int, style: Style) -> None:
        self.seed = seed
        self.style = style

    def zone(self, index: int, right: int) -> str:
        """What kind of place side `right` of chunk `index` is; changes every few chunks."""
        rng = rng_for(self.seed, 11, (index + 2 * right) // 4, right)
        return rng.choices(ZONES, self.style.zones)[0]

    def chunk(self, index: int) -> Chunk:
        """Builds one chunk."""
        rng = rng_for(self.seed, 1, index)
        out = Chunk(index * CHUNK_M)
        self._road(out, rng)
        for right in (0, 1):
            self._side(out, index, right, rng_for(self.seed, 2, index, right))
        out.placed = placed(out.things)
        return out

    def _road(self, out: Chunk, rng: random.Random) -> None:
        st, s = self.style, out.s
        left, right = -st.half(0), st.half(1)
        cover, road, paint = out.layers[0], out.layers[1], out.layers[3]
        cover.append(Patch(strip(s, s + CHUNK_M, -90, 90), st.grass, TREE))
        road.append(Patch(strip(s, s + CHUNK_M, left, right), st.road, ROAD))
        for _ in range(rng.choice((0, 0, 1, 2))):  # repairs
            a, x, f = (
                s + rng.uniform(0, 30),
                rng.uniform(left, right - 1.5),
                rng.choice((0.8, 1.12)),
            )
            tone = _shaded(st.road, f)
            road.append(
                Patch(strip(a, a + rng.uniform(2, 12), x, x + rng.uniform(0.7, 1.5)), tone, None)
            )
        for _ in range(2):  # manholes
            a, x = s + rng.uniform(0, 38), rng.uniform(left, right - 0.7)
            dark = _shaded(st.road, 0.6)
            road.append(Patch(strip(a, a + 0.7, x, x + 0.6), dark, None))
        worn = rng.uniform(150, 205)
        white = (worn, worn, worn)
        zebra = rng.random() < 0.16
        lights = not zebra and rng.random() < 0.12
        at = s + rng.uniform(12, 24)
        if zebra or lights:
            out.crossing = at + 1.5
        on, off = st.dash
        for lane in range(-st.lanes + 1, st.lanes):
            x = lane * st.lane
            gap = off if lane == 0 else off + 2
            a = s + (0.7 if lane else 0.0)
            while a < s + CHUNK_M:
                if out.crossing is None or not at - 7 < a < at + 4:
                    paint.append(Patch(strip(a, a + on, x - 0.055, x + 0.055), white, None))
                a += on + gap
        for sign, edge in ((-1, left), (1, right)):
            if st.edge == "none" or out.crossing is not None:
                continue
            tone = (60.0, 150.0, 172.0) if st.edge == "yellow" else white
            for inset in (0.25, 0.45) if st.edge == "yellow" else (0.3,):
                x = edge - sign * inset
                for a in (s + 1, s + 11, s + 21, s + 31) if st.edge == "broken" else (s,):
                    b = a + (5 if st.edge == "broken" else CHUNK_M)
                    paint.append(Patch(strip(a, b, x - 0.05, x + 0.05), tone, None))
        for sign, parked in ((-1, st.parking[0]), (1, st.parking[1])):
            if parked and out.crossing is None:
                x = sign * st.lane * st.lanes
                for a in (s, s + 12, s + 24, s + 36):
                    paint.append(Patch(strip(a, a + 3, x - 0.05, x + 0.05), white, None))
        if zebra:
            x = left + 0.2
            while x < right - 0.3:
                paint.append(Patch(strip(at, at + 3, x, x + 0.6), white, None))
                x += 1.2
        if lights:
            mine = sorted((0.0, st.side * st.half(int(st.side > 0))))
            paint.append(Patch(strip(at - 1.5, at - 1.2, mine[0], mine[1]), white, None))
            for a in (at, at + 3):
                x = left
                while x < right:
                    paint.append(Patch(strip(a, a + 0.12, x, x + 0.4), white, None))
                    x += 0.9
        if rng.random() < 0.25:
            self._arrow(paint, s + rng.uniform(26, 34), white)
        if zebra or lights:
            for sign, edge in ((-1, left), (1, right)):
                kind = "belisha" if zebra else "signal"
                near = at - 0.6 if sign == st.side else at + 3.6
                out.things.append(Post(near, edge + sign * 0.5, kind, rng.randrange(6), 2.6, sign))

    def _arrow(self, paint: list[Patch], s: float, white: BGR) -> None:
        x = self.style.side * self.style.lane * 0.5
        paint.append(Patch(strip(s, s + 2.4, x - 0.08, x + 0.08), white, None))
        head = [(s + 2.3, x - 0.4, 0.0), (s + 3.6, x, 0.0), (s + 2.3, x + 0.4, 0.0)]
        paint.append(Patch(np.array(head), white, None))

    def _side(self, out: Chunk, index: int, right: int, rng: random.Random) -> None:
        st, s = self.style, out.s
        sign = 1 if right else -1
        kerb, walk = sign * st.half(right), st.pavement[right]
        zone = self.zone(index, right)
        line = kerb + sign * walk  # back of the pavement
        begin = s
        if rng.random() < 0.2 and out.crossing is None:  # a side street
            begin = s + rng.uniform(7, 10)
            out.layers[1].append(Patch(strip(s - 1.5, begin + 1.5, 0, sign * 80), st.road, ROAD))
            for a, b in ((s - 3, s), (begin, begin + 3)):
                points = strip(a, b, line, sign * 70, KERB_M, KERB_M)
                out.layers[2].append(Patch(points, st.slab, PAVEMENT))
            if rng.random() < 0.5:
                x = kerb + sign * rng.uniform(4, 16)
                out.things.append(Vehicle(s + 5, x, np.pi / 2 * sign, rng.randrange(CARS)))
        deep = {
            "terrace": 0.2,
            "shops": 0.3,
            "houses": 0.0,
            "park": 0.0,
            "blocks": 5.0,
            "carpark": 0.0,
        }
        back = line + sign * deep[zone]
        end = s + CHUNK_M
        lip = sign * 0.14
        out.layers[2].append(
            Patch(strip(begin, end, kerb, back, KERB_M, KERB_M), st.slab, PAVEMENT)
        )
        pale = _shaded(st.slab, 1.12, 8)
        dark = _shaded(st.slab, 0.7)
        out.layers[2].append(Patch(strip(begin, end, kerb, kerb + lip, KERB_M, KERB_M), pale, None))
        out.layers[2].append(Patch(strip(begin, end, kerb, kerb, 0.0, KERB_M), dark, PAVEMENT))
        a = begin + 1.8  # joints between slabs
        while a < end and zone != "park":
            out.layers[2].append(Patch(strip(a, a + 0.05, kerb, back, KERB_M, KERB_M), dark, None))
            a += 3.6
        if zone == "houses":
            self._homes(out, begin, sign, back, rng)
        elif zone == "park":
            self._park(out, begin, sign, back, rng)
        elif zone == "carpark":
            self._carpark(out, begin, sign, back, rng)
        else:
            self._row(out, begin, sign, back, zone, rng)
        self._furniture(out, begin, sign, kerb, line, zone, rng)

    def _house(
        self, s1: float, width: float, x: float, sign: int, k: int, rng: random.Random, apart: bool
    ) -> House:
        _, _, height, _ = facade(k)
        flat = height > 11 or rng.random() < 0.15
        tone = rng.uniform(46, 92)
        warm = rng.uniform(0.95, 1.35)
        tint = rng.uniform(0.85, 1.12)
        return House(
            s1, s1 + width, x, sign, k, height * rng.uniform(0.92, 1.1),
            0.0 if flat else rng.uniform(1.6, 3.2), rng.uniform(7, 11),
            (tone, tone * rng.uniform(0.97, 1.03), tone * warm), rng.uniform(0.85, 1.1),
            (tint, tint * rng.uniform(0.97, 1.03), tint * rng.uniform(0.95, 1.05)), apart,
        )  # fmt: skip

    def _row(
        self, out: Chunk, begin: float, sign: int, x: float, zone: str, rng: random.Random
    ) -> None:
        picks: list[tuple[int, float]] = []
        room = out.s + CHUNK_M - begin
        total = 0.0
        while total < room - 3.5:
            k = (self.style.houses_from + rng.randrange(36)) % FACADES
            width = facade(k)[1]
            if zone == "blocks" and width < 9 and rng.random() < 0.7:
                continue
            picks.append((k, width))
            total += width
        gaps = zone == "blocks" or rng.random() < 0.12
        stretch = room / total * (0.8 if gaps else 1.0)
        a = begin
        for i, (k, width) in enumerate(picks):
            step = width * stretch
            house = self._house(a, step, x, sign, k, rng, gaps or (i == 0 and begin > out.s))
            out.things.append(house)
            a += step + (room * 0.2 / len(picks) if gaps else 0.0)

    def _homes(self, out: Chunk, begin: float, sign: int, x: float, rng: random.Random) -> None:
        end = out.s + CHUNK_M
        deep = rng.uniform(3, 8)
        plot = rng.uniform(10, 14)
        kind = rng.choice(("hedge", "wall", "fence", "open"))
        k = rng.randrange(FENCES)
        a = begin
        while a + 6 < end:
            f = (self.style.houses_from + rng.randrange(24)) % FACADES
            width = min(facade(f)[1], plot - 2.5, end - a - 0.5)
            out.things.append(self._house(a + 1, width, x + sign * deep, sign, f, rng, True))
            b = min(a + plot, end)
            self._boundary(out, a, b - 2.6, x + sign * 0.1, kind, k, rng)
            out.layers[2].append(
                Patch(strip(b - 2.6, b, x, x + sign * deep), self.style.slab, PAVEMENT)
            )
            if rng.random() < 0.3 * self.style.trees:
                self._plant(
                    out, a + rng.uniform(1, plot - 3), x + sign * rng.uniform(1.2, deep), rng
                )
            if rng.random() < 0.35 * self.style.parked:
                yaw = np.pi / 2 * sign
                out.things.append(
                    Vehicle(b - 1.3, x + sign * (deep - 2.4), yaw, rng.randrange(CARS))
                )
            a += plot

    def _boundary(
        self, out: Chunk, a: float, b: float, x: float, kind: str, k: int, rng: random.Random
    ) -> None:
        if b - a < 1 or kind == "open":
            return
        if kind == "hedge":
            out.things.append(Panel(a, b, x, -1 - rng.randrange(4), rng.uniform(1.0, 1.9), TREE))
            return
        k = k - k % 4 + (3 if kind == "wall" else rng.randrange(3))
        _, height, wall = fence(k % FENCES)
        step = a
        while step < b - 0.3:
            out.things.append(
                Panel(step, min(step + 4, b), x, k % FENCES, height, BUILDING if wall else FENCE)
            )
            step += 4

    def _park(self, out: Chunk, begin: float, sign: int, x: float, rng: random.Random) -> None:
        end = out.s + CHUNK_M
        kind = rng.choice(("fence", "fence", "hedge", "open", "wall"))
        self._boundary(out, begin, end, x + sign * 0.2, kind, rng.randrange(FENCES), rng)
        for _ in range(rng.randint(4, 9)):
            self._plant(out, rng.uniform(begin, end), x + sign * rng.uniform(2, 24), rng)
        if rng.random() < 0.4:
            k = rng.randrange(FACADES)
            far = x + sign * rng.uniform(22, 34)
            out.things.append(self._house(begin + 4, 2 * facade(k)[1], far, sign, k, rng, True))

    def _carpark(self, out: Chunk, begin: float, sign: int, x: float, rng: random.Random) -> None:
        end = out.s + CHUNK_M
        deep = rng.uniform(14, 22)
        out.layers[1].append(Patch(strip(begin, end, x, x + sign * deep), self.style.road, ROAD))
        kind = rng.choice(("fence", "open", "hedge"))
        self._boundary(out, begin, end, x + sign * 0.3, kind, rng.randrange(FENCES), rng)
        for row in (3.4, 11.5):
            a = begin + 2
            while a < end - 1 and row < deep - 2:
                line = strip(a - 1.25, a - 1.17, x + sign * (row - 2.3), x + sign * (row + 2.3))
                out.layers[3].append(Patch(line, (165, 165, 165), None))
                if rng.random() < 0.75:
                    yaw = np.pi / 2 * rng.choice((-1, 1))
                    out.things.append(Vehicle(a, x + sign * row, yaw, rng.randrange(CARS)))
                a += 2.5
        k = rng.randrange(FACADES)
        out.things.append(self._house(begin, end - begin, x + sign * deep, sign, k, rng, False))

    def _plant(self, out: Chunk, s: float, x: float, rng: random.Random) -> None:
        k = (self.style.houses_from + rng.randrange(12)) % TREES
        height = tree_sprite(k)[1] * rng.uniform(0.8, 1.2)
        out.things.append(Plant(s, x, k, height, rng.random() < 0.5, rng.uniform(0.85, 1.15)))

    def _furniture(
        self, out: Chunk, begin: float, sign: int, kerb: float, line: float, zone: str,
        rng: random.Random,
    ) -> None:  # fmt: skip
        st, end = self.style, out.s + CHUNK_M
        right = int(sign > 0)

        def spots(rate: float) -> list[float]:
            return [rng.uniform(begin + 0.5, end - 0.5) for _ in range(int(rate + rng.random()))]

        street = st.trees * (0.25 if zone in ("shops", "terrace") else 0.7)
        for s in spots(street * 1.2):
            self._plant(out, s, kerb + sign * 0.9, rng)
        for s in spots(st.poles):
            kind = "lamp" if rng.random() < 0.6 else rng.choice(("bollard", "plain", "plain"))
            tall = {"lamp": rng.uniform(5.5, 8.5), "bollard": 1.0, "plain": rng.uniform(2.5, 7)}[
                kind
            ]
            out.things.append(Post(s, kerb + sign * 0.45, kind, rng.randrange(99), tall, sign))
        for s in spots(st.signs):
            k = rng.randrange(6, SIGNS)
            out.things.append(Post(s, kerb + sign * 0.55, "sign", k, rng.uniform(1.9, 2.7), sign))
        if rng.random() < 0.28 and out.crossing is None:  # a guard rail at the kerb
            self._boundary(out, begin + 6, begin + rng.uniform(14, 30), kerb + sign * 0.3, "fence",
                           rng.randrange(FENCES), rng)  # fmt: skip
        if rng.random() < 0.3:
            for i in range(rng.randint(3, 7)):
                s = begin + 8 + i * 1.6
                out.things.append(Post(s, kerb + sign * 0.35, "bollard", 0, 1.0, sign))
        for s in spots(st.people * (0.6 if zone in ("shops", "terrace") else 0.2)):
            x = line - sign * rng.uniform(0.3, 0.6)
            out.things.append(Walker(s, x, rng.randrange(PEOPLE)))
        if st.parking[right] and out.crossing is None:
            a = begin + 3
            while a < end - 2.5:
                if rng.random() < st.parked:
                    yaw = 0.0 if (sign == st.side or rng.random() < 0.3) else np.pi
                    x = kerb - sign * rng.uniform(1.0, 1.2)
                    out.things.append(
                        Vehicle(a, x, yaw + rng.uniform(-0.03, 0.03), rng.randrange(CARS))
                    )
                a += rng.uniform(5.2, 6.4)
