"""One input opened with FFmpeg: options, timeouts, packets, pictures, and what went missing.

The private half of `stream.py`. Knows nothing of frames, colours or reconnections.
"""

from __future__ import annotations

import math
import os
import stat
import time
from collections import deque
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlsplit

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rtseg.errors import SourceError
from rtseg.source import _nvdec

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt"})
SCHEMES = LIVE_SCHEMES | {"http", "https"}
OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 5.0
FIRST_FRAME_TIMEOUT_S = 20.0
"""A live stream shows its first picture at the next key frame, often many seconds away."""
MAX_RATE = 1000.0
"""Above this a frame rate is a clock rate some camera wrote in the wrong field."""
BAD_PACKETS_MAX = 1000
_ARRIVALS_MAX = 256
Picture = VideoFrame | _nvdec.Picture


class Input:
    """One open container and its video stream: packets in, pictures out.

    Attributes:
        live: True if pictures come in real time whether or not they are read.
        endless: True if the end of the stream can only mean that it was lost.
        rate: nominal frames per second, or None.
        arrived: `time.monotonic()` seconds of the last packet.
        packets_bad: how many packets could not be read or decoded.
        notice: why decoding went from the GPU back to the CPU; empty if it did not.
    """

    def __init__(self, target: str, name: str) -> None:
        scheme = scheme_of(target)
        self._network = network = scheme in SCHEMES
        if not network:
            _check_file(target)
        options: dict[str, str] = {}
        if scheme in ("rtsp", "rtsps"):
            options |= {"rtsp_transport": "tcp"}  # UDP loses packets, and pictures with them
        if scheme in LIVE_SCHEMES:
            # Not `fflags nobuffer`: it throws the first key frame away, and the next may be far.
            options |= {"analyzeduration": "500000"}
        if scheme in ("http", "https"):
            options |= {"reconnect": "1", "reconnect_on_network_error": "1"}
            options |= {"reconnect_delay_max": "4"}
        asked_at = time.monotonic()
        try:
            self.container: InputContainer = av.open(
                # A name such as 2026-11-29T12:00:00.mp4 looks like a protocol to FFmpeg.
                target if network else f"file:{target}",
                mode="r",
                options=options,
                metadata_errors="replace",  # titles in Latin-1 are common
                timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S) if network else None,
            )
        except FFmpegError as error:
            late = network and time.monotonic() - asked_at >= OPEN_TIMEOUT_S
            reason = "no answer in time" if late else reason_of(error)
            raise _open_error(reason, target, name, error) from error
        try:
            if self.container.format.name == "tty":  # FFmpeg draws any text as a video
                raise _open_error("it is text", target, name)
            self.stream = _video_stream(self.container, name)
        except BaseException:
            self.container.close()
            raise
        duration = self.container.duration
        # Of an HTTP stream without a duration, one of known length is a recording all the same.
        unknown = network and duration is None and self.container.size <= 0
        self.live = scheme in LIVE_SCHEMES or unknown
        # A recording behind RTSP has a duration and may end; a camera has none. An HTTP
        # stream that ends in good order is over: asking again would start it anew.
        self.endless = self.live and duration is None and scheme in LIVE_SCHEMES
        self._alone = len(self.container.streams) == 1
        self._set_threads()
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = float(rate) if rate and 0 < rate <= MAX_RATE else None
        self.arrived = time.monotonic()
        self._arrivals: dict[int, float] = {}
        self._finished = False
        self._packets = self.container.demux(self.stream)
        self.notice = ""
        self._gpu: _nvdec.Decoder | None = None
        self._kept: list[tuple[Packet[VideoStream], float]] = []
        self._again: deque[tuple[Packet[VideoStream], float]] = deque()
        self._opening = True
        self._packets_read = self.packets_bad = self._damaged = 0
        self._pictures = 0
        self._first_s, self._last_s, self._end_s = math.inf, -math.inf, -math.inf

    @property
    def frame_count(self) -> int | None:
        """Frames the container announces: counted if it counts them, else from the duration."""
        if self.stream.frames:
            return self.stream.frames
        duration_s, _ = self._duration()
        return round(duration_s * self.rate) if duration_s and self.rate else None

    def first_frames(self, name: str) -> tuple[list[Picture], float]:
        """The first decoded pictures and their time of arrival; SourceError if there is none."""
        deadline = time.monotonic() + FIRST_FRAME_TIMEOUT_S
        problem = "it has no frames"
        while not self.live or time.monotonic() < deadline:
            try:
                frames = self.step()
            except FFmpegError as error:
                frames, problem = None, reason_of(error)
            if frames is None:
                break
            if frames:
                self._opening = False
                return frames, self.arrived
        if self.packets_bad:
            problem = f"none of its {self._packets_read} packets can be decoded"
        self.close()
        raise SourceError(
            f"{name}: no picture could be decoded ({problem}): check that it plays elsewhere"
        )

    def decode_on_gpu(self, first: VideoFrame, ordinal: int) -> bool:
        """Decodes on a GPU from the first packet on, also those that were decoded already.

        Only after `first_frames`, which gave the picture `first`, and before the next `step`. False
        if the stream is none for it, or the GPU refuses; then everything is as it was.
        """
        joins = not self.live or any(packet.is_keyframe for packet, _ in self._kept)
        if not joins or not _nvdec.takes(self.stream, first) or _nvdec.missing():
            return False
        try:
            self._gpu = _nvdec.Decoder(self.stream, first, ordinal, self.live)
        except _nvdec.DecoderError as error:
            self._give_up_gpu(str(error))
            return False
        self._again.extend(self._kept)
        self._kept.clear()
        self._packets_read = self._pictures = self._damaged = 0
        return True

    def step(self) -> list[Picture] | None:
        """Decodes one packet into pictures, often one; None after the last packet.

        Raises FFmpegError if a network stream breaks; a broken file just ends.
        """
        if self._finished:
            return None
        try:
            if self._again:
                packet, self.arrived = self._again.popleft()
            else:
                packet = next(self._packets)
                self.arrived = time.monotonic()
        except StopIteration:
            self._finished = True
            return None
        except av.error.InvalidDataError:
            self.packets_bad += 1
            self._packets = self.container.demux(self.stream)  # a raised generator is spent
            return [] if self.packets_bad < BAD_PACKETS_MAX else self._flush()
        except FFmpegError:
            if self._network:
                raise
            return self._flush()
        self._packets_read += packet.size > 0
        if packet.pts is not None:
            self._arrivals[packet.pts] = self.arrived
            if len(self._arrivals) > _ARRIVALS_MAX:  # of pictures that never came
                del self._arrivals[next(iter(self._arrivals))]
        try:
            frames = self._decode(packet)
        except av.error.EOFError:
            return []
        except FFmpegError:
            self.packets_bad += 1
            return []
        for frame in frames:
            self._damaged += frame.is_corrupt
            if frame.pts is not None and frame.time_base is not None:
                start_s = float(frame.pts * frame.time_base)
                self._first_s = min(self._first_s, start_s)
                self._last_s = max(self._last_s, start_s)
                self._end_s = max(self._end_s, start_s + float(frame.duration * frame.time_base))
                self._pictures += 1
        return frames

    def arrival_of(self, picture: Picture) -> float:
        """`time.monotonic()` seconds of the picture's own packet.

        With B-frames a picture comes out only after later packets; its age counts from its own.
        """
        pts = picture.pts
        return self.arrived if pts is None else self._arrivals.pop(pts, self.arrived)

    def losses(self) -> list[str]:
        """What a file announced and did not deliver, one line each."""
        lines = []
        duration_s, exact = self._duration()
        # Measured, since the nominal rate is wrong in many variable-rate files.
        interval_s = (self._last_s - self._first_s) / max(1, self._pictures - 1) or 0.04
        end_s = max(self._end_s, self._last_s + interval_s)
        missing_s = duration_s - end_s if duration_s and self._pictures else 0.0
        # Edit lists make the counts differ in sound files: only a gap at the end is a loss.
        # A duration of the whole container may be its sound's, which often ends later.
        if missing_s > (0.6 * interval_s if exact else 1.0):
            total = self.stream.frames
            lost = total - self._packets_read if total else round(missing_s / interval_s)
            total = total or self._packets_read + lost
            if lost > 0:
                lines.append(
                    f"the last {lost} of {total} frames are missing ({missing_s:.1f} s): "
                    "the file is cut off or damaged"
                )
        if self.packets_bad:
            lines.append(f"frames that could not be decoded and were skipped: {self.packets_bad}")
        if self._damaged:
            lines.append(f"damaged frames: {self._damaged}")
        return lines

    def close(self) -> None:
        """Frees the decoder; nothing else may be called afterwards."""
        if self._gpu is not None:
            self._gpu.close()
        self._again.clear()
        self._kept.clear()
        self.container.close()

    def _flush(self) -> list[Picture] | None:
        self._finished = True
        try:
            return self._decode(None) or None
        except FFmpegError:
            return None

    def _decode(self, packet: Packet[VideoStream] | None) -> list[Picture]:
        """Pictures of a packet; of none, or an empty one, those that were held back."""
        if self._gpu is None:
            if not self._opening:
                self._kept.clear()
            elif packet is not None:
                self._kept.append((packet, self.arrived))
            return [*self.stream.decode(packet)]
        kept = [] if packet is None else [(packet, self.arrived)]
        if not self._gpu.shown:
            self._kept += kept
            kept = self._kept
        pictures: list[Picture] = []
        try:
            if packet is None or not packet.size:
                pictures += self._gpu.flush()
            else:
                pictures += self._gpu.decode(packet)
        except _nvdec.DecoderError as error:
            self._give_up_gpu(str(error))
            pictures += self._decode_again([packet for packet, _ in kept])
        if pictures:
            self._kept.clear()
        return pictures

    def _give_up_gpu(self, reason: str) -> None:
        self._gpu = None
        self.notice = f"decoded on the CPU, since the GPU's decoder failed: {reason}"

    def _decode_again(self, packets: list[Packet[VideoStream]]) -> list[VideoFrame]:
        """On the CPU, from where the GPU failed; later than that, from the next key frame on."""
        self.stream.codec_context.flush_buffers()
        pictures: list[VideoFrame] = []
        for packet in packets:
            try:
                pictures += self.stream.decode(packet)
            except FFmpegError:
                self.packets_bad += packet.size > 0
        return pictures

    def _duration(self) -> tuple[float | None, bool]:
        """End of the stream on its own clock in seconds, and whether it is the pictures' own."""
        stream = self.stream
        if stream.duration and stream.time_base is not None:
            return float((stream.duration + (stream.start_time or 0)) * stream.time_base), True
        if self.container.duration:
            # Some containers count from their start and some from 0: the lesser is never too late.
            return float(Fraction(self.container.duration, 1_000_000)), self._alone
        return None, False

    def _set_threads(self) -> None:
        """One thread: the engine wants the cores, and frame threads would delay live pictures."""
        context = self.stream.codec_context
        large = context.width * context.height > 1920 * 1088
        context.thread_type = "FRAME" if large and not self.live else "SLICE"
        context.thread_count = 0 if large else 1


