"""The gates of GFF: what is closed neither gives nor changes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rtseg.models.gff import GatedFullyFusion  # noqa: E402


def _fusion(*biases: float) -> GatedFullyFusion:
    fusion = GatedFullyFusion(4, len(biases))
    for gate, bias in zip(fusion.gates, biases, strict=True):
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.constant_(gate.bias, bias)
    return fusion


def test_a_closed_level_takes_what_an_open_one_gives() -> None:
    fine, deep = torch.randn(1, 4, 6, 8), torch.randn(1, 4, 3, 4)
    fused_fine, fused_deep = _fusion(-50.0, 50.0)([fine, deep])
    up = torch.nn.functional.interpolate(deep, size=(6, 8), mode="bilinear", align_corners=True)
    torch.testing.assert_close(fused_fine, fine + up)
    torch.testing.assert_close(fused_deep, 2 * deep)


def test_closed_levels_stay_as_they_are() -> None:
    levels = [torch.randn(1, 4, 6, 8), torch.randn(1, 4, 3, 4)]
    for before, after in zip(levels, _fusion(-50.0, -50.0)(levels), strict=True):
        torch.testing.assert_close(after, before)
