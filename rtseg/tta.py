"""Test-time augmentation: one frame seen several times, its logits put together, for `rtseg eval`.

Mirrored, at several scales, or window by window at the image's own scale. It takes several times
the time of one look, so `rtseg run` does without. Knows nothing of labels or scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rtseg import native
from rtseg.artifact import ModelFile
from rtseg.engine import Engine, open_engine
from rtseg.errors import ConfigError
from rtseg.frame import Frame, ImageBGR, LabelMap
from rtseg.native.reference import taps
from rtseg.segmenter import InFlight, Segmenter, check_logits, input_size, round_up

Float32 = NDArray[np.float32]

SCALES = (0.25, 4.0)
"""Smallest and largest scale that makes sense."""


@dataclass(frozen=True)
class Augmentation:
    """How often, and how, a frame is looked at.

    Attributes:
        flip: mirrored left to right as well.
        scales: of the network's input, relative to the usual one; all different.
        window: (H, W) of a window that slides over the image at its own scale, neighbours
            overlapping by a third; None to shrink the whole image to the network's input.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        low, high = SCALES
        if not self.scales or not all(low <= s <= high for s in self.scales):
            raise ConfigError(f"--scales: expected numbers in {low:g}..{high:g}, got {self.scales}")
        if len(set(self.scales)) < len(self.scales):
            raise ConfigError(f"--scales: {self.scales} has one twice: leave it out")

    @classmethod
    def parse(cls, flip: bool, scales: str, window: str | None, size: str) -> Augmentation:
        """Reads the flags: scales "0.75,1.0,1.25", window "HxW"; `size` is that of `--size`.

        Raises:
            ConfigError: anything else, or flags that exclude one another.
        """
        try:
            numbers = tuple(float(s) for s in scales.split(","))
        except ValueError as error:
            raise ConfigError(
                f"--scales {scales!r}: expected numbers such as 0.75,1.0,1.25"
            ) from error
        if window is None:
            return cls(flip, numbers)
        match = re.fullmatch(r"(\d+)x(\d+)", window)
        if not match or not all(1 <= int(v) <= 16384 for v in match.groups()):
            raise ConfigError(f"--window {window!r}: expected HEIGHTxWIDTH such as 384x480")
        if size != "auto":
            raise ConfigError("--window and --size exclude one another: give one of them")
        return cls(flip, numbers, (int(match[1]), int(match[2])))

    @property
    def is_plain(self) -> bool:
        """One look at the whole image, as `rtseg run` does."""
        return self == Augmentation()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"flip": self.flip, "scales": list(self.scales), "window": self.window}


