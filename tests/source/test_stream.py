"""`rtseg.source.stream` on files: timestamps, colours, orientation, what is broken or odd."""

from __future__ import annotations

import itertools
import os
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from rtseg.errors import SourceError
from rtseg.frame import Matrix
from rtseg.native import reference
from rtseg.planes import planes_of
from rtseg.source import _demux, open_source, stream

DRIVE = Path(__file__).parents[2] / "../shared/data/video/solidWhiteRight.mp4"
MATRIX_BT709, MATRIX_BT601 = 1, 6
RANGE_LIMITED, RANGE_FULL = 1, 2


def picture(index: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 BGR: smooth, different in every frame, without symmetry."""
    y, x = np.mgrid[:height, :width]
    blue = 40 + 150 * x / width
    green = 60 + 120 * y / height
    red = 80 + 5.0 * (index % 20) + 40 * (x > width // 2) * (y > height // 2)
    return np.stack([blue, green, red], -1).astype(np.uint8)


def write_video(
    path: Path,
    *,
    frames: int = 20,
    size_hw: tuple[int, int] = (64, 96),
    ticks: list[int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    matrix: int = MATRIX_BT601,
    color_range: int = RANGE_LIMITED,
    rotation: int | None = None,
    hflip: bool = False,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """A small video; `ticks` are timestamps in 1/90000 s, every 40 ms by default."""
    height, width = size_hw
    rate = 25 if path.suffix == ".avi" else 90000  # AVI counts every tick as a frame
    with av.open(str(path), "w", options=muxer or {}) as container:
        output = container.add_stream(codec, rate=25, options=options or {})
        output.width, output.height, output.pix_fmt = width, height, pix_fmt
        output.time_base = output.codec_context.time_base = Fraction(1, rate)
        output.codec_context.colorspace = matrix
        output.codec_context.color_range = color_range
        if rotation is not None or hflip:
            output.set_display_rotation(rotation or 0, hflip=hflip)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, height, width), format="bgr24")
            frame = frame.reformat(
                format=pix_fmt, dst_colorspace=matrix, dst_color_range=color_range
            )
            frame.pts = ticks[index] if ticks else index * rate // 25
            frame.time_base = Fraction(1, rate)
            container.mux(output.encode(frame))
        container.mux(output.encode(None))
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 frames, key frames every 10, the index (moov) in front."""
    path = tmp_path_factory.mktemp("video") / "plain.mp4"
    options = {"g": "10", "bf": "2", "crf": "18"}
    return write_video(path, frames=100, options=options, muxer={"movflags": "faststart"})


def test_frames_and_timestamps_of_a_plain_file(plain: Path) -> None:
    source = open_source(str(plain))
    assert source.info.name == "plain.mp4"
    assert not source.info.live
    assert source.info.size_hw == (64, 96)
    assert source.info.fps == 25.0
    assert source.info.frame_count == 100
    before = time.monotonic()
    frames = list(source)
    assert [f.index for f in frames] == list(range(100))
    assert [f.pts_seconds for f in frames] == [i / 25 for i in range(100)]
    arrived = [f.captured_at for f in frames[1:]]
    assert arrived == sorted(arrived)
    assert before <= arrived[0] <= arrived[-1] <= time.monotonic()
    assert source.warnings == []


def test_frames_own_their_pixels(plain: Path) -> None:
    frames = list(open_source(str(plain)))
    for frame in frames:
        expected = picture(frame.index, 64, 96).astype(int)
        assert np.abs(frame.image - expected).mean() < 4, frame  # 4:2:0 and CRF 18


def test_real_drive() -> None:
    if not DRIVE.exists():
        pytest.skip("the drive is not in ../shared/data/video")
    source = open_source(str(DRIVE))
    assert source.info.size_hw == (540, 960)
    pts = [f.pts_seconds for f in source]
    assert pts == [i / 25 for i in range(221)]
    assert source.warnings == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_rate_and_start_offset_are_kept(tmp_path: Path, suffix: str) -> None:
    steps = np.random.default_rng(0).integers(900, 9000, 30)
    ticks = [180_000 + int(t) // 90 * 90 for t in np.cumsum(steps)]  # MKV counts milliseconds
    path = write_video(tmp_path / f"vfr{suffix}", frames=30, ticks=ticks)
    source = open_source(str(path))
    pts = [f.pts_seconds for f in source]
    assert pts == pytest.approx([t / 90000 for t in ticks], abs=1e-9)
    assert source.warnings == []


def test_raw_h264_without_timestamps_increases(tmp_path: Path) -> None:
    source = open_source(str(write_video(tmp_path / "raw.h264", frames=10)))
    pts = [f.pts_seconds for f in source]
    assert len(pts) == 10
    assert all(b > a for a, b in itertools.pairwise(pts))


# Mean error of 255 after lossy 4:2:0 coding of smooth pictures; a wrong matrix or range gives
# 5 and more (checked below).
COLOUR_TOLERANCE = 2.5


@pytest.mark.parametrize("matrix", [MATRIX_BT601, MATRIX_BT709])
@pytest.mark.parametrize("color_range", [RANGE_LIMITED, RANGE_FULL])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv444p"])
def test_colours(tmp_path: Path, matrix: int, color_range: int, pix_fmt: str) -> None:
    path = write_video(
        tmp_path / "colour.mp4",
        frames=3,
        pix_fmt=pix_fmt,
        matrix=matrix,
        color_range=color_range,
        options={"crf": "8"},
    )
    for frame in open_source(str(path)):
        error = np.abs(frame.image - picture(frame.index, 64, 96).astype(int)).mean()
        assert error < COLOUR_TOLERANCE


@pytest.mark.parametrize("matrix", [MATRIX_BT601, MATRIX_BT709])
@pytest.mark.parametrize("color_range", [RANGE_LIMITED, RANGE_FULL])
def test_colours_are_those_of_the_kernels(tmp_path: Path, matrix: int, color_range: int) -> None:
    """To the bit, and so the same as from a GPU's decoder; swscale rounds more coarsely."""
    path = write_video(tmp_path / "c.mp4", frames=3, matrix=matrix, color_range=color_range)
    standard: Matrix = "bt709" if matrix == MATRIX_BT709 else "bt601"
    with av.open(str(path)) as container:
        pictures = list(container.decode(video=0))
    for frame, picture in zip(open_source(str(path)), pictures, strict=True):
        planes = planes_of(picture)
        expected = reference.yuv420_to_bgr(planes, color_range == RANGE_FULL, standard)
        np.testing.assert_array_equal(frame.image, expected)
        swscale = picture.to_ndarray(format="bgr24").astype(int)
        assert np.abs(frame.image - swscale).max() <= 3


@pytest.mark.parametrize("size_hw", [(63, 97), (64, 97), (63, 96), (1, 1), (2, 3)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_odd_sizes(tmp_path: Path, size_hw: tuple[int, int], pix_fmt: str) -> None:
    path = write_video(
        tmp_path / "odd.mkv", frames=3, size_hw=size_hw, codec="ffv1", pix_fmt=pix_fmt
    )
    source = open_source(str(path))
    assert source.info.size_hw == size_hw
    frames = list(source)
    assert len(frames) == 3
    for frame in frames:
        assert frame.size_hw == size_hw
        error = np.abs(frame.image - picture(frame.index, *size_hw).astype(int)).mean()
        assert error < 6 or min(size_hw) < 3  # there one chroma sample covers the whole gradient


@pytest.mark.parametrize("rotation", [None, 90, 180, -90])
@pytest.mark.parametrize("hflip", [False, True])
def test_orientation(tmp_path: Path, rotation: int | None, hflip: bool) -> None:
    path = write_video(tmp_path / "turned.mp4", frames=3, rotation=rotation, hflip=hflip)
    source = open_source(str(path))
    stored = picture(0, 64, 96).astype(int)
    # FFmpeg turns by the angle counter-clockwise, then mirrors.
    expected = np.rot90(stored, (rotation or 0) // 90)
    expected = expected[:, ::-1] if hflip else expected
    image = next(iter(source)).image
    assert source.info.size_hw == image.shape[:2] == expected.shape[:2]
    assert np.abs(image - expected).mean() < 4
    source.close()


def test_cut_off_file_gives_what_is_there_and_says_what_is_missing(
    plain: Path, tmp_path: Path
) -> None:
    data = plain.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) // 2])
    source = open_source(str(cut))
    frames = list(source)
    assert 20 < len(frames) < 80
    assert len(source.warnings) >= 1
    assert "of 100 frames are missing" in source.warnings[0]
    assert source.warnings[0].startswith("cut.mp4: ")


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".avi"])
def test_cut_off_in_other_containers(tmp_path: Path, suffix: str) -> None:
    whole = write_video(tmp_path / f"whole{suffix}", frames=150, options={"g": "10"})
    source = open_source(str(whole))
    frames = list(source)
    assert len(frames) == 150
    assert source.warnings == []
    gaps = np.diff([f.pts_seconds for f in frames][3:])  # AVI: FFmpeg guesses, after some frames
    assert gaps == pytest.approx(0.04, abs=1e-3)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    source = open_source(str(cut))
    assert 60 < len(list(source)) < 150
    if suffix != ".ts":  # a transport stream does not announce its length
        assert "missing" in source.warnings[0]


def test_damaged_packets_are_skipped(plain: Path, tmp_path: Path) -> None:
    data = bytearray(plain.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 10] = bytes(len(data) // 10)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    source = open_source(str(path))
    frames = list(source)
    assert 70 < len(frames) <= 100
    assert frames[-1].pts_seconds == 99 / 25
    assert source.warnings


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    path = write_video(tmp_path / "title.mp4", frames=3)
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"\xe9t\xe9."))
    assert len(list(open_source(str(path)))) == 3


@pytest.mark.parametrize("seed", range(12))
def test_any_damage_ends_in_pictures_or_one_line(plain: Path, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(plain.read_bytes())
    for position in rng.integers(0, len(data), seed):
        data[position : position + 8] = rng.bytes(8)
    path = tmp_path / "fuzzed.mp4"
    path.write_bytes(data[: rng.integers(1, len(data))] if seed % 2 else data)
    message = ""
    try:
        source = open_source(str(path))
        assert len(list(source)) == 100 or source.warnings
    except SourceError as error:
        message = str(error)
    assert not message or ("fuzzed.mp4: " in message and "\n" not in message)


def test_file_without_its_index(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", frames=30)
    cut = tmp_path / "noindex.mp4"
    cut.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(SourceError, match=r"noindex.mp4: this MP4 has no readable index"):
        open_source(str(cut))


def test_video_without_frames(tmp_path: Path) -> None:
    for name, muxer in (("a.mp4", {}), ("b.mp4", {"movflags": "empty_moov"}), ("c.mkv", {})):
        path = write_video(tmp_path / name, frames=0, muxer=muxer)
        with pytest.raises(SourceError, match=name) as caught:
            open_source(str(path))
        assert "\n" not in str(caught.value)


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        output = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(output.encode(sound))
        container.mux(output.encode(None))
    with pytest.raises(SourceError, match=r"no video stream .*only audio"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.mp4", b"these are notes, not a video\n" * 50, "not a video"),
        ("notes.txt", b"these are notes, not a video\n" * 50, "not a video"),
        ("noise.mkv", bytes(np.random.default_rng(1).integers(0, 256, 9000, np.uint8)), "not a"),
        ("empty.mp4", b"", "the file is empty"),
    ],
)
def test_files_that_are_no_video(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(path))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["nosuch.mp4", "not/there/x.mp4", "not/there", "stream:gone.mkv"])
def test_missing_files(uri: str) -> None:
    with pytest.raises(SourceError, match=f"^{uri.removeprefix('stream:')}: no such file"):
        open_source(uri)


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="directory"):
        open_source(f"stream:{tmp_path}")


