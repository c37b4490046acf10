"""OpenCV without threads of its own, for as long as any pipeline runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import cv2

_lock = threading.Lock()
_users = 0
_before = 0


@contextlib.contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """The setting is the process's: the last of several users at once puts it back."""
    global _users, _before
    with _lock:
        if _users == 0:
            _before = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                cv2.setNumThreads(_before)
