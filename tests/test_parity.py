"""The parity gate: the figures are right, and it closes where it says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from rtseg.errors import ConfigError, EngineError
from rtseg.frame import ClassTable, ImageBGR, LabelMap, Labels
from rtseg.parity import LEAST_AGREEMENT, Parity, compare, gate, lost

CLASSES = ClassTable(("road", "car"), ((1, 2, 3), (4, 5, 6)))


def answers(*labels: Labels, classes: ClassTable = CLASSES) -> Callable[[ImageBGR], LabelMap]:
    """A predictor that gives these, one after the other."""
    rows = iter(labels)
    return lambda bgr: LabelMap(next(rows), classes)


def frames(count: int) -> list[ImageBGR]:
    return [np.zeros((2, 5, 3), np.uint8) for _ in range(count)]


def road(cars: int = 0) -> Labels:
    """(2, 5): so many pixels car, the rest road."""
    labels = np.zeros((2, 5), np.uint8)
    labels.flat[:cars] = 1
    return labels


def test_agreement_is_over_all_pixels_of_all_frames() -> None:
    parity = compare(answers(road(), road(4)), answers(road(1), road(2)), frames(2))
    assert parity == Parity(0.85, None, 2)
    assert parity.to_dict() == {"pixel_agreement": 0.85, "miou_difference": None, "frames": 2}


def test_the_miou_difference_is_negative_where_some_is_lost() -> None:
    parity = compare(answers(road(4)), answers(road(2)), frames(1), [road(4)])
    # road: 6 of 8, car: 2 of 4; the reference has all right.
    assert parity.miou_difference == pytest.approx((6 / 8 + 2 / 4) / 2 - 1)
    better = compare(answers(road(2)), answers(road(4)), frames(1), [road(4)])
    assert better.miou_difference == pytest.approx(1 - (6 / 8 + 2 / 4) / 2)


def test_frames_without_truth_and_ignored_pixels_do_not_count_for_the_miou() -> None:
    truth = road(4)
    truth[truth == 1] = 255
    parity = compare(answers(road(4), road()), answers(road(2), road(9)), frames(2), [truth, None])
    assert parity.miou_difference == pytest.approx(0.0)
    nothing = np.full((2, 5), 255, np.uint8)
    assert compare(answers(road()), answers(road(1)), frames(1), [nothing]).miou_difference is None


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="no frames to compare on"):
        compare(answers(), answers(), [])
    with pytest.raises(ValueError, match=r"expected labels \(2, 5\), got \(1, 1\)"):
        compare(answers(road()), answers(np.zeros((1, 1), np.uint8)), frames(1))
    other = ClassTable(("road", "sky"), CLASSES.palette_rgb)
    with pytest.raises(ValueError, match="classes"):
        compare(answers(road()), answers(road(), classes=other), frames(1))
    with pytest.raises(ValueError, match="1 label maps for 2 frames or more"):
        compare(answers(road(), road()), answers(road(), road()), frames(2), [road()])


@pytest.mark.parametrize("precision", LEAST_AGREEMENT)
def test_the_gate_closes_at_its_threshold(precision: str) -> None:
    least = LEAST_AGREEMENT[precision]
    gate(precision, Parity(least, None, 3))
    with pytest.raises(EngineError, match=rf"{precision} gives .* of 3 frames .*{100 * least:g} %"):
        gate(precision, Parity(least - 1e-5, None, 3))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_may_lose_half_a_point(precision: str) -> None:
    gate(precision, Parity(1.0, -0.005, 7))
    gate(precision, Parity(1.0, 0.2, 7))
    with pytest.raises(EngineError, match=r"loses 0\.60 mIoU points on 7 frames, 0\.5 may"):
        gate(precision, Parity(1.0, -0.006, 7))


def test_lost_is_the_worse_of_the_two_figures() -> None:
    assert lost("int8", Parity(0.99, -0.001, 1)) == pytest.approx(0.5)
    assert lost("int8", Parity(0.998, -0.004, 1)) == pytest.approx(0.8)
    assert lost("fp16", Parity(1.0, -0.4, 1)) == 0.0
    with pytest.raises(ValueError, match="fp12"):
        lost("fp12", Parity(1.0, None, 1))
