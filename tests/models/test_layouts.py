"""Layouts of convolutions in training."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from rtseg.models.layers import channels_last  # noqa: E402


@pytest.mark.parametrize(
    ("groups", "dilation"),
    [(1, 1), (1, 4), (8, 1), (8, 2), (16, 4), (32, 2), (64, 1), (64, 2), (64, 4)],
)
def test_convolutions_learn_alike_in_bfloat16(groups: int, dilation: int) -> None:
    inner = nn.Conv2d(64, 64, 3, padding=dilation, dilation=dilation, groups=groups, bias=False)
    exact: Any = nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), inner, nn.BatchNorm2d(64))
    fast: Any = channels_last(copy.deepcopy(exact))
    images, slope = torch.randn(4, 3, 40, 48), torch.randn(4, 64, 40, 48)
    exact(images).backward(slope)
    for _ in range(4):
        torch.full((1_000_000,), torch.nan)  # what memory that is left unwritten then holds
        fast.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = fast(images)
        out.float().backward(slope)
        for wanted, found in zip(exact.parameters(), fast.parameters(), strict=True):
            if wanted.ndim == 4:
                assert (found.grad - wanted.grad).norm() < 0.05 * wanted.grad.norm()


def test_weights_survive_the_layout() -> None:
    plain: Any = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), nn.Conv2d(8, 4, 1)
    )
    fast: Any = channels_last(copy.deepcopy(plain))
    assert fast[1].weight.is_contiguous(memory_format=torch.channels_last)
    fast.load_state_dict(plain.state_dict())
    images = torch.randn(1, 8, 9, 11).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(images), plain(images))
