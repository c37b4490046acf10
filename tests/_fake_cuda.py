"""A CUDA driver, its graphs and the kernels, without a GPU: strict about the order.

Work on a stream is queued and runs when the stream is waited for, on memory that is not the
host's, so a result that is read too early, memory that is freed or grown under queued work, and a
call outside a context show up as what they are: wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtseg.native import reference

Op = Callable[[], None]


class FakeDriver(ModuleType):
    """Stands for `pycuda.driver`."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class LogicError(Error):
        pass

    def __init__(self, capability: tuple[int, int] = (8, 6), total_mib: int = 4096) -> None:
        super().__init__("pycuda.driver")
        self.capability, self.total = capability, total_mib << 20
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.streams: dict[int, FakeStream] = {}
        self.pushed: dict[int, int] = {}
        self.most_pushed = 0
        self.retained = 0
        self.graph_launches = 0
        self.graphs: set[int] = set()
        self._next = 1 << 20
        self._lock = threading.RLock()
        driver = self

        class Device:
            def __init__(self, ordinal: int) -> None:
                self.ordinal = ordinal

            @staticmethod
            def count() -> int:
                return 1

            def name(self) -> str:
                return "Fake GPU"

            def total_memory(self) -> int:
                return driver.total

            def compute_capability(self) -> tuple[int, int]:
                return driver.capability

            def retain_primary_context(self) -> Context:
                driver.retained += 1
                return Context()

        class Context:
            def push(self) -> None:
                with driver._lock:
                    thread = threading.get_ident()
                    driver.pushed[thread] = driver.pushed.get(thread, 0) + 1
                    driver.most_pushed = max(driver.most_pushed, driver.pushed[thread])

            @staticmethod
            def pop() -> None:
                with driver._lock:
                    thread = threading.get_ident()
                    assert driver.pushed.get(thread, 0) > 0, "popped more than was pushed"
                    driver.pushed[thread] -= 1

            def detach(self) -> None:
                driver.retained -= 1

        self.Device, self.Context = Device, Context

    def init(self) -> None:
        pass

    def in_context(self) -> None:
        assert self.pushed.get(threading.get_ident(), 0) > 0, "a driver call outside the context"

    def Stream(self) -> FakeStream:  # noqa: N802
        self.in_context()
        with self._lock:
            self._next += 256
            stream = FakeStream(self._next)
            self.streams[stream.handle] = stream
        return stream

    def mem_alloc(self, nbytes: int) -> FakeMemory:
        self.in_context()
        with self._lock:
            if sum(len(block) for block in self.memory.values()) + nbytes > self.total:
                raise self.MemoryError("cuMemAlloc failed: out of memory")
            address = self._next = self._next + (1 << 32)
            self.memory[address] = np.full(nbytes, 0xCD, np.uint8)
        return FakeMemory(self, address)

    def mem_get_info(self) -> tuple[int, int]:
        self.in_context()
        return self.total - sum(len(block) for block in self.memory.values()), self.total

    def pagelocked_empty(self, shape: int, dtype: Any) -> NDArray[Any]:
        self.in_context()
        return np.full(shape, 0xEE, dtype)

    def memcpy_htod_async(self, address: int, source: NDArray[Any], stream: FakeStream) -> None:
        self.in_context()
        stream.add(lambda: self.write(address, source))

    def memcpy_dtoh_async(self, target: NDArray[Any], address: int, stream: FakeStream) -> None:
        self.in_context()
        stream.add(lambda: np.copyto(target, self.read(address, target.nbytes)))

    def memset_d8_async(self, address: int, value: int, nbytes: int, stream: FakeStream) -> None:
        self.in_context()
        stream.add(lambda: self.write(address, np.full(nbytes, value, np.uint8)))

    def read(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """A copy of device memory; fails outside an allocation."""
        block, offset = self._find(address, nbytes)
        return np.array(block[offset : offset + nbytes])

    def write(self, address: int, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        block, offset = self._find(address, len(data))
        block[offset : offset + len(data)] = data

    def _find(self, address: int, nbytes: int) -> tuple[NDArray[np.uint8], int]:
        for start, block in self.memory.items():
            if start <= address and address + nbytes <= start + len(block):
                return block, address - start
        raise AssertionError(f"{nbytes} bytes at {address}: not in device memory")


class FakeMemory:
    def __init__(self, driver: FakeDriver, address: int) -> None:
        self._driver, self._address = driver, address

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._driver.in_context()
        waiting = [s for s in self._driver.streams.values() if s.owner_waits()]
        assert not waiting, "memory freed while its stream has work"
        del self._driver.memory[self._address]


class FakeStream:
    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.queue: list[Op] = []
        self.recording: list[Op] | None = None
        self._thread = threading.get_ident()

    def add(self, op: Op) -> None:
        self._thread = threading.get_ident()
        (self.queue if self.recording is None else self.recording).append(op)

    def owner_waits(self) -> bool:
        """Whether this thread's own work is still queued here; others' lanes are their own."""
        return bool(self.queue) and self._thread == threading.get_ident()

    def synchronize(self) -> None:
        assert self.recording is None, "waited for a stream while it is recorded"
        work, self.queue = self.queue, []
        for op in work:
            op()


def graph_driver(driver: FakeDriver) -> SimpleNamespace:
    """Stands for `cuda.bindings.driver`, as far as graphs go."""

    def begin(handle: int, mode: str) -> tuple[int]:
        assert mode == "thread-local"
        driver.streams[handle].recording = []
        return (0,)

    def end(handle: int) -> tuple[int, list[Op]]:
        stream = driver.streams[handle]
        recorded, stream.recording = stream.recording or [], None
        return 0, recorded

    def instantiate(graph: list[Op], flags: int) -> tuple[int, list[Op]]:
        executable = list(graph)
        driver.graphs.add(id(executable))
        return 0, executable

    def launch(executable: list[Op], handle: int) -> tuple[int]:
        assert id(executable) in driver.graphs, "a destroyed graph was launched"
        driver.graph_launches += 1
        for op in executable:
            driver.streams[handle].add(op)
        return (0,)

    def destroy_executable(executable: list[Op]) -> tuple[int]:
        driver.graphs.remove(id(executable))
        return (0,)

    return SimpleNamespace(
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread-local"),
        cuStreamBeginCapture=begin,
        cuStreamEndCapture=end,
        cuGraphInstantiate=instantiate,
        cuGraphLaunch=launch,
        cuGraphExecDestroy=destroy_executable,
        cuGraphDestroy=lambda graph: (0,),
    )


class FakeKernels:
    """The reference, on the fake device's memory; same methods as `rtseg.native.cuda.Kernels`."""

    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver

    def preprocess_bgr(
        self,
        src: int,
        src_hw: tuple[int, int],
        src_pitch_bytes: int,
        dst: int,
        dst_hw: tuple[int, int],
        mean: Any,
        std: Any,
        half: bool,
        stream: FakeStream,
    ) -> None:
        assert src_pitch_bytes == 3 * src_hw[1]

        def work() -> None:
            bgr = self._driver.read(src, 3 * src_hw[0] * src_hw[1]).reshape(*src_hw, 3)
            image = reference.preprocess(bgr, dst_hw, mean, std)
            self._driver.write(dst, image.astype(np.float16) if half else image)

        stream.add(work)

    def upsample_argmax(
        self,
        logits: int,
        chw: tuple[int, int, int],
        half: bool,
        labels: int,
        hw: tuple[int, int],
        align_corners: bool,
        ignore_index: int,
        stream: FakeStream,
        counts: int = 0,
    ) -> None:
        def work() -> None:
            kind = np.dtype(np.float16 if half else np.float32)
            data = self._driver.read(logits, int(np.prod(chw)) * kind.itemsize)
            values = data.view(kind).reshape(chw)
            result = reference.upsample_argmax(values, hw, align_corners, ignore_index)
            self._driver.write(labels, result)
            before = self._driver.read(counts, 1024).view(np.uint32)
            total = before + reference.count_labels(result).astype(np.uint32)
            self._driver.write(counts, total.astype(np.uint32))

        stream.add(work)

    def blend(
        self,
        bgr: int,
        labels: int,
        palette: int,
        hw: tuple[int, int],
        opacity: float,
        out: int,
        stream: FakeStream,
    ) -> None:
        def work() -> None:
            pixels = hw[0] * hw[1]
            image = self._driver.read(bgr, 3 * pixels).reshape(*hw, 3)
            own = self._driver.read(labels, pixels).reshape(hw)
            colours = self._driver.read(palette, 768).reshape(256, 3)
            self._driver.write(out, reference.blend(image, own, colours, opacity))

        stream.add(work)
