"""Class indices as PNG files, one per frame: 8-bit grey, the pixel value is the class."""

from __future__ import annotations

import os
from pathlib import Path

import cv2

from rtseg.errors import SinkError
from rtseg.frame import Frame, ImageBGR, LabelMap

# Measured on 960x540 street labels: OpenCV's default settings 2.5 ms and 9.6 kB, these 0.7 ms
# and 5.7 kB. Rows of labels mostly repeat the row above, which the UP filter turns into zeros.
PNG_PARAMS = [
    cv2.IMWRITE_PNG_COMPRESSION,
    1,
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_RLE,
]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # since OpenCV 4.11; JetPack 6 has 4.8
    PNG_PARAMS += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]


def open(target: str, *, fps: float | None = None) -> MasksSink:
    """Opens a directory for masks, creating it if needed; `fps` is not used.

    Raises:
        SinkError: the directory cannot be created or written.
    """
    return MasksSink(target)


class MasksSink:
    """Writes `{index:06d}.png` at the frame's size; see `rtseg.sink.Sink`.

    A file appears under its name only when it is complete.
    """

    wants_picture = False

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            probe = self._directory / f".rtseg-{os.getpid()}.part"
            probe.touch()
            probe.unlink()
        except FileExistsError as error:
            raise SinkError(f"{directory}: is a file: name a directory for the masks") from error
        except OSError as error:
            raise _unwritable(self._directory, error) from error

    def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        """Writes one mask. Raises SinkError if the disk is full or the directory is gone."""
        ok, png = cv2.imencode(".png", result.labels, PNG_PARAMS)
        if not ok:
            raise SinkError(f"{self._directory}: OpenCV could not encode {result!r} as PNG")
        path = self._directory / f"{frame.index:06d}.png"
        part = path.with_suffix(".part")
        try:
            part.write_bytes(png.tobytes())
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _unwritable(path, error) from error

    def close(self) -> None:
        """Does nothing: every mask is complete when it is written."""


def _unwritable(path: Path, error: OSError) -> SinkError:
    return SinkError(f"{path}: cannot be written ({error.strerror}): choose another place")
