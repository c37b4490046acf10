"""`rtseg.source.camera` with a simulated device; errors with the real one, which is absent."""

from __future__ import annotations

import errno
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from rtseg.errors import ConfigError, MissingDependencyError, SourceError, StreamLostError
from rtseg.source import camera, open_source


class FakeCapture:
    """Stands in for cv2.VideoCapture: `count` pictures, then failed reads or a hanging one."""

    def __init__(
        self,
        count: int = 10**9,
        *,
        interval_s: float = 0.005,
        position_ms: Callable[[int], float] = lambda _: 0.0,
        hang: bool = False,
        grey: bool = False,
    ) -> None:
        self.count, self.interval_s, self.hang = count, interval_s, hang
        self.position_ms = position_ms
        self.shape: tuple[int, ...] = (4, 6) if grey else (4, 6, 3)
        self.reads = 0
        self.released = threading.Event()
        self.settings: dict[int, float] = {}

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(self.interval_s)
        if self.reads >= self.count:
            while self.hang:
                time.sleep(0.01)
            return False, None
        self.reads += 1
        return True, np.full(self.shape, self.reads % 256, np.uint8)

    def get(self, setting: int) -> float:
        if setting == cv2.CAP_PROP_POS_MSEC:
            return self.position_ms(self.reads - 1)
        return 30.0

    def set(self, setting: int, value: float) -> bool:
        self.settings[setting] = value
        return True

    def release(self) -> None:
        self.released.set()


def opened(capture: FakeCapture) -> camera.CameraSource:
    return camera.CameraSource(capture, "camera 0")  # type: ignore[arg-type]


def test_frames_arrive_newest_first_and_live() -> None:
    capture = FakeCapture()
    source = opened(capture)
    assert source.info.live
    assert source.info.size_hw == (4, 6)
    assert source.info.fps == 30.0
    time.sleep(0.1)
    frames = []
    for frame in source:
        frames.append(frame)
        age_s = time.monotonic() - frame.captured_at
        assert age_s < 1.0
        if len(frames) == 5:
            time.sleep(0.1)
        if len(frames) == 10:
            break
    source.close()
    indices = [f.index for f in frames]
    assert indices[0] > 0, "the picture from before the iteration must not come first"
    assert all(b > a for a, b in itertools.pairwise(indices))
    assert indices[5] - indices[4] > 3, "a slow taker gets the newest picture, and sees the gap"
    assert capture.released.wait(1)


def test_device_clock_is_used_when_sane() -> None:
    source = opened(FakeCapture(position_ms=lambda i: 5e6 + 40.0 * i))
    for frame in itertools.islice(source, 5):
        assert frame.pts_seconds == pytest.approx(0.04 * frame.index)
    source.close()


@pytest.mark.parametrize("position_ms", [lambda _: 0.0, lambda _: -1.0, lambda _: 7e3])
def test_arrival_time_replaces_a_stuck_clock(position_ms: Callable[[int], float]) -> None:
    source = opened(FakeCapture(position_ms=position_ms))
    frames = list(itertools.islice(source, 10))
    source.close()
    for a, b in itertools.pairwise(frames):
        assert b.pts_seconds > a.pts_seconds
        assert b.pts_seconds - a.pts_seconds == pytest.approx(
            b.captured_at - a.captured_at, abs=1e-3
        )


def test_clock_set_back_goes_on_forward() -> None:
    source = opened(FakeCapture(position_ms=lambda i: 1000.0 + 40.0 * (i if i < 40 else i - 30)))
    pts = [f.pts_seconds for f in itertools.islice(source, 60)]
    source.close()
    assert all(b > a for a, b in itertools.pairwise(pts))


def test_grey_sensor() -> None:
    source = opened(FakeCapture(grey=True))
    assert next(iter(source)).image.shape == (4, 6, 3)
    source.close()


def test_fourth_channel_is_left_out() -> None:
    capture = FakeCapture()
    capture.shape = (4, 6, 4)
    source = opened(capture)
    assert source.info.size_hw == (4, 6)
    assert next(iter(source)).image.shape == (4, 6, 3)
    source.close()


def test_pictures_of_no_known_kind() -> None:
    capture = FakeCapture()
    capture.shape = (4, 6, 2)
    with pytest.raises(SourceError, match=r"camera 0: reading broke off .*\(4, 6, 2\)") as caught:
        opened(capture)
    assert not isinstance(caught.value, StreamLostError)
    capture = FakeCapture()
    source = opened(capture)
    capture.shape = (4, 6, 2)
    with pytest.raises(StreamLostError, match="reading broke off"):
        list(source)


