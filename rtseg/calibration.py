"""Calibration: frames to calibrate on, and how large a network's activations are on them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rtseg import plugins
from rtseg.data import open_data
from rtseg.engine_recipe import CalibrationRecipe
from rtseg.errors import ConfigError, DataError
from rtseg.frame import ClassTable, ImageBGR, Labels
from rtseg.recipe import expanded
from rtseg.source import open_source

METHODS = ("percentile", "entropy")
PERCENTILE = 99.999
"""Of the magnitudes that are not zero, how many per cent lie within the range by default."""

_DRIVE = "synth:seed=11,frames=240"
_BINS = 2048
_LEVELS = 128
"""Magnitudes that a signed byte tells apart."""
_SAMPLES = 1 << 18
"""At most about so many values of one tensor are counted per frame."""


@dataclass(frozen=True, eq=False)
class CalibrationFrames:
    """Pictures held in memory.

    Attributes:
        name: where they come from, as the user wrote it.
        images: (H, W, 3) uint8 BGR each.
        labels: the truth of each in the model's classes, (H, W) uint8, or None.
    """

    name: str
    images: tuple[ImageBGR, ...]
    labels: tuple[Labels | None, ...]

    def __post_init__(self) -> None:
        if not self.images:
            raise ConfigError(
                f"{self.name}: no frames to calibrate on: give a source that has some"
            )
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} label maps")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, count: int) -> CalibrationFrames:
        """At most so many of them, evenly spread."""
        chosen = spread(len(self.images), count)
        return CalibrationFrames(
            self.name,
            tuple(self.images[i] for i in chosen),
            tuple(self.labels[i] for i in chosen),
        )

    def sha256(self) -> str:
        """Hex digest of the pictures."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(repr(image.shape).encode())
            digest.update(image.tobytes())
        return digest.hexdigest()


