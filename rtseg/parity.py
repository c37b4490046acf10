"""The parity gate: does an engine say what the float32 reference says, on real frames?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from rtseg.errors import ConfigError, EngineError
from rtseg.frame import ImageBGR, LabelMap, Labels
from rtseg.metrics import Confusion

LEAST_AGREEMENT = {"fp32": 0.9999, "fp16": 0.995, "bf16": 0.995, "int8": 0.98, "fp8": 0.98}
"""Share of the pixels that must have the reference's label, by precision."""
MOST_MIOU_LOST = {"int8": 0.005, "fp8": 0.005}
"""How much mIoU, as a fraction, may be lost where frames have labels, by precision."""

Predict = Callable[[ImageBGR], LabelMap]
"""An image (H, W, 3) uint8 BGR to its labels at the same size, such as a `Segmenter`."""


@dataclass(frozen=True)
class Parity:
    """How near a candidate comes to the reference.

    Attributes:
        pixel_agreement: share of all pixels with the same label, 0..1.
        miou_difference: the candidate's mIoU less the reference's, as fractions; negative where
            mIoU is lost, None without labelled frames.
        frames: how many were compared.
    """

    pixel_agreement: float
    miou_difference: float | None
    frames: int

    def to_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        difference = self.miou_difference
        return {
            "pixel_agreement": round(self.pixel_agreement, 6),
            "miou_difference": None if difference is None else round(difference, 6),
            "frames": self.frames,
        }


def compare(
    reference: Predict,
    candidate: Predict,
    frames: Iterable[ImageBGR],
    labels: Iterable[Labels | None] | None = None,
) -> Parity:
    """Runs both over the frames, one at a time.

    Args:
        frames: (H, W, 3) uint8 BGR.
        labels: the truth of each frame, (H, W) uint8 in the reference's classes, None for a frame
            without; labels that are no class are left out.

    Raises:
        ConfigError: there are no frames.
        ValueError: the two give different sizes or classes, or there are fewer labels than frames.
    """
    same = total = count = labelled = 0
    ours = theirs = Confusion(0)
    truths = repeat(None) if labels is None else iter(labels)
    for image in frames:
        try:
            truth = next(truths)
        except StopIteration:
            raise ValueError(f"{count} label maps for {count + 1} frames or more") from None
        expected, got = reference(image), candidate(image)
        if expected.labels.shape != got.labels.shape:
            raise ValueError(f"expected labels {expected.labels.shape}, got {got.labels.shape}")
        if expected.classes.names != got.classes.names:
            raise ValueError("the candidate has not the reference's classes")
        same += int(np.count_nonzero(expected.labels == got.labels))
        total += expected.labels.size
        count += 1
        if truth is not None:
            if not labelled:
                ours, theirs = (Confusion(len(expected.classes)) for _ in range(2))
            labelled += int(np.count_nonzero(truth < len(expected.classes)))
            ours.add(truth, got.labels)
            theirs.add(truth, expected.labels)
    if not count:
        raise ConfigError("no frames to compare on: give a source or a data set that has some")
    difference = ours.mean_iou() - theirs.mean_iou() if labelled else None
    return Parity(same / total, difference, count)


def lost(precision: str, parity: Parity) -> float:
    """How much of what the gate allows is used up: 0 nothing, 1 all of it, above it fails.

    Raises:
        ValueError: there is no threshold for such a precision.
    """
    if precision not in LEAST_AGREEMENT:
        raise ValueError(f"precision: expected one of {', '.join(LEAST_AGREEMENT)}: {precision!r}")
    used = (1 - parity.pixel_agreement) / (1 - LEAST_AGREEMENT[precision])
    if precision in MOST_MIOU_LOST and parity.miou_difference is not None:
        used = max(used, -parity.miou_difference / MOST_MIOU_LOST[precision])
    return used


def gate(precision: str, parity: Parity) -> None:
    """Returns if the parity is good enough for the precision.

    Raises:
        EngineError: it is not; says by which figure.
        ValueError: there is no threshold for such a precision.
    """
    if lost(precision, parity) <= 1:
        return
    least = LEAST_AGREEMENT[precision]
    if parity.pixel_agreement < least:
        figure = (
            f"gives {100 * parity.pixel_agreement:.3f} % of the pixels of {parity.frames} frames "
            f"the label of float32, {100 * least:g} % are needed"
        )
    else:
        figure = (
            f"loses {-100 * (parity.miou_difference or 0.0):.2f} mIoU points on {parity.frames} "
            f"frames, {100 * MOST_MIOU_LOST[precision]:g} may be lost"
        )
    raise EngineError(
        f"{precision} {figure}: calibrate on frames like your own or take a higher precision "
        "(--allow-mismatch lets it pass)"
    )
