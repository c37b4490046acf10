"""What a graph computes in, written into the graph: float32, or float16 where that is safe.

Strongly typed TensorRT networks take their precision from the ONNX. The shipped files keep their
weights as float16 but compute in float32, so that every other engine may choose; `to_fp16` makes
the graph that computes in float16 itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rtseg.errors import ModelError

PRECISION_KEY = "rtseg.precision"
QUANTISED_OPSET = 19
"""From here on QuantizeLinear and DequantizeLinear take float16 and float8."""

_FLOAT32_OPS = frozenset(
    (
        "GridSample",
        "Softmax",
        "LogSoftmax",
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceL2",
        "GlobalAveragePool",
        "Exp",
        "Log",
        "Pow",
        "Sqrt",
        "CumSum",
    )
)
"""Sums over many values, functions that leave float16's range, and sampling."""
_FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that the operator wants as float32 whatever it computes in: regions and scales."""
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_HALF_MAX = float(np.finfo(np.float16).max)


def full_precision(model: Any) -> Any:
    """A copy of a model whose weights are float32 initializers, without Casts before them.

    Args:
        model: onnx.ModelProto; one that stores float16 weights behind a Cast to float32 each,
            as `rtseg export` writes, or any other, which stays as it is.
    """
    model = _copy(model)
    graph = model.graph
    halves = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT16}
    casts = {
        node.input[0]: node.output[0]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in halves and _cast_type(node) == _FLOAT
    }
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    outputs = {value.name for value in graph.output}
    casts = {k: v for k, v in casts.items() if readers[k] == 1 and v not in outputs}
    for name in casts:
        values = numpy_helper.to_array(halves[name]).astype(np.float32)
        halves[name].CopyFrom(numpy_helper.from_array(values, name))
    plain = {after: before for before, after in casts.items()}
    nodes = [n for n in graph.node if n.op_type != "Cast" or n.output[0] not in plain]
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = plain.get(name, name)
    replace_nodes(graph, nodes)
    return model


def to_fp16(model: Any) -> Any:
    """A copy of a model that computes in float16, for strongly typed TensorRT.

    The input stays float32 and is cast once, the logits come out as float16. Float32 stay: the
    sampling grids with the flow added to them and GridSample, sums and means, and what is computed
    from shapes alone. Q/DQ nodes keep their integers and get float16 scales. Dynamic sizes and the
    metadata stay; `rtseg.precision` becomes "fp16", but for a quantised model, which keeps its own.

    Args:
        model: onnx.ModelProto in float32, its weights float32 or float16 behind Casts.

    Raises:
        ModelError: control flow, or the graph cannot be typed.
    """
    model = full_precision(model)
    graph = model.graph
    for node in graph.node:
        if any(
            a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
            for a in node.attribute
        ):
            raise ModelError(
                f"{node.op_type} {node.name!r}: control flow cannot be turned into float16: "
                "use precision fp32"
            )
    floats = _float_tensors(model)
    half_nodes = _half_nodes(graph)
    weights = {t.name: t for t in graph.initializer}
    halved = {name for i in half_nodes for name in graph.node[i].output if name in floats}
    made: dict[tuple[str, int], str] = {}
    nodes: list[Any] = []
    initializers: list[Any] = []

    def converted(name: str, kind: int) -> str:
        """The tensor in the other precision: a rounded initializer, or one Cast for all readers."""
        if (name, kind) not in made:
            made[name, kind] = f"{name}.{'float16' if kind == TensorProto.FLOAT16 else 'float32'}"
            if name in weights:
                initializers.append(_half_tensor(weights[name], made[name, kind]))
            else:
                nodes.append(helper.make_node("Cast", [name], [made[name, kind]], to=kind))
        return made[name, kind]

    for i, node in enumerate(graph.node):
        half = i in half_nodes
        exempt = _FLOAT32_INPUTS.get(node.op_type, ())
        for position, name in enumerate(node.input):
            if name not in floats:
                continue
            if half and position not in exempt:
                if name not in halved:
                    node.input[position] = converted(name, TensorProto.FLOAT16)
            elif name in halved and node.op_type not in ("Shape", "Size"):
                node.input[position] = converted(name, TensorProto.FLOAT)
        if half and node.op_type == "Cast" and _cast_type(node) == _FLOAT:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT16))
        nodes.append(node)
    for value in graph.output:
        if value.name in halved:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    graph.initializer.extend(initializers)
    replace_nodes(graph, nodes)
    drop_unused(graph)
    if any(node.op_type in QUANTISERS for node in nodes):
        raise_opset(model, QUANTISED_OPSET)
    else:
        set_metadata(model, PRECISION_KEY, "fp16")
    _check(model)
    return model


def set_metadata(model: Any, key: str, value: object) -> None:
    """Writes one metadata entry as JSON, as the contract's are, in place of one it has."""
    entry = next((e for e in model.metadata_props if e.key == key), None)
    (entry or model.metadata_props.add(key=key)).value = json.dumps(value)


