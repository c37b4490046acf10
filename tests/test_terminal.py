"""What a terminal shows, on a pseudo-terminal; and what must not pass by it."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rtseg import terminal

RTSEG = [sys.executable, "-m", "rtseg.cli"]


def run_on_terminal(command: list[str], stdout: Any = None) -> tuple[int, str]:
    """Exit code, and what came on a terminal: standard error, and output if it has no other."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=stdout or theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(ours)
    return process.wait(timeout=60), shown.decode(errors="replace")


@pytest.mark.slow
def test_lines_for_a_file_reach_it_from_a_terminal(tiny_path: Path, tmp_path: Path) -> None:
    source = ["run", "--source", "synth:size=64x96,frames=12", "--model", str(tiny_path)]
    with (tmp_path / "out.jsonl").open("wb") as out:
        code, shown = run_on_terminal([*RTSEG, *source, "--jsonl", "-"], stdout=out)
    assert code == 0, shown
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(12))
    assert "12 frames" in shown
    assert "index" not in shown


def bench_record() -> dict[str, Any]:
    row = {
        "model": "deeplab-v3plus-mobilenetv2", "engine": "onnxruntime", "precision": "bf16",
        "size": [1024, 2048], "fps": 29.31, "engine_fps": 31.27, "bound_fps": 30.0, "miou": 0.451,
        "pixel_agreement": 0.99847, "mask_age_ms": {"p50": 134.6}, "peak_rss_mib": 394.2,
        "error": None,
    }  # fmt: skip
    return {"rows": [row], "data": "synth val (synthetic)", "machine": {"cores": 2}}


@pytest.mark.parametrize("width", [80, 120])
def test_names_are_never_cut_off(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "_console", lambda: console)
    terminal.bench_table(bench_record())
    assert "deeplab-v3plus-mobilenetv2" in out.getvalue()
    assert "1024x2048" in out.getvalue()
    network = {
        "name": "lraspp-mobilenetv3-large", "params": 3.22e6, "gmacs": 15.8, "output_stride": 8,
        "gmacs_size": [1024, 2048], "year": 2019, "shipped": None,
        "reported": [{"miou": 0.697, "data": "cityscapes", "split": "val"}],
    }  # fmt: skip
    terminal.models_table([network])
    assert "lraspp-mobilenetv3-large" in out.getvalue()
    assert "1 network;" in out.getvalue()


def test_tables_in_a_pipe_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    terminal.bench_table(bench_record())
    assert "…" not in out.getvalue()
    (line,) = [x for x in out.getvalue().splitlines() if x.startswith("deeplab")]
    for word in ("onnxruntime", "bf16", "1024x2048", "29.3", "45.1 %", "99.85 %", "135 ms"):
        assert word in line


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["--help", "models", "models --json -", "run --source synth:size=64x96 --report -"]
)
def test_a_reader_that_goes_away_is_no_error(tiny_path: Path, command: str) -> None:
    words = command.split()
    if words[0] == "run":
        words += ["--model", str(tiny_path), "--max-frames", "3"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*RTSEG, *words], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_outputs_that_are_full_or_closed(tiny_path: Path, tmp_path: Path) -> None:
    run = ["run", "--source", "synth:size=64x96", "--model", str(tiny_path), "--max-frames", "3"]
    lines = tmp_path / "out.jsonl"
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([*RTSEG, *run, "--jsonl", str(lines)], stderr=full).returncode == 0
        assert len(lines.read_text().splitlines()) == 3
        wrong = subprocess.run([*RTSEG, "run", "--source", "none.mp4"], stderr=full)
        assert wrong.returncode == 2
        done = subprocess.run(
            [*RTSEG, *run, "--report", "-"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert "rtseg: standard output: cannot write it: No space left on device" in done.stderr
    shell = f"{sys.executable} -m rtseg.cli {' '.join(run)} --jsonl - >&-"
    done = subprocess.run(shell, shell=True, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "rtseg: standard output is closed: give --jsonl a file\n",
    )
