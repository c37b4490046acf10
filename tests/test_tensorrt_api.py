"""The module that speaks TensorRT: against TensorRT-RTX itself, and fakes shaped like 10.x, 11.x.

Plans are built without a GPU; none is run here.
"""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from onnx import TensorProto, helper

from rtseg.engine import _tensorrt
from rtseg.errors import EngineError, MissingDependencyError
from rtseg.plans import Shapes

SHAPES = Shapes.fixed((1, 3, 64, 96))


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


def onnx_of(nodes: list[Any], output: str = "logits", image: str = "image", rank: int = 4) -> bytes:
    """A model of these nodes, float32 in and out."""
    dims: list[Any] = ["N", 3, "H", "W"][:rank]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(image, TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


RELU = [helper.make_node("Relu", ["image"], ["logits"])]
NON_ZERO = [
    helper.make_node("NonZero", ["image"], ["where"], name="find_them"),
    helper.make_node("Cast", ["where"], ["logits"], to=TensorProto.FLOAT),
]
AND = [
    helper.make_node("Cast", ["image"], ["bits"], to=TensorProto.INT32),
    helper.make_node("BitwiseAnd", ["bits", "bits"], ["both"], name="mask_them"),
    helper.make_node("Cast", ["both"], ["logits"], to=TensorProto.FLOAT),
]


def test_a_plan_is_built_without_a_gpu(
    rtx: Any, tiny_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int | None, str]] = []
    built = _tensorrt.build_plan(
        tiny_path.read_bytes(),
        profiles=[Shapes((1, 3, 32, 32), (1, 3, 64, 96), (2, 3, 128, 192))],
        compute_capabilities=("SM80", "SM89"),
        workspace_mib=64,
        optimisation_level=2,
        on_progress=lambda done, total, what: seen.append((done, total, what)),
        trt=rtx,
    )
    assert len(built.data) > 10_000
    assert built.tensors == {
        "image": {"mode": "input", "dtype": "float32", "shape": [-1, 3, -1, -1]},
        "logits": {"mode": "output", "dtype": "float32", "shape": [-1, 11, -1, -1]},
    }
    assert any(total and 0 <= done <= total for done, total, _ in seen)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("nodes", "operator", "node"), [(NON_ZERO, "NonZero", "find_them"), (AND, "BitwiseAnd", "mask")]
)
def test_an_operator_that_tensorrt_lacks(
    rtx: Any, nodes: list[Any], operator: str, node: str
) -> None:
    with pytest.raises(EngineError) as caught:
        _tensorrt.check_model(onnx_of(nodes), name="odd.onnx", trt=rtx)
    message = str(caught.value)
    assert message.startswith("odd.onnx: tensorrt-rtx ")
    assert f"operator {operator} of the node '{node}" in message
    assert "exports without it" in message
    assert "\n" not in message


