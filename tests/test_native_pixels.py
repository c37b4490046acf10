"""The kernels on pictures and labels against `reference.py` and cases worked by hand."""

from __future__ import annotations

import platform

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtseg import native
from rtseg.frame import Matrix
from rtseg.native import reference

IMPLEMENTATIONS = ["numpy", *native.ISAS]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)

# --- preprocess -----------------------------------------------------------------------------------


def test_preprocess_by_hand() -> None:
    bgr = np.array([[[0, 51, 255]]], np.uint8)
    blob = native.preprocess(bgr, (1, 1), (0.5, 0.1, 0.0), (0.5, 0.1, 2.0))
    np.testing.assert_allclose(blob.ravel(), [1.0, 1.0, 0.0], atol=reference.PREPROCESS_ATOL)


@pytest.mark.parametrize("shape", [(37, 53), (64, 64), (1, 1), (120, 7)])
@pytest.mark.parametrize("size", [(64, 64), (33, 17), (1, 1), (97, 101)])
@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_preprocess_equals_the_reference(
    shape: tuple[int, int],
    size: tuple[int, int],
    view: bool,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "_cpu", None)
    bgr = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    if view:
        bgr = np.repeat(bgr, 2, axis=1)[:, ::2]
    blob = native.preprocess(bgr, size, MEAN, STD)
    assert blob.shape == (1, 3, *size)
    assert blob.dtype == np.float32
    expected = reference.preprocess(bgr, size, MEAN, STD)
    np.testing.assert_allclose(blob, expected, rtol=0, atol=reference.PREPROCESS_ATOL)


SIDES = st.integers(1, 70)
WIDTHS = st.one_of(SIDES, st.integers(100, 700))  # whole vectors, and pixels far apart


@pytest.mark.parametrize("isa", native.ISAS)
@settings(deadline=None, max_examples=150)
@given(source=st.tuples(SIDES, WIDTHS), size=st.tuples(SIDES, WIDTHS), gap=st.integers(0, 3))
def test_every_instruction_set_resizes_and_scales_exactly(
    isa: str, source: tuple[int, int], size: tuple[int, int], gap: int
) -> None:
    rng = np.random.default_rng(source[1])
    wide = rng.integers(0, 256, (source[0], source[1] + gap, 3), dtype=np.uint8)
    bgr = wide[:, : source[1]]
    scale, shift = rng.random((2, 3), np.float32)
    planes = np.full((1, 3, *size), np.nan, np.float32)
    native._cpu.preprocess(bgr, scale, shift, planes, isa)
    rgb = reference.resize(bgr, size)[:, :, ::-1].transpose(2, 0, 1).astype(np.float32)
    assert np.array_equal(planes[0], rgb * scale[:, None, None] + shift[:, None, None])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other OpenCVs have other kernels")
@settings(deadline=None, max_examples=150)
@given(source=st.tuples(SIDES, WIDTHS), size=st.tuples(SIDES, WIDTHS))
def test_the_reference_resizes_as_opencv(source: tuple[int, int], size: tuple[int, int]) -> None:
    bgr = np.random.default_rng(source[0]).integers(0, 256, (*source, 3), dtype=np.uint8)
    expected = cv2.resize(bgr, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(reference.resize(bgr, size), expected)


def test_preprocess_reads_no_further_than_the_image() -> None:
    bgr = np.random.default_rng(0).integers(0, 256, (9, 64, 3), dtype=np.uint8)
    alone = native.preprocess(bgr[:, :40].copy(), (5, 33), MEAN, STD)
    assert np.array_equal(native.preprocess(bgr[:, :40], (5, 33), MEAN, STD), alone)


def test_preprocess_writes_into_out() -> None:
    bgr = np.full((4, 4, 3), 9, np.uint8)
    out = np.full((1, 3, 2, 2), np.nan, np.float32)
    assert native.preprocess(bgr, (2, 2), MEAN, STD, out=out) is out
    assert np.isfinite(out).all()


def test_preprocess_refuses_wrong_arguments() -> None:
    bgr = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
        native.preprocess(bgr[..., 0], (2, 2), MEAN, STD)
    with pytest.raises(ValueError, match="std > 0"):
        native.preprocess(bgr, (2, 2), MEAN, (0.2, 0.0, 0.2))
    with pytest.raises(ValueError, match="3 numbers each"):
        native.preprocess(bgr, (2, 2), (0.5,), STD)
    with pytest.raises(ValueError, match="out: expected"):
        native.preprocess(bgr, (2, 2), MEAN, STD, out=np.zeros((1, 3, 2, 3), np.float32))
    with pytest.raises(ValueError, match="out: expected"):
        native.preprocess(bgr, (2, 2), MEAN, STD, out=np.zeros((3, 2, 1, 2), np.float32).T)


# --- count_labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@settings(deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(0, 255), st.integers(1, 40)), min_size=1, max_size=30),
)
def test_labels_are_counted_exactly(name: str, runs: list[tuple[int, int]]) -> None:
    labels = np.concatenate([np.full(n, label, np.uint8) for label, n in runs])[None]
    with pytest.MonkeyPatch.context() as patch:
        if name == "numpy":
            patch.setattr(native, "_cpu", None)
        counts = native.count_labels(labels, isa="" if name == "numpy" else name)
    assert counts.dtype == np.int64
    assert counts.tolist() == [int((labels == k).sum()) for k in range(256)]


