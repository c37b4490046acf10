"""The fully connected CRF against a mean field over every pair of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtseg import crf
from rtseg.crf import Potentials

HEIGHT, WIDTH = 13, 18
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


@pytest.fixture
def picture() -> Any:
    """(bgr, logits, truth): two noisy areas of colour, and logits that hardly tell them apart."""
    rng = np.random.default_rng(0)
    truth = (ROWS + COLUMNS > 14).astype(np.uint8)
    colours = np.array([[60, 90, 40], [150, 120, 200]])[truth]
    bgr = (colours + rng.normal(0, 8, colours.shape)).clip(0, 255).astype(np.uint8)
    logits = rng.normal(0, 1, (3, HEIGHT, WIDTH))
    logits[:2] += np.stack((truth == 0, truth == 1))
    return bgr, logits.astype(np.float32), truth


def gaussian(points: Any) -> Any:
    """(N, d) to the kernel (N, N): exp(-|a - b|^2 / 2)."""
    return np.exp(-((points[:, None] - points[None]) ** 2).sum(axis=2) / 2)


def dense_mean_field(bgr: Any, logits: Any, potentials: Potentials, iterations: int) -> Any:
    """The marginals with dense kernels, in float64."""
    p = potentials
    places = np.stack((ROWS, COLUMNS), axis=-1).reshape(-1, 2)
    colours = bgr.reshape(-1, 3) / p.appearance_colour
    near = gaussian(places / p.smoothness_px)
    alike = gaussian(np.hstack((places / p.appearance_px, colours)))
    kernel = sum(
        weight * k / np.sqrt(np.outer(k.sum(axis=0), k.sum(axis=0)))
        for weight, k in ((p.smoothness, near), (p.appearance, alike))
    )
    unary = logits.reshape(len(logits), -1).astype(np.float64)
    field = unary
    for _ in range(iterations):
        field = unary + softmax(field) @ kernel
    return softmax(field).reshape(logits.shape)


def softmax(field: Any) -> Any:
    exps = np.exp(field - field.max(axis=0))
    return exps / exps.sum(axis=0)


def test_distance_alone_is_exact(picture: Any) -> None:
    bgr, logits, _ = picture
    potentials = Potentials(smoothness=2.0, smoothness_px=1.5, appearance=0.0)
    got = crf.marginals(bgr, logits, potentials=potentials, iterations=4)
    # The blur ends at four deviations.
    np.testing.assert_allclose(got, dense_mean_field(bgr, logits, potentials, 4), atol=2e-3)


@pytest.mark.parametrize("appearance", [1.0, 3.0])
def test_the_mean_field_is_that_of_all_pairs(picture: Any, appearance: float) -> None:
    bgr, logits, truth = picture
    potentials = Potentials(1.0, 1.5, appearance, appearance_px=6.0, appearance_colour=25.0)
    got = crf.marginals(bgr, logits, potentials=potentials, iterations=5)
    expected = dense_mean_field(bgr, logits, potentials, 5)
    # The lattice is a few per cent off a Gaussian, and undecided pixels amplify that.
    assert np.abs(got - expected).mean() < 1e-2
    assert np.abs(got - expected).max() < 0.1
    labels = crf.refine(bgr, logits, potentials=potentials, iterations=5)
    assert labels.dtype == np.uint8
    assert (labels == expected.argmax(axis=0)).mean() > 0.98
    before, after = ((v == truth).mean() for v in (logits.argmax(axis=0), labels))
    assert after > before + 0.1


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_the_lattice_is_a_gaussian_filter(dimensions: int) -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 3, (400, dimensions))
    values = rng.uniform(0, 1, 400).astype(np.float32)
    lattice = crf.PermutohedralLattice(points)
    got = lattice.filter(values) / lattice.filter(np.ones(400, np.float32))
    kernel = gaussian(points)
    expected = kernel @ values / kernel.sum(axis=1)
    assert np.corrcoef(got, expected)[0, 1] > 0.97
    assert np.abs(got - expected).max() < 0.03


def test_without_kernels_or_iterations_nothing_changes(picture: Any) -> None:
    bgr, logits, _ = picture
    labels = logits.argmax(axis=0)
    np.testing.assert_array_equal(crf.refine(bgr, logits, iterations=0), labels)
    alone = Potentials(smoothness=0.0, appearance=0.0)
    np.testing.assert_array_equal(crf.refine(bgr, logits, potentials=alone), labels)


def test_logarithms_of_probabilities_serve_as_logits(picture: Any) -> None:
    bgr, logits, _ = picture
    shares = softmax(logits)
    shares[2] = 0.0
    with np.errstate(divide="ignore"):
        labels = crf.refine(bgr, np.log(shares))
    assert set(np.unique(labels)) <= {0, 1}


def test_wrong_arguments_are_named(picture: Any) -> None:
    bgr, logits, _ = picture
    with pytest.raises(ValueError, match=r"expected \(C, 13, 18\) float32, got \(3, 13, 17\)"):
        crf.refine(bgr, logits[:, :, 1:])
    with pytest.raises(ValueError, match="float64"):
        crf.refine(bgr, logits.astype(np.float64))
    with pytest.raises(ValueError, match="NaN"):
        crf.refine(bgr, np.full_like(logits, np.nan))
    with pytest.raises(ValueError, match="above 0"):
        Potentials(appearance_px=0.0)
    with pytest.raises(ValueError, match="too far apart"):
        crf.refine(bgr, logits, potentials=Potentials(appearance_colour=1e-6))
