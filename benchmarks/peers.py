"""rtseg end to end against what a user would pick instead: same network, video and result.

    python benchmarks/peers.py --video drive.mp4 --json benchmarks/results/peers.json

From opening the file to the labels of the last frame, at the frames' own size; models are loaded
and warm before. All run in turns, clip by clip. With `--save` all of them also draw the overlay and
encode it: the peers with OpenCV's VideoWriter, rtseg with its own sink. A peer whose package is not
installed is left out and named. Model API: pip install openvino-model-api.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import _peers
import cv2
import numpy as np
from _peers import Labels, Peer
from _record import compare, write_record
from _runs import add_arguments, open_clip, open_segmenter, open_sink, run_clip

from rtseg.frame import Frame, ImageBGR, LabelMap
from rtseg.segmenter import Segmenter, input_size
from rtseg.timing import versions

PEERS: dict[str, Callable[..., Peer]] = {
    "torch": _peers.torch_loop,
    "onnxruntime": _peers.onnxruntime_loop,
    "model api": _peers.model_api,
    "model api, argmax in graph": _peers.model_api_argmax,
    "model api, opencv tail": _peers.model_api_opencv,
    "model api, coarse": _peers.model_api_coarse,
}
OPACITY = 0.5
CHECKED_FRAMES = 16


class KeepSink:
    """Keeps the labels of a run; see `rtseg.sink.Sink`."""

    wants_picture = False

    def __init__(self) -> None:
        self.labels: list[Labels] = []

    def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        self.labels.append(result.labels)

    def close(self) -> None:
        pass


def open_peers(
    names: list[str], segmenter: Segmenter, input_hw: tuple[int, int], frame_hw: tuple[int, int]
) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can run here, and why the others cannot."""
    peers: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name in names:
        with noting(missing, name):
            peers[name] = PEERS[name](segmenter.model, input_hw, frame_hw)
    return peers, missing


@contextlib.contextmanager
def noting(missing: dict[str, str], name: str) -> Iterator[None]:
    """Notes a package that is not installed, in place of raising."""
    try:
        yield
    except ImportError as error:
        missing[name] = str(error)


def drain(peer: Peer, video: Path, frames: int) -> None:
    """The peer's null sink."""
    for _ in peer(video, frames):
        pass


def draw(peer: Peer, video: Path, frames: int, palette: Labels, target: Path) -> None:
    """The peer's overlay: colours by indexing, `addWeighted`, `VideoWriter`."""
    writer = None
    for bgr, labels in peer(video, frames):
        picture = cv2.addWeighted(bgr, 1 - OPACITY, palette[labels], OPACITY, 0)
        if writer is None:
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(target), codec, 25.0, labels.shape[::-1])
            if not writer.isOpened():
                raise RuntimeError("OpenCV here cannot write MPEG-4: run without --save")
        writer.write(picture)
    if writer is not None:
        writer.release()


def agreement(peer: Peer, video: Path, expected: list[Labels]) -> float:
    """Share of the pixels that the peer labels as rtseg does."""
    pairs = zip(peer(video, len(expected)), expected, strict=True)
    return float(np.mean([np.mean(labels == ours) for (_, labels), ours in pairs]))


def measure(functions: dict[str, Callable[[], object]], frames: int, seconds: float) -> Any:
    """Frames per second of each by the median of its rounds, and how many times faster ours is."""
    rows = compare(functions, seconds)
    ours = rows["rtseg"]["p50_ms"]
    return {
        name: {
            "fps": round(1e3 * frames / row["p50_ms"], 2),
            "ratio": round(row["p50_ms"] / ours, 3),
            "clip_p50_ms": row["p50_ms"],
            "clip_p99_ms": row["p99_ms"],
            "rounds": row["n"],
        }
        for name, row in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, frames=60)
    parser.add_argument("--seconds", type=float, default=60.0, help="per case (default: 60)")
    parser.add_argument("--save", action="store_true", help="also with overlay and encoding")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    args = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as directory,
        open_clip(args.video, args.clip, args.frames) as (video, name),
    ):
        frame_hw = next(iter(_peers.read(video))).shape[:2]
        segmenter = open_segmenter(args.model, "openvino")
        contract = segmenter.model.contract
        input_hw = input_size(frame_hw, contract)
        peers, missing = open_peers(args.peers, segmenter, input_hw, frame_hw)

        keep = KeepSink()
        run_clip(video, segmenter, [keep], min(args.frames, CHECKED_FRAMES))
        agreements = {p: round(agreement(run, video, keep.labels), 5) for p, run in peers.items()}
        frames = min(args.frames, sum(1 for _ in _peers.read(video)))

        cases: dict[str, dict[str, Callable[[], object]]] = {
            "labels": {
                "rtseg": lambda: run_clip(video, segmenter, [open_sink("null")], frames),
                **{p: partial(drain, run, video, frames) for p, run in peers.items()},
            }
        }
        if args.save:
            saved = Path(directory) / "ours.mp4"
            palette, target = contract.classes.lut_bgr(), Path(directory) / "peer.mp4"
            cases["saved overlay"] = {
                "rtseg": lambda: run_clip(
                    video, segmenter, [open_sink("video", saved, 25.0)], frames
                ),
                **{
                    p: partial(draw, run, video, frames, palette, target)
                    for p, run in peers.items()
                },
            }
        results = {case: measure(runs, frames, args.seconds) for case, runs in cases.items()}
        segmenter.close()

    for case, rows in results.items():
        print(f"\n{args.model}, {name}, {case}: {frames} frames per run")
        print(f"{'':27} {'fps':>8} {'rtseg is':>10} {'same pixels':>13}")
        for peer, row in rows.items():
            same = "" if peer == "rtseg" else f"{100 * agreements[peer]:11.2f} %"
            print(f"{peer:27} {row['fps']:8.1f} {row['ratio']:9.2f}x {same}")
    for peer, reason in missing.items():
        print(f"{peer}: left out: {reason}")
    write_record(
        args.json,
        "peers",
        results,
        model=args.model,
        video=name,
        frames=frames,
        frame_size=frame_hw,
        input_size=input_hw,
        precision=segmenter.engine.info.precision,
        agreement=agreements,
        missing=missing,
        more_versions=versions("openvino-model-api", "av"),
    )


if __name__ == "__main__":
    main()