def test_what_is_no_model(rtx: Any) -> None:
    with pytest.raises(EngineError, match="cannot parse it, is it an ONNX model") as caught:
        _tensorrt.build_plan(b"words, not a graph", profiles=[SHAPES], trt=rtx)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (onnx_of([helper.make_node("Relu", ["x"], ["logits"])], image="x"), "has input x, output"),
        (onnx_of([helper.make_node("Relu", ["image"], ["y"])], output="y"), "output y, not input"),
        (onnx_of(RELU, rank=3), r"image has the shape \[-1, 3, -1\], not \(N, 3, H, W\)"),
    ],
)
def test_wrong_inputs_and_outputs(rtx: Any, model: bytes, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        _tensorrt.build_plan(model, profiles=[SHAPES], compute_capabilities=("SM86",), trt=rtx)


def test_a_gpu_it_cannot_build_for(rtx: Any) -> None:
    with pytest.raises(EngineError, match=r"cannot build for SM35: it knows SM75, .*SM120, SM121"):
        _tensorrt.build_plan(
            onnx_of(RELU), profiles=[SHAPES], compute_capabilities=("SM86", "SM35"), trt=rtx
        )


def test_float32_matrix_products_on_turing_name_the_remedy(rtx: Any) -> None:
    matmul = [helper.make_node("MatMul", ["image", "image"], ["logits"])]
    square = Shapes.fixed((1, 3, 64, 64))
    try:
        _tensorrt.build_plan(
            onnx_of(matmul), profiles=[square], compute_capabilities=("SM75",), trt=rtx
        )
    except EngineError as error:
        assert "take SM75 out of the targets" in str(error)  # noqa: PT017
    else:
        pytest.skip("this TensorRT-RTX can do it")


def test_the_logger_is_one_for_the_process(rtx: Any) -> None:
    log = _tensorrt.logger(rtx)
    assert log is _tensorrt.logger(rtx)
    log.clear()
    assert log.last() == "it does not say why"
    log.log(rtx.ILogger.Severity.WARNING, "a warning")
    log.log(rtx.ILogger.Severity.ERROR, "it\n  broke")
    assert log.last() == "it broke"


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'rtseg[tensorrt]'" in _tensorrt.missing()
    assert "JetPack" in _tensorrt.missing("tensorrt")
    with pytest.raises(MissingDependencyError, match="TensorRT is missing"):
        _tensorrt.load("tensorrt-rtx")


def test_the_flavour_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {name: ModuleType(name) for name in ("tensorrt", "tensorrt_rtx")}
    for name, module in both.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert _tensorrt.load() is both["tensorrt_rtx"]
    assert _tensorrt.load("tensorrt") is both["tensorrt"]
    assert [_tensorrt.flavour(m) for m in both.values()] == ["tensorrt", "tensorrt-rtx"]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert _tensorrt.load() is both["tensorrt"]
    with pytest.raises(ValueError, match="expected any or one of"):
        _tensorrt.load("openvino")


class _Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class _ILogger:
    Severity = _Severity


class _Tensor(SimpleNamespace):
    name: str


class _Network:
    num_inputs = num_outputs = 1

    def __init__(self) -> None:
        kind = SimpleNamespace(name="HALF")
        self.image = _Tensor(name="image", dtype=kind, shape=(-1, 3, -1, -1))
        self.logits = _Tensor(name="logits", dtype=kind, shape=(-1, 11, -1, -1))

    def get_input(self, index: int) -> _Tensor:
        return (self.image,)[index]

    def get_output(self, index: int) -> _Tensor:
        return (self.logits,)[index]


class _ParserError:
    """Of old: it knows neither the name nor the operator of its node."""

    def node(self) -> int:
        return 7

    def desc(self) -> str:
        return "Unsupported\n  operator"


def fake(name: str, *, flags: tuple[str, ...], monitor: bool = True) -> Any:
    """A module with what that version has, and a record of how it was called."""
    trt: Any = ModuleType(name)
    trt.__version__ = "0.0"
    trt.calls = calls = SimpleNamespace(flags=None, profile=None, pools={}, parses=True, plan=b"p")
    trt.ILogger = _ILogger
    trt.NetworkDefinitionCreationFlag = enum.IntEnum(  # type: ignore[misc]
        "NetworkDefinitionCreationFlag", {flag: i for i, flag in enumerate(flags)}
    )
    trt.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")

    class Profile:
        def set_shape(self, *shapes: Any) -> None:
            calls.profile = shapes

    class Config:
        builder_optimization_level = 3
        progress_monitor: Any = None

        def add_optimization_profile(self, profile: Any) -> int:
            return 0

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            calls.pools[pool] = size

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> _Network:
            calls.flags = flags
            return _Network()

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: _Network, config: Config) -> bytes | None:
            if config.progress_monitor is not None:
                config.progress_monitor.phase_start("Timing", None, 4)
                for step in range(4):
                    if not config.progress_monitor.step_complete("Timing", step):
                        return None
                config.progress_monitor.phase_finish("Timing")
            if calls.plan is None:
                self.logger.log(_Severity.ERROR, calls.reason)
            return calls.plan  # type: ignore[no-any-return]

    class Parser:
        num_errors = 1

        def __init__(self, network: _Network, logger: Any) -> None:
            pass

        def parse(self, model: bytes) -> bool:
            return bool(calls.parses)

        def get_error(self, index: int) -> _ParserError:
            return _ParserError()

    trt.Builder, trt.OnnxParser = Builder, Parser
    if monitor:
        trt.IProgressMonitor = object
    return trt


