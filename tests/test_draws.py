"""The stream of training crops: the same by number, sought by class, pasted, skipping bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pytest

from rtseg.data import DataSet
from rtseg.data.draws import Batches, Draw, Draws
from rtseg.data.transforms import Augmentation, augment, paste
from rtseg.errors import DataError
from rtseg.frame import ClassTable, ImageBGR, Labels

TABLE = ClassTable(("road", "pole", "sky"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
PLAIN = Augmentation((40, 60), (16, 24), scale=(1.0, 1.0), flip=0, colour=0, blur=0, noise=0)


@dataclass
class Still:
    """A sample in memory; `broken` ones cannot be read."""

    name: str
    labels: Labels
    broken: bool = False
    loads: list[str] = field(default_factory=list)

    def load(self) -> tuple[ImageBGR, Labels]:
        self.loads.append(self.name)
        if self.broken:
            raise DataError(f"{self.name}: not a readable image")
        image = np.repeat(self.labels[:, :, None], 3, axis=2) * np.uint8(50)
        return image, self.labels


def stills(count: int = 4, **broken: bool) -> DataSet:
    """Road everywhere; in `still1` a block of pole, 8x8 of 40x60, a thirtieth of the picture."""
    samples = []
    for i in range(count):
        labels = np.zeros((40, 60), np.uint8)
        if i == 1:
            labels[4:12, 40:48] = 1
        samples.append(Still(f"still{i}", labels, broken.get(f"still{i}", False)))
    return DataSet("stills", "train", TABLE, samples)


def draws(data: Sequence[DataSet] | None = None, **options: Any) -> Draws:
    return Draws(data or [stills()], (), PLAIN, seed=3, **options)


def same(a: Draw, b: Draw) -> bool:
    return a.name == b.name and bool(
        np.array_equal(a.image, b.image) and np.array_equal(a.labels, b.labels)
    )


def test_a_crop_depends_on_its_number_alone() -> None:
    one, other = draws(class_uniform=0.5, paste=0.5), draws(class_uniform=0.5, paste=0.5)
    forward = [one.draw(i) for i in range(12)]
    backward = [other.draw(i) for i in reversed(range(12))]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert len({d.name for d in forward}) > 1


def test_processes_share_the_stream_without_overlap() -> None:
    alone = Batches(draws(), 2, 5, 4)
    together = [Batches(draws(), 2, 5, 2, rank, 2) for rank in (0, 1)]
    assert len(alone) == 12
    assert [len(part) for part in together] == [6, 6]
    for step in range(3):
        whole = [alone[4 * step + i] for i in range(4)]
        parts = [part[2 * step + i] for part in together for i in range(2)]
        for a, b in zip(whole, parts, strict=True):
            assert isinstance(a, Draw)
            assert isinstance(b, Draw)
            assert same(a, b)


def test_class_uniform_crops_hold_their_class() -> None:
    """One still of four holds the pole: every second sought crop must show it."""
    sought = [draws(class_uniform=1.0).draw(i) for i in range(40)]
    plain = [draws().draw(i) for i in range(40)]
    shown = sum(1 in d.labels for d in sought)
    assert 12 <= shown <= 28
    assert shown > 2 * sum(1 in d.labels for d in plain)


def test_rare_classes_are_pasted() -> None:
    """The pole has 64 of 9,600 pixels: rare. The road is not, and the sky never occurs."""
    stream = draws(paste=1.0)
    labels = [stream.draw(i).labels for i in range(30)]
    assert any(1 in crop for crop in labels)
    assert {int(v) for crop in labels for v in np.unique(crop)} <= {0, 1, TABLE.ignore_index}
    without = sum(1 in draws().draw(i).labels for i in range(30))
    assert sum(1 in crop for crop in labels) > without


def test_paste_moves_one_class_in_place() -> None:
    image, labels = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    donor = np.full((4, 6, 3), 9, np.uint8)
    donor_labels = np.array([[1, 2, 2, 0, 0, 0]] * 4, np.uint8)
    pasted, pasted_labels = paste(image, labels, donor, donor_labels, 2)
    assert pasted_labels.tolist() == [[0, 2, 2, 0, 0, 0]] * 4
    assert pasted[:, :, 0].tolist() == [[0, 9, 9, 0, 0, 0]] * 4
    assert not image.any()
    assert not labels.any()
    bigger = paste(
        image, labels, donor.repeat(2, 0).repeat(2, 1), donor_labels.repeat(2, 0).repeat(2, 1), 2
    )
    assert np.array_equal(bigger[1], pasted_labels)


@pytest.mark.parametrize("focus", [(0.0, 0.0), (0.5, 0.5), (0.99, 0.99), (0.2, 0.7)])
def test_a_crop_holds_its_focus(focus: tuple[float, float]) -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[int(focus[0] * 40), int(focus[1] * 60)] = 1
    grown = np.asarray(cv2.dilate(labels, np.ones((3, 3), np.uint8)), np.uint8)
    image = np.zeros((40, 60, 3), np.uint8)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        # The aspect jitters, so a side may shrink: a single pixel could fall between two.
        _, crop = augment(image, grown, PLAIN, 255, rng, focus=focus)
        assert 1 in crop


def test_a_bad_sample_ends_the_stream_or_is_skipped() -> None:
    data = [stills(still2=True)]
    strict = draws(data)
    outcomes = [Batches(strict, 0, 20, 1)[i] for i in range(20)]
    errors = [item for item in outcomes if isinstance(item, DataError)]
    assert errors
    assert all("still2" in str(error) for error in errors)
    lenient = draws(data, skip_bad=True)
    crops = [lenient.draw(i) for i in range(20)]
    assert all(crop.name != "still2" for crop in crops)
    assert sum(len(crop.bad) for crop in crops) >= len(errors)
    assert draws(data, skip_bad=True, class_uniform=0.5).draw(0).name != "still2"
    with pytest.raises(DataError, match="still2"):
        draws(data, class_uniform=0.5)


def test_nothing_but_bad_samples_is_an_error_all_the_same() -> None:
    data = [stills(2, still0=True, still1=True)]
    with pytest.raises(DataError, match="20 samples in a row cannot be read"):
        draws(data, skip_bad=True).draw(0)


def test_data_sets_are_drawn_by_share() -> None:
    first, second = stills(), stills()
    stream = Draws([first, second], (1.0, 0.0), PLAIN, seed=0)
    for i in range(10):
        stream.draw(i)
    assert not any(sample.loads for sample in second.samples)  # type: ignore[attr-defined]
