"""Where the result of a command goes: `--json PATH`, with `-` for stdout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from rtseg.errors import ConfigError
from rtseg.messages import forget_stdout

Json = Annotated[str | None, typer.Option("--json", help="Write the result there; - for stdout.")]


def check_json(path: str | None) -> None:
    """Before a long measurement: that its result will have a place; ConfigError if not."""
    if path is None or path == "-":
        return
    parent = Path(path).parent
    if not os.path.isdir(parent):
        raise ConfigError(f"{path}: directory {parent} does not exist: create it first")
    try:
        Path(path).stat()
        target = Path(path)
    except FileNotFoundError:
        target = parent
    except OSError as error:
        raise ConfigError(f"{path}: cannot write it: {error.strerror}") from error
    if os.path.isdir(path) or not os.access(target, os.W_OK):
        raise ConfigError(f"{path}: cannot write it: choose another place")


def write_json(value: Any, path: str) -> None:
    """Writes a result; ConfigError if it cannot be written."""
    text = json.dumps(value, indent=2)
    try:
        if path == "-":
            print(text, flush=True)
        else:
            Path(path).write_text(text + "\n")
    except BrokenPipeError:
        forget_stdout()  # who read it has seen enough
    except OSError as error:
        where = "standard output" if path == "-" else path
        raise ConfigError(f"{where}: cannot write it: {error.strerror}") from error
