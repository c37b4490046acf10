"""OpenVINO: the default engine on a CPU."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtseg.artifact import ModelFile
from rtseg.engine import EngineInfo, OnProgress, quiet
from rtseg.engine._scales import quantised_precision
from rtseg.errors import ConfigError, EngineError
from rtseg.machine import cpu_count

_SHAPES_MAX = 4
"""Compiled models kept: of a camera there is one shape, of photographs two or so."""


def available() -> str:
    """Empty if OpenVINO is installed."""
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        return f"openvino needs its package ({error}): pip install openvino"
    return ""


def open(
    model: ModelFile,
    precision: str = "auto",
    requests: int = 1,
    on_progress: OnProgress = quiet,
) -> OpenVINOEngine:
    """Loads the model for the CPU; see `rtseg.engine.open_engine`."""
    return OpenVINOEngine(model, precision, requests)


class OpenVINOEngine:
    """One model on the CPU, compiled for each input shape when it first comes.

    Fixed shapes let the runtime fold the sampling grids and choose its layouts; the latest few
    shapes stay compiled.
    """

    def __init__(self, model: ModelFile, precision: str, requests: int = 1) -> None:
        import openvino

        self._openvino = openvino
        self._core = openvino.Core()
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        quantised = quantised_precision(model, precision)
        if quantised or precision == "auto":  # what of a quantised graph is not in 8 bits, too
            precision = "bf16" if "BF16" in capabilities else "fp32"
        hints = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
        if precision not in hints:
            raise ConfigError(f"openvino computes in fp32, bf16 or fp16, not {precision}")
        if precision != "fp32" and precision.upper() not in capabilities:
            raise ConfigError(f"this CPU has no {precision} instructions: use --precision fp32")
        # Two inferences on half the cores each wait less for one another's threads than one on all
        # of them: by a tenth on AVX512, by a fifth on AMX.
        requests = min(requests, cpu_count())
        self._options = {"INFERENCE_PRECISION_HINT": hints[precision]}
        if requests > 1:
            self._options["NUM_STREAMS"] = str(requests)
        else:
            self._options["PERFORMANCE_HINT"] = "LATENCY"
        try:
            self._model = self._core.read_model(str(model.path))
        except RuntimeError as error:
            raise EngineError(
                f"{model.path}: OpenVINO cannot read it: {_first_line(error)}"
            ) from error
        self._path = model.path
        self._idle: dict[tuple[int, ...], SimpleQueue[Any]] = {}  # requests by shape, latest last
        self._compiling = threading.Lock()
        self.info = EngineInfo(
            "openvino",
            str(self._core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            quantised or precision,
            openvino.__version__.split("-")[0],
            requests,
        )

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, C, h, w) float32, owned by the caller."""
        images = np.ascontiguousarray(images)
        with self._compiling:
            idle = self._idle.pop(images.shape, None) or self._compile(images.shape)
            self._idle[images.shape] = idle
            if len(self._idle) > _SHAPES_MAX:
                del self._idle[next(iter(self._idle))]
        request = idle.get()
        try:
            request.set_input_tensor(self._openvino.Tensor(images, shared_memory=True))
            request.infer()
            logits: NDArray[np.float32] = request.get_output_tensor().data.copy()
        except RuntimeError as error:
            raise EngineError(f"{self._path}: OpenVINO failed: {_first_line(error)}") from error
        finally:
            idle.put(request)
        return logits

    def close(self) -> None:
        self._idle = {}
        self._model = None

    def _compile(self, shape: tuple[int, ...]) -> SimpleQueue[Any]:
        try:
            self._model.reshape(list(shape))
            compiled = self._core.compile_model(self._model, "CPU", self._options)
        except RuntimeError as error:
            raise EngineError(
                f"{self._path}: OpenVINO cannot compile it for input {shape}: {_first_line(error)}"
            ) from error
        idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.info.requests):
            idle.put(compiled.create_infer_request())
        return idle


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