def read_frames(
    spec: str, classes: ClassTable, *, count: int = 32, split: str = "train"
) -> CalibrationFrames:
    """Reads frames, evenly spread over a data set, or over a source where its length is known.

    Args:
        spec: a data set NAME:ROOT such as "camvid:DIR" or "synth:seed=1", or any `--source` URI.
        classes: of the model; labels are kept if the spec has them for the same class names.
        count: how many at most.
        split: of the data set.

    Raises:
        ConfigError: it has no frames.
        DataError, SourceError: it cannot be read.
    """
    if count < 1:
        raise ConfigError(f"calibration frames: expected at least 1, got {count}")
    if spec.partition(":")[0] in plugins.names("rtseg.data") and ":" in spec:
        data = open_data(spec, split)
        translate = _translation(data.classes, classes)
        pairs = [data.samples[i].load() for i in spread(len(data.samples), count)]
        return CalibrationFrames(
            spec,
            tuple(np.ascontiguousarray(image) for image, _ in pairs),
            tuple(None if translate is None else translate[truth] for _, truth in pairs),
        )
    images: list[ImageBGR] = []
    labels: list[Labels | None] = []
    with contextlib.closing(open_source(spec)) as source:
        info = source.info
        translate = None if info.classes is None else _translation(info.classes, classes)
        step = max(1, (info.frame_count or 0) // count)
        for number, frame in enumerate(source):
            if number % step:
                continue
            images.append(frame.image)
            labelled = translate is not None and frame.labels is not None
            labels.append(translate[frame.labels] if labelled else None)  # type: ignore[index]
            if len(images) == count:
                break
    return CalibrationFrames(spec, tuple(images), tuple(labels))


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices below `total`, evenly spread, ascending."""
    count = min(total, count)
    return [i * total // count for i in range(count)]


def _translation(own: ClassTable, classes: ClassTable) -> Labels | None:
    """The table from a source's labels to the model's; None if the classes are not the same."""
    if {n.lower() for n in own.names} != {n.lower() for n in classes.names}:
        return None
    return own.table_to(classes)


class Magnitudes:
    """A histogram of the magnitudes of one tensor's values, over any number of frames.

    Zeros are not counted, as every scale represents them exactly. The range doubles when a larger
    value comes, by joining neighbouring bins.
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self._range = 0.0
        self._counts: NDArray[np.float64] = np.zeros(_BINS)

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts values of any shape; of a large tensor every k-th one."""
        flat = np.abs(values.ravel())
        largest = float(flat.max(initial=0.0))
        if not np.isfinite(largest):
            raise ConfigError("the network gives NaN or infinite values on the calibration frames")
        if not largest:
            return
        self.largest = max(self.largest, largest)
        self._range = self._range or largest
        while largest > self._range:
            joined = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.concatenate((joined, np.zeros(_BINS // 2)))
            self._range *= 2
        # An odd step does not fall on the same columns of every row.
        flat = flat[:: flat.size // _SAMPLES | 1]
        flat = flat[flat > 0]
        bins = np.minimum((flat * (_BINS / self._range)).astype(np.int64), _BINS - 1)
        self._counts += np.bincount(bins, minlength=_BINS)

    def percentile(self, percent: float) -> float:
        """The magnitude that so many per cent of the values do not exceed."""
        total = np.cumsum(self._counts)
        if not total[-1]:
            return self.largest
        index = int(np.searchsorted(total, total[-1] * percent / 100))
        return min((index + 1) * self._range / _BINS, self.largest)

    def entropy(self) -> float:
        """The range whose 128 levels lose least information.

        Migacz, "8-bit Inference with TensorRT", GTC 2017: the least Kullback-Leibler divergence
        between the values clipped to the range and the same after quantisation.
        """
        best, chosen = np.inf, _BINS
        for stop in range(_LEVELS, _BINS + 1, _LEVELS // 16):
            divergence = _divergence(self._counts, stop)
            if divergence < best:
                best, chosen = divergence, stop
        return min(chosen * self._range / _BINS, self.largest)


def _divergence(counts: NDArray[np.float64], stop: int) -> float:
    """KL(P | Q): P the first bins with what lies beyond added to the last, Q them in 128 steps."""
    inside = counts[:stop]
    clipped = inside.copy()
    clipped[-1] += counts[stop:].sum()
    if not clipped.sum():
        return np.inf
    level = np.arange(stop) * _LEVELS // stop
    filled = clipped > 0
    sums = np.bincount(level, inside, minlength=_LEVELS)
    share = np.bincount(level, filled, minlength=_LEVELS)
    quantised = np.where(filled, (sums / np.maximum(share, 1))[level], 0.0)
    if not quantised.sum():
        return np.inf
    p, q = clipped[filled] / clipped.sum(), quantised[filled] / quantised.sum()
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-12))))


def ranges(
    tensors: Iterable[Sequence[NDArray[np.float32]]],
    names: Sequence[str],
    *,
    method: str = "percentile",
    percentile: float = PERCENTILE,
) -> dict[str, float]:
    """The largest magnitude to represent of each tensor.

    Args:
        tensors: for each frame the values of all named tensors, in that order.
        names: of the tensors.
        method: "percentile" or "entropy".
        percentile: for that method; 100 is the largest value seen.

    Raises:
        ConfigError: unknown method, a percentile out of range, values that are not finite.
    """
    check_method(method, percentile)
    found = [Magnitudes() for _ in names]
    for values in tensors:
        for magnitudes, value in zip(found, values, strict=True):
            magnitudes.add(value)
    return {
        name: m.entropy() if method == "entropy" else m.percentile(percentile)
        for name, m in zip(names, found, strict=True)
    }


def check_method(method: str, percentile: float) -> None:
    """ConfigError if there is no such calibration."""
    if method not in METHODS:
        raise ConfigError(f"unknown calibration {method!r}: choose one of {', '.join(METHODS)}")
    if not 50 < percentile <= 100:
        raise ConfigError(f"calibration percentile: expected above 50, at most 100: {percentile}")


def calibration_frames(recipe: CalibrationRecipe, classes: ClassTable) -> CalibrationFrames:
    """The frames that a recipe names.

    Raises:
        ConfigError: there are none, or an environment variable is not set.
        DataError, SourceError: data or source cannot be read.
    """
    return _frames(recipe, classes, recipe.frames, recipe.split)


def validation_frames(
    recipe: CalibrationRecipe, classes: ClassTable, count: int
) -> CalibrationFrames:
    """Frames to compare on: labelled and not calibrated on, if there are such.

    They are the `val` splits of the calibration's data, else its source, else the procedural
    drive.
    """
    if recipe.data:
        try:
            return _frames(recipe, classes, count, "val")
        except DataError:
            return _frames(recipe, classes, count, recipe.split)
    if recipe.source:
        return _frames(recipe, classes, count, "")
    return _drive(_DRIVE, classes, count)


@functools.lru_cache(maxsize=2)
def _drive(spec: str, classes: ClassTable, count: int) -> CalibrationFrames:
    """Drawn once for all recipes of a batch."""
    return read_frames(spec, classes, count=count, split="val")


def _frames(
    recipe: CalibrationRecipe, classes: ClassTable, count: int, split: str
) -> CalibrationFrames:
    """Of all that a recipe names, spread evenly."""
    specs = recipe.data or (recipe.source,)
    share = -(-count // len(specs))
    parts = [read_frames(expanded(s), classes, count=share, split=split) for s in specs]
    return CalibrationFrames(
        ", ".join(_short(spec, split) for spec in specs),
        tuple(image for part in parts for image in part.images),
        tuple(truth for part in parts for truth in part.labels),
    ).take(count)


def _short(spec: str, split: str) -> str:
    """ "camvid val": without the directory, which belongs to this machine."""
    return f"{spec.partition(':')[0]} {split}" if split else Path(spec).name
