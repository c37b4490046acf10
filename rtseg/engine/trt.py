"""TensorRT and TensorRT-RTX: from the upload of a frame to its labels, everything is on the GPU.

A plan is built for each input size when it is first needed, kept in the engine store, and found
there by the next run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtseg.artifact import ModelFile
from rtseg.engine import EngineInfo, OnProgress, _cuda, _plan, _tensorrt, quiet
from rtseg.errors import ConfigError, EngineError, RtsegError
from rtseg.frame import NV12, ImageBGR, Labels
from rtseg.plans import INPUT, OUTPUT, check_tensors

_PRECISIONS = ("fp32", "fp16", "int8", "fp8")


def available() -> str:
    """Empty if TensorRT, PyCUDA and an NVIDIA GPU are there."""
    return _tensorrt.missing() or _cuda.missing()


def open(
    model: ModelFile,
    precision: str = "auto",
    requests: int = 1,
    on_progress: OnProgress = quiet,
) -> TensorRTEngine:
    """Loads the model on the first GPU; see `rtseg.engine.open_engine`."""
    return TensorRTEngine(model, precision, requests, on_progress)


class TensorRTEngine:
    """One model on one GPU, any input size, with as many frames in flight as asked for.

    Each of them has a stream, an execution context and memory of its own (a lane), so the upload
    of one frame runs beside the network on another.
    """

    def __init__(
        self,
        model: ModelFile,
        precision: str,
        requests: int = 1,
        on_progress: OnProgress = quiet,
    ) -> None:
        own = model.contract.precision
        if precision == "auto":
            precision = own if own in ("int8", "fp8") else "fp16"
        if precision not in _PRECISIONS:
            raise ConfigError(f"tensorrt computes in {', '.join(_PRECISIONS)}, not {precision}")
        self._model, self._precision, self._on_progress = model, precision, on_progress
        self._trt = _tensorrt.load()
        self._device = _cuda.Device()
        self._runtime = self._trt.Runtime(_tensorrt.logger(self._trt))
        self._plans: dict[tuple[int, ...], Any] = {}
        self._loading = threading.Lock()
        self._lanes = _cuda.Lanes(
            self._device,
            model.contract.name,
            lambda memory: _Lane(memory, self._plan, self._trt),
            requests,
        )
        self._tail = _cuda.FrameTail(self._device, model.contract)
        self.info = EngineInfo(
            "tensorrt",
            self._device.name,
            precision,
            _tensorrt.title(self._trt),
            requests,
            takes_frames=True,
        )

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32] | NDArray[np.float16]:
        """Logits (N, C, h, w), owned by the caller."""
        with self._lanes.idle(images.shape[-2:]) as lane:
            lane.memory.upload("input", np.ascontiguousarray(images, np.float32))
            address, (channels, height, width), half = lane.run(images.shape)
            shape = (len(images), channels, height, width)
            kind = np.dtype(np.float16 if half else np.float32)
            nbytes = int(np.prod(shape)) * kind.itemsize
            logits = lane.memory.download("logits", address, nbytes)
            lane.memory.stream.synchronize()
            own: NDArray[Any] = logits.view(kind).reshape(shape).copy()
            return own

    def segment(
        self, picture: ImageBGR | NV12, size: tuple[int, int]
    ) -> tuple[Labels, NDArray[np.int64], ImageBGR | None]:
        """A frame's labels, their counts and, after `blend_with`, the blended picture.

        See `rtseg.engine.FrameEngine`.
        """
        with self._lanes.idle(size) as lane:
            return self._tail.run(lane.memory, picture, size, lane.run)

    def blend_with(self, palette: NDArray[np.uint8], opacity: float) -> None:
        """From now on `segment` gives the blended picture as well."""
        self._tail.blend_with(palette, opacity)

    def repeat(self, size: tuple[int, int], count: int) -> None:
        """Runs the network alone so many times on what is on the device, and waits for it."""
        with self._lanes.idle(size) as lane:
            lane.memory.device("input", 4 * 3 * size[0] * size[1])
            for _ in range(count):
                lane.run((1, 3, *size))
            lane.memory.stream.synchronize()

    def close(self) -> None:
        with self._device.current():
            self._lanes.close()
            self._plans.clear()
            del self._runtime
        self._device.close()

    def _plan(self, shape: tuple[int, ...]) -> Any:
        """The deserialised plan for an input shape, from the store or built for it."""
        with self._loading:
            if shape not in self._plans:
                path = _plan.plan_for(
                    self._model,
                    shape,
                    self._precision,
                    self._device.capability,
                    on_notice=lambda line: self._on_progress(0, None, line),
                    on_progress=self._on_progress,
                    trt=self._trt,
                )
                self._plans[shape] = self._load(path)
            return self._plans[shape]

    def _load(self, path: Path) -> Any:
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            reason = _tensorrt.logger(self._trt).last()
            raise EngineError(
                f"{path}: TensorRT cannot load it ({reason}): delete it, and it is built again"
            )
        wrong = check_tensors(_tensorrt.tensors_of(engine, self._trt))
        if wrong:
            raise EngineError(f"{path}: {wrong}: delete it, and it is built again")
        return engine


class _Lane:
    """A place in flight: memory and stream, and an execution context for its last input shape."""

    def __init__(
        self, memory: _cuda.Lane, plan_for: Callable[[tuple[int, ...]], Any], trt: Any
    ) -> None:
        self.memory = memory
        self._plan_for, self._trt = plan_for, trt
        self._shape: tuple[int, ...] = ()
        self._context: Any = None
        self._graph: _Graph | None = None

    def run(self, shape: tuple[int, ...]) -> tuple[int, tuple[int, int, int], bool]:
        """Queues the network on what lies at "input"; see `_cuda.Network`."""
        if shape != self._shape:
            self._prepare(shape)
        context = self._context
        _, channels, height, width = (int(n) for n in context.get_tensor_shape(OUTPUT))
        half = context.engine.get_tensor_dtype(OUTPUT) == self._trt.float16
        count = shape[0] * channels * height * width
        source = self.memory.device("input", 4 * int(np.prod(shape)))
        target = self.memory.device("logits", count * (2 if half else 4))
        if self._graph is None or self._graph.addresses != (source, target):
            context.set_tensor_address(INPUT, source)
            context.set_tensor_address(OUTPUT, target)
            self._close_graph()
            self._graph = _Graph(self._execute, self.memory.stream, (source, target))
        self._graph.launch()
        return target, (channels, height, width), half

    def close(self) -> None:
        """Inside the device's context."""
        self.memory.stream.synchronize()
        self._close_graph()
        self._context = None
        self.memory.close()

    def _prepare(self, shape: tuple[int, ...]) -> None:
        plan = self._plan_for(shape)
        self.memory.stream.synchronize()
        self._close_graph()
        self._context = _tensorrt.execution_context(plan, self._trt)
        if self._context is None or not self._context.set_input_shape(INPUT, shape):
            raise EngineError(f"TensorRT takes no input {shape}: the plan was built for others")
        self._shape = shape

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self.memory.stream.handle)):
            raise EngineError("TensorRT failed to run the plan")

    def _close_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None


