"""The memory of FFmpeg's pictures as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray


def planes_of(picture: VideoFrame) -> list[NDArray[np.uint8]]:
    """Each plane, (height, width) uint8, not copied; the rows are padded, so they lie apart."""
    planes = []
    for plane in picture.planes:
        buffer: Any = plane  # PyAV types it without the buffer protocol that it has
        rows = np.frombuffer(buffer, np.uint8).reshape(-1, plane.line_size)
        planes.append(rows[: plane.height, : plane.width])
    return planes
