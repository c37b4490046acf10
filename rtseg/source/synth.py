"""The procedural drive as a source: `synth:` or `synth:seed=3,size=360x480,fps=30,weather=rain`."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

from rtseg.data.synth import CLASSES, IGNORE_INDEX, PALETTE, Drive, DriveConfig, parse
from rtseg.errors import ConfigError, SourceError
from rtseg.frame import ClassTable, Frame
from rtseg.source import SourceInfo

_SCHEME = "synth:"


def accepts(uri: str) -> bool:
    """True for `synth` and `synth:...`."""
    return uri == "synth" or uri.startswith(_SCHEME)


def open(uri: str) -> SynthSource:
    """Opens a drive.

    Raises:
        SourceError: a parameter in the URI cannot be used; the message names those there are.
    """
    try:
        return SynthSource(parse(uri.removeprefix("synth").removeprefix(":")))
    except ConfigError as error:
        raise SourceError(str(error)) from error


class SynthSource:
    """Frames of one drive with their labels, as fast as they are taken; endless by default."""

    def __init__(self, config: DriveConfig) -> None:
        self._config = config
        self._drive = Drive(config.seed, config.size, config.fps, config.weather)
        self._closed = threading.Event()
        self.warnings: list[str] = []
        self.info = SourceInfo(
            name=f"synth seed={config.seed}",
            live=False,
            size_hw=config.size,
            fps=config.fps,
            frame_count=config.frames,
            classes=ClassTable(CLASSES, PALETTE, IGNORE_INDEX),
        )

    def __iter__(self) -> Iterator[Frame]:
        frames = self._config.frames
        for index in itertools.count() if frames is None else range(frames):
            if self._closed.is_set():
                return
            image, labels = self._drive.frame(index)
            pts_seconds = index / self._config.fps
            yield Frame(image, index, pts_seconds, time.monotonic(), labels)

    def close(self) -> None:
        """Ends the iteration before its next frame; may be called from any thread."""
        self._closed.set()
