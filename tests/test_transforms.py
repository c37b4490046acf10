"""Augmentation: image and labels stay together, and every draw comes from the generator."""

from __future__ import annotations

import numpy as np
import pytest

from rtseg.data.transforms import Augmentation, augment
from rtseg.frame import ImageBGR, Labels

IGNORE = 11
COLOURS = np.stack([np.arange(12) * 20 + 10] * 3, -1).astype(np.uint8)


def sample(height: int = 96, width: int = 128, seed: int = 0) -> tuple[ImageBGR, Labels]:
    """Blocks of 16 pixels, each with the colour of its label."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 11, (height // 16, width // 16), np.uint8)
    labels = np.kron(coarse, np.ones((16, 16), np.uint8))
    return COLOURS[labels], labels


def plain(base: tuple[int, int], crop: tuple[int, int], **changes: object) -> Augmentation:
    options = {"flip": 0.0, "colour": 0.0, "blur": 0.0, "noise": 0.0, **changes}
    return Augmentation(base, crop, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [(0.5, 0.7), (1.0, 1.0), (1.5, 2.0)])
@pytest.mark.parametrize("seed", range(4))
def test_image_and_labels_stay_together(flip: float, scale: tuple[float, float], seed: int) -> None:
    options = plain((96, 128), (64, 80), flip=flip, scale=scale)
    image, labels = augment(*sample(seed=seed), options, IGNORE, np.random.default_rng(seed))
    known = labels != IGNORE
    assert known.mean() > 0.3
    shade = np.abs(image[:, :, 0].astype(int) - COLOURS[labels][:, :, 0])
    # Only pixels beside an edge may be mixtures: blocks are at least 8 pixels wide here.
    assert (shade[known] <= 2).mean() > 0.6
    inner = known.copy()
    for axis in (0, 1):
        for step in range(-2, 3):
            inner &= np.roll(labels, step, axis) == labels
    inner[:2], inner[-2:], inner[:, :2], inner[:, -2:] = False, False, False, False
    assert inner.any()
    assert (shade[inner] <= 2).all()


def test_flipping_is_mirroring() -> None:
    image, labels = sample()
    straight = augment(image, labels, plain((96, 128), (64, 80)), IGNORE, np.random.default_rng(5))
    mirrored = augment(
        image, labels, plain((96, 128), (64, 80), flip=1.0), IGNORE, np.random.default_rng(5)
    )
    assert np.array_equal(straight[0][:, ::-1], mirrored[0])
    assert np.array_equal(straight[1][:, ::-1], mirrored[1])


def test_outside_the_image_is_ignored() -> None:
    options = plain((32, 32), (96, 128), scale=(1.0, 1.0))
    image, labels = augment(*sample(96, 96), options, IGNORE, np.random.default_rng(0))
    assert image.shape == (96, 128, 3)
    assert (labels == IGNORE).mean() > 0.8
    assert (labels != IGNORE).any()


@pytest.mark.parametrize("size", [(96, 128), (48, 48), (200, 60)])
@pytest.mark.parametrize("crop", [(64, 64), (33, 97)])
def test_shapes_types_and_ownership(size: tuple[int, int], crop: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    labels = rng.integers(0, 12, size, np.uint8)
    before = image.copy(), labels.copy()
    for seed in range(6):
        out, out_labels = augment(
            image, labels, Augmentation((96, 128), crop), IGNORE, np.random.default_rng(seed)
        )
        assert out.shape == (*crop, 3)
        assert out_labels.shape == crop
        assert out.dtype == out_labels.dtype == np.uint8
        assert out.flags.c_contiguous
        assert out_labels.flags.c_contiguous
        assert set(np.unique(out_labels)) <= {*np.unique(labels), IGNORE}
        assert not np.shares_memory(out, image)
        assert not np.shares_memory(out_labels, labels)
    assert np.array_equal(image, before[0])
    assert np.array_equal(labels, before[1])


def test_the_generator_decides_everything() -> None:
    image, labels = sample()
    options = Augmentation((96, 128), (64, 80), blur=1.0, noise=20.0)
    first = [augment(image, labels, options, IGNORE, np.random.default_rng(i)) for i in range(5)]
    again = [augment(image, labels, options, IGNORE, np.random.default_rng(i)) for i in range(5)]
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)
    assert not np.array_equal(first[0][0], first[1][0])
