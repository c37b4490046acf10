"""Pace of the procedural drive on one core: image and labels, several streets in turn.

python benchmarks/drive.py --json benchmarks/results/drive.json
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import cv2
import numpy as np
from _record import write_record

from rtseg.config import parse_size
from rtseg.data.synth import Drive


def measure(seed: int, size: tuple[int, int], frames: int) -> dict[str, Any]:
    """CPU time per frame of one street, OpenCV on one thread, consecutive frames."""
    drive = Drive(seed=seed, size=size)
    drive.frame(0)
    durations = []
    for index in range(1, frames + 1):
        began = time.thread_time()
        drive.frame(index)
        durations.append(time.thread_time() - began)
    p50, p99 = np.percentile(durations, (50, 99)) * 1e3
    return {
        "seed": seed,
        "fps": round(frames / sum(durations), 2),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument("--size", default="360x480", metavar="HxW")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--frames", type=int, default=100, help="of each street")
    args = parser.parse_args()
    size = parse_size(args.size)
    if size is None:
        parser.error("--size: expected HEIGHTxWIDTH")
    cv2.setNumThreads(1)
    streets = [measure(seed, size, args.frames) for seed in range(args.seeds)]
    mean = len(streets) / sum(1 / street["fps"] for street in streets)
    for street in streets:
        print(f"seed {street['seed']}: {street['fps']:6.1f} frames per second")
    print(f"mean: {mean:.1f} at {args.size}, one core")
    write_record(args.json, "drive", {"fps": round(mean, 2), "streets": streets}, size=args.size)


if __name__ == "__main__":
    main()
