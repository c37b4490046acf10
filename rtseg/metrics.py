"""Segmentation metrics from a confusion matrix (Long et al., "FCN", CVPR 2015, section 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rtseg.frame import Labels


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
        if truth.shape != prediction.shape:
            raise ValueError(
                f"prediction: expected {truth.shape} like the truth, got {prediction.shape}"
            )
        pairs = np.bincount(
            truth.ravel().astype(np.uint16) << 8 | prediction.ravel(), minlength=1 << 16
        ).reshape(256, 256)[: self.num_classes]
        self.matrix += pairs[:, : self.num_classes]
        self.missed += pairs[:, self.num_classes :].sum(axis=1)

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


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = np.full(part.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
