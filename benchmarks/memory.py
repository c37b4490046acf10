"""Memory over a long run: the resident set while a short video is read again and again.

    python benchmarks/memory.py --frames 20000 --json benchmarks/results/memory.json

Every stage takes part: the file is opened and decoded anew on each turn, and with `--sink video`
each mask is drawn and encoded. Growth is counted from the end of the warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _record import write_record
from _runs import open_clip, open_segmenter, open_sink

from rtseg.frame import Frame
from rtseg.overlay import Renderer
from rtseg.pipeline import Pipeline, Progress
from rtseg.segmenter import Segmenter
from rtseg.source import open_source

MIB = 2**20


class LoopedFile:
    """A video file without end: at its end it is opened again; see `rtseg.source.Source`."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        source = open_source(self._path)
        source.close()
        self.info = dataclasses.replace(source.info, frame_count=None)
        self.warnings: list[str] = []
        self._closed = False

    def __iter__(self) -> Iterator[Frame]:
        index, fps = 0, self.info.fps or 25.0
        while not self._closed:
            source = open_source(self._path)
            try:
                for frame in source:
                    yield dataclasses.replace(frame, index=index, pts_seconds=index / fps)
                    index += 1
            finally:
                source.close()

    def close(self) -> None:
        self._closed = True


def resident_mib() -> float:
    """Resident set of this process in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def measure(
    video: Path, segmenter: Segmenter, sink: str, *, frames: int, warm_up: int, every: int
) -> dict[str, Any]:
    """Runs `frames` frames into a sink; samples the resident set every `every` frames."""
    series: list[tuple[int, float]] = []

    def sample(progress: Progress) -> None:
        if progress.frames_out % every == 0:
            series.append((progress.frames_out, round(resident_mib(), 2)))

    with tempfile.TemporaryDirectory() as directory:
        source = LoopedFile(video)
        target = Path(directory) / "out.mp4" if sink == "video" else ""
        pipeline = Pipeline(
            source,
            segmenter,
            Renderer(segmenter.model.contract.classes),
            [open_sink(sink, target, source.info.fps)],
            policy="every",
            max_frames=frames,
            on_progress=sample,
        )
        pipeline.run()
    warm = [mib for frame, mib in series if frame >= warm_up]
    return {
        "sink": sink,
        "frames": frames,
        "warm_up_frames": warm_up,
        "start_mib": warm[0],
        "end_mib": warm[-1],
        "peak_mib": max(warm),
        "growth_mib": round(max(warm) - warm[0], 2),
        "fps": pipeline.report(measure_engine=False).fps,
        "series": series,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument("--video", metavar="FILE", help="a short video; else one is made")
    parser.add_argument("--clip", default="90x120", metavar="HxW", help="size of a made video")
    parser.add_argument("--model", default="street-m", help="shipped name or .onnx file")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--warm-up", type=int, default=2_000, help="frames that do not count")
    parser.add_argument("--every", type=int, default=500, help="frames between two samples")
    parser.add_argument("--sink", choices=("null", "video", "both"), default="both")
    args = parser.parse_args()
    if not args.every <= args.warm_up <= args.frames - args.every:
        parser.error("expected --every <= --warm-up <= --frames - --every")

    results = []
    with open_clip(args.video, args.clip, 100) as (video, name):
        segmenter = open_segmenter(args.model)
        try:
            for sink in ("null", "video") if args.sink == "both" else (args.sink,):
                row = measure(
                    video,
                    segmenter,
                    sink,
                    frames=args.frames,
                    warm_up=args.warm_up,
                    every=args.every,
                )
                results.append(row)
                print(
                    f"{sink:5} {row['frames']} frames at {row['fps']} per second: "
                    f"{row['start_mib']:.1f} MiB after {args.warm_up}, "
                    f"peak {row['peak_mib']:.1f}, growth {row['growth_mib']:.2f} MiB"
                )
        finally:
            segmenter.close()
    write_record(args.json, "memory", results, model=args.model, video=name)


if __name__ == "__main__":
    main()
