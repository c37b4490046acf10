"""Decoding on an NVIDIA GPU with PyNvVideoCodec: packets in, pictures in the GPU's memory out.

A private part of `stream.py`; knows nothing of containers, files or clocks. The library's pictures
live in a few surfaces that it uses again at its next call, and are complete only in the order of
the stream it was given. They are copied on that same stream into memory of ours, and the stream is
waited for, so a picture that leaves here is complete and stays as it is.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import numpy as np
from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rtseg import native
from rtseg.frame import NV12, ImageBGR, Matrix
from rtseg.native.cuda import PrimaryContext
from rtseg.source._colours import colours_of

# By the names of FFmpeg's decoders: the library's name, and the filters that turn packets of a
# container into the stream that it expects, with the parameter sets before every key frame.
_ANNEX_B = "{}_mp4toannexb,dump_extra=freq=keyframe"
_CODECS = {
    "h264": ("H264", _ANNEX_B.format("h264")),
    "hevc": ("HEVC", _ANNEX_B.format("hevc")),
    "vp9": ("VP9", ""),
    "libvpx-vp9": ("VP9", ""),
    "av1": ("AV1", ""),
    "libdav1d": ("AV1", ""),
    "libaom-av1": ("AV1", ""),
}
_WAITING_MAX = 256
_PATIENCE_PACKETS = 64


class DecoderError(Exception):
    """The GPU cannot go on with this stream; the message is one line, without a fix."""


def missing() -> str:
    """Empty if PyNvVideoCodec and PyCUDA load here, else one line that says why not."""
    try:
        _load()
    except DecoderError as error:
        return str(error)
    return ""


def version() -> str:
    """PyNvVideoCodec's; only where nothing is `missing`."""
    return str(_load()[0].__version__)


def takes(stream: VideoStream, first: VideoFrame) -> bool:
    """Whether the decoder and the kernels are made for a stream, by its first picture.

    Progressive 8-bit 4:2:0 of even size, in a codec that is listed here, BT.601 or BT.709.
    """
    return (
        stream.codec_context.name in _CODECS
        and colours_of(first) is not None
        and first.width % 2 == first.height % 2 == 0
        and not first.interlaced_frame
    )


@dataclass(frozen=True)
class Picture:
    """A decoded picture: of `av.VideoFrame`, what there is without its pixels, and these."""

    pts: int | None
    dts: int | None
    time_base: Fraction | None
    duration: int
    is_corrupt: bool
    surface: NV12


class _Stamp(NamedTuple):
    """What a packet says of its picture; a picture marked `discard` is decoded, but not shown."""

    pts: int | None
    duration: int
    is_corrupt: bool
    discard: bool


