"""The procedural drive: an endless street with exact labels, rendered from a seed.

`Drive(seed=3).frame(i)` is a pure function of its parameters and i. The classes are CamVid's; lane
markings belong to Road, grass to Tree, walls to Building. Figures on it are synthetic.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rtseg.data import _drive_street as street
from rtseg.data._drive_camera import Rig, Road, View
from rtseg.data._drive_ground import Ground, shadows
from rtseg.data._drive_paint import BUILDING, SKY, TREE, VOID, Canvas
from rtseg.data._drive_sight import placed, visible
from rtseg.data._drive_sprites import skyline
from rtseg.data._drive_things import CHUNK_M, Chunk, Style, rng_for
from rtseg.data._drive_traffic import Traffic
from rtseg.data._drive_weather import WEATHERS, Lens, Weather
from rtseg.data._drive_world import World
from rtseg.data.camvid import CLASSES, IGNORE_INDEX, PALETTE
from rtseg.errors import ConfigError
from rtseg.frame import ImageBGR, Labels

__all__ = ["CLASSES", "IGNORE_INDEX", "PALETTE", "Drive", "DriveConfig", "parse", "samples"]

_KEYS = ("seed", "size", "fps", "weather", "frames")
_CHUNKS_AHEAD = 6


@dataclass(frozen=True, slots=True)
class DriveConfig:
    """Parameters of a drive; they check themselves.

    Attributes:
        seed: any integer; each gives another street, light and traffic.
        size: (H, W) in pixels, at least 32 each.
        fps: frames per second of the stream's clock, above 0.
        weather: "clear", "overcast", "rain", "dusk", "fog", or "auto" (the seed decides).
        frames: how many frames the source gives; None for no end.

    Raises:
        ConfigError: a value is out of its range.
    """

    seed: int = 0
    size: tuple[int, int] = (360, 480)
    fps: float = 30.0
    weather: str = "auto"
    frames: int | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(32 <= v <= 8192 for v in self.size):
            raise ConfigError(f"synth: size: expected HxW of 32 to 8192 each, got {self.size}")
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ConfigError(f"synth: fps: expected a number above 0, got {self.fps}")
        if self.weather not in (*WEATHERS, "auto"):
            known = ", ".join((*WEATHERS, "auto"))
            raise ConfigError(f"synth: unknown weather {self.weather!r}: choose one of {known}")
        if self.frames is not None and self.frames < 1:
            raise ConfigError(f"synth: frames: expected at least 1, got {self.frames}")


def _size(text: str) -> tuple[int, int]:
    h, w = text.lower().split("x")
    return int(h), int(w)


def parse(spec: str) -> DriveConfig:
    """Reads "seed=3,size=360x480,fps=30,weather=rain,frames=300"; every part may be left out.

    Raises:
        ConfigError: an unknown or repeated key, or a value that cannot be used.
    """
    read: dict[str, Callable[[str], object]] = {
        "seed": int, "size": _size, "fps": float, "weather": str, "frames": int,
    }  # fmt: skip
    values: dict[str, object] = {}
    for part in filter(None, (p.strip() for p in spec.split(","))):
        key, equals, text = (t.strip() for t in part.partition("="))
        if key not in read:
            raise ConfigError(f"synth: unknown key {key!r}: use {', '.join(_KEYS)}")
        if not equals or not text:
            raise ConfigError(f"synth: {key}: expected {key}=VALUE, got {part!r}")
        if key in values:
            raise ConfigError(f"synth: {key} is given twice")
        try:
            values[key] = read[key](text)
        except ValueError as error:
            example = {"size": "360x480", "fps": "30"}.get(key, "3")
            raise ConfigError(f"synth: {key}: got {text!r}, expected e.g. {example}") from error
    return DriveConfig(**values)  # type: ignore[arg-type]


class Drive:
    """A drive down one street. Frames may be asked for in any order, from any thread.

    Args:
        seed, size, fps, weather: as in `DriveConfig`.

    Raises:
        ConfigError: a parameter is out of its range.
    """

    def __init__(
        self,
        seed: int = 0,
        size: tuple[int, int] = (360, 480),
        fps: float = 30.0,
        weather: str = "auto",
    ) -> None:
        self.config = DriveConfig(seed, (size[0], size[1]), fps, weather)
        self._style = Style.draw(rng_for(seed, 100))
        self._weather = Weather.draw(rng_for(seed, 200), weather)
        rng = rng_for(seed, 300)
        style = self._style
        self._road = Road.draw(rng)
        self._rig = Rig(
            focal=rng.uniform(0.78, 1.15),
            horizon=rng.uniform(0.42, 0.55),
            height_m=rng.uniform(1.15, 1.6),
            lane_x=style.side * style.lane * (style.lanes - rng.uniform(0.42, 0.52)),
            speed=rng.uniform(4.0, 12.0),
            sway=tuple(rng.uniform(0, 2 * math.pi) for _ in range(10)),
        )
        self._bonnet = rng.uniform(0.025, 0.08) if rng.random() < 0.25 else 0.0
        self._start = rng.uniform(0, 1000)
        self._world = World(seed, style)
        self._traffic = Traffic(seed, style, self._rig)
        self._ground = Ground(self.config.size, style.asphalt)
        self._lens = Lens(self._weather, self.config.size, rng.randrange(1 << 30))
        self._skyline = rng.randrange(8)
        self._chunks: OrderedDict[int, Chunk] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        c = self.config
        return f"Drive(seed={c.seed}, {c.size[0]}x{c.size[1]}, {c.fps:g} fps, {self._weather.kind})"

    def frame(self, index: int) -> tuple[ImageBGR, Labels]:
        """Renders frame `index` (0 or more).

        Returns:
            The picture (H, W, 3) uint8 BGR, contiguous, and its labels (H, W) uint8; both new.

        Raises:
            ValueError: the index is negative.
        """
        if index < 0:
            raise ValueError(f"index: expected 0 or more, got {index}")
        t = self._start + index / self.config.fps
        view = View(self._road, self._rig, t, self.config.size)
        canvas = Canvas(self.config.size, self._weather.light)
        first = int(view.s // CHUNK_M)
        chunks = [self._chunk(i) for i in range(first - 1, first + _CHUNKS_AHEAD + 1)]
        canvas.labels[:] = SKY
        self._lens.paint_sky(canvas, view)
        self._backdrop(canvas, view)
        self._ground.patches(canvas, view, chunks)
        moving = placed(self._traffic.at(view, chunks))
        groups = [moving, *(chunk.placed for chunk in chunks)]
        self._ground.shade(canvas, view, shadows(groups, view, self._weather.light))
        for thing, outline in visible(groups, view, self.config.size):
            street.paint(canvas, view, thing, outline, self._style)
        self._lens.wet(canvas, view)
        if self._bonnet:
            self._paint_bonnet(canvas)
        return self._lens.finish(canvas, view, index, rng_for(self.config.seed, 400, index)), (
            canvas.labels
        )

    def _chunk(self, index: int) -> Chunk:
        with self._lock:
            if index not in self._chunks:
                self._chunks[index] = self._world.chunk(index)
                if len(self._chunks) > 4 * _CHUNKS_AHEAD:
                    self._chunks.popitem(last=False)
            self._chunks.move_to_end(index)
            return self._chunks[index]

    def _backdrop(self, canvas: Canvas, view: View) -> None:
        """Distant trees and roofs along the horizon, turning with the camera."""
        h, w = canvas.height, canvas.width
        wide = 1.7 * w
        tall = 0.11 * w
        shift = (view.yaw * view.focal) % wide
        for houses, label in ((False, TREE), (True, BUILDING)):
            sprite = skyline(self._skyline, houses)
            x = wide / 2 - shift - (0.3 * wide if houses else 0.0)
            for at in (x - wide, x, x + wide):
                foot = (at, view.horizon + 2 + view.roll * (at - view.cx))
                canvas.sprite(sprite, foot, (wide, tall), label, 260.0)
        tilt = view.roll * 0.6 * w
        left, right = -0.1 * w, 1.1 * w
        line = view.horizon + 1
        below = np.array([(left, line - tilt), (right, line + tilt), (right, 2 * h), (left, 2 * h)])
        canvas.convex(below, canvas.light.colour(self._style.grass, 150.0), TREE)

    def _paint_bonnet(self, canvas: Canvas) -> None:
        h, w = canvas.height, canvas.width
        x = np.linspace(-0.02, 1.02, 15)
        edge = h * (1 - self._bonnet * (1 - 1.3 * (x - 0.5) ** 2))
        outline = np.concatenate(
            [np.stack([x * w, edge], 1), [(1.02 * w, h + 9), (-0.02 * w, h + 9)]]
        )
        tone = 12 + 300 * self._bonnet
        canvas.fill(outline, canvas.light.colour((tone, tone, tone), 0.0), VOID)


@dataclass(frozen=True, slots=True)
class DriveSample:
    """One frame of a drive as a training sample.

    Attributes:
        name: such as "synth-17-240".
        config: of the drive.
        index: of the frame.
    """

    name: str
    config: DriveConfig
    index: int

    def load(self) -> tuple[ImageBGR, Labels]:
        """The image (H, W, 3) uint8 BGR and its labels (H, W) uint8."""
        c = self.config
        return _drive(c.seed, c.size, c.fps, c.weather).frame(self.index)


@lru_cache(maxsize=4)
def _drive(seed: int, size: tuple[int, int], fps: float, weather: str) -> Drive:
    return Drive(seed, size, fps, weather)


def samples(root: str, split: str) -> list[DriveSample]:
    """Frames of many drives: four per street, some seconds apart; splits share no street.

    Args:
        root: as for `parse`; `frames` is the number of samples (default 400).
        split: any name; each has its own seeds.
    """
    config = parse(root)
    offset = sum((i + 1) * ord(c) * 131 for i, c in enumerate(split)) % 100_003
    out = []
    for i in range(config.frames or 400):
        seed = (config.seed * 1_000_003 + offset) * 10_007 + i // 4
        drive = DriveConfig(seed, config.size, config.fps, config.weather)
        index = (i % 4) * int(11 * config.fps)
        out.append(DriveSample(f"synth-{split}-{i // 4}-{index}", drive, index))
    return out
