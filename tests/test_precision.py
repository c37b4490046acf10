"""Graphs in float32 and in float16: the same network, typed as TensorRT wants it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rtseg.artifact import load_model
from rtseg.errors import ModelError
from rtseg.parity import compare
from rtseg.precision import full_precision, raise_opset, set_metadata, to_fp16

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

FLOAT, HALF = 1, 10
SIZES = [(64, 96), (96, 160)]


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Any:
    """The tiny network as `rtseg export` stores it: float16 weights, each behind a Cast."""
    return onnx.load(str(tiny_path))


@pytest.fixture(scope="module")
def half(model: Any) -> Any:
    """The same in float16."""
    return to_fp16(model)


def logits(model: Any, size: tuple[int, int]) -> NDArray[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).standard_normal((2, 3, *size), dtype=np.float32)
    out: NDArray[Any] = session.run(None, {"image": images})[0]
    return out


def types(model: Any) -> dict[str, int]:
    """Element type of every tensor, as shape inference finds it."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def toy(nodes: list[Any], *weights: Any) -> Any:
    """A graph from `image` (1, 2, 4, 4) to `logits`, without a contract."""
    helper = onnx.helper
    info = [
        helper.make_tensor_value_info(name, FLOAT, [1, 2, 4, 4]) for name in ("image", "logits")
    ]
    graph = helper.make_graph(nodes, "toy", info[:1], info[1:], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_full_precision_folds_every_stored_weight(model: Any) -> None:
    plain = full_precision(model)
    assert any(t.data_type == HALF for t in model.graph.initializer)
    assert not any(t.data_type == HALF for t in plain.graph.initializer)
    stored = {t.name for t in model.graph.initializer if t.data_type == HALF}
    assert not any(n.op_type == "Cast" and n.input[0] in stored for n in plain.graph.node)
    assert plain.metadata_props == model.metadata_props
    for size in SIZES:
        np.testing.assert_array_equal(logits(plain, size), logits(model, size))
    assert full_precision(plain) == plain


def test_full_precision_leaves_its_argument_alone(model: Any) -> None:
    before = model.SerializeToString()
    full_precision(model)
    to_fp16(model)
    assert model.SerializeToString() == before


def test_convolutions_compute_in_float16_and_sampling_in_float32(half: Any) -> None:
    kinds = types(half)
    producer = {name: node for node in half.graph.node for name in node.output}
    convolutions = [n for n in half.graph.node if n.op_type == "Conv"]
    assert convolutions
    assert {kinds[name] for node in convolutions for name in node.input} == {HALF}
    samplers = [n for n in half.graph.node if n.op_type == "GridSample"]
    assert len(samplers) == 2
    waiting, between = [n.input[1] for n in samplers], Counter[str]()
    assert {kinds[n.input[0]] for n in samplers} == {FLOAT}
    while waiting:
        name = waiting.pop()
        node = producer.get(name)
        if node is None or kinds[name] != FLOAT:
            continue
        between[node.op_type] += 1
        if node.op_type == "Cast" and kinds[node.input[0]] == HALF:
            assert producer[node.input[0]].op_type == "Conv", "the flow is cast as it is predicted"
        else:
            waiting.extend(node.input)
    assert between["Cast"] >= 1
    assert between["Range"] == 4
    assert between["Add"] >= 4


def test_the_interface_of_the_graph_stays(model: Any, half: Any) -> None:
    assert half.graph.input[0] == model.graph.input[0]
    before, after = (m.graph.output[0].type.tensor_type for m in (model, half))
    assert (before.elem_type, after.elem_type) == (FLOAT, HALF)
    assert before.shape == after.shape
    for size in SIZES:
        expected, got = logits(full_precision(model), size), logits(half, size)
        assert got.dtype == np.float16
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert 0 < error < 5e-3


def test_the_contract_stays_and_names_the_precision(
    half: Any, tiny_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "half.onnx"
    onnx.save(half, str(path))
    contract = load_model(str(path)).contract
    assert contract.precision == "fp16"
    assert contract.classes == load_model(str(tiny_path)).contract.classes


def test_no_constant_becomes_infinite() -> None:
    masked = np.full((1, 2, 1, 1), -1e9, np.float32)
    masked[0, 1] = -np.inf
    node = onnx.helper.make_node("Add", ["image", "mask"], ["logits"])
    got = to_fp16(toy([node], onnx.numpy_helper.from_array(masked, "mask")))
    (mask,) = (onnx.numpy_helper.to_array(t) for t in got.graph.initializer)
    assert mask.dtype == np.float16
    assert mask.ravel().tolist() == [-65504.0, -np.inf]


def test_a_weight_with_two_readers_of_two_precisions_is_there_twice() -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Mul", ["image", "w"], ["scaled"]),
        make("Exp", ["scaled"], ["grown"]),
        make("Mul", ["grown", "w"], ["product"]),
        make("Softmax", ["product"], ["logits"], axis=1),
    ]
    weight = onnx.numpy_helper.from_array(np.full((1, 2, 1, 1), 0.5, np.float32), "w")
    got = to_fp16(toy(nodes, weight))
    kinds = types(got)
    by_op = {node.op_type: node for node in got.graph.node}
    assert kinds[by_op["Exp"].input[0]] == kinds[by_op["Softmax"].input[0]] == FLOAT
    assert kinds[by_op["Mul"].input[0]] == HALF
    assert got.graph.output[0].type.tensor_type.elem_type == FLOAT


def test_control_flow_is_refused() -> None:
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["image"], ["inner"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("inner", FLOAT, [1, 2, 4, 4])],
    )
    node = onnx.helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch)
    yes = onnx.numpy_helper.from_array(np.array(True), "yes")
    with pytest.raises(ModelError, match=r"If .*control flow"):
        to_fp16(toy([node], yes))


def test_an_untyped_graph_is_one_line() -> None:
    node = onnx.helper.make_node("Nonsense", ["image"], ["logits"])
    with pytest.raises(ModelError, match=r"graph .*Nonsense") as caught:
        to_fp16(toy([node]))
    assert "\n" not in str(caught.value)


def test_metadata_is_replaced_and_the_opset_only_raised() -> None:
    model = toy([onnx.helper.make_node("Relu", ["image"], ["logits"])])
    set_metadata(model, "rtseg.precision", "int8")
    set_metadata(model, "rtseg.precision", "fp8")
    assert [(e.key, e.value) for e in model.metadata_props] == [("rtseg.precision", '"fp8"')]
    raise_opset(model, 19)
    raise_opset(model, 17)
    assert [o.version for o in model.opset_import] == [19]


@pytest.mark.slow
def test_a_shipped_network_in_float16_agrees_with_float32() -> None:
    from rtseg.artifact import find_model
    from rtseg.data.synth import Drive
    from rtseg.quantise import predictor

    model = onnx.load(str(find_model("street-s")))
    frames = [Drive(seed, (360, 480)).frame(40)[0] for seed in (1, 2)]
    assert compare(predictor(model), predictor(to_fp16(model)), frames).pixel_agreement >= 0.995
