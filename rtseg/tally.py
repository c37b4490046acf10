"""What the run report needs to know of every frame, in constant memory."""

from __future__ import annotations

import time

import numpy as np

from rtseg.frame import ClassTable, Frame, LabelMap
from rtseg.metrics import Confusion
from rtseg.timing import Durations

_FEWEST_FRAMES = 10
"""More than are ever in flight at once."""


class Tally:
    """Counts of a run; `add` is called once for each delivered mask.

    Attributes:
        frames: masks so far.
        age: their ages.
        frame_hw: (H, W) of the last frame.
    """

    def __init__(self, classes: ClassTable, truth_classes: ClassTable | None) -> None:
        self.frames = 0
        self.age = Durations()
        self.frame_hw: tuple[int, int] | None = None
        self._first = self._last = 0.0
        self._classes = classes
        self._share = np.zeros(256, np.float64)
        self._confusion = Confusion(len(classes))
        self._truth_table = None
        if truth_classes is not None:
            self._truth_table = truth_classes.table_to(classes)

    def add(self, frame: Frame, result: LabelMap, age: float) -> None:
        """Counts a frame and its mask; `age` is the mask's, in seconds."""
        self._last = time.monotonic()
        if not self.frames:
            self._first = self._last
        self.frames += 1
        self.frame_hw = frame.size_hw
        self.age.add(age)
        self._share += result.histogram() / result.labels.size
        if frame.labels is not None and self._truth_table is not None:
            self._confusion.add(self._truth_table[frame.labels], result.labels)

    def seconds(self) -> float:
        """From the first mask to the last."""
        return self._last - self._first

    def fps(self) -> float | None:
        """The first mask starts the clock: loading and compiling are not the stream's pace.

        None for a few frames only: the second one is then nearly done when the first one is.
        """
        enough = self.frames >= _FEWEST_FRAMES and self.seconds() > 0
        return (self.frames - 1) / self.seconds() if enough else None

    def class_fraction(self) -> dict[str, float]:
        """Mean share of the pixels of each class, by name."""
        frames = max(self.frames, 1)
        return {
            name: round(float(self._share[i]) / frames, 6)
            for i, name in enumerate(self._classes.names)
        }

    def miou(self) -> float | None:
        """Mean IoU over all frames with labels; None without any."""
        value = self._confusion.mean_iou()
        return None if np.isnan(value) else value
