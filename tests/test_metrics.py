"""Metrics against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rtseg.frame import Labels
from rtseg.metrics import Confusion


def labels(*values: int) -> Labels:
    return np.array([values], np.uint8)


def textbook() -> Confusion:
    """Three classes with TP 43, 45, 49, and (FN, FP) of (7, 2), (5, 6), (1, 5)."""
    #             predicted  0   1   2
    counts = np.array([(43, 5, 2), (2, 45, 3), (0, 1, 49)])
    truth, prediction = np.repeat([(i, j) for i in range(3) for j in range(3)], counts.ravel(), 0).T
    confusion = Confusion(3)
    confusion.add(truth.astype(np.uint8)[None], prediction.astype(np.uint8)[None])
    assert confusion.matrix.tolist() == counts.tolist()
    return confusion


def test_textbook_iou() -> None:
    confusion = textbook()
    assert (100 * confusion.iou()).round(2).tolist() == [82.69, 80.36, 89.09]
    assert round(100 * confusion.mean_iou(), 2) == 84.05


def test_textbook_accuracies() -> None:
    confusion = textbook()
    assert confusion.pixel_accuracy() == pytest.approx(137 / 150)
    assert confusion.mean_accuracy() == pytest.approx((43 / 50 + 45 / 50 + 49 / 50) / 3)
    # Equal shares of the truth: the weighted mean is the mean.
    assert confusion.frequency_weighted_iou() == pytest.approx(confusion.mean_iou())


def test_two_pixels_by_hand() -> None:
    confusion = Confusion(2)
    confusion.add(labels(0, 0, 0, 1), labels(0, 0, 1, 1))
    assert confusion.matrix.tolist() == [[2, 1], [0, 1]]
    assert confusion.iou().tolist() == pytest.approx([2 / 3, 1 / 2])
    assert confusion.pixel_accuracy() == 0.75
    assert confusion.mean_accuracy() == pytest.approx((2 / 3 + 1) / 2)
    assert confusion.frequency_weighted_iou() == pytest.approx(0.75 * 2 / 3 + 0.25 * 1 / 2)


def test_ignored_truth_counts_for_nothing() -> None:
    confusion = Confusion(2)
    confusion.add(labels(0, 1, 255, 2, 11), labels(0, 1, 0, 1, 1))
    assert confusion.matrix.tolist() == [[1, 0], [0, 1]]
    assert confusion.mean_iou() == 1.0


def test_a_prediction_of_no_class_is_a_miss() -> None:
    confusion = Confusion(2)
    confusion.add(labels(0, 0, 1, 1), labels(0, 255, 1, 1))
    assert confusion.missed.tolist() == [1, 0]
    assert confusion.iou().tolist() == pytest.approx([0.5, 1.0])
    assert confusion.pixel_accuracy() == 0.75


def test_a_class_that_never_occurs_is_left_out_of_the_mean() -> None:
    confusion = Confusion(3)
    confusion.add(labels(0, 1), labels(0, 1))
    assert np.isnan(confusion.iou()[2])
    assert confusion.mean_iou() == 1.0
    assert confusion.mean_accuracy() == 1.0


def test_a_class_only_ever_predicted_lowers_the_mean() -> None:
    confusion = Confusion(2)
    confusion.add(labels(0, 0), labels(0, 1))
    assert confusion.iou().tolist() == [0.5, 0.0]
    assert confusion.mean_iou() == 0.25
    assert confusion.mean_accuracy() == 0.5  # class 1 is not in the truth


def test_nothing_labelled_is_not_a_number() -> None:
    confusion = Confusion(2)
    confusion.add(labels(255), labels(0))
    for value in (
        confusion.pixel_accuracy(),
        confusion.mean_accuracy(),
        confusion.frequency_weighted_iou(),
    ):
        assert np.isnan(value)


def test_pictures_add_up() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 13, (2, 4, 20, 30), np.uint8)
    together, apart = Confusion(11), Confusion(11)
    together.add(truth.reshape(-1, 30), prediction.reshape(-1, 30))
    for t, p in zip(truth, prediction, strict=True):
        apart.add(t, p)
    assert np.array_equal(together.matrix, apart.matrix)
    assert np.array_equal(together.missed, apart.missed)


def test_all_255_classes() -> None:
    truth = np.arange(255, dtype=np.uint8)[None]
    confusion = Confusion(255)
    confusion.add(truth, truth)
    assert confusion.mean_iou() == 1.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"expected \(1, 2\) like the truth, got \(1, 3\)"):
        Confusion(2).add(labels(0, 1), labels(0, 1, 1))
