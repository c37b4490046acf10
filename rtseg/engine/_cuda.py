"""One CUDA device by PyCUDA: its context, and the room and the stream that a frame needs there.

Nothing here knows TensorRT or PyTorch.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rtseg.artifact import Contract
from rtseg.errors import EngineError, MissingDependencyError
from rtseg.frame import NV12, ImageBGR, Labels
from rtseg.native.cuda import Kernels, PrimaryContext, load_module

Network = Callable[[tuple[int, ...]], tuple[int, tuple[int, int, int], bool]]
"""Queues the network on a lane: from the shape (1, 3, h, w) of the float32 at the lane's "input" to
the logits' device address, their (C, h, w), and whether they are float16."""


def missing() -> str:
    """Empty if PyCUDA and a CUDA device are there, else a line with what is missing."""
    try:
        import pycuda.driver as cuda
    except ImportError as error:
        if "libcuda" in str(error):
            return "no NVIDIA driver (libcuda.so.1 is not there): install it, or run on the CPU"
        return f"pycuda needs its package ({error}): pip install 'rtseg[tensorrt]'"
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        return f"the NVIDIA driver does not answer ({error}): update it, or run on the CPU"
    return "" if count else "no NVIDIA GPU is visible (is CUDA_VISIBLE_DEVICES set?)"


class DeviceFacts(NamedTuple):
    """A GPU as `doctor` shows it; capability such as "87"."""

    name: str
    capability: str
    memory_mib: int


def devices() -> list[DeviceFacts]:
    """Every GPU that CUDA sees; only where `missing` has nothing to say."""
    import pycuda.driver as cuda

    found = [cuda.Device(i) for i in range(cuda.Device.count())]
    return [
        DeviceFacts(d.name(), "{}{}".format(*d.compute_capability()), d.total_memory() >> 20)
        for d in found
    ]


class Device:
    """A GPU and its primary context.

    Attributes:
        name: its own, for people.
        capability: compute capability, such as (8, 7).
        kernels: preprocess, argmax and blend on it.
    """

    def __init__(self, ordinal: int = 0) -> None:
        reason = missing()
        if reason:
            raise MissingDependencyError(reason)
        import pycuda.driver as cuda

        self._cuda = cuda
        device = cuda.Device(ordinal)
        self.name: str = device.name()
        major, minor = device.compute_capability()
        self.capability: tuple[int, int] = (int(major), int(minor))
        self._context = PrimaryContext(cuda, ordinal)
        try:
            with self.current():
                self.kernels = Kernels(load_module())
        except BaseException:
            self._context.release()
            raise

    def current(self) -> contextlib.AbstractContextManager[None]:
        """See `PrimaryContext.current`."""
        return self._context.current()

    def lane(self) -> Lane:
        """A new stream with room of its own; inside `current`."""
        return Lane(self._cuda)

    def error(self, error: Exception, what: str, hint: str = "") -> EngineError:
        """One line for an error of the driver."""
        if isinstance(error, self._cuda.MemoryError):
            free, total = (n / 2**20 for n in self._cuda.mem_get_info())
            return EngineError(
                f"out of GPU memory for {what}: {free:.0f} of {total:.0f} MiB are free{hint}"
            )
        return EngineError(f"CUDA failed in {what}: {str(error).splitlines()[0]}")

    @property
    def errors(self) -> type[Exception]:
        """What the driver raises."""
        error: type[Exception] = self._cuda.Error
        return error

    def close(self) -> None:
        """Gives the context back; lanes must be closed before."""
        self._context.release()


