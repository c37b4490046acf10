"""The whole pipeline against its engine alone, and against the bound of a pipeline without waste.

    python benchmarks/pipeline.py --video drive.mp4 --json benchmarks/results/pipeline.json

Runs and measurements of the idle engine alternate; each run is compared with the engine before
and after it. The bound is 1 / (engine seconds + CPU seconds of the other stages / cores).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _record import write_record
from _runs import add_arguments, open_clip, open_segmenter, open_sink, run_clip

from rtseg.machine import cpu_count
from rtseg.segmenter import Segmenter
from rtseg.sink import Sink
from rtseg.timing import bound_fps

Row = dict[str, Any]


def measure(
    video: Path,
    segmenter: Segmenter,
    open_sinks: Callable[[], list[Sink]],
    *,
    frames: int,
    rounds: int,
    engine_seconds: float,
) -> Row:
    """Alternates runs and the engine alone; medians over the rounds, and every round."""
    run_clip(video, segmenter, open_sinks(), frames)  # warm-up, and the engine's input
    before = segmenter.engine_fps(engine_seconds) or 0.0
    rows: list[Row] = []
    for _ in range(rounds):
        pipeline = run_clip(video, segmenter, open_sinks(), frames)
        report = pipeline.report(measure_engine=False)
        after = segmenter.engine_fps(engine_seconds) or 0.0
        engine = 2 / (1 / before + 1 / after)
        before = after
        fps = report.fps or 0.0
        other = sum(row["cpu_ms"] for stage, row in report.stages.items() if stage != "infer")
        bound = bound_fps(engine, other / 1e3, cpu_count())
        rows.append(
            {
                "fps": fps,
                "engine_fps": engine,
                "bound_fps": bound,
                "of_engine": fps / engine,
                "of_bound": fps / bound,
                "other_cpu_ms": other,
            }
        )
    return {
        **{key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0]},
        "p1_of_bound": round(float(np.percentile([row["of_bound"] for row in rows], 1)), 4),
        "frames": report.frames_out,
        "input_size": report.input_size,
        "source_size": report.source_size,
        "engine": f"{report.engine} {report.precision}",
        "mask_age_ms": report.mask_age_ms,
        "stages": report.stages,
        "rounds": [{key: round(value, 4) for key, value in row.items()} for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, frames=200)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--size", default="auto", help="input of the network, HxW")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--engine-seconds", type=float, default=1.5, help="alone, per round")
    args = parser.parse_args()

    results: dict[str, Row] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        open_clip(args.video, args.clip, args.frames) as (video, name),
    ):
        saved = Path(directory) / "out.mp4"
        cases: dict[str, Callable[[], list[Sink]]] = {
            "null": lambda: [open_sink("null")],
            "save": lambda: [open_sink("video", saved, 25.0)],
        }
        segmenter = open_segmenter(args.model, args.engine, args.precision, args.size)
        try:
            for case, sinks in cases.items():
                results[case] = measure(
                    video,
                    segmenter,
                    sinks,
                    frames=args.frames,
                    rounds=args.rounds,
                    engine_seconds=args.engine_seconds,
                )
        finally:
            segmenter.close()
    print(f"{args.model}, {name}: frames per second, medians of {args.rounds} alternating rounds\n")
    print("sink   pipeline    engine     bound   of engine   of bound")
    for case, row in results.items():
        print(
            f"{case:5} {row['fps']:9.1f} {row['engine_fps']:9.1f} {row['bound_fps']:9.1f} "
            f"{row['of_engine']:11.3f} {row['of_bound']:10.3f}"
        )
    for case, row in results.items():
        costs = ", ".join(f"{stage} {s['cpu_ms']:.2f}" for stage, s in row["stages"].items())
        print(f"\n{case}: CPU ms per frame: {costs}")
    write_record(args.json, "pipeline", results, model=args.model, video=name)


if __name__ == "__main__":
    main()
