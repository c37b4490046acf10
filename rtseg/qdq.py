"""QuantizeLinear/DequantizeLinear pairs around the convolutions of an ONNX graph.

The form is the one that TensorRT, OpenVINO and ONNX Runtime all read: one symmetric scale for the
input of a convolution, weights stored in 8 bits behind a DequantizeLinear with one scale per output
channel, biases and outputs untouched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rtseg.precision import QUANTISED_OPSET, drop_unused, raise_opset, replace_nodes

PRECISIONS = ("int8", "fp8")

# -128 is not used, so that the scales are symmetric; E4M3 ends at 448.
_LIMITS = {"int8": 127.0, "fp8": 448.0}
_TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


def convolutions(model: Any) -> dict[str, Any]:
    """{layer name: node} of the convolutions with constant weights, in the graph's order.

    A layer is named after its weights, such as "align.flow", or after its node where the weights
    have no name of their own.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, Any] = {}
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        name = node.input[1].removesuffix(".weight")
        if not name or name in found:
            name = node.name or node.output[0]
        found[name] = node
    return found


def concatenated(model: Any) -> set[str]:
    """Names of those of the `convolutions` whose input comes straight from a Concat.

    OpenVINO 2026.4 computes them wrongly in int8 on CPUs with AVX512 but no AMX: street-m's first
    convolution of the head had a relative error of 0.137 on an AMD EPYC (Zen 5), where ONNX Runtime
    had 0.004, and the network lost 1.1 points of mIoU; with AMX the two agree.
    """
    joined = {name for node in model.graph.node if node.op_type == "Concat" for name in node.output}
    return {name for name, node in convolutions(model).items() if node.input[0] in joined}


def insert_qdq(
    model: Any, ranges: Mapping[str, float], layers: Collection[str], precision: str = "int8"
) -> Any:
    """A copy of a model with these layers quantised.

    Args:
        model: onnx.ModelProto with float32 weights as initializers, see
            `rtseg.precision.full_precision`.
        ranges: the largest magnitude of the input of each of the layers, by tensor name.
        layers: names as `convolutions` gives them.
        precision: "int8" or "fp8".

    Raises:
        ValueError: there is no such layer.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    known = convolutions(copy)
    if not set(layers) <= set(known):
        raise ValueError(f"layers: there is no {', '.join(sorted(set(layers) - set(known)))}")
    chosen = {id(known[name]) for name in layers}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    done: set[str] = set()

    def dequantised(name: str, scale: NDArray[np.float32], *, constant: bool) -> str:
        result = f"{name}.dequantised"
        if name in done:
            return result
        done.add(name)
        parameters = [f"{name}.scale", f"{name}.zero"]
        graph.initializer.append(numpy_helper.from_array(scale, parameters[0]))
        zero = np.zeros(scale.shape, np.uint8)
        graph.initializer.append(_bytes_tensor(parameters[1], zero, precision))
        stored = f"{name}.{precision}"
        if constant:
            values = numpy_helper.to_array(weights[name])
            broadcast = scale.reshape(-1, *[1] * (values.ndim - 1))
            codes = _encode(values / broadcast, precision)
            graph.initializer.append(_bytes_tensor(stored, codes, precision))
        else:
            nodes.append(helper.make_node("QuantizeLinear", [name, *parameters], [stored]))
        node = helper.make_node("DequantizeLinear", [stored, *parameters], [result])
        if scale.ndim:
            node.attribute.append(helper.make_attribute("axis", 0))
        nodes.append(node)
        return result

    limit = _LIMITS[precision]
    for node in graph.node:
        if id(node) in chosen:
            activation, weight = node.input[0], node.input[1]
            scale = np.float32((ranges[activation] or limit) / limit)
            node.input[0] = dequantised(activation, np.asarray(scale), constant=False)
            values = numpy_helper.to_array(weights[weight])
            largest = np.abs(values).max(axis=tuple(range(1, values.ndim))).astype(np.float32)
            scales = np.where(largest > 0, largest, limit).astype(np.float32) / np.float32(limit)
            node.input[1] = dequantised(weight, scales, constant=True)
        elif node.op_type == "Add":
            for i, name in enumerate(node.input):
                if name in done:
                    node.input[i] = f"{name}.dequantised"
        nodes.append(node)
    replace_nodes(graph, nodes)
    drop_unused(graph)
    if precision == "fp8":
        raise_opset(copy, QUANTISED_OPSET)
    return copy


def _bytes_tensor(name: str, codes: NDArray[np.uint8], precision: str) -> Any:
    """A tensor of an 8-bit type from the bytes of its elements."""
    return helper.make_tensor(name, _TYPES[precision], codes.shape, codes.tobytes(), raw=True)


def _encode(values: NDArray[Any], precision: str) -> NDArray[np.uint8]:
    """The bytes of the nearest numbers of the type, clipped to its range."""
    if precision == "int8":
        limit = _LIMITS["int8"]
        rounded: NDArray[np.int8] = np.clip(np.rint(values), -limit, limit).astype(np.int8)
        return rounded.view(np.uint8)
    magnitudes = np.abs(values)
    table = _e4m3()
    codes: NDArray[np.uint8] = np.searchsorted((table[1:] + table[:-1]) / 2, magnitudes).astype(
        np.uint8
    )
    codes[np.signbit(values)] |= 0x80
    return codes


def _e4m3() -> NDArray[np.float32]:
    """(127,) the numbers of E4M3 from 0 to 448 in the order of their codes.

    Micikevicius et al., "FP8 Formats for Deep Learning", 2022: bias 7, no infinities, code 127
    is NaN.
    """
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return np.where(exponent == 0, mantissa * 2.0**-9, normal).astype(np.float32)
