"""The import rule, read from the source: imports point down only, and heavy ones are contained."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rtseg

PACKAGE = Path(rtseg.__file__).parent
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE) != Path("__init__.py"))

# From the bottom. A package stands for all its files; a new module needs a place here.
LAYERS = (
    {"errors", "messages", "signals"},
    {"config", "files", "frame", "machine", "planes", "plugins", "queues", "recipe", "timing"},
    {"native", "_hud", "one_thread", "metrics", "losses", "models", "data"},
    {"artifact", "objective", "plans", "precision"},
    {"batches", "overlay", "engine", "engine_recipe", "parity", "qdq", "sink", "source", "tally"},
    {"calibration", "segmenter", "warm_start"},
    {"crf", "quantise", "tta"},
    {"importing"},
    {"pipeline", "evaluate", "export", "train", "build", "inspection", "zoo"},
    {"bench", "doctor", "runner", "evaluation_report", "model_card", "weights_export"},
    {"json_output", "terminal"},
    {"cli_engines", "cli_models"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Who may import what takes seconds to load or is not always installed. `losses`, `objective`,
# `batches`, `warm_start` and `models/_weights` are part of training.
ALLOWED = {
    "torch": (
        "engine/eager.py",
        "export.py",
        "importing.py",
        "weights_export.py",
        "train.py",
        "batches.py",
        "warm_start.py",
        "losses.py",
        "objective.py",
        "models/",
    ),
    "lightning": ("train.py", "cli_models.py"),
    "tensorrt": ("engine/_tensorrt.py",),
    "tensorrt_rtx": ("engine/_tensorrt.py",),
    "pycuda": ("engine/_cuda.py", "build.py", "native/cuda.py", "source/_nvdec.py"),
    "PyNvVideoCodec": ("source/_nvdec.py",),
    "openvino": ("engine/ov.py",),
    "onnxruntime": ("engine/ort.py", "export.py", "quantise.py", "cli_models.py"),
    "onnx": (
        "engine/eager.py",
        "engine/_plan.py",
        "export.py",
        "build.py",
        "models/_weights.py",
        "precision.py",
        "qdq.py",
        "quantise.py",
        "cli_models.py",
    ),
    "matplotlib": ("evaluation_report.py",),
    "typer": ("cli.py", "cli_engines.py", "cli_models.py", "json_output.py"),
    "rich": ("terminal.py",),
}


def name_of(path: Path) -> str:
    """`source/stream.py` of a file in the package."""
    return path.relative_to(PACKAGE).as_posix()


def layer_of(module: str) -> str:
    """`source` of `rtseg.source.stream`."""
    return module.split(".")[1]


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules a file imports, in functions too, but for those of type checks."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            for alias in node.names:
                inner = PACKAGE.parent / module.replace(".", "/") / alias.name
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield f"{module}.{alias.name}" if is_module else module


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = name_of(path).removesuffix(".py").split("/")[0]
    assert own in LEVEL, f"give {own} a place in LAYERS"
    for imported in imports(path):
        if not imported.startswith("rtseg."):
            continue
        other = layer_of(imported)
        assert other in LEVEL, f"{name_of(path)} imports {imported}: give it a place in LAYERS"
        if other != own:
            assert LEVEL[other] < LEVEL[own], (
                f"{name_of(path)} imports {imported}: that is not below"
            )


@pytest.mark.parametrize("package", ["source", "sink", "engine"])
def test_siblings_do_not_import_each_other(package: str) -> None:
    for path in (PACKAGE / package).glob("*.py"):
        for imported in imports(path):
            if imported.startswith(f"rtseg.{package}."):
                sibling = imported.rpartition(".")[2]
                assert sibling.startswith("_"), f"{name_of(path)} imports its sibling {sibling}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_imports_are_contained(path: Path) -> None:
    for imported in imports(path):
        allowed = ALLOWED.get(imported.partition(".")[0])
        if allowed is not None:
            assert name_of(path).startswith(allowed), f"{name_of(path)} must not import {imported}"


def test_optional_runtimes_are_not_loaded_by_listing_engines() -> None:
    for path in (PACKAGE / "engine").glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name for a in node.names} | {getattr(node, "module", "") or ""}
                heavy = {n for n in names if n.partition(".")[0] in ALLOWED}
                assert not heavy, f"{name_of(path)}: import {heavy} inside a function"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_are_short_and_named_after_something(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "common", "manager", "misc"}
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{name_of(path)} has {lines} lines: split it"


def loaded_by(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter has after a statement."""
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return set(done.stdout.split())


def test_the_command_line_loads_nothing_heavy() -> None:
    loaded = loaded_by("import rtseg.cli")
    heavy = {"torch", "cv2", "numpy", "av", "rich", "openvino", "onnxruntime", "onnx", "lightning"}
    assert not loaded & heavy


def test_the_run_path_loads_no_torch() -> None:
    loaded = loaded_by(
        "import rtseg, rtseg.runner, rtseg.evaluate, rtseg.bench, rtseg.terminal; "
        "from rtseg import plugins; "
        "[plugins.load(p, n) for p in ('rtseg.source', 'rtseg.sink', 'rtseg.engine', 'rtseg.data') "
        "for n in plugins.names(p)]"
    )
    assert not loaded & {"torch", "openvino", "onnxruntime", "onnx", "lightning", "matplotlib"}


def test_public_names_resolve() -> None:
    for name in rtseg.__all__:
        assert getattr(rtseg, name) is not None
    assert callable(rtseg.run)
    assert callable(rtseg.load)
    with pytest.raises(AttributeError, match="nonsense"):
        rtseg.nonsense  # noqa: B018
