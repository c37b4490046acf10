"""Training losses on logits: criteria over labels, boundary losses, distillation, class weights.

Throughout: logits (N, C, h, w) of any float type, computed in float32 at least, also under
autocast; labels (N, h, w) int64 of the same size, `ignore_index` where there is none. A loss is a
scalar tensor, differentiable in the logits; pixels without a label neither cost nor teach, and
where no pixel has one the loss is 0. Shapes that do not fit raise `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rtseg.errors import ConfigError


def criterion(
    terms: Mapping[str, float],
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    class_weights: Tensor | None = None,
) -> Tensor:
    """The weighted sum of `CRITERIA` by name, such as {"cross_entropy": 1.0, "lovasz": 0.5}.

    Raises:
        ConfigError: as `check_terms`.
    """
    check_terms(terms)
    total = torch.zeros((), device=logits.device)
    for name, weight in terms.items():
        loss = CRITERIA[name]
        value = loss(logits, labels, ignore_index=ignore_index, class_weights=class_weights)
        total = total + weight * value
    return total


def check_terms(terms: Mapping[str, object]) -> None:
    """Checks the terms of `criterion`, so that a recipe fails before the first step.

    Raises:
        ConfigError: no term, an unknown name, or a weight that is not a positive number.
    """
    if not terms:
        raise ConfigError(f"the loss has no terms: choose from {', '.join(CRITERIA)}")
    for name, weight in terms.items():
        if name not in CRITERIA:
            raise ConfigError(f"unknown loss {name!r}: choose from {', '.join(CRITERIA)}")
        number = weight if isinstance(weight, int | float) else math.nan
        if isinstance(weight, bool) or not 0 < number < math.inf:
            raise ConfigError(f"loss {name}: its weight must be a positive number, got {weight!r}")


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """-log p(label), its mean weighted by class (C,) and by pixel (N, h, w).

    Long et al., "FCN", CVPR 2015, section 4.3: class balancing by weighting the loss.
    Ronneberger et al., "U-Net", MICCAI 2015, section 3, eq. 1: a weight per pixel; a sum there.
    """
    losses, weights = _per_pixel(logits, labels, ignore_index, class_weights)
    return _mean(losses, weights if pixel_weights is None else weights * pixel_weights)


def border_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy weighted by `border_weights`: see there."""
    weights = border_weights(labels, ignore_index=ignore_index, class_weights=class_weights)
    return cross_entropy(logits, labels, ignore_index=ignore_index, pixel_weights=weights)


def border_weights(
    labels: Tensor,
    *,
    ignore_index: int,
    class_weights: Tensor | None = None,
    w0: float = 10.0,
    sigma_px: float = 5.0,
) -> Tensor:
    """(N, h, w) float32 weights w_c + w0 exp(-(d1 + d2)² / (2 sigma²)), 0 without a label.

    Ronneberger et al., "U-Net", MICCAI 2015, section 3, eq. 2; w_c is the class's weight, or 1.
    There d1 and d2 are the distances to the borders of the two nearest cells. Semantic labels
    leave no background between regions: a pixel's nearest region is its own. So d1 is the
    distance to the nearest pixel that touches another class, d2 to that of another class.
    Unlabelled pixels make no border. Computed on the CPU, returned on the labels' device.
    """
    distances = [_border_distance(one, ignore_index) for one in labels.cpu().numpy()]
    distance = torch.from_numpy(np.stack(distances)).to(labels.device)
    valid = labels != ignore_index
    balance = 1.0 if class_weights is None else class_weights.float()[labels.where(valid, 0)]
    return (balance + w0 * torch.exp(-distance.square() / (2 * sigma_px**2))) * valid


def _border_distance(labels: NDArray[np.int64], ignore_index: int) -> NDArray[np.float32]:
    """(h, w) d1 + d2 of `border_weights`; infinite where there is no border."""
    other = np.full(labels.shape, np.inf, np.float32)
    for label in np.unique(labels[labels != ignore_index]):
        own = labels == label
        other = np.where(own, other, np.minimum(other, _distance_to(own)))
    return other + _distance_to((other <= 1) & (labels != ignore_index))


