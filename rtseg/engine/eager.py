"""PyTorch, without a compiler: the reference engine, and a fast one on CUDA.

Builds the network that the contract names and loads its weights from the model file. On CUDA
it runs in float16, channels last, replayed as a CUDA graph for each input shape; with PyCUDA the
rest of a frame's way is on the GPU too, by the same kernels as TensorRT's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtseg.artifact import ModelFile
from rtseg.engine import EngineInfo, OnProgress, _cuda, quiet
from rtseg.errors import ConfigError, EngineError
from rtseg.frame import NV12, ImageBGR, Labels


def available() -> str:
    """Empty if torch and onnx (to read the weights) are installed."""
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        return f"eager needs torch and onnx ({error}): pip install 'rtseg[torch]'"
    return ""


def open(
    model: ModelFile,
    precision: str = "auto",
    requests: int = 1,
    on_progress: OnProgress = quiet,
) -> EagerEngine:
    """Loads the model on CUDA if there is one, else on the CPU, for one inference at a time."""
    import torch

    if torch.cuda.is_available() and not _cuda.missing():
        return CudaEagerEngine(model, precision, requests)
    return EagerEngine(model, precision)


class EagerEngine:
    """One of our own networks in PyTorch; any input shape."""

    def __init__(self, model: ModelFile, precision: str) -> None:
        import torch

        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self._device.type == "cuda"
        if precision == "auto":
            precision = "fp16" if on_gpu else "bf16" if cpu_has_bf16() else "fp32"
        types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        if precision not in types or (precision == "fp16" and not on_gpu):
            allowed = "fp32, fp16 or bf16" if on_gpu else "fp32 or bf16 on a CPU"
            raise ConfigError(f"eager computes in {allowed}, not {precision}")
        self._type = types[precision]
        self._network = build_network(model).to(
            device=self._device, dtype=self._type, memory_format=torch.channels_last
        )
        self._graphs: dict[tuple[int, ...], tuple[Any, Any, Any]] = {}
        self.info = EngineInfo(
            "eager",
            torch.cuda.get_device_name() if on_gpu else "CPU",
            precision,
            torch.__version__.split("+")[0],
        )

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C, h, w) float32, owned by the caller."""
        torch = self._torch
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(images)
                if self._device.type == "cuda":
                    return self._infer_cuda(batch)
                batch = batch.to(dtype=self._type, memory_format=torch.channels_last)
                logits: NDArray[np.float32] = self._network(batch).float().numpy()
                return logits
        except RuntimeError as error:
            raise self._one_line(error) from error

    def close(self) -> None:
        self._graphs.clear()
        del self._network

    def _one_line(self, error: Exception) -> EngineError:
        return EngineError(f"PyTorch failed: {str(error).splitlines()[0]}")

    def _infer_cuda(self, batch: Any) -> NDArray[np.float32]:
        shape = tuple(batch.shape)
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(batch)
        graph, images, logits = self._graphs[shape]
        images.copy_(batch, non_blocking=True)
        graph.replay()
        out: NDArray[np.float32] = logits.float().cpu().numpy()
        return out

    def _capture(self, batch: Any) -> tuple[Any, Any, Any]:
        """Records the network for one input shape: (graph, its input, its output)."""
        torch = self._torch
        images = batch.to(self._device, self._type, memory_format=torch.channels_last)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # lets cuDNN choose its algorithms outside the capture
                self._network(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._network(images)
        return graph, images, logits


class CudaEagerEngine(EagerEngine):
    """The same with whole frames on the GPU; see `rtseg.engine.FrameEngine`.

    PyTorch and PyCUDA share the primary context. Every place in flight has a stream of its own,
    which PyTorch works on as an external one, and graphs of its own, whose inputs and outputs are
    PyTorch's memory.
    """

    def __init__(self, model: ModelFile, precision: str, requests: int = 1) -> None:
        super().__init__(model, precision)
        self._torch.zeros(1, device=self._device)  # PyTorch sets the context up first
        self._gpu = _cuda.Device(self._torch.cuda.current_device())
        self._tail = _cuda.FrameTail(self._gpu, model.contract)
        self._capturing = threading.Lock()
        self._lanes = _cuda.Lanes(
            self._gpu,
            model.contract.name,
            lambda memory: _TorchLane(memory, self._torch),
            requests,
        )
        self.info = dataclasses.replace(
            self.info,
            requests=requests,
            takes_frames=True,
            gpu=self._torch.cuda.current_device(),
        )

    def segment(
        self, picture: ImageBGR | NV12, size: tuple[int, int]
    ) -> tuple[Labels, NDArray[np.int64], ImageBGR | None]:
        """See `rtseg.engine.FrameEngine`."""
        with self._prepared(size) as lane:
            return self._tail.run(lane.memory, picture, size, lambda shape: lane.run())

    def blend_with(self, palette: NDArray[np.uint8], opacity: float) -> None:
        """See `rtseg.engine.FrameEngine`."""
        self._tail.blend_with(palette, opacity)

    def repeat(self, size: tuple[int, int], count: int) -> None:
        """See `rtseg.engine.FrameEngine`."""
        with self._prepared(size) as lane:
            for _ in range(count):
                lane.run()
            lane.memory.stream.synchronize()

    def close(self) -> None:
        with self._gpu.current():
            self._lanes.close()
        self._gpu.close()
        super().close()

    @contextlib.contextmanager
    def _prepared(self, size: tuple[int, int]) -> Iterator[_TorchLane]:
        """An idle lane with a graph for inputs of this size; errors leave as one line."""
        try:
            with self._lanes.idle(size) as lane, self._torch.inference_mode():
                lane.prepare((1, 3, *size), self._captured)
                yield lane
        except RuntimeError as error:  # PyTorch's, out of memory included
            raise self._one_line(error) from error

    def _captured(self, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
        with self._capturing:  # a capture and another thread's allocation disturb each other
            return self._capture(self._torch.zeros(shape))


class _TorchLane:
    """A place in flight, with a graph for each input shape it has seen."""

    def __init__(self, memory: _cuda.Lane, torch: Any) -> None:
        self.memory, self._torch = memory, torch
        self._stream = torch.cuda.ExternalStream(int(memory.stream.handle))
        self._graphs: dict[tuple[int, ...], tuple[Any, Any, Any, Any, Any]] = {}
        self._shape: tuple[int, ...] = ()

    def prepare(
        self, shape: tuple[int, ...], capture: Callable[[tuple[int, ...]], tuple[Any, Any, Any]]
    ) -> None:
        """Makes the lane ready for an input shape: its "input" is PyTorch's memory then."""
        torch = self._torch
        if shape not in self._graphs:
            graph, images, logits = capture(shape)
            planes = torch.empty(shape, device=images.device, dtype=torch.float32)
            half = logits.dtype == torch.float16  # the kernels know float16 and float32
            kind = torch.float16 if half else torch.float32
            out = torch.empty(logits.shape, device=images.device, dtype=kind)
            torch.cuda.synchronize()
            self._graphs[shape] = graph, images, logits, planes, out
        planes = self._graphs[shape][3]
        self.memory.lend("input", planes.nbytes, planes.data_ptr())
        self._shape = shape

    def run(self) -> tuple[int, tuple[int, int, int], bool]:
        """Queues the network; see `_cuda.Network`."""
        graph, images, logits, planes, out = self._graphs[self._shape]
        with self._torch.cuda.stream(self._stream):
            images.copy_(planes)  # to the network's type, channels last
            graph.replay()
            out.copy_(logits)  # back to planes
        _, channels, height, width = out.shape
        half = out.dtype == self._torch.float16
        return out.data_ptr(), (channels, height, width), half

    def close(self) -> None:
        self.memory.close()
        self._graphs.clear()


def build_network(model: ModelFile) -> Any:
    """The contract's network in PyTorch, in eval mode, norms folded, with the weights of the file.

    Raises:
        EngineError: the file names no network of ours, or its weights do not fit it.
    """
    contract = model.contract
    if not contract.family:
        raise EngineError(
            f"{model.path}: eager runs networks of rtseg.models only, and the file names none: "
            "use --engine openvino or onnxruntime"
        )
    from rtseg.models._catalogue import build
    from rtseg.models._weights import StoredWeights
    from rtseg.models.layers import fuse_batch_norm

    network = build(contract.family, len(contract.classes), contract.options)
    network = fuse_batch_norm(network.eval())
    try:
        StoredWeights(model.path).load_into(network)
    except ConfigError as error:
        raise EngineError(
            f"{error}: its weights do not fit the network {contract.family}, export it again"
        ) from error
    return network


def cpu_has_bf16() -> bool:
    """Whether PyTorch computes bfloat16 with instructions of this processor."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
