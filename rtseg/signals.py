"""Ctrl-C and SIGTERM end a run cleanly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtseg.pipeline import Pipeline


def stop_on_signals() -> tuple[Callable[[Pipeline], None], Callable[[], bool]]:
    """From now on Ctrl-C and SIGTERM end the run cleanly; a second one ends it at once.

    Returns what takes the pipeline once there is one, and what tells whether a signal came. A
    signal before that waits for it: a runtime that is interrupted while it compiles takes the
    process down.
    """
    pipelines: list[Pipeline] = []

    def stop() -> None:
        for pipeline in pipelines:
            pipeline.stop()

    asked = _on_signals(stop)

    def take(pipeline: Pipeline) -> None:
        pipelines.append(pipeline)
        if asked.is_set():
            pipeline.stop()

    return take, asked.is_set


def stop_asked() -> Callable[[], bool]:
    """From now on Ctrl-C and SIGTERM only make what this returns true; a second one ends at once.

    For a loop that looks for itself where it may stop.
    """
    return _on_signals(lambda: None).is_set


def _on_signals(then: Callable[[], object]) -> threading.Event:
    """Sets the event it returns, and calls `then`, at the first signal of each kind."""
    asked = threading.Event()

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        asked.set()
        then()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return asked
