"""RefineNet: the released keys of both kinds, their sizes, and the heavy blocks' export."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from _resnet_names import published_key  # noqa: E402

from rtseg.artifact import Contract  # noqa: E402
from rtseg.data import class_table  # noqa: E402
from rtseg.export import export_onnx  # noqa: E402
from rtseg.importing import translate  # noqa: E402
from rtseg.models import refinenet  # noqa: E402

MILLIONS = {
    # Nekrasov et al., BMVC 2018, table 1
    "refinenet-r101": 118,
    "refinenet-lw-r101": 46,
    "refinenet-lw-r50": 27,
}
BLOCKS = {
    "reduce": "p_ims1d2_outl{}_dimred",
    "enter": "adapt_stage{}_b.0",
    "adapt": "adapt_stage{}_b2_joint_varout_dimred",
    "chain": "mflow_conv_g{}_pool.0",
    "leave": "mflow_conv_g{}_b.0",
    "hand_on": "mflow_conv_g{}_b3_joint_varout_dimred",
}
CONVOLUTIONS = {"convs": "outvar_dimred", "first": "conv", "second": "conv_relu_varout_dimred"}


def released_key(ours: str) -> str:
    if ours.startswith("backbone."):
        return published_key(ours, prefix="")
    if ours.startswith("classifier."):
        return ours.replace("classifier", "clf_conv")
    _, level, block, *inside, name = ours.split(".")
    key = BLOCKS[block].format(int(level) + 1)
    if inside:
        kind, index = inside
        key += f".{int(index) + 1}_{CONVOLUTIONS[kind]}"
    return f"{key}.{name}"


@pytest.mark.parametrize("name", MILLIONS)
def test_the_released_state_dict_is_read(name: str) -> None:
    with torch.device("meta"):
        network = refinenet.build(21, **refinenet.VARIANTS[name].options)
    own = network.state_dict()
    published = {released_key(k): v for k, v in own.items()}
    assert {"conv1.weight", "mflow_conv_g1_pool.0.4_outvar_dimred.weight"} < set(published)
    state, dropped = translate(published, refinenet.RELEASES[0])
    assert not dropped
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}
    assert not [k for k in published if re.search(r"levels|stages|#", k)]
    assert sum(p.numel() for p in network.parameters()) // 1_000_000 == MILLIONS[name]


@pytest.mark.slow
def test_the_blocks_of_the_first_refinenet_train_and_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classes = class_table("synth:seed=5,frames=4,size=96x128")
    network = refinenet.build(len(classes), depth=18, light=False, width=8)
    (logits,) = network.train()(torch.randn(2, 3, 64, 64))
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    contract = Contract(
        "refinenet", classes, (0.5,) * 3, (0.25,) * 3, (64, 96), 32, 4, False, "refinenet", {}
    )
    assert export_onnx(network.eval(), contract, tmp_path / "full.onnx", half=False) < 1e-3
