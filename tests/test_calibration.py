"""Calibration: ranges of activations, and the frames they are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtseg.calibration import CalibrationFrames, Magnitudes, ranges, read_frames, spread
from rtseg.data import camvid, class_table
from rtseg.errors import ConfigError, DataError, SourceError
from rtseg.frame import ClassTable

CLASSES = ClassTable(camvid.CLASSES, camvid.PALETTE, camvid.IGNORE_INDEX)


def test_the_percentile_is_that_of_the_magnitudes_that_are_not_zero() -> None:
    rng = np.random.default_rng(0)
    found, seen = Magnitudes(), []
    for scale in (0.3, 1.0, 2.5):  # the range grows twice
        values = rng.normal(0, scale, (3, 200, 200)).astype(np.float32)
        values[values < 0] = 0
        found.add(values)
        seen.append(values[values > 0])
    exact = np.concatenate(seen)
    for percent in (60.0, 99.0, 99.9):
        assert found.percentile(percent) == pytest.approx(np.percentile(exact, percent), rel=0.02)
    assert found.percentile(100.0) == found.largest == float(exact.max())


def test_a_large_tensor_is_sampled_but_its_largest_value_is_seen() -> None:
    values = np.linspace(0, 1, 2_000_000, dtype=np.float32).reshape(2, 1000, 1000)
    values[1, 17, 3] = -4.0
    found = Magnitudes()
    found.add(values)
    assert found.largest == 4.0
    assert found.percentile(50.0) == pytest.approx(0.5, rel=0.02)


def test_entropy_clips_rare_values_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 200_000).astype(np.float32)
    even = ranges([[np.linspace(0, 1, 100_000, dtype=np.float32)]], ["x"], method="entropy")
    assert even["x"] == pytest.approx(1.0, abs=0.02)
    values[:3] = 60.0
    clipped = ranges([[values]], ["x"], method="entropy")["x"]
    assert 2.5 < clipped < 15.0


def test_nothing_but_zeros_has_no_range() -> None:
    zeros = np.zeros(10, np.float32)
    for method in ("percentile", "entropy"):
        assert ranges([[zeros]], ["x"], method=method) == {"x": 0.0}


def test_calibrations_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ConfigError, match="NaN or infinite"):
        ranges([[np.array([1.0, np.nan], np.float32)]], ["x"])
    with pytest.raises(ConfigError, match="unknown calibration 'minmax': choose one of percentile"):
        ranges([], [], method="minmax")
    with pytest.raises(ConfigError, match="percentile"):
        ranges([], [], percentile=0.999)


def test_frames_of_a_data_set_come_with_labels_in_the_models_classes(camvid_like: Path) -> None:
    other = ClassTable(CLASSES.names[::-1], CLASSES.palette_rgb)
    frames = read_frames(f"camvid:{camvid_like}", other, count=3)
    assert len(frames) == 3
    known = class_table(f"camvid:{camvid_like}").table_to(other)
    assert all(truth is not None and np.isin(truth, known).all() for truth in frames.labels)
    assert not np.array_equal(known[: len(CLASSES)], np.arange(len(CLASSES)))
    assert len(read_frames(f"camvid:{camvid_like}", other, count=9, split="val")) == 2


def test_frames_of_a_source_and_of_other_classes_have_no_labels(camvid_like: Path) -> None:
    frames = read_frames(str(camvid_like / "train"), CLASSES)
    assert len(frames) == 4
    assert frames.labels == (None,) * 4
    strange = ClassTable(("a", "b"), ((1, 1, 1), (2, 2, 2)))
    assert read_frames(f"camvid:{camvid_like}", strange, count=2).labels == (None, None)


def test_the_drive_has_labels() -> None:
    frames = read_frames("synth:seed=1,size=64x96,frames=4", CLASSES, count=2)
    assert [image.shape for image in frames.images] == [(64, 96, 3)] * 2
    assert all(truth is not None for truth in frames.labels)


def test_an_empty_or_missing_source_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no frames to calibrate on"):
        CalibrationFrames("nothing", (), ())
    with pytest.raises((ConfigError, SourceError)):
        read_frames(str(tmp_path), CLASSES)
    with pytest.raises(DataError):
        read_frames(f"camvid:{tmp_path}", CLASSES)
    with pytest.raises(ConfigError, match="at least 1"):
        read_frames("synth:", CLASSES, count=0)


def test_the_hash_is_of_the_pictures(camvid_like: Path) -> None:
    frames = read_frames(f"camvid:{camvid_like}", CLASSES)
    again = CalibrationFrames("other name", frames.images, (None,) * len(frames))
    assert frames.sha256() == again.sha256()
    assert frames.take(3).sha256() != frames.sha256()


def test_frames_are_spread_evenly() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 8) == [0, 1, 2]