class Lane:
    """A stream, and host and device memory that grow to what the frames on it need.

    One frame is on it at a time, and whoever reuses its memory waits for the stream before.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.stream = cuda.Stream()
        self._device: dict[str, tuple[int, Any]] = {}
        self._lent: dict[str, tuple[int, int]] = {}
        self._host: dict[str, NDArray[np.uint8]] = {}

    def device(self, name: str, nbytes: int) -> int:
        """Address of at least so many bytes on the device, the same until more are asked for."""
        size, address = self._lent.get(name, (-1, 0))
        if size >= nbytes:
            return address
        size, memory = self._device.get(name, (0, None))
        if size < nbytes:
            if memory is not None:
                self.stream.synchronize()
                del self._device[name]
                memory.free()
            memory = self._cuda.mem_alloc(nbytes)
            self._device[name] = (nbytes, memory)
        return int(memory)

    def lend(self, name: str, nbytes: int, address: int) -> None:
        """Makes somebody else's device memory what `device` gives for a name."""
        self._lent[name] = (nbytes, address)

    def host(self, name: str, nbytes: int) -> NDArray[np.uint8]:
        """(nbytes,) uint8 of page-locked memory; valid until the next call with this name."""
        if len(self._host.get(name, ())) < nbytes:
            if name in self._host:
                self.stream.synchronize()
            self._host[name] = self._cuda.pagelocked_empty(nbytes, np.uint8)
        return self._host[name][:nbytes]

    def upload(self, name: str, values: NDArray[Any]) -> int:
        """Queues a copy of an array to the device through page-locked memory; its address there."""
        staging = self.host(name, values.nbytes)
        np.copyto(staging.view(values.dtype).reshape(values.shape), values)
        address = self.device(name, values.nbytes)
        self._cuda.memcpy_htod_async(address, staging, self.stream)
        return address

    def download(self, name: str, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Queues a copy from the device; (nbytes,) uint8, filled once the stream is done."""
        staging = self.host(name, nbytes)
        self._cuda.memcpy_dtoh_async(staging, address, self.stream)
        return staging

    def zero(self, name: str, nbytes: int) -> int:
        """Queues zeroing of so many bytes on the device; their address."""
        address = self.device(name, nbytes)
        self._cuda.memset_d8_async(address, 0, nbytes, self.stream)
        return address

    def close(self) -> None:
        """Waits for the stream, then frees everything; inside `Device.current`."""
        self.stream.synchronize()
        for _, memory in self._device.values():
            memory.free()
        self._device.clear()
        self._host.clear()
        self.stream = None


class OnLane(Protocol):
    """A place in flight of an engine: what it needs besides a lane's stream and memory."""

    memory: Lane

    def close(self) -> None:
        """Frees what it holds, the lane too."""


Place = TypeVar("Place", bound=OnLane)


class Lanes(Generic[Place]):
    """The places in flight of an engine, lent to one caller at a time.

    Args:
        device: whose context they live in.
        model: name, for messages.
        make: a place on a fresh lane, called in the device's context.
        count: how many.
    """

    def __init__(
        self, device: Device, model: str, make: Callable[[Lane], Place], count: int
    ) -> None:
        self._device, self._model = device, model
        self._idle: SimpleQueue[Place] = SimpleQueue()
        self._places: list[Place] = []
        with device.current():
            for _ in range(count):
                place = make(device.lane())
                self._places.append(place)
                self._idle.put(place)

    @contextlib.contextmanager
    def idle(self, size: tuple[int, ...]) -> Iterator[Place]:
        """Waits for an idle place and lends it, in the device's context, for input of `size`.

        Raises:
            EngineError: the driver failed within, in one line.
        """
        place = self._idle.get()
        try:
            with self._device.current():
                try:
                    yield place
                except BaseException as error:
                    with contextlib.suppress(self._device.errors):
                        place.memory.stream.synchronize()  # the next frame finds an idle one
                    if not isinstance(error, self._device.errors):
                        raise
                    height, width = size
                    hint = f": try a --size smaller than {height}x{width}"
                    what = f"{self._model} at {height}x{width}"
                    raise self._device.error(error, what, hint) from error
        finally:
            self._idle.put(place)

    def close(self) -> None:
        """Frees all places; called in the device's context."""
        for place in self._places:
            place.close()
        self._places.clear()
        self._idle = SimpleQueue()


class FrameTail:
    """Frames to labels on a device: upload, preprocess, network, argmax, download.

    Only uint8 crosses the bus: the frame one way, unless it was decoded on the device, labels,
    their counts and, if asked for, the blended picture the other.

    Args:
        device: where.
        contract: how the model wants its input and gives its output.
    """

    def __init__(self, device: Device, contract: Contract) -> None:
        self._device, self._contract = device, contract
        self._palette: NDArray[np.uint8] | None = None
        self._opacity = 0.0
        self._lock = threading.Lock()

    def blend_with(self, palette: NDArray[np.uint8], opacity: float) -> None:
        """From now on pictures are blended too: palette (256, 3) uint8 BGR, opacity 0..1."""
        with self._lock:
            self._palette, self._opacity = palette.copy(), opacity

    def run(
        self, lane: Lane, picture: ImageBGR | NV12, size: tuple[int, int], network: Network
    ) -> tuple[Labels, NDArray[np.int64], ImageBGR | None]:
        """One frame, start to end; inside `Device.current`.

        Args:
            picture: (H, W, 3) uint8 BGR, or one that is on the device, held until this returns.
            size: (h, w) of the network's input.
            network: the model, on this lane.

        Returns:
            Labels (H, W) uint8, their counts (256,) int64, the blended picture if there is one,
            of BGR alone; all the caller's own.
        """
        contract, kernels, stream = self._contract, self._device.kernels, lane.stream
        height, width = picture.size_hw if isinstance(picture, NV12) else picture.shape[:2]
        frame = self._preprocess(lane, picture, size)
        logits, chw, half = network((1, 3, *size))
        if chw[0] != len(contract.classes):
            raise EngineError(
                f"{contract.name}: {chw[0]} channels for {len(contract.classes)} classes: "
                "the class table does not fit the graph"
            )
        labels = lane.device("labels", height * width)
        counts = lane.zero("counts", 4 * 256)
        kernels.upsample_argmax(
            logits,
            chw,
            half,
            labels,
            (height, width),
            contract.align_corners,
            contract.classes.ignore_index,
            stream,
            counts,
        )
        own_labels = lane.download("labels", labels, height * width)
        own_counts = lane.download("counts", counts, 4 * 256)
        own_picture = self._blend(lane, frame, labels, (height, width)) if frame else None
        stream.synchronize()
        return (
            own_labels.reshape(height, width).copy(),
            own_counts.view(np.uint32).astype(np.int64),
            None if own_picture is None else own_picture.reshape(height, width, 3).copy(),
        )

    def _preprocess(self, lane: Lane, picture: ImageBGR | NV12, size: tuple[int, int]) -> int:
        """Fills the lane's "input"; the device address of the picture if it is BGR, else 0."""
        contract, kernels = self._contract, self._device.kernels
        image = lane.device("input", 4 * 3 * size[0] * size[1])
        normalisation = contract.mean, contract.std, False, lane.stream
        if isinstance(picture, NV12):
            planes = picture.y, picture.uv, picture.pitch_bytes, picture.size_hw
            colours = picture.full_range, picture.matrix
            kernels.preprocess_nv12(*planes, image, size, *normalisation, *colours)
            return 0
        height, width = picture.shape[:2]
        frame = lane.upload("frame", picture)
        kernels.preprocess_bgr(frame, (height, width), 3 * width, image, size, *normalisation)
        return frame

    def _blend(
        self, lane: Lane, frame: int, labels: int, size: tuple[int, int]
    ) -> NDArray[np.uint8] | None:
        with self._lock:
            palette, opacity = self._palette, self._opacity
        if palette is None:
            return None
        nbytes = 3 * size[0] * size[1]
        colours = lane.upload("palette", palette)
        picture = lane.device("picture", nbytes)
        self._device.kernels.blend(frame, labels, colours, size, opacity, picture, lane.stream)
        return lane.download("picture", picture, nbytes)
