"""Preprocess, engine and argmax on one device: frames in, label maps out, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtseg import native
from rtseg.artifact import Contract, ModelFile, load_model
from rtseg.engine import Engine, open_engine
from rtseg.errors import EngineError
from rtseg.frame import Frame, ImageBGR, LabelMap, check_image
from rtseg.timing import StageClock

STAGES = ("decode", "preprocess", "infer", "argmax", "render", "encode", "score")


@dataclass(frozen=True, eq=False)
class InFlight:
    """A frame on its way through the engine."""

    frame: Frame
    logits: Future[NDArray[Any]]


class Segmenter:
    """One model on one engine.

    `submit` prepares a frame and hands it to the engine's own threads; `collect` waits for its
    logits and takes the argmax. Called in the same order, from one thread or from two, they keep
    the engine busy while the caller works on the frames before and after.

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
        self._size = None if size is None else round_up(size, model.contract.input_multiple)
        self._workers = ThreadPoolExecutor(engine.info.requests, thread_name_prefix="rtseg-engine")
        self._last_images: NDArray[np.float32] | None = None

    def __call__(self, bgr: ImageBGR) -> LabelMap:
        """Segments one image (H, W, 3) uint8 BGR; the labels have its size."""
        now = time.monotonic()
        frame = Frame(np.ascontiguousarray(check_image(bgr)), 0, 0.0, now)
        return self.collect(self.submit(frame))

    def warm_up(self, frame_hw: tuple[int, int]) -> None:
        """Compiles the engine for frames of this size, so that the first one does not wait."""
        height, width = self._size or input_size(frame_hw, self.model.contract)
        images = np.zeros((1, 3, height, width), np.float32)
        self._workers.submit(self.engine.infer, images).result()

    def submit(self, frame: Frame) -> InFlight:
        """Prepares a frame and queues it for the engine; returns at once."""
        contract = self.model.contract
        with self.clock.time("preprocess"):
            size = self._size or input_size(frame.size_hw, contract)
            images = native.preprocess(frame.image, size, contract.mean, contract.std)
        self._last_images = images
        return InFlight(frame, self._workers.submit(self._infer, images))

    def collect(self, in_flight: InFlight) -> LabelMap:
        """Waits for the engine and returns the labels at the frame's own size.

        Raises:
            EngineError: the runtime failed, or its output does not fit the class table.
        """
        frame, contract = in_flight.frame, self.model.contract
        logits = in_flight.logits.result()
        with self.clock.time("argmax"):
            labels = native.upsample_argmax(
                logits[0],
                frame.size_hw,
                align_corners=contract.align_corners,
                ignore_index=contract.classes.ignore_index,
            )
            counts = native.count_labels(labels)
        return LabelMap(
            labels,
            contract.classes,
            pts_seconds=frame.pts_seconds,
            captured_at=frame.captured_at,
            counts=counts,
        )

    def engine_fps(self, seconds: float = 1.0) -> float | None:
        """Frames per second of the engine alone, on the input it had last; None before the first.

        As many inferences run at once as in the pipeline.

        The engine must be idle. Runs for `seconds`, and for 20 inferences at least.
        """
        images = self._last_images
        if images is None:
            return None
        infer = self.engine.infer
        runs = [
            self._workers.submit(_throughput, infer, images, seconds)
            for _ in range(self.engine.info.requests)
        ]
        return sum(run.result() for run in runs)

    @property
    def input_hw(self) -> tuple[int, int] | None:
        """(H, W) of the network's last input; None before the first."""
        if self._last_images is None:
            return None
        height, width = self._last_images.shape[-2:]
        return height, width

    def close(self) -> None:
        """Waits for the engine's current frame, then frees the engine."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        self.engine.close()

    def _infer(self, images: NDArray[np.float32]) -> NDArray[Any]:
        with self.clock.time("infer"):
            logits = self.engine.infer(images)
        return check_logits(logits, self.model)


def load(
    model: str = "street-m",
    *,
    engine: str = "auto",
    precision: str = "auto",
    size: tuple[int, int] | None = None,
) -> Segmenter:
    """Opens a model for single images: `rtseg.load("street-m")(bgr)` gives a LabelMap.

    Args:
        model: a shipped name or the path of a model file.
        engine, precision: see `rtseg.engine.open_engine`.
        size: (H, W) of the network's input; None to choose by the image.

    Raises:
        ModelError, ConfigError, MissingDependencyError, EngineError.
    """
    file = load_model(model)
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


def _throughput(
    infer: Callable[[NDArray[np.float32]], object], images: NDArray[np.float32], seconds: float
) -> float:
    infer(images)
    began, count = time.perf_counter(), 0
    while count < 20 or time.perf_counter() - began < seconds:
        infer(images)
        count += 1
    return count / (time.perf_counter() - began)
