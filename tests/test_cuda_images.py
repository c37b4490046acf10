"""`preprocess` and `blend` of CUDA, compiled for the host, against OpenCV and `reference.py`."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from _cuda_host import ORDERS, HostModule, address, compiler, guarded, host_module
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtseg import native
from rtseg.frame import Matrix
from rtseg.native import reference
from rtseg.native.cuda import Kernels

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVELS: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
"""A mean and a deviation under which the blob holds the levels 0..255 themselves."""

SIZES = st.tuples(st.integers(1, 75), st.integers(1, 75))


@pytest.fixture(scope="module")
def module() -> HostModule:
    return host_module()


@pytest.fixture(scope="module")
def kernels(module: HostModule) -> Kernels:
    return Kernels(module)


# --- preprocess -----------------------------------------------------------------------------------


def preprocess_bgr(
    kernels: Kernels,
    bgr: NDArray[np.uint8],
    size: tuple[int, int],
    mean: Any = MEAN,
    std: Any = STD,
    half: bool = False,
) -> NDArray[Any]:
    blob, untouched = guarded(3 * size[0] * size[1], np.float16 if half else np.float32)
    kernels.preprocess_bgr(
        address(bgr), bgr.shape[:2], bgr.strides[0], address(blob), size, mean, std, half, None
    )
    assert untouched()
    return blob.reshape(1, 3, *size)


def scaled(
    bgr: NDArray[np.uint8], size: tuple[int, int], mean: Any = MEAN, std: Any = STD
) -> NDArray[np.float32]:
    """What the compiled `native.preprocess` computes, operation by operation."""
    resized = cv2.resize(bgr, size[::-1], interpolation=cv2.INTER_LINEAR)
    scale = np.array([1 / (255 * s) for s in std], np.float32)
    shift = np.array([-m / s for m, s in zip(mean, std, strict=True)], np.float32)
    planes: NDArray[np.float32] = resized[:, :, ::-1].astype(np.float32) * scale + shift
    return np.ascontiguousarray(planes.transpose(2, 0, 1)[None])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    source=SIZES,
    target=SIZES,
    halved=st.booleans(),
    padding=st.integers(0, 9),
    half=st.booleans(),
    order=st.sampled_from(ORDERS),
)
@example(0, (1, 1), (1, 1), False, 0, False, 1)
@example(0, (1, 1), (40, 70), False, 0, True, 1)
@example(0, (540, 960), (384, 480), False, 0, False, 1)
@example(0, (400, 3), (7, 200), False, 1, False, 1)
def test_blob_equals_opencv(
    module: HostModule,
    kernels: Kernels,
    seed: int,
    source: tuple[int, int],
    target: tuple[int, int],
    halved: bool,
    padding: int,
    half: bool,
    order: int,
) -> None:
    if halved:
        source = (2 * target[0], 2 * target[1])
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (source[0], 3 * source[1] + padding), dtype=np.uint8)
    bgr = np.ndarray((*source, 3), np.uint8, rows, strides=(rows.shape[1], 3, 1))
    module.set_order(order)
    blob = preprocess_bgr(kernels, bgr, target, half=half)
    expected = scaled(np.ascontiguousarray(bgr), target)
    np.testing.assert_array_equal(blob, expected.astype(np.float16) if half else expected)
    atol = 2.0**-10 * 4 if half else reference.PREPROCESS_ATOL
    truth = reference.preprocess(np.ascontiguousarray(bgr), target, MEAN, STD)
    np.testing.assert_allclose(blob, truth, rtol=0, atol=atol)


@pytest.mark.skipif(native.BACKEND != "c++", reason="installed without the extension")
def test_blob_equals_the_cpu_extension(kernels: Kernels) -> None:
    bgr = np.random.default_rng(4).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    expected = native.preprocess(bgr, (64, 80), MEAN, STD)
    np.testing.assert_array_equal(preprocess_bgr(kernels, bgr, (64, 80)), expected)


def preprocess_nv12(
    kernels: Kernels,
    nv12: NDArray[np.uint8],
    src_hw: tuple[int, int],
    size: tuple[int, int],
    full_range: bool = False,
    matrix: Matrix = "bt601",
) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 RGB: the levels before normalisation. `nv12` is as OpenCV stacks it."""
    rows = len(nv12) * 2 // 3
    blob, untouched = guarded(3 * size[0] * size[1], np.float32)
    kernels.preprocess_nv12(
        address(nv12), address(nv12[rows:]), nv12.strides[0], src_hw, address(blob), size,
        *LEVELS, False, None, full_range, matrix,
    )  # fmt: skip
    assert untouched()
    levels = np.rint(blob).astype(np.uint8)
    np.testing.assert_allclose(blob, levels, atol=1e-4)
    return np.ascontiguousarray(levels.reshape(3, *size).transpose(1, 2, 0))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=SIZES,
    crop=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    order=st.sampled_from(ORDERS),
)
def test_nv12_equals_opencv(
    module: HostModule,
    kernels: Kernels,
    seed: int,
    source: tuple[int, int],
    target: tuple[int, int],
    crop: tuple[int, int],
    order: int,
) -> None:
    # Odd sizes are an even picture whose last row or column is not looked at.
    nv12 = np.random.default_rng(seed).integers(
        0, 256, (3 * source[0], 2 * source[1]), dtype=np.uint8
    )
    height, width = 2 * source[0] - crop[0], 2 * source[1] - crop[1]
    bgr = cv2.cvtColor(nv12, cv2.COLOR_YUV2BGR_NV12)[:height, :width]
    module.set_order(order)
    expected = cv2.resize(bgr, target[::-1], interpolation=cv2.INTER_LINEAR)[:, :, ::-1]
    levels = preprocess_nv12(kernels, nv12, (height, width), target)
    np.testing.assert_array_equal(levels, expected)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(
    ("matrix", "kr", "kb"), [("bt601", 0.299, 0.114), ("bt709", 0.2126, 0.0722)]
)
def test_nv12_colours_come_back(
    kernels: Kernels, full_range: bool, matrix: Matrix, kr: float, kb: float
) -> None:
    rng = np.random.default_rng(0)
    rgb = np.repeat(np.repeat(rng.random((16, 16, 3)), 2, 0), 2, 1)
    luma = rgb @ (kr, 1 - kr - kb, kb)
    chroma = np.stack([(rgb[..., 2] - luma) / (1 - kb), (rgb[..., 0] - luma) / (1 - kr)], -1) / 2
    black, grey, colour = (0, 255, 255) if full_range else (16, 219, 224)
    y = np.rint(black + grey * luma).astype(np.uint8)
    uv = np.clip(np.rint(128 + colour * chroma[::2, ::2]), 0, 255).astype(np.uint8)
    levels = preprocess_nv12(
        kernels, np.concatenate([y, uv.reshape(16, 32)]), (32, 32), (32, 32), full_range, matrix
    )
    # Rounding Y, U and V to 8 bits moves a colour by up to two levels.
    assert np.abs(levels - 255 * rgb).max() < 2.7


# --- blend ----------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=SIZES,
    opacity=st.one_of(st.sampled_from([0.0, 0.45, 0.5, 1.0]), st.floats(0, 1)),
    offset=st.integers(0, 4),
    in_place=st.booleans(),
    order=st.sampled_from(ORDERS),
)
@example(0, (70, 130), 0.5, 0, False, 255)
def test_blend_equals_the_reference(
    module: HostModule,
    kernels: Kernels,
    seed: int,
    size: tuple[int, int],
    opacity: float,
    offset: int,
    in_place: bool,
    order: int,
) -> None:
    rng = np.random.default_rng(seed)
    bgr = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = rng.integers(0, 256, size, dtype=np.uint8)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    out, untouched = guarded(bgr.size, np.uint8, offset)
    source = bgr
    if in_place:
        out[:] = bgr.ravel()
        source = out
    module.set_order(order)
    kernels.blend(
        address(source), address(labels), address(palette), size, opacity, address(out), None
    )
    assert untouched()
    expected = reference.blend(bgr, labels, palette, opacity)
    np.testing.assert_array_equal(out.reshape(bgr.shape), expected)
