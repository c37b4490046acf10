"""TensorRT 10.x, 11.x and TensorRT-RTX 1.x behind one small set of functions.

They differ in what they have, not in how it is called, so it is asked for with `hasattr` and never
by version number. All networks are strongly typed: the precision is in the ONNX graph.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rtseg.engine import OnProgress, quiet
from rtseg.errors import EngineError, MissingDependencyError
from rtseg.plans import INPUT, Shapes, check_tensors

_PACKAGES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_building = threading.Lock()


class BuiltPlan(NamedTuple):
    """What comes out of a build.

    Attributes:
        data: the plan.
        tensors: {name: {"mode", "dtype", "shape"}} of inputs and outputs, -1 where dynamic.
    """

    data: bytes
    tensors: dict[str, dict[str, Any]]


def missing(wanted: str = "any") -> str:
    """Empty if TensorRT of the flavour "tensorrt", "tensorrt-rtx" or "any" is installed."""
    reasons = []
    for name, package in _PACKAGES.items():
        if wanted in ("any", name):
            try:
                importlib.import_module(package)
            except (ImportError, OSError) as error:
                reasons.append(str(error).splitlines()[0])
            else:
                return ""
    if wanted == "tensorrt":
        return (
            f"tensorrt is missing ({'; '.join(reasons)}): on Jetson it comes with JetPack "
            "(apt install python3-libnvinfer, then python3 -m venv --system-site-packages)"
        )
    return f"TensorRT is missing ({'; '.join(reasons)}): pip install 'rtseg[tensorrt]'"


def load(wanted: str = "any") -> Any:
    """The module `tensorrt_rtx` or `tensorrt`; for "any" the first that is installed.

    Raises:
        MissingDependencyError: it is not installed, or its libraries cannot be loaded.
    """
    if wanted not in ("any", *_PACKAGES):
        raise ValueError(f"expected any or one of {', '.join(_PACKAGES)}, got {wanted!r}")
    reason = missing(wanted)
    if reason:
        raise MissingDependencyError(reason)
    name = next(n for n in _PACKAGES if wanted in ("any", n) and not missing(n))
    return importlib.import_module(_PACKAGES[name])


def flavour(trt: Any) -> str:
    """ "tensorrt" or "tensorrt-rtx"."""
    return next(name for name, package in _PACKAGES.items() if package == trt.__name__)


def known_targets(trt: Any) -> list[str]:
    """Compute capabilities it builds for without their GPU ("SM86"); empty if for none."""
    if not hasattr(trt, "ComputeCapability"):
        return []
    names = [n for n in dir(trt.ComputeCapability) if n.startswith("SM") and n[2:].isdigit()]
    return sorted(names, key=lambda name: int(name[2:]))


@functools.cache
def logger(trt: Any) -> Any:
    """The one logger of this process, an `ILogger` that prints nothing.

    TensorRT keeps the first logger it is given and ignores all later ones. `last()` is its last
    error, `errors` the last few, `clear()` forgets them.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=32)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

        def last(self) -> str:
            return self.errors[-1] if self.errors else "it does not say why"

        def clear(self) -> None:
            self.errors.clear()

    return Logger()


def build_plan(
    model: bytes,
    *,
    profiles: Sequence[Shapes],
    compute_capabilities: Sequence[str] = (),
    workspace_mib: int = 0,
    optimisation_level: int | None = None,
    on_progress: OnProgress = quiet,
    name: str = "model",
    trt: Any = None,
) -> BuiltPlan:
    """Builds a plan of an ONNX model whose precision is in its graph.

    Args:
        model: the ONNX file's bytes; input `image` (N, 3, H, W), output `logits` (N, C, h, w).
        profiles: an optimisation profile each.
        compute_capabilities: GPUs to build for, such as "SM86", present or not; empty for the one
            in this machine.
        workspace_mib: most scratch memory a layer may use; 0 for TensorRT's default.
        optimisation_level: 0 (fast build) to 5 (fast engine); None for TensorRT's default.
        on_progress: called from TensorRT's threads.
        name: of the model, for messages.
        trt: the module; None for `load()`.

    Raises:
        EngineError: an operator that TensorRT lacks (names node and operator), wrong inputs or
            outputs, a GPU it cannot build for, or a build that failed.
    """
    trt = load() if trt is None else trt
    with _building:
        log = logger(trt)
        log.clear()
        builder = trt.Builder(log)
        network, parser, tensors = _parse(builder, model, name, trt)
        config = builder.create_builder_config()
        _set_targets(config, trt, compute_capabilities, name)
        if workspace_mib:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
        if optimisation_level is not None and hasattr(config, "builder_optimization_level"):
            config.builder_optimization_level = optimisation_level
        for shapes in profiles:
            profile = builder.create_optimization_profile()
            profile.set_shape(INPUT, shapes.min, shapes.opt, shapes.max)
            if config.add_optimization_profile(profile) < 0:
                raise EngineError(f"{name}: {title(trt)} takes no input of {shapes}: {log.last()}")
        monitor = _monitor(trt, on_progress)
        if monitor is not None and hasattr(config, "progress_monitor"):
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        del parser  # it owns the network's weights until here
        if monitor is not None and monitor.interrupted:
            raise KeyboardInterrupt
        if plan is None:
            raise EngineError(f"{name}: {title(trt)} cannot build it: {_reason(log)}")
        return BuiltPlan(bytes(plan), tensors)


