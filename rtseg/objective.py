"""What a training step minimises: the outputs of a network against the labels of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rtseg.losses import boundary_aware_cross_entropy, boundary_bce, criterion


def labels_at(labels: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """Labels (N, H, W) at the points that logits of size (h, w) stand for, the nearest: (N, h, w).

    Point i stands at i (H - 1) / (h - 1) with the corners aligned, else at (i + 0.5) H / h - 0.5.
    """
    rows, columns = (
        _points(length, count, align_corners).to(labels.device)
        for length, count in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[:, rows[:, None], columns[None, :]]


def _points(length: int, count: int, align_corners: bool) -> Tensor:
    if align_corners:
        return torch.linspace(0, length - 1, count).round().long()
    points = (torch.arange(count) + 0.5) * (length / count) - 0.5
    return points.round().long().clamp(0, length - 1)


def segmentation_loss(
    outputs: Sequence[Tensor],
    labels: Tensor,
    *,
    ignore_index: int,
    class_weights: Tensor | None = None,
    auxiliary_weight: float = 0.4,
    terms: Mapping[str, float] | None = None,
    align_corners: bool = True,
    boundary_weight: float | None = None,
) -> Tensor:
    """The criterion of the main output, and the losses of the auxiliary heads and the boundary's.

    Auxiliary outputs are compared at their own resolution, with labels sampled there; the main
    one at twice its own, because poles are thinner than a pixel of the logits, but no larger than
    the labels. A boundary head is taught where classes meet, and the main output once more where
    that head says boundary.

    Zhao et al., "PSPNet", CVPR 2017, section 4: the auxiliary loss, and its weight.
    Xu et al., "PIDNet", CVPR 2023: l0 (auxiliary), l1 (boundary head), l2 (main), l3 (main at
    boundaries), with the weights 0.4, 20, 1 and 1.

    Args:
        outputs: logits (N, C, h, w), the main ones first.
        labels: (N, H, W) int64.
        class_weights: (C,) float32, or None for equal weights.
        terms: as for `criterion`, of the main output; None for cross-entropy.
        align_corners: how the network's logits are up-sampled.
        boundary_weight: if given, the last of the outputs is a boundary head's (N, 1, h, w), and
            this is the weight of its loss.

    Returns:
        A scalar, differentiable in all outputs.
    """
    main, *others = outputs
    main = _enlarged(main, labels, align_corners)
    target = labels_at(labels, _size(main), align_corners)
    total = criterion(terms or {"cross_entropy": 1.0}, main, target, ignore_index, class_weights)
    if boundary_weight is not None:
        boundary = _enlarged(others.pop(), labels, align_corners)
        edges = labels_at(labels, _size(boundary), align_corners)
        total = total + boundary_weight * boundary_bce(boundary, edges, ignore_index=ignore_index)
        if _size(boundary) != _size(main):
            boundary = _resized(boundary, _size(main), align_corners)
        total = total + boundary_aware_cross_entropy(
            main, target, boundary, ignore_index=ignore_index, class_weights=class_weights
        )
    for logits in others:
        target = labels_at(labels, _size(logits), align_corners)
        loss = criterion({"cross_entropy": 1.0}, logits, target, ignore_index, class_weights)
        total = total + auxiliary_weight * loss
    return total


def _size(values: Tensor) -> tuple[int, int]:
    return values.shape[-2], values.shape[-1]


def _enlarged(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    """Twice as large, in float32 at least, as long as the labels are not smaller."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    height, width = _size(logits)
    if 2 * height > labels.shape[-2] or 2 * width > labels.shape[-1]:
        return logits
    return _resized(logits, (2 * height, 2 * width), align_corners)


def _resized(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
