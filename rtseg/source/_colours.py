"""The colours of FFmpeg's pictures, in the same arithmetic as on a GPU."""

from __future__ import annotations

from av.video.frame import VideoFrame

from rtseg import native
from rtseg.frame import ImageBGR, Matrix
from rtseg.planes import planes_of

_FORMATS = ("yuv420p", "yuvj420p")
_MATRICES: dict[int, Matrix] = {1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601"}
"""By FFmpeg's AVColorSpace; where a stream does not say, FFmpeg takes BT.601 as well."""
_FULL_RANGE = 2


def colours_of(picture: VideoFrame) -> tuple[bool, Matrix] | None:
    """Whether luma covers 0..255, and the standard; None if the kernels are not made for it.

    They are for 8-bit 4:2:0 in BT.601 or BT.709.
    """
    name, matrix = picture.format.name, _MATRICES.get(picture.colorspace)
    if name not in _FORMATS or matrix is None:
        return None
    return picture.color_range == _FULL_RANGE or name == "yuvj420p", matrix


def bgr_of(picture: VideoFrame) -> ImageBGR | None:
    """(H, W, 3) uint8 BGR, contiguous, new; None if the kernels are not made for the picture."""
    colours = colours_of(picture)
    if colours is None:
        return None
    return native.yuv420_to_bgr(planes_of(picture), *colours)
