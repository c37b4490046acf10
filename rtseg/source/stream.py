"""Video files and network streams (RTSP, RTMP, UDP, HTTP), decoded with PyAV.

Timestamps are the stream's own, exact. Knows nothing of cameras or image directories.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import SideData, Type
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from rtseg.errors import SourceError, StreamLostError
from rtseg.frame import Frame, GpuFrame
from rtseg.source import SourceInfo, _nvdec
from rtseg.source._colours import bgr_of
from rtseg.source._demux import SCHEMES, Input, Picture, reason_of, scheme_of, short_name

RECONNECT_S = 30.0
STALE_S = 0.2
CATCH_UP_S = 5.0
WARNINGS_MAX = 20


def accepts(uri: str) -> bool:
    """True for network URLs, existing files, and words that can only be meant as a file's path."""
    if scheme_of(uri) in SCHEMES:
        return True
    return os.path.isfile(uri) or Path(uri).suffix != "" or "/" in uri or "\\" in uri


def open(uri: str, *, reconnect_s: float = RECONNECT_S) -> StreamSource:
    """Opens a file or URL and decodes its first frame.

    Args:
        uri: a path, `stream:PATH`, `file:PATH`, or an rtsp://, rtmp://, udp://, http(s):// URL.
        reconnect_s: how long a lost live stream is tried again, in seconds.

    Raises:
        SourceError: the file or URL is missing, empty, no video, or cannot be decoded.
    """
    for prefix in ("stream:", "file://", "file:"):
        uri = uri.removeprefix(prefix)
    scheme = scheme_of(uri)
    if scheme not in ("", *SCHEMES):
        known = ", ".join(f"{name}://" for name in sorted(SCHEMES))
        raise SourceError(f"{short_name(uri)}: unknown scheme {scheme}://: expected one of {known}")
    return StreamSource(uri, reconnect_s=reconnect_s)


