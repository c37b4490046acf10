"""The rendered picture in a window; `q`, Esc or closing it ends the run."""

from __future__ import annotations

import contextlib
import os
import re
import sys

import cv2

from rtseg.errors import MissingDependencyError, SinkError
from rtseg.frame import Frame, ImageBGR, LabelMap
from rtseg.sink import StopRequested

QUIT_KEYS = frozenset({ord("q"), ord("Q"), 27})


def open(target: str = "rtseg", *, fps: float | None = None) -> WindowSink:
    """Prepares a window with the title `target`; it appears with the first picture.

    Raises:
        MissingDependencyError: this OpenCV was built without windows.
        SinkError: there is no display to show it on.
    """
    gui = re.search(r"^\s*GUI:\s*(\S+)", cv2.getBuildInformation(), re.MULTILINE)
    if gui is not None and gui[1] == "NONE":
        raise MissingDependencyError(
            "showing a window needs OpenCV with a GUI: pip install opencv-python in place of "
            "opencv-python-headless, or use --save"
        )
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    # Asked here, since Qt ends the process when it finds no display.
    if sys.platform.startswith("linux") and not has_display:
        raise SinkError(
            "there is no display to show a window on (DISPLAY is not set): use --save, or `ssh -X`"
        )
    return WindowSink(target or "rtseg")


class WindowSink:
    """Shows pictures with OpenCV; see `rtseg.sink.Sink`.

    The window belongs to the thread that calls `write`, as GUI toolkits ask for.
    """

    wants_picture = True

    def __init__(self, title: str) -> None:
        self._title = title
        self._shown = False

    def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        """Shows one picture. Raises StopRequested on `q`, Esc or a closed window."""
        if picture is None:
            raise ValueError("picture: expected (H, W, 3) uint8 BGR, got None")
        try:
            if self._shown and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1:
                raise StopRequested
            if not self._shown:
                # Without GUI_NORMAL Qt adds a toolbar that takes its room from the picture.
                flags = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
                cv2.namedWindow(self._title, flags)
                cv2.resizeWindow(self._title, picture.shape[1], picture.shape[0])
                self._shown = True
            cv2.imshow(self._title, picture)
            key = cv2.waitKey(1)
        except cv2.error as error:
            raise SinkError(f"the window cannot be shown ({error.err}): use --save") from error
        if key != -1 and key & 0xFF in QUIT_KEYS:
            raise StopRequested

    def close(self) -> None:
        """Closes the window."""
        if self._shown:
            self._shown = False
            with contextlib.suppress(cv2.error):  # the user closed it already
                cv2.destroyWindow(self._title)
