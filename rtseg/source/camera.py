"""Cameras through OpenCV: USB and other V4L2 devices, and CSI sensors on NVIDIA Jetson.

URIs: `camera`, `camera:N`, `/dev/videoN`, `csi:N`, each with an optional
`?width=W&height=H&fps=F`. Knows nothing of files or network cameras.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import cv2
import numpy as np

from rtseg.errors import ConfigError, MissingDependencyError, SourceError, StreamLostError
from rtseg.frame import Frame, ImageBGR
from rtseg.source import SourceInfo

FIRST_FRAME_S = 10.0
LOST_AFTER_S = 3.0
RETRY_S = 0.02

_URI = re.compile(r"(camera|csi)(?::(\d+))?(?:\?(.*))?|/dev/video(\d+)(?:\?(.*))?")


@dataclass(frozen=True, slots=True)
class _Request:
    kind: str
    number: int
    width: int | None
    height: int | None
    fps: float | None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number}"


def accepts(uri: str) -> bool:
    """True for `camera...`, `csi:N` and `/dev/videoN`."""
    return _URI.fullmatch(uri) is not None or uri.startswith(("camera:", "csi:", "/dev/video"))


def open(uri: str) -> CameraSource:
    """Opens a camera and waits for its first picture.

    Raises:
        ConfigError: the URI is not one of this module's.
        SourceError: the camera is absent, busy, not permitted, or gives no picture.
        MissingDependencyError: a CSI camera, and OpenCV has no GStreamer.
    """
    request = _parse(uri)
    camera = CameraSource(_capture(request), request.name)
    camera.warnings += _refused(request, camera.info)
    return camera


def _refused(request: _Request, info: SourceInfo) -> list[str]:
    """What was asked for and the camera does otherwise, a line each."""
    lines = []
    (height, width), fps = info.size_hw, info.fps
    if request.width and (width, height) != (request.width, request.height):
        lines.append(
            f"{request.name}: has no {request.width}x{request.height} and gives {width}x{height}"
        )
    if request.fps and fps and abs(fps - request.fps) > 0.5:
        lines.append(f"{request.name}: gives {fps:g} frames per second, not {request.fps:g}")
    return lines


class CameraSource:
    """A camera; see `rtseg.source.Source`.

    A thread of its own keeps the newest picture only: one that was not taken in time is
    replaced, and the gap shows in `Frame.index`. Timestamps are the device's clock where it
    has one, else the time of arrival; both start at 0. A camera that gives nothing for 3 s
    ends the iteration with StreamLostError.
    """

    def __init__(self, capture: cv2.VideoCapture, name: str) -> None:
        self.warnings: list[str] = []
        self._capture = capture
        self._name = name
        self._changed = threading.Condition()
        self._newest: deque[Frame] = deque(maxlen=1)
        self._failing_since: float | None = None
        self._stopping = False
        self._ended = False
        self._problem: Exception | None = None
        self._clock = _Clock()
        self._thread = threading.Thread(target=self._read_all, name=name, daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._ended, FIRST_FRAME_S)
            first = self._newest[0] if self._newest else None
        if first is None:
            self.close()
            if self._problem is not None:
                raise SourceError(self._broken()) from self._problem
            raise SourceError(
                f"{name}: opened, but gave no picture within {FIRST_FRAME_S:g} s: check the cable, "
                "and that no other program uses it"
            )
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        self.info = SourceInfo(
            name=name, live=True, size_hw=first.size_hw, fps=fps if 1 <= fps <= 1000 else None
        )

    def __iter__(self) -> Iterator[Frame]:
        with self._changed:
            self._newest.clear()  # it has waited since the camera was opened
        try:
            while (frame := self._take()) is not None:
                yield frame
        finally:
            self.close()

    def close(self) -> None:
        """Ends the iteration at once and frees the device; may be called from any thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        # The reader releases the device: OpenCV must not be released during a read.
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)

    def _take(self) -> Frame | None:
        """The newest picture, waiting for it; None once closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._newest or self._stopping or self._ended, LOST_AFTER_S
            )
            if self._stopping:
                return None
            if self._newest:
                return self._newest.pop()
        if self._problem is not None:
            raise StreamLostError(self._broken()) from self._problem
        raise StreamLostError(
            f"{self._name}: no picture for {LOST_AFTER_S:g} s: check the cable and its power"
        )

    def _broken(self) -> str:
        reason = " ".join(str(self._problem).split())
        return f"{self._name}: reading broke off ({reason}): check the camera and its driver"

    def _read_all(self) -> None:
        index = 0
        try:
            while not self._stopping:
                ok, picture = self._capture.read()
                now = time.monotonic()
                if not ok or picture is None:
                    if self._failed_for(now) > LOST_AFTER_S:
                        return
                    time.sleep(RETRY_S)
                    continue
                self._failing_since = None
                pts_s = self._clock.seconds(self._capture.get(cv2.CAP_PROP_POS_MSEC), now)
                frame = Frame(_bgr(np.asarray(picture, np.uint8)), index, pts_s, now)
                index += 1
                with self._changed:
                    self._newest.append(frame)
                    self._changed.notify_all()
        except Exception as error:  # such as a GStreamer pipeline that broke
            self._problem = error
        finally:
            self._capture.release()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _failed_for(self, now: float) -> float:
        if self._failing_since is None:
            self._failing_since = now
        return now - self._failing_since


class _Clock:
    """Seconds since the first picture: the device's clock as long as it makes sense."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._last_ms = 0.0
        self._last_s = 0.0
        self._offset_s = 0.0
        self._device = True

    def seconds(self, device_ms: float, now_s: float) -> float:
        if self._first is None:
            self._first = device_ms, now_s
            self._device = device_ms > 0
            self._last_ms = device_ms
            return 0.0
        first_ms, first_s = self._first
        if self._device and not device_ms > self._last_ms:
            self._device = False  # stuck or set back: go on with the time of arrival
            self._offset_s = max(0.0, self._last_s + 1e-6 - (now_s - first_s))
        self._last_ms = device_ms
        if self._device:
            self._last_s = (device_ms - first_ms) / 1000.0
        else:
            self._last_s = now_s - first_s + self._offset_s
        return self._last_s