class StreamSource:
    """A decoded video; see `rtseg.source.Source`.

    Files and HTTP downloads end where the data end, and `warnings` says what was missing.
    Live streams (RTSP and the like, HTTP without a duration) are connected again when lost;
    after a reconnection the timestamps go on by the time that passed. `close` from another
    thread takes effect at once; while a network stream is stalled, when its timeout ends (5 s
    for reading, 10 s for connecting). Pictures that a live stream had buffered before somebody
    read it are left out.
    """

    def __init__(self, target: str, *, reconnect_s: float = RECONNECT_S) -> None:
        self.warnings: list[str] = []
        self._target = target
        self._name = short_name(target)
        self._reconnect_s = reconnect_s
        self._gpu: int | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()  # guards the decoder: FFmpeg must not be closed mid-call
        self._input = Input(target, self._name)
        try:
            self._pending, self._arrived = self._input.first_frames(self._name)
        except BaseException:
            self._input.close()
            raise
        first = self._pending[0]
        assert isinstance(first, VideoFrame)
        self._transpose, self._flip = _orientation(first)
        self._rate = self._input.rate
        self.info = SourceInfo(
            name=self._name,
            live=self._input.live,
            size_hw=(first.width, first.height) if self._transpose else (first.height, first.width),
            fps=self._rate,
            frame_count=None if self._input.live else self._input.frame_count,
        )
        self._reformatter = VideoReformatter()
        self._stamp = _Stamp()
        self._catching_up = self.info.live
        self._catch_up_until = 0.0
        self._paced: tuple[float, float] | None = None
        self._index = 0
        self._skipped = 0
        self._offset_s = 0.0
        self._gap_s: float | None = None
        self._last_pts_s: float | None = None

    def __iter__(self) -> Iterator[Frame]:
        try:
            while not self._closed.is_set():
                pending, self._pending = self._pending, []
                for picture in pending:
                    frame = self._frame(picture)
                    if frame is not None:
                        yield frame
                    if self._closed.is_set():
                        return
                if not self._advance():
                    break
        finally:
            self._closed.set()
            if self._skipped:
                self.warnings.append(
                    f"{self._name}: {self._skipped} damaged pictures were left out"
                )
            with self._lock:
                self._input.close()

    def decode_on_gpu(self, ordinal: int = 0) -> None:
        """Leaves the pictures on a GPU where its decoder takes them; see `GpuSource`.

        Turned pictures, and what `_nvdec.takes` leaves out, are decoded on the CPU without a word;
        where the GPU's decoder fails, `warnings` says so.
        """
        with self._lock:
            if not self._transpose and self._flip is None:
                self._gpu = ordinal
                self._start_gpu(self._input)

    def close(self) -> None:
        """Ends the iteration and frees the decoder; may be called from any thread, repeatedly."""
        self._closed.set()
        # While the iterating thread is inside FFmpeg it closes the input itself, on its way out.
        if self._lock.acquire(blocking=False):
            try:
                self._input.close()
            finally:
                self._lock.release()

    def _advance(self) -> bool:
        """Decodes the next packet into `_pending`; False at the end of the stream."""
        with self._lock:
            if self._closed.is_set():
                return False
            problem: FFmpegError | None = None
            bad = self._input.packets_bad
            try:
                frames = self._input.step()
            except FFmpegError as error:
                frames, problem = None, error
            self._index += self._input.packets_bad - bad
            self._note_gpu(self._input)
            if frames is not None:
                self._pending, self._arrived = frames, self._input.arrived
                return True
            if problem is None and not self.info.live:
                self.warnings += [f"{self._name}: {line}" for line in self._input.losses()]
        if self._closed.is_set():
            return False
        if self.info.live and (problem is not None or self._input.endless):
            return self._reconnect(problem)
        if problem is not None:
            raise StreamLostError(
                f"{self._name}: the connection was lost ({reason_of(problem)}): run it again, "
                "or download the file first"
            ) from problem
        return False

    def _start_gpu(self, source: Input) -> None:
        first = self._pending[0]
        if self._gpu is None or not isinstance(first, VideoFrame):
            return
        if source.decode_on_gpu(first, self._gpu):
            self._pending = []  # the GPU decodes them once more
        self._note_gpu(source)

    def _note_gpu(self, source: Input) -> None:
        if source.notice:
            self.warnings.append(f"{self._name}: {source.notice}")
            source.notice, self._gpu = "", None

    def _frame(self, picture: Picture) -> Frame | None:
        """A Frame from a decoded picture; None for a damaged picture of a live stream."""
        index = self._index
        self._index += 1
        if picture.is_corrupt and self.info.live:
            # A live picture with grey or smeared blocks is worse for a robot than none.
            self._skipped += 1
            return None
        pts_s = self._seconds(picture)
        if self._gap_s is not None and self._last_pts_s is not None:
            self._offset_s = self._last_pts_s + self._gap_s - pts_s
            self._gap_s = None
        pts_s += self._offset_s
        self._last_pts_s = pts_s
        if self._waited(pts_s):
            return None
        # A file's first frame is decoded on opening, long before anyone asks for it.
        arrived = self._input.arrival_of(picture) if self.info.live else time.monotonic()
        if isinstance(picture, _nvdec.Picture):
            return GpuFrame(picture.surface, index, pts_s, arrived)
        image = bgr_of(picture)
        if image is None:
            # threads=1: swscale's own threads cost more CPU than they save at video sizes.
            bgr = self._reformatter.reformat(picture, format="bgr24", threads=1)
            image = np.ascontiguousarray(bgr.to_ndarray(), dtype=np.uint8)
        if self._transpose:
            image = np.asarray(cv2.transpose(image), np.uint8)
        if self._flip is not None:
            image = np.asarray(cv2.flip(image, self._flip), np.uint8)
        return Frame(image, index, pts_s, arrived)

    def _waited(self, pts_s: float) -> bool:
        """True for a live picture that lay in a buffer until somebody began to read.

        Such pictures come faster than their timestamps say. Their age would be counted from
        now, and a robot would act on an old picture.
        """
        if not self._catching_up:
            return False
        arrived, now = self._arrived, time.monotonic()
        if self._paced is None:
            late, arrived = now - arrived > STALE_S, now
            self._catch_up_until = now + CATCH_UP_S
        else:
            late = arrived - self._paced[0] < 0.5 * (pts_s - self._paced[1])
            self._catching_up = late and now < self._catch_up_until
        self._paced = arrived, pts_s
        return late

    def _seconds(self, picture: Picture) -> float:
        stamp = self._stamp.best(picture)
        if stamp is not None and picture.time_base is not None:
            return float(stamp * picture.time_base)
        if self._last_pts_s is None or self._gap_s is not None:
            return 0.0  # RTP leaves the first picture without one, and counts from it
        return self._last_pts_s - self._offset_s + 1.0 / (self._rate or 25.0)

    def _reconnect(self, problem: FFmpegError | None) -> bool:
        """Opens the live stream again; False if closed meanwhile."""
        reason = "it ended" if problem is None else reason_of(problem)
        lost_at, last_arrived = time.monotonic(), self._arrived
        delay = 0.25
        while True:
            with self._lock:
                self._input.close()
            if self._closed.wait(delay):
                return False
            try:
                fresh = Input(self._target, self._name)
                self._pending, self._arrived = fresh.first_frames(self._name)
                self._start_gpu(fresh)
                self._input = fresh  # only now: `close` may close it from then on
                break
            except SourceError as error:
                if time.monotonic() - lost_at > self._reconnect_s:
                    raise StreamLostError(
                        f"{self._name}: the stream was lost ({reason}) and did not come back "
                        f"within {self._reconnect_s:g} s: check the camera and the network"
                    ) from error
                delay = min(2 * delay, 4.0)
        gap_s = self._arrived - last_arrived
        self._gap_s, self._stamp = gap_s, _Stamp()
        self._catching_up, self._paced = True, None
        self._index += max(1, round(gap_s * (self._rate or 0.0)))
        if len(self.warnings) < WARNINGS_MAX:  # a flaky link must not fill the memory over days
            self.warnings.append(
                f"{self._name}: the stream was lost ({reason}) and came back after {gap_s:.1f} s"
            )
        return True