def test_labels_of_a_view_are_counted() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (20, 30), dtype=np.uint8)
    view = labels[::2, 3:17]
    assert np.array_equal(native.count_labels(view), reference.count_labels(view))


def test_counting_refuses_other_arrays() -> None:
    with pytest.raises(ValueError, match=r"labels: expected \(H, W\) uint8"):
        native.count_labels(np.zeros((2, 2), np.int64))


# --- blend ----------------------------------------------------------------------------------------


def test_blend_by_hand() -> None:
    palette = np.zeros((256, 3), np.uint8)
    palette[3] = (200, 100, 0)
    bgr = np.full((1, 2, 3), 100, np.uint8)
    mixed = native.blend(bgr, np.array([[3, 0]], np.uint8), palette, 0.25)
    assert mixed.tolist() == [[[125, 100, 75], [75, 75, 75]]]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("opacity", [0, 0.1, 0.45, 0.5, 0.9, 1])
@pytest.mark.parametrize("shape", [(1, 1), (37, 53), (64, 128)])
@pytest.mark.parametrize("runs", [1, 50])
def test_blend_equals_the_reference(
    name: str, shape: tuple[int, int], opacity: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    few = rng.integers(0, 256, shape[0] * shape[1] // runs + 1, dtype=np.uint8)
    labels = np.repeat(few, runs)[: shape[0] * shape[1]].reshape(shape)
    before, expected = bgr.copy(), reference.blend(bgr, labels, PALETTE, opacity)
    if name == "numpy":
        monkeypatch.setattr(native, "_cpu", None)
    mixed = native.blend(bgr, labels, PALETTE, opacity, isa="" if name == "numpy" else name)
    np.testing.assert_array_equal(bgr, before)
    if name == "numpy":
        # OpenCV may fuse the multiplication and the addition: a half can round the other way.
        difference = np.abs(mixed.astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.02
    else:
        np.testing.assert_array_equal(mixed, expected)


@pytest.mark.parametrize("opacity", [0, 1])
def test_blend_ends_are_exact(opacity: int) -> None:
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    labels = rng.integers(0, 256, (9, 9), dtype=np.uint8)
    expected = PALETTE[labels] if opacity else bgr
    np.testing.assert_array_equal(native.blend(bgr, labels, PALETTE, opacity), expected)


def test_blend_takes_views_and_writes_into_out() -> None:
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 256, (8, 20, 3), dtype=np.uint8)[:, ::2]
    labels = rng.integers(0, 9, (16, 10), dtype=np.uint8)[::2]
    out = np.empty((8, 10, 3), np.uint8)
    assert native.blend(bgr, labels, PALETTE, 0.5, out=out) is out
    expected = reference.blend(bgr, labels, PALETTE, 0.5)
    np.testing.assert_allclose(out.astype(int), expected, rtol=0, atol=1)


def test_blend_refuses_wrong_arguments() -> None:
    bgr, labels = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match="like the image"):
        native.blend(bgr, labels.T.copy(), PALETTE, 0.5)
    with pytest.raises(ValueError, match=r"palette: expected \(256, 3\) uint8"):
        native.blend(bgr, labels, PALETTE[:11], 0.5)
    with pytest.raises(ValueError, match=r"opacity: expected 0\.\.1, got 1.5"):
        native.blend(bgr, labels, PALETTE, 1.5)
    with pytest.raises(ValueError, match="memory of the image"):
        native.blend(bgr, labels, PALETTE, 0.5, out=bgr)


# --- to_yuv420 ------------------------------------------------------------------------------------

Planes = list[np.ndarray]


def empty_planes(height: int, width: int, gap: int = 0) -> Planes:
    sides = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    return [np.zeros((h, w + gap), np.uint8)[:, :w] for h, w in sides]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(2, 2), (4, 6), (36, 48), (34, 66), (2, 130), (18, 512)])
