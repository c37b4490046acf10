"""`rtseg eval`: a model on one engine against the labels of a data set."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtseg.data import DataSet, Sample
from rtseg.errors import DataError
from rtseg.frame import ClassTable, Frame, Labels
from rtseg.metrics import Confusion
from rtseg.segmenter import InFlight, Segmenter
from rtseg.timing import versions


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on a data set.

    Attributes:
        confusion: over all frames, truth by prediction.
        frames: how many pictures.
        classes: of the model.
    """

    confusion: Confusion
    frames: int
    classes: ClassTable

    def to_dict(
        self, segmenter: Segmenter, data: DataSet, command: Sequence[str]
    ) -> dict[str, Any]:
        """The JSON object: IoU and accuracies as fractions, null for a class that never occurs."""
        info, confusion = segmenter.engine.info, self.confusion
        return {
            "miou": number(confusion.mean_iou()),
            "pixel_accuracy": number(confusion.pixel_accuracy()),
            "mean_accuracy": number(confusion.mean_accuracy()),
            "fw_iou": number(confusion.frequency_weighted_iou()),
            "iou": {
                name: number(float(value))
                for name, value in zip(self.classes.names, confusion.iou(), strict=True)
            },
            "confusion": confusion.matrix.tolist(),
            "frames": self.frames,
            "data": data.name,
            "split": data.split,
            "model": segmenter.model.contract.name,
            "engine": info.name,
            "precision": info.precision,
            "device": info.device,
            "size": segmenter.input_hw,
            "versions": {**versions("numpy", "opencv-python"), info.name: info.version},
            "command": list(command),
        }


def evaluate(
    segmenter: Segmenter,
    data: DataSet,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Segments every sample and counts its labels against the truth, at the truth's own size.

    Raises:
        DataError: the data set's classes are not the model's, or a sample cannot be read.
    """
    classes = segmenter.model.contract.classes
    translate = _label_table(data.classes, classes, data.name)
    confusion = Confusion(len(classes))
    # Two in flight: the next sample is read and prepared while the engine works on this one.
    pending: deque[tuple[InFlight, Labels]] = deque()

    def finish() -> None:
        in_flight, truth = pending.popleft()
        confusion.add(truth, segmenter.collect(in_flight).labels)

    for number, sample in enumerate(data.samples):
        pending.append(_submit(segmenter, sample, number, translate))
        if len(pending) == 2:
            finish()
        on_progress(number + 1, len(data.samples))
    while pending:
        finish()
    return Evaluation(confusion, len(data.samples), classes)


def _submit(
    segmenter: Segmenter, sample: Sample, number: int, translate: Labels
) -> tuple[InFlight, Labels]:
    image, truth = sample.load()
    if truth.shape != image.shape[:2]:
        raise DataError(
            f"{sample.name}: labels are {truth.shape[0]}x{truth.shape[1]}, "
            f"the image is {image.shape[0]}x{image.shape[1]}"
        )
    frame = Frame(np.ascontiguousarray(image), number, float(number), time.monotonic())
    return segmenter.submit(frame), translate[truth]


def _label_table(truth: ClassTable, classes: ClassTable, name: str) -> Labels:
    """(256,) uint8: the data set's label to the model's; 255 for what is ignored."""
    missing = {n.lower() for n in truth.names} ^ {n.lower() for n in classes.names}
    if missing:
        raise DataError(
            f"{name} has the classes {', '.join(truth.names)}; "
            f"the model has {', '.join(classes.names)}: evaluate it on its own classes"
        )
    return truth.table_to(classes)


def number(value: float) -> float | None:
    """For JSON, which has no NaN: null in its place, five digits otherwise."""
    return None if np.isnan(value) else round(value, 5)
