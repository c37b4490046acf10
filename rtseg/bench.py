"""`rtseg bench`: frames per second of the whole pipeline against mIoU, for one configuration.

The frames are made before the clock starts and held in memory, so that the pipeline is measured
and not the disk; labels come with them, so speed and accuracy are those of the same frames.
"""

from __future__ import annotations

import itertools
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rtseg import plugins
from rtseg.artifact import ModelFile
from rtseg.data import DataSet
from rtseg.engine import available, open_engine
from rtseg.errors import RtsegError
from rtseg.evaluate import evaluate, number, same_classes
from rtseg.frame import Frame, LabelMap
from rtseg.machine import cpu_count, cpu_name
from rtseg.overlay import Renderer
from rtseg.pipeline import REQUESTS, Pipeline
from rtseg.segmenter import Segmenter
from rtseg.source import SourceInfo
from rtseg.timing import versions


class MemorySource:
    """Frames held in memory, given out in turn until `frames` have been."""

    def __init__(self, data: DataSet, frames: int, keep: int = 64) -> None:
        self._loaded = [
            (np.ascontiguousarray(image), labels)
            for image, labels in (s.load() for s in data.samples[: min(keep, frames)])
        ]
        height, width = self._loaded[0][1].shape
        self._frames = frames
        self.info = SourceInfo(
            f"{data.name} {data.split}", False, (height, width), 30.0, frames, data.classes
        )
        self.warnings: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        pictures = itertools.islice(itertools.cycle(self._loaded), self._frames)
        for index, (image, labels) in enumerate(pictures):
            yield Frame(image, index, index / 30.0, time.monotonic(), labels)

    def close(self) -> None:
        self._loaded = []


def bench_row(
    model: ModelFile,
    data: DataSet,
    *,
    engine: str,
    precision: str,
    size: tuple[int, int] | None,
    frames: int,
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:
    """One row of the results: the pipeline's pace and the model's accuracy, or an `error`.

    Args:
        on_progress: called after each frame and each scored sample, with what is being done.
    """
    row: dict[str, Any] = {
        "model": model.contract.name,
        "engine": engine,
        "precision": precision,
        "size": size,
        "batch": 1,
        "fps": None,
        "engine_fps": None,
        "bound_fps": None,
        "miou": None,
        "pixel_agreement": None,
        "mask_age_ms": None,
        "stages": None,
        "peak_rss_mib": None,
        "error": None,
    }
    try:
        row.update(_measure(model, data, engine, precision, size, frames, on_progress))
    except RtsegError as error:
        row["error"] = str(error)
    row["peak_rss_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    return row


def _measure(
    model: ModelFile,
    data: DataSet,
    engine: str,
    precision: str,
    size: tuple[int, int] | None,
    frames: int,
    on_progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    opened = open_engine(model, engine, precision, requests=REQUESTS["every"])
    segmenter = Segmenter(model, opened, size=size)
    try:
        source = MemorySource(data, frames)
        segmenter.warm_up(source.info.size_hw)
        sink = plugins.load("rtseg.sink", "null").open("", fps=None)
        renderer = Renderer(model.contract.classes)
        pipeline = Pipeline(
            source,
            segmenter,
            renderer,
            [sink],
            policy="every",
            on_progress=lambda moment: on_progress(moment.frames_out, frames, "pace"),
        )
        pipeline.run()
        report = pipeline.report()
        miou = None  # of other classes there is none, but a pace
        if same_classes(data, model.contract.classes):
            scored = evaluate(
                segmenter,
                data,
                on_progress=lambda done, total: on_progress(done, total, "mIoU"),
            )
            miou = number(scored.confusion.mean_iou())
        agreement = _agreement(model, segmenter, data)
    finally:
        segmenter.close()
    return {
        "engine": report.engine,
        "precision": report.precision,
        "device": report.device,
        "size": report.input_size,
        "fps": report.fps,
        "engine_fps": report.engine_fps,
        "bound_fps": report.bound_fps,
        "miou": miou,
        "pixel_agreement": agreement,
        "mask_age_ms": report.mask_age_ms,
        "stages": report.stages,
    }


def _agreement(model: ModelFile, segmenter: Segmenter, data: DataSet, frames: int = 16) -> float:
    """Share of pixels labelled as by a reference in fp32, on the first frames."""
    # ONNX Runtime is the plainest reading of the file; OpenVINO comes with every installation.
    name = next((n for n in ("onnxruntime", "openvino") if not available(n)), "eager")
    reference = Segmenter(model, open_engine(model, name, "fp32"), size=segmenter.input_hw)
    try:
        equal = [
            float(np.mean(_labels(segmenter, image) == _labels(reference, image)))
            for image, _ in (s.load() for s in data.samples[:frames])
        ]
    finally:
        reference.close()
    return round(float(np.mean(equal)), 6)


def _labels(segmenter: Segmenter, image: Any) -> Any:
    result: LabelMap = segmenter(image)
    return result.labels


def results(
    rows: Sequence[dict[str, Any]], data: DataSet, command: Sequence[str]
) -> dict[str, Any]:
    """The JSON record of a benchmark."""
    return {
        "machine": {
            "cpu": cpu_name(),
            "cores": cpu_count(),
            "system": platform.platform(),
        },
        "versions": versions("numpy", "opencv-python", "openvino", "onnxruntime", "torch"),
        "command": list(command),
        "data": f"{data.name} {data.split}" + (" (synthetic)" if data.name == "synth" else ""),
        "frames": len(data.samples),
        "rows": list(rows),
    }
