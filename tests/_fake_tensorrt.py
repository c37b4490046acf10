"""TensorRT on the driver of `_fake_cuda`: a plan is the ONNX it was built from."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from _fake_cuda import FakeDriver, graph_driver

from rtseg.engine import _cuda, _tensorrt, trt


class FakeTensorRT(ModuleType):
    """Stands for `tensorrt_rtx`; a plan is the ONNX it was built from, run by ONNX Runtime."""

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    float16, float32 = SimpleNamespace(name="HALF"), SimpleNamespace(name="FLOAT")

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    def __init__(self, driver: FakeDriver) -> None:
        super().__init__("tensorrt_rtx")
        self.__version__ = "0.0.1"
        self.executions = 0
        self.loads = True
        self.input_name = "image"

        fake = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                pass

            def deserialize_cuda_engine(self, plan: bytes) -> FakePlan | None:
                driver.in_context()
                return FakePlan(fake, driver, plan) if fake.loads else None

        self.Runtime = Runtime


class FakePlan:
    def __init__(self, trt: FakeTensorRT, driver: FakeDriver, onnx: bytes) -> None:
        self._trt, self._driver = trt, driver
        self.session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        self.num_io_tensors = 2

    def get_tensor_name(self, i: int) -> str:
        return (self._trt.input_name, "logits")[i]

    def get_tensor_mode(self, name: str) -> str:
        return "output" if name == "logits" else "input"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3 if name == self._trt.input_name else -1, -1, -1)

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        tensors = {"logits": self.session.get_outputs()[0], "input": self.session.get_inputs()[0]}
        kind = tensors["logits" if name == "logits" else "input"].type
        return self._trt.float16 if kind == "tensor(float16)" else self._trt.float32

    def create_execution_context(self) -> FakeContext:
        self._driver.in_context()
        return FakeContext(self, self._trt, self._driver)


class FakeContext:
    def __init__(self, plan: FakePlan, trt: FakeTensorRT, driver: FakeDriver) -> None:
        self.engine, self._trt, self._driver = plan, trt, driver
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return name == "image"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "logits"
        zeros = np.zeros(self._shape, np.float32)
        shape: tuple[int, ...] = self.engine.session.run(None, {"image": zeros})[0].shape
        return shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, handle: int) -> bool:
        self._driver.in_context()
        source, target, shape = self._addresses["image"], self._addresses["logits"], self._shape

        def work() -> None:
            data = self._driver.read(source, 4 * int(np.prod(shape)))
            images = data.view(np.float32).reshape(shape)
            self._driver.write(target, self.engine.session.run(None, {"image": images})[0])
            self._trt.executions += 1

        self._driver.streams[handle].add(work)
        return True


def pretend(monkeypatch: Any, driver: FakeDriver, kernels: Any, store: Path) -> FakeTensorRT:
    """Puts TensorRT, graphs and kernels on a driver; plans are kept in `store`."""
    tensorrt = FakeTensorRT(driver)
    tensors = {
        "image": {"mode": "input", "dtype": "float32", "shape": [-1, 3, -1, -1]},
        "logits": {"mode": "output", "dtype": "float32", "shape": [-1, 11, -1, -1]},
    }
    monkeypatch.setattr(_cuda, "load_module", lambda: None)
    monkeypatch.setattr(_cuda, "Kernels", lambda module: kernels)
    monkeypatch.setattr(_tensorrt, "load", lambda wanted="any": tensorrt)
    monkeypatch.setattr(_tensorrt, "missing", lambda wanted="any": "")
    monkeypatch.setattr(
        _tensorrt, "build_plan", lambda model, **options: _tensorrt.BuiltPlan(model, tensors)
    )
    monkeypatch.setattr(trt, "_graph_driver", lambda: graph_driver(driver))
    monkeypatch.setenv("RTSEG_ENGINES", str(store))
    return tensorrt
