"""Files that are replaced whole or not at all, and where those lie that can be made again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; at the end it takes its place, safe on disk.

    Whatever happens in between (an error, a full disk, a killed process), `path` is what it was or
    what it was to become. On an error nothing is left behind.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def user_cache() -> Path:
    """`rtseg` in the user's cache: $XDG_CACHE_HOME, else ~/.cache. Not created here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rtseg"
