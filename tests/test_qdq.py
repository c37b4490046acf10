"""Q/DQ nodes: where they stand, and that the 8-bit numbers are the nearest ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtseg.precision import QUANTISERS, full_precision, to_fp16
from rtseg.qdq import PRECISIONS, _e4m3, _encode, convolutions, insert_qdq

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Any:
    """The tiny network in float32."""
    return full_precision(onnx.load(str(tiny_path)))


@pytest.fixture(scope="module")
def ranges(model: Any) -> dict[str, float]:
    """Some range for every convolution's input."""
    return {node.input[0]: 4.0 for node in convolutions(model).values()}


def test_layers_are_named_after_their_weights(model: Any) -> None:
    names = list(convolutions(model))
    assert {"align.flow", "align.gate", "head.2", "backbone.stem.0.0"} <= set(names)
    assert len(names) == sum(node.op_type == "Conv" for node in model.graph.node)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_chosen_convolution_reads_dequantised_tensors(
    model: Any, ranges: dict[str, float], precision: str
) -> None:
    layers = set(convolutions(model)) - {"align.flow"}
    got = insert_qdq(model, ranges, layers, precision)
    onnx.checker.check_model(got, full_check=True)
    producer = {name: node for node in got.graph.node for name in node.output}
    initializers = {t.name: t for t in got.graph.initializer}
    kind = onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT8E4M3FN
    for node in (n for n in got.graph.node if n.op_type == "Conv"):
        flow = node.input[1] == "align.flow.weight"
        activation, weight = (producer.get(name) for name in node.input[:2])
        assert (weight is None) == flow
        if weight is None:
            assert node.input[0] in producer
            assert not node.input[0].endswith(".dequantised")
            continue
        assert activation is not None
        assert activation.op_type == "DequantizeLinear"
        assert producer[activation.input[0]].op_type == "QuantizeLinear"
        stored, scale, zero = (initializers[name] for name in weight.input)
        assert stored.data_type == zero.data_type == kind
        assert list(scale.dims) == list(zero.dims) == [stored.dims[0]]
        assert not any(onnx.numpy_helper.to_array(zero).astype(np.float32))
        for bias in node.input[2:]:
            assert initializers[bias].data_type == onnx.TensorProto.FLOAT


def test_a_tensor_is_quantised_once_and_shortcuts_read_it_too(
    model: Any, ranges: dict[str, float]
) -> None:
    got = insert_qdq(model, ranges, set(convolutions(model)))
    quantised = [n.input[0] for n in got.graph.node if n.op_type == "QuantizeLinear"]
    assert sorted(quantised) == sorted(set(quantised)) == sorted(ranges)
    for node in (n for n in got.graph.node if n.op_type == "Add"):
        assert not set(node.input) & set(quantised)


def test_nothing_chosen_changes_nothing(model: Any) -> None:
    assert list(insert_qdq(model, {}, set()).graph.node) == list(model.graph.node)
    with pytest.raises(ValueError, match="there is no nonsense"):
        insert_qdq(model, {}, {"nonsense"})


def test_weights_are_off_by_half_a_step_at_most(model: Any, ranges: dict[str, float]) -> None:
    got = insert_qdq(model, ranges, {"head.2", "align.flow"})
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in got.graph.initializer}
    before = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in ("head.2.weight", "align.flow.weight"):
        scale = tensors[f"{name}.scale"].reshape(-1, 1, 1, 1)
        assert np.all(scale > 0)  # the flow's weights may all be zero
        error = np.abs(tensors[f"{name}.int8"] * scale - before[name])
        assert np.all(error <= scale * 0.5001)
        assert np.abs(tensors[f"{name}.int8"].astype(int)).max() <= 127


def test_e4m3_is_the_table_of_the_format() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(127, dtype=np.uint8)
    np.testing.assert_array_equal(_e4m3(), codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    values = np.random.default_rng(0).normal(0, 60, 10_000).astype(np.float32)
    expected = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(_encode(values, "fp8"), expected.view(np.uint8))


def test_int8_rounds_and_saturates() -> None:
    values = np.array([0.4, -0.6, 126.6, 300.0, -300.0], np.float32)
    assert _encode(values, "int8").view(np.int8).tolist() == [0, -1, 127, 127, -127]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_rest_may_compute_in_float16(
    model: Any, ranges: dict[str, float], precision: str
) -> None:
    got = to_fp16(insert_qdq(model, ranges, set(convolutions(model)), precision))
    initializers = {t.name: t.data_type for t in got.graph.initializer}
    scales = {n.input[1] for n in got.graph.node if n.op_type in QUANTISERS}
    assert {initializers[name] for name in scales} == {onnx.TensorProto.FLOAT16}
    casts = {n.input[0] for n in got.graph.node if n.op_type == "Cast"}
    dequantised = {n.output[0] for n in got.graph.node if n.op_type == "DequantizeLinear"}
    weights = {n.input[1] for n in got.graph.node if n.op_type == "Conv"}
    assert weights <= dequantised
    assert not weights & casts
    assert got.opset_import[0].version >= 19


@pytest.mark.parametrize("precision", ["fp16", *PRECISIONS])
def test_tensorrt_parses_and_builds_it_for_gpus_that_are_not_here(
    model: Any, ranges: dict[str, float], precision: str
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    graph = model
    if precision != "fp16":
        graph = insert_qdq(model, ranges, set(convolutions(model)), precision)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    said = parser.parse(to_fp16(graph).SerializeToString())
    assert said, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert (network.get_input(0).dtype, network.get_output(0).dtype) == (trt.float32, trt.float16)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 3, 64, 64), (1, 3, 64, 96), (2, 3, 96, 128))
    config.add_optimization_profile(profile)
    capability = trt.ComputeCapability
    targets = [capability.SM89, capability.SM120]
    if precision != "fp8":
        targets += [capability.SM75, capability.SM86]
    config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        config.set_compute_capability(target, i)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 1000
