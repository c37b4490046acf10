"""The kernels in plain NumPy: what every faster version must reproduce.

All are reproduced bit by bit, but `preprocess` within `PREPROCESS_ATOL`; and `blend`, where it is
not compiled, within one level where float32 falls on a half.
Arguments are taken as valid; `rtseg.native` checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtseg.frame import Matrix

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

PREPROCESS_ATOL = 2e-6
"""Largest difference of a fast `preprocess`: it may round the three float32 steps differently."""


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """Where each output index of one axis reads: `in[index] * weight0 + in[index + 1] * weight1`.

    Where `weight1` is 0 the value is `in[index]` itself, and its neighbour is not read.
    """

    index: NDArray[np.int64]
    weight0: Float32
    weight1: Float32


def taps(inputs: int, outputs: int, align_corners: bool) -> Taps:
    """Bilinear positions as in `torch.nn.functional.interpolate`, computed in exact integers.

    `align_corners` maps the first and last samples onto each other; otherwise pixels are areas,
    `source = (i + 0.5) * inputs / outputs - 0.5`, held inside the first and the last sample.
    """
    i = np.arange(outputs, dtype=np.int64)
    if align_corners:
        numerator, denominator = i * (inputs - 1), max(outputs - 1, 1)
    else:
        numerator, denominator = np.maximum((2 * i + 1) * inputs - outputs, 0), 2 * outputs
    index, rest = np.divmod(numerator, denominator)
    inside = index < inputs - 1
    weight1 = (np.where(inside, rest, 0) / denominator).astype(np.float32)
    return Taps(np.minimum(index, inputs - 1), np.float32(1) - weight1, weight1)


def _interpolate_rows(values: Float32, at: Taps) -> Float32:
    """(h, w) to (H, w), each multiplication and addition rounded to float32."""
    upper = values[at.index]
    lower = values[np.minimum(at.index + 1, len(values) - 1)]
    weight0, weight1 = at.weight0[:, None], at.weight1[:, None]
    return np.where(weight1 == 0, upper, upper * weight0 + lower * weight1)


def upsample_argmax(
    logits: NDArray[np.float32] | NDArray[np.float16],
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int = 255,
) -> UInt8:
    """Bilinear upsampling (columns first, then rows, in float32), then the lowest best class.

    See `rtseg.native.upsample_argmax`.
    """
    height, width = size
    rows = taps(logits.shape[1], height, align_corners)
    columns = taps(logits.shape[2], width, align_corners)
    labels = np.zeros(size, np.uint8)
    best = np.full(size, -np.inf, np.float32)
    invalid = np.zeros(size, np.bool_)
    with np.errstate(invalid="ignore", over="ignore"):
        for k, plane in enumerate(logits.astype(np.float32)):
            wide = _interpolate_rows(np.ascontiguousarray(plane.T), columns).T
            value = _interpolate_rows(np.ascontiguousarray(wide), rows)
            wins = value > best
            labels[wins] = k
            np.maximum(best, value, out=best)
            invalid |= np.isnan(value)
    labels[invalid] = ignore_index
    return labels


@dataclass(frozen=True, slots=True, eq=False)
class ResizeTaps:
    """Where each output index of one axis reads, in 2048ths: `in[first] * weight0 + in[second] *
    weight1`.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    weight0: NDArray[np.int32]
    weight1: NDArray[np.int32]


def resize_taps(inputs: int, outputs: int, *, is_column: bool) -> ResizeTaps:
    """Positions of OpenCV's INTER_LINEAR: `(i + 0.5) * scale - 0.5`, weights of 11 bits."""
    scale = 1 / (outputs / inputs)
    position = ((np.arange(outputs) + 0.5) * scale - 0.5).astype(np.float32)
    at = np.floor(position).astype(np.int64)
    rest: Float32 = position - at.astype(np.float32)
    if is_column:
        # Beyond the image OpenCV drops the weight along x and reads its border twice along y.
        rest[(at < 0) | (at >= inputs - 1)] = 0
    weights = np.rint(np.stack((np.float32(1) - rest, rest)) * 2048).astype(np.int32)
    return ResizeTaps(at.clip(0, inputs - 1), (at + 1).clip(0, inputs - 1), *weights)


