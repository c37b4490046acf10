"""ONNX Runtime, on the CPU or on CUDA where its GPU package is installed."""

from __future__ import annotations

import platform

import numpy as np
from numpy.typing import NDArray

from rtseg.artifact import ModelFile
from rtseg.engine import EngineInfo, OnProgress, quiet
from rtseg.engine._scales import quantised_precision
from rtseg.errors import ConfigError, EngineError


def available() -> str:
    """Empty if ONNX Runtime is installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"onnxruntime needs its package ({error}): pip install 'rtseg[onnxruntime]'"
    return ""


def open(
    model: ModelFile,
    precision: str = "auto",
    requests: int = 1,
    on_progress: OnProgress = quiet,
) -> OnnxRuntimeEngine:
    """Loads the model for one inference at a time; see `rtseg.engine.open_engine`."""
    return OnnxRuntimeEngine(model, precision)


class OnnxRuntimeEngine:
    """One model in an ONNX Runtime session; any input shape."""

    def __init__(self, model: ModelFile, precision: str) -> None:
        import onnxruntime

        own = quantised_precision(model, precision) or model.contract.precision or "fp32"
        if precision not in ("auto", own):
            raise ConfigError(
                f"onnxruntime computes in the precision of the graph, here {own}, not {precision}: "
                "use --precision auto, or --engine openvino"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Idle workers must not spin: the other stages of the pipeline need the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if own == "fp8":
            # It fuses such Q/DQ nodes into integer kernels, and drops a ReLU before them.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
        try:
            self._session = onnxruntime.InferenceSession(str(model.path), options, providers)
        except Exception as error:  # the runtime's exceptions share no base but Exception
            raise EngineError(
                f"{model.path}: ONNX Runtime cannot load it: {_first_line(error)}"
            ) from error
        self._path = model.path
        self._input = self._session.get_inputs()[0]
        self._output_name = self._session.get_outputs()[0].name
        self._half = self._input.type == "tensor(float16)"
        on_gpu = self._session.get_providers()[0] == "CUDAExecutionProvider"
        self.info = EngineInfo(
            "onnxruntime",
            "CUDA" if on_gpu else platform.processor() or platform.machine(),
            "fp16" if self._half and own == "fp32" else own,
            onnxruntime.__version__,
        )

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32] | NDArray[np.float16]:
        """Logits (N, C, h, w), owned by the caller."""
        feed = images.astype(np.float16) if self._half else images
        try:
            logits: NDArray[np.float32] = self._session.run(
                [self._output_name], {self._input.name: feed}
            )[0]
        except Exception as error:  # as above
            raise EngineError(f"{self._path}: ONNX Runtime failed: {_first_line(error)}") from error
        return logits

    def close(self) -> None:
        del self._session


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
