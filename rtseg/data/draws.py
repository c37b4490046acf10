"""The endless stream of training crops: which sample, which part of it, and what is pasted into it.

Crop number i is a function of (seed, i) alone, so a training run can be stopped and taken up again,
or shared among processes, and sees the same crops. Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rtseg.data import DataSet
from rtseg.data.transforms import Augmentation, augment, paste
from rtseg.errors import DataError
from rtseg.frame import ImageBGR, Labels

RARE = 0.02
"""A class with less than this share of the pixels is rare enough to be pasted."""

_CACHED = 4000
_ATTEMPTS = 20


@dataclass(frozen=True)
class Draw:
    """One training crop.

    Attributes:
        image: (h, w, 3) uint8 BGR.
        labels: (h, w) uint8.
        name: of the sample.
        bad: messages of the samples that were skipped on the way to it.
    """

    image: ImageBGR
    labels: Labels
    name: str
    bad: tuple[str, ...] = ()


class Draws:
    """Random training crops, by number.

    Args:
        data: the data sets, with the same classes.
        share: how often each is drawn, relative to the others; empty means by size.
        augmentation: what happens to each sample.
        seed: of every draw.
        class_uniform: probability that a crop is sought by a class, each as likely as any other,
            and holds a pixel of it (Rota Bulo et al., "In-Place Activated BatchNorm", CVPR 2018,
            section 4; used by SFNet).
        paste: probability that a rare class of another sample is pasted in.
        skip_bad: draw another sample for one that cannot be read.

    Raises:
        DataError: with `class_uniform` or `paste`, which read every label once: one is unreadable.
    """

    def __init__(
        self,
        data: Sequence[DataSet],
        share: Sequence[float],
        augmentation: Augmentation,
        *,
        seed: int,
        class_uniform: float = 0.0,
        paste: float = 0.0,
        skip_bad: bool = False,
    ) -> None:
        self._data = data
        sizes = np.array(share or [len(d.samples) for d in data], float)
        self._share = sizes / sizes.sum()
        self._augmentation = augmentation
        self._seed = seed
        self._class_uniform = class_uniform
        self._paste = paste
        self._skip_bad = skip_bad
        self._cache: dict[tuple[int, int], tuple[ImageBGR, Labels]] = {}
        self._holders: list[list[NDArray[np.intp]]] = []
        self._rare: NDArray[np.intp] = np.zeros(0, np.intp)
        if class_uniform or paste:
            self._index_classes()

    def __getstate__(self) -> dict[str, Any]:
        """For a loader process, which fills a cache of its own."""
        return {**self.__dict__, "_cache": {}}

    def draw(self, number: int) -> Draw:
        """Crop number `number`.

        Raises:
            DataError: the sample cannot be read and bad ones are not skipped, or too many are bad.
        """
        rng = np.random.default_rng((self._seed, number))
        bad: list[str] = []
        while True:
            try:
                return self._draw(rng, tuple(bad))
            except DataError as error:
                bad.append(str(error))
                if not self._skip_bad:
                    raise
                if len(bad) == _ATTEMPTS:
                    raise DataError(
                        f"{_ATTEMPTS} samples in a row cannot be read, the last one: {error}"
                    ) from error

    def _draw(self, rng: np.random.Generator, bad: tuple[str, ...]) -> Draw:
        which = int(rng.choice(len(self._data), p=self._share))
        data = self._data[which]
        index, sought = int(rng.integers(len(data.samples))), None
        if self._class_uniform and rng.random() < self._class_uniform:
            holders = self._holders[which]
            sought = int(rng.choice([k for k, found in enumerate(holders) if len(found)]))
            index = int(rng.choice(holders[sought]))
        image, labels = self._load(which, index)
        focus = None if sought is None else _pixel_of(labels, sought, rng)
        if self._paste and rng.random() < self._paste:
            image, labels = self._pasted(which, image, labels, rng)
        image, labels = augment(
            image, labels, self._augmentation, data.classes.ignore_index, rng, focus=focus
        )
        return Draw(image, labels, data.samples[index].name, bad)

    def _pasted(
        self, which: int, image: ImageBGR, labels: Labels, rng: np.random.Generator
    ) -> tuple[ImageBGR, Labels]:
        """The sample with all pixels of a rare class of another one, where they were there."""
        rare = [k for k in self._rare if len(self._holders[which][k])]
        if not rare:
            return image, labels
        k = int(rng.choice(rare))
        donor, donor_labels = self._load(which, int(rng.choice(self._holders[which][k])))
        return paste(image, labels, donor, donor_labels, k)

    def _index_classes(self) -> None:
        """Finds which samples hold which class, and which classes are rare."""
        total = np.zeros(256, np.int64)
        for which, data in enumerate(self._data):
            counts = np.zeros((len(data.samples), 256), np.int64)
            for i in range(len(data.samples)):
                try:
                    labels = self._load(which, i)[1]
                except DataError:
                    if not self._skip_bad:
                        raise
                    continue
                counts[i] = np.bincount(labels.ravel(), minlength=256)
            # A handful of pixels may vanish in the scaling.
            self._holders.append(
                [np.flatnonzero(counts[:, k] > 50) for k in range(len(data.classes))]
            )
            total += counts.sum(axis=0)
        known = total[: len(self._data[0].classes)]
        self._rare = np.flatnonzero((known > 0) & (known < RARE * known.sum()))

    def _load(self, which: int, index: int) -> tuple[ImageBGR, Labels]:
        key = (which, index)
        if key in self._cache:
            return self._cache[key]
        loaded = self._data[which].samples[index].load()
        if len(self._cache) < _CACHED:
            self._cache[key] = loaded
        return loaded


class Batches:
    """What one process of a run reads, crop by crop, in the form that a data loader takes.

    Args:
        draws: the stream that all processes share.
        step: the first step.
        steps: one past the last step.
        batch: crops per step and process.
        rank, world: which process of how many.
    """

    def __init__(
        self, draws: Draws, step: int, steps: int, batch: int, rank: int = 0, world: int = 1
    ) -> None:
        self._draws = draws
        self._step, self.batch = step, batch
        self._rank, self._world = rank, world
        self._length = max(0, steps - step) * batch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> Draw | DataError:
        """A crop, or the error that ends the run: it keeps its type on the way to the trainer."""
        cv2.setNumThreads(1)
        step, i = divmod(position, self.batch)
        number = ((self._step + step) * self._world + self._rank) * self.batch + i
        try:
            return self._draws.draw(number)
        except DataError as error:
            return error


def _pixel_of(labels: Labels, k: int, rng: np.random.Generator) -> tuple[float, float] | None:
    """A random pixel of class k as (y, x), each as a share of the side; None without any."""
    rows, columns = np.nonzero(labels == k)
    if not len(rows):
        return None
    i = int(rng.integers(len(rows)))
    return float(rows[i] / labels.shape[0]), float(columns[i] / labels.shape[1])
