"""Training losses on low-resolution logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def labels_at(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (N, H, W) sampled at the points that logits of size (h, w) stand for: (N, h, w).

    The points of a map upsampled with align_corners=True: i (H - 1) / (h - 1), to the nearest.
    """
    height, width = labels.shape[-2:]
    rows = torch.linspace(0, height - 1, size[0], device=labels.device).round().long()
    columns = torch.linspace(0, width - 1, size[1], device=labels.device).round().long()
    return labels[:, rows[:, None], columns[None, :]]


def segmentation_loss(
    outputs: Sequence[Tensor],
    labels: Tensor,
    *,
    ignore_index: int,
    class_weights: Tensor | None = None,
    auxiliary_weight: float = 0.4,
) -> Tensor:
    """Cross-entropy of the main output plus the weighted sum over the auxiliary ones.

    The auxiliary outputs are compared at their own resolution, with labels sampled there; the
    main one at twice its own, because poles are thinner than a pixel of the logits.

    Args:
        outputs: logits (N, C, h, w), the main ones first.
        labels: (N, H, W) int64.
        class_weights: (C,) float32, or None for equal weights.
    """
    total = torch.zeros((), device=labels.device)
    for i, logits in enumerate(outputs):
        if i == 0:
            logits = F.interpolate(
                logits.float(), scale_factor=2, mode="bilinear", align_corners=True
            )
        target = labels_at(labels, (logits.shape[-2], logits.shape[-1]))
        loss = F.cross_entropy(
            logits.float(), target, weight=class_weights, ignore_index=ignore_index
        )
        total = total + (loss if i == 0 else auxiliary_weight * loss)
    return total


def log_class_weights(frequency: Tensor, offset: float = 1.10) -> Tensor:
    """(C,) weights 1 / log(offset + frequency), scaled to a frequency-weighted mean of 1.

    Paszke et al., "ENet", 2016, section 4; a larger offset bounds the weights more tightly.
    """
    weights = 1.0 / torch.log(offset + frequency)
    return weights / (weights * frequency).sum().clamp_min(1e-6)
