"""SFNet and SFNet-Lite beyond the contract: flow, and what their releases have at other depths."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rtseg import plugins  # noqa: E402
from rtseg.errors import ConfigError  # noqa: E402
from rtseg.importing import translate  # noqa: E402
from rtseg.models import _catalogue  # noqa: E402
from rtseg.models.backbones.resnet import ResNet  # noqa: E402
from rtseg.models.backbones.semantic_flow import released_backbone  # noqa: E402
from rtseg.models.resampling import flow_warp, upsample_like  # noqa: E402


def test_no_flow_is_bilinear_upsampling() -> None:
    features, low = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 7, 11)
    warped = flow_warp(features, torch.zeros(2, 2, 7, 11))
    torch.testing.assert_close(warped, upsample_like(features, low), rtol=1e-5, atol=1e-5)


def test_a_map_of_one_pixel_is_warped_too() -> None:
    features = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(flow_warp(features, torch.zeros(1, 2, 1, 1)), features)


@pytest.mark.parametrize("name", ["r18", "r50"])
def test_released_resnets_are_dilated_beside_their_strides(name: str) -> None:
    backbone = released_backbone(name)
    assert isinstance(backbone, ResNet)
    for stage, dilation in zip(backbone.stages, (1, 1, 2, 4), strict=True):
        convs = [c for name, c in stage.named_modules() if name.endswith("conv2.0")]
        assert convs
        assert all(c.dilation == (dilation, dilation) for c in convs)
    shapes = [tuple(x.shape[2:]) for x in backbone.eval()(torch.zeros(1, 3, 64, 96))]
    assert shapes == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of r18"):
        released_backbone("r19")


@pytest.mark.parametrize(
    ("network", "published", "ours"),
    [
        ("sfnet-r101", "layer3.22.bn3.bias", "backbone.stages.2.22.conv3.1.bias"),
        ("sfnet-r50", "layer1.0.downsample.0.weight", "backbone.stages.0.0.shortcut.0.weight"),
        ("sfnet-r50", "layer0.1.running_var", "backbone.stem.2.1.running_var"),
        ("sfnet-dfnet2", "backbone.stage3_1.9.bn2.bias", "backbone.stages.3_1.9.conv2.1.bias"),
        ("sfnet-stdc2", "backbone.x8.0.2.avd_layer.1.bias", "backbone.layers.2.avd_layer.1.bias"),
        ("sfnet-stdc2", "head.fpn_out_align.2.flow_make.weight", "align.2.flow.weight"),
        ("sfnet-lite-r50", "head.fpn_in.1.0.weight", "lateral_coarse.0.weight"),
        ("sfnet-lite-stdc2", "head.ppm.stages.3.2.weight", "context.0.branches.3.1.weight"),
    ],
)  # fmt: skip
def test_the_rules_hold_for_every_depth(network: str, published: str, ours: str) -> None:
    family = "sfnet_lite" if "lite" in network else "sfnet"
    module = plugins.load("rtseg.models", family)
    (release,) = module.RELEASES
    state, _ = translate({published: torch.zeros(1)}, release)
    assert list(state) == [ours]
    with torch.device("meta"):
        built = _catalogue.build(family, 19, module.VARIANTS[network].options)
    assert ours in built.state_dict()
