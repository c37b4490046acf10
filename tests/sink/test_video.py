"""`rtseg.sink.video`: timestamps, colours, odd sizes, killed runs, full disks."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from rtseg.errors import SinkError
from rtseg.frame import ClassTable, Frame, ImageBGR, LabelMap
from rtseg.sink import video

CLASSES = ClassTable(("road",), ((128, 64, 128),))


def picture(index: int, height: int = 64, width: int = 96) -> ImageBGR:
    """Smooth, without symmetry, with a bright square that moves."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([40 + 150 * x / width, 60 + 120 * y / height, 90 + 0 * x], -1)
    left = index * 2 % max(1, width - 8)
    image[:8, left : left + 8] = (30, 60, 220)
    return image.astype(np.uint8)


def put(sink: video.VideoSink, index: int, pts_seconds: float, image: ImageBGR) -> None:
    frame = Frame(image, index, pts_seconds, time.monotonic())
    result = LabelMap(np.zeros(image.shape[:2], np.uint8), CLASSES, pts_seconds)
    sink.write(frame, result, image)


def read(path: Path) -> tuple[list[float], list[ImageBGR]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    pts = [float(f.pts * f.time_base) for f in frames]
    return pts, [np.asarray(f.to_ndarray(format="bgr24"), np.uint8) for f in frames]


def test_timestamps_are_kept(tmp_path: Path) -> None:
    steps = np.random.default_rng(0).uniform(0.005, 0.1, 80)
    for offset in (0.0, 0.0005, 123.456):
        wanted = [offset + float(t) for t in np.cumsum(steps)]
        path = tmp_path / "vfr.mp4"
        sink = video.open(str(path), fps=25.0)
        for index, pts in enumerate(wanted):
            put(sink, index, pts, picture(index))
        sink.close()
        got, _ = read(path)
        assert got == pytest.approx(wanted, abs=0.5 / 90000 + 1e-9)


@pytest.mark.parametrize("fps", [None, 25.0, 30000 / 1001, 0.5, float("nan")])
def test_any_nominal_rate(tmp_path: Path, fps: float | None) -> None:
    path = tmp_path / "rate.mp4"
    sink = video.open(str(path), fps=fps)
    for index in range(10):
        put(sink, index, index / 25, picture(index))
    sink.close()
    assert read(path)[0] == pytest.approx([i / 25 for i in range(10)])


def test_repeated_and_backward_timestamps(tmp_path: Path) -> None:
    path = tmp_path / "stutter.mp4"
    sink = video.open(str(path), fps=25.0)
    for index, pts in enumerate([-1.0, -0.96, -0.96, -0.98, -0.9, 50.0, 0.0, 0.04, 0.08]):
        put(sink, index, pts, picture(index))
    sink.close()
    got, images = read(path)
    assert len(images) == 9
    assert all(np.diff(got) > 0)
    assert got[0] == 0.0
    assert got[4] == pytest.approx(0.1, abs=1e-4)
    assert np.diff(got[-4:]) == pytest.approx(0.04, abs=1e-4)  # the clock was set back: go on


def test_a_clock_set_back_by_less_than_a_second(tmp_path: Path) -> None:
    """As where two short recordings were put together: the pace goes on."""
    path = tmp_path / "joined.mp4"
    sink = video.open(str(path), fps=25.0)
    for index in range(16):
        put(sink, index, (index % 8) / 25, picture(index))
    sink.close()
    assert np.diff(read(path)[0]) == pytest.approx(0.04, abs=1e-4)


def test_a_picture_that_h264_cannot_hold(tmp_path: Path) -> None:
    sink = video.open(str(tmp_path / "wide.mp4"))
    with pytest.raises(SinkError, match=r"up to 16384 pixels a side, not 16386x4: use a smaller"):
        put(sink, 0, 0.0, np.zeros((4, 16386, 3), np.uint8))
    sink.close()
    assert not (tmp_path / "wide.mp4").exists()


@pytest.mark.parametrize("size_hw", [(64, 96), (64, 98), (540, 960)])
def test_colours(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    path = tmp_path / "colour.mp4"
    sink = video.open(str(path), fps=25.0)
    for index in range(5):
        put(sink, index, index / 25, picture(index, *size_hw))
    sink.close()
    for index, image in enumerate(read(path)[1]):
        error = np.abs(image - picture(index, *size_hw).astype(int)).mean()
        assert error < 2.5  # 4:2:0 and CRF 23; a wrong matrix gives 5 and more


@pytest.mark.parametrize("size_hw", [(63, 97), (64, 97), (63, 96), (1, 1), (2, 3), (17, 5)])
def test_odd_sizes_do_not_shift(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    path = tmp_path / "odd.mp4"
    sink = video.open(str(path), fps=25.0)
    for index in range(3):
        put(sink, index, index / 25, picture(index, *size_hw))
    sink.close()
    _, images = read(path)
    assert len(images) == 3
    for index, image in enumerate(images):
        assert image.shape[:2] == (height + height % 2, width + width % 2)
        error = np.abs(image[:height, :width] - picture(index, *size_hw).astype(int)).mean()
        assert error < 8 or min(size_hw) < 6  # there the coding of chroma dominates


def test_another_size_is_fitted(tmp_path: Path) -> None:
    path = tmp_path / "sizes.mp4"
    sink = video.open(str(path), fps=25.0)
    for index, size_hw in enumerate([(64, 96), (128, 192), (64, 32), (10, 96)]):
        put(sink, index, index / 25, np.full((*size_hw, 3), 200, np.uint8))
    sink.close()
    _, images = read(path)
    assert [i.shape for i in images] == [(64, 96, 3)] * 4
    assert images[1].mean() == pytest.approx(200, abs=6)
    assert images[2][:, 48].mean() > 150 > 60 > images[2][:, 10].mean()  # bars left and right


def test_existing_file_is_kept_until_there_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "old.mp4"
    path.write_bytes(b"precious")
    video.open(str(path)).close()
    assert path.read_bytes() == b"precious"
    sink = video.open(str(path))
    put(sink, 0, 0.0, picture(0))
    sink.close()
    assert len(read(path)[1]) == 1


def test_no_frames_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "none.mp4"
    video.open(str(path)).close()
    assert not path.exists()


def test_unwritable_places(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match=r"gone does not exist: create it first"):
        video.open(str(tmp_path / "gone" / "x.mp4"))
    with pytest.raises(SinkError, match=r"only MP4 is written"):
        video.open(str(tmp_path / "x.avi"))
    (tmp_path / "dir.mp4").mkdir()
    with pytest.raises(SinkError, match=r"dir.mp4: cannot be written \(Is a directory\)"):
        video.open(str(tmp_path / "dir.mp4"))


def test_killed_run_leaves_a_video(tmp_path: Path) -> None:
    path = tmp_path / "killed.mp4"
    script = textwrap.dedent("""
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from test_video import picture, put
        from rtseg.sink import video
        sink = video.open(sys.argv[2], fps=50.0)
        for index in range(10_000):
            put(sink, index, index / 50, picture(index))
            print(index, flush=True)
            time.sleep(0.002)
    """)
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        written = 0
        for line in process.stdout:
            written = int(line)
            if written == 222:
                process.send_signal(signal.SIGKILL)
    pts, images = read(path)
    assert pts == pytest.approx([i / 50 for i in range(len(pts))])
    assert len(pts) / 50 > written / 50 - 1.0, "more than the last second is lost"
    error = np.abs(images[-1] - picture(len(images) - 1).astype(int)).mean()
    assert error < 2.5


def noise(index: int) -> ImageBGR:
    return np.random.default_rng(index).integers(0, 256, (64, 96, 3), np.uint8)


def fill(sink: video.VideoSink) -> int:
    """Writes until the sink is full; how many pictures it took."""
    index = 0
    try:
        for index in range(3000):
            put(sink, index, index / 25, noise(index))
        problem = "the disk never filled up"
    except SinkError as error:
        problem = str(error)
    assert "cannot be written" in problem
    assert "\n" not in problem
    with pytest.raises(SinkError):
        put(sink, index + 1, (index + 1) / 25, noise(0))
    sink.close()
    return index


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs to be root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(tiny_disk: Path) -> None:
    path = tiny_disk / "full.mp4"
    taken = fill(video.open(str(path), fps=25.0))
    pts, _ = read(path)
    assert len(pts) > 5
    assert taken - len(pts) <= 25, "more than the last second is lost"


def test_file_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "limited.mp4"
    sink = video.open(str(path), fps=25.0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limit[1]))
    try:
        taken = fill(sink)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    pts, _ = read(path)
    assert taken - len(pts) <= 25
    data = path.read_bytes()
    position = 0
    while position < len(data):  # whole boxes only
        position += int.from_bytes(data[position : position + 4], "big")
    assert position == len(data)


def test_little_is_buffered(tmp_path: Path) -> None:
    path = tmp_path / "prompt.mp4"
    sink = video.open(str(path), fps=25.0)
    for index in range(100):
        put(sink, index, index / 25, picture(index))
        if index % 10 == 9 and index > 20:
            assert index - len(read(path)[0]) <= 20
    sink.close()
