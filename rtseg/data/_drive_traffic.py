"""What moves in the street of the drive. Every position is a pure function of (seed, time)."""

from __future__ import annotations

import math
from functools import lru_cache

from rtseg.data._drive_camera import Rig, View
from rtseg.data._drive_cars import CARS
from rtseg.data._drive_sprites import PEOPLE, PHASES, RIDERS
from rtseg.data._drive_things import Chunk, Cyclist, Style, Thing, Vehicle, Walker, rng_for


@lru_cache(maxsize=1024)
def _member(seed: int, kind: int, j: int) -> tuple[float, float, bool, int]:
    """Road user j of a file: phase of its wandering, shift in gaps, whether it is there, a key."""
    rng = rng_for(seed, 500 + kind, j)
    return rng.uniform(0, 6.28), rng.uniform(-0.3, 0.3), rng.random() < 0.8, rng.getrandbits(30)


class Traffic:
    """Cars, cyclists and people around one camera car."""

    def __init__(self, seed: int, style: Style, rig: Rig) -> None:
        self._seed = seed
        self._style = style
        self._rig = rig

    def at(self, view: View, chunks: list[Chunk]) -> list[Thing]:
        """All that moves within sight."""
        return [
            *self._cars(view),
            *self._riders(view),
            *self._walkers(view),
            *self._crossing(view, chunks),
        ]

    def _file(
        self, view: View, kind: int, gap: float, speed: float, reach: float
    ) -> list[tuple[float, int]]:
        """(s, key) of an endless file of road users that keep their distance.

        Args:
            gap: metres between two, on average.
            speed: metres per second; negative comes towards the camera.
            reach: how far ahead they are needed, metres.
        """
        t = view.t
        first = int((view.s - speed * t) // gap) - 1
        out = []
        for j in range(first, first + int(reach / gap) + 3):
            turn, shift, present, key = _member(self._seed, kind, j)
            wander = 0.12 * gap * math.sin(t * 0.21 + turn)
            s = j * gap + shift * gap + speed * t + wander
            if present and -4 < s - view.s < reach:
                out.append((s, key))
        return out

    def _cars(self, view: View) -> list[Thing]:
        st, out = self._style, list[Thing]()
        for lane in range(st.lanes):
            x = -st.side * st.lane * (lane + 0.5)
            for s, key in self._file(view, lane, st.traffic_gap, -(7.0 + 2.5 * lane), 180):
                out.append(Vehicle(s, x, math.pi, key % CARS))
        if st.lanes > 1:
            x = st.side * st.lane * 0.5
            for s, key in self._file(view, 5, st.traffic_gap * 1.4, self._rig.speed * 1.15, 160):
                out.append(Vehicle(s, x, 0.0, key % CARS))
        if st.lead_gap is not None:
            turn = view.t / 5.3 + self._rig.sway[1]
            gap = st.lead_gap * (1.25 + 0.5 * math.sin(turn)) + 3.5
            k = rng_for(self._seed, 600).randrange(CARS)
            out.append(Vehicle(view.s + gap, self._rig.lane_x, 0.0, k, math.cos(turn) < -0.4))
        return out

    def _riders(self, view: View) -> list[Thing]:
        st, out = self._style, list[Thing]()
        if st.riders <= 0:
            return out
        x = st.side * (st.lane * st.lanes - 0.45)
        for kind, gap, speed in ((10, 70.0, 4.2), (11, 90.0, -4.6)):
            for s, key in self._file(view, kind, gap / st.riders, speed, 100):
                phase = int((view.t * 1.1 + key % 7 / 7) * PHASES)
                ahead = speed > 0
                out.append(Cyclist(s, x if ahead else -x, key % RIDERS, phase, ahead))
        return out

    def _walkers(self, view: View) -> list[Thing]:
        st, out = self._style, list[Thing]()
        gap = 26 / (0.12 + st.people)
        for kind, right, speed in ((20, 0, 1.3), (21, 0, -1.2), (22, 1, 1.2), (23, 1, -1.35)):
            room = st.pavement[right] - 0.9
            for s, key in self._file(view, kind, gap, speed, 90):
                walk = st.half(right) + 0.5 + (key >> 8) % 100 / 100 * room
                # Even people are drawn from behind, odd ones from the front.
                k = (key % (PEOPLE // 2)) * 2 + int(speed < 0)
                phase = int((view.t * 0.95 + key % 11 / 11) * PHASES)
                out.append(Walker(s, walk if right else -walk, k, phase))
        return out

    def _crossing(self, view: View, chunks: list[Chunk]) -> list[Thing]:
        """People who cross ahead of the camera and are over before it comes."""
        st, out = self._style, list[Thing]()
        width = st.half(0) + st.half(1) + 2.4
        for chunk in chunks:
            if chunk.crossing is None:
                continue
            rng = rng_for(self._seed, 700, int(chunk.s))
            arrival = self._rig.time_at(chunk.crossing)
            for _ in range(rng.choice((0, 1, 1, 2, 3))):
                way = rng.choice((-1, 1))
                start = arrival - rng.uniform(2.6, 4.5) - width / 1.4
                walked = min(width, max(0.0, (view.t - start) * 1.4))
                x = way * walked + (-st.half(0) - 1.2 if way > 0 else st.half(1) + 1.2)
                s = chunk.crossing + rng.uniform(-1.2, 1.2)
                phase = int(walked * 0.75 * PHASES)
                out.append(Walker(s, x, rng.randrange(PEOPLE), phase, True, way < 0))
        return out
