"""Takes results and keeps nothing: for measuring, and for runs that only need the report."""

from __future__ import annotations

from rtseg.frame import Frame, ImageBGR, LabelMap


class NullSink:
    """Counts results; see `rtseg.sink.Sink`.

    Attributes:
        wants_picture: False unless asked for, to measure the rendering as well.
        count: results taken so far.
    """

    def __init__(self, *, wants_picture: bool = False) -> None:
        self.wants_picture = wants_picture
        self.count = 0

    def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        """Counts one result."""
        self.count += 1

    def close(self) -> None:
        """Does nothing."""


def open(target: str = "", *, fps: float | None = None) -> NullSink:
    """A sink that keeps nothing; `target` and `fps` are not used."""
    return NullSink()
