"""Attention in SCTNet and FANet, and SwiftNet's grids, against their plain formulas."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rtseg.models.context import adaptive_average  # noqa: E402
from rtseg.models.fanet import FastAttention  # noqa: E402
from rtseg.models.sctnet import HEADS, KEYS, _double_normalised  # noqa: E402


def test_double_normalisation_is_softmax_then_shares_of_a_head() -> None:
    x = torch.randn(2, KEYS, 6, 7)
    softmax = torch.softmax(x.reshape(2, HEADS, KEYS // HEADS, 42), dim=3)
    expected = softmax / softmax.sum(dim=2, keepdim=True)
    torch.testing.assert_close(_double_normalised(x), expected.reshape(x.shape))


def test_fast_attention_is_the_mean_of_values_by_cosine() -> None:
    attention = FastAttention(16).eval()
    attention.out = torch.nn.Identity()
    x = torch.randn(2, 16, 5, 6)
    with torch.inference_mode():
        queries, keys, values = (
            f(x).flatten(2) for f in (attention.query, attention.key, attention.value)
        )
        cosine = torch.nn.functional.cosine_similarity(
            queries[:, :, :, None], keys[:, :, None, :], dim=1
        )  # (N, h w, h w), queries by keys
        mean = values @ cosine.transpose(1, 2) / 30
        torch.testing.assert_close(attention(x), x + mean.reshape(x.shape))


@pytest.mark.parametrize("cells", [(2, 3), (8, 16), (1, 1)])
def test_averages_over_a_grid_that_is_not_square(cells: tuple[int, int]) -> None:
    x = torch.randn(1, 3, 9, 14)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, cells)
    torch.testing.assert_close(adaptive_average(x, cells), expected)
