"""One line of JSON per frame, to a file or to standard output.

Keys: `index`, `pts` (seconds), `age_ms` (from the frame's arrival to this line), `classes`
(name: share of the pixels, 0..1).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from rtseg.errors import SinkError
from rtseg.frame import Frame, ImageBGR, LabelMap
from rtseg.messages import forget_stdout
from rtseg.sink import StopRequested


def open(target: str, *, fps: float | None = None) -> JsonlSink:
    """Opens a JSON lines file, or standard output for "-"; `fps` is not used.

    Raises:
        SinkError: the file cannot be written.
    """
    return JsonlSink(target)


class JsonlSink:
    """Writes whole lines, each at once; see `rtseg.sink.Sink`.

    A full disk keeps the lines so far and no half one. A reader that closes its end of
    standard output, such as `head`, ends the run cleanly.
    """

    wants_picture = False

    def __init__(self, target: str) -> None:
        self._target = target
        self._fd: int | None = None
        self._size = 0
        if target == "-":
            if sys.stdout is None:
                raise SinkError("standard output is closed: give --jsonl a file")
        else:
            try:
                self._fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            except OSError as error:
                raise _unwritable(target, error) from error

    def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        """Writes one line. Raises SinkError on a full disk, StopRequested if nobody reads."""
        age_ms = (time.monotonic() - frame.captured_at) * 1000.0
        record = {
            "index": frame.index,
            "pts": round(frame.pts_seconds, 6),
            "age_ms": round(age_ms, 3),
            "classes": {name: round(f, 6) for name, f in result.fractions().items()},
        }
        line = json.dumps(record, ensure_ascii=False) + "\n"
        if self._fd is None:
            self._print(line)
        else:
            self._append(self._fd, line.encode())

    def close(self) -> None:
        """Closes the file; standard output stays open."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, fd: int, line: bytes) -> None:
        try:
            written = 0
            while written < len(line):
                written += os.write(fd, line[written:])
        except OSError as error:
            _cut(fd, self._size)
            raise _unwritable(self._target, error) from error
        self._size += len(line)

    def _print(self, line: str) -> None:
        try:
            sys.stdout.write(line)
            sys.stdout.flush()
        except BrokenPipeError as error:
            forget_stdout()
            raise StopRequested from error
        except OSError as error:
            raise _unwritable("standard output", error) from error


def _cut(fd: int, size: int) -> None:
    with contextlib.suppress(OSError):  # a pipe or device: what is written is gone
        os.ftruncate(fd, size)


def _unwritable(target: str, error: OSError) -> SinkError:
    parent = Path(target).parent
    if isinstance(error, FileNotFoundError) and not os.path.isdir(parent):
        return SinkError(f"{target}: directory {parent} does not exist: create it first")
    return SinkError(f"{target}: cannot be written ({error.strerror}): choose another place")
