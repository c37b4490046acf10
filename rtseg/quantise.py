"""Quantises a model file to 8 bits by calibration and keeps the sensitive layers as they are.

How much each layer suffers is measured, one at a time; the worst stay in high precision, as many
of them as the parity gate needs.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rtseg import native
from rtseg.artifact import Contract
from rtseg.calibration import PERCENTILE, CalibrationFrames, check_method, ranges
from rtseg.errors import ConfigError, EngineError
from rtseg.frame import ImageBGR, LabelMap, Labels
from rtseg.parity import Parity, Predict, compare, gate, lost
from rtseg.precision import PRECISION_KEY, QUANTISERS, full_precision, set_metadata
from rtseg.qdq import PRECISIONS, concatenated, convolutions, insert_qdq
from rtseg.segmenter import input_size

CALIBRATION_KEY = "rtseg.calibration"
KEPT_KEY = "rtseg.kept"

_RANKING_FRAMES = 4
_STEPS = 16
"""In about so many steps one comes from no layer kept to all."""
_AIM = 0.5
"""Share of what the gate allows that is aimed at: other frames lose a little more."""


@dataclass(frozen=True)
class LayerCost:
    """What quantising one layer alone does.

    Attributes:
        layer: its name, that of its weights.
        disagreement: share of the pixels whose label changes.
        logits_error: ||quantised - float32|| / ||float32|| of the logits.
    """

    layer: str
    disagreement: float
    logits_error: float


@dataclass(frozen=True)
class Quantisation:
    """What `quantise` did.

    Attributes:
        precision: "int8" or "fp8".
        layers: how many convolutions the network has.
        kept: names of those left in high precision, the most sensitive first.
        costs: of every layer, the most sensitive first; empty if none had to be kept.
        parity: of the result with float32, on the validation frames.
        calibration: hex digest of the frames and of how they were used.
    """

    precision: str
    layers: int
    kept: tuple[str, ...]
    costs: tuple[LayerCost, ...]
    parity: Parity
    calibration: str


def quantise(
    model: Any,
    calibration: CalibrationFrames,
    *,
    validation: CalibrationFrames | None = None,
    precision: str = "int8",
    method: str = "percentile",
    percentile: float = PERCENTILE,
    size_hw: tuple[int, int] | None = None,
    for_cpu: bool = False,
    allow_mismatch: bool = False,
    on_progress: Callable[[str], None] = lambda line: None,
) -> tuple[Any, Quantisation]:
    """Quantises as many convolutions as the parity gate allows.

    Args:
        model: onnx.ModelProto with the contract in its metadata.
        calibration: sets the scales and, where some must be kept, ranks the layers.
        validation: the gate looks at these; None for the calibration frames. Frames with labels
            are judged by mIoU too.
        precision: "int8" or "fp8" (E4M3).
        method, percentile: see `rtseg.calibration.ranges`.
        size_hw: of the network's input; None to choose by the frame, as the pipeline does.
        for_cpu: leave out what OpenVINO computes wrongly on some CPUs, see `concatenated`.
        allow_mismatch: give the best that was found where the gate does not pass.
        on_progress: told in one line what is being done.

    Returns:
        The model, computing in float32 around its Q/DQ nodes (`rtseg.precision.to_fp16` turns
        that part into float16), with `rtseg.precision`, `rtseg.calibration` and `rtseg.kept` in
        its metadata; and what was done.

    Raises:
        ConfigError: unknown precision or method, no contract, quantised before, or nothing to
            quantise.
        EngineError: the gate does not pass, even with half of the layers kept.
    """
    check_method(method, percentile)
    if precision not in PRECISIONS:
        raise ConfigError(
            f"cannot quantise to {precision!r}: choose one of {', '.join(PRECISIONS)}"
        )
    model = full_precision(model)
    if any(node.op_type in QUANTISERS for node in model.graph.node):
        raise ConfigError("the model is quantised already: start from the float32 file")
    layers = convolutions(model)
    if for_cpu:
        left = concatenated(model)
        layers = {name: node for name, node in layers.items() if name not in left}
    if not layers:
        raise ConfigError("the model has no convolution with constant weights to quantise")
    on_progress(f"calibrating on {len(calibration)} frames")
    found = measure_ranges(
        model, calibration.images, method=method, percentile=percentile, size_hw=size_hw
    )
    frames = validation or calibration
    reference = predictor(model, size_hw=size_hw)
    expected = [reference(image) for image in frames.images]
    costs: list[LayerCost] = []
    best: tuple[int, Any, Parity] | None = None
    for kept in range(0, len(layers) // 2 + 1, max(1, len(layers) // _STEPS)):
        if kept and not costs:
            on_progress(f"ranking {len(layers)} layers")
            few = calibration.take(_RANKING_FRAMES).images
            costs = rank_layers(model, found, few, precision=precision, size_hw=size_hw)
        names = set(layers) - {cost.layer for cost in costs[:kept]}
        candidate = insert_qdq(model, found, names, precision)
        answers = iter(expected)
        parity = compare(
            lambda _, answers=answers: next(answers),  # type: ignore[misc]
            predictor(candidate, size_hw=size_hw),
            frames.images,
            frames.labels,
        )
        on_progress(_line(parity, kept))
        if best is None or lost(precision, parity) < lost(precision, best[2]):
            best = (kept, candidate, parity)
        if lost(precision, parity) <= _AIM:
            break
    assert best is not None
    kept, candidate, parity = best
    if not allow_mismatch:
        gate(precision, parity)
    names_kept = tuple(cost.layer for cost in costs[:kept])
    said = repr((calibration.sha256(), method, percentile, size_hw, precision))
    digest = hashlib.sha256(said.encode()).hexdigest()
    set_metadata(candidate, PRECISION_KEY, precision)
    set_metadata(candidate, CALIBRATION_KEY, digest)
    set_metadata(candidate, KEPT_KEY, names_kept)
    return candidate, Quantisation(precision, len(layers), names_kept, tuple(costs), parity, digest)


def measure_ranges(
    model: Any,
    frames: Sequence[ImageBGR],
    *,
    method: str = "percentile",
    percentile: float = PERCENTILE,
    size_hw: tuple[int, int] | None = None,
) -> dict[str, float]:
    """The largest magnitude to represent of every convolution's input, by tensor name.

    Args:
        model: onnx.ModelProto as `rtseg.precision.full_precision` gives it, with the contract.
        frames: (H, W, 3) uint8 BGR.
        method, percentile: see `rtseg.calibration.ranges`.
        size_hw: of the network's input; None to choose by the frame.

    Raises:
        ConfigError: as `rtseg.calibration.ranges`, or the model has no contract.
    """
    names = sorted({node.input[0] for node in convolutions(model).values()})
    inner = [name for name in names if name != model.graph.input[0].name]
    probe = copy.deepcopy(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    session, contract = _session(probe), _contract(model)

    def values() -> Iterator[list[NDArray[np.float32]]]:
        for bgr in frames:
            images = _images(bgr, contract, size_hw)
            found = dict(zip(inner, session.run(inner, _feed(session, images)), strict=True))
            yield [found.get(name, images) for name in names]

    return ranges(values(), names, method=method, percentile=percentile)


def rank_layers(
    model: Any,
    found: Mapping[str, float],
    frames: Sequence[ImageBGR],
    *,
    precision: str = "int8",
    size_hw: tuple[int, int] | None = None,
) -> list[LayerCost]:
    """What quantising each convolution alone costs, the most sensitive first.

    Args:
        model, size_hw: as for `measure_ranges`.
        found: its result.
        frames: a handful.
        precision: "int8" or "fp8".
    """
    contract = _contract(model)
    inputs = [_images(bgr, contract, size_hw) for bgr in frames]
    plain = list(_logits(model, inputs))
    labels = [_argmax(logits, contract, bgr) for logits, bgr in zip(plain, frames, strict=True)]
    costs = []
    for layer in convolutions(model):
        differ = total = 0
        error = size = 0.0
        got = _logits(insert_qdq(model, found, {layer}, precision), inputs)
        for logits, expected, truth, bgr in zip(got, plain, labels, frames, strict=True):
            error += float(np.sum(np.square(logits - expected), dtype=np.float64))
            size += float(np.sum(np.square(expected), dtype=np.float64))
            differ += int(np.count_nonzero(_argmax(logits, contract, bgr) != truth))
            total += truth.size
        costs.append(LayerCost(layer, differ / total, math.sqrt(error / size) if size else 0.0))
    return sorted(costs, key=lambda cost: (-cost.disagreement, -cost.logits_error))


def predictor(model: Any, *, size_hw: tuple[int, int] | None = None) -> Predict:
    """A function from images (H, W, 3) uint8 BGR to their labels, by ONNX Runtime on the CPU.

    Q/DQ nodes are computed as they are written, not fused into integer kernels: what every
    engine's kernels approximate.

    Args:
        model: onnx.ModelProto with the contract in its metadata.
        size_hw: of the network's input; None to choose by the frame.

    Raises:
        ConfigError: no contract.
        EngineError: ONNX Runtime cannot load it.
    """
    session, contract = _session(model), _contract(model)

    def predict(bgr: ImageBGR) -> LabelMap:
        images = _images(bgr, contract, size_hw)
        logits = session.run(None, _feed(session, images))[0]
        return LabelMap(_argmax(logits, contract, bgr), contract.classes)

    return predict


def _session(model: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if any(t.data_type == onnx.TensorProto.FLOAT8E4M3FN for t in model.graph.initializer):
        # Its further fusions drop a ReLU before the quantisation to fp8.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, ["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime's exceptions share no base but Exception
        raise EngineError(f"ONNX Runtime cannot load the graph: {error}") from error


def _contract(model: Any) -> Contract:
    try:
        return Contract.from_metadata({e.key: e.value for e in model.metadata_props})
    except KeyError as error:
        raise ConfigError(
            f"no preprocess contract in the model (rtseg.{error.args[0]} is missing): "
            "export it with `rtseg export`"
        ) from error


def _images(
    bgr: ImageBGR, contract: Contract, size_hw: tuple[int, int] | None
) -> NDArray[np.float32]:
    height, width = bgr.shape[:2]
    size = size_hw or input_size((height, width), contract)
    return native.preprocess(bgr, size, contract.mean, contract.std)


def _feed(session: Any, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return {session.get_inputs()[0].name: images}


def _logits(model: Any, inputs: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    session = _session(model)
    for images in inputs:
        yield session.run(None, _feed(session, images))[0]


def _argmax(logits: NDArray[np.float32], contract: Contract, bgr: ImageBGR) -> Labels:
    height, width = bgr.shape[:2]
    return native.upsample_argmax(
        logits[0],
        (height, width),
        align_corners=contract.align_corners,
        ignore_index=contract.classes.ignore_index,
    )


def _line(parity: Parity, kept: int) -> str:
    difference = parity.miou_difference
    miou = "" if difference is None else f", {100 * difference:+.2f} mIoU points"
    layers = "no layer" if not kept else f"{kept} layer{'s' * (kept > 1)}"
    return f"{layers} kept: {100 * parity.pixel_agreement:.2f} % of the pixels alike{miou}"
