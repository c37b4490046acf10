"""The rendered picture as H.264 in fragmented MP4, with the stream's own timestamps.

A fragment goes to disk every half second, so a run that is killed leaves a file that plays
to within a second of its end.
"""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rtseg import native
from rtseg.errors import MissingDependencyError, SinkError
from rtseg.frame import Frame, ImageBGR, LabelMap
from rtseg.planes import planes_of

EXTENSIONS = (".mp4", ".m4v", ".mov")
TICKS = 90_000
FRAGMENT_S = 0.5
KEYFRAME_S = 2.0
SIDE_MAX = 16384

# delay_moov with frag_discont keeps the first timestamp exact; skip_trailer: a killed file has
# no trailer either, so nobody comes to depend on it.
_MUXER = {
    "movflags": "empty_moov+default_base_moof+delay_moov+frag_discont+skip_trailer",
    "frag_duration": str(round(FRAGMENT_S * 1e6)),
}
# Measured at 960x540, one thread, CRF 23, CPU ms per frame and Mbit/s at 25 fps and equal PSNR:
# ultrafast 1.5 and 2.3, superfast 4.1 and 2.0, veryfast 5.8 and 1.6. The engine wants the cores.
# chromaloc: a chroma sample lies in the middle of its four pixels, see `native.to_yuv420`.
_ENCODER = {
    "preset": "ultrafast",
    "tune": "zerolatency",
    "crf": "23",
    "x264-params": "chromaloc=1",
}
_BT601, _BT709, _LIMITED = 6, 1, 1  # AVCOL_SPC_SMPTE170M, AVCOL_PRI/TRC_BT709, AVCOL_RANGE_MPEG


def open(target: str, *, fps: float | None = None) -> VideoSink:
    """Opens an MP4 for writing.

    Args:
        target: a path that ends in .mp4, .m4v or .mov; its directory must exist.
        fps: nominal frames per second, for the encoder's rate control and key frames only.

    Raises:
        SinkError: the path cannot be written or is no MP4.
        MissingDependencyError: FFmpeg here has no H.264 encoder.
    """
    if not target.lower().endswith(EXTENSIONS):
        raise SinkError(f"{target}: only MP4 is written: let the name end in .mp4")
    if "libx264" not in av.codec.codecs_available:
        raise MissingDependencyError(
            "saving video needs FFmpeg with libx264: pip install --force-reinstall av"
        )
    return VideoSink(target, fps=fps)


class VideoSink:
    """Encodes pictures; see `rtseg.sink.Sink`.

    Timestamps are `Frame.pts_seconds` rounded to 1/90000 s, variable rates and the first
    offset included; one that does not increase is moved up. 4:2:0 video has even sizes, so an
    odd picture gains one replicated row or column at the bottom or right and nothing shifts.
    A picture of another size than the first is fitted into it with black borders.
    An existing file is kept until the first picture comes.
    """

    wants_picture = True

    def __init__(self, target: str, *, fps: float | None = None) -> None:
        self._file = _File(target)
        self._fps = (
            Fraction(fps).limit_denominator(1001) if fps and 0 < fps <= 1000 else Fraction(25)
        )
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._size_hw = (0, 0)
        self._ticks: int | None = None
        self._offset = 0

    def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        """Encodes one (H, W, 3) uint8 BGR picture. Raises SinkError if the disk is full."""
        if picture is None:
            raise ValueError("picture: expected (H, W, 3) uint8 BGR, got None")
        if self._file.failed:
            raise self._file.problem()
        try:
            if self._container is None or self._stream is None:
                self._container, self._stream = self._start(picture)
            video = _yuv(_fit(picture, self._size_hw))
            video.pts = self._tick(frame.pts_seconds)
            video.time_base = Fraction(1, TICKS)
            self._container.mux(self._stream.encode(video))
        except (FFmpegError, OSError) as error:
            raise self._file.problem(error) from error

    def close(self) -> None:
        """Flushes the encoder and closes the file. Raises SinkError if that fails."""
        container, self._container = self._container, None
        try:
            if container is not None and self._stream is not None and not self._file.failed:
                container.mux(self._stream.encode(None))
        except (FFmpegError, OSError) as error:
            raise self._file.problem(error) from error
        finally:
            try:
                if container is not None:
                    container.close()
            except (FFmpegError, OSError) as error:
                if not self._file.failed:
                    raise self._file.problem(error) from error
            finally:
                self._file.close()

    def _start(self, picture: ImageBGR) -> tuple[OutputContainer, VideoStream]:
        height, width = picture.shape[:2]
        if max(height, width) > SIDE_MAX:
            raise SinkError(
                f"{self._file.target}: H.264 has pictures of up to {SIDE_MAX} pixels a side, not "
                f"{width}x{height}: use a smaller source or another effect"
            )
        self._size_hw = height, width
        self._file.truncate()
        container = av.open(self._file, mode="w", format="mp4", options=dict(_MUXER))
        stream = container.add_stream("libx264", rate=self._fps, options=dict(_ENCODER))
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        context: VideoCodecContext = stream.codec_context
        context.time_base = Fraction(1, TICKS)
        context.gop_size = max(1, round(KEYFRAME_S * self._fps))
        context.thread_count = 1
        context.colorspace, context.color_range = _BT601, _LIMITED
        context.color_primaries = context.color_trc = _BT709
        return container, stream

    def _tick(self, pts_seconds: float) -> int:
        """The timestamp in ticks, greater than the last one."""
        wanted = round(pts_seconds * TICKS)
        step = round(TICKS / self._fps)
        if self._ticks is None:
            self._offset = max(0, -wanted)  # MP4 has no negative timestamps
        elif wanted + self._offset < self._ticks - 2 * step:
            self._offset = self._ticks + step - wanted  # the stream's clock was set back
        ticks = wanted + self._offset
        self._ticks = ticks if self._ticks is None else max(ticks, self._ticks + 1)
        return self._ticks


