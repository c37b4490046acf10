"""The speed reference is the network that its name says; and its stem came without new keys."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rtseg.export import gmacs  # noqa: E402
from rtseg.models import fpn  # noqa: E402
from rtseg.models.backbones.resnet import ResNet  # noqa: E402


def test_the_reference_is_resnet_18_with_fpn_128_at_9_2gmacs() -> None:
    network = fpn.build(11)
    assert gmacs(network, (384, 480)) == pytest.approx(9.2, abs=0.1)
    backbone = sum(p.numel() for p in network.backbone.parameters())
    # He et al.'s ResNet-18 has 11.69 M, of which 0.513 M in its classifier
    assert backbone == 11_689_512 - 513_000
    assert {c.out_channels for c in network.laterals} == {128}


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (67, 30)])
def test_the_plain_stem_has_the_strides_of_the_other(size: tuple[int, int]) -> None:
    images = torch.zeros(1, 3, *size)
    plain, deep = ResNet((8,), (8, 8, 8, 8)).eval(), ResNet((4, 8), (8, 8, 8, 8)).eval()
    with torch.inference_mode():
        assert [x.shape for x in plain(images)] == [x.shape for x in deep(images)]


def test_the_stem_of_two_convolutions_keeps_its_keys() -> None:
    keys = {k for k in ResNet().state_dict() if k.startswith("stem.") and k.endswith("0.weight")}
    assert keys == {"stem.0.0.weight", "stem.1.0.weight"}