def _bgr(picture: ImageBGR) -> ImageBGR:
    """Grey sensors (thermal, infrared) give one channel, some drivers a fourth one."""
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    if channels == 1:
        picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), np.uint8)
    elif channels == 4:
        picture = picture[:, :, :3]
    return np.ascontiguousarray(picture)


def _parse(uri: str) -> _Request:
    match = _URI.fullmatch(uri)
    problem = "expected camera, camera:N, /dev/videoN or csi:N"
    if match is not None:
        kind, number, query, device, device_query = match.groups()
        try:
            options = dict(parse_qsl(query or device_query or "", strict_parsing=False))
            width, height = (int(options.pop(k, 0)) or None for k in ("width", "height"))
            fps = float(options.pop("fps", 0)) or None
            if bool(width) != bool(height):
                raise ConfigError(f"camera {uri!r}: give width and height together")
            if not options and min(width or 1, height or 1, fps or 1) > 0:
                return _Request(kind or "camera", int(number or device or 0), width, height, fps)
        except ValueError:
            pass
        problem = "expected ?width=W&height=H&fps=F with numbers above 0"
    raise ConfigError(f"cannot use camera {uri!r}: {problem}")


def _capture(request: _Request) -> cv2.VideoCapture:
    return _capture_csi(request) if request.kind == "csi" else _capture_device(request)


def _capture_csi(request: _Request) -> cv2.VideoCapture:
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise MissingDependencyError(
            f"{request.name}: this OpenCV has no GStreamer: use the one from JetPack "
            "(apt install libopencv-python) in place of pip's opencv-python"
        )
    capture = cv2.VideoCapture(csi_pipeline(request), cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise SourceError(
            f"{request.name}: cannot be opened: check the ribbon cable and "
            "`sudo systemctl restart nvargus-daemon`"
        )
    return capture


def csi_pipeline(request: _Request) -> str:
    """The GStreamer pipeline of a Jetson CSI camera: BGR pictures, the newest only."""
    caps = [f"width=(int){request.width or 1280}", f"height=(int){request.height or 720}"]
    caps.append(f"framerate=(fraction){round((request.fps or 30) * 1000)}/1000")
    return (
        f"nvarguscamerasrc sensor-id={request.number} ! "
        f"video/x-raw(memory:NVMM), {', '.join(caps)} ! "
        "nvvidconv ! video/x-raw, format=(string)BGRx ! "
        "videoconvert ! video/x-raw, format=(string)BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )


def _capture_device(request: _Request) -> cv2.VideoCapture:
    linux = sys.platform.startswith("linux")
    if linux:
        _check_device(Path(f"/dev/video{request.number}"))
    capture = cv2.VideoCapture(request.number, cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
    if not capture.isOpened():
        raise SourceError(
            f"{request.name}: exists, but cannot be opened: close the program that uses it, or "
            "name another (one device often has several numbers, and only some give pictures)"
        )
    if (request.width or 0) * (request.height or 0) > 640 * 480:
        # Raw YUYV above this size does not fit through USB 2 at 30 frames per second.
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
    if request.width and request.height:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, request.width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, request.height)
    if request.fps:
        capture.set(cv2.CAP_PROP_FPS, request.fps)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def _check_device(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            present = sorted(str(p) for p in path.parent.glob("video[0-9]*"))
            others = f"there are {', '.join(present)}" if present else "this machine has no camera"
            raise SourceError(f"{path}: no such camera: plug it in; {others}") from error
        fix = {
            errno.EBUSY: "close the program that uses it",
            errno.EACCES: "add yourself to the group `video` and log in again",
        }.get(error.errno or 0, "check the device")
        raise SourceError(f"{path}: cannot be opened ({error.strerror}): {fix}") from error