def test_yuv_equals_the_reference(
    name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bgr = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    bgr[:, shape[1] // 2 :] = 255 * (bgr[:, shape[1] // 2 :] > 127)  # the ends of the range
    planes = empty_planes(*shape, gap=5)
    if name == "numpy":
        monkeypatch.setattr(native, "_cpu", None)
    native.to_yuv420(bgr, planes, isa="" if name == "numpy" else name)
    for plane, expected in zip(planes, reference.to_yuv420(bgr), strict=True):
        # OpenCV rounds the mean of four pixels before it takes their chroma.
        np.testing.assert_allclose(plane.astype(int), expected, rtol=0, atol=name == "numpy")


@pytest.mark.parametrize("compiled", [False, True])
def test_yuv_of_known_colours(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "_cpu", None)
    # ITU-R BT.601, 2.5: black 16, white 235, and the primaries at 100 %.
    colours = {(0, 0, 0): (16, 128, 128), (255, 255, 255): (235, 128, 128)}
    colours |= {(0, 0, 255): (81, 90, 240), (0, 255, 0): (145, 54, 34), (255, 0, 0): (41, 240, 110)}
    for colour, expected in colours.items():
        planes = empty_planes(2, 2)
        native.to_yuv420(np.full((2, 2, 3), colour, np.uint8), planes)
        values = [int(plane[0, 0]) for plane in planes]
        np.testing.assert_allclose(values, expected, rtol=0, atol=not compiled)


def test_yuv_refuses_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="planes: expected"):
        native.to_yuv420(np.zeros((3, 4, 3), np.uint8), empty_planes(2, 4))
    with pytest.raises(ValueError, match="planes: expected"):
        native.to_yuv420(np.zeros((4, 4, 3), np.uint8), empty_planes(4, 6))


# --- yuv420_to_bgr --------------------------------------------------------------------------------


def random_planes(height: int, width: int, gap: int = 0) -> Planes:
    rng = np.random.default_rng(width)
    half = -(-height // 2), -(-width // 2)
    sides = [(height, width), half, half]
    return [rng.integers(0, 256, (h, w + gap), dtype=np.uint8)[:, :w] for h, w in sides]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@settings(deadline=None, max_examples=80)
@given(
    size=st.tuples(st.integers(1, 9), WIDTHS),
    gap=st.integers(0, 3),
    full_range=st.booleans(),
    matrix=st.sampled_from(["bt601", "bt709"]),
)
def test_colours_equal_the_reference(
    name: str, size: tuple[int, int], gap: int, full_range: bool, matrix: Matrix
) -> None:
    planes = random_planes(*size, gap)
    with pytest.MonkeyPatch.context() as patch:
        if name == "numpy":
            patch.setattr(native, "_cpu", None)
        isa = "" if name == "numpy" else name
        bgr = native.yuv420_to_bgr(planes, full_range, matrix, isa=isa)
    np.testing.assert_array_equal(bgr, reference.yuv420_to_bgr(planes, full_range, matrix))


@pytest.mark.parametrize("shape", [(2, 2), (36, 64), (10, 962)])
def test_limited_bt601_is_that_of_opencv(shape: tuple[int, int]) -> None:
    planes = random_planes(*shape)
    stacked = np.concatenate([p.reshape(-1) for p in planes]).reshape(-1, shape[1])
    expected = cv2.cvtColor(stacked, cv2.COLOR_YUV2BGR_I420)
    np.testing.assert_array_equal(native.yuv420_to_bgr(planes, False, "bt601"), expected)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(
    ("matrix", "kr", "kb"), [("bt601", 0.299, 0.114), ("bt709", 0.2126, 0.0722)]
)
def test_colours_come_back(full_range: bool, matrix: Matrix, kr: float, kb: float) -> None:
    """By the standards' own definition: luma is a weighted sum, chroma what a channel has more."""
    rgb = np.random.default_rng(0).random((16, 16, 3)).repeat(2, 0).repeat(2, 1)
    luma = rgb @ (kr, 1 - kr - kb, kb)
    blue, red = (rgb[..., 2] - luma) / (1 - kb) / 2, (rgb[..., 0] - luma) / (1 - kr) / 2
    black, grey, colour = (0, 255, 255) if full_range else (16, 219, 224)
    y = np.rint(black + grey * luma).astype(np.uint8)
    u, v = (
        np.clip(np.rint(128 + colour * c[::2, ::2]), 0, 255).astype(np.uint8) for c in (blue, red)
    )
    bgr = native.yuv420_to_bgr([y, u, v], full_range, matrix)
    # Rounding Y, U and V to 8 bits moves a colour by up to two levels.
    assert np.abs(bgr[..., ::-1] - 255 * rgb).max() < 2.7


def test_colours_of_planes_that_are_views() -> None:
    planes = random_planes(6, 8)
    views = [np.repeat(p, 2, axis=1)[:, ::2] for p in planes]
    bgr = native.yuv420_to_bgr(views, False, "bt709")
    np.testing.assert_array_equal(bgr, native.yuv420_to_bgr(planes, False, "bt709"))


def test_colours_refuse_wrong_arguments() -> None:
    y, u, v = random_planes(5, 7)
    with pytest.raises(ValueError, match=r"planes: expected U and V \(3, 4\) uint8"):
        native.yuv420_to_bgr([y, u, v[:, :3]], False, "bt601")
    with pytest.raises(ValueError, match="planes: expected U and V"):
        native.yuv420_to_bgr([y, u.astype(np.int16), v], False, "bt601")
    with pytest.raises(ValueError, match="expected bt601 or bt709, got bt2020"):
        native.yuv420_to_bgr([y, u, v], False, "bt2020")  # type: ignore[arg-type]
