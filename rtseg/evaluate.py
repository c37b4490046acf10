"""`rtseg eval`: a model on one engine against the labels of a data set."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rtseg.artifact import ModelFile
from rtseg.data import DataSet, Sample
from rtseg.errors import DataError
from rtseg.frame import ClassTable, Frame, LabelMap, Labels
from rtseg.metrics import BOUNDARY_TOLERANCE, BoundaryF1, Confusion
from rtseg.segmenter import InFlight
from rtseg.timing import versions
from rtseg.tta import AugmentedSegmenter


class Predictor(Protocol):
    """A segmenter, augmented or not."""

    model: ModelFile

    def submit(self, frame: Frame) -> InFlight:
        """Queues a frame."""

    def collect(self, in_flight: InFlight) -> LabelMap:
        """Waits for its labels."""


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on a data set.

    Attributes:
        confusion: over all frames, truth by prediction.
        boundary: of the contours over all frames; None if they were not asked for.
        image_miou: of each frame alone, in the data set's order; NaN where nothing is labelled.
        classes: of the model.
    """

    confusion: Confusion
    boundary: BoundaryF1 | None
    image_miou: tuple[float, ...]
    classes: ClassTable

    @property
    def frames(self) -> int:
        """How many pictures."""
        return len(self.image_miou)

    def to_dict(
        self, segmenter: AugmentedSegmenter, data: DataSet, command: Sequence[str]
    ) -> dict[str, Any]:
        """The JSON object: all scores as fractions, null for a class that never occurs."""
        info, confusion = segmenter.engine.info, self.confusion
        boundary = self.boundary
        return {
            "miou": number(confusion.mean_iou()),
            "pixel_accuracy": number(confusion.pixel_accuracy()),
            "mean_accuracy": number(confusion.mean_accuracy()),
            "fw_iou": number(confusion.frequency_weighted_iou()),
            "iou": self._by_class(confusion.iou()),
            "boundary_f1": None if boundary is None else number(boundary.mean()),
            "boundary_f1_per_class": None
            if boundary is None
            else self._by_class(boundary.per_class()),
            "boundary_tolerance": BOUNDARY_TOLERANCE if boundary is None else boundary.tolerance,
            "confusion": confusion.matrix.tolist(),
            "frames": self.frames,
            "data": data.name,
            "split": data.split,
            "model": segmenter.model.contract.name,
            "engine": info.name,
            "precision": info.precision,
            "device": info.device,
            "size": segmenter.input_hw,
            "augmentation": segmenter.augmentation.to_dict(),
            "versions": {**versions("numpy", "opencv-python"), info.name: info.version},
            "command": list(command),
        }

    def _by_class(self, values: NDArray[np.float64]) -> dict[str, float | None]:
        pairs = zip(self.classes.names, values.tolist(), strict=True)
        return {name: number(value) for name, value in pairs}


def evaluate(
    segmenter: Predictor,
    data: DataSet,
    *,
    boundary: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Segments every sample and counts its labels against the truth, at the truth's own size.

    Args:
        boundary: score the contours too.

    Raises:
        DataError: the data set's classes are not the model's, or a sample cannot be read.
    """
    classes = segmenter.model.contract.classes
    translate = label_table(data, classes)
    confusion = Confusion(len(classes))
    contours = BoundaryF1(len(classes)) if boundary else None
    image_miou: list[float] = []
    # Two in flight: the next sample is read and prepared while the engine works on this one.
    pending: deque[tuple[InFlight, Labels]] = deque()

    def finish() -> None:
        in_flight, truth = pending.popleft()
        labels = segmenter.collect(in_flight).labels
        image = Confusion(len(classes))
        image.add(truth, labels)
        confusion.merge(image)
        image_miou.append(image.mean_iou())
        if contours is not None:
            contours.add(truth, labels)

    for number, sample in enumerate(data.samples):
        frame, truth = load_sample(sample, number)
        pending.append((segmenter.submit(frame), translate[truth]))
        if len(pending) == 2:
            finish()
        on_progress(number + 1, len(data.samples))
    while pending:
        finish()
    return Evaluation(confusion, contours, tuple(image_miou), classes)


def load_sample(sample: Sample, number: int) -> tuple[Frame, Labels]:
    """A sample as a frame, and its truth in the data set's own labels.

    Raises:
        DataError: it cannot be read, or the two differ in size.
    """
    image, truth = sample.load()
    if truth.shape != image.shape[:2]:
        raise DataError(
            f"{sample.name}: labels are {truth.shape[0]}x{truth.shape[1]}, "
            f"the image is {image.shape[0]}x{image.shape[1]}"
        )
    image = np.ascontiguousarray(image)
    return Frame(image, number, float(number), time.monotonic()), truth


def same_classes(data: DataSet, classes: ClassTable) -> bool:
    """Whether a data set has a model's classes, in any order; case does not count."""
    return {n.lower() for n in data.classes.names} == {n.lower() for n in classes.names}


def label_table(data: DataSet, classes: ClassTable) -> Labels:
    """(256,) uint8: the data set's label to the model's; 255 for what is ignored.

    Raises:
        DataError: the data set's classes are not the model's.
    """
    truth = data.classes
    if not same_classes(data, classes):
        raise DataError(
            f"{data.name} has the classes {', '.join(truth.names)}; "
            f"the model has {', '.join(classes.names)}: evaluate it on its own classes"
        )
    return truth.table_to(classes)


def number(value: float) -> float | None:
    """For JSON, which has no NaN: null in its place, five digits otherwise."""
    return None if np.isnan(value) else round(value, 5)
