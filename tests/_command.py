"""Running the command line in the test process. The fixtures are registered in conftest.py."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rtseg import cli
from rtseg.recipe import Recipe


class Done(NamedTuple):
    code: int
    out: str
    err: str


Rtseg = Callable[..., Done]


@pytest.fixture
def rtseg_command(capfd: pytest.CaptureFixture[str]) -> Iterator[Rtseg]:
    """Runs the command line in this process: exit code, and all that reached the two outputs."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    os.environ.pop("RTSEG_VERBOSE", None)

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code: object = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return Done(code, *capfd.readouterr())

    yield call
    os.environ.pop("RTSEG_VERBOSE", None)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def short(tiny_path: Path) -> list[object]:
    """A run of five small frames on the tiny model; what comes after it wins."""
    return [
        "run", "--source", "synth:seed=1,size=64x96", "--model", tiny_path, "--max-frames", 5,
    ]  # fmt: skip


def refusal(done: Done) -> str:
    """The message of a command that refused: code 2, one line on stderr, nothing on stdout."""
    assert done.code == 2, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("rtseg: ")
    return lines[0].removeprefix("rtseg: ")


def toml_of(recipe: Recipe) -> str:
    """The tiny recipe as the file that `rtseg train` reads."""
    options = "\n".join(f"{k} = {json.dumps(v)}" for k, v in recipe.model.options.items())
    data, optimiser = recipe.data, recipe.optimiser
    return f"""
name = "{recipe.name}"
[model]
family = "{recipe.model.family}"
[model.options]
{options}
[data]
train = {json.dumps(data.train)}
val = "{data.val}"
input_hw = {json.dumps(data.input_hw)}
crop_hw = {json.dumps(data.crop_hw)}
[optimiser]
steps = {optimiser.steps}
batch = {optimiser.batch}
validate_every = {optimiser.validate_every}
workers = {optimiser.workers}
"""
