"""Export: one file with dynamic sizes, half-size weights and the whole contract."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from rtseg import plugins  # noqa: E402
from rtseg.artifact import ModelFile, find_model, load_model, shipped  # noqa: E402
from rtseg.errors import ConfigError, ModelError  # noqa: E402
from rtseg.export import export_checkpoint  # noqa: E402
from rtseg.models._weights import load_weights, save_weights  # noqa: E402
from rtseg.recipe import Recipe  # noqa: E402


@pytest.fixture
def graph(tiny: ModelFile) -> Any:
    return onnx.load(str(tiny.path)).graph


@pytest.fixture
def network(tiny_recipe: Recipe, tiny_checkpoint: Path) -> Any:
    """The tiny network in eval mode, not exported."""
    built = plugins.load("rtseg.models", "sfnet_lite").build(11, **tiny_recipe.model.options)
    load_weights(built, tiny_checkpoint)
    return built.eval()


def dims(value: Any) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_input_and_output(graph: Any) -> None:
    assert [i.name for i in graph.input] == ["image"]
    assert [o.name for o in graph.output] == ["logits"]
    batch, channels, height, width = dims(graph.input[0])
    assert channels == 3
    assert all(isinstance(d, str) for d in (batch, height, width)), "N, H and W are dynamic"
    assert dims(graph.output[0])[1] == 11
    kind = onnx.TensorProto.FLOAT
    assert graph.input[0].type.tensor_type.elem_type == kind
    assert graph.output[0].type.tensor_type.elem_type == kind


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 96), (2, 96, 32), (1, 160, 192)])
def test_any_size_gives_what_torch_gives(
    tiny: ModelFile, network: Any, batch: int, height: int, width: int
) -> None:
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(images).numpy()
    session = onnxruntime.InferenceSession(str(tiny.path))
    got = session.run(["logits"], {"image": images.numpy()})[0]
    assert got.shape == expected.shape == (batch, 11, height // 4, width // 4)
    # float16 weights have 11 bits: a few per mille after some twenty layers
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 5e-3


def test_weights_are_stored_as_half_and_training_parts_not_at_all(graph: Any) -> None:
    large = [t for t in graph.initializer if np.prod(t.dims) >= 32 and t.data_type in (1, 10)]
    assert large
    assert all(t.data_type == onnx.TensorProto.FLOAT16 for t in large)
    assert not [t.name for t in graph.initializer if t.name.startswith("auxiliary")]
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("name", ["tiny", *shipped()])
def test_nothing_tells_where_it_was_exported(tiny: ModelFile, name: str) -> None:
    """PyTorch writes a stack trace into every node."""
    data = tiny.path.read_bytes() if name == "tiny" else find_model(name).read_bytes()
    for word in (b"stack_trace", b'File "', b"site-packages", str(Path.home()).encode() + b"/"):
        assert word not in data


def test_the_contract_says_what_the_recipe_said(tiny: ModelFile, tiny_recipe: Recipe) -> None:
    contract = tiny.contract
    data = plugins.load("rtseg.data", "camvid")
    network = plugins.load("rtseg.models", "sfnet_lite").SFNetLite
    assert contract.name == "tiny"
    assert contract.classes.names == data.CLASSES
    assert contract.classes.ignore_index == data.IGNORE_INDEX
    assert contract.input_hw == tiny_recipe.data.input_hw
    assert contract.input_multiple == network.input_multiple
    assert contract.output_stride == network.output_stride
    assert contract.align_corners is network.align_corners
    assert contract.family == "sfnet_lite"
    assert contract.trained_on == "camvid"
    assert contract.licence == "Apache-2.0"


def test_the_facts_count_what_the_file_holds(tiny: ModelFile, network: Any) -> None:
    kept = {k: p for k, p in network.named_parameters() if not k.startswith("auxiliary")}
    assert tiny.contract.facts["params"] == sum(p.numel() for p in kept.values())
    assert tiny.contract.facts["gmacs"] >= 0


def test_measured_figures_come_from_the_checkpoint(
    tiny_recipe: Recipe, network: Any, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "best.safetensors"
    save_weights(network.state_dict(), checkpoint, step=7, miou=0.61234)
    export_checkpoint(tiny_recipe, checkpoint, tmp_path / "tiny.onnx")
    height, width = tiny_recipe.data.input_hw
    assert load_model(str(tmp_path / "tiny.onnx")).contract.measured == {
        "data": "camvid",
        "split": "val",
        "size": f"{height}x{width}",
        "miou": 0.6123,
    }


def test_a_graph_that_is_not_the_network_is_not_written(
    tiny: ModelFile, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtseg import export

    graph = onnx.load(str(tiny.path))
    del graph.metadata_props[:]
    for tensor in graph.graph.initializer:
        if tensor.name == "head.2.bias":
            values = onnx.numpy_helper.to_array(tensor) + 10
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    monkeypatch.setattr(export, "_to_onnx", lambda network, input_hw: graph)
    path = tmp_path / "wrong.onnx"
    with pytest.raises(ModelError, match="differs from the network by"):
        export.export_onnx(network, tiny.contract, path, half=False)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_network(
    tiny_recipe: Recipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from rtseg.export import export_checkpoint

    options = {**tiny_recipe.model.options, "width": 16}
    model = dataclasses.replace(tiny_recipe.model, options=options)
    other = dataclasses.replace(tiny_recipe, model=model)
    with pytest.raises(ConfigError, match="cannot load this checkpoint") as caught:
        export_checkpoint(other, tiny_checkpoint, tmp_path / "out.onnx")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot load this checkpoint"):
        export_checkpoint(tiny_recipe, tmp_path / "none.safetensors", tmp_path / "out.onnx")
