"""Frozen configurations, checked once, at the edge. Imports nothing that takes time to load."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from rtseg.errors import ConfigError

POLICIES = ("latest", "every")
MAX_SIDE = 16384
"""Pixels, of a network's input."""


class StandIns(TypedDict):
    """What a model file without a contract is given instead; see `rtseg.artifact.load_model`."""

    classes_file: Path | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None


@dataclass(frozen=True)
class RunConfig:
    """What `rtseg run` does.

    Attributes:
        source: URI, see `rtseg.source.open_source`.
        model: a shipped name or the path of a model file.
        engine, precision: see `rtseg.engine.open_engine`.
        size: (H, W) of the network's input; None to choose by the frame.
        policy: "latest" drops the oldest waiting frame, "every" drops none; None to choose by
            the source: latest for live ones, every for files.
        effect: see `rtseg.overlay.Effect`.
        opacity: of the colours over the image, 0..1.
        save, masks, jsonl, report: where to write; None for not at all. `jsonl` and `report`
            may be "-" for stdout.
        show: open a window.
        max_frames: stop after this many frames; None for all.
        classes_file, mean, std: stand in for the contract of a model file without one.
    """

    source: str
    model: str = "street-m"
    engine: str = "auto"
    precision: str = "auto"
    size: tuple[int, int] | None = None
    policy: str | None = None
    effect: str = "overlay"
    opacity: float = 0.5
    save: Path | None = None
    masks: Path | None = None
    jsonl: str | None = None
    report: str | None = None
    show: bool = False
    max_frames: int | None = None
    classes_file: Path | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        check_size(self.size)
        check_triple(self.mean, "mean")
        check_triple(self.std, "std")
        if not self.source:
            raise ConfigError("--source is empty: give a file, a camera or a URL")
        if self.policy not in (None, *POLICIES):
            raise ConfigError(
                f"unknown policy {self.policy!r}: choose one of {', '.join(POLICIES)}"
            )
        if not isinstance(self.opacity, int | float) or not 0.0 <= self.opacity <= 1.0:
            raise ConfigError(f"--opacity must be in 0..1, got {self.opacity!r}")
        frames = self.max_frames
        if frames is not None and (not isinstance(frames, int) or frames < 1):
            raise ConfigError(f"--max-frames must be at least 1, got {frames!r}")
        if self.jsonl == self.report == "-":
            raise ConfigError("--jsonl and --report cannot both go to stdout: give one a file")
        self._check_outputs()

    def _check_outputs(self) -> None:
        """No output may overwrite the source, or another one."""
        given = {"save": self.save, "masks": self.masks, "jsonl": self.jsonl, "report": self.report}
        outputs = {f"--{k}": str(v) for k, v in given.items() if v is not None and v != "-"}
        source = _local_path(self.source)
        for flag, path in outputs.items():
            if _same(path, source):
                raise ConfigError(f"{flag} {path} is the source itself: choose another name")
        # Masks are PNGs with numbers for names, and so may be the images of a glob.
        images = any(c in source for c in "*?[") or source.lower().endswith(".png")
        if self.masks is not None and images and _same(self.masks, str(Path(source).parent)):
            raise ConfigError(f"--masks {self.masks} holds the source's images: name another place")
        taken: dict[str, str] = {}
        for flag, path in outputs.items():
            other = taken.setdefault(os.path.realpath(path), flag)
            if other != flag and not _is_device(path):
                raise ConfigError(f"{other} and {flag} both write {path}: give each its own file")


def check_size(size: object) -> tuple[int, int] | None:
    """Returns an (H, W) in pixels, or None, as it is; ConfigError for anything else."""
    if size is None:
        return None
    if isinstance(size, Sequence) and len(size) == 2:
        height, width = size
        if all(isinstance(v, int) and 1 <= v <= MAX_SIDE for v in size):
            return height, width
    raise ConfigError(f"size: expected (height, width) such as (384, 480), got {size!r}")


def check_triple(values: object, name: str) -> tuple[float, float, float] | None:
    """Returns a mean or a deviation, R, G, B, or None, as it is; ConfigError for anything else."""
    if values is None:
        return None
    if isinstance(values, Sequence) and len(values) == 3 and not isinstance(values, str):
        first, second, third = values
        lowest = math.ulp(0.0) if "std" in name else 0.0
        if all(isinstance(v, int | float) and lowest <= v <= 1 for v in values):
            return first, second, third
    above = ", above 0" if "std" in name else ""
    raise ConfigError(
        f"{name}: expected three numbers (R, G, B) of pixels in 0..1{above}, "
        f"such as (0.485, 0.456, 0.406), got {values!r}: those of pixels in 0..255 are 255 times "
        "as large"
    )


def parse_size(text: str) -> tuple[int, int] | None:
    """(H, W) of "HxW"; None for "auto".

    Raises:
        ConfigError: anything else.
    """
    if text == "auto":
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not all(1 <= int(v) <= MAX_SIDE for v in match.groups()):
        raise ConfigError(f"--size {text!r}: expected HEIGHTxWIDTH such as 384x480, or auto")
    return int(match[1]), int(match[2])


def parse_triple(text: str, flag: str) -> tuple[float, float, float] | None:
    """Three numbers of "a,b,c", checked by `check_triple`.

    Raises:
        ConfigError: anything else.
    """
    try:
        first, second, third = (float(v) for v in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{flag} {text!r}: expected three numbers (R,G,B) such as 0.485,0.456,0.406"
        ) from error
    return check_triple((first, second, third), flag)


def as_text(value: object, name: str) -> str:
    """A text as it is, a path as text; ConfigError for anything else."""
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    raise ConfigError(f"{name}: expected a text or a path, got {value!r}")


def as_path(value: object, name: str) -> Path | None:
    """A text or a path as path, None as it is; ConfigError for anything else."""
    return None if value is None else Path(as_text(value, name))


def _local_path(source: str) -> str:
    """The path in a URI that may have a prefix for files."""
    for prefix in ("stream:", "images:", "file://", "file:"):
        source = source.removeprefix(prefix)
    return source


def _same(path: str | Path, other: str) -> bool:
    """Whether two paths lead to the same existing file or directory."""
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):
        return False


def _is_device(path: str) -> bool:
    """True for what several may write to, such as /dev/null and /dev/stdout."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
