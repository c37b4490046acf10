"""The light networks, HRNet and SegFormer beyond the contract: backbones, releases, folding."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from rtseg import plugins  # noqa: E402
from rtseg.errors import ConfigError  # noqa: E402
from rtseg.importing import translate  # noqa: E402
from rtseg.models import _catalogue  # noqa: E402
from rtseg.models.backbones.efficientnet_lite import efficientnet_lite0  # noqa: E402
from rtseg.models.backbones.mobilenet import MobileNetV3Large, mobilenet_v2  # noqa: E402
from rtseg.models.layers import Network, fuse_batch_norm  # noqa: E402


def network(name: str, num_classes: int = 19) -> Network:
    family = next(f for f in plugins.names("rtseg.models") if name in variants(f))
    return _catalogue.build(family, num_classes, variants(family)[name].options)


def variants(family: str):  # type: ignore[no-untyped-def]
    return plugins.load("rtseg.models", family).VARIANTS


@pytest.mark.parametrize(
    ("make", "published", "classifier"),
    [
        # torchvision's mobilenet_v2 and mobilenet_v3_large, the release of EfficientNet-Lite0;
        # and what classifies ImageNet in them, which segmentation leaves out.
        (mobilenet_v2, 3_504_872, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
        (MobileNetV3Large, 5_483_032, 960 * 1280 + 1280 + 1280 * 1000 + 1000),
        (efficientnet_lite0, 4_652_008, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
    ],
)
def test_a_backbone_has_the_published_parameters(
    make: Callable[[], nn.Module], published: int, classifier: int
) -> None:
    with torch.device("meta"):
        backbone = make()
    assert sum(p.numel() for p in backbone.parameters()) == published - classifier


@pytest.mark.parametrize(
    ("stride", "dilations", "sizes"),
    [(32, {1}, (25, 13, 7, 4)), (16, {1, 2}, (25, 13, 7, 7)), (8, {1, 2, 4}, (25, 13, 13, 13))],
)
@pytest.mark.parametrize("make", [mobilenet_v2, efficientnet_lite0])
def test_dilation_takes_the_place_of_strides(
    make: Callable[..., nn.Module], stride: int, dilations: set[int], sizes: tuple[int, ...]
) -> None:
    backbone = make(output_stride=stride).eval()
    assert tuple(x.shape[2] for x in backbone(torch.zeros(1, 3, 97, 97))) == sizes
    assert {m.dilation[0] for m in backbone.modules() if isinstance(m, nn.Conv2d)} == dilations


@pytest.mark.parametrize(
    ("name", "published", "ours"),
    [
        (
            "lraspp-mobilenetv3-large", "backbone.4.block.2.fc1.bias",
            "backbone.layers.4.block.2.fc1.bias",
        ),
        ("lraspp-mobilenetv3-large", "backbone.16.0.weight", "backbone.layers.16.0.weight"),
        ("lraspp-mobilenetv3-large", "classifier.scale.1.weight", "weigh.weight"),
        ("lraspp-mobilenetv3-large", "classifier.cbr.1.running_mean", "reduce.1.running_mean"),
        ("lraspp-mobilenetv3-large", "classifier.high_classifier.bias", "high_classifier.bias"),
        ("erfnet", "encoder.initial_block.bn.weight", "encoder.initial_block.bn.weight"),
        ("erfnet", "encoder.layers.14.conv3x1_2.bias", "encoder.layers.14.tall2.bias"),
        ("erfnet", "encoder.layers.14.bn1.running_var", "encoder.layers.14.wide1.1.running_var"),
        ("erfnet", "decoder.layers.3.conv.weight", "decoder.3.0.weight"),
        ("erfnet", "decoder.layers.5.conv1x3_1.weight", "decoder.5.wide1.0.weight"),
        ("erfnet", "decoder.output_conv.weight", "classifier.weight"),
        ("hrnetv2-w48", "bn2.running_var", "backbone.stem2.1.running_var"),
        ("hrnetv2-w48", "layer1.0.downsample.0.weight", "backbone.layer1.0.shortcut.0.weight"),
        ("hrnetv2-w48", "transition1.0.0.weight", "backbone.transition1.0.0.weight"),
        ("hrnetv2-w48", "transition3.3.0.1.bias", "backbone.transition3.3.1.bias"),
        (
            "hrnetv2-w48", "stage4.2.branches.3.3.bn2.bias",
            "backbone.stage4.2.branches.3.3.conv2.1.bias",
        ),
        (
            "hrnetv2-w48", "stage3.3.fuse_layers.2.0.1.0.weight",
            "backbone.stage3.3.fuse_layers.2.0.1.0.weight",
        ),
        ("hrnetv2-w48", "last_layer.1.weight", "head.0.1.weight"),
        ("hrnetv2-w48", "last_layer.3.bias", "head.1.bias"),
        (
            "segformer-b2", "segformer.encoder.block.2.5.attention.self.layer_norm.weight",
            "backbone.stages.2.5.attention.reduce_norm.weight",
        ),
        (
            "segformer-b2", "segformer.encoder.block.0.2.mlp.dwconv.dwconv.bias",
            "backbone.stages.0.2.mlp.depthwise.bias",
        ),
        (
            "segformer-b2", "segformer.encoder.patch_embeddings.3.layer_norm.bias",
            "backbone.embeddings.3.norm.bias",
        ),
        ("segformer-b2", "segformer.encoder.layer_norm.1.weight", "backbone.norms.1.weight"),
        ("segformer-b2", "decode_head.linear_c.2.proj.weight", "head.levels.2.weight"),
        ("segformer-b2", "decode_head.batch_norm.running_mean", "head.norm.running_mean"),
    ],
)  # fmt: skip
def test_published_keys_become_ours(name: str, published: str, ours: str) -> None:
    family = next(f for f in plugins.names("rtseg.models") if name in variants(f))
    (release,) = plugins.load("rtseg.models", family).RELEASES
    state, _ = translate({published: torch.zeros(1)}, release)
    assert list(state) == [ours]
    with torch.device("meta"):
        own = network(name).state_dict()
    assert {ours, release.classifier} <= set(own)


@pytest.mark.parametrize("name", ["enet", "erfnet"])
def test_sizes_are_rounded_up(name: str) -> None:
    built = network(name, 3).eval()
    with torch.inference_mode():
        assert built(torch.zeros(1, 3, 17, 24)).shape == (1, 3, 24, 24)


def test_segformers_folded_decoder_computes_the_same() -> None:
    torch.manual_seed(0)
    built = network("segformer-b0", 4)
    for tensor in built.get_submodule("head.norm").state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    images = torch.randn(2, 3, 65, 97)
    with torch.inference_mode():
        before = built.eval()(images)
        folded = fuse_batch_norm(copy.deepcopy(built))
        torch.testing.assert_close(folded(images), before, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fuse_batch_norm(folded)(images), before, rtol=1e-4, atol=1e-5)
    assert not any("levels" in key for key in folded.state_dict())
    assert _catalogue.parameters(folded) < 0.95 * _catalogue.parameters(built)


def test_semantic_fpn_over_efficientnet_lite() -> None:
    built = network("fpn-efficientnet-lite0", 3).eval()
    with torch.inference_mode():
        assert built(torch.zeros(1, 3, 65, 97)).shape == (1, 3, 17, 25)
    with pytest.raises(ConfigError, match="resnet or efficientnet-lite0, not 'vgg'"):
        _catalogue.build("fpn", 3, {"backbone": "vgg"})