def test_bare_words_are_left_to_others() -> None:
    assert not stream.accepts("foo")
    assert stream.accepts("rtsp://camera/1")
    assert stream.accepts("foo.mp4")


def test_close_ends_the_iteration(plain: Path) -> None:
    source = open_source(str(plain))
    taken = []
    for frame in source:
        taken.append(frame)
        if len(taken) == 5:
            source.close()
            source.close()
    assert len(taken) == 5
    assert source.warnings == []


def test_close_from_another_thread(plain: Path) -> None:
    for delay in (0.0, 0.002, 0.01):
        source = open_source(str(plain))
        closer = threading.Timer(delay, source.close)
        closer.start()
        assert len(list(source)) <= 100
        closer.join(timeout=5)


def test_a_picture_arrives_with_its_own_packet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With B-frames it is shown after packets that came later."""
    options = {"bf": "3", "b-adapt": "0", "g": "30"}
    path = write_video(tmp_path / "b.mp4", frames=30, options=options)
    with av.open(str(path)) as container:
        order = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert order != sorted(order)
    ticks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    source = _demux.Input(str(path), "b.mp4")
    arrivals: dict[int | None, float] = {}
    while (pictures := source.step()) is not None:
        arrivals |= {picture.pts: source.arrival_of(picture) for picture in pictures}
    assert sorted(arrivals, key=lambda pts: arrivals[pts]) == order
    assert len(set(arrivals.values())) == 30


def test_a_name_that_looks_like_a_protocol(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("2026-11-29T12:00:00.mp4").write_bytes(plain.read_bytes())
    for uri in ("2026-11-29T12:00:00.mp4", "file:2026-11-29T12:00:00.mp4"):
        assert len(list(open_source(uri))) == 100


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_a_pipe(tmp_path: Path, suffix: str) -> None:
    """What it gave once it does not give again: nobody may look into it beforehand."""
    content = write_video(tmp_path / f"video{suffix}", frames=30).read_bytes()
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,), daemon=True)
    writer.start()
    assert len(list(open_source(str(pipe)))) == 30
    writer.join(timeout=5)


def test_a_name_that_is_too_long() -> None:
    for uri in ("x" * 300 + ".mp4", "x" * 300 + ".png", "x" * 300 + "/"):
        with pytest.raises(SourceError, match=r"no such file|File name too long"):
            open_source(uri)
