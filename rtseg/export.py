"""`rtseg export`: a network and its weights become one ONNX file with the preprocess contract.

The file is checked before it replaces anything: ONNX Runtime runs it at three sizes and its logits
must match PyTorch's.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rtseg import plugins
from rtseg.artifact import Contract
from rtseg.data import class_table
from rtseg.data.transforms import MEAN_RGB, STD_RGB
from rtseg.errors import ModelError
from rtseg.files import replacing
from rtseg.frame import ClassTable
from rtseg.models._catalogue import build, parameters, resolve
from rtseg.models._weights import load_weights, name_weights, read_facts
from rtseg.models.layers import Network, fuse_batch_norm
from rtseg.recipe import Recipe

OPSET = 18
OnNotice = Callable[[str], None]
_HALF_FROM = 32
"""Tensors with fewer elements than this stay float32: there is nothing to save in them."""


def quiet(line: str) -> None:
    """An `OnNotice` for whom it does not concern."""


def export_checkpoint(
    recipe: Recipe,
    checkpoint: Path,
    path: Path,
    *,
    half: bool = True,
    on_notice: OnNotice = quiet,
) -> float:
    """Exports a checkpoint of `rtseg train`; see `export_onnx` for the check and the result.

    Raises:
        ConfigError: the checkpoint does not fit the recipe's network.
        ModelError: the exported file does not reproduce the network.
    """
    model = recipe.model
    family, options = resolve(model.network, model.family, model.options)
    classes = class_table(os.path.expandvars(recipe.data.val))  # only some look at it
    network = build(family, len(classes), options)
    load_weights(network, checkpoint)
    contract = contract_of(
        network,
        recipe.name,
        family,
        options,
        classes,
        recipe.data.input_hw,
        measured=_measured(recipe, checkpoint),
        trained_on=", ".join(spec.partition(":")[0] for spec in recipe.data.train),
        licence="Apache-2.0",
    )
    return export_onnx(network, contract, path, half=half, on_notice=on_notice)


def contract_of(
    network: Network,
    name: str,
    family: str,
    options: Mapping[str, Any],
    classes: ClassTable,
    input_hw: tuple[int, int],
    *,
    mean: tuple[float, float, float] = MEAN_RGB,
    std: tuple[float, float, float] = STD_RGB,
    measured: Mapping[str, Any] | None = None,
    trained_on: str = "",
    licence: str = "",
    source: str = "",
) -> Contract:
    """What a model file of this network says of itself."""
    module = plugins.load("rtseg.models", family)
    facts = {
        "params": parameters(network),
        "gmacs": round(gmacs(network, input_hw), 2),
        "paper": module.PAPER,
        "year": module.YEAR,
    }
    return Contract(
        name,
        classes,
        mean,
        std,
        input_hw=input_hw,
        input_multiple=network.input_multiple,
        output_stride=network.output_stride,
        align_corners=network.align_corners,
        family=family,
        options=options,
        measured=measured or {},
        trained_on=trained_on,
        facts={**facts, "source": source} if source else facts,
        licence=licence,
    )


def export_onnx(
    network: nn.Module,
    contract: Contract,
    path: Path,
    *,
    half: bool = True,
    tolerance: float = 2e-2,
    on_notice: OnNotice = quiet,
) -> float:
    """Writes an `.onnx` with the contract in its metadata.

    Args:
        network: one of `rtseg.models`, with its weights; it is changed (eval mode, norms folded).
        contract: what the file says of itself.
        path: written only after the check.
        half: store weights as float16; the graph casts them, so every engine computes in the
            precision it likes. Where that alone changes the logits by more than `tolerance`,
            they are stored as float32 all the same, and `on_notice` says so.
        tolerance: largest allowed relative error of the logits against PyTorch in float32.
        on_notice: gets a line that the user should see.

    Returns:
        The largest relative error found, ||onnx - torch|| / ||torch||.

    Raises:
        ModelError: the exported file does not reproduce the network.
    """
    network = fuse_batch_norm(network.eval()).float()
    model = _to_onnx(network, contract.input_hw)
    name_weights(network, model)
    _forget_origin(model.graph)
    for key, value in contract.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    full = model.SerializeToString()
    if half:
        _store_half(model)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    error = _largest_error(network, data, contract)
    if half and not error <= tolerance:
        on_notice(f"float16 weights would change the logits by {error:.2g}: stored as float32")
        data = full
        error = _largest_error(network, data, contract)
    if not error <= tolerance:
        raise ModelError(f"{path}: the exported graph differs from the network by {error:.2g}")
    try:
        with replacing(path) as partial:
            partial.write_bytes(data)
    except OSError as err:
        raise ModelError(f"{path}: cannot write the model file: {err.strerror}") from err
    return error


def _largest_error(network: nn.Module, data: bytes, contract: Contract) -> float:
    """Over three input sizes, the contract's own and two that its graph was not traced with."""
    height, width = contract.input_hw
    multiple = contract.input_multiple
    sizes = [
        (height, width),
        (height + 2 * multiple, width + multiple),
        (4 * multiple, 5 * multiple),
    ]
    return max(_relative_error(network, data, size) for size in sizes)


def gmacs(network: nn.Module, input_hw: tuple[int, int]) -> float:
    """Billions of multiply-accumulates of one forward pass, by PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(torch.zeros(1, 3, *input_hw))
    return float(counter.get_total_flops()) / 2e9


def _measured(recipe: Recipe, checkpoint: Path) -> dict[str, Any]:
    """{data, split, size, miou} as training measured it, if the checkpoint says so."""
    miou = read_facts(checkpoint).get("miou")
    if miou is None:
        return {}
    height, width = recipe.data.input_hw
    return {
        "data": recipe.data.val.partition(":")[0],
        "split": "val",
        "size": f"{height}x{width}",
        "miou": round(miou, 4),
    }


def _to_onnx(network: nn.Module, input_hw: tuple[int, int]) -> Any:
    """ModelProto with input `image` (N, 3, H, W) and output `logits`, all of N, H, W dynamic."""
    example = torch.zeros(2, 3, *input_hw)
    dynamic = {
        0: torch.export.Dim.DYNAMIC,
        2: torch.export.Dim.DYNAMIC,
        3: torch.export.Dim.DYNAMIC,
    }
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _forget_origin(graph: Any) -> None:
    """Takes out the exporter's notes: stack traces, with the paths of whoever exported the file."""
    del graph.metadata_props[:]
    for value in [*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _forget_origin(attribute.g)


def _store_half(model: Any) -> None:
    """Keeps float32 initializers as float16, with a Cast in front of their users."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _HALF_FROM:
            continue
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        full = f"{tensor.name}.float32"
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[i] = full
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        casts.append(
            onnx.helper.make_node("Cast", [tensor.name], [full], to=onnx.TensorProto.FLOAT)
        )
    nodes = casts + list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    # Shapes and types of intermediates were written for float32 initializers.
    del graph.value_info[:]


def _relative_error(network: nn.Module, data: bytes, size: tuple[int, int]) -> float:
    import onnxruntime

    images = np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    got = session.run(["logits"], {"image": images})[0]
    if got.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
