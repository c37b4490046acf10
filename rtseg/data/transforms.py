"""Training augmentation: pure functions of an image, its labels and a random generator."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from rtseg.frame import ImageBGR, Labels

MEAN_RGB = (0.411, 0.425, 0.432)
STD_RGB = (0.274, 0.285, 0.281)
"""What our networks are trained with, RGB in 0..1: the mean of CamVid train, a usual deviation."""


@dataclass(frozen=True)
class Augmentation:
    """What is drawn at random for each training sample.

    Attributes:
        base_hw: (H, W) an image is resized to at scale 1.
        crop_hw: (H, W) of what training sees; parts outside the image are ignored.
        scale: smallest and largest scale, drawn log-uniformly.
        flip: probability of mirroring left and right.
        colour: strength of brightness, contrast, saturation and tint changes, 0 is off.
        blur: probability of a Gaussian blur.
        noise: largest standard deviation of added Gaussian noise, in grey levels.
    """

    base_hw: tuple[int, int]
    crop_hw: tuple[int, int]
    scale: tuple[float, float] = (0.6, 1.8)
    flip: float = 0.5
    colour: float = 0.3
    blur: float = 0.1
    noise: float = 6.0


def augment(
    image: ImageBGR,
    labels: Labels,
    options: Augmentation,
    ignore_index: int,
    rng: np.random.Generator,
    *,
    focus: tuple[float, float] | None = None,
) -> tuple[ImageBGR, Labels]:
    """A random crop of the randomly scaled, mirrored and recoloured sample.

    Args:
        image: (H, W, 3) uint8 BGR.
        labels: (H, W) uint8.
        focus: (y, x) as shares of the sides: a point that the crop shall hold; None for any.

    Returns:
        New arrays of the crop size: (h, w, 3) uint8 BGR and (h, w) uint8.
    """
    image, labels = _scaled_crop(image, labels, options, ignore_index, rng, focus)
    if rng.random() < options.flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    image = np.ascontiguousarray(image)
    if options.colour > 0:
        image = _recolour(image, options.colour, rng)
    if rng.random() < options.blur:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.5))).astype(np.uint8)
    sigma = options.noise * float(rng.random()) ** 2
    if sigma > 0.5:
        cv2.setRNGSeed(int(rng.integers(1 << 31)))  # OpenCV draws from a generator of its own
        noise = cv2.randn(np.empty(image.shape, np.int8), 0, sigma)  # type: ignore[call-overload]
        image = cv2.add(image, noise, dtype=cv2.CV_8U).astype(np.uint8)
    return image, np.ascontiguousarray(labels)


def _scaled_crop(
    image: ImageBGR,
    labels: Labels,
    options: Augmentation,
    ignore_index: int,
    rng: np.random.Generator,
    focus: tuple[float, float] | None,
) -> tuple[ImageBGR, Labels]:
    low, high = options.scale
    scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    aspect = float(np.exp(rng.uniform(-0.1, 0.1)))
    crop_h, crop_w = options.crop_hw
    source_h, source_w = labels.shape
    factor_y = options.base_hw[0] * scale * aspect / source_h
    factor_x = options.base_hw[1] * scale / aspect / source_w
    # Crop in the source first, so that only what is kept is resized.
    need_h, need_w = round(crop_h / factor_y), round(crop_w / factor_x)
    y, x = (None, None) if focus is None else (focus[0] * source_h, focus[1] * source_w)
    top, left = _start(source_h, need_h, y, rng), _start(source_w, need_w, x, rng)
    part = image[top : top + need_h, left : left + need_w]
    part_labels = labels[top : top + need_h, left : left + need_w]
    out_h = min(crop_h, max(1, round(part.shape[0] * factor_y)))
    out_w = min(crop_w, max(1, round(part.shape[1] * factor_x)))
    shrinking = factor_x < 1.0
    resized = cv2.resize(
        part, (out_w, out_h), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    )
    resized_labels = cv2.resize(part_labels, (out_w, out_h), interpolation=cv2.INTER_NEAREST_EXACT)
    if (out_h, out_w) == (crop_h, crop_w):
        return resized.astype(np.uint8, copy=False), resized_labels.astype(np.uint8, copy=False)
    full = np.empty((crop_h, crop_w, 3), np.uint8)
    full[:] = image.reshape(-1, 3)[:: max(1, source_h * source_w // 1000)].mean(axis=0)
    full_labels = np.full((crop_h, crop_w), ignore_index, np.uint8)
    y = int(rng.integers(0, crop_h - out_h + 1))
    x = int(rng.integers(0, crop_w - out_w + 1))
    full[y : y + out_h, x : x + out_w] = resized
    full_labels[y : y + out_h, x : x + out_w] = resized_labels
    return full, full_labels


def _start(length: int, need: int, at: float | None, rng: np.random.Generator) -> int:
    """Where a random stretch of `need` of `length` pixels begins, one that holds `at` if given."""
    first, last = 0, max(length - need, 0)
    if at is not None:
        first, last = max(first, int(at) - need + 1), min(last, int(at))
    return int(rng.integers(min(first, last), last + 1))


def paste(
    image: ImageBGR, labels: Labels, donor: ImageBGR, donor_labels: Labels, k: int
) -> tuple[ImageBGR, Labels]:
    """A sample with all pixels of class k of another one, at their place in the picture.

    The place is kept because streets have an order: signs stand beside the road, and what is
    higher in the picture is farther away. Ghiasi et al., "Simple Copy-Paste", CVPR 2021, paste
    anywhere; their finding that unblended edges do no harm is used.

    Args:
        image, donor: (H, W, 3) uint8 BGR; the donor is resized to the sample's size.
        labels, donor_labels: (H, W) uint8.

    Returns:
        New arrays.
    """
    height, width = labels.shape
    if donor_labels.shape != labels.shape:
        donor = cv2.resize(donor, (width, height)).astype(np.uint8, copy=False)
        donor_labels = cv2.resize(
            donor_labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT
        ).astype(np.uint8, copy=False)
    mask = donor_labels == k
    image, labels = image.copy(), labels.copy()
    image[mask] = donor[mask]
    labels[mask] = k
    return image, labels


def _recolour(image: ImageBGR, strength: float, rng: np.random.Generator) -> ImageBGR:
    """Saturation towards grey or away; per-channel gain, contrast and brightness by a table."""
    saturation = 1.0 + float(rng.uniform(-strength, strength))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    image = cv2.addWeighted(image, saturation, grey, 1.0 - saturation, 0.0).astype(np.uint8)
    level = np.arange(256, dtype=np.float32)
    contrast = 1.0 + float(rng.uniform(-strength, strength))
    brightness = 255.0 * float(rng.uniform(-strength, strength)) * 0.5
    gamma = float(np.exp(rng.uniform(-strength, strength)))
    curve = 255.0 * (level / 255.0) ** gamma
    gains = 1.0 + rng.uniform(-strength, strength, 3) * 0.3
    table = (curve[:, None] - 128.0) * contrast * gains[None] + 128.0 + brightness
    lut = np.clip(table, 0, 255).astype(np.uint8)[None]
    return cv2.LUT(image, lut).astype(np.uint8)
