"""The kernels around a network, from a decoder's picture to an encoder's; pure functions.

`reference.py` is the truth, `_cpu` the compiled version, and this module checks the arguments and
picks. Without the compiled extension everything still works, slower: OpenCV resizes and blends.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from rtseg.frame import Matrix, check_image, check_labels
from rtseg.native import reference

# Absent after an installation without a C++ compiler; one that is there but does not load raises.
_HAS_CPU = importlib.util.find_spec("rtseg.native._cpu") is not None
_cpu: Any = importlib.import_module("rtseg.native._cpu") if _HAS_CPU else None

BACKEND: str = "numpy" if _cpu is None else "c++"
"""What runs `upsample_argmax`: "c++", or "numpy" where the package was installed without it."""
ISAS: tuple[str, ...] = () if _cpu is None else tuple(_cpu.isas())
"""Instruction sets this processor and build share, the one in use first; empty for "numpy"."""


def yuv420_to_bgr(
    planes: Sequence[NDArray[np.uint8]], full_range: bool, matrix: Matrix, *, isa: str = ""
) -> NDArray[np.uint8]:
    """The colours of a decoder's picture, the same on a CPU as in the CUDA kernels.

    Args:
        planes: luma (H, W), U and V (ceil(H / 2), ceil(W / 2)), uint8; their rows may lie apart.
            Chroma counts alike for its 2 x 2 pixels.
        full_range: luma covers 0..255, not 16..235.
        matrix: the standard of the colours.
        isa: as in `upsample_argmax`.

    Returns:
        (H, W, 3) uint8 BGR, C-contiguous, new; for limited BT.601 as `cv2.COLOR_YUV2BGR_I420`, bit
        by bit.

    Raises:
        ValueError: a plane of another shape or type, or an unknown standard.
    """
    y, u, v = planes
    height, width = check_labels(y).shape
    half = -(-height // 2), -(-width // 2)
    if u.shape != half or v.shape != half or u.dtype != np.uint8 or v.dtype != np.uint8:
        raise ValueError(f"planes: expected U and V {half} uint8, got {u.shape} and {v.shape}")
    if matrix not in get_args(Matrix):
        raise ValueError(f"matrix: expected {' or '.join(get_args(Matrix))}, got {matrix}")
    if _cpu is not None:
        bgr = np.empty((height, width, 3), np.uint8)
        rows = [p if p.strides[1] == 1 else np.ascontiguousarray(p) for p in planes]
        _cpu.yuv420_to_bgr(*rows, reference.yuv_coefficients(full_range, matrix), bgr, isa)
        return bgr
    if height % 2 == width % 2 == 0 and not full_range and matrix == "bt601":
        i420 = np.concatenate([p.reshape(-1) for p in planes]).reshape(-1, width)
        return np.asarray(cv2.cvtColor(i420, cv2.COLOR_YUV2BGR_I420), np.uint8)
    return reference.yuv420_to_bgr(planes, full_range, matrix)


def preprocess(
    bgr: NDArray[np.uint8],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    out: NDArray[np.float32] | None = None,
    *,
    isa: str = "",
) -> NDArray[np.float32]:
    """Turns an image into the input of a network: resize, BGR to RGB, normalise, planes.

    Args:
        bgr: (H, W, 3) uint8 BGR; may be a strided view.
        size: (h, w) of the result, pixels. The resize is OpenCV's INTER_LINEAR on uint8, to the
            bit (`reference.resize`).
        mean, std: three numbers each, RGB order, for values in 0..1.
        out: (1, 3, h, w) float32, C-contiguous, to write into; else a new array is made.
        isa: as in `upsample_argmax`.

    Returns:
        (1, 3, h, w) float32 RGB, `(value / 255 - mean) / std`, within
        `reference.PREPROCESS_ATOL` for the usual means and deviations; `out` if it was given.

    Raises:
        ValueError: an argument of another shape or type, or a deviation that is not positive.
    """
    check_image(bgr)
    height, width = _check_size(size)
    scale, shift = normalisation(mean, std)
    if out is None:
        out = np.empty((1, 3, height, width), np.float32)
    else:
        _check_out(out, (1, 3, height, width), np.float32)
    if _cpu is not None:
        if bgr.strides[1:] != (3, 1):  # rows may lie apart, pixels not
            bgr = np.ascontiguousarray(bgr)
        scale_shift = np.array((scale, shift), np.float32)
        _cpu.preprocess(bgr, scale_shift[0], scale_shift[1], out, isa)
        return out
    resized: cv2.typing.MatLike = bgr
    if bgr.shape[:2] != (height, width):
        resized = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_LINEAR)
    # One pass per plane, written in place: several times faster than dnn.blobFromImage.
    for plane, target, a, b in zip(cv2.split(resized)[::-1], out[0], scale, shift, strict=True):
        cv2.addWeighted(plane, a, plane, 0, b, dst=target, dtype=cv2.CV_32F)
    return out


def normalisation(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and shift, three numbers each, of values in 0..255: `value * scale + shift`.

    Raises:
        ValueError: not three numbers each, or a deviation that is not positive.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean, std: expected 3 numbers each, std > 0, got {mean}, {std}")
    return tuple(1 / (255 * s) for s in std), tuple(-m / s for m, s in zip(mean, std, strict=True))


def upsample_argmax(
    logits: NDArray[np.float32] | NDArray[np.float16],
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int = 255,
    *,
    isa: str = "",
) -> NDArray[np.uint8]:
    """The class of every pixel: logits upsampled bilinearly to `size`, then the argmax, exactly.

    Equal, bit by bit, to `reference.upsample_argmax`; one thread; the GIL is released.

    Args:
        logits: (C, h, w) float32 or float16, 1 to 255 classes; any strides.
        size: (H, W) of the result, pixels; may be smaller than the logits.
        align_corners: as in `torch.nn.functional.interpolate(mode="bilinear")`.
        ignore_index: 0..255, given to pixels whose interpolation involves a NaN: from the
            logits, or from infinities of both signs. A neighbour of weight zero is not involved.
        isa: one of `ISAS`, for tests and benchmarks; "" is the best one.

    Returns:
        (H, W) uint8 class indices, C-contiguous, new; the lowest class in a tie.

    Raises:
        ValueError: an argument of another shape or type.
    """
    is_array = isinstance(logits, np.ndarray)
    if not is_array or logits.dtype not in (np.float32, np.float16) or logits.ndim != 3:
        got = f"{logits.shape} {logits.dtype}" if is_array else type(logits).__name__
        raise ValueError(f"logits: expected (C, h, w) float32 or float16, got {got}")
    if not 1 <= logits.shape[0] <= 255 or logits.size == 0:
        raise ValueError(f"logits: expected 1 to 255 classes and pixels, got {logits.shape}")
    if not 0 <= ignore_index <= 255:
        raise ValueError(f"ignore_index: expected 0..255, got {ignore_index}")
    size = _check_size(size)
    if _cpu is None:
        return reference.upsample_argmax(logits, size, align_corners, ignore_index)
    if not logits.flags.aligned or any(step % logits.itemsize for step in logits.strides):
        logits = logits.copy()  # a field of a structured array, or bytes from the wire
    labels = np.empty(size, np.uint8)
    _cpu.upsample_argmax(logits, labels, align_corners, ignore_index, isa)
    return labels


def count_labels(labels: NDArray[np.uint8], *, isa: str = "") -> NDArray[np.int64]:
    """How many pixels have each label.

    Args:
        labels: (H, W) uint8.
        isa: as in `upsample_argmax`.

    Returns:
        (256,) int64.

    Raises:
        ValueError: an argument of another shape or type.
    """
    check_labels(labels)
    if _cpu is None or not labels.flags.c_contiguous:
        return reference.count_labels(labels)
    counts = np.zeros(256, np.int64)
    _cpu.count_labels(labels, counts, isa)
    return counts


def blend(
    bgr: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    palette: NDArray[np.uint8],
    opacity: float,
    out: NDArray[np.uint8] | None = None,
    *,
    isa: str = "",
) -> NDArray[np.uint8]:
    """Mixes the colour of each pixel's class into the image.

    Args:
        bgr: (H, W, 3) uint8 BGR.
        labels: (H, W) uint8.
        palette: (256, 3) uint8 BGR, a colour per label.
        opacity: 0 (only the image) to 1 (only the colours).
        out: (H, W, 3) uint8, C-contiguous, to write into, neither `bgr` nor part of it;
            else a new array is made.
        isa: as in `upsample_argmax`.

    Returns:
        (H, W, 3) uint8 BGR, `bgr * (1 - opacity) + colour * opacity` rounded to the nearest, halves
        to even, as `reference.blend`; without the compiled kernel one level of difference is
        allowed where float32 falls on a half.

    Raises:
        ValueError: an argument of another shape or type, or an opacity outside 0..1.
    """
    check_image(bgr)
    if check_labels(labels).shape != bgr.shape[:2]:
        raise ValueError(f"labels: expected {bgr.shape[:2]} like the image, got {labels.shape}")
    if palette.shape != (256, 3) or palette.dtype != np.uint8:
        raise ValueError(f"palette: expected (256, 3) uint8, got {palette.shape} {palette.dtype}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected 0..1, got {opacity}")
    if out is None:
        out = np.empty(bgr.shape, np.uint8)
    else:
        _check_out(out, bgr.shape, np.uint8)
        if np.may_share_memory(out, bgr):
            raise ValueError("out: expected an array of its own, got memory of the image")
    if _cpu is not None:
        colours = np.zeros((256, 4), np.float32)
        np.multiply(palette, np.float32(opacity), out=colours[:, :3])
        bgr, labels = np.ascontiguousarray(bgr), np.ascontiguousarray(labels)
        _cpu.blend(bgr, labels, colours, np.float32(1.0 - opacity), out, isa)
        return out
    cv2.applyColorMap(labels, palette.reshape(256, 1, 3), dst=out)
    cv2.addWeighted(bgr, 1 - opacity, out, opacity, 0, dst=out)
    return out


def to_yuv420(
    bgr: NDArray[np.uint8], planes: Sequence[NDArray[np.uint8]], *, isa: str = ""
) -> None:
    """Writes an image as 4:2:0 for a video encoder: BT.601, limited range, chroma in the middle.

    Args:
        bgr: (H, W, 3) uint8 BGR, both sides even.
        planes: luma (H, W), U and V (H/2, W/2), uint8, to write into; their rows may lie apart.
        isa: as in `upsample_argmax`.

    Raises:
        ValueError: an argument of another shape or type.
    """
    height, width = check_image(bgr).shape[:2]
    half = height // 2, width // 2
    shapes = [(height, width), half, half]
    if height % 2 or width % 2 or [p.shape for p in planes] != shapes:
        got = [p.shape for p in planes]
        raise ValueError(f"planes: expected {shapes} of an even image {bgr.shape}, got {got}")
    if _cpu is not None:
        _cpu.to_yuv420(np.ascontiguousarray(bgr), *planes, isa)
        return
    # OpenCV takes the chroma of every other pixel: halve the image for it.
    luma = cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420)[:height]
    small = cv2.resize(bgr, half[::-1], interpolation=cv2.INTER_AREA)
    doubled = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    chroma = cv2.cvtColor(doubled, cv2.COLOR_BGR2YUV_I420)[height:]
    u, v = np.split(chroma.reshape(-1), 2)
    for plane, values in zip(planes, (luma, u, v), strict=True):
        plane[:] = values.reshape(plane.shape)


def _check_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    # Positions are 32-bit in the compiled kernel, and 32767 is OpenCV's own limit.
    if not (0 < height <= 32767 and 0 < width <= 32767):
        raise ValueError(f"size: expected (height, width) in 1..32767, got {size}")
    return int(height), int(width)


def _check_out(out: NDArray[np.generic], shape: tuple[int, ...], dtype: type) -> None:
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"out: expected {shape} {np.dtype(dtype)}, contiguous, got {out.shape} {out.dtype}"
        )
