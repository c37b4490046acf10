"""TensorRT's way of a frame, on a driver that only pretends: what is called, and in which order."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from _fake_cuda import FakeDriver, FakeKernels
from _fake_tensorrt import FakeTensorRT, pretend

from rtseg.artifact import ModelFile, load_model
from rtseg.data.synth import Drive
from rtseg.engine import _cuda, open_engine, trt
from rtseg.errors import EngineError, MissingDependencyError
from rtseg.frame import Frame, ImageBGR, LabelMap
from rtseg.native.cuda import Kernels
from rtseg.runner import run
from rtseg.segmenter import Segmenter

SIZES = ((64, 96), (90, 120), (64, 96), (33, 47))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    package = ModuleType("pycuda")
    package.driver = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    return fake


@pytest.fixture
def tensorrt(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FakeTensorRT]:
    fake = pretend(monkeypatch, driver, FakeKernels(driver), tmp_path / "engines")
    yield fake
    assert not any(driver.pushed.values()), "a thread kept the context"
    assert not driver.memory, "device memory was not freed"
    assert driver.retained == 0
    assert not driver.graphs, "a graph was not destroyed"


def images() -> list[ImageBGR]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def segmenter(model: ModelFile, precision: str = "fp32", requests: int = 2) -> Segmenter:
    return Segmenter(model, open_engine(model, "tensorrt", precision, requests=requests))


def test_frames_come_back_in_order_as_on_the_cpu(tensorrt: FakeTensorRT) -> None:
    """A shipped network, more frames in flight than lanes, of several sizes."""
    model = load_model("street-s")
    pictures = [Drive(seed, SIZES[seed % len(SIZES)]).frame(40)[0] for seed in range(8)]
    frames = [Frame(picture, i, i / 25, 0.0) for i, picture in enumerate(pictures)]
    on_gpu = Segmenter(model, open_engine(model, "tensorrt", "fp32", requests=2), size=(64, 96))
    assert on_gpu.engine.info.requests == 2
    in_flight = [on_gpu.submit(frame) for frame in frames]
    results = [on_gpu.collect(one) for one in in_flight]
    on_gpu.close()
    on_cpu = Segmenter(model, open_engine(model, "onnxruntime", "fp32"), size=(64, 96))
    for frame, result in zip(frames, results, strict=True):
        expected = on_cpu(frame.image)
        assert result.pts_seconds == frame.pts_seconds
        np.testing.assert_array_equal(result.labels, expected.labels)
        np.testing.assert_array_equal(result.histogram(), expected.histogram())
        assert len(np.unique(result.labels)) > 2
    on_cpu.close()


def test_logits_are_those_of_the_model(tensorrt: FakeTensorRT, tiny: ModelFile) -> None:
    batch = np.random.default_rng(0).standard_normal((1, 3, 64, 96), np.float32)
    engine = open_engine(tiny, "tensorrt", "fp32")
    reference = open_engine(tiny, "onnxruntime", "fp32")
    first = engine.infer(batch)
    kept = first.copy()
    engine.infer(-batch)
    np.testing.assert_array_equal(first, kept)  # the caller's own
    np.testing.assert_allclose(first, reference.infer(batch), rtol=1e-5, atol=1e-5)
    engine.close()
    reference.close()


def test_auto_is_fp16(tensorrt: FakeTensorRT, tiny: ModelFile) -> None:
    on_gpu = segmenter(tiny, "auto")
    assert on_gpu.engine.info.precision == "fp16"
    on_cpu = Segmenter(tiny, open_engine(tiny, "onnxruntime", "fp32"))
    image = images()[0]
    assert np.mean(on_gpu(image).labels == on_cpu(image).labels) > 0.98
    on_gpu.close()
    on_cpu.close()


def test_a_plan_is_built_once_and_found_again(
    tensorrt: FakeTensorRT, tiny: ModelFile, tmp_path: Path
) -> None:
    notices: list[str] = []
    for _ in range(2):
        engine = open_engine(
            tiny, "tensorrt", "fp32", on_progress=lambda done, total, what: notices.append(what)
        )
        engine.infer(np.zeros((1, 3, 64, 96), np.float32))
        engine.close()
    assert len(notices) == 1
    assert "building tiny-64x96-fp32-SM86" in notices[0]
    plan = next((tmp_path / "engines").glob("*.plan"))
    plan.write_bytes(plan.read_bytes()[:-1])
    engine = open_engine(
        tiny, "tensorrt", "fp32", on_progress=lambda done, total, what: notices.append(what)
    )
    engine.infer(np.zeros((1, 3, 64, 96), np.float32))
    engine.close()
    assert "corrupt" in notices[1]


def test_the_network_is_recorded_once_per_shape_and_address(
    tensorrt: FakeTensorRT, driver: FakeDriver, tiny: ModelFile
) -> None:
    on_gpu = segmenter(tiny, requests=1)
    small, other = images()[0], images()[3]
    for _ in range(4):
        on_gpu(small)
    assert tensorrt.executions == 4
    assert driver.graph_launches == 3  # the first was the warm-up
    assert len(driver.graphs) == 1
    on_gpu(other)  # another input size: another context
    on_gpu(small)
    assert driver.graph_launches == 3
    on_gpu(small)
    assert driver.graph_launches == 4
    on_gpu.close()


def test_without_graphs_it_runs_as_it_is(
    tensorrt: FakeTensorRT,
    driver: FakeDriver,
    tiny: ModelFile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trt, "_graph_driver", lambda: None)
    on_gpu = segmenter(tiny)
    first, second = on_gpu(images()[0]), on_gpu(images()[0])
    np.testing.assert_array_equal(first.labels, second.labels)
    assert (tensorrt.executions, driver.graph_launches) == (2, 0)
    on_gpu.close()


def test_the_engine_alone_moves_nothing(tensorrt: FakeTensorRT, tiny: ModelFile) -> None:
    on_gpu = segmenter(tiny)
    assert on_gpu.engine_fps() is None
    on_gpu(images()[0])
    before = tensorrt.executions
    fps = on_gpu.engine_fps(0.01)
    assert fps is not None
    assert fps > 0
    assert tensorrt.executions - before >= 2 * 20 * 8
    on_gpu.close()


def test_a_run_blends_on_the_device(tensorrt: FakeTensorRT, tiny_path: Path) -> None:
    class Keep:
        wants_picture = True

        def __init__(self) -> None:
            self.pictures: list[ImageBGR] = []
            self.blended: list[bool] = []

        def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
            assert picture is not None
            self.pictures.append(picture.copy())
            self.blended.append(result.blended is not None)

        def close(self) -> None:
            pass

    kept = {}
    for engine in ("tensorrt", "onnxruntime"):
        kept[engine] = Keep()
        report = run(
            "synth:seed=3,size=64x96",
            sinks=[kept[engine]],
            model=str(tiny_path),
            engine=engine,
            precision="fp32",
            max_frames=4,
        )
        assert report.frames_out == 4
    assert kept["tensorrt"].blended == [True] * 4
    assert kept["onnxruntime"].blended == [False] * 4
    for one, other in zip(kept["tensorrt"].pictures, kept["onnxruntime"].pictures, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_out_of_memory_names_what_is_free(
    tensorrt: FakeTensorRT, driver: FakeDriver, tiny: ModelFile
) -> None:
    driver.total = 1 << 16
    on_gpu = segmenter(tiny)
    with pytest.raises(EngineError, match=r"out of GPU memory for tiny at 64x96: .* MiB are free"):
        on_gpu(images()[0])
    on_gpu.close()


def test_a_plan_that_does_not_load(tensorrt: FakeTensorRT, tiny: ModelFile) -> None:
    tensorrt.loads = False
    on_gpu = segmenter(tiny)
    with pytest.raises(EngineError, match="TensorRT cannot load it"):
        on_gpu(images()[0])
    on_gpu.close()


def test_a_plan_of_other_tensors(tensorrt: FakeTensorRT, tiny: ModelFile) -> None:
    tensorrt.input_name = "pixels"
    on_gpu = segmenter(tiny)
    with pytest.raises(EngineError, match="input pixels"):
        on_gpu(images()[0])
    on_gpu.close()


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert "pip install 'rtseg[tensorrt]'" in _cuda.missing()
    with pytest.raises(MissingDependencyError):
        _cuda.Device()


def test_a_driver_that_does_not_answer(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FakeDriver.LogicError("cuInit failed: system has unsupported driver")

    monkeypatch.setattr(driver, "init", refuse)
    assert "update it" in _cuda.missing()


@pytest.mark.parametrize("name", ["preprocess_bgr", "upsample_argmax", "blend"])
def test_the_pretended_kernels_are_called_like_the_real_ones(name: str) -> None:
    real = inspect.signature(getattr(Kernels, name)).parameters
    fake = inspect.signature(getattr(FakeKernels, name)).parameters
    assert list(real) == list(fake)
    assert [p.default for p in real.values()] == [p.default for p in fake.values()]