def check_model(model: bytes, *, name: str = "model", trt: Any = None) -> None:
    """Parses an ONNX model and forgets it: before calibration, which takes minutes.

    Raises:
        EngineError: an operator that TensorRT lacks, or wrong inputs or outputs.
    """
    trt = load() if trt is None else trt
    with _building:
        logger(trt).clear()
        _parse(trt.Builder(logger(trt)), model, name, trt)


def execution_context(engine: Any, trt: Any) -> Any:
    """A context that leaves CUDA graphs to the caller; None if there is no memory for it."""
    if not hasattr(engine, "create_runtime_config"):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    if hasattr(config, "cuda_graph_strategy"):
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
    return engine.create_execution_context(config)


def title(trt: Any) -> str:
    """ "tensorrt-rtx 1.7.1", for messages."""
    return f"{flavour(trt)} {trt.__version__}"


def _parse(builder: Any, model: bytes, name: str, trt: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The network of an ONNX model, the parser that owns its weights, and its tensors."""
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger(trt))
    if not parser.parse(model):
        raise EngineError(f"{name}: {_parser_error(parser, trt)}")
    tensors = _tensors(network)
    wrong = check_tensors(tensors)
    if wrong:
        raise EngineError(f"{name}: {wrong}: export it with `rtseg export`")
    return network, parser, tensors


def _network_flags(trt: Any) -> int:
    flags = 0
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
        if flag is not None:
            flags |= 1 << int(flag)
    return flags


def _parser_error(parser: Any, trt: Any) -> str:
    """One line for the first thing the parser did not like."""
    if not parser.num_errors:
        return f"{title(trt)} cannot parse it: {logger(trt).last()}"
    error = parser.get_error(0)
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    said = " ".join(str(error.desc()).split())
    if not operator:
        return f"{title(trt)} cannot parse it, is it an ONNX model? ({said})"
    node = error.node_name() or f"number {error.node()}"
    why = "" if said in ("", "false") else f" ({said})"
    return (
        f"{title(trt)} cannot take the operator {operator} of the node {node!r}{why}: "
        "change the network so that it exports without it"
    )


def _tensors(network: Any) -> dict[str, dict[str, Any]]:
    inputs = [(network.get_input(i), "input") for i in range(network.num_inputs)]
    outputs = [(network.get_output(i), "output") for i in range(network.num_outputs)]
    return {
        tensor.name: {
            "mode": mode,
            "dtype": _DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()),
            "shape": [int(n) for n in tensor.shape],
        }
        for tensor, mode in inputs + outputs
    }


_DTYPES = {"FLOAT": "float32", "HALF": "float16"}


def _set_targets(config: Any, trt: Any, names: Sequence[str], model: str) -> None:
    if not names:
        return
    known, own = known_targets(trt), f"{model}: {title(trt)}"
    if not known or not hasattr(config, "num_compute_capabilities"):
        raise EngineError(
            f"{own} builds only for the GPU it runs on, not for {', '.join(names)}: "
            "build on the device itself, or take the flavour rtx"
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise EngineError(
            f"{own} cannot build for {', '.join(unknown)}: it knows {', '.join(known)}"
        )
    config.num_compute_capabilities = len(names)
    for i, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)


def _monitor(trt: Any, on_progress: OnProgress) -> Any:
    """A progress monitor, through which Ctrl-C ends a build too; None where there is none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            # An exception must not pass through TensorRT: it ends the build when this says False.
            try:
                on_progress(step, self._steps.get(phase), phase)
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

    return Monitor()


def _reason(log: Any) -> str:
    """Why a build failed, with the usual remedy."""
    said: str = log.last()
    if any("out of memory" in line.lower() or "OutOfMemory" in line for line in log.errors):
        return f"{said}: lower workspace_mib in the recipe, or build a smaller size"
    if "SM75" in said:
        return f"{said}: take SM75 out of the targets, or the precision fp16"
    return said


def tensors_of(engine: Any, trt: Any) -> Mapping[str, Mapping[str, Any]]:
    """{name: {"mode", "dtype", "shape"}} of a deserialised plan, as in its manifest."""
    found = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        kind = engine.get_tensor_dtype(name).name
        found[name] = {
            "mode": "input" if is_input else "output",
            "dtype": _DTYPES.get(kind, kind.lower()),
            "shape": [int(n) for n in engine.get_tensor_shape(name)],
        }
    return found
