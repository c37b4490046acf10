"""PSPNet: the authors' keys, the number of parameters, and dilation of every block."""

from __future__ import annotations

import re
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from _resnet_names import published_key  # noqa: E402

from rtseg.importing import translate  # noqa: E402
from rtseg.models import pspnet  # noqa: E402
from rtseg.models._catalogue import parameters  # noqa: E402


def released_key(ours: str) -> str:
    if stem := re.match(r"backbone\.stem\.(\d)\.(\d)\.(\w+)", ours):
        return f"layer0.{3 * int(stem[1]) + int(stem[2])}.{stem[3]}"
    if ours.startswith("backbone."):
        return published_key(ours, prefix="")
    if branch := re.match(r"context\.branches\.(\d)\.(\d)\.(\w+)", ours):
        return f"ppm.features.{branch[1]}.{int(branch[2]) + 1}.{branch[3]}"
    if head := re.match(r"(context\.bottleneck|auxiliary\.0)\.(\d)\.(\w+)", ours):
        return f"{'cls' if head[1].startswith('context') else 'aux'}.{head[2]}.{head[3]}"
    return re.sub(r"^auxiliary\.2\.", "aux.4.", re.sub(r"^head\.1\.", "cls.4.", ours))


@pytest.mark.parametrize("depth", [50, 101])
def test_the_authors_state_dict_is_read(depth: int) -> None:
    with torch.device("meta"):
        network = pspnet.build(19, **pspnet.VARIANTS[f"pspnet-r{depth}"].options)
    shapes = {k: v.shape for k, v in network.state_dict().items()}
    published = {released_key(k): v for k, v in network.state_dict().items()}
    assert {"layer0.7.weight", "ppm.features.3.1.weight", "cls.4.bias", "aux.4.bias"} < set(
        published
    )
    state, dropped = translate(published, pspnet.RELEASES[0])
    assert all(k.startswith("aux.") for k in dropped)
    own = {k: v for k, v in shapes.items() if not k.startswith("auxiliary.")}
    assert {k: v.shape for k, v in state.items()} == own


def test_it_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = pspnet.build(19, **pspnet.VARIANTS["pspnet-r101"].options)
    assert parameters(network) == pytest.approx(65.7e6, rel=0.01)  # as in Li et al., SFNet


def test_every_block_of_the_last_stages_is_dilated() -> None:
    with torch.device("meta"):
        backbone: Any = pspnet.build(19, depth=18).backbone
    assert [[b.conv1[0].dilation[0] for b in s] for s in backbone.stages] == [
        [1, 1],
        [1, 1],
        [2, 2],
        [4, 4],
    ]
