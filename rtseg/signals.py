"""Ctrl-C and SIGTERM end a run cleanly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtseg.pipeline import Pipeline


def stop_on_signals() -> Callable[[Pipeline], None]:
    """From now on Ctrl-C and SIGTERM end the run cleanly; a second one ends it at once.

    Returns what takes the pipeline once there is one. A signal before that waits for it: a
    runtime that is interrupted while it compiles takes the process down.
    """
    asked = threading.Event()
    pipelines: list[Pipeline] = []

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        asked.set()
        for pipeline in pipelines:
            pipeline.stop()

    def take(pipeline: Pipeline) -> None:
        pipelines.append(pipeline)
        if asked.is_set():
            pipeline.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return take
