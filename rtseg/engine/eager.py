"""PyTorch, without a compiler: the reference engine, and a fast one on CUDA.

Builds the network that the contract names and loads its weights from the model file. On CUDA
it runs in float16, channels last, replayed as a CUDA graph for each input shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtseg import plugins
from rtseg.artifact import ModelFile
from rtseg.engine import EngineInfo
from rtseg.errors import ConfigError, EngineError


def available() -> str:
    """Empty if torch and onnx (to read the weights) are installed."""
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        return f"eager needs torch and onnx ({error}): pip install 'rtseg[torch]'"
    return ""


def open(model: ModelFile, precision: str = "auto", requests: int = 1) -> EagerEngine:
    """Loads the model on CUDA if there is one, else on the CPU, for one inference at a time."""
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
            raise EngineError(f"PyTorch failed: {str(error).splitlines()[0]}") from error

    def close(self) -> None:
        self._graphs.clear()
        del self._network

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


def build_network(model: ModelFile) -> Any:
    """The contract's network in PyTorch, in eval mode, norms folded, with the weights of the file.

    Raises:
        EngineError: the file names no network of ours, or its weights do not fit it.
    """
    import onnx
    import torch

    contract = model.contract
    if not contract.family:
        raise EngineError(
            f"{model.path}: eager runs networks of rtseg.models only, and the file names none: "
            "use --engine openvino or onnxruntime"
        )
    from rtseg.models import AUXILIARY_PREFIX
    from rtseg.models.layers import fuse_batch_norm

    network = plugins.load("rtseg.models", contract.family).build(
        len(contract.classes), **contract.options
    )
    network = fuse_batch_norm(network.eval())
    graph = onnx.load(str(model.path)).graph
    stored = {t.name: t for t in graph.initializer}
    state = {}
    for key, value in network.state_dict().items():
        if key.startswith(AUXILIARY_PREFIX):
            continue
        tensor = stored.get(key)
        if tensor is None or tuple(tensor.dims) != tuple(value.shape):
            raise EngineError(
                f"{model.path}: its weights do not fit the network {contract.family} "
                f"({key} is missing or of another shape): export it again with `rtseg export`"
            )
        state[key] = torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype(np.float32))
    network.load_state_dict(state, strict=False)
    return network


def cpu_has_bf16() -> bool:
    """Whether PyTorch computes bfloat16 with instructions of this processor."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
