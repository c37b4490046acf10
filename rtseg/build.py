"""`rtseg build`: an engine recipe becomes a plan and its manifest.

The graph that goes to TensorRT is first compared with the float32 model, both by ONNX Runtime, so
a wrong conversion is found on a machine without a GPU. TensorRT itself is behind `rtseg.engine`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rtseg import engine_recipe
from rtseg.artifact import ModelFile, load_model
from rtseg.calibration import CalibrationFrames, calibration_frames, validation_frames
from rtseg.engine import OnProgress, _tensorrt, available, quiet
from rtseg.engine._plan import QUANTISED, compile_plan, typed_graph
from rtseg.engine_recipe import EngineRecipe, read_engine_recipe
from rtseg.errors import ConfigError, EngineError, MissingDependencyError, RtsegError
from rtseg.files import replacing
from rtseg.frame import ImageBGR
from rtseg.machine import cuda_capability
from rtseg.parity import compare, gate
from rtseg.plans import Manifest, write_plan
from rtseg.recipe import expanded

_PARITY_PIXELS = 16 * 384 * 480
"""As many frames are compared as make up so many pixels of the input, but four at least."""


@dataclass(frozen=True)
class EngineRow:
    """What became of a recipe.

    Attributes:
        name: of the plan.
        recipe: its path.
        plan: path of the plan, or of a CPU's model file; None if it was not built.
        manifest: of the plan; None for a model file.
        seconds: from recipe to plan, with calibration and comparison.
        skipped: why this machine cannot build it; empty if it can.
        error: why it failed; empty if it did not.
        notes: on the way there, such as which layers stayed in high precision.
    """

    name: str
    recipe: Path
    plan: Path | None = None
    manifest: Manifest | None = None
    seconds: float = 0.0
    skipped: str = ""
    error: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "recipe": str(self.recipe),
            "plan": None if self.plan is None else str(self.plan),
            "manifest": None if self.manifest is None else self.manifest.to_dict(),
            "seconds": round(self.seconds, 3),
            "skipped": self.skipped or None,
            "error": self.error or None,
            **self.notes,
        }


def build_engines(
    paths: Sequence[Path],
    out: Path | None = None,
    *,
    allow_mismatch: bool = False,
    on_progress: OnProgress = quiet,
    on_row: Callable[[EngineRow], None] = lambda row: None,
) -> list[EngineRow]:
    """Builds every recipe that this machine can build; all are read before the first is built.

    Args:
        paths: of the recipes.
        out: directory for plans and manifests; None for beside each recipe.
        allow_mismatch: build what misses the parity gate as well.
        on_progress: takes (done, total or None, what is being done).
        on_row: takes each row as it is done.

    Raises:
        ConfigError, ModelError: a recipe that cannot be used.
        RtsegError: what went wrong, if there is one recipe only; of several the row tells it.
    """
    recipes = [read_engine_recipe(path) for path in paths]
    directories = {out or path.parent for path in paths}
    for directory in directories:
        _check_writable(directory)
    if not all(recipe.for_cpu for recipe in recipes):
        _tensorrt.load()
    rows = []
    for path, recipe in zip(paths, recipes, strict=True):
        reason = cannot_build(recipe)
        if reason and len(paths) == 1:
            raise EngineError(f"{recipe.name}: {reason}")
        row = EngineRow(recipe.name, path, skipped=reason)
        if not reason:
            try:
                row = build_engine(
                    recipe,
                    path,
                    out or path.parent,
                    allow_mismatch=allow_mismatch,
                    on_progress=on_progress,
                )
            except RtsegError as error:
                if len(paths) == 1:
                    raise
                row = EngineRow(recipe.name, path, error=str(error))
        rows.append(row)
        on_row(row)
    return rows


def verdict(rows: Sequence[EngineRow]) -> str:
    """Empty if plans were built and no recipe failed, else a line for the user."""
    failed = [row for row in rows if row.error]
    if failed:
        return f"{len(failed)} of {len(rows)} engines were not built: {failed[0].error}"
    if all(row.skipped for row in rows):
        return f"this machine can build none of {len(rows)} recipes: {rows[0].skipped}"
    return ""


def cannot_build(recipe: EngineRecipe, *, trt: Any = None) -> str:
    """Empty if this machine can build a recipe, else a line that says why not.

    Args:
        trt: TensorRT's module; None for the one that the recipe's flavour asks for.
    """
    try:
        for spec in recipe.calibration.data:
            expanded(spec)
    except ConfigError as error:
        return str(error)
    if recipe.for_cpu:
        return available("onnxruntime")
    flavour = engine_recipe.FLAVOURS[recipe.flavour]
    reason = "" if trt is not None else _tensorrt.missing(flavour)
    if not recipe.on_device:
        return reason
    have = cuda_capability()
    wanted = " or ".join(recipe.capabilities) or "any NVIDIA GPU"
    if not have:
        return f"it is built on the device itself ({wanted}), and this machine has no NVIDIA GPU"
    if recipe.capabilities and have not in recipe.capabilities:
        return f"it is built on the device itself ({wanted}), and this machine is {have}"
    return reason


def build_engine(
    recipe: EngineRecipe,
    path: Path,
    directory: Path,
    *,
    allow_mismatch: bool = False,
    on_progress: OnProgress = quiet,
    trt: Any = None,
) -> EngineRow:
    """Builds one recipe into NAME.plan and NAME.json, or, for a CPU, into NAME.onnx.

    Args:
        recipe: see `read_engine_recipe`.
        path: of the recipe, for the row.
        directory: where to write.
        allow_mismatch, on_progress: see `build_engines`.
        trt: TensorRT's module; None for the one that the recipe's flavour asks for.

    Raises:
        EngineError: the parity gate is missed, TensorRT cannot build it, or the directory cannot
            be written.
        ConfigError, DataError, SourceError: there are no frames to calibrate on.
    """
    began = time.perf_counter()
    model = load_model(recipe.model)
    if not recipe.for_cpu:
        trt = _tensorrt.load(engine_recipe.FLAVOURS[recipe.flavour]) if trt is None else trt
        _tensorrt.check_model(model.path.read_bytes(), name=str(model.path), trt=trt)

    def say(what: str) -> Callable[[int, int | None], None]:
        return lambda done, total: on_progress(done, total, f"{recipe.name}: {what}")

    _, _, height, width = recipe.shapes.opt
    frames = validation_frames(
        recipe.calibration, model.contract.classes, max(4, _PARITY_PIXELS // (height * width))
    )
    notes: dict[str, Any] = {}
    if recipe.precision in QUANTISED and not model.contract.precision:
        graph, notes = _quantised(model, recipe, frames, say, allow_mismatch)
    else:
        graph = typed_graph(model, recipe.precision)
    parity = measure_parity(
        model,
        graph,
        recipe.precision,
        frames,
        (height, width),
        allow_mismatch=allow_mismatch,
        on_progress=say("comparing"),
    )
    if recipe.for_cpu:
        target = directory / f"{recipe.name}.onnx"
        write_model(target, graph)
        notes |= {"bytes": len(graph), "parity": parity}
        return EngineRow(recipe.name, path, target, None, time.perf_counter() - began, notes=notes)
    capabilities = recipe.capabilities
    if recipe.on_device:
        capabilities = (cuda_capability(),)
    plan, manifest = compile_plan(
        model,
        graph,
        precision=recipe.precision,
        shapes=recipe.shapes,
        capabilities=capabilities,
        here=recipe.on_device,
        workspace_mib=recipe.workspace_mib,
        optimisation_level=recipe.optimisation_level,
        calibration=notes.get("calibration", ""),
        parity=parity,
        on_progress=lambda done, total, phase: say(phase)(done, total),
        trt=trt,
    )
    target = directory / f"{recipe.name}.plan"
    with _locked(directory):
        write_plan(target, plan, manifest)
    return EngineRow(recipe.name, path, target, manifest, time.perf_counter() - began, notes=notes)


def measure_parity(
    model: ModelFile,
    graph: bytes,
    precision: str,
    frames: CalibrationFrames,
    size: tuple[int, int],
    *,
    allow_mismatch: bool = False,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> dict[str, Any] | None:
    """Compares a graph with the float32 model on real frames, both by ONNX Runtime.

    Args:
        model: the reference.
        graph: an ONNX file's bytes.
        precision: whose thresholds hold.
        frames: to compare on.
        size: (H, W) of the network's input.
        allow_mismatch: let pass what misses the gate.
        on_progress: takes (done, total).

    Returns:
        {reference, data, pixel_agreement, miou_difference, frames}; None without ONNX Runtime,
        which only `allow_mismatch` lets pass.

    Raises:
        EngineError: the graph misses the gate of its precision.
        MissingDependencyError: ONNX Runtime is not installed.
    """

    def counted() -> Iterator[ImageBGR]:
        for i, image in enumerate(frames.images):
            on_progress(i, len(frames))
            yield image

    reason = available("onnxruntime")
    if reason:
        if allow_mismatch:
            return None
        raise MissingDependencyError(f"the comparison with float32 cannot be made: {reason}")
    onnx, quantise = _quantiser()
    reference = quantise.predictor(onnx.load(str(model.path)), size_hw=size)
    candidate = quantise.predictor(onnx.load_model_from_string(graph), size_hw=size)
    parity = compare(reference, candidate, counted(), frames.labels)
    if not allow_mismatch:
        try:
            gate(precision, parity)
        except EngineError as error:
            raise EngineError(f"{model.contract.name}: {error}") from error
    own = model.contract.precision or "fp32"
    return {"reference": f"onnxruntime {own}", "data": frames.name, **parity.to_dict()}


def _quantised(
    model: ModelFile,
    recipe: EngineRecipe,
    validation: CalibrationFrames,
    say: Callable[[str], Callable[[int, int | None], None]],
    allow_mismatch: bool,
) -> tuple[bytes, dict[str, Any]]:
    """The graph with Q/DQ nodes and what calibration found out; for a GPU the rest is float16."""
    onnx, quantise = _quantiser()
    from rtseg.precision import to_fp16

    _, _, height, width = recipe.shapes.opt
    quantised, report = quantise.quantise(
        onnx.load(str(model.path)),
        calibration_frames(recipe.calibration, model.contract.classes),
        validation=validation,
        precision=recipe.precision,
        method=recipe.calibration.method,
        size_hw=(height, width),
        for_cpu=recipe.for_cpu,
        allow_mismatch=allow_mismatch,
        on_progress=lambda line: say(line)(0, None),
    )
    notes = {
        "calibration": report.calibration,
        "layers": report.layers,
        "kept": list(report.kept),
    }
    if not recipe.for_cpu:
        quantised = to_fp16(quantised)
    return bytes(quantised.SerializeToString()), notes


def write_model(path: Path, graph: bytes) -> None:
    """Writes a model file whole or not at all; EngineError if it cannot be written."""
    try:
        with replacing(path) as partial:
            partial.write_bytes(graph)
    except OSError as error:
        raise EngineError(f"{path}: cannot write the model file: {error.strerror}") from error


def _quantiser() -> tuple[Any, Any]:
    """The packages onnx and `rtseg.quantise`, which needs it."""
    try:
        import onnx

        from rtseg import quantise
    except ImportError as error:
        raise MissingDependencyError.for_extra(
            str(error.name), "torch", "building plans"
        ) from error
    return onnx, quantise


def _check_writable(directory: Path) -> None:
    """Before anything is computed: that plans will have a place."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise EngineError(
            f"{directory}: cannot write plans there ({error.strerror}): give --out DIR"
        ) from error


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time writes into a directory; nothing is left behind."""
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
