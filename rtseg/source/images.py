"""Still images as a stream: a directory, a glob or one file, in natural order.

Knows nothing of videos; image files of differing sizes are allowed.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from rtseg.errors import SourceError
from rtseg.frame import Frame, ImageBGR
from rtseg.source import SourceInfo

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
    | {".tif", ".tiff", ".webp"}
)
DEFAULT_FPS = 30.0


def accepts(uri: str) -> bool:
    """True for an existing directory, a glob, or a path with an image's extension."""
    if "://" in uri:
        return False
    return os.path.isdir(uri) or _is_glob(uri) or Path(uri).suffix.lower() in EXTENSIONS


def open(uri: str, *, fps: float = DEFAULT_FPS) -> ImagesSource:
    """Opens images as a stream.

    Args:
        uri: a directory (not searched below), a glob (`**` searches below), or one image file;
            `images:` may stand before it.
        fps: images per second; frame i has the timestamp i / fps.

    Raises:
        SourceError: nothing there, or the first image cannot be read.
    """
    return ImagesSource(uri.removeprefix("images:"), fps=fps)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key of a path that puts `img2` before `img10`."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(p), "") if i % 2 else (1, 0, p.casefold()) for i, p in enumerate(parts)]


class ImagesSource:
    """Image files in natural order; see `rtseg.source.Source`.

    Images become (H, W, 3) uint8 BGR as OpenCV reads colour: grey is repeated, 16 bits are
    scaled to 8, alpha is dropped, and EXIF orientation is applied.
    """

    def __init__(self, target: str, *, fps: float = DEFAULT_FPS) -> None:
        if not fps > 0:
            raise ValueError(f"fps: expected a number above 0, got {fps}")
        self.warnings: list[str] = []
        self._paths = _find(target)
        self._fps = fps
        self._closed = False
        self._first: ImageBGR | None = _read(self._paths[0])
        height, width = self._first.shape[:2]
        self.info = SourceInfo(
            name=Path(target).name or target,
            live=False,
            size_hw=(height, width),
            fps=fps,
            frame_count=len(self._paths),
        )

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            if self._closed:
                return
            image = _read(path) if self._first is None else self._first
            self._first = None
            yield Frame(image, index, index / self._fps, time.monotonic())

    def close(self) -> None:
        """Ends the iteration before the next image; may be called from any thread."""
        self._closed = True


def _is_glob(uri: str) -> bool:
    return "://" not in uri and glob.has_magic(uri) and not os.path.exists(uri)


def _find(target: str) -> list[Path]:
    path = Path(target)
    if os.path.isdir(path):
        try:
            found = list(path.iterdir())
        except OSError as error:
            raise SourceError(f"{target}: cannot be read: {error.strerror}") from error
        where = f"{target}: no images in this directory"
    elif _is_glob(target):
        found = [Path(p) for p in glob.glob(target, recursive=True)]  # noqa: PTH207  (may be absolute)
        where = f"{target}: no image matches"
    elif os.path.isfile(path):
        return [path]
    else:
        raise SourceError(f"{target}: no such file: check the path")
    # Dot files include the `._name.jpg` stubs that macOS leaves on shared disks.
    images = [p for p in found if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")]
    images = [p for p in images if os.path.isfile(p)]
    if not images:
        raise SourceError(f"{where}: expected files such as .png, .jpg or .tif")
    return sorted(images, key=natural_key)


def _read(path: Path) -> ImageBGR:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error:  # some broken headers raise instead of giving None
        image = None
    if image is None:
        raise SourceError(f"{path}: not an image OpenCV can read: replace it or take it out")
    return np.ascontiguousarray(image, dtype=np.uint8)
