"""Where frames come from. One file per kind; `open_source` picks it by the URI.

A source file `foo.py` serves every URI `foo:...` and those its `accepts(uri)` claims, and gives
`open(uri) -> Source`. A source is iterated once, by one thread; `close` may come from another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rtseg import plugins
from rtseg.errors import SourceError
from rtseg.frame import ClassTable, Frame


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What is known about a source before its first frame.

    Attributes:
        name: short, for people: a file name, "camera 0", "synth seed=3".
        live: True if frames come in real time whether or not they are taken (camera, RTSP).
        size_hw: (H, W) of the first frame in pixels.
        fps: nominal frames per second, exact where the container gives a fraction; None if unknown.
        frame_count: how many frames are expected; None if unknown or endless.
        classes: the class table of `Frame.labels`; None where the source has no ground truth.
    """

    name: str
    live: bool
    size_hw: tuple[int, int]
    fps: float | None = None
    frame_count: int | None = None
    classes: ClassTable | None = None


@runtime_checkable
class Source(Protocol):
    """A stream of frames.

    Attributes:
        info: known once the source is open.
        warnings: lines for the user that came up while reading (such as lost frames);
            complete when the iteration has ended.
    """

    info: SourceInfo
    warnings: list[str]

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...


@runtime_checkable
class GpuSource(Source, Protocol):
    """A source that can leave its pictures on a GPU, as `rtseg.frame.GpuFrame`."""

    def decode_on_gpu(self, ordinal: int = 0) -> None:
        """Asks for it, before the iteration; frames stay as they were where it cannot be done."""


def open_source(uri: str) -> Source:
    """Opens a source by its URI.

    Raises:
        SourceError: nothing here can read it, or the source itself cannot be opened.
    """
    kinds = plugins.names(__name__)
    scheme = uri.partition(":")[0]
    if scheme in kinds:
        return _open(scheme, uri)
    for kind in kinds:
        if plugins.load(__name__, kind).accepts(uri):
            return _open(kind, uri)
    raise SourceError(
        f"cannot read {uri!r}: expected an existing file or directory, a glob, camera[:N], "
        f"/dev/videoN, csi:N, rtsp://, http(s):// or one of {', '.join(k + ':' for k in kinds)}"
    )


def _open(kind: str, uri: str) -> Source:
    source: Source = plugins.load(__name__, kind).open(uri)
    return source