def raise_opset(model: Any, version: int) -> None:
    """Sets the opset to at least this one, in place.

    Between 18 and 19 operators only gained types and attributes with the old meaning as default.
    """
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, version)


_FLOAT = TensorProto.FLOAT


def _copy(model: Any) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _cast_type(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "to"), 0)


def replace_nodes(graph: Any, nodes: Iterable[Any]) -> None:
    """Puts nodes in place of the graph's, and forgets the types of what lay between the old."""
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]


def drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input} | {v.name for v in graph.output}
    kept = [t for t in graph.initializer if t.name in used]
    if len(kept) < len(graph.initializer):
        tensors = [_copy_tensor(t) for t in kept]
        del graph.initializer[:]
        graph.initializer.extend(tensors)


def _copy_tensor(tensor: Any) -> Any:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _half_tensor(tensor: Any, name: str) -> Any:
    values = numpy_helper.to_array(tensor)
    # Constants that stand for infinity, as in a mask, must not become one: inf - inf is NaN.
    limited = np.where(np.isinf(values), values, np.clip(values, -_HALF_MAX, _HALF_MAX))
    return numpy_helper.from_array(limited.astype(np.float16), name)


def _float_tensors(model: Any) -> set[str]:
    """Names of all float32 tensors: initializers, inputs, outputs and what lies between."""
    try:
        typed = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    except Exception as error:  # onnx's own errors derive from RuntimeError or from nothing shared
        raise ModelError(f"the graph cannot be typed: {str(error).splitlines()[0]}") from error
    values = (*typed.input, *typed.output, *typed.value_info)
    found = {v.name for v in values if v.type.tensor_type.elem_type == _FLOAT}
    return found | {t.name for t in typed.initializer if t.data_type == _FLOAT}


def _half_nodes(graph: Any) -> set[int]:
    """Indices of the nodes that compute on the image and may do so in float16."""
    from_image = {value.name for value in graph.input}
    reached = []
    for i, node in enumerate(graph.node):
        if from_image.intersection(node.input) and node.op_type not in ("Shape", "Size"):
            from_image.update(node.output)
            reached.append(i)
        elif node.op_type in QUANTISERS:  # of weights: their readers want them as they are
            reached.append(i)
    full = set(_grid_nodes(graph, from_image))
    return {i for i in reached if i not in full and graph.node[i].op_type not in _FLOAT32_OPS}


def _grid_nodes(graph: Any, from_image: set[str]) -> Iterator[int]:
    """Indices of the nodes between the convolution that predicts a flow and its GridSample."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output}
    waiting = [n.input[1] for n in graph.node if n.op_type == "GridSample"]
    seen: set[int] = set()
    while waiting:
        name = waiting.pop()
        i = producer.get(name)
        if i is None or i in seen or name not in from_image:
            continue
        node = graph.node[i]
        if node.op_type in _WEIGHTED:
            continue
        seen.add(i)
        yield i
        waiting.extend(node.input)


def _check(model: Any) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # as above
        raise ModelError(
            f"the converted graph is not valid: {str(error).splitlines()[0]}"
        ) from error
