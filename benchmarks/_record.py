"""What every benchmark script shares: a fair comparison, and the record of it."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rtseg import timing

_PACKAGES = ("numpy", "opencv-python", "opencv-python-headless", "openvino", "onnxruntime", "torch")
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd")
Row = dict[str, float]


def compare(functions: Mapping[str, Callable[[], object]], seconds: float = 2.0) -> dict[str, Row]:
    """Times functions in turns, so that all of them meet the same machine.

    Args:
        functions: name to a function without arguments; synchronises itself if it must.
        seconds: for all functions together, warm-up (two rounds) not counted; at least 5 rounds.

    Returns:
        {name: {p50_ms, p99_ms, n}}.
    """
    for _ in range(2):
        for function in functions.values():
            function()
    durations: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            durations[name].append(time.perf_counter() - start)
        rounds += 1
    rows = {}
    for name, measured in durations.items():
        p50, p99 = np.percentile(measured, (50, 99)) * 1e3
        rows[name] = {"p50_ms": round(float(p50), 4), "p99_ms": round(float(p99), 4), "n": rounds}
    return rows


def device() -> dict[str, Any]:
    """The processor: its name, its cores, and those vector extensions that decide speed."""
    name, flags = platform.processor() or platform.machine(), ""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = value
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "flags": [flag for flag in _CPU_FLAGS if flag in flags.split()],
        "system": platform.platform(),
    }


def commit() -> str | None:
    """The commit of this checkout, with "+" after it if tracked files differ; None without git."""
    here = Path(__file__).parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()


def write_record(path: str | Path | None, name: str, results: object, **facts: object) -> None:
    """Prints the record of a benchmark as the last line, and writes it where `--json` says.

    Args:
        path: a file, or None or "-" for standard output alone.
        name: of the benchmark.
        results: anything JSON can hold.
        facts: further keys, such as a data set or a seed.
    """
    record = {
        "name": name,
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "device": device(),
        "versions": timing.versions(*_PACKAGES),
        "commit": commit(),
        # The script's name, not its path: that would tell where this machine keeps its files.
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **facts,
        "results": results,
    }
    if path is not None and str(path) != "-":
        Path(path).write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))
