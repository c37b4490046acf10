"""`upsample_argmax` against `reference.py`, and the reference against cases worked by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rtseg import native
from rtseg.native import reference

IMPLEMENTATIONS = ["numpy", *native.ISAS]

UpsampleArgmax = Callable[..., NDArray[np.uint8]]


def implementation(name: str) -> UpsampleArgmax:
    """The public function as it runs without the extension, or on one instruction set."""

    def run(*args: Any, **kwargs: Any) -> NDArray[np.uint8]:
        with pytest.MonkeyPatch.context() as patch:
            if name == "numpy":
                patch.setattr(native, "_cpu", None)
                return native.upsample_argmax(*args, **kwargs)
            return native.upsample_argmax(*args, **kwargs, isa=name)

    return run


@pytest.fixture(params=IMPLEMENTATIONS)
def upsample_argmax(request: pytest.FixtureRequest) -> UpsampleArgmax:
    return implementation(request.param)


def smooth(classes: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Logits like a network's: large regions, thin uncertain borders."""
    noise = np.random.default_rng(seed).standard_normal((classes, height, width), np.float32)
    return np.stack([cv2.GaussianBlur(n, (0, 0), 3) * 20 for n in noise]).astype(np.float32)


# --- taps and reference, worked by hand -----------------------------------------------------------


def test_taps_of_doubling_lie_at_quarters() -> None:
    taps = reference.taps(2, 4, align_corners=False)
    assert taps.index.tolist() == [0, 0, 0, 1]
    assert taps.weight1.tolist() == [0.0, 0.25, 0.75, 0.0]
    assert taps.weight0.tolist() == [1.0, 0.75, 0.25, 1.0]


def test_taps_with_aligned_corners_share_the_ends() -> None:
    taps = reference.taps(3, 5, align_corners=True)
    assert taps.index.tolist() == [0, 0, 1, 1, 2]
    assert taps.weight1.tolist() == [0.0, 0.5, 0.0, 0.5, 0.0]


def test_taps_of_one_sample() -> None:
    for align_corners in (False, True):
        assert reference.taps(1, 3, align_corners).index.tolist() == [0, 0, 0]
    assert reference.taps(3, 1, align_corners=True).index.tolist() == [0]
    assert reference.taps(3, 1, align_corners=False).index.tolist() == [1]


def test_border_lies_where_two_classes_cross(upsample_argmax: UpsampleArgmax) -> None:
    # Along x class 0 falls 3, 2, 1, 0 and class 1 is 1.5 everywhere.
    logits = np.array([[[3.0, 0.0]], [[1.5, 1.5]]], np.float32)
    labels = upsample_argmax(logits, (1, 4), True)
    assert labels.tolist() == [[0, 0, 1, 1]]
    assert labels.dtype == np.uint8


def test_a_class_that_wins_no_corner_can_win_inside(upsample_argmax: UpsampleArgmax) -> None:
    logits = np.array([[[4.0, 0.0]], [[0.0, 4.0]], [[3.5, 3.5]]], np.float32)
    assert upsample_argmax(logits, (1, 5), True).tolist() == [[0, 2, 2, 2, 1]]


def test_a_tie_goes_to_the_lowest_class(upsample_argmax: UpsampleArgmax) -> None:
    assert not upsample_argmax(np.ones((5, 3, 4), np.float32), (7, 9), False).any()


def test_a_lead_lost_in_rounding_is_a_tie(upsample_argmax: UpsampleArgmax) -> None:
    # Class 1 leads by the last bit at all four corners; at some pixels both sums round alike.
    low = np.full((2, 2), 1.5, np.float32)
    logits = np.stack([low, np.nextafter(low, np.float32(2))])
    expected = reference.upsample_argmax(logits, (8, 8), True)
    assert set(np.unique(expected)) == {0, 1}, "the case no longer shows a lost lead"
    np.testing.assert_array_equal(upsample_argmax(logits, (8, 8), True), expected)