class AugmentedSegmenter:
    """A segmenter that looks several times; takes frames and gives labels as `Segmenter` does.

    The softmax probabilities of all looks are averaged, at the resolution of the largest one's
    logits, and their logarithm takes the place of the logits: of one look, that gives the labels
    of its logits. Logits of windows are averaged where windows overlap.

    Args:
        segmenter: what to look with; owned, closed with this one.
        augmentation: how to look.
        size: (H, W) of the network's input at scale 1; None to choose by the frame. Not used
            with windows.
        open_another: opens the model once more, for each scale but one: engines compile for one
            input size at a time. None to share the segmenter's engine.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        augmentation: Augmentation,
        *,
        size: tuple[int, int] | None = None,
        open_another: Callable[[], Engine] | None = None,
    ) -> None:
        self.model = segmenter.model
        self.engine = segmenter.engine
        self.augmentation = augmentation
        self._segmenter = segmenter
        self._size = size
        # The largest first: its logits set the resolution of the sum.
        self._scales = sorted(augmentation.scales, reverse=True)
        others = [open_another() for _ in self._scales[1:]] if open_another else []
        self._others = others
        self._engines = [self.engine, *(others or [self.engine] * (len(self._scales) - 1))]
        self._workers = ThreadPoolExecutor(
            self.engine.info.requests, thread_name_prefix="rtseg-tta"
        )
        self._input_hw: tuple[int, int] | None = None

    def submit(self, frame: Frame) -> InFlight:
        """Queues a frame; returns at once."""
        if self.augmentation.is_plain:
            return self._segmenter.submit(frame)
        return InFlight(frame, self._workers.submit(self._look, frame.image))

    def collect(self, in_flight: InFlight) -> LabelMap:
        """Waits for the labels, at the frame's own size; see `Segmenter.collect`."""
        return self._segmenter.collect(in_flight)

    @property
    def input_hw(self) -> tuple[int, int] | None:
        """(H, W) of the network's last input at scale 1, or of the window; None before it."""
        return self._input_hw or self._segmenter.input_hw

    def close(self) -> None:
        """Waits for the current frame, then frees all engines."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        for engine in self._others:
            engine.close()
        self._segmenter.close()

    def _look(self, image: ImageBGR) -> Float32:
        """(1, C, h, w): stands in for the logits of one look."""
        contract = self.model.contract
        hw = (image.shape[0], image.shape[1])
        multiple = contract.input_multiple
        if self.augmentation.window is None:
            whole = self._size or input_size(hw, contract)
            self._input_hw = round_up(whole, multiple)
        else:
            window = round_up(self.augmentation.window, multiple)
            self._input_hw = round_up(_smaller(window, hw), multiple)
        mirrorings = (False, True) if self.augmentation.flip else (False,)
        looks = len(self._scales) * len(mirrorings)
        total: Float32 | None = None
        for scale, engine in zip(self._scales, self._engines, strict=True):
            for mirrored in mirrorings:
                if self.augmentation.window is None:
                    size = _scaled(self._input_hw, scale, multiple)
                    logits = self._infer(engine, image, size, mirrored)
                else:
                    logits = self._slide(engine, _resized(image, scale), window, mirrored)
                if looks == 1:
                    return logits[None]
                shares = _softmax(logits)
                if total is None:
                    total = shares
                else:
                    size = (total.shape[1], total.shape[2])
                    total += resize_bilinear(shares, size, contract.align_corners)
        assert total is not None
        smallest = np.finfo(np.float32).tiny
        result: Float32 = np.log(np.maximum(total / np.float32(looks), smallest))
        return result[None]

    def _slide(
        self, engine: Engine, image: ImageBGR, window: tuple[int, int], mirrored: bool
    ) -> Float32:
        """(C, H, W) logits at the image's own size, averaged where windows overlap."""
        contract = self.model.contract
        height, width = image.shape[:2]
        high, wide = _smaller(window, (height, width))
        total = np.zeros((len(contract.classes), height, width), np.float32)
        looks = np.zeros((height, width), np.float32)
        for top in window_starts(height, high):
            for left in window_starts(width, wide):
                rows, columns = slice(top, top + high), slice(left, left + wide)
                # Only an image that is smaller than the window is stretched, to the multiple.
                size = round_up((high, wide), contract.input_multiple)
                logits = self._infer(engine, image[rows, columns], size, mirrored)
                logits = resize_bilinear(logits, (high, wide), contract.align_corners)
                total[:, rows, columns] += logits
                looks[rows, columns] += 1
        total /= looks
        return total

    def _infer(
        self, engine: Engine, image: ImageBGR, size: tuple[int, int], mirrored: bool
    ) -> Float32:
        """(C, h, w) float32 logits of an image, mirrored back if it was mirrored."""
        contract = self.model.contract
        images = native.preprocess(image, size, contract.mean, contract.std)
        if mirrored:
            images = np.ascontiguousarray(images[..., ::-1])
        logits = check_logits(engine.infer(images), self.model)
        return (logits[0, :, :, ::-1] if mirrored else logits[0]).astype(np.float32)


def open_segmenter(
    model: ModelFile,
    engine: str,
    precision: str,
    size: tuple[int, int] | None,
    augmentation: Augmentation,
) -> AugmentedSegmenter:
    """Opens a model with as many engines as the augmentation needs.

    Raises:
        ConfigError, MissingDependencyError, EngineError: see `rtseg.engine.open_engine`.
    """

    def another() -> Engine:
        return open_engine(model, engine, precision)

    segmenter = Segmenter(model, another(), size=size)
    return AugmentedSegmenter(segmenter, augmentation, size=size, open_another=another)


def window_starts(length: int, window: int) -> list[int]:
    """Where windows begin along one axis: evenly, the last at the end, a third shared at least."""
    if length <= window:
        return [0]
    step = max(1, window * 2 // 3)
    count = -(-(length - window) // step) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def resize_bilinear(values: Float32, size: tuple[int, int], align_corners: bool) -> Float32:
    """(C, h, w) to (C, H, W), as `torch.nn.functional.interpolate(mode="bilinear")`."""
    for axis in (1, 2):
        if values.shape[axis] != size[axis - 1]:
            at = taps(values.shape[axis], size[axis - 1], align_corners)
            after = np.minimum(at.index + 1, values.shape[axis] - 1)
            shape = (-1, 1) if axis == 1 else (-1,)
            near, far = np.take(values, at.index, axis), np.take(values, after, axis)
            near *= at.weight0.reshape(shape)
            far *= at.weight1.reshape(shape)
            near += far
            values = near
    return values


def _softmax(logits: Float32) -> Float32:
    """Over the classes of (C, h, w); NaN where a logit is, or is infinite."""
    with np.errstate(invalid="ignore"):
        exps: Float32 = np.exp(logits - logits.max(axis=0))
        exps /= exps.sum(axis=0)
    return exps


def _scaled(size: tuple[int, int], scale: float, multiple: int) -> tuple[int, int]:
    """The size times the scale, both sides rounded to the nearest multiple."""
    height, width = (max(multiple, round(v * scale / multiple) * multiple) for v in size)
    return height, width


def _resized(image: ImageBGR, scale: float) -> ImageBGR:
    if scale == 1:
        return image
    height, width = (max(1, round(v * scale)) for v in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)


def _smaller(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return min(a[0], b[0]), min(a[1], b[1])