@pytest.fixture
def ten() -> Any:
    """TensorRT 10.x."""
    return fake("tensorrt", flags=("EXPLICIT_BATCH", "STRONGLY_TYPED"))


@pytest.fixture
def eleven() -> Any:
    """TensorRT 11.x: every network is strongly typed, so there are no such flags."""
    return fake("tensorrt", flags=())


def test_the_flags_that_there_are(ten: Any, eleven: Any) -> None:
    for trt, flags in ((ten, 0b11), (eleven, 0), (fake("tensorrt", flags=("STRONGLY_TYPED",)), 1)):
        built = _tensorrt.build_plan(b"", profiles=[SHAPES], workspace_mib=32, trt=trt)
        assert trt.calls.flags == flags
        assert trt.calls.profile == ("image", (1, 3, 64, 96), (1, 3, 64, 96), (1, 3, 64, 96))
        assert trt.calls.pools == {"workspace": 32 << 20}
        assert built.data == b"p"
        assert built.tensors["logits"]["dtype"] == "float16"


def test_ordinary_tensorrt_builds_only_for_its_own_gpu(ten: Any) -> None:
    assert _tensorrt.known_targets(ten) == []
    with pytest.raises(EngineError, match="builds only for the GPU it runs on, not for SM86"):
        _tensorrt.build_plan(b"", profiles=[SHAPES], compute_capabilities=("SM86",), trt=ten)


def test_progress_and_how_a_user_ends_a_build(ten: Any) -> None:
    seen: list[tuple[int, int | None, str]] = []
    _tensorrt.build_plan(b"", profiles=[SHAPES], on_progress=lambda *p: seen.append(p), trt=ten)
    assert seen == [(step, 4, "Timing") for step in range(4)]

    def interrupted(done: int, total: int | None, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _tensorrt.build_plan(b"", profiles=[SHAPES], on_progress=interrupted, trt=ten)


def test_a_version_without_progress() -> None:
    trt = fake("tensorrt", flags=(), monitor=False)
    assert _tensorrt.build_plan(b"", profiles=[SHAPES], trt=trt).data == b"p"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("no tactic\nfor Conv_7", r"0\.0 cannot build it: no tactic for Conv_7$"),
        ("CUDA: out of memory", "lower workspace_mib in the recipe, or build a smaller size"),
    ],
)
def test_a_build_that_fails_says_why(ten: Any, said: str, message: str) -> None:
    ten.calls.plan, ten.calls.reason = None, said
    with pytest.raises(EngineError, match=message):
        _tensorrt.build_plan(b"", profiles=[SHAPES], trt=ten)


def test_a_parser_that_knows_no_operators(ten: Any) -> None:
    ten.calls.parses = False
    with pytest.raises(EngineError, match=r"cannot parse it, .*\(Unsupported operator\)"):
        _tensorrt.check_model(b"", trt=ten)


def test_an_execution_context_leaves_graphs_to_the_caller() -> None:
    made: list[Any] = []
    plain = SimpleNamespace(create_execution_context=lambda: made.append("plain"))
    _tensorrt.execution_context(plain, None)
    config = SimpleNamespace(cuda_graph_strategy="whole")
    rtx = SimpleNamespace(
        create_runtime_config=lambda: config, create_execution_context=made.append
    )
    strategies = SimpleNamespace(CudaGraphStrategy=SimpleNamespace(DISABLED="off"))
    _tensorrt.execution_context(rtx, strategies)
    assert made == ["plain", config]
    assert config.cuda_graph_strategy == "off"


def test_tensors_of_a_plan() -> None:
    modes = {"image": "in", "logits": "out"}
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda i: list(modes)[i],
        get_tensor_mode=modes.get,
        get_tensor_dtype=lambda name: SimpleNamespace(name="HALF"),
        get_tensor_shape=lambda name: (1, 3, 8, 8),
    )
    trt = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"))
    found = _tensorrt.tensors_of(engine, trt)
    assert found["image"] == {"mode": "input", "dtype": "float16", "shape": [1, 3, 8, 8]}
    assert found["logits"]["mode"] == "output"