class _Graph:
    """Work on a stream, recorded as a CUDA graph the second time it runs.

    The first run is the warm-up in which TensorRT sets itself up, which must not be recorded.
    Without cuda-bindings, or where the work cannot be recorded, it runs as it is.
    """

    def __init__(self, work: Callable[[], None], stream: Any, addresses: tuple[int, int]) -> None:
        self.addresses = addresses
        self._work, self._stream = work, stream
        self._runs = 0
        self._executable: Any = None
        self._driver = _graph_driver()

    def launch(self) -> None:
        """Queues the work."""
        self._runs += 1
        if self._runs == 2 and self._driver is not None:
            self._executable = self._record()
        if self._executable is None:
            self._work()
        else:
            _checked(self._driver.cuGraphLaunch(self._executable, int(self._stream.handle)))

    def close(self) -> None:
        """The stream must be idle."""
        if self._executable is not None:
            _checked(self._driver.cuGraphExecDestroy(self._executable))
            self._executable = None

    def _record(self) -> Any:
        driver, stream = self._driver, int(self._stream.handle)
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _checked(driver.cuStreamBeginCapture(stream, mode))
        try:
            self._work()
        except RtsegError:
            driver.cuStreamEndCapture(stream)
            return None  # cannot be recorded: launch() runs it as it is
        graph = _checked(driver.cuStreamEndCapture(stream))
        executable = _checked(driver.cuGraphInstantiate(graph, 0))
        _checked(driver.cuGraphDestroy(graph))
        return executable


def _graph_driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    return driver


def _checked(answer: tuple[Any, ...]) -> Any:
    """The value of a cuda-bindings call; EngineError if it failed."""
    status, *values = answer
    if int(status) != 0:
        raise EngineError(f"CUDA graphs failed: {getattr(status, 'name', status)}")
    return values[0] if values else None
