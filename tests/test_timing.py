"""Stage clocks, percentiles, the rate meter and the bound."""

from __future__ import annotations

import time

import numpy as np
import pytest

from rtseg.timing import (
    Durations,
    RateMeter,
    StageClock,
    bound_fps,
    percentiles_ms,
    versions,
)


def test_percentiles_of_a_known_sequence() -> None:
    seconds = np.arange(101) / 1000.0  # 0 ms to 100 ms
    assert percentiles_ms(seconds) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def test_percentiles_of_nothing_are_empty() -> None:
    assert percentiles_ms([]) == {}
    assert Durations().percentiles_ms() == {}
    assert Durations().mean_ms() == 0.0


def test_durations_count_all_and_take_percentiles_of_the_latest() -> None:
    durations = Durations()
    for _ in range(5000):
        durations.add(1.0)
    for _ in range(4096):
        durations.add(0.002)
    assert durations.count == 9096
    assert durations.total_seconds == pytest.approx(5000 + 4096 * 0.002)
    assert durations.percentiles_ms() == {"p50": 2.0, "p95": 2.0, "p99": 2.0}


def test_stage_clock_reports_only_what_ran() -> None:
    clock = StageClock(("decode", "infer"))
    with clock.time("decode"):
        pass
    report = clock.report()
    assert list(report) == ["decode"]
    assert set(report["decode"]) == {"p50_ms", "p95_ms", "p99_ms", "cpu_ms"}


def test_stage_clock_counts_a_body_that_raises() -> None:
    clock = StageClock(("decode",))
    with pytest.raises(KeyError), clock.time("decode"):
        raise KeyError
    assert clock.wall["decode"].count == 1


def test_waiting_is_wall_time_and_not_cpu_time() -> None:
    clock = StageClock(("decode",))
    with clock.time("decode"):
        time.sleep(0.05)
    assert clock.wall["decode"].total_seconds >= 0.05
    assert clock.cpu["decode"].total_seconds < clock.wall["decode"].total_seconds


def test_rate_meter() -> None:
    meter = RateMeter(span_seconds=1.0)
    assert meter.tick(10.0) is None
    assert meter.tick(10.0) is None  # no time has passed
    meter = RateMeter(span_seconds=1.0)
    rates = [meter.tick(i * 0.1) for i in range(50)]
    assert rates[1:] == pytest.approx([10.0] * 49)
    slow = [meter.tick(4.9 + i) for i in range(1, 5)]
    assert slow[-1] == pytest.approx(1.0)


def test_bound_is_the_engine_plus_the_rest_over_the_cores() -> None:
    # 10 ms of engine, 20 ms of CPU work on 2 cores: 20 ms a frame.
    assert bound_fps(100.0, 0.020, 2) == pytest.approx(50.0)
    assert bound_fps(100.0, 0.0, 2) == pytest.approx(100.0)


def test_versions_leave_absent_packages_out() -> None:
    found = versions("numpy", "no-such-package")
    assert set(found) == {"rtseg", "python", "numpy"}
    assert found["numpy"] == np.__version__
