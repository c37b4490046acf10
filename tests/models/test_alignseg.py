"""AlignSeg before training: nothing is moved yet."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rtseg.models.alignseg import AlignedAggregation  # noqa: E402
from rtseg.models.resampling import upsample_like  # noqa: E402


def test_aggregation_begins_as_a_sum() -> None:
    low, high = torch.randn(2, 8, 6, 10), torch.randn(2, 8, 3, 5)
    fused = AlignedAggregation(8).eval()(low, high)
    torch.testing.assert_close(fused, low + upsample_like(high, low), rtol=1e-5, atol=1e-5)