@pytest.mark.parametrize("hang", [False, True])
def test_lost_camera(monkeypatch: pytest.MonkeyPatch, hang: bool) -> None:
    monkeypatch.setattr(camera, "LOST_AFTER_S", 0.2)
    capture = FakeCapture(20, hang=hang)
    source = opened(capture)
    with pytest.raises(StreamLostError, match="camera 0: no picture"):
        for _ in source:
            pass
    capture.hang = False


def test_a_few_failed_reads_are_survived() -> None:
    class Flaky(FakeCapture):
        def read(self) -> tuple[bool, np.ndarray | None]:
            ok, image = super().read()
            return (False, None) if self.reads % 3 == 0 else (ok, image)

    assert len(list(itertools.islice(opened(Flaky()), 10))) == 10


def test_close_unblocks_a_waiting_iteration() -> None:
    capture = FakeCapture(5, hang=True)
    source = opened(capture)
    timer = threading.Timer(0.2, source.close)
    timer.start()
    start = time.monotonic()
    list(source)
    assert time.monotonic() - start < 1.5
    capture.hang = False
    timer.join()
    assert capture.released.wait(1)


def test_camera_without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "FIRST_FRAME_S", 0.2)
    with pytest.raises(SourceError, match="gave no picture"):
        opened(FakeCapture(0))


def test_absent_camera() -> None:
    if Path("/dev/video97").exists():
        pytest.skip("this machine has that camera")
    for uri in ("camera:97", "/dev/video97"):
        with pytest.raises(SourceError, match=r"/dev/video97: no such camera: plug it in"):
            open_source(uri)


@pytest.mark.parametrize(
    ("code", "fix"), [(errno.EBUSY, "close the program"), (errno.EACCES, "group `video`")]
)
def test_busy_and_forbidden_camera(monkeypatch: pytest.MonkeyPatch, code: int, fix: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SourceError, match=fix):
        open_source("camera")


def test_device_that_exists_but_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(FakeCapture):
        def isOpened(self) -> bool:  # noqa: N802
            return False

    monkeypatch.setattr(camera, "_check_device", lambda _: None)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: Closed())
    with pytest.raises(SourceError, match="camera 2: exists, but cannot be opened"):
        open_source("camera:2")


def test_requested_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = FakeCapture()
    monkeypatch.setattr(camera, "_check_device", lambda _: None)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: capture)
    source = open_source("/dev/video1?width=1280&height=720&fps=60")
    source.close()
    assert capture.settings[cv2.CAP_PROP_FRAME_WIDTH] == 1280
    assert capture.settings[cv2.CAP_PROP_FRAME_HEIGHT] == 720
    assert capture.settings[cv2.CAP_PROP_FPS] == 60
    assert capture.settings[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
    assert capture.settings[cv2.CAP_PROP_BUFFERSIZE] == 1
    assert source.warnings == [
        "camera 1: has no 1280x720 and gives 6x4",
        "camera 1: gives 30 frames per second, not 60",
    ]


def test_a_camera_that_does_as_asked_causes_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "_check_device", lambda _: None)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: FakeCapture())
    for uri in ("camera", "camera?width=6&height=4&fps=30"):
        source = open_source(uri)
        source.close()
        assert source.warnings == []


def test_csi_needs_gstreamer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda _: False)
    with pytest.raises(MissingDependencyError, match="GStreamer"):
        open_source("csi:0")


def test_csi_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def capture(pipeline: str, backend: int) -> FakeCapture:
        asked.append((pipeline, backend))
        return FakeCapture()

    monkeypatch.setattr(cv2.videoio_registry, "hasBackend", lambda _: True)
    monkeypatch.setattr(cv2, "VideoCapture", capture)
    open_source("csi:1?width=1920&height=1080&fps=29.97").close()
    pipeline, backend = asked[0]
    assert backend == cv2.CAP_GSTREAMER
    assert pipeline.startswith("nvarguscamerasrc sensor-id=1 ! ")
    assert "width=(int)1920, height=(int)1080, framerate=(fraction)29970/1000" in pipeline
    assert pipeline.endswith("appsink drop=true max-buffers=1 sync=false")


@pytest.mark.parametrize("uri", ["camera:x", "csi:", "/dev/videos", "camera:0?size=9", "camera:-1"])
def test_wrong_uris(uri: str) -> None:
    with pytest.raises(ConfigError, match="cannot use camera"):
        open_source(uri)


def test_half_a_size() -> None:
    with pytest.raises(ConfigError, match="give width and height together"):
        open_source("camera?width=1280")


def test_what_is_accepted() -> None:
    for uri in ("camera", "camera:3", "/dev/video0", "csi:0", "camera?fps=15"):
        assert camera.accepts(uri)
    for uri in ("cameras.mp4", "videos/camera", "synth:seed=1"):
        assert not camera.accepts(uri)
