"""Preprocess, engine and argmax on one device: frames in, label maps out, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rtseg import native
from rtseg.artifact import Contract, ModelFile, load_model
from rtseg.config import as_path, as_text, check_size
from rtseg.engine import Engine, FrameEngine, open_engine
from rtseg.errors import EngineError
from rtseg.frame import Frame, GpuFrame, ImageBGR, LabelMap, Labels, check_image
from rtseg.timing import StageClock

if TYPE_CHECKING:
    from typing_extensions import Self

STAGES = ("decode", "preprocess", "infer", "argmax", "render", "encode", "score")
_BURST = 8  # inferences that are queued on a device at a time when it is timed alone


@dataclass(frozen=True, eq=False)
class InFlight:
    """A frame on its way through the engine; `outcome` holds what `Segmenter.collect` makes of."""

    frame: Frame
    outcome: Future[Any]


class Segmenter:
    """One model on one engine.

    `submit` prepares a frame and hands it to the engine's own threads; `collect` waits for its
    logits and takes the argmax. Called in the same order, from one thread or from two, they keep
    the engine busy while the caller works on the frames before and after. An engine that takes
    whole frames does both on its device, and only uint8 crosses over.

    As a context manager it closes itself.

    Args:
        model: the model file.
        engine: what runs it; owned by the segmenter, closed with it.
        size: (H, W) of the network's input, rounded up to the model's multiple; None to choose
            by the frame, see `input_size`.
        clock: where the time of the stages is counted.
    """

    def __init__(
        self,
        model: ModelFile,
        engine: Engine,
        *,
        size: tuple[int, int] | None = None,
        clock: StageClock | None = None,
    ) -> None:
        self.model = model
        self.engine = engine
        self.clock = clock or StageClock(STAGES)
        self._device = cast(FrameEngine, engine) if engine.info.takes_frames else None
        size = check_size(size)
        self._size = None if size is None else round_up(size, model.contract.input_multiple)
        self._closed = False
        self._workers = ThreadPoolExecutor(engine.info.requests, thread_name_prefix="rtseg-engine")
        self.input_hw: tuple[int, int] | None = None
        """(H, W) of the network's last input; None before the first."""
        self._last_images = np.empty((1, 3, 0, 0), np.float32)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, bgr: ImageBGR) -> LabelMap:
        """Segments one image (H, W, 3) uint8 BGR; the labels have its size."""
        now = time.monotonic()
        frame = Frame(np.ascontiguousarray(check_image(bgr)), 0, 0.0, now)
        return self.collect(self.submit(frame))

    def warm_up(self, frame_hw: tuple[int, int]) -> None:
        """Compiles the engine for frames of this size, so that the first one does not wait."""
        size = self._size or input_size(frame_hw, self.model.contract)
        if self._device is None:
            images = np.zeros((1, 3, *size), np.float32)
            self._workers.submit(self.engine.infer, images).result()
            return
        black = np.zeros((*frame_hw, 3), np.uint8)
        for _ in range(2):  # the second time a device records what it does
            places = range(self.engine.info.requests)
            for run in [self._workers.submit(self._device.segment, black, size) for _ in places]:
                run.result()

    def blend_with(self, palette: NDArray[np.uint8], opacity: float) -> None:
        """Lets an engine that takes frames mix the colours in too; see `FrameEngine.blend_with`."""
        if self._device is not None:
            self._device.blend_with(palette, opacity)

    def submit(self, frame: Frame) -> InFlight:
        """Prepares a frame and queues it for the engine; returns at once."""
        self._check_open()
        contract = self.model.contract
        size = self.input_hw = self._size or input_size(frame.size_hw, contract)
        if self._device is not None:
            return InFlight(frame, self._workers.submit(self._segment, frame, size))
        with self.clock.time("preprocess"):
            images = native.preprocess(frame.image, size, contract.mean, contract.std)
        self._last_images = images
        return InFlight(frame, self._workers.submit(self._infer, images))

    def collect(self, in_flight: InFlight) -> LabelMap:
        """Waits for the engine and returns the labels at the frame's own size.

        Raises:
            EngineError: the runtime failed, or its output does not fit the class table.
        """
        frame, outcome = in_flight.frame, in_flight.outcome.result()
        if self._device is not None:
            labels, counts, blended = outcome
        else:
            labels, counts, blended = *self._argmax(outcome, frame.size_hw), None
        return LabelMap(
            labels,
            self.model.contract.classes,
            pts_seconds=frame.pts_seconds,
            captured_at=frame.captured_at,
            counts=counts,
            blended=blended,
        )

    def engine_fps(self, seconds: float = 1.0) -> float | None:
        """Frames per second of the engine alone, on the input it had last; None before the first.

        As many inferences run at once as in the pipeline; of an engine that takes frames it is
        the network on its device, nothing crosses over.

        The engine must be idle. Runs for `seconds`, and for 20 inferences at least.
        """
        self._check_open()
        if self.input_hw is None:
            return None
        once: Callable[[], object]
        if self._device is not None:
            once = partial(self._device.repeat, self.input_hw, _BURST)
        else:
            once = partial(self.engine.infer, self._last_images)
        per_call = 1 if self._device is None else _BURST
        requests = range(self.engine.info.requests)
        runs = [self._workers.submit(_throughput, once, seconds) for _ in requests]
        return per_call * sum(run.result() for run in runs)

    def close(self) -> None:
        """Waits for the engine's current frame, then frees the engine; may be repeated."""
        if self._closed:
            return
        self._closed = True
        self._workers.shutdown(wait=True, cancel_futures=True)
        self.engine.close()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("this segmenter is closed: open another with rtseg.load")

    def _infer(self, images: NDArray[np.float32]) -> NDArray[Any]:
        with self.clock.time("infer"):
            logits = self.engine.infer(images)
        return check_logits(logits, self.model)

    def _segment(self, frame: Frame, size: tuple[int, int]) -> Any:
        assert self._device is not None
        picture = frame.surface if isinstance(frame, GpuFrame) else frame.image
        with self.clock.time("infer"):
            return self._device.segment(picture, size)

    def _argmax(
        self, logits: NDArray[Any], size: tuple[int, int]
    ) -> tuple[Labels, NDArray[np.int64]]:
        contract = self.model.contract
        with self.clock.time("argmax"):
            labels = native.upsample_argmax(
                logits[0],
                size,
                align_corners=contract.align_corners,
                ignore_index=contract.classes.ignore_index,
            )
            return labels, native.count_labels(labels)


