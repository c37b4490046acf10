"""`upsample_argmax` of CUDA, compiled for the host, against `reference.py`, bit by bit.

What a host cannot show is in test_cuda_build.py (the machine code fuses no operations) and
test_cuda_device.py (the same comparisons on a GPU).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from _cuda_host import ORDERS, HostModule, address, compiler, guarded, host_module
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_native import KINDS, draw_logits, smooth

from rtseg.native import reference
from rtseg.native.cuda import Kernels

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++")


@pytest.fixture(scope="module")
def module() -> HostModule:
    return host_module()


@pytest.fixture(scope="module")
def kernels(module: HostModule) -> Kernels:
    return Kernels(module)


def upsample_argmax(
    kernels: Kernels,
    logits: NDArray[Any],
    size: tuple[int, int],
    align_corners: bool,
    ignore_index: int = 255,
    offset: int = 0,
) -> NDArray[np.uint8]:
    """Runs the kernel; checks the histogram and that nothing else is written."""
    logits = np.ascontiguousarray(logits)
    labels, untouched = guarded(size[0] * size[1], np.uint8, offset)
    counts = np.full(256, 5, np.uint32)
    classes, height, width = logits.shape
    kernels.upsample_argmax(
        address(logits), (classes, height, width), logits.dtype == np.float16, address(labels),
        size, align_corners, ignore_index, None, address(counts),
    )  # fmt: skip
    assert untouched()
    np.testing.assert_array_equal(counts - 5, np.bincount(labels, minlength=256))
    return labels.reshape(size)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([np.float32, np.float16]),
    classes=st.one_of(st.integers(1, 24), st.just(255)),
    low=st.tuples(st.integers(1, 21), st.integers(1, 37)),
    factors=st.tuples(st.integers(1, 90), st.integers(1, 150)),
    align_corners=st.booleans(),
    upsampled=st.booleans(),
    order=st.sampled_from(ORDERS),
    offset=st.integers(0, 16),
)
@example(0, "noise", np.float32, 3, (1, 1), (1, 1), False, False, 1, 0)
@example(0, "noise", np.float32, 3, (40, 300), (80, 600), False, False, 1, 0)
@example(0, "noise", np.float32, 3, (40, 300), (80, 600), True, False, 1, 0)
@example(0, "not finite", np.float16, 3, (17, 129), (35, 301), True, False, 255, 4)
@example(0, "noise", np.float32, 3, (16, 300), (64, 200), True, False, 1, 0)
@example(0, "noise", np.float32, 3, (90, 30), (70, 400), False, False, 1, 0)
def test_labels_equal_the_reference(
    module: HostModule,
    kernels: Kernels,
    seed: int,
    kind: str,
    dtype: type,
    classes: int,
    low: tuple[int, int],
    factors: tuple[int, int],
    align_corners: bool,
    upsampled: bool,
    order: int,
    offset: int,
) -> None:
    # Half of the sizes are at least doubled, where cells are filled; the others are anything.
    size = factors
    if upsampled:
        size = (low[0] * 2 + factors[0] % 70, low[1] * 2 + factors[1] * 2)
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        logits: NDArray[Any] = draw_logits(rng, kind, (classes, *low)).astype(dtype)
    expected = reference.upsample_argmax(logits, size, align_corners, 200)
    module.set_order(order)
    labels = upsample_argmax(kernels, logits, size, align_corners, 200, offset)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((19, 32, 64), (256, 512)),
        ((11, 24, 30), (90, 120)),
        ((11, 24, 30), (360, 480)),
        ((3, 2, 3), (300, 700)),
        ((19, 64, 96), (64, 96)),
    ],
)
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_labels_at_the_factors_in_use(
    kernels: Kernels,
    kind: str,
    shape: tuple[int, int, int],
    size: tuple[int, int],
    align_corners: bool,
) -> None:
    logits = draw_logits(np.random.default_rng(1), kind, shape).astype(np.float32)
    expected = reference.upsample_argmax(logits, size, align_corners)
    np.testing.assert_array_equal(upsample_argmax(kernels, logits, size, align_corners), expected)


def test_positions_equal_the_reference_at_every_size(kernels: Kernels) -> None:
    # Class 1 is a ramp, class 0 the ramp's value at one position: the crossing betrays the weights.
    rng = np.random.default_rng(0)
    for _ in range(60):
        inputs, outputs = (int(n) for n in rng.integers(2, 3000, 2))
        ramp = np.arange(inputs, dtype=np.float32)
        level = np.float32(rng.random() * inputs)
        logits = np.stack([np.full_like(ramp, level), ramp])[:, None]
        for align_corners in (False, True):
            expected = reference.upsample_argmax(logits, (1, outputs), align_corners)
            labels = upsample_argmax(kernels, logits, (1, outputs), align_corners)
            np.testing.assert_array_equal(labels, expected, err_msg=f"{inputs} to {outputs}")


def test_the_largest_sizes(kernels: Kernels) -> None:
    for low, size in (((1, 32767), (1, 32767)), ((1, 16383), (2, 32767)), ((16383, 1), (32767, 2))):
        logits = np.random.default_rng(2).standard_normal((2, *low)).astype(np.float32)
        for align_corners in (False, True):
            expected = reference.upsample_argmax(logits, size, align_corners)
            labels = upsample_argmax(kernels, logits, size, align_corners)
            np.testing.assert_array_equal(labels, expected)


def test_a_lead_lost_in_rounding_is_a_tie(kernels: Kernels) -> None:
    low = np.full((2, 2), 1.5, np.float32)
    logits = np.stack([low, np.nextafter(low, np.float32(2))])
    expected = reference.upsample_argmax(logits, (8, 8), True)
    assert set(np.unique(expected)) == {0, 1}, "the case no longer shows a lost lead"
    np.testing.assert_array_equal(upsample_argmax(kernels, logits, (8, 8), True), expected)


@pytest.mark.parametrize("corner", range(4))
@pytest.mark.parametrize(("level", "own", "lead"), [(1.5, 1.5, 2.0**-17), (1000.0, 1, 1e-4)])
def test_the_smallest_lead_and_the_largest_logit_of_the_corners_count(
    kernels: Kernels, corner: int, level: float, own: float, lead: float
) -> None:
    # One corner is clearly class 1's; towards the others its lead is lost in rounding.
    low = np.full(4, level, np.float32)
    high = np.nextafter(low, np.float32(2000))
    low[corner], high[corner] = own, own + lead
    logits = np.stack([low, high]).reshape(2, 2, 2)
    expected = reference.upsample_argmax(logits, (300, 300), True)
    assert set(np.unique(expected[:-1, :-1])) == {0, 1}, "the case no longer shows a lost lead"
    labels = upsample_argmax(kernels, logits, (300, 300), True)
    np.testing.assert_array_equal(labels, expected)


def test_nan_and_opposed_infinities_are_ignored(kernels: Kernels) -> None:
    inf, nan = np.inf, np.nan
    logits = np.array([[[0.0, nan, 0.0, 0.0, 0.0]], [[inf, -inf, 1.0, -inf, -inf]]], np.float32)
    labels = upsample_argmax(kernels, logits, (2, 10), True, 7)
    np.testing.assert_array_equal(labels, reference.upsample_argmax(logits, (2, 10), True, 7))
    assert 7 in labels


def test_every_half_is_read_exactly(kernels: Kernels) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(1, 64, 1024)
    for pair in (np.stack([halves[0], halves[0, ::-1]]), np.stack([halves[0, ::-1], halves[0]])):
        with np.errstate(invalid="ignore"):
            expected = np.where(np.isnan(pair).any(0), 255, np.argmax(pair.astype(np.float32), 0))
        labels = upsample_argmax(kernels, pair, (64, 1024), False)
        np.testing.assert_array_equal(labels, expected)


def test_labels_without_a_histogram(kernels: Kernels) -> None:
    logits, labels = smooth(4, 9, 11), np.zeros((40, 50), np.uint8)
    kernels.upsample_argmax(
        address(logits), (4, 9, 11), False, address(labels), (40, 50), False, 255, None
    )
    np.testing.assert_array_equal(labels, reference.upsample_argmax(logits, (40, 50), False))
