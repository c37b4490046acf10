"""The commands around networks and their weights: `rtseg models`, `import` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtseg.errors import ConfigError, MissingDependencyError
from rtseg.json_output import Json, check_json, write_json

Weights = Annotated[
    Path | None,
    typer.Option(help="Weights of a network of `rtseg models`, .safetensors; --model names it."),
]
_PRECISIONS = {"fp32": False, "fp16": True}


def models(
    wanted: Annotated[
        str, typer.Argument(metavar="[FILTER]", help="Part of a name, a family or a title.")
    ] = "",
    json_path: Json = None,
) -> None:
    """List the shipped models and the networks that can be trained or imported."""
    check_json(json_path)
    from rtseg.terminal import models_table
    from rtseg.zoo import model_rows

    rows = model_rows(wanted)
    if not rows:
        raise ConfigError(f"no model or network has {wanted!r} in its name: rtseg models lists all")
    if json_path is not None:
        write_json(rows, json_path)
    if json_path != "-":
        models_table(rows)


def import_(
    checkpoint: Annotated[
        Path, typer.Argument(help="A published state dict, .pth or .safetensors.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Weights (.safetensors) or model file (.onnx).")
    ],
    name: Annotated[
        str, typer.Option("--as", help="The network it is of; recognised by its keys if not given.")
    ] = "",
    classes: Annotated[
        Path | None, typer.Option(help="Class table; 19 classes are Cityscapes', 11 CamVid's.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of a model file's weights: fp16 or fp32.")
    ] = "fp16",
) -> None:
    """Make an author's published checkpoint weights of ours, or a model file at once."""
    half = _half(precision)
    if out.suffix not in (".safetensors", ".onnx"):
        raise ConfigError(f"{out}: give a name that ends in .safetensors or .onnx")
    need_torch("importing weights")
    from rtseg.importing import import_checkpoint, save_imported
    from rtseg.weights_export import export_imported

    imported = import_checkpoint(checkpoint, name)
    print(imported)
    if imported.dropped:
        count = len(imported.dropped)
        print(f"left out: {', '.join(imported.heads)} ({count} tensors): not in the output")
    if out.suffix == ".safetensors":
        save_imported(imported, out)
        print(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB")
    else:
        error = export_imported(imported, out, half=half, classes_file=classes, on_notice=print)
        _wrote(out, error)


def export(
    network: Annotated[
        str,
        typer.Argument(help="A network of `rtseg models`, or best.safetensors of a training run."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.")],
    weights: Annotated[
        Path | None, typer.Option(help="The network's weights, .safetensors.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe that the run was trained by.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class table; 19 classes are Cityscapes', 11 CamVid's.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of the stored weights: fp16 or fp32.")] = "fp16",
) -> None:
    """Export a network to ONNX with the preprocess contract."""
    half = _half(precision)
    if (weights is None) == (recipe is None):
        raise ConfigError("give --weights FILE with a network's name, or --recipe with a run's")
    need_torch("export")
    from rtseg.export import export_checkpoint
    from rtseg.weights_export import export_weights

    if recipe is not None:
        from rtseg.recipe import read_recipe

        error = export_checkpoint(
            read_recipe(recipe), Path(network), out, half=half, on_notice=print
        )
    else:
        assert weights is not None
        error = export_weights(
            network, weights, out, half=half, classes_file=classes, on_notice=print
        )
    _wrote(out, error)


def with_weights(model: str, weights: Path | None, classes: Path | None = None) -> str:
    """What `--model` and `--weights` name together: a model file, exported on its first use."""
    if weights is None:
        return model
    need_torch("a network with --weights")
    from rtseg.weights_export import cached_model

    return str(cached_model(model, weights, classes_file=classes))


def need_torch(purpose: str) -> None:
    """MissingDependencyError, with the extra to install, where PyTorch or ONNX is not there."""
    try:
        import lightning.fabric  # noqa: F401
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError.for_extra(str(error.name), "torch", purpose) from error


def _half(precision: str) -> bool:
    if precision not in _PRECISIONS:
        raise ConfigError(f"--precision {precision}: a model file stores fp16 or fp32 weights")
    return _PRECISIONS[precision]


def _wrote(path: Path, error: float) -> None:
    print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB, relative error {error:.1e}")
