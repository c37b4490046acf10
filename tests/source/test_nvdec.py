"""`rtseg.source.stream` with the GPU's decoder, on a driver and a decoder that only pretend."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from _fake_nvdec import PyNvVideoCodec, install, nv12_of
from test_stream import write_video
from test_stream_live import RtspServer

from rtseg import doctor
from rtseg.frame import Frame, GpuFrame
from rtseg.source import GpuSource, _nvdec, open_source, stream

B_FRAMES = {"g": "12", "bf": "3", "b-pyramid": "normal", "crf": "20"}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[PyNvVideoCodec]:
    fake = install(monkeypatch)
    yield fake
    gc.collect()
    assert not any(fake.driver.pushed.values()), "a thread kept the context"
    assert not fake.driver.memory, "device memory was not freed"
    assert fake.driver.retained == 0, "the primary context was not let go"


def read(path: Path | str, *, on_gpu: bool = True) -> tuple[list[Frame], list[str]]:
    """All frames, held to the end, and the warnings."""
    source = open_source(str(path))
    if on_gpu:
        assert isinstance(source, GpuSource)
        source.decode_on_gpu()
    return list(source), source.warnings


def assert_alike(frames: list[Frame], others: list[Frame]) -> None:
    """Same numbers, same clock, same pixels."""
    assert [f.index for f in frames] == [f.index for f in others]
    assert [f.pts_seconds for f in frames] == [f.pts_seconds for f in others]
    for frame, other in zip(frames, others, strict=True):
        assert frame.size_hw == other.size_hw
        np.testing.assert_array_equal(frame.image, other.image)


def on_gpu(frames: list[Frame]) -> list[bool]:
    return [isinstance(frame, GpuFrame) for frame in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("padding", [0, 32])
def test_frames_are_those_of_the_cpu(
    library: PyNvVideoCodec, tmp_path: Path, suffix: str, codec: str, padding: int
) -> None:
    """B-frames, a variable rate that does not start at 0, several groups of pictures."""
    steps = np.random.default_rng(0).integers(900, 9000, 40)
    ticks = [180_000 + int(t) // 90 * 90 for t in np.cumsum(steps)]
    options = B_FRAMES if codec == "libx264" else {"x265-params": "keyint=12:log-level=none"}
    path = tmp_path / f"vfr{suffix}"
    write_video(path, frames=40, ticks=ticks, codec=codec, options=options)
    library.padding = padding
    expected, warnings = read(path, on_gpu=False)
    frames, own_warnings = read(path)
    assert on_gpu(frames) == [True] * 40
    assert own_warnings == warnings
    assert_alike(frames, expected)
    facts = library.decoders[0]
    assert facts["latency"] == "NATIVE"
    assert facts["codec"] == {"libx264": "H264", "libx265": "HEVC"}[codec]
    assert [bsl > 0 for _, _, bsl in facts["packets"]] == [True] * 40 + [False]


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libsvtav1", "libaom-av1"])
def test_vp9_and_av1(library: PyNvVideoCodec, tmp_path: Path, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec}")
    path = write_video(tmp_path / "video.mkv", frames=8, codec=codec, size_hw=(64, 96))
    expected, _ = read(path, on_gpu=False)
    frames, _ = read(path)
    assert on_gpu(frames) == [True] * len(expected)
    assert_alike(frames, expected)


@pytest.mark.parametrize("matrix", [1, 2, 6])
@pytest.mark.parametrize("color_range", [1, 2])
def test_colours_are_those_of_the_stream(
    library: PyNvVideoCodec, tmp_path: Path, matrix: int, color_range: int
) -> None:
    path = write_video(tmp_path / "c.mp4", frames=3, matrix=matrix, color_range=color_range)
    frames, _ = read(path)
    assert_alike(frames, read(path, on_gpu=False)[0])
    frame = frames[0]
    assert isinstance(frame, GpuFrame)
    assert frame.surface.full_range == (color_range == 2)
    assert frame.surface.matrix == ("bt709" if matrix == 1 else "bt601")


def test_the_picture_lies_where_it_says(library: PyNvVideoCodec, tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", frames=5)
    with av.open(str(path)) as container:
        expected = [nv12_of(picture) for picture in container.decode(video=0)]
    library.padding = 8
    for frame, planes in zip(read(path)[0], expected, strict=True):
        assert isinstance(frame, GpuFrame)
        surface = frame.surface
        assert (surface.size_hw, surface.pitch_bytes) == ((64, 96), 104)
        luma = library.driver.read(surface.y, 64 * 104).reshape(64, 104)
        chroma = library.driver.read(surface.uv, 32 * 104).reshape(32, 104)
        np.testing.assert_array_equal(luma[:, :96], planes[:64])
        np.testing.assert_array_equal(chroma[:, :96], planes[64:])


def test_memory_is_used_again_but_not_while_a_frame_is_held(
    library: PyNvVideoCodec, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "video.mp4", frames=60, options=B_FRAMES)
    expected = read(path, on_gpu=False)[0]
    source = open_source(str(path))
    assert isinstance(source, GpuSource)
    source.decode_on_gpu()
    held: list[Frame] = []
    most = 0
    for frame in source:
        held = [*held[-3:], frame]
        most = max(most, len(library.driver.memory))
        for one in held:
            copy = GpuFrame(one.surface, 0, 0.0, 0.0) if isinstance(one, GpuFrame) else one
            np.testing.assert_array_equal(copy.image, expected[one.index].image)
    assert most <= 12  # those held, those on the way, and the decoder's own
    assert frame.image is frame.image  # downloaded once
    assert len(library.driver.memory) > 0  # what is held outlives the source


def test_discarded_pictures_stay_out(library: PyNvVideoCodec, tmp_path: Path) -> None:
    """An edit list leaves out the first pictures, which others are made from."""
    whole = write_video(tmp_path / "whole.mp4", frames=30, options={"g": "30", "bf": "0"})
    path = tmp_path / "edited.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        target.container_options["avoid_negative_ts"] = "disabled"
        track = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts -= 5 * 3600
                packet.dts -= 5 * 3600
                packet.stream = track
                target.mux(packet)
    with av.open(str(path)) as check:
        assert any(packet.is_discard for packet in check.demux(video=0)), "the file is no test"
    expected, _ = read(path, on_gpu=False)
    frames, _ = read(path)
    assert len(expected) < 30
    assert on_gpu(frames) == [True] * len(expected)
    assert_alike(frames, expected)


@pytest.mark.parametrize(
    "video",
    [
        {"rotation": 90},
        {"hflip": True},
        {"pix_fmt": "yuv444p"},
        {"pix_fmt": "yuv420p10le"},
        {"size_hw": (65, 97), "codec": "libvpx-vp9"},
        {"codec": "mpeg4"},
        {"options": {"flags": "+ilme+ildct", "x264-params": "tff=1"}},
    ],
)
def test_what_the_gpu_does_not_take(
    library: PyNvVideoCodec, tmp_path: Path, video: dict[str, Any]
) -> None:
    suffix = ".avi" if video.get("codec") == "mpeg4" else ".mp4"
    path = write_video(tmp_path / f"video{suffix}", frames=6, **video)
    frames, warnings = read(path)
    assert on_gpu(frames) == [False] * 6
    assert warnings == []
    assert library.decoders == []


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    path = write_video(tmp_path / "video.mp4", frames=6)
    frames, warnings = read(path)
    assert on_gpu(frames) == [False] * 6
    assert warnings == []


@pytest.mark.parametrize("fail_at", [-1, 0, 1])
def test_a_decoder_that_fails_at_once(
    library: PyNvVideoCodec, tmp_path: Path, fail_at: int
) -> None:
    path = write_video(tmp_path / "video.mp4", frames=30, options=B_FRAMES)
    library.fail_at = fail_at
    frames, warnings = read(path)
    assert on_gpu(frames) == [False] * 30
    assert_alike(frames, read(path, on_gpu=False)[0])
    assert len(warnings) == 1
    reason = "PyNvDecoder constructor failed" if fail_at < 0 else "Codec not supported on this GPU"
    assert warnings[0] == f"video.mp4: decoded on the CPU, since the GPU's decoder failed: {reason}"


@pytest.mark.parametrize("count", [10, 100])
def test_a_decoder_that_shows_nothing(library: PyNvVideoCodec, tmp_path: Path, count: int) -> None:
    path = write_video(tmp_path / "video.mp4", frames=count, options=B_FRAMES)
    library.silent = True
    frames, warnings = read(path)
    assert on_gpu(frames) == [False] * count
    assert_alike(frames, read(path, on_gpu=False)[0])
    assert len(warnings) == 1
    assert "no picture came" in warnings[0]


def test_a_decoder_that_fails_later(library: PyNvVideoCodec, tmp_path: Path) -> None:
    """The CPU goes on from the next key frame."""
    path = write_video(tmp_path / "video.mp4", frames=40, options={"g": "10", "bf": "0"})
    library.fail_at = 15
    frames, warnings = read(path)
    expected = {f.pts_seconds: f for f in read(path, on_gpu=False)[0]}
    assert len(warnings) == 1
    kinds = on_gpu(frames)
    assert kinds == sorted(kinds, reverse=True)
    assert kinds.count(True) >= 13
    assert [f.pts_seconds for f in frames][-20:] == [i / 25 for i in range(20, 40)]
    for frame in [*frames[:13], *frames[-20:]]:
        np.testing.assert_array_equal(frame.image, expected[frame.pts_seconds].image)


def test_out_of_gpu_memory(library: PyNvVideoCodec, tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", frames=30)
    library.driver.total = 5 * 64 * 96 * 3 // 2
    frames, warnings = read(path)
    assert [f.pts_seconds for f in frames[:3]] == [0.0, 0.04, 0.08]
    assert [w.rpartition(": ")[2] for w in warnings if "GPU" in w] == ["out of GPU memory"]


def test_closed_and_left_before_the_end(library: PyNvVideoCodec, tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", frames=60)
    for close in (True, False):
        source = open_source(str(path))
        assert isinstance(source, GpuSource)
        source.decode_on_gpu()
        frames = iter(source)
        frame = next(frames)
        if close:
            thread = threading.Thread(target=source.close)
            thread.start()
            thread.join()
            assert next(frames, None) is None
            source.close()
        frames.close()  # type: ignore[attr-defined]
        assert frame.image.shape == (64, 96, 3)  # still there
    unread = open_source(str(path))
    assert isinstance(unread, GpuSource)
    unread.decode_on_gpu()
    unread.close()


def test_a_live_stream(
    library: PyNvVideoCodec, limited: Callable[[Callable[[], Any]], Any]
) -> None:
    """No waiting for the next packet, and a new decoder after the stream was lost."""
    server = RtspServer([100, 10_000])
    try:
        source = stream.open(server.url)
        source.decode_on_gpu()

        def take() -> list[Frame]:
            frames = []
            for frame in source:
                frames.append(frame)
                if len(library.decoders) == 2 and frame.index > 110:
                    source.close()
            return frames

        frames = limited(take)
    finally:
        server.stop()
    assert on_gpu(frames) == [True] * len(frames)
    assert [f.pts_seconds for f in frames] == sorted({f.pts_seconds for f in frames})
    for facts in library.decoders:
        assert facts["latency"] == "LOW"
        assert {flag for _, flag, bsl in facts["packets"] if bsl} == {8}
    before = [frame for frame in frames if frame.index < 100]
    for frame in before:  # brightness = 2 * number
        assert abs(frame.image.mean() - 2 * frame.index) < 4
        assert frame.pts_seconds == pytest.approx(frame.index / 50)
    assert len(before) > 3


def test_doctor(library: PyNvVideoCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._hardware_decoder()
    assert (found.found, found.ok) == ("PyNvVideoCodec 2.2.4", True)
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    monkeypatch.setattr(doctor, "_has_gpu", lambda: True)
    found = doctor._hardware_decoder()
    assert not found.ok
    assert found.fix.endswith("pip install PyNvVideoCodec pycuda")
    monkeypatch.setattr(doctor, "_has_gpu", lambda: False)
    assert doctor._hardware_decoder().fix == ""


def test_a_package_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, library: PyNvVideoCodec
) -> None:
    monkeypatch.delitem(sys.modules, "PyNvVideoCodec")

    def find(name: str, *args: Any) -> Any:
        raise RuntimeError("libnvidia-encode.so.1: cannot open\n\n=== TROUBLESHOOTING ===")

    finder = type("Finder", (), {"find_spec": staticmethod(find)})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    reason = _nvdec.missing()
    assert reason == "PyNvVideoCodec does not load (libnvidia-encode.so.1: cannot open)"


@pytest.mark.cuda
def test_the_real_decoder(cuda: Any, tmp_path: Path) -> None:
    """H.264 and HEVC leave the decoder no choice: the same pixels as FFmpeg's, bit by bit."""
    reason = _nvdec.missing()
    if reason:
        fail = os.environ.get("RTSEG_REQUIRE_CUDA") == "1"
        (pytest.fail if fail else pytest.skip)(reason)
    steps = np.random.default_rng(0).integers(900, 9000, 120)
    ticks = [180_000 + int(t) // 90 * 90 for t in np.cumsum(steps)]
    for codec in ("libx264", "libx265"):
        options = B_FRAMES if codec == "libx264" else {"x265-params": "keyint=12:log-level=none"}
        path = tmp_path / f"{codec}.mp4"
        write_video(path, frames=120, ticks=ticks, codec=codec, options=options, size_hw=(240, 320))
        expected, warnings = read(path, on_gpu=False)
        frames, own_warnings = read(path)
        assert on_gpu(frames) == [True] * 120
        assert own_warnings == warnings
        assert_alike(frames, expected)