def _distance_to(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(h, w) Euclidean distance to the nearest pixel of the mask; infinite if it has none."""
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    outside = (~mask).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int,
    class_weights: Tensor | None = None,
    threshold: float = 0.7,
    min_kept: int | None = None,
) -> Tensor:
    """Cross-entropy of the pixels with p(label) < threshold, and of the hardest `min_kept` always.

    Shrivastava et al., "OHEM", CVPR 2016; with a threshold and a least number of pixels as in
    Wu et al., "Bridging category-level and instance-level semantic segmentation", 2016, as SFNet
    and BiSeNet train. `min_kept` is of the whole batch; None for one pixel in 16.
    """
    losses, weights = _per_pixel(logits, labels, ignore_index, class_weights)
    kept = math.ceil(losses.numel() / 16) if min_kept is None else min_kept
    hardness = losses.detach().where(labels != ignore_index, -1.0)
    hard = hardness > -math.log(threshold)
    if kept > 0:
        hard |= hardness >= hardness.flatten().topk(min(kept, hardness.numel())).values[-1]
    return _mean(losses, weights * hard)


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int,
    class_weights: Tensor | None = None,
    gamma: float = 2.0,
) -> Tensor:
    """-(1 - p)^gamma log p with p = p(label), its mean weighted by class.

    Lin et al., "Focal loss", ICCV 2017, section 3.2, eq. 4; class weights are alpha, eq. 5.
    """
    losses, weights = _per_pixel(logits, labels, ignore_index, class_weights)
    # 1 - p without cancellation; bounded, so that for gamma < 1 the slope is finite at p = 1.
    wrong = (-torch.expm1(-losses)).clamp_min(1e-12)
    return _mean(wrong**gamma * losses, weights)


def dice_loss(
    logits: Tensor, labels: Tensor, *, ignore_index: int, class_weights: Tensor | None = None
) -> Tensor:
    """1 - 2 Σ p g / (Σ p² + Σ g²), sums over the batch, mean over the classes in its labels.

    Milletari et al., "V-Net", 3DV 2016, section 3. `class_weights` play no part: every class
    counts the same, however few its pixels.
    """
    p, truth = _by_class(logits, labels, ignore_index)
    overlap = 2 * (p * truth).sum(1) / (p.square().sum(1) + truth.sum(1)).clamp_min(1e-12)
    return _mean(1 - overlap, truth.any(1).to(p.dtype))


def lovasz_loss(
    logits: Tensor, labels: Tensor, *, ignore_index: int, class_weights: Tensor | None = None
) -> Tensor:
    """Lovász-softmax, the convex extension of 1 - IoU: over the batch, mean over its classes.

    Berman et al., CVPR 2018, definition 2 and algorithm 1. Pixels fall by error; each error
    counts by what its pixel adds to 1 - IoU: a missed one takes 1 from the intersection I and
    leaves the union U, so 1 / U; a false one makes U from U - 1, so I / (U - 1) - I / U.
    `class_weights` play no part, as in `dice_loss`.
    """
    p, truth = _by_class(logits, labels, ignore_index)
    present = truth.any(1)
    p, truth = p[present], truth[present]
    errors, order = (truth.to(p.dtype) - p).abs().sort(dim=1, descending=True)
    missed = truth.gather(1, order)
    area = truth.sum(1, keepdim=True)
    intersection = (area - missed.cumsum(1)).to(p.dtype)
    union = (area + (~missed).cumsum(1)).to(p.dtype)
    added = torch.where(missed, 1.0, intersection / (union - 1).clamp_min(1)) / union
    return (errors * added).sum() / max(1, len(p))


def boundary_targets(labels: Tensor, *, ignore_index: int, radius_px: int = 1) -> Tensor:
    """(N, h, w) bool: labelled pixels with another class in the square of `radius_px` around.

    For the label edges of Xu et al., "PIDNet", CVPR 2023. Unlabelled pixels make no boundary.
    """
    valid = labels != ignore_index
    # Pooling pads with -inf, and so it is where there is no label.
    both = torch.stack([labels, -labels], 1).float().where(valid[:, None], -math.inf)
    highest = F.max_pool2d(both, 2 * radius_px + 1, stride=1, padding=radius_px)
    return valid & (highest[:, 0] > -highest[:, 1])


def boundary_bce(
    boundary_logits: Tensor, labels: Tensor, *, ignore_index: int, radius_px: int = 1
) -> Tensor:
    """Balanced binary cross-entropy of a boundary head (N, 1, h, w) with `boundary_targets`.

    The l1 of Xu et al., "PIDNet", CVPR 2023 (its weight there is 20). Balanced as in Xie & Tu,
    "HED", ICCV 2015, eq. 2: a boundary pixel counts by the share of the others, they by the
    share of the boundary; the mean over labelled pixels, a sum there.
    """
    logits = _checked(boundary_logits, labels, channels=1)[:, 0]
    truth = boundary_targets(labels, ignore_index=ignore_index, radius_px=radius_px)
    target, valid = truth.to(logits.dtype), (labels != ignore_index).to(logits.dtype)
    share = _mean(target, valid)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return _mean(losses * torch.where(truth, 1 - share, share), valid)


def boundary_aware_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    boundary_logits: Tensor,
    *,
    ignore_index: int,
    class_weights: Tensor | None = None,
    threshold: float = 0.8,
) -> Tensor:
    """Cross-entropy where a boundary head (N, 1, h, w) says boundary; teaches `logits` alone.

    The l3 of Xu et al., "PIDNet", CVPR 2023, with its threshold of 0.8; the mean, a sum there.
    """
    losses, weights = _per_pixel(logits, labels, ignore_index, class_weights)
    boundary = _checked(boundary_logits, labels, channels=1)[:, 0].sigmoid() > threshold
    return _mean(losses, weights * boundary)


def distillation_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """temperature² KL(teacher || student) of softmax(logits / temperature), mean over pixels.

    Hinton et al., "Distilling the knowledge", 2015, section 2, with the factor that keeps the
    gradient's size; per pixel as in Liu et al., "Structured knowledge distillation", CVPR 2019,
    section 3.1. The teacher (N, C, any, any) is resized to the student (bilinear,
    align_corners=True) and not taught. `mask` (N, h, w) bool picks pixels; None for all.
    """
    if teacher.ndim != 4 or student.shape[:2] != teacher.shape[:2]:
        got, wanted = tuple(teacher.shape), tuple(student.shape)
        raise ValueError(f"teacher: expected batch and classes of the student {wanted}, got {got}")
    mask = student.new_ones(student[:, 0].shape, dtype=torch.bool) if mask is None else mask
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool, such as labels != ignore_index, got {mask.dtype}")
    student, teacher = _checked(student, mask), _wide(teacher.detach())
    size = student.shape[-2:]
    if teacher.shape[-2:] != size:
        teacher = F.interpolate(teacher, size=size, mode="bilinear", align_corners=True)
    soft = (teacher / temperature).log_softmax(1)
    losses = (soft.exp() * (soft - (student / temperature).log_softmax(1))).sum(1)
    return temperature**2 * _mean(losses, mask.to(losses.dtype))


def log_class_weights(frequency: Tensor, offset: float = 1.10) -> Tensor:
    """(C,) weights 1 / log(offset + frequency), scaled to a frequency-weighted mean of 1.

    Paszke et al., "ENet", 2016, section 5.2; a larger offset bounds the weights more tightly.
    """
    weights = 1.0 / torch.log(offset + frequency)
    return weights / (weights * frequency).sum().clamp_min(1e-6)


def median_class_weights(counts: Tensor) -> Tensor:
    """(C,) float32 weights median(f) / f: f is a class's share of the images it occurs in.

    Eigen & Fergus, ICCV 2015, section 6.3.2, median frequency balancing. `counts` (S, C) has the
    pixels of each class in each image. A class that never occurs gets the largest weight.
    """
    counts = counts.double()
    area = ((counts > 0) * counts.sum(1, keepdim=True)).sum(0)
    if not area.any():
        return torch.ones_like(area, dtype=torch.float32)
    frequency = (counts.sum(0) / area).where(area > 0, math.nan)
    weights = frequency.nanquantile(0.5) / frequency
    return weights.nan_to_num(weights[area > 0].max().item()).float()


class Criterion(Protocol):
    """What a recipe can name: a loss of logits against labels, without more inputs."""

    def __call__(
        self, logits: Tensor, labels: Tensor, *, ignore_index: int, class_weights: Tensor | None
    ) -> Tensor: ...


CRITERIA: Mapping[str, Criterion] = {
    "cross_entropy": cross_entropy,
    "border_cross_entropy": border_cross_entropy,
    "ohem": ohem_cross_entropy,
    "focal": focal_loss,
    "dice": dice_loss,
    "lovasz": lovasz_loss,
}


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _checked(logits: Tensor, labels: Tensor, channels: int | None = None) -> Tensor:
    """The logits in float32 at least; ValueError if they do not fit the labels."""
    got, size = tuple(logits.shape), tuple(labels.shape)
    if len(got) != 4 or (got[0], *got[2:]) != size or channels not in (None, got[1]):
        raise ValueError(f"logits: expected (N, {channels or 'C'}, h, w) for {size}, got {got}")
    return _wide(logits)


def _per_pixel(
    logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(N, h, w) -log p(label), and the weight of each pixel's class; both 0 without a label."""
    logits = _checked(logits, labels)
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    valid = labels != ignore_index
    if class_weights is None:
        return losses, valid.to(losses.dtype)
    if len(class_weights) != logits.shape[1]:
        raise ValueError(f"class_weights: expected {logits.shape[1]}, got {len(class_weights)}")
    return losses, class_weights.to(losses.dtype)[labels.where(valid, 0)] * valid


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean; 0, with a gradient of 0, where all weights are 0."""
    return (losses * weights).sum() / weights.sum().clamp_min(1e-30)


def _by_class(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Softmax (C, P) at the P labelled pixels of a batch, and whether it is their class, bool."""
    p, valid = _checked(logits, labels).softmax(1), labels != ignore_index
    classes = torch.arange(p.shape[1], device=labels.device)
    return p.movedim(1, 0)[:, valid], labels[valid] == classes[:, None]
