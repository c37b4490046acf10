"""Logits and labels of a few pixels in a row, for losses that are worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

IGNORE = 255


def logits_of(probabilities: Sequence[Sequence[float]]) -> Any:
    """(1, C, 1, P) logits whose softmax is the given row of C probabilities at each pixel."""
    return torch.tensor(probabilities).log().T[None, :, None, :]


def row(labels: Sequence[int]) -> Any:
    """(1, 1, P) labels."""
    return torch.tensor([[labels]])


def case(dtype: Any = torch.float32) -> tuple[Any, Any]:
    """Random logits (2, 3, 4, 5) that ask for a gradient, and labels with some left out."""
    draws = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 4, 5, generator=draws, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 3, (2, 4, 5), generator=draws)
    labels[:, 1:3, 2] = IGNORE
    return logits.requires_grad_(), labels
