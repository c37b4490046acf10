"""What the contract, which goes through the lightest variants, leaves out of DDRNet and PIDNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtseg import plugins  # noqa: E402
from rtseg.artifact import Contract, load_model  # noqa: E402
from rtseg.data import class_table  # noqa: E402
from rtseg.engine import open_engine  # noqa: E402
from rtseg.export import export_onnx  # noqa: E402
from rtseg.importing import translate  # noqa: E402
from rtseg.models._catalogue import build  # noqa: E402
from rtseg.models.backbones.dual_resolution import DeepAggregation  # noqa: E402

CLASSES = class_table("synth:seed=5,frames=4,size=96x128")
NARROW = {"width": 16, "context_width": 16, "head_width": 24}
DEEPER: dict[str, dict[str, Any]] = {
    "pidnet": {"fine_depth": 3, "coarse_depth": 4, "light": False, **NARROW},
    "ddrnet": {"depths": (3, 4, 6, 3), "exchanges": 2, **NARROW},
}
PUBLISHED = {
    "pidnet": (
        "conv1.3.bias", "layer2.2.bn1.weight", "layer5.1.conv3.weight", "layer3_d.conv2.weight",
        "layer4_d.conv1.weight", "layer5_d.0.downsample.1.bias", "pag4.f_y.1.running_var",
        "diff4.0.weight", "spp.process4.2.weight", "spp.scale0.2.weight", "dfm.conv.0.bias",
        "dfm.conv.2.weight", "final_layer.bn1.weight", "final_layer.conv1.weight",
    ),
    "ddrnet": (
        "layer3_1.0.downsample.0.weight", "layer3_2_.2.conv2.weight", "layer4_.2.bn2.bias",
        "compression3_2.0.weight", "down3_1.1.bias", "down4.4.weight", "layer5_.0.conv3.weight",
        "spp.process1.0.weight", "spp.scale3.3.weight", "final_layer.bn2.running_mean",
    ),
}  # fmt: skip
"""Keys of the authors' PIDNet-L and DDRNet-39, some of which the lighter ones have not."""


@pytest.mark.parametrize("family", DEEPER)
def test_the_rules_hold_for_the_deepest_variant(family: str) -> None:
    (release,) = plugins.load("rtseg.models", family).RELEASES
    state, dropped = translate({k: torch.zeros(1) for k in PUBLISHED[family]}, release)
    network = build(family, 19, DEEPER[family])
    assert not dropped
    assert set(state) <= set(network.state_dict())
    assert release.classifier in network.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("family", DEEPER)
def test_the_deepest_variant_exports(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(family, len(CLASSES), DEEPER[family])
    for outputs in (network.train()(torch.randn(2, 3, 64, 96)) for _ in range(2)):
        channels = [len(CLASSES)] * 2 + [1] * network.boundary_head
        assert [o.shape for o in outputs] == [(2, c, 8, 12) for c in channels]
    contract = Contract(
        family, CLASSES, (0.5,) * 3, (0.25,) * 3, (64, 96), network.input_multiple,
        network.output_stride, network.align_corners, family, DEEPER[family],
    )  # fmt: skip
    path = tmp_path / f"{family}.onnx"
    assert export_onnx(network, contract, path, half=False) < 1e-3
    # Weights are read back by name: none may have been folded on the way.
    images = torch.randn(1, 3, 96, 64)
    runner = open_engine(load_model(str(path)), "eager", precision="fp32")
    with torch.inference_mode():
        expected = network(images).numpy()
    assert np.linalg.norm(runner.infer(images.numpy()) - expected) < 1e-3 * np.linalg.norm(expected)
    runner.close()


def test_the_mean_is_spread_as_up_sampling_would() -> None:
    pyramid = DeepAggregation(8, 4, 6).eval()
    x = torch.randn(2, 8, 3, 5)
    _, (*pooled, mean) = pyramid.levels(x)
    assert [level.shape for level in pooled] == [(2, 4, 3, 5)] * 3
    spread = torch.nn.functional.interpolate(mean, size=(3, 5), mode="bilinear")
    torch.testing.assert_close(mean.expand_as(spread), spread)