class Decoder:
    """Decodes one stream; used by one thread at a time, closed from any.

    Args:
        stream: where the packets come from.
        first: its first picture, for the colours; see `takes`.
        ordinal: of the GPU.
        live: hand out pictures as soon as may be, and leave out those before the first key frame.

    Attributes:
        shown: whether it has given any picture.

    Raises:
        DecoderError: here and in the methods; the decoder is closed then.
    """

    def __init__(self, stream: VideoStream, first: VideoFrame, ordinal: int, live: bool) -> None:
        self._library, cuda = _load()
        codec, filters = _CODECS[stream.codec_context.name]
        colours = colours_of(first)
        assert colours is not None, "see `takes`"
        self._colours = colours
        self._filters = BitStreamFilterContext(filters, stream) if filters else None
        self._live, self._joined, self._broken = live, not live, False
        self.shown, self._given = False, 0
        self._time_base = stream.time_base
        self._waiting: dict[int, _Stamp] = {}
        self._last_stamp = -1
        with _one_line(cuda):
            self._memory: _Memory | None = _Memory(cuda, ordinal)
        with self._working():
            latency = self._library.DisplayDecodeLatencyType
            self._decoder = self._library.CreateDecoder(
                gpuid=ordinal,
                codec=getattr(self._library.cudaVideoCodec, codec),
                cudacontext=self._memory.context_handle,
                cudastream=self._memory.stream_handle,
                usedevicememory=True,
                latency=latency.LOW if live else latency.NATIVE,
            )

    def decode(self, packet: Packet[VideoStream]) -> list[Picture]:
        """The pictures that are complete with this packet, in the order of presentation."""
        self._joined = self._joined or packet.is_keyframe
        if not self._joined:
            return []
        self._broken = packet.is_corrupt or (self._broken and not packet.is_keyframe)
        stamp = self._last_stamp + 1 if packet.pts is None else packet.pts
        self._last_stamp = stamp
        duration, discard = packet.duration or 0, packet.is_discard
        self._waiting[stamp] = _Stamp(packet.pts, duration, self._broken, discard)
        if len(self._waiting) > _WAITING_MAX:  # of pictures that never came
            del self._waiting[next(iter(self._waiting))]
        pictures = []
        for data in self._filtered(packet):
            given = self._library.PacketData()
            given.bsl_data, given.bsl, given.pts = data.buffer_ptr, data.size, stamp
            if self._live:  # else it waits for the next packet to know that this one is whole
                given.decode_flag = int(self._library.VideoPacketFlag.ENDOFPICTURE)
            pictures += self._run(given, packet)
        self._given += 1
        if not self.shown and self._given > _PATIENCE_PACKETS:
            self._refuse(f"no picture came of {self._given} packets")
        return pictures

    def flush(self) -> list[Picture]:
        """The pictures that were held back, at the end of the stream."""
        pictures = self._run(self._library.PacketData(), None)
        if not self.shown:
            self._refuse("no picture came")
        return pictures

    def close(self) -> None:
        """Frees the decoder; the pictures stay as long as somebody holds them."""
        memory, self._memory = self._memory, None
        if memory is not None:
            with memory.current():
                self._decoder = None
                memory.close()

    @contextlib.contextmanager
    def _working(self) -> Iterator[_Memory]:
        """In the context; what the library and the driver raise becomes a `DecoderError`."""
        memory = self._memory
        assert memory is not None, "the decoder is closed"
        try:
            with _one_line(memory.cuda), memory.current():
                yield memory
        except DecoderError:
            with contextlib.suppress(memory.cuda.Error):
                self.close()
            raise

    def _filtered(self, packet: Packet[VideoStream]) -> list[Packet[VideoStream]]:
        if self._filters is None:
            return [packet]
        data = Packet(bytes(packet))  # a filter takes the bytes away from what it is given
        data.pts, data.dts, data.is_keyframe = packet.pts, packet.dts, packet.is_keyframe
        with _one_line():
            return self._filters.filter(data)

    def _run(self, packet_data: Any, packet: Packet[VideoStream] | None) -> list[Picture]:
        with self._working() as memory:
            surfaces = self._decoder.Decode(packet_data)
            pictures = []
            for surface in surfaces:
                given = surface.getPTS()
                stamp = self._waiting.pop(given, _Stamp(given, 0, self._broken, False))
                if not stamp.discard:
                    nv12 = self._copy(memory, surface)
                    # As FFmpeg's: the decoding time of the packet that let the picture out.
                    dts = None if packet is None else packet.dts
                    rest = dts, self._time_base, stamp.duration, stamp.is_corrupt, nv12
                    pictures.append(Picture(stamp.pts, *rest))
                self.shown = True
            memory.stream.synchronize()
            return pictures

    def _refuse(self, reason: str) -> NoReturn:
        self.close()
        raise DecoderError(reason)

    def _copy(self, memory: _Memory, surface: Any) -> NV12:
        luma, chroma = surface.cuda()
        height, width = (int(n) for n in luma.shape[:2])
        pitch = int(luma.stride[0])
        wanted = [height // 2, width // 2, 2], pitch
        if ([int(n) for n in chroma.shape], int(chroma.stride[0])) != wanted or height % 2:
            raise DecoderError(f"its pictures are not NV12 but {luma.shape} and {chroma.shape}")
        block = memory.block((height, width), pitch, self._colours)
        memory.copy(block.address, luma.dataptr, pitch * height)
        memory.copy(block.address + pitch * height, chroma.dataptr, pitch * height // 2)
        full_range, matrix = self._colours
        return NV12(
            y=block.address,
            uv=block.address + pitch * height,
            pitch_bytes=pitch,
            size_hw=(height, width),
            full_range=full_range,
            matrix=matrix,
            to_bgr=block.to_bgr,
        )


class _Memory:
    """Memory of a GPU for pictures, in its primary context, with a stream to fill it.

    Blocks come back by themselves when nobody holds them any more, from any thread, and are used
    again. After `close` they are freed as they come; the last one lets go of the context.
    """

    def __init__(self, cuda: Any, ordinal: int) -> None:
        cuda.init()
        self.cuda = cuda
        self._context = PrimaryContext(cuda, ordinal)
        # Not at exit: the driver may be gone by then.
        weakref.finalize(self, self._context.release).atexit = False
        with self.current():
            self.stream = cuda.Stream()
        self._idle: deque[tuple[int, Any]] = deque()
        self._closed = False

    @property
    def context_handle(self) -> int:
        return self._context.handle

    @property
    def stream_handle(self) -> int:
        return int(self.stream.handle)

    def current(self) -> contextlib.AbstractContextManager[None]:
        """See `PrimaryContext.current`."""
        return self._context.current()

    def block(self, size_hw: tuple[int, int], pitch: int, colours: tuple[bool, Matrix]) -> _Block:
        """Room for one NV12 picture; inside `current`."""
        nbytes = pitch * size_hw[0] * 3 // 2
        memory = None
        while memory is None and self._idle:
            size, memory = self._idle.pop()
            if size != nbytes:  # the stream has changed its size
                memory.free()
                memory = None
        if memory is None:
            memory = self.cuda.mem_alloc(nbytes)
        return _Block(self, memory, size_hw, pitch, colours)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queues a copy on the stream; inside `current`."""
        self.cuda.memcpy_dtod_async(target, int(source), nbytes, self.stream)

    def download(self, address: int, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(nbytes,) uint8 from the GPU; from any thread."""
        host = np.empty(nbytes, np.uint8)
        with self.current():
            stream = self.cuda.Stream()  # not the decoder's, which may be gone before its pictures
            self.cuda.memcpy_dtoh_async(host, address, stream)
            stream.synchronize()
            del stream
        return host

    def give_back(self, nbytes: int, memory: Any) -> None:
        """Takes a block's memory when the block is gone."""
        # No lock, as this may interrupt any line of any thread; a deque needs none.
        self._idle.append((nbytes, memory))
        if self._closed:
            with self.current():
                self._free()

    def close(self) -> None:
        """Frees what nobody holds; inside `current`."""
        self._closed = True
        self.stream.synchronize()
        self.stream = None
        self._free()

    def _free(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop()[1].free()


class _Block:
    """The memory of one picture, luma above chroma."""

    def __init__(
        self,
        memory: _Memory,
        allocation: Any,
        size_hw: tuple[int, int],
        pitch: int,
        colours: tuple[bool, Matrix],
    ) -> None:
        self.address = int(allocation)
        self._memory, self._size_hw, self._pitch = memory, size_hw, pitch
        self._colours = colours
        nbytes = pitch * size_hw[0] * 3 // 2
        weakref.finalize(self, memory.give_back, nbytes, allocation).atexit = False

    def to_bgr(self) -> ImageBGR:
        """(H, W, 3) uint8 BGR, equal to that of the same picture decoded on the CPU."""
        height, width = self._size_hw
        data = self._memory.download(self.address, self._pitch * height * 3 // 2)
        rows = data.reshape(-1, self._pitch)[:, :width]
        chroma = rows[height:].reshape(height // 2, width // 2, 2)
        return native.yuv420_to_bgr((rows[:height], chroma[..., 0], chroma[..., 1]), *self._colours)


def _load() -> tuple[ModuleType, Any]:
    """PyNvVideoCodec and `pycuda.driver`."""
    # It logs what it raises as well, in several lines.
    logging.getLogger("PyNvVideoCodec").disabled = True
    try:
        import pycuda.driver as cuda
        import PyNvVideoCodec
    except ModuleNotFoundError as error:
        raise DecoderError("pip install PyNvVideoCodec pycuda") from error
    except Exception as error:  # what it raises without a driver differs from version to version
        raise DecoderError(f"PyNvVideoCodec does not load ({_first_line(error)})") from error
    return PyNvVideoCodec, cuda


@contextlib.contextmanager
def _one_line(cuda: Any = None) -> Iterator[None]:
    """Turns what a foreign library raises into a `DecoderError`."""
    try:
        yield
    except DecoderError:
        raise
    except Exception as error:
        if cuda is not None and isinstance(error, cuda.MemoryError):
            raise DecoderError("out of GPU memory") from error
        raise DecoderError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    """What happened; PyNvVideoCodec says in a line of its own, after where and which number."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.partition(":")[2].strip() for line in lines if line.startswith("Error Type")]
    return next(iter([*told, *lines]), type(error).__name__)