def load(
    model: str | Path = "street-m",
    *,
    engine: str = "auto",
    precision: str = "auto",
    size: tuple[int, int] | None = None,
    classes_file: str | Path | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Segmenter:
    """Opens a model for single images: `rtseg.load("street-m")(bgr)` gives a LabelMap.

    Args:
        model: a shipped name or the path of a model file.
        engine, precision: see `rtseg.engine.open_engine`.
        size: (H, W) of the network's input; None to choose by the image.
        classes_file, mean, std: for a file without a contract, see `rtseg.artifact.load_model`.

    Raises:
        ModelError, ConfigError, MissingDependencyError, EngineError.
    """
    check_size(size)
    table = as_path(classes_file, "classes_file")
    file = load_model(as_text(model, "model"), classes_file=table, mean=mean, std=std)
    return Segmenter(file, open_engine(file, engine, precision), size=size)


def check_logits(logits: NDArray[Any], model: ModelFile) -> NDArray[Any]:
    """Returns the logits if they are (N, C, h, w) with the model's C classes.

    Raises:
        EngineError: the class table does not fit the graph.
    """
    channels = len(model.contract.classes)
    if logits.ndim != 4 or logits.shape[1] != channels:
        raise EngineError(
            f"{model.path}: expected logits (1, {channels}, h, w), got {logits.shape}: "
            "the class table does not fit the graph"
        )
    return logits


def input_size(frame_hw: tuple[int, int], contract: Contract) -> tuple[int, int]:
    """(H, W) of the network's input for a frame: its aspect, and about the area of training.

    Larger frames are shrunk to that area, so the cost does not depend on the camera; smaller
    ones are kept and rounded up to the model's input multiple.
    """
    height, width = frame_hw
    area = contract.input_hw[0] * contract.input_hw[1]
    if height * width <= area:
        return round_up(frame_hw, contract.input_multiple)
    scale = (area / (height * width)) ** 0.5
    multiple = contract.input_multiple
    return (
        max(multiple, round(height * scale / multiple) * multiple),
        max(multiple, round(width * scale / multiple) * multiple),
    )


def round_up(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The size with both sides rounded up to the multiple."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def _throughput(once: Callable[[], object], seconds: float) -> float:
    """Calls per second."""
    once()
    began, count = time.perf_counter(), 0
    while count < 20 or time.perf_counter() - began < seconds:
        once()
        count += 1
    return count / (time.perf_counter() - began)
