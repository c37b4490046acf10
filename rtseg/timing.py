"""Stage clocks, percentiles and the run report. Knows nothing of frames, engines or pipelines."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtseg import __version__

_WINDOW = 4096
"""How many latest durations a percentile is taken over, so that days of running cost nothing."""


class Durations:
    """Running durations of one kind: a count, a sum, and the latest few thousand for percentiles.

    Thread-safe: written by one thread, read by another.
    """

    def __init__(self) -> None:
        self._latest = np.zeros(_WINDOW, np.float64)
        self._lock = threading.Lock()
        self.count = 0
        self.total_seconds = 0.0

    def add(self, seconds: float) -> None:
        with self._lock:
            self._latest[self.count % _WINDOW] = seconds
            self.count += 1
            self.total_seconds += seconds

    def percentiles_ms(self) -> dict[str, float]:
        """{p50, p95, p99} in milliseconds over the latest durations; empty without any."""
        with self._lock:
            latest = self._latest[: min(self.count, _WINDOW)].copy()
        return percentiles_ms(latest)

    def mean_ms(self) -> float:
        """Mean of all durations in milliseconds; 0 without any."""
        return 1e3 * self.total_seconds / self.count if self.count else 0.0


def percentiles_ms(seconds: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """{p50, p95, p99} in milliseconds of durations in seconds; empty for an empty sequence."""
    if len(seconds) == 0:
        return {}
    p50, p95, p99 = np.percentile(np.asarray(seconds, np.float64), (50, 95, 99)) * 1e3
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "p99": round(float(p99), 3)}


class StageClock:
    """Wall time and CPU time of named stages.

    The CPU time is that of the calling thread alone, so a stage must do its work in the thread
    that times it (a decoder with threads of its own would escape).
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self.wall = {stage: Durations() for stage in stages}
        self.cpu = {stage: Durations() for stage in stages}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside to the stage, also when the body raises."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - wall, time.thread_time() - cpu)

    def add(self, stage: str, wall_seconds: float, cpu_seconds: float) -> None:
        """Adds a time that was taken elsewhere."""
        self.cpu[stage].add(cpu_seconds)
        self.wall[stage].add(wall_seconds)

    def report(self) -> dict[str, dict[str, float]]:
        """{stage: {p50_ms, p95_ms, p99_ms, cpu_ms}} of the stages that ran."""
        report = {}
        for stage, durations in self.wall.items():
            if durations.count:
                row = {f"{k}_ms": v for k, v in durations.percentiles_ms().items()}
                row["cpu_ms"] = round(self.cpu[stage].mean_ms(), 3)
                report[stage] = row
        return report


class RateMeter:
    """Frames per second over the last second or so, for a live display."""

    def __init__(self, span_seconds: float = 1.0) -> None:
        self.span_seconds = span_seconds
        self._times: list[float] = []

    def tick(self, now: float) -> float | None:
        """Counts an event at `now` (seconds); the rate, or None before the second event."""
        self._times.append(now)
        while len(self._times) > 2 and now - self._times[0] > self.span_seconds:
            self._times.pop(0)
        elapsed = now - self._times[0]
        return (len(self._times) - 1) / elapsed if elapsed > 0 else None


@dataclass(frozen=True)
class RunReport:
    """What a run did and how fast, as `--report` writes it.

    Attributes:
        frames_in: frames that the source gave.
        frames_out: frames whose mask reached the sinks.
        frames_dropped: frames that the policy "latest" dropped between source and engine.
        fps: frames out per second, from the first mask to the last; None below ten frames.
        engine_fps: the engine alone, same input, same run; None if not measured.
        bound_fps: 1 / (engine seconds + CPU seconds of the other stages / cores): what a
            pipeline can reach that wastes nothing; None if not measured.
        mask_age_ms: {p50, p95, p99} from capture to the moment the last of the sinks got the mask.
            Percentiles are of the latest 4096 frames, here and in `stages`.
        stages: {stage: {p50_ms, p95_ms, p99_ms, cpu_ms}}: how long each took, with the waits in it
            (of a live source's `decode` from the picture's arrival on), and its mean CPU time.
        class_fraction: {class: mean share of pixels}.
        miou: where the source knows the truth, as a fraction.
        input_size: (H, W) of the network's input; source_size: of the last frame.
        warnings: lines that the user was shown.
    """

    frames_in: int
    frames_out: int
    frames_dropped: int
    seconds: float
    fps: float | None
    engine_fps: float | None
    bound_fps: float | None
    mask_age_ms: dict[str, float]
    stages: dict[str, dict[str, float]]
    class_fraction: dict[str, float]
    miou: float | None
    source: str
    source_size: tuple[int, int] | None
    input_size: tuple[int, int] | None
    model: str
    engine: str
    precision: str
    device: str
    cores: int
    policy: str
    versions: dict[str, str]
    command: list[str]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; NaN never occurs, unknown is null."""
        return dataclasses.asdict(self)


def bound_fps(engine_fps: float, other_cpu_seconds: float, cores: int) -> float:
    """Frames per second of a pipeline that shares `cores` cores without waste.

    The engine uses every core while it runs; the other stages' CPU time spreads over them.
    """
    return 1.0 / (1.0 / engine_fps + other_cpu_seconds / cores)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of rtseg, Python and the named distributions; absent ones are left out."""
    found = {"rtseg": __version__, "python": platform.python_version()}
    installed = {d.name: d.version for p in packages for d in _distributions(p)}
    return {**found, **installed}


def _distributions(name: str) -> list[importlib.metadata.Distribution]:
    return list(importlib.metadata.distributions(name=name))
