"""Where the result of a command goes: `--json PATH`, with `-` for stdout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rtseg.errors import ConfigError

Json = Annotated[str | None, typer.Option("--json", help="Write the result there; - for stdout.")]


def check_json(path: str | None) -> None:
    """Before a long measurement: that its result will have a place; ConfigError if not."""
    if path is None or path == "-":
        return
    parent = Path(path).parent
    if not parent.is_dir():
        raise ConfigError(f"{path}: directory {parent} does not exist: create it first")
    target = Path(path) if Path(path).exists() else parent
    if Path(path).is_dir() or not os.access(target, os.W_OK):
        raise ConfigError(f"{path}: cannot write it: choose another place")


def write_json(value: Any, path: str) -> None:
    """Writes a result; ConfigError if it cannot be written."""
    text = json.dumps(value, indent=2)
    if path == "-":
        print(text)
        return
    try:
        Path(path).write_text(text + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write it: {error.strerror}") from error
