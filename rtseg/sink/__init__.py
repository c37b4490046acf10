"""Where results go. One file per kind, each with a class that fits `Sink`.

All sinks of a run are called by one thread, in frame order.
"""

from __future__ import annotations

from typing import Protocol

from rtseg.frame import Frame, ImageBGR, LabelMap


class Sink(Protocol):
    """A consumer of results.

    Attributes:
        wants_picture: True if the sink shows or stores the rendered picture; the pipeline
            renders one only if some sink wants it.
    """

    wants_picture: bool

    def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        """Takes one result.

        `picture` is the rendered (H, W, 3) uint8 BGR image, or None if not wanted. It and
        the frame must not be written to. Raises SinkError if the output is gone or full, and
        `StopRequested` if the user closed the window.
        """

    def close(self) -> None:
        """Finishes the output so that it can be used; called once, also after an error."""


class StopRequested(Exception):  # noqa: N818  (a wish, not an error)
    """Raised by a sink when the user asks to end the run; the run then ends cleanly."""
