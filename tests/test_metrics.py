"""Metrics against cases worked by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rtseg.frame import Labels
from rtseg.metrics import BoundaryF1, Confusion


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
        one = Confusion(11)
        one.add(t, p)
        apart.merge(one)
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


# Contours. A picture of 120x160 has a diagonal of 200: the tolerance is 1.5 pixels.


def halves(column: int, left: int = 0, right: int = 1) -> Labels:
    """(120, 160): one class left of the column, another from it on."""
    picture = np.full((120, 160), right, np.uint8)
    picture[:, :column] = left
    return picture


def boundary_of(truth: Labels, prediction: Labels, classes: int = 2) -> BoundaryF1:
    boundary = BoundaryF1(classes)
    boundary.add(truth, prediction)
    return boundary


@pytest.mark.parametrize(("shift", "score"), [(0, 1.0), (1, 1.0), (-1, 1.0), (2, 0.0), (-2, 0.0)])
def test_a_contour_may_be_off_by_the_tolerance(shift: int, score: float) -> None:
    boundary = boundary_of(halves(80), halves(80 + shift))
    assert boundary.per_class().tolist() == [score, score]
    assert boundary.mean() == score


def test_boundary_precision_and_recall_by_hand() -> None:
    # The prediction has the true contour, and one of the same length where there is none.
    prediction = halves(80)
    prediction[:, :40] = 1
    # Class 0: precision 1/2, recall 1. Class 1: the same.
    assert boundary_of(halves(80), prediction).per_class() == pytest.approx([2 / 3, 2 / 3])
    # The other way round recall is 1/2.
    assert boundary_of(prediction, halves(80)).per_class() == pytest.approx([2 / 3, 2 / 3])


def test_the_tolerance_grows_with_the_picture() -> None:
    def shifted(scale: int) -> float:
        truth, prediction = (
            np.kron(halves(c), np.ones((scale, scale), np.uint8)) for c in (80, 81)
        )
        return boundary_of(truth, prediction).mean()

    assert [shifted(1), shifted(2), shifted(4)] == [1.0, 1.0, 1.0]


def test_a_class_missed_or_made_up_scores_zero_and_one_nowhere_is_left_out() -> None:
    boundary = boundary_of(halves(80, 0, 1), halves(80, 0, 2), classes=4)
    assert boundary.per_class()[:3].tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(boundary.per_class()[3])
    assert boundary.mean() == pytest.approx(1 / 3)


def test_boundary_means_over_classes_then_pictures() -> None:
    boundary = BoundaryF1(3)
    boundary.add(halves(80, 0, 1), halves(80, 0, 1))  # two classes at 1
    boundary.add(halves(80, 0, 2), halves(80, 0, 1))  # 0 at 1, 1 and 2 at 0
    assert boundary.per_class().tolist() == [1.0, 0.5, 0.0]
    assert boundary.mean() == pytest.approx((1 + 1 / 3) / 2)


def test_a_picture_of_one_class_has_no_contour_to_judge() -> None:
    plain = np.zeros((120, 160), np.uint8)
    boundary = boundary_of(plain, plain)
    assert np.isnan(boundary.per_class()).all()
    assert np.isnan(boundary.mean())


def test_the_border_to_an_ignored_area_may_be_predicted_but_need_not_be() -> None:
    truth = halves(80, 0, 255)
    assert np.isnan(boundary_of(truth, np.zeros_like(truth)).mean())  # nothing is asked for
    on_it = boundary_of(truth, halves(80, 0, 1))
    assert on_it.per_class()[0] == 1.0
    assert np.isnan(on_it.per_class()[1])  # drawn in the ignored area only
    assert boundary_of(truth, halves(40, 0, 1)).mean() == 0.0
    # A true contour that is found within the ignored area counts as found.
    truth = halves(80)
    truth[:, 80:81] = 255
    assert boundary_of(truth, halves(80)).mean() == 1.0


def brute_force(truth: Labels, prediction: Labels, classes: int) -> list[float]:
    """F1 by the distances between all pairs of contour points; nothing is ignored."""

    def contour(labels: Labels, index: int) -> NDArray[np.float64]:
        padded = np.pad(labels, 1, mode="edge")
        around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        edge = np.logical_or.reduce([n != labels for n in around])
        return np.argwhere(edge & (labels == index)).astype(np.float64)

    scores = []
    for index in range(classes):
        a, b = contour(truth, index), contour(prediction, index)
        near = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1)) < 0.0075 * np.hypot(
            *truth.shape
        )
        recall, precision = near.any(axis=1).mean(), near.any(axis=0).mean()
        scores.append(2 * precision * recall / (precision + recall))
    return scores


@pytest.mark.parametrize("size", [(45, 60), (240, 320), (301, 170)])
def test_boundary_f1_is_that_of_all_pairs_of_points(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    coarse = rng.integers(0, 3, (4, 5), np.uint8)
    truth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    prediction = np.roll(truth, (2, 3), (0, 1))
    prediction[rng.random(size) < 0.01] = 1
    got = boundary_of(truth, prediction, 3)
    assert got.per_class() == pytest.approx(brute_force(truth, prediction, 3))


def test_boundary_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"expected \(1, 2\) like the truth, got \(1, 3\)"):
        BoundaryF1(2).add(labels(0, 1), labels(0, 1, 1))
