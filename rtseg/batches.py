"""From crops to batches of tensors, the same in every run: loading, stacking, normalising."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rtseg.data.draws import Batches, Draw
from rtseg.data.transforms import MEAN_RGB, STD_RGB
from rtseg.errors import DataError
from rtseg.frame import ImageBGR

SKIP_BAD = "(--skip-bad leaves such samples out)"


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Attributes:
        images: (N, 3, h, w) float32, normalised RGB.
        labels: (N, h, w) int64.
        names: of the samples.
        bad: messages of samples that were left out.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]
    bad: tuple[str, ...]


def batches(crops: Batches, workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches of one process, in order, loaded ahead by `workers` processes of their own.

    Raises:
        DataError: a sample cannot be read.
    """
    # A forked process would inherit the locks of OpenCV's threads, and wait for them for ever.
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    loader: Any = DataLoader(
        crops,  # type: ignore[arg-type]  # it has what a map-style data set needs
        batch_size=crops.batch,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=method if workers else None,
        collate_fn=_collate,
        worker_init_fn=_ignore_ctrl_c,
    )
    for rgb, labels, names, bad in loader:
        if rgb is None:
            raise DataError(f"{bad[0]} {SKIP_BAD}")
        yield Batch(normalise(rgb.to(device)), labels.to(device).long(), names, bad)


def _ignore_ctrl_c(worker: int) -> None:
    """A terminal's Ctrl-C reaches the loaders too; when they end is for the trainer to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(
    items: Sequence[Draw | DataError],
) -> tuple[Tensor | None, Tensor | None, tuple[str, ...], tuple[str, ...]]:
    """Images (N, 3, h, w) uint8 RGB, labels, names and what was skipped; None if a draw failed."""
    draws = [item for item in items if isinstance(item, Draw)]
    errors = tuple(str(item) for item in items if isinstance(item, DataError))
    if errors:
        return None, None, (), errors
    images = torch.stack([to_tensor(draw.image) for draw in draws])
    labels = torch.stack([torch.from_numpy(draw.labels) for draw in draws])
    bad = tuple(line for draw in draws for line in draw.bad)
    return images, labels, tuple(draw.name for draw in draws), bad


def resized(bgr: ImageBGR, size: tuple[int, int]) -> ImageBGR:
    return cv2.resize(bgr, size[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


def to_tensor(bgr: ImageBGR) -> Tensor:
    """(3, H, W) uint8 RGB of an (H, W, 3) uint8 BGR image."""
    return torch.from_numpy(np.ascontiguousarray(bgr[:, :, ::-1].transpose(2, 0, 1)))


def normalise(rgb: Tensor) -> Tensor:
    """(N, 3, H, W) float32, channels last, of uint8 RGB."""
    mean = 255.0 * torch.tensor(MEAN_RGB, device=rgb.device)[:, None, None]
    std = 255.0 * torch.tensor(STD_RGB, device=rgb.device)[:, None, None]
    return ((rgb.float() - mean) / std).contiguous(memory_format=torch.channels_last)