def resize(image: UInt8, size: tuple[int, int]) -> UInt8:
    """(H, W, channels) to (h, w, channels): OpenCV's INTER_LINEAR on uint8, to the bit.

    Written out because the networks' input must not depend on how an OpenCV was built.
    """
    height, width = size
    if image.shape[:2] == size:
        return image
    rows = resize_taps(image.shape[0], height, is_column=False)
    columns = resize_taps(image.shape[1], width, is_column=True)
    values = image.astype(np.int32)
    weight0, weight1 = columns.weight0[:, None], columns.weight1[:, None]
    wide = (values[:, columns.first] * weight0 + values[:, columns.second] * weight1) >> 4
    weight0, weight1 = rows.weight0[:, None, None], rows.weight1[:, None, None]
    upper, lower = wide[rows.first] * weight0 >> 16, wide[rows.second] * weight1 >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def preprocess(
    bgr: UInt8, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Float32:
    """Resizes bilinearly on uint8, then `(rgb / 255 - mean) / std` as (1, 3, h, w).

    See `rtseg.native.preprocess`.
    """
    rgb = resize(bgr, size)[:, :, ::-1].astype(np.float32) / np.float32(255)
    normalised = (rgb - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


def count_labels(labels: UInt8) -> NDArray[np.int64]:
    """(256,) how many pixels have each label; see `rtseg.native.count_labels`."""
    return np.bincount(labels.ravel(), minlength=256).astype(np.int64, copy=False)


def blend(bgr: UInt8, labels: UInt8, palette: UInt8, opacity: float) -> UInt8:
    """Mixes the palette's colours into the image, rounded to the nearest, halves to even.

    See `rtseg.native.blend`.
    """
    colours = palette[labels].astype(np.float32) * np.float32(opacity)
    mixed = bgr.astype(np.float32) * np.float32(1.0 - opacity) + colours
    rounded: Float32 = np.clip(np.rint(mixed), 0, 255)
    return rounded.astype(np.uint8)


LUMA_BGR, CHROMA_U_BGR, CHROMA_V_BGR = (
    np.array(weights, np.int64)
    for weights in ((3208, 16519, 8414), (14392, -9535, -4857), (-2340, -12052, 14392))
)
"""ITU-R BT.601, 2.5, limited range, of 2^15; grey has no chroma, so those sums are zero."""


def to_yuv420(bgr: UInt8) -> tuple[UInt8, UInt8, UInt8]:
    """(H, W, 3) of even sides to luma (H, W), U and V (H/2, W/2); see `rtseg.native.to_yuv420`."""
    values = bgr.astype(np.int64)
    luma = (values @ LUMA_BGR + (16 << 15) + (1 << 14)) >> 15
    height, width = bgr.shape[:2]
    sums = values.reshape(height // 2, 2, width // 2, 2, 3).sum(axis=(1, 3))
    u, v = (
        (sums @ weights + (128 << 17) + (1 << 16)) >> 17 for weights in (CHROMA_U_BGR, CHROMA_V_BGR)
    )
    return luma.astype(np.uint8), u.astype(np.uint8), v.astype(np.uint8)


def yuv_coefficients(full_range: bool, matrix: Matrix) -> tuple[int, int, int, int, int, int]:
    """Black level, then of 2^20: luma, V in red, U and V in green, U in blue.

    ITU-R BT.601 and BT.709. Limited BT.601 has the three decimals of `cv2.cvtColor`, to equal it.
    """
    if matrix == "bt601" and not full_range:
        return 16, 1220542, 1673527, -409993, -852492, 2116026
    kr, kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[matrix]
    kg = 1 - kr - kb
    luma, chroma = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    red_v, blue_u = 2 * (1 - kr) * chroma, 2 * (1 - kb) * chroma
    values = (luma, red_v, -blue_u * kb / kg, -red_v * kr / kg, blue_u)
    a, b, c, d, e = (round(value * 2**20) for value in values)
    return 0 if full_range else 16, a, b, c, d, e


def yuv420_to_bgr(planes: Sequence[UInt8], full_range: bool, matrix: Matrix) -> UInt8:
    """Luma (H, W) and chroma of half its size to (H, W, 3); see `rtseg.native.yuv420_to_bgr`."""
    y, u, v = planes
    black, luma, red_v, green_u, green_v, blue_u = yuv_coefficients(full_range, matrix)
    grey = np.maximum(y.astype(np.int32) - black, 0) * luma + (1 << 19)
    low_u, low_v = u.astype(np.int32) - 128, v.astype(np.int32) - 128
    bgr = np.empty((*y.shape, 3), np.uint8)
    terms = low_u * blue_u, low_u * green_u + low_v * green_v, low_v * red_v
    for channel, term in enumerate(terms):
        wide = term.repeat(2, axis=0).repeat(2, axis=1)[: y.shape[0], : y.shape[1]]
        bgr[..., channel] = ((grey + wide) >> 20).clip(0, 255)
    return bgr