class _File:
    """The output file: remembers its first error, and ends after the last complete fragment.

    Attributes:
        failed: True once anything went wrong; what comes later is not written.
    """

    def __init__(self, target: str) -> None:
        self.failed = False
        self._error: OSError | None = None
        self.target = target
        self._fd: int | None = None
        self._is_ours = not os.path.exists(target)
        try:
            self._fd = os.open(target, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self.problem(error) from error

    def truncate(self) -> None:
        """Drops what was there before."""
        if self._fd is not None:
            with contextlib.suppress(OSError):  # a pipe has nothing to drop
                os.ftruncate(self._fd, 0)
            self._is_ours = True

    def write(self, data: bytes) -> int:
        """Called by FFmpeg with whole fragments or parts of them."""
        if self.failed or self._fd is None:
            return len(data)  # FFmpeg has seen the error already, and tries again on closing
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.failed, self._error = True, error
            raise
        return len(data)

    def problem(self, error: Exception | None = None) -> SinkError:
        """Notes a failure and gives the error to raise for it."""
        self.failed = True
        cause = self._error or error  # FFmpeg often reports a later, vaguer one
        parent = Path(self.target).parent
        if isinstance(cause, FileNotFoundError) and not os.path.isdir(parent):
            return SinkError(f"{self.target}: directory {parent} does not exist: create it first")
        reason = getattr(cause, "strerror", None) or str(cause)
        return SinkError(
            f"{self.target}: cannot be written ({reason}): free space or choose another place"
        )

    def close(self) -> None:
        """Closes the file; one that stayed empty is removed if it was created here."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if self.failed:
                os.ftruncate(fd, _complete_size(fd))
            empty = self._is_ours and os.fstat(fd).st_size == 0
        finally:
            os.close(fd)
        if empty:
            Path(self.target).unlink(missing_ok=True)


def _complete_size(fd: int) -> int:
    """Bytes up to the end of the last complete media box (`mdat`), walking the MP4's boxes."""
    end = os.fstat(fd).st_size
    complete = position = 0
    while len(header := os.pread(fd, 8, position)) == 8:
        position += max(8, int.from_bytes(header[:4], "big"))
        if header[4:] == b"mdat" and position <= end:
            complete = position
    return complete


def _fit(picture: ImageBGR, size_hw: tuple[int, int]) -> ImageBGR:
    """The picture at the given size, its aspect kept, on black."""
    height, width = picture.shape[:2]
    if (height, width) == size_hw:
        return picture
    scale = min(size_hw[0] / height, size_hw[1] / width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size_hw[0] - h) // 2, (size_hw[1] - w) // 2
    fitted = np.zeros((*size_hw, 3), np.uint8)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    fitted[top : top + h, left : left + w] = cv2.resize(picture, (w, h), interpolation=method)
    return fitted


def _yuv(picture: ImageBGR) -> VideoFrame:
    """The picture as 4:2:0, limited range BT.601, odd sides padded to even ones."""
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = np.asarray(
            cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8
        )
    video = VideoFrame(picture.shape[1], picture.shape[0], "yuv420p")
    native.to_yuv420(picture, planes_of(video))
    video.colorspace, video.color_range = _BT601, _LIMITED
    return video
