"""Segmentation metrics: of areas, from a confusion matrix, and of contours.

Those of areas are as in Long et al., "FCN", CVPR 2015, section 5.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from rtseg.frame import Labels

Mask = NDArray[np.bool_]

BOUNDARY_TOLERANCE = 0.0075
"""Share of the picture's diagonal that a contour may be off by."""


class Confusion:
    """Counts of (truth, prediction) pairs, summed over pictures.

    Attributes:
        matrix: (C, C) int64, rows are the truth, columns the prediction.
        missed: (C,) int64, pixels of each true class whose prediction is no class at all.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.matrix: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)
        self.missed: NDArray[np.int64] = np.zeros(num_classes, np.int64)

    def add(self, truth: Labels, prediction: Labels) -> None:
        """Counts one picture; both (H, W) uint8. Truth outside 0..C-1 is left out.

        Raises:
            ValueError: the shapes differ.
        """
        _check_shapes(truth, prediction)
        pairs = np.bincount(
            truth.ravel().astype(np.uint16) << 8 | prediction.ravel(), minlength=1 << 16
        ).reshape(256, 256)[: self.num_classes]
        self.matrix += pairs[:, : self.num_classes]
        self.missed += pairs[:, self.num_classes :].sum(axis=1)

    def merge(self, other: Confusion) -> None:
        """Adds the counts of another one, over the same classes."""
        self.matrix += other.matrix
        self.missed += other.missed

    def iou(self) -> NDArray[np.float64]:
        """(C,) intersection over union; NaN for a class in neither truth nor prediction."""
        hits = np.diag(self.matrix).astype(np.float64)
        union = self._truth() + self.matrix.sum(axis=0) - hits
        return _ratio(hits, union)

    def mean_iou(self) -> float:
        """Mean over the classes that occur; NaN if none does."""
        return _mean(self.iou())

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right; NaN without any."""
        total = self._truth().sum()
        return float(np.trace(self.matrix) / total) if total else float("nan")

    def mean_accuracy(self) -> float:
        """Mean over the classes in the truth of the share of their pixels that are right."""
        return _mean(_ratio(np.diag(self.matrix).astype(np.float64), self._truth()))

    def frequency_weighted_iou(self) -> float:
        """IoU weighted by each class's share of the true pixels."""
        truth = self._truth()
        if not truth.sum():
            return float("nan")
        return float(np.nansum(self.iou() * truth) / truth.sum())

    def _truth(self) -> NDArray[np.float64]:
        truth: NDArray[np.float64] = (self.matrix.sum(axis=1) + self.missed).astype(np.float64)
        return truth


class BoundaryF1:
    """How well contours are met (Csurka et al., "What is a good evaluation measure for semantic
    segmentation?", BMVC 2013).

    Per picture and class: precision is the share of the predicted contour that lies nearer than
    the tolerance to the true contour of that class, recall the share of the true contour that lies
    so near to the predicted one, F1 their harmonic mean. A class is present in a picture if the
    truth or the prediction has a contour of it to judge. The score of a picture is the mean over
    the classes present, the score of the data set the mean over its pictures; the score of a class
    is the mean over the pictures it is present in.

    A contour is the pixels of a class that have another class above, below, left or right; the
    border of the picture is none. Where the truth is ignored nothing is judged: predicted contours
    there are not counted, and the border between a class and an ignored area is one that may be
    predicted but need not be.

    Args:
        num_classes: C; labels outside 0..C-1 are ignored in the truth, no class in a prediction.
        tolerance: as a share of the picture's diagonal.
    """

    def __init__(self, num_classes: int, tolerance: float = BOUNDARY_TOLERANCE) -> None:
        self.num_classes = num_classes
        self.tolerance = tolerance
        self._sums: NDArray[np.float64] = np.zeros(num_classes)
        self._counts: NDArray[np.int64] = np.zeros(num_classes, np.int64)
        self._pictures: list[float] = []

    def add(self, truth: Labels, prediction: Labels) -> NDArray[np.float64]:
        """Scores one picture; both (H, W) uint8.

        Returns:
            (C,) F1 of each class; NaN for a class without a contour to judge.

        Raises:
            ValueError: the shapes differ.
        """
        _check_shapes(truth, prediction)
        disc = _disc(self.tolerance * math.hypot(*truth.shape))
        known: Mask = truth < self.num_classes
        either = np.ones_like(known)
        wanted, allowed = _contours(truth, known), _contours(truth, either)
        drawn = _contours(prediction, either)
        scores: NDArray[np.float64] = np.full(self.num_classes, np.nan)
        for index in range(self.num_classes):
            true, predicted = truth == index, prediction == index
            to_find, found = wanted & true, drawn & predicted
            to_judge = found & known
            if to_find.any() or to_judge.any():
                precision = _share(to_judge, allowed & true, disc)
                recall = _share(to_find, found, disc)
                both = precision + recall
                scores[index] = 2 * precision * recall / both if both else 0.0
        present = np.isfinite(scores)
        self._sums[present] += scores[present]
        self._counts += present
        if present.any():
            self._pictures.append(float(scores[present].mean()))
        return scores

    def per_class(self) -> NDArray[np.float64]:
        """(C,) mean over the pictures a class is present in; NaN for one that never is."""
        return _ratio(self._sums, self._counts.astype(np.float64))

    def mean(self) -> float:
        """Mean over the pictures of the mean over the classes present; NaN without any."""
        return float(np.mean(self._pictures)) if self._pictures else float("nan")


def _contours(labels: Labels, counted: Mask) -> Mask:
    """(H, W) bool: pixels with a neighbour, of those that are counted, of another label."""
    contours: Mask = np.zeros(labels.shape, np.bool_)
    for axis in (0, 1):
        # Views with that axis first, so that both directions read alike.
        values, neighbour, out = (np.swapaxes(a, 0, axis) for a in (labels, counted, contours))
        differ = values[1:] != values[:-1]
        out[1:] |= differ & neighbour[:-1]
        out[:-1] |= differ & neighbour[1:]
    return contours


def _disc(radius_px: float) -> NDArray[np.uint8]:
    """(2r + 1, 2r + 1) uint8: the pixels nearer than the radius to the middle one."""
    reach = max(0, math.ceil(radius_px) - 1)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc: NDArray[np.uint8] = (np.hypot(y, x) < max(radius_px, 0.5)).astype(np.uint8)
    return disc


def _share(points: Mask, targets: Mask, disc: NDArray[np.uint8]) -> float:
    """Share of the points that have a target in the disc around them; 1 without points."""
    count = np.count_nonzero(points)
    if not count:
        return 1.0
    left, top, wide, high = cv2.boundingRect(targets.view(np.uint8))
    if not wide:
        return 0.0
    reach = disc.shape[0] // 2
    rows, columns = (
        slice(max(0, top - reach), top + high + reach),
        slice(max(0, left - reach), left + wide + reach),
    )
    near = cv2.dilate(np.ascontiguousarray(targets[rows, columns]).view(np.uint8), disc)
    return np.count_nonzero(points[rows, columns] & near.astype(np.bool_)) / count


def _check_shapes(truth: Labels, prediction: Labels) -> None:
    if truth.shape != prediction.shape:
        raise ValueError(
            f"prediction: expected {truth.shape} like the truth, got {prediction.shape}"
        )


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = np.full(part.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
