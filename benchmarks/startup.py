"""How long a user waits: for `rtseg --help`, and for the first overlay of `rtseg run`.

    python benchmarks/startup.py --video drive.mp4 --json benchmarks/results/startup.json

Whole processes are timed, in turns, with a warm disk. The first overlay is a run of one frame: it
ends when the finished video is on the disk and the process is gone, so the figure is an upper
bound. An empty Python process shows what is not ours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _record import compare, write_record
from _runs import add_arguments, open_clip

_RTSEG = "from rtseg.cli import main; main()"  # what the installed `rtseg` does


def start(*arguments: str) -> None:
    """Runs a Python process to its end; CalledProcessError, with its output, if it fails."""
    try:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        print(error.stdout, error.stderr, file=sys.stderr)
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, frames=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="for all (default: 30)")
    args = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as directory,
        open_clip(args.video, args.clip, max(args.frames, 2)) as (video, name),
    ):
        saved = Path(directory) / "out.mp4"

        def first_overlay() -> None:
            saved.unlink(missing_ok=True)
            start(
                "-c", _RTSEG, "run", "--source", str(video), "--model", args.model,
                "--save", str(saved), "--max-frames", str(args.frames),
            )  # fmt: skip
            if not saved.stat().st_size:
                raise RuntimeError(f"{saved}: nothing was written")

        functions: dict[str, Callable[[], object]] = {
            "python": partial(start, "-c", "pass"),
            "help": partial(start, "-c", _RTSEG, "--help"),
            "first_overlay": first_overlay,
        }
        results = compare(functions, args.seconds)
    for case, row in results.items():
        print(f"{case:14} {row['p50_ms']:8.0f} ms   p99 {row['p99_ms']:8.0f}   of {row['n']}")
    write_record(args.json, "startup", results, model=args.model, video=name)


if __name__ == "__main__":
    main()