def test_nan_and_opposed_infinities_are_ignored(upsample_argmax: UpsampleArgmax) -> None:
    inf, nan = np.inf, np.nan
    logits = np.array([[[0.0, nan, 0.0, 0.0, 0.0]], [[inf, -inf, 1.0, -inf, -inf]]], np.float32)
    labels = upsample_argmax(logits, (1, 9), True, ignore_index=7)
    assert labels.tolist() == [[1, 7, 7, 7, 1, 0, 0, 0, 0]]


def test_a_class_masked_with_minus_infinity_never_wins(upsample_argmax: UpsampleArgmax) -> None:
    logits = smooth(4, 9, 11)
    logits[2] = -np.inf
    labels = upsample_argmax(logits, (40, 50), False)
    assert set(np.unique(labels)) <= {0, 1, 3}


# --- every implementation against the reference ---------------------------------------------------


def draw_logits(rng: np.random.Generator, kind: str, shape: tuple[int, int, int]) -> NDArray[Any]:
    values: NDArray[Any] = rng.standard_normal(shape)
    if kind == "noise":
        return values
    if kind == "ties":
        return rng.integers(-2, 3, shape)
    if kind == "last bits":
        return np.asarray(1000 + rng.integers(0, 3, shape) * 2.0**-13)
    if kind == "smooth":
        return smooth(*shape, seed=int(rng.integers(1000)))
    if kind == "huge":
        return rng.choice([-3.4e38, -1e37, 0, 1e37, 3.4e38], shape)
    if kind == "tiny":
        return np.asarray(rng.integers(-3, 4, shape) * 1e-45)
    chance = rng.random(shape)
    for bad, share in ((np.nan, 0.02), (np.inf, 0.04), (-np.inf, 0.08)):
        values[chance < share] = bad
        chance[chance < share] = 1
    return values


KINDS = ["noise", "ties", "last bits", "smooth", "huge", "tiny", "not finite"]
LAYOUTS = ["contiguous", "channels last", "reversed", "every other", "read-only"]


def lay_out(logits: NDArray[Any], layout: str) -> NDArray[Any]:
    """The same values in another memory layout."""
    if layout == "channels last":
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(logits, 0, 2)), 2, 0)
    if layout == "reversed":
        flipped: NDArray[Any] = np.ascontiguousarray(logits[::-1, ::-1, ::-1])
        return flipped[::-1, ::-1, ::-1]
    if layout == "every other":
        doubled: NDArray[Any] = np.repeat(np.repeat(logits, 2, axis=2), 2, axis=0)
        return doubled[::2, :, ::2]
    if layout == "read-only":
        logits.flags.writeable = False
    return logits


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([np.float32, np.float16]),
    classes=st.one_of(st.integers(1, 24), st.just(255)),
    low=st.tuples(st.integers(1, 21), st.integers(1, 37)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 150)),
    align_corners=st.booleans(),
)
def test_equal_to_the_reference(
    seed: int,
    kind: str,
    layout: str,
    dtype: type,
    classes: int,
    low: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
) -> None:
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        logits = lay_out(draw_logits(rng, kind, (classes, *low)).astype(dtype), layout)
    expected = reference.upsample_argmax(logits, size, align_corners, 200)
    for isa in native.ISAS:
        labels = native.upsample_argmax(logits, size, align_corners, 200, isa=isa)
        np.testing.assert_array_equal(labels, expected, err_msg=isa)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((19, 32, 64), (256, 512)), ((11, 24, 30), (90, 120)), ((3, 2, 3), (300, 700))],
)
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_equal_at_the_factors_in_use(
    upsample_argmax: UpsampleArgmax,
    kind: str,
    shape: tuple[int, int, int],
    size: tuple[int, int],
    align_corners: bool,
) -> None:
    logits = draw_logits(np.random.default_rng(1), kind, shape).astype(np.float32)
    expected = reference.upsample_argmax(logits, size, align_corners)
    np.testing.assert_array_equal(upsample_argmax(logits, size, align_corners), expected)


