"""Quantisation: sensitive layers are found and kept, and every engine runs the result."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtseg.artifact import Contract, ModelFile, load_model
from rtseg.calibration import CalibrationFrames, read_frames
from rtseg.engine import open_engine
from rtseg.errors import ConfigError, EngineError, MissingDependencyError
from rtseg.native import preprocess
from rtseg.parity import Parity, compare, lost
from rtseg.precision import full_precision, to_fp16
from rtseg.qdq import concatenated, convolutions
from rtseg.segmenter import Segmenter

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from rtseg.quantise import Quantisation, measure_ranges, predictor, quantise, rank_layers  # noqa: E402


@pytest.fixture(scope="module")
def frames() -> CalibrationFrames:
    """Noise of some structure: with random weights every picture is as good."""
    rng = np.random.default_rng(5)
    images = []
    for _ in range(4):
        coarse = rng.integers(0, 256, (8, 12, 3), np.uint8)
        images.append(np.ascontiguousarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))))
    return CalibrationFrames("noise", tuple(images), (None,) * 4)


def chain(contract: Contract, sensitive: int) -> Any:
    """1x1 convolutions `fine` and then `worse0`, ... from images to three classes.

    Each sensitive one reads a huge channel by a tiny weight: the scale of its input leaves
    nothing of the channels that matter.
    """
    helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
    nodes, tensors, last = [], [], "image"
    for i in range(sensitive + 1):
        name = f"worse{i - 1}" if i else "fine"
        weights = np.zeros((4, 4 if i else 3, 1, 1), np.float32)
        for j in range(3):
            weights[j, j] = 1.0
        # The fourth channel is a thousand times the sum of the others, never read by their like.
        weights[3, :3] = 1000.0
        if i:
            weights[0, 3] = 1e-6
        if i == sensitive:
            weights = weights[:3]
        last_name = "logits" if i == sensitive else f"features{i}"
        tensors.append(to_tensor(weights, f"{name}.weight"))
        nodes.append(helper.make_node("Conv", [last, f"{name}.weight"], [last_name]))
        last = last_name
    info = helper.make_tensor_value_info
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "chain",
        [info("image", float32, ["N", 3, "H", "W"])],
        [info("logits", float32, ["N", 3, "H", "W"])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, value in contract.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return model


@pytest.fixture(scope="module")
def model(tiny_path: Path, frames: CalibrationFrames) -> Any:
    """The tiny network, its logits scaled so that two classes share the picture.

    As it is, one class is everywhere the largest; were it all eleven, a random network would be
    nearly undecided everywhere, and every rounding would change labels.
    """
    model = full_precision(onnx.load(str(tiny_path)))
    contract = load_model(str(tiny_path)).contract
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = [preprocess(bgr, (64, 96), contract.mean, contract.std) for bgr in frames.images]
    logits = np.concatenate([session.run(None, {"image": image})[0] for image in images])
    mean, std = logits.mean((0, 2, 3)), logits.std((0, 2, 3))
    for tensor in model.graph.initializer:
        if tensor.name in ("head.2.weight", "head.2.bias"):
            values = onnx.numpy_helper.to_array(tensor)
            if values.ndim == 1:
                changed = (values - mean) / std
                changed[2:] -= 1000.0
            else:
                changed = values / std[:, None, None, None]
            name, half = tensor.name, changed.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, name))
    return model


def test_the_tiny_network_tells_two_classes_apart(model: Any, frames: CalibrationFrames) -> None:
    labels = np.stack([predictor(model)(bgr).labels for bgr in frames.images])
    counts = np.bincount(labels.ravel(), minlength=11)
    assert np.all(counts[:2] > 0.2 * np.sum(counts))


@pytest.fixture(scope="module", params=["int8", "fp8"])
def quantised(
    request: pytest.FixtureRequest, model: Any, frames: CalibrationFrames
) -> tuple[Any, Quantisation]:
    """The tiny network in 8 bits."""
    return quantise(model, frames, precision=request.param)


def test_the_result_passes_the_gate_and_says_what_it_is(
    model: Any,
    quantised: tuple[Any, Quantisation],
    frames: CalibrationFrames,
    tmp_path: Path,
    tiny: ModelFile,
) -> None:
    proto, done = quantised
    assert lost(done.precision, done.parity) <= 1
    assert done.parity == compare(predictor(model), predictor(proto), frames.images)
    assert done.layers == len(convolutions(full_precision(model)))
    assert len(done.kept) <= done.layers // 2
    path = tmp_path / "q.onnx"
    onnx.save(proto, str(path))
    contract = load_model(str(path)).contract
    assert contract.precision == done.precision
    assert contract.classes == tiny.contract.classes
    metadata = {e.key: e.value for e in proto.metadata_props}
    assert json.loads(metadata["rtseg.calibration"]) == done.calibration
    assert tuple(json.loads(metadata["rtseg.kept"])) == done.kept
    stored = sum(n.op_type == "DequantizeLinear" for n in proto.graph.node)
    assert stored > done.layers - len(done.kept)


def test_the_sensitive_layer_is_ranked_first_and_kept(
    contract: Contract, frames: CalibrationFrames
) -> None:
    model = chain(contract, 1)
    found = measure_ranges(model, frames.images)
    costs = rank_layers(model, found, frames.images[:2])
    assert [cost.layer for cost in costs] == ["worse0", "fine"]
    assert costs[0].disagreement > 0.1 > costs[1].disagreement
    lines: list[str] = []
    proto, done = quantise(model, frames, on_progress=lines.append)
    assert done.kept == ("worse0",)
    assert done.parity.pixel_agreement >= 0.99
    assert [n.input[0] for n in proto.graph.node if n.op_type == "QuantizeLinear"] == ["image"]
    assert lines[0] == "calibrating on 4 frames"
    assert lines[2] == "ranking 2 layers"
    assert lines[1].startswith("no layer kept: ")
    assert lines[3].startswith("1 layer kept: ")


def test_when_most_layers_are_sensitive_the_gate_says_so(
    contract: Contract, frames: CalibrationFrames
) -> None:
    with pytest.raises(EngineError, match=r"int8 gives .* % of the pixels of 4 frames"):
        quantise(chain(contract, 3), frames)
    # Asked to, it gives the best it found, and says how good that is.
    model, done = quantise(chain(contract, 3), frames, allow_mismatch=True)
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert done.parity.pixel_agreement < 0.98


def test_labels_and_validation_frames_count(contract: Contract, frames: CalibrationFrames) -> None:
    model = chain(contract, 1)
    expected = tuple(predictor(model)(image).labels for image in frames.images)
    validation = CalibrationFrames("labelled", frames.images[:2], expected[:2])
    _, done = quantise(model, frames, validation=validation)
    assert done.parity.frames == 2
    assert done.parity.miou_difference is not None
    assert -0.005 <= done.parity.miou_difference <= 0


def test_the_calibration_hash_tells_frames_and_methods_apart(
    contract: Contract, frames: CalibrationFrames
) -> None:
    model = chain(contract, 1)
    hashes = {
        quantise(model, frames.take(count), method=method)[1].calibration
        for count, method in ((4, "percentile"), (4, "entropy"), (2, "percentile"))
    }
    assert len(hashes) == 3
    again = quantise(model, frames)[1].calibration
    assert again in hashes


def test_for_a_cpu_what_comes_from_a_concat_stays(model: Any, frames: CalibrationFrames) -> None:
    left = concatenated(model)
    assert "head.0.0" in left
    assert left < set(convolutions(model))
    proto, done = quantise(model, frames, for_cpu=True)
    assert done.layers == len(convolutions(model)) - len(left)
    stored = {tensor.name for tensor in proto.graph.initializer}
    for name, node in convolutions(model).items():
        assert (f"{node.input[1]}.int8" in stored) == (name not in left | set(done.kept))


def test_what_cannot_be_quantised_is_refused(
    model: Any, quantised: tuple[Any, Quantisation], frames: CalibrationFrames, contract: Contract
) -> None:
    with pytest.raises(ConfigError, match="quantised already"):
        quantise(quantised[0], frames)
    with pytest.raises(ConfigError, match="cannot quantise to 'int4': choose one of int8, fp8"):
        quantise(model, frames, precision="int4")
    with pytest.raises(ConfigError, match="choose one of percentile, entropy"):
        quantise(model, frames, method="minmax")
    plain = chain(contract, 1)
    del plain.metadata_props[:]
    with pytest.raises(ConfigError, match=r"no preprocess contract .*rtseg export"):
        quantise(plain, frames)
    empty = chain(contract, 1)
    empty.graph.node[0].op_type = "ConvInteger"
    del empty.graph.node[1:]
    with pytest.raises(ConfigError, match="no convolution"):
        quantise(empty, frames)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_run_it_and_report_its_precision(
    model: Any,
    frames: CalibrationFrames,
    tiny: ModelFile,
    engine: str,
    tmp_path: Path,
    quantised: tuple[Any, Quantisation],
) -> None:
    proto, done = quantised
    if done.precision == "int8":  # as the recipes for a CPU do it
        proto, done = quantise(model, frames, for_cpu=True)
    path = tmp_path / "q.onnx"
    onnx.save(proto, str(path))
    file = load_model(str(path))
    for asked in ("auto", done.precision):
        try:
            opened = open_engine(file, engine, asked)
        except MissingDependencyError as error:
            pytest.skip(str(error))
        with contextlib.closing(Segmenter(file, opened)) as segment:
            assert opened.info.precision == done.precision
            parity = compare(predictor(model), segment, frames.images)
        # Its own rounding comes on top of the gate's: random weights have many near ties.
        assert parity.pixel_agreement >= 0.97
    with pytest.raises(ConfigError, match=f"computes in {done.precision}: use --precision auto"):
        open_engine(file, engine, "fp32")
    other = "fp8" if done.precision == "int8" else "int8"
    for wrong, asked in ((file, other), (tiny, done.precision)):
        with pytest.raises(ConfigError, match=f"has no {asked} scales: .*`rtseg build`"):
            open_engine(wrong, engine, asked)


def test_the_rest_in_float16_agrees_as_well(
    model: Any, quantised: tuple[Any, Quantisation], frames: CalibrationFrames
) -> None:
    proto, done = quantised
    half = to_fp16(proto)
    assert json.loads({e.key: e.value for e in half.metadata_props}["rtseg.precision"]) == (
        done.precision
    )
    parity = compare(predictor(proto), predictor(half), frames.images)
    assert parity.pixel_agreement >= 0.98
    assert parity == Parity(parity.pixel_agreement, None, 4)


@pytest.mark.slow
def test_a_shipped_network_in_int8() -> None:
    from rtseg.artifact import find_model

    file = load_model("street-s")
    model = onnx.load(str(find_model("street-s")))
    drive = read_frames("synth:seed=3,frames=8", file.contract.classes, count=4)
    proto, done = quantise(model, drive)
    assert done.parity.pixel_agreement >= 0.98
    assert done.parity.miou_difference is not None
    other = read_frames("synth:seed=4,frames=4", file.contract.classes, split="val")
    parity = compare(predictor(model), predictor(to_fp16(proto)), other.images, other.labels)
    assert parity.pixel_agreement >= 0.98
