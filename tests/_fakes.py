"""A source, an engine and a sink that fit the protocols and nothing else, for pipeline tests."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtseg.artifact import Contract, ModelFile
from rtseg.engine import EngineInfo
from rtseg.frame import ClassTable, Frame, ImageBGR, LabelMap, Labels
from rtseg.overlay import Renderer
from rtseg.pipeline import Pipeline, Progress
from rtseg.segmenter import Segmenter
from rtseg.source import SourceInfo

Limited = Callable[[Callable[[], Any]], Any]

SIZE = (8, 12)
TABLE = ClassTable(("road", "car", "sky"), ((128, 64, 128), (64, 0, 128), (128, 128, 128)))
STEP = 60
"""Class i is painted as grey 60 i, which `PaintEngine` reads back."""


def truth_of(index: int) -> Labels:
    """(H, W) uint8 labels of frame `index`: different in every frame."""
    return np.random.default_rng(index).integers(0, len(TABLE), SIZE, np.uint8)


def frame_of(index: int, labels: Labels | None = None, age: float = 0.0) -> Frame:
    grey = (labels if labels is not None else truth_of(index)) * STEP
    image = np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)
    return Frame(image, index, index / 25.0, time.monotonic() - age, labels)


class ListSource:
    """Gives frames made before; may raise, wait or tell others on its way."""

    def __init__(
        self,
        frames: Sequence[Frame],
        *,
        error: BaseException | None = None,
        classes: ClassTable | None = None,
        before: Callable[[int], object] = lambda number: None,
        live: bool = False,
    ) -> None:
        self.info = SourceInfo("list", live, SIZE, 25.0, len(frames), classes)
        self.warnings = ["a line for the user"]
        self.closed = 0
        self._frames, self._error, self._before = frames, error, before

    def __iter__(self) -> Iterator[Frame]:
        for number, frame in enumerate(self._frames):
            self._before(number)
            yield frame
        self._before(len(self._frames))
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed += 1


class EndlessSource(ListSource):
    """New frames as fast as they are taken, until closed."""

    def __init__(self) -> None:
        super().__init__([])

    def __iter__(self) -> Iterator[Frame]:
        for index in itertools.count():
            if self.closed:
                return
            yield frame_of(index)


class PaintEngine:
    """Logits that say what is painted; may raise or wait at a given call."""

    info = EngineInfo("paint", "test", "fp32", "1.0")

    def __init__(self, before: Callable[[int], object] = lambda call: None) -> None:
        self.calls = 0
        self.closed = 0
        self._before = before

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self._before(self.calls)
        self.calls += 1
        grey = images[:, :1] * 255.0
        classes = STEP * np.arange(len(TABLE), dtype=np.float32)[None, :, None, None]
        logits: NDArray[np.float32] = -np.abs(grey - classes)
        return logits

    def close(self) -> None:
        self.closed += 1


class ListSink:
    """Keeps what it gets; may raise at a given frame, or on closing."""

    def __init__(
        self,
        *,
        wants_picture: bool = False,
        fail_at: int | None = None,
        error: Exception | None = None,
        close_error: Exception | None = None,
    ) -> None:
        self.wants_picture = wants_picture
        self.got: list[int] = []
        self.labels: list[Labels] = []
        self.pictures: list[ImageBGR | None] = []
        self.closed = 0
        self._fail_at, self._error, self._close_error = fail_at, error, close_error

    def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        assert not self.closed
        assert result.pts_seconds == frame.pts_seconds
        assert result.captured_at == frame.captured_at
        if self._error is not None and len(self.got) == self._fail_at:
            raise self._error
        self.got.append(frame.index)
        self.labels.append(result.labels)
        self.pictures.append(picture)

    def close(self) -> None:
        self.closed += 1
        if self._close_error is not None:
            raise self._close_error


def build(
    source: Any,
    *sinks: Any,
    engine: Any = None,
    policy: str = "every",
    renderer: Any = None,
    max_frames: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Pipeline:
    contract = Contract(
        "paint", TABLE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), SIZE, input_multiple=1, output_stride=1
    )
    segmenter = Segmenter(ModelFile(Path("paint.onnx"), contract, 3), engine or PaintEngine())
    return Pipeline(
        source,
        segmenter,
        renderer or Renderer(TABLE, hud=False),
        list(sinks),
        policy=policy,
        max_frames=max_frames,
        on_progress=on_progress,
    )


def frames(count: int) -> list[Frame]:
    return [frame_of(i) for i in range(count)]
