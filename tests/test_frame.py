"""The values that travel down the pipeline check themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtseg.frame import ClassTable, Frame, LabelMap

RGB = ((10, 20, 30), (40, 50, 60), (70, 80, 90))
TABLE = ClassTable(("Road", "Car", "Sky"), RGB)


def frame(image: Any, labels: Any = None) -> Frame:
    return Frame(image, 3, 0.12, 1.0, labels)


def test_a_good_frame() -> None:
    good = frame(np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8))
    assert good.size_hw == (4, 6)
    assert repr(good) == "Frame(#3, 4x6, pts=0.120000 s, labels)"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 6), np.uint8), r"expected \(H, W, 3\) uint8 BGR, got \(4, 6\) uint8"),
        (np.zeros((4, 6, 4), np.uint8), r"got \(4, 6, 4\) uint8"),
        (np.zeros((4, 6, 3), np.float32), r"got \(4, 6, 3\) float32"),
        (np.zeros((0, 6, 3), np.uint8), r"got \(0, 6, 3\)"),
        (None, "got NoneType"),
        (np.zeros((4, 12, 3), np.uint8)[:, ::2], "C-contiguous"),
    ],
)
def test_a_frame_says_what_it_got(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame(image)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6, 1), (4, 5)])
def test_truth_must_fit_the_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="labels: expected"):
        frame(np.zeros((4, 6, 3), np.uint8), np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("names", "palette", "ignore", "message"),
    [
        ((), (), 255, "expected 1 to 255, got 0"),
        (tuple(map(str, range(256))), ((0, 0, 0),) * 256, 255, "got 256"),
        (("a", "a", "b"), RGB, 255, "names must differ, got a more than once"),
        (("a", "b"), RGB, 255, "expected 2 colours, got 3"),
        (("a",), ((0, 0, 256),), 255, r"in 0\.\.255"),
        (("a",), ((0, 0),), 255, "triples"),
        (("a",), RGB[:1], 256, "ignore_index"),
    ],
)
def test_a_bad_class_table(names: Any, palette: Any, ignore: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassTable(names, palette, ignore)


def test_class_table_lookups() -> None:
    assert len(TABLE) == 3
    assert TABLE.index("car") == 1
    with pytest.raises(ValueError, match="unknown class 'bus': choose one of Road, Car, Sky"):
        TABLE.index("bus")
    lut = TABLE.lut_bgr()
    assert lut.shape == (256, 3)
    assert lut[1].tolist() == [60, 50, 40]
    assert not lut[3:].any()


def test_label_map_counts() -> None:
    result = LabelMap(np.array([[0, 0, 1, 255]], np.uint8), TABLE)
    assert result.fractions() == {"Road": 0.5, "Car": 0.25, "Sky": 0.0}
    assert result.histogram()[[0, 1, 2, 255]].tolist() == [2, 1, 0, 1]
    counted = np.zeros(256, np.int64)
    counted[1] = 4
    assert LabelMap(result.labels, TABLE, counts=counted).fractions()["Car"] == 1.0
    assert result.mask("CAR").tolist() == [[False, False, True, False]]
    assert repr(result) == "LabelMap(1x4, 3 classes, pts=0.000000 s)"


def test_a_bad_label_map() -> None:
    with pytest.raises(ValueError, match=r"expected \(H, W\) uint8, got \(2, 2\) int64"):
        LabelMap(np.zeros((2, 2), np.int64), TABLE)
    with pytest.raises(ValueError, match="confidence"):
        LabelMap(np.zeros((2, 2), np.uint8), TABLE, confidence=np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="counts"):
        LabelMap(np.zeros((2, 2), np.uint8), TABLE, counts=np.zeros(3, np.int64))
