"""What the end-to-end benchmarks share: a clip to run on, and one run of the pipeline over it."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rtseg import plugins
from rtseg.artifact import load_model
from rtseg.config import parse_size
from rtseg.engine import open_engine
from rtseg.frame import LabelMap
from rtseg.overlay import Renderer
from rtseg.pipeline import REQUESTS, Pipeline
from rtseg.segmenter import STAGES, Segmenter
from rtseg.sink import Sink
from rtseg.source import open_source
from rtseg.timing import StageClock


def add_arguments(parser: argparse.ArgumentParser, *, frames: int) -> None:
    """The options that the end-to-end benchmarks have in common."""
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument("--video", metavar="FILE", help="a video; else one is made from synth:")
    parser.add_argument("--clip", default="540x960", metavar="HxW", help="size of a made video")
    parser.add_argument("--model", default="street-m", help="shipped name or .onnx file")
    parser.add_argument("--frames", type=int, default=frames, help=f"per run (default: {frames})")


@contextlib.contextmanager
def open_clip(video: str | None, size: str, frames: int) -> Iterator[tuple[Path, str]]:
    """A video file to read, and its name for the record.

    Args:
        video: the user's own; None to make one from the procedural drive, deleted afterwards.
        size: HxW of a made one, pixels.
        frames: length of a made one.
    """
    if video is not None:
        yield Path(video), Path(video).name
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "synth.mp4"
        _encode(f"synth:seed=1,size={size},frames={frames}", path)
        yield path, f"synth {size}"


def _encode(uri: str, path: Path) -> None:
    source = open_source(uri)
    assert source.info.classes is not None
    sink: Sink = plugins.load("rtseg.sink", "video").open(str(path), fps=source.info.fps)
    with contextlib.closing(source), contextlib.closing(sink):
        for frame in source:
            assert frame.labels is not None
            sink.write(frame, LabelMap(frame.labels, source.info.classes), frame.image)


def open_segmenter(
    model: str,
    engine: str = "auto",
    precision: str = "auto",
    size: str = "auto",
    *,
    policy: str = "every",
) -> Segmenter:
    """A model on an engine, made for a policy; the caller closes it."""
    file = load_model(model)
    opened = open_engine(file, engine, precision, requests=REQUESTS[policy])
    return Segmenter(file, opened, size=parse_size(size))


def run_clip(
    video: Path, segmenter: Segmenter, sinks: Sequence[Sink], frames: int | None
) -> Pipeline:
    """Runs the whole pipeline over a file, every frame, and gives it back for its report.

    The stages are counted anew; the segmenter stays open, warm for the next run.
    """
    segmenter.clock = StageClock(STAGES)
    renderer = Renderer(segmenter.model.contract.classes)
    with contextlib.closing(open_source(str(video))) as source:
        pipeline = Pipeline(source, segmenter, renderer, sinks, policy="every", max_frames=frames)
        pipeline.run()
    return pipeline


def open_sink(kind: str, target: str | Path = "", fps: float | None = None) -> Sink:
    """A sink by the name of its file in rtseg.sink."""
    sink: Sink = plugins.load("rtseg.sink", kind).open(str(target), fps=fps)
    return sink
