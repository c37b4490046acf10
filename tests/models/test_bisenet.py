"""Published keys of BiSeNet and STDC-Seg that no fixture covers, and the ones that are left out."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rtseg.importing import translate  # noqa: E402
from rtseg.models import bisenetv1, bisenetv2, stdc_seg  # noqa: E402

KEYS = [
    (bisenetv1, "cp.resnet.bn1.running_mean", "backbone.stem.0.1.running_mean"),
    (bisenetv1, "cp.resnet.layer4.0.conv2.weight", "backbone.stages.3.0.conv2.0.weight"),
    (bisenetv1, "cp.resnet.layer2.0.downsample.1.bias", "backbone.stages.1.0.shortcut.1.bias"),
    (bisenetv1, "cp.arm16.conv.conv.weight", "context.arm16.conv.0.weight"),
    (bisenetv1, "cp.arm32.bn_atten.weight", "context.arm32.attention.1.weight"),
    (bisenetv1, "cp.conv_avg.bn.bias", "context.average.1.bias"),
    (bisenetv1, "sp.conv_out.conv.weight", "spatial.conv_out.0.weight"),
    (bisenetv1, "ffm.convblk.conv.weight", "fusion.conv.0.weight"),
    (bisenetv1, "ffm.conv.weight", "fusion.attention.0.weight"),
    (bisenetv1, "ffm.bn.running_var", "fusion.attention.1.running_var"),
    (bisenetv1, "ffm.conv1.weight", "fusion.attention.0.weight"),
    (bisenetv1, "ffm.conv2.weight", "fusion.attention.2.weight"),
    (bisenetv1, "conv_out.conv.bn.weight", "head.0.1.weight"),
    (bisenetv1, "conv_out.conv_out.bias", "head.2.bias"),
    (bisenetv2, "head.conv_out.weight", "head.2.weight"),
    (bisenetv2, "head.conv_out.1.weight", "head.2.weight"),
    (stdc_seg, "cp.backbone.x32.0.13.avd_layer.1.bias", "backbone.layers.13.avd_layer.1.bias"),
]


@pytest.mark.parametrize(("family", "published", "ours"), KEYS)
def test_published_keys_are_ours(family: object, published: str, ours: str) -> None:
    (release,) = family.RELEASES  # type: ignore[attr-defined]
    assert list(translate({published: torch.zeros(1)}, release)[0]) == [ours]


@pytest.mark.parametrize("newer", [True, False])
def test_attention_and_bias_tell_the_editions_apart(newer: bool) -> None:
    options = bisenetv1.VARIANTS["bisenetv1-r18"].all_options()[0 if newer else 1]
    with torch.device("meta"):
        network = bisenetv1.build(19, **options)
    assert ("fusion.attention.1.weight" in network.state_dict()) is newer
    assert ("head.2.bias" in network.state_dict()) is newer
    assert network.align_corners is not newer


def test_heads_that_are_not_in_the_output_are_left_out() -> None:
    keys = ["conv_out16.conv_out.weight", "conv_out_sp8.conv.bn.bias", "cp.backbone.fc.weight"]
    state, dropped = translate({k: torch.zeros(1) for k in keys}, stdc_seg.RELEASES[0])
    assert not state
    assert list(dropped) == keys
