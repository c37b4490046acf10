"""torchvision's FCN and DeepLab v3: its parameter counts, and its state dicts by its keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from _resnet_names import published_key  # noqa: E402

from rtseg import plugins  # noqa: E402
from rtseg.importing import import_checkpoint  # noqa: E402
from rtseg.models._catalogue import build  # noqa: E402
from rtseg.models.layers import Network  # noqa: E402

PUBLISHED = {
    # "num_params" beside each model's weights, torchvision 0.20, with 21 classes and auxiliary head
    ("fcn", "fcn-r50"): 35_322_218,
    ("deeplab_v3", "deeplab-v3-r50"): 42_004_074,
    ("deeplab_v3", "deeplab-v3-r101"): 60_996_202,
}
CLASSES = 21


def network(family: str, name: str) -> Network:
    options = plugins.load("rtseg.models", family).VARIANTS[name].options
    return build(family, CLASSES, options)


def torchvision_key(family: str, ours: str) -> str:
    if ours.startswith("backbone."):
        return published_key(ours)
    key = re.sub(r"^auxiliary\.(?:0\.)?2\.", "aux_classifier.4.", ours)
    key = re.sub(r"^auxiliary\.0\.", "aux_classifier.", key)
    if family == "fcn":
        return re.sub(r"^head\.0\.", "classifier.", re.sub(r"^head\.2\.", "classifier.4.", key))
    key = re.sub(r"^context\.branches\.", "classifier.0.convs.", key)
    key = re.sub(r"^context\.project\.", "classifier.0.project.", key)
    key = re.sub(r"^context\.pooled\.0\.", "classifier.0.convs.4.1.", key)
    key = re.sub(r"^context\.pooled\.1\.", "classifier.0.convs.4.2.", key)
    key = re.sub(r"^head\.1\.", "classifier.4.", key)
    key = re.sub(r"^head\.0\.1\.", "classifier.2.", key)
    return re.sub(r"^head\.0\.0\.", "classifier.1.", key)


@pytest.mark.parametrize(("family", "name"), PUBLISHED)
def test_it_has_torchvision_s_number_of_parameters(family: str, name: str) -> None:
    with torch.device("meta"):
        parameters = network(family, name).parameters()
    assert sum(p.numel() for p in parameters) == PUBLISHED[family, name]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [n for n in PUBLISHED if n[1].endswith("r50")])
def test_torchvision_s_state_dict_is_read(family: str, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = network(family, name).eval()
    state = {torchvision_key(family, k): v for k, v in original.state_dict().items()}
    assert {"backbone.conv1.weight", "backbone.bn1.running_var", "aux_classifier.4.bias"} < set(
        state
    )
    assert {"backbone.layer1.0.downsample.0.weight", "backbone.layer4.2.bn3.bias"} < set(state)
    assert "classifier.4.weight" in state
    path = tmp_path / "torchvision.pth"
    torch.save(state, path)
    result = import_checkpoint(path)
    path.unlink()
    assert (result.name, result.num_classes, result.release.source) == (
        name,
        CLASSES,
        "torchvision",
    )
    assert result.dropped == tuple(k for k in state if k.startswith("aux_classifier."))
    images = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        assert torch.equal(result.network(images), original(images))


def test_the_dilations_are_torchvision_s() -> None:
    with torch.device("meta"):
        backbone: Any = network("deeplab_v3", "deeplab-v3-r50").backbone
    dilations = [[block.conv2[0].dilation[0] for block in stage] for stage in backbone.stages]
    assert dilations == [[1, 1, 1], [1, 1, 1, 1], [1, 2, 2, 2, 2, 2], [2, 4, 4]]
