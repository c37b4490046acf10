"""The model file: the contract's round trip, and every way a file can be wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtseg.artifact import (
    Contract,
    ModelFile,
    find_model,
    load_model,
    read_classes,
    shipped,
)
from rtseg.errors import ModelError
from rtseg.frame import ClassTable, default_palette

WriteOnnx = Callable[..., Path]


def refused(*arguments: Any, **options: Any) -> str:
    """The one line that `load_model` refuses with."""
    with pytest.raises(ModelError) as caught:
        load_model(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_contract_survives_the_file(write_onnx: WriteOnnx, contract: Contract) -> None:
    full = dataclasses.replace(
        contract,
        align_corners=True,
        family="sfnet_lite",
        options={"width": 8},
        trained_on="camvid",
        measured={"data": "camvid", "split": "val", "size": "384x480", "miou": 0.5},
        facts={"params": 12},
        licence="Apache-2.0",
    )
    path = write_onnx(metadata=full.to_metadata())
    file = load_model(str(path))
    assert file.contract == full
    assert file.num_classes == 3
    assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_metadata_is_json_under_one_prefix(contract: Contract) -> None:
    metadata = contract.to_metadata()
    assert all(key.startswith("rtseg.") for key in metadata)
    assert json.loads(metadata["rtseg.colour_order"]) == "RGB"
    assert json.loads(metadata["rtseg.mean"]) == [0.0, 0.0, 0.0]
    assert json.loads(metadata["rtseg.classes"])["names"] == ["road", "car", "sky"]


def test_an_exported_file_reads_the_same_with_onnx(tiny: ModelFile) -> None:
    import onnx

    model = onnx.load(str(tiny.path))
    metadata = {p.key: p.value for p in model.metadata_props}
    assert Contract.from_metadata(metadata) == tiny.contract
    assert tiny.num_classes == len(tiny.contract.classes) == 11


@pytest.mark.parametrize("name", shipped() or ["none"])
def test_shipped_models_are_found_by_name(name: str) -> None:
    if name == "none":
        pytest.skip("no model is shipped")
    file = load_model(name)
    assert file.contract.name == name
    assert find_model(str(file.path)) == file.path


def test_an_unknown_name_lists_the_shipped_ones(tmp_path: Path) -> None:
    message = refused("street-xxl")
    assert all(name in message for name in ("unknown model 'street-xxl'", *shipped()))
    assert "no such model file" in refused(str(tmp_path / "none.onnx"))
    assert "no such model file" in refused("none.onnx")


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file(tiny: ModelFile, tmp_path: Path, keep: float) -> None:
    data = tiny.path.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(keep * len(data))])
    assert "not an ONNX model, or truncated: copy or export it again" in refused(str(path))


@pytest.mark.parametrize(
    "content", [b"hello, world\n", b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04"]
)
def test_a_file_of_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    assert "not an ONNX model" in refused(str(path))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200))
def test_random_bytes_never_crash(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(content)
    refused(str(path))


def test_without_a_contract(write_onnx: WriteOnnx) -> None:
    message = refused(str(write_onnx()))
    assert "no preprocess contract" in message
    assert "--classes FILE, --mean and --std" in message


def test_classes_mean_and_std_stand_in(write_onnx: WriteOnnx, tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("road\n\ncar\n sky \n")
    path = write_onnx(declare_output=False)
    file = load_model(str(path), classes_file=classes, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert file.contract.classes.names == ("road", "car", "sky")
    assert file.contract.mean == (0.1, 0.2, 0.3)
    assert file.contract.std == (0.4, 0.5, 0.6)
    assert file.num_classes == 0  # the graph leaves it open
    assert "no preprocess contract" in refused(str(path), classes_file=classes)


def test_a_class_table_of_another_length(write_onnx: WriteOnnx, contract: Contract) -> None:
    path = write_onnx(channels=5, metadata=contract.to_metadata())
    assert "the graph has 5 output channels, the class table 3 names" in refused(str(path))


def test_a_wrong_rank(write_onnx: WriteOnnx, contract: Contract) -> None:
    path = write_onnx(rank=3, metadata=contract.to_metadata())
    message = refused(str(path))
    assert "rank 4, got rank 3" in message
    assert "without argmax" in message


def test_too_many_classes(write_onnx: WriteOnnx, contract: Contract) -> None:
    path = write_onnx(channels=256, metadata=contract.to_metadata())
    assert "256 classes: at most 255" in refused(str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rtseg.mean", "[0, 0]"),
        ("rtseg.mean", "not json"),
        ("rtseg.std", "[1, 1, 0]"),
        ("rtseg.std", '"abc"'),
        ("rtseg.classes", "[1, 2]"),
        ("rtseg.classes", '{"palette_rgb": []}'),
        ("rtseg.classes", '{"names": ["a", "a", "b"], "palette_rgb": [], "ignore_index": 255}'),
        ("rtseg.input_hw", "[0, 3]"),
        ("rtseg.input_multiple", "0"),
    ],
)
def test_a_broken_contract(write_onnx: WriteOnnx, contract: Contract, key: str, value: str) -> None:
    path = write_onnx(metadata={**contract.to_metadata(), key: value})
    assert "unusable preprocess contract" in refused(str(path))


def test_class_tables_as_text_and_json(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text('{"names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore_index": 9}')
    assert read_classes(path) == ClassTable(("a", "b"), ((1, 2, 3), (4, 5, 6)), 9)
    path.write_text('{"names": ["a", "b"]}')
    assert read_classes(path) == ClassTable(("a", "b"), default_palette(2))
    for bad in ("", "{", '{"names": 3}', '{"palette": []}', "a\na\n"):
        path.write_text(bad)
        with pytest.raises(ModelError, match="unusable class table"):
            read_classes(path)
    with pytest.raises(ModelError, match="cannot read the class table"):
        read_classes(tmp_path / "none.txt")


def test_default_colours_differ() -> None:
    palette = default_palette(255)
    assert len(set(palette)) == 255
    assert (0, 0, 0) not in palette
    assert palette[0] == (128, 0, 0)
