"""SegNet's pooling and unpooling against PyTorch's own, which do not export."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from rtseg.models.resampling import max_pool_with_place, max_unpool  # noqa: E402


@pytest.mark.parametrize("levels", [2, 1000])
@pytest.mark.parametrize("size", [(2, 2), (6, 10), (32, 8)])
def test_values_return_to_where_the_maximum_was(size: tuple[int, int], levels: int) -> None:
    # With two levels most windows have several maxima: the first counts, as in PyTorch.
    x = torch.randint(levels, (2, 3, *size)).float()
    pooled, place = max_pool_with_place(x)
    expected, indices = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(pooled, expected)
    values = torch.randn_like(pooled)
    assert torch.equal(max_unpool(values, place), F.max_unpool2d(values, indices, [2, 2]))


def test_the_gradient_goes_to_the_maximum_alone() -> None:
    x = torch.randn(1, 2, 4, 6, requires_grad=True)
    pooled, place = max_pool_with_place(x)
    got = torch.autograd.grad(max_unpool(pooled, place).sum(), x)
    expected = torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)
    torch.testing.assert_close(got, expected)
