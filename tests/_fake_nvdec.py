"""PyNvVideoCodec without a GPU: PyAV decodes, the pictures lie in the fake driver's memory.

Strict where the real one is (checked against PyNvVideoCodec 2.2.4's own bindings and source):
types, keywords, Annex B with parameter sets, and how long a picture lasts. It is written on the
stream that the decoder was given and complete only when that stream is waited for; the next
`Decode` spoils all surfaces, on the same stream, and uses them again.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
from _fake_cuda import FakeDriver, FakeKernels, FakeMemory, FakeStream
from numpy.typing import NDArray

from rtseg.native import reference

POISON = 0xAB
FAILED = (
    "HandleVideoSequence : \nError code : 801\nError Type : {}\nat /project/NvDecoder.cpp:274\n"
)


class Driver(FakeDriver):
    """With what copies on the device need."""

    def __init__(self) -> None:
        super().__init__()
        self.Context.handle = 0xC0  # type: ignore[attr-defined]

    def memcpy_dtod_async(self, target: int, source: int, nbytes: int, stream: FakeStream) -> None:
        self.in_context()
        stream.add(lambda: self.write(target, self.read(source, nbytes)))

    def _find(self, address: int, nbytes: int) -> tuple[NDArray[np.uint8], int]:
        for start, block in list(self.memory.items()):  # other threads allocate meanwhile
            if start <= address and address + nbytes <= start + len(block):
                return block, address - start
        raise AssertionError(f"{nbytes} bytes at {address}: not in device memory")


class Kernels(FakeKernels):
    """With NV12: the arithmetic of the kernel, in whole numbers, then the reference."""

    def preprocess_nv12(
        self,
        y: int,
        uv: int,
        pitch_bytes: int,
        src_hw: tuple[int, int],
        dst: int,
        dst_hw: tuple[int, int],
        mean: Any,
        std: Any,
        half: bool,
        stream: FakeStream,
        full_range: bool = False,
        matrix: Any = "bt601",
    ) -> None:
        height, width = src_hw

        def work() -> None:
            luma = self._driver.read(y, pitch_bytes * height).reshape(height, -1)[:, :width]
            rows = self._driver.read(uv, pitch_bytes * height // 2).reshape(height // 2, -1)
            chroma = rows[:, :width].reshape(height // 2, width // 2, 2)
            planes = luma, chroma[..., 0], chroma[..., 1]
            bgr = reference.yuv420_to_bgr(planes, full_range, matrix)
            image = reference.preprocess(bgr, dst_hw, mean, std)
            self._driver.write(dst, image.astype(np.float16) if half else image)

        stream.add(work)


class PacketData:
    """Takes whole numbers only, and no attribute that the real one has not."""

    __slots__ = ("bsl", "bsl_data", "decode_flag", "pts")

    def __init__(self) -> None:
        self.bsl = self.bsl_data = self.decode_flag = self.pts = 0

    def __setattr__(self, name: str, value: int) -> None:
        if not isinstance(value, int):
            raise TypeError("incompatible function arguments")
        object.__setattr__(self, name, value)


class PyNvVideoCodec(ModuleType):
    """The module.

    Attributes:
        fail_at: the packet, from 0, at which `Decode` raises; -1: `CreateDecoder` does.
        silent: decode, but never give a picture.
        padding: bytes between the rows of its pictures.
        decoders: all that were created.
    """

    __version__ = "2.2.4"
    PacketData = PacketData
    cudaVideoCodec = enum.Enum("cudaVideoCodec", "H264 HEVC VP9 AV1")  # noqa: N815
    DisplayDecodeLatencyType = enum.Enum("DisplayDecodeLatencyType", "NATIVE LOW ZERO")

    class VideoPacketFlag(enum.IntEnum):
        ENDOFPICTURE = 8

    class PyNvVCException(Exception):  # noqa: N818
        pass

    def __init__(self, driver: Driver) -> None:
        super().__init__("PyNvVideoCodec")
        self.driver = driver
        self.fail_at: int | None = None
        self.silent = False
        self.padding = 0
        self.decoders: list[dict[str, Any]] = []

    def CreateDecoder(  # noqa: N802
        self,
        gpuid: int = 0,
        codec: Any = None,
        cudacontext: int = 0,
        cudastream: int = 0,
        usedevicememory: bool = False,
        latency: Any = None,
    ) -> FakeDecoder:
        assert usedevicememory
        assert cudacontext == 0xC0, "not the primary context"
        assert isinstance(codec, self.cudaVideoCodec)
        if self.fail_at == -1:
            raise self.PyNvVCException(FAILED.format("PyNvDecoder constructor failed"))
        facts = {"codec": codec.name, "latency": latency.name, "gpu": gpuid, "packets": []}
        self.decoders.append(facts)
        return FakeDecoder(self, self.driver.streams[cudastream], facts)


class FakeDecoder:
    def __init__(self, library: PyNvVideoCodec, stream: FakeStream, facts: dict[str, Any]) -> None:
        self._library, self._driver, self._stream = library, library.driver, stream
        self._facts = facts
        name = {"AV1": "libdav1d"}.get(facts["codec"], facts["codec"].lower())
        self._codec = av.CodecContext.create(name, "r")
        self._codec.thread_count = 1
        self._context = self._driver.Device(0).retain_primary_context()
        self._surfaces: list[FakeMemory] = []
        self._ended = False

    def Decode(self, packet: PacketData) -> list[SimpleNamespace]:  # noqa: N802
        packets = self._facts["packets"]
        if len(packets) == self._library.fail_at:
            raise self._library.PyNvVCException(FAILED.format("Codec not supported on this GPU"))
        packets.append((packet.pts, packet.decode_flag, packet.bsl))
        if packet.bsl:
            assert not self._ended, "a packet after the end of the stream"
            data = ctypes.string_at(packet.bsl_data, packet.bsl)
            if len(packets) == 1:
                self._check_first(data)
            given = av.Packet(data)
            given.pts = given.dts = packet.pts
            pictures = self._codec.decode(given)
        else:
            self._ended = True
            pictures = self._codec.decode(None)
        self._context.push()
        try:
            for surface in self._surfaces:
                self._write(int(surface), np.full(surface.nbytes, POISON, np.uint8))  # type: ignore[attr-defined]
            shown = [] if self._library.silent else pictures
            return [self._show(place, picture) for place, picture in enumerate(shown)]
        finally:
            self._driver.Context.pop()

    def _check_first(self, data: bytes) -> None:
        codec = self._facts["codec"]
        if codec in ("H264", "HEVC"):
            assert data[:3] == b"\0\0\1" or data[:4] == b"\0\0\0\1", "not Annex B"
            kinds = [unit[0] for unit in data.split(b"\0\0\1")[1:]]
            found = [kind & 31 if codec == "H264" else kind >> 1 for kind in kinds]
            assert (7 if codec == "H264" else 33) in found, "no parameter sets"

    def _show(self, place: int, picture: Any) -> SimpleNamespace:
        height, width, pitch = picture.height, picture.width, picture.width + self._library.padding
        nbytes = pitch * height * 3 // 2
        if place == len(self._surfaces):
            memory = self._driver.mem_alloc(nbytes)
            memory.nbytes = nbytes  # type: ignore[attr-defined]
            self._surfaces.append(memory)
        address = int(self._surfaces[place])
        padded = np.full((height * 3 // 2, pitch), POISON, np.uint8)
        padded[:, :width] = nv12_of(picture)
        self._write(address, padded)
        chroma = address + pitch * height
        views = [
            view([height, width, 1], [pitch, 1, 1], address),
            view([height // 2, width // 2, 2], [pitch, 2, 1], chroma),
        ]
        return SimpleNamespace(getPTS=lambda: picture.pts, cuda=lambda: views)

    def _write(self, address: int, values: NDArray[np.uint8]) -> None:
        self._stream.add(lambda: self._driver.write(address, values))

    def __del__(self) -> None:
        self._context.push()
        for surface in self._surfaces:
            surface.free()
        self._driver.Context.pop()
        self._context.detach()


def view(shape: list[int], stride: list[int], address: int) -> SimpleNamespace:
    """As `CAIMemoryView`."""
    return SimpleNamespace(shape=shape, stride=stride, dataptr=address)


def nv12_of(picture: Any) -> NDArray[np.uint8]:
    """(H * 3 / 2, W) uint8, luma above chroma."""
    height, width = picture.height, picture.width
    planes = picture.to_ndarray().reshape(-1)
    luma, (u, v) = planes[: height * width], planes[height * width :].reshape(2, -1)
    chroma = np.stack([u, v], -1).reshape(-1)
    return np.concatenate([luma, chroma]).reshape(height * 3 // 2, width)


def install(monkeypatch: Any) -> PyNvVideoCodec:
    """Puts both into `sys.modules`."""
    driver = Driver()
    library = PyNvVideoCodec(driver)
    package = ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    for name, module in (
        ("pycuda", package),
        ("pycuda.driver", driver),
        ("PyNvVideoCodec", library),
    ):
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    return library
