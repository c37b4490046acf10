"""Lines for people on standard error, and standard output whose reader went away."""

from __future__ import annotations

import contextlib
import os
import sys


def tell(line: str) -> None:
    """Prints a line on standard error; one that is closed or full must not end a run."""
    if sys.stderr is not None:  # None where the process was started with it closed
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def forget_stdout() -> None:
    """After a BrokenPipeError: Python flushes once more at exit, and would complain then."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