def scheme_of(uri: str) -> str:
    """ "rtsp" of "rtsp://..."; empty for a path."""
    return uri.partition("://")[0].lower() if "://" in uri else ""


def short_name(target: str) -> str:
    """For people and logs: a file's name, or a URL without its password and query."""
    if not scheme_of(target):
        return Path(target).name or target
    try:
        url = urlsplit(target)
    except ValueError as error:
        raise SourceError(
            f"malformed URL ({error}): write [ and ] in a name or password as %5B and %5D"
        ) from error
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def _check_file(target: str) -> None:
    try:
        if not stat.S_ISREG(os.stat(target).st_mode):  # noqa: PTH116  (what a pipe gives, it gives once)
            return
        with Path(target).open("rb") as file:
            if not file.read(1):
                raise SourceError(f"{target}: the file is empty: record or copy it again")
    except FileNotFoundError as error:
        raise SourceError(f"{target}: no such file: check the path") from error
    except OSError as error:
        raise SourceError(f"{target}: {error.strerror}: name a readable video file") from error


def reason_of(error: FFmpegError) -> str:
    """FFmpeg's words for an error, without the URL, which may hold a password."""
    late = isinstance(error, av.error.ExitError)
    return "no answer in time" if late else error.strerror or type(error).__name__


def _open_error(
    reason: str, target: str, name: str, error: FFmpegError | None = None
) -> SourceError:
    if scheme_of(target) in SCHEMES:
        fix = "check the address, that the device is on, and the network"
        if isinstance(error, av.error.HTTPUnauthorizedError):
            fix = "put name and password in the URL: scheme://user:password@host/path"
        return SourceError(f"{name}: cannot be opened ({reason}): {fix}")
    if os.path.isfile(target):
        with Path(target).open("rb") as file:
            if file.read(12)[4:8] == b"ftyp":
                return SourceError(
                    f"{name}: this MP4 has no readable index ({reason}): its recording was cut off "
                    "or it is damaged; copy it again, or record to fragmented MP4 or MKV"
                )
    return SourceError(
        f"{name}: not a video that FFmpeg can read ({reason}): check that it plays elsewhere"
    )


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """The first video stream that is no cover picture of a sound file."""
    cover = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        # PyAV leaves the context out where FFmpeg has no decoder for the codec.
        if not stream.disposition & cover and getattr(stream, "codec_context", None) is not None:
            return stream
    found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
    raise SourceError(
        f"{name}: has no video stream that FFmpeg can decode, only {found}: convert it to H.264"
    )
