"""`rtseg.sink.window` with a simulated GUI, and `rtseg.sink.null`."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from rtseg.errors import MissingDependencyError, SinkError
from rtseg.frame import ClassTable, Frame, LabelMap
from rtseg.sink import StopRequested, null, window

IMAGE = np.zeros((4, 6, 3), np.uint8)
FRAME = Frame(IMAGE, 0, 0.0, time.monotonic())
RESULT = LabelMap(np.zeros((4, 6), np.uint8), ClassTable(("road",), ((1, 2, 3),)))


@pytest.fixture
def gui(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the simulated user does: a key, or closing the window."""
    user = SimpleNamespace(key=-1, visible=1.0, shown=0, destroyed=0)

    def show(*_: object) -> None:
        user.shown += 1

    def destroy(*_: object) -> None:
        user.destroyed += 1

    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:   QT5\n")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "resizeWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", show)
    monkeypatch.setattr(cv2, "waitKey", lambda _: user.key)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: user.visible)
    monkeypatch.setattr(cv2, "destroyWindow", destroy)
    monkeypatch.setenv("DISPLAY", ":0")
    return user


def test_shows_every_picture(gui: SimpleNamespace) -> None:
    sink = window.open("rtseg")
    assert sink.wants_picture
    for _ in range(3):
        sink.write(FRAME, RESULT, IMAGE)
    sink.close()
    assert (gui.shown, gui.destroyed) == (3, 1)


@pytest.mark.parametrize("key", [ord("q"), ord("Q"), 27, 27 | 0x100000])
def test_keys_that_stop(gui: SimpleNamespace, key: int) -> None:
    sink = window.open("rtseg")
    sink.write(FRAME, RESULT, IMAGE)
    gui.key = key
    with pytest.raises(StopRequested):
        sink.write(FRAME, RESULT, IMAGE)


def test_closing_the_window_stops(gui: SimpleNamespace) -> None:
    sink = window.open("rtseg")
    gui.visible = -1.0  # not yet shown: must not count as closed
    sink.write(FRAME, RESULT, IMAGE)
    with pytest.raises(StopRequested):
        sink.write(FRAME, RESULT, IMAGE)


def test_opencv_without_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:       NONE\n")
    with pytest.raises(MissingDependencyError, match="opencv-python"):
        window.open("rtseg")


def test_no_display(gui: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SinkError, match="no display"):
        window.open("rtseg")
    assert gui.shown == 0


def test_null() -> None:
    sink = null.open("", fps=25.0)
    assert not sink.wants_picture
    sink.write(FRAME, RESULT, None)
    sink.close()
    assert sink.count == 1
