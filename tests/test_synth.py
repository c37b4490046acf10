"""The procedural drive: determinism, labels, plausibility, and its source."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from rtseg.data import synth
from rtseg.data.synth import Drive, parse
from rtseg.errors import ConfigError, SourceError
from rtseg.source import open_source

SMALL = (90, 120)
SKY, ROAD = 0, 3


def _digest(drive: Drive, index: int) -> str:
    image, labels = drive.frame(index)
    return hashlib.sha256(image.tobytes() + labels.tobytes()).hexdigest()


def test_same_seed_same_bytes_in_any_order() -> None:
    indices = [0, 40, 7, 3000, 1]
    forward, backward = Drive(5, SMALL), Drive(5, SMALL)
    first = {i: _digest(forward, i) for i in indices}
    second = {i: _digest(backward, i) for i in reversed(indices)}
    assert first == second
    assert len(set(first.values())) == len(indices)


def test_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from rtseg.data.synth import Drive; "
        "i, l = Drive(11, (64, 96), weather='rain').frame(9); "
        "print(hashlib.sha256(i.tobytes() + l.tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == _digest(Drive(11, (64, 96), weather="rain"), 9)


def test_threads_share_a_drive() -> None:
    drive = Drive(6, SMALL)
    indices = list(range(0, 2000, 125))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: _digest(drive, i), indices))
    assert together == [_digest(Drive(6, SMALL), i) for i in indices]


def test_seeds_and_weathers_differ() -> None:
    digests = {_digest(Drive(seed, SMALL), 0) for seed in range(6)}
    digests |= {_digest(Drive(0, SMALL, weather=w), 0) for w in ("fog", "rain", "dusk")}
    assert len(digests) == 9


@pytest.mark.parametrize(
    "size", [(64, 96), (90, 120), (360, 480), (540, 960), (720, 1280), (97, 33)]
)
def test_sizes(size: tuple[int, int]) -> None:
    image, labels = Drive(1, size).frame(30)
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert labels.shape == size
    assert labels.dtype == np.uint8


def test_every_class_occurs_and_no_other_value() -> None:
    counts = np.zeros(256, np.int64)
    for seed in range(14):
        drive = Drive(seed, (120, 160))
        for index in (0, 240, 480):
            counts += np.bincount(drive.frame(index)[1].ravel(), minlength=256)
    assert not counts[len(synth.CLASSES) + 1 :].any()
    missing = [n for n, c in zip(synth.CLASSES, counts, strict=False) if c == 0]
    assert missing == []


def test_sky_is_above_road_and_shares_are_a_streets() -> None:
    shares = np.zeros(12)
    for seed in range(12):
        labels = Drive(seed, SMALL).frame(100)[1]
        shares += np.bincount(labels.ravel(), minlength=12) / labels.size / 12
        rows = np.arange(labels.shape[0])[:, None] * np.ones_like(labels)
        assert (labels == ROAD).any()
        if (labels == SKY).any():
            assert rows[labels == SKY].mean() < rows[labels == ROAD].mean()
    assert 0.15 < shares[ROAD] < 0.5
    assert 0.05 < shares[SKY] < 0.4


@pytest.mark.parametrize("seed", range(4))
def test_consecutive_frames_glide(seed: int) -> None:
    drive = Drive(seed, (120, 160), fps=30)
    for index in (0, 200, 400):
        before, after = drive.frame(index)[1], drive.frame(index + 1)[1]
        assert (before == after).mean() > 0.9


@pytest.mark.parametrize("weather", ["clear", "overcast", "rain", "dusk", "fog"])
def test_weathers_render_something_to_see(weather: str) -> None:
    image, _ = Drive(2, SMALL, weather=weather).frame(0)
    assert image.std() > 12


@pytest.mark.parametrize("seed", [3, 6, 13])
def test_what_is_left_out_could_not_be_seen(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Drive(seed)
    image, labels = drive.frame(60)
    monkeypatch.setattr(cv2, "hasNonZero", lambda window: True)
    whole, whole_labels = drive.frame(60)
    assert (labels == whole_labels).mean() > 0.9999
    # Seams between neighbours let a little of what is behind through.
    assert (np.abs(image.astype(int) - whole) > 3).mean() < 0.001


def test_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="index"):
        Drive(0, SMALL).frame(-1)


def test_parse() -> None:
    config = parse("seed=3, size=90x120,fps=29.97,weather=rain,frames=300")
    assert config == synth.DriveConfig(3, (90, 120), 29.97, "rain", 300)
    assert parse("") == synth.DriveConfig()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sed=3", "unknown key 'sed': use seed, size, fps, weather, frames"),
        ("seed", "expected seed=VALUE"),
        ("seed=x", "seed: got 'x'"),
        ("seed=1,seed=2", "seed is given twice"),
        ("size=360", "size: got '360'"),
        ("size=8x8", "expected HxW of 32 to 8192"),
        ("fps=0", "fps: expected a number above 0"),
        ("fps=nan", "fps: expected a number above 0"),
        ("weather=snow", "choose one of clear, overcast"),
        ("frames=0", "frames: expected at least 1"),
    ],
)
def test_parse_names_the_fix(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(spec)
    assert message in str(caught.value)
    with pytest.raises(SourceError):
        open_source(f"synth:{spec}")


def test_source() -> None:
    source = open_source("synth:seed=2,size=64x96,fps=29.97,frames=4")
    frames = list(source)
    assert [f.index for f in frames] == [0, 1, 2, 3]
    assert [f.pts_seconds for f in frames] == [i / 29.97 for i in range(4)]
    assert all(f.labels is not None and f.size_hw == (64, 96) for f in frames)
    assert source.info.frame_count == 4
    assert not source.info.live
    assert source.info.classes is not None
    assert source.info.classes.names == synth.CLASSES


def test_source_is_endless_until_closed() -> None:
    source = open_source("synth:size=64x96")
    assert source.info.frame_count is None
    seen = 0
    for _ in source:
        seen += 1
        if seen == 3:
            source.close()
    assert seen == 3


def test_samples_of_splits_share_nothing() -> None:
    train, val = (synth.samples("size=64x96,frames=6", split) for split in ("train", "val"))
    assert len(train) == len(val) == 6
    assert not {s.config.seed for s in train} & {s.config.seed for s in val}
    assert len({s.name for s in train + val}) == 12
    image, labels = train[5].load()
    assert (image.shape, labels.shape) == ((64, 96, 3), (64, 96))
