"""The commands around TensorRT engines: `rtseg build` and `rtseg inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtseg.errors import EngineError
from rtseg.json_output import Json, check_json, write_json


def build(
    recipes: Annotated[list[Path], typer.Argument(help="Engine recipes, such as engines/*.toml.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory of the plans [beside the recipe].")
    ] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Build what misses the parity gate too.")
    ] = False,
    json_path: Json = None,
) -> None:
    """Build TensorRT engines by their recipes: plans, and manifests beside them."""
    check_json(json_path)
    from rtseg.build import build_engines, verdict
    from rtseg.terminal import Bar, engines_table

    with Bar("build") as bar:
        done = build_engines(recipes, out, allow_mismatch=allow_mismatch, on_progress=bar.update)
    rows = [row.to_dict() for row in done]
    if json_path is not None:
        write_json(rows, json_path)
    if json_path != "-":
        engines_table(rows)
    wrong = verdict(done)
    if wrong:
        raise EngineError(wrong)


def inspect(
    file: Annotated[str, typer.Argument(help="A model file or its name, a plan, or a manifest.")],
    json_path: Json = None,
) -> None:
    """Show the contract of a model file, or contract and manifest of a plan."""
    check_json(json_path)
    from rtseg.inspection import inspect_file
    from rtseg.terminal import inspection_lines

    record = inspect_file(file)
    if json_path is not None:
        write_json(record, json_path)
    if json_path != "-":
        inspection_lines(record)
