"""From a model file to a plan with its manifest, by whatever TensorRT is installed."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rtseg.artifact import ModelFile
from rtseg.engine import OnProgress, _tensorrt, quiet
from rtseg.errors import ConfigError, MissingDependencyError, ModelError
from rtseg.plans import Key, Machine, Manifest, Shapes, Store

QUANTISED = ("int8", "fp8")


def typed_graph(model: ModelFile, precision: str) -> bytes:
    """The model as an ONNX graph that computes in a precision, for a strongly typed network.

    Args:
        precision: "fp32" or "fp16"; "int8" or "fp8" for a file that is quantised already, whose
            other operators become float16.

    Raises:
        ConfigError: int8 or fp8 of a file that is not quantised, or another of one that is.
        MissingDependencyError: the package onnx is not installed.
    """
    try:
        import onnx

        from rtseg.precision import full_precision, to_fp16
    except ImportError as error:
        raise MissingDependencyError.for_extra(
            str(error.name), "torch", "building plans"
        ) from error
    try:
        graph = onnx.load_model_from_string(model.path.read_bytes())
    except Exception as error:  # protobuf's own; load_model has read the file's outline before
        raise ModelError(f"{model.path}: not an ONNX model: {error}") from error
    own = model.contract.precision
    if own != precision and (own or precision in QUANTISED):
        raise ConfigError(
            f"{model.path} computes in {own or 'float32'}, not in {precision}: "
            + (
                f"run it with --precision {own}"
                if own
                else "quantise it by a recipe with [calibration], see `rtseg build`"
            )
        )
    typed = full_precision(graph) if precision == "fp32" else to_fp16(graph)
    return bytes(typed.SerializeToString())


def compile_plan(
    model: ModelFile,
    graph: bytes,
    *,
    precision: str,
    shapes: Shapes,
    capabilities: Sequence[str],
    here: bool = False,
    workspace_mib: int = 0,
    optimisation_level: int | None = None,
    calibration: str = "",
    parity: Mapping[str, Any] | None = None,
    on_progress: OnProgress = quiet,
    trt: Any = None,
) -> tuple[bytes, Manifest]:
    """Builds a plan and writes down what it is.

    Args:
        model: the model file that is wanted on the GPU.
        graph: its ONNX as it is to be computed, see `typed_graph`.
        precision: what the graph computes in.
        shapes: of the input.
        capabilities: GPUs to build for ("SM86").
        here: whether the only GPU is this machine's, so that TensorRT need not know its name.
        workspace_mib, optimisation_level, on_progress, trt: see `_tensorrt.build_plan`.
        calibration: hash of what the model was calibrated on.
        parity: of the graph against the model, for the manifest.

    Raises:
        EngineError: TensorRT cannot build it.
    """
    trt = _tensorrt.load() if trt is None else trt
    named = not here or set(capabilities) <= set(_tensorrt.known_targets(trt))
    began = time.perf_counter()
    built = _tensorrt.build_plan(
        graph,
        profiles=[shapes],
        compute_capabilities=capabilities if named else (),
        workspace_mib=workspace_mib,
        optimisation_level=optimisation_level,
        on_progress=on_progress,
        name=model.contract.name or model.path.stem,
        trt=trt,
    )
    return built.data, Manifest(
        name=model.contract.name or model.path.stem,
        onnx_sha256=model.sha256(),
        flavour=_tensorrt.flavour(trt),
        version=str(trt.__version__),
        compute_capabilities=tuple(capabilities),
        precision=precision,
        shapes=shapes,
        contract=model.contract.to_metadata(),
        plan_sha256=hashlib.sha256(built.data).hexdigest(),
        plan_bytes=len(built.data),
        build_seconds=round(time.perf_counter() - began, 3),
        created=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        calibration=calibration,
        tensors=built.tensors,
        parity=parity,
    )


def plan_for(
    model: ModelFile,
    shape: Sequence[int],
    precision: str,
    capability: tuple[int, int],
    *,
    on_notice: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress = quiet,
    store: Store | None = None,
    trt: Any = None,
) -> Path:
    """A plan that runs a model here, from the store or built for it.

    Plans that `rtseg build` left in ./engines are looked at as well.

    Args:
        shape: (N, 3, H, W) of the input.
        precision: see `typed_graph`.
        capability: of the GPU, such as (8, 7).
        on_notice: takes lines for the user, such as why a plan is built anew.
        store: None for the user's own.

    Raises:
        EngineError: TensorRT cannot build it, or the store cannot be written.
        ConfigError, MissingDependencyError: see `typed_graph`.
    """
    trt = _tensorrt.load() if trt is None else trt
    store = Store(also=(Path("engines"),)) if store is None else store
    name = "SM{}{}".format(*capability)
    machine = Machine(_tensorrt.flavour(trt), str(trt.__version__), name)
    shapes = Shapes.fixed(shape)
    known = model.contract.name or model.path.stem
    key = Key(known, model.sha256(), precision, shapes, machine)

    def build() -> tuple[bytes, Manifest]:
        return compile_plan(
            model,
            typed_graph(model, precision),
            precision=precision,
            shapes=shapes,
            capabilities=(name,),
            here=True,
            on_progress=on_progress,
            trt=trt,
        )

    return store.find_or_build(key, build, on_notice)
