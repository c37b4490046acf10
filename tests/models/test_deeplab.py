"""DeepLab's options: strides, rates and encoders."""

from __future__ import annotations

from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")

from rtseg.errors import ConfigError  # noqa: E402
from rtseg.models import deeplab_v2, deeplab_v3, deeplab_v3plus  # noqa: E402


@pytest.mark.parametrize(("stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18])])
def test_the_rates_follow_the_stride(stride: Literal[8, 16], rates: list[int]) -> None:
    with torch.device("meta"):
        network: Any = deeplab_v3.build(3, output_stride=stride)
        (logits, auxiliary) = network.train()(torch.empty(2, 3, 64, 96))
    assert logits.shape == auxiliary.shape == (2, 3, 64 // stride, 96 // stride)
    assert [branch[0].dilation[0] for branch in network.context.branches] == [1, *rates]


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("backbone", ["mobilenetv2", "resnet18"])
def test_the_decoder_is_at_stride_4(backbone: str, stride: Literal[8, 16]) -> None:
    with torch.device("meta"):
        network = deeplab_v3plus.build(3, backbone=backbone, output_stride=stride).eval()
        images = torch.empty(1, 3, 64, 96)
        assert network(images).shape == (1, 3, 16, 24)
        assert network.backbone(images)[-1].shape[2:] == (64 // stride, 96 // stride)


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="mobilenetv2, resnet18"):
        deeplab_v3plus.build(3, backbone="xception")


def test_version_2_has_the_parameters_of_its_layers() -> None:
    # ResNet-101 without classifier, and four 3x3 convolutions from 2048 channels to 21 classes
    with torch.device("meta"):
        network = deeplab_v2.build(21, depth=101)
    own = 44_549_160 - 2_049_000 + 4 * (2048 * 9 * 21 + 21)
    assert sum(p.numel() for p in network.parameters()) == own
