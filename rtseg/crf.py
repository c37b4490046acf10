"""Fully connected CRF: labels of a still image that follow its edges, from any network's logits.

Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
NIPS 2011; DeepLab v1 and v2 refine their scores with it. It takes seconds per image and looks at
no other frame, so it is for pictures, and `rtseg run` does without. Where it is called:

    logits = tta.resize_bilinear(engine.infer(images)[0], bgr.shape[:2], contract.align_corners)
    labels = crf.refine(bgr, logits)

The filter over distance and colour is that of Adams, Baek & Davis, "Fast High-Dimensional
Filtering Using the Permutohedral Lattice", Eurographics 2010, which the CRF's authors use too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rtseg.frame import ImageBGR, Labels, check_image

Float32 = NDArray[np.float32]
Filter = Callable[[Float32], Float32]


@dataclass(frozen=True)
class Potentials:
    """What it costs neighbours to differ: a sum of two kernels, the same for all pairs of classes.

    Attributes:
        smoothness, smoothness_px: weight of the kernel that knows distance alone, and its
            standard deviation.
        appearance, appearance_px, appearance_colour: weight of the kernel that knows distance and
            colour, and its standard deviations, in pixels and in levels of 0..255.
    """

    smoothness: float = 3.0
    smoothness_px: float = 3.0
    appearance: float = 10.0
    appearance_px: float = 80.0
    appearance_colour: float = 13.0

    def __post_init__(self) -> None:
        if min(self.smoothness_px, self.appearance_px, self.appearance_colour) <= 0:
            raise ValueError(f"expected deviations above 0, got {self}")


DEFAULT = Potentials()


def refine(
    bgr: ImageBGR, logits: Float32, *, potentials: Potentials = DEFAULT, iterations: int = 10
) -> Labels:
    """The most likely label of each pixel after mean-field inference: (H, W) uint8.

    Arguments and errors as `marginals`.
    """
    shares = marginals(bgr, logits, potentials=potentials, iterations=iterations)
    return np.asarray(shares.argmax(axis=0), np.uint8)


def marginals(
    bgr: ImageBGR, logits: Float32, *, potentials: Potentials = DEFAULT, iterations: int = 10
) -> Float32:
    """The mean field: how likely each class is at each pixel, (C, H, W) float32 in 0..1.

    As in the authors' code, kernels are divided by the roots of both pixels' sums, and a pixel is
    its own neighbour too.

    Args:
        bgr: (H, W, 3) uint8.
        logits: (C, H, W) float32 at the image's size; of probabilities, their logarithm.
        potentials: weights and reach of the two kernels.
        iterations: of the mean field; after 0 it is the softmax of the logits.

    Raises:
        ValueError: an argument of another shape or type, a pixel whose largest logit is not
            finite, or deviations too small for the image.
    """
    hw = check_image(bgr).shape[:2]
    if logits.dtype != np.float32 or logits.ndim != 3 or logits.shape[1:] != hw:
        raise ValueError(
            f"logits: expected (C, {hw[0]}, {hw[1]}) float32, got {logits.shape} {logits.dtype}"
        )
    if not np.isfinite(logits.max(axis=0)).all():
        raise ValueError("logits: a pixel has NaN, infinity, or no class at all")
    kernels = [
        (weight, blur, 1 / np.sqrt(blur(np.ones(hw, np.float32))))
        for weight, blur in _filters(bgr, potentials)
    ]
    shares = _softmax(logits)
    for _ in range(iterations):
        field = logits.copy()
        for plane, share in zip(field, shares, strict=True):
            for weight, blur, norm in kernels:
                plane += weight * norm * blur(share * norm)
        shares = _softmax(field)
    return shares


class PermutohedralLattice:
    """A Gaussian filter over points of a few dimensions, in time linear in their number.

    Each point spreads its value over the corners of the simplex that it lies in, these are
    blurred along the lattice's directions, and each point reads its corners again. The result is
    near the sum over all points q of exp(-|p - q|^2 / 2) v(q), times a constant.

    Args:
        points: (N, d) float; a coordinate is divided by the deviation that is wanted along it.
    """

    def __init__(self, points: NDArray[np.floating]) -> None:
        count, d = points.shape
        embedding = np.zeros((d, d + 1))  # onto the plane in d + 1 dimensions whose sum is 0
        for i in range(d):
            scale = (d + 1) * math.sqrt(2 / 3 / ((i + 1) * (i + 2)))
            embedding[i, : i + 1] = scale
            embedding[i, i + 1] = -scale * (i + 1)
        position = points.astype(np.float64) @ embedding
        # The nearest corner whose coordinates are multiples of d + 1, and how the others of its
        # simplex follow: by the order of the distances to it (Adams et al., section 3.2).
        base = np.round(position / (d + 1)).astype(np.int64)
        rank = np.argsort(np.argsort(base * (d + 1) - position, axis=1), axis=1)
        rank += base.sum(axis=1, keepdims=True)
        wrap = (rank < 0).astype(np.int64) - (rank > d)
        rank += wrap * (d + 1)
        base = (base + wrap) * (d + 1)
        ordered = np.empty_like(position)
        np.put_along_axis(ordered, rank, (position - base) / (d + 1), axis=1)
        ordered = ordered[:, ::-1]
        self._weights = np.empty((d + 1, count), np.float32)
        self._weights[1:] = (ordered[:, 1:] - ordered[:, :-1]).T
        self._weights[0] = 1 + ordered[:, 0] - ordered[:, -1]
        # A corner's first d coordinates as one number; neighbours of corners have room in it.
        spans = [int(v) + 4 * d + 1 for v in np.ptp(base[:, :d], axis=0)]
        if math.prod(spans) >= 2**62:
            raise ValueError("points: too far apart for their deviations")
        steps = np.array([math.prod(spans[:i]) for i in range(d)], np.int64)
        base_code = base[:, :d] @ steps
        codes = [
            base_code + k * steps.sum() - (d + 1) * ((rank[:, :d] > d - k) @ steps)
            for k in range(d + 1)
        ]
        known, corners = np.unique(np.concatenate(codes), return_inverse=True)
        self._corners = corners.reshape(d + 1, count)
        directions = [(d + 1) * step - steps.sum() for step in (*steps, 0)]
        self._neighbours = [(_places(known, -s), _places(known, s)) for s in directions]
        self._size = len(known)

    def filter(self, values: Float32) -> Float32:
        """(N,) to (N,)."""
        spread = (self._weights * values).ravel()
        # One more than there are corners: the last stays 0, for neighbours that are not there.
        sums = np.bincount(self._corners.ravel(), spread, self._size + 1).astype(np.float32)
        for before, after in self._neighbours:
            sums[:-1] += np.float32(0.5) * (sums[before] + sums[after])
        read: Float32 = np.einsum("kn,kn->n", self._weights, sums[self._corners])
        return read


def _places(known: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """Where each number plus `step` stands in the sorted numbers; their count if it does not."""
    wanted = known + step
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, at, len(known))


def _filters(bgr: ImageBGR, potentials: Potentials) -> Iterator[tuple[float, Filter]]:
    """The weights that are not 0, and their unnormalised kernels."""
    height, width = bgr.shape[:2]
    if potentials.smoothness:
        px = potentials.smoothness_px
        side = 2 * math.ceil(4 * px) + 1

        def spatial(plane: Float32) -> Float32:
            blurred = cv2.GaussianBlur(plane, (side, side), px, borderType=cv2.BORDER_CONSTANT)
            return np.asarray(blurred, np.float32)

        yield potentials.smoothness, spatial
    if potentials.appearance:
        y, x = np.mgrid[:height, :width] / potentials.appearance_px
        colours = np.moveaxis(bgr, 2, 0) / potentials.appearance_colour
        lattice = PermutohedralLattice(np.stack((x, y, *colours), axis=-1).reshape(-1, 5))

        def bilateral(plane: Float32) -> Float32:
            return lattice.filter(plane.ravel()).reshape(height, width)

        yield potentials.appearance, bilateral


def _softmax(field: Float32) -> Float32:
    exps: Float32 = np.exp(field - field.max(axis=0))
    exps /= exps.sum(axis=0)
    return exps