def test_every_half_is_converted_exactly(upsample_argmax: UpsampleArgmax) -> None:
    # Against the same number as float32 the half must tie, from both sides.
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(1, 64, 1024)
    wide = halves.astype(np.float32)
    for pair in (np.stack([halves[0], halves[0, ::-1]]), np.stack([halves[0, ::-1], halves[0]])):
        with np.errstate(invalid="ignore"):
            expected = np.where(np.isnan(pair).any(0), 255, np.argmax(pair.astype(np.float32), 0))
        np.testing.assert_array_equal(upsample_argmax(pair, wide.shape[1:], False), expected)


def test_unaligned_logits(upsample_argmax: UpsampleArgmax) -> None:
    logits = smooth(3, 5, 6)
    wire = np.frombuffer(b"x" + logits.tobytes(), np.uint8)[1:].view(np.float32)
    labels = upsample_argmax(wire.reshape(3, 5, 6), (20, 24), False)
    np.testing.assert_array_equal(labels, reference.upsample_argmax(logits, (20, 24), False))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(96, 200), (61, 97), (15, 20), (24, 25), (100, 11)])
def test_agrees_with_torch(
    upsample_argmax: UpsampleArgmax, size: tuple[int, int], align_corners: bool
) -> None:
    torch = pytest.importorskip("torch")
    logits = smooth(7, 24, 25)
    mode = {"mode": "bilinear", "align_corners": align_corners}
    upsampled = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], size, **mode)[0]
    values = upsampled.numpy()
    labels = upsample_argmax(logits, size, align_corners)
    ours = np.take_along_axis(values, labels[None].astype(np.int64), axis=0)[0]
    # torch computes positions in float32: up to 1e-6 of the size, times the slope of the logits.
    assert (values.max(axis=0) - ours).max() < 1e-4
    assert (labels == values.argmax(axis=0)).mean() > 0.999


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((3, 4)), r"expected \(C, h, w\) float32 or float16, got \(3, 4\) float64"),
        (np.zeros((3, 4, 5), np.float64), r"got \(3, 4, 5\) float64"),
        (np.zeros((3, 4, 5), ">f4"), r"expected \(C, h, w\) float32"),
        ([[[1.0]]], "got list"),
        (np.zeros((256, 2, 2), np.float32), "expected 1 to 255 classes"),
        (np.zeros((0, 2, 2), np.float32), "expected 1 to 255 classes"),
        (np.zeros((3, 0, 2), np.float32), "got \\(3, 0, 2\\)"),
    ],
)
def test_wrong_logits_are_refused(
    upsample_argmax: UpsampleArgmax, logits: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        upsample_argmax(logits, (4, 4), False)


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (40000, 4)])
def test_wrong_sizes_are_refused(upsample_argmax: UpsampleArgmax, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="size: expected"):
        upsample_argmax(np.zeros((2, 2, 2), np.float32), size, False)


def test_wrong_ignore_index_is_refused(upsample_argmax: UpsampleArgmax) -> None:
    with pytest.raises(ValueError, match=r"ignore_index: expected 0\.\.255, got 256"):
        upsample_argmax(np.zeros((2, 2, 2), np.float32), (4, 4), False, 256)


@pytest.mark.skipif(native.BACKEND != "c++", reason="installed without the extension")
def test_unknown_isa_is_refused() -> None:
    with pytest.raises(ValueError, match="mmx"):
        native.upsample_argmax(np.zeros((2, 2, 2), np.float32), (4, 4), False, isa="mmx")


def test_importing_loads_neither_torch_nor_an_engine(run_python: Callable[[str], str]) -> None:
    loaded = run_python("import sys, rtseg.native; print('torch' in sys.modules)")
    assert loaded.strip() == "False"


@pytest.fixture
def run_python() -> Callable[[str], str]:
    return lambda code: subprocess.check_output([sys.executable, "-c", code], text=True)