class _Stamp:
    """Chooses between presentation and decoding time, as FFmpeg's `best_effort_timestamp` does.

    Old AVI files with B-frames have presentation times that jump back and forth.
    """

    def __init__(self) -> None:
        self._last_pts, self._last_dts = -(2**63), -(2**63)
        self._pts_faults = self._dts_faults = 0

    def best(self, picture: Picture) -> int | None:
        """The timestamp to use, in units of the picture's time base; None if it has none."""
        pts, dts = picture.pts, picture.dts
        if dts is not None:
            self._dts_faults += dts <= self._last_dts
            self._last_dts = dts
        if pts is not None:
            self._pts_faults += pts <= self._last_pts
            self._last_pts = pts
        return dts if pts is None or self._pts_faults > self._dts_faults else pts


def _orientation(picture: VideoFrame) -> tuple[bool, int | None]:
    """How to turn pictures upright: whether to transpose, then `cv2.flip`'s code or None.

    From the display matrix [a b u; c d v; x y w] of ISO/IEC 14496-12, 6.2.2, which takes
    (x, y) to (a x + c y, b x + d y); angles between right angles go to the nearest one.
    """
    matrix: list[int] = [1, 0, 0, 0, 1]
    for side in picture.side_data:
        # PyAV types the container as a dict, but it yields the items themselves.
        if isinstance(side, SideData) and side.type is Type.DISPLAYMATRIX:
            matrix = np.frombuffer(bytes(side), np.int32)[:5].tolist()
    a, b, _, c, d = matrix
    transpose = abs(b) + abs(c) > abs(a) + abs(d)
    flip_x, flip_y = (c < 0, b < 0) if transpose else (a < 0, d < 0)
    return transpose, {(1, 1): -1, (1, 0): 1, (0, 1): 0}.get((flip_x, flip_y))
