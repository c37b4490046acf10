"""A folder of one's own as a data set: every layout, and every way it can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import _data_trees as trees
import numpy as np
import pytest
from _data_trees import (
    columns,
    labels_of,
    names_of,
    refused,
    write_image,
    write_values,
)

from rtseg.artifact import Contract, read_classes
from rtseg.data import class_table
from rtseg.frame import default_palette

IGNORED = 255


# A folder of one's own


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_folder_without_splits_is_every_split(tmp_path: Path, split: str) -> None:
    trees.folder(tmp_path)
    spec = f"folder:{tmp_path}"
    assert names_of(spec, split) == ["a", "b.1", "c"]
    assert all(np.array_equal(got, columns((0, 1, 255))) for got in labels_of(spec, split))


def test_folder_with_lists(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    (tmp_path / "train.txt").write_text("c\n\na.png\n")
    (tmp_path / "val.txt").write_text("b.1")
    spec = f"folder:{tmp_path}"
    assert names_of(spec) == ["c", "a"]
    assert names_of(spec, "val") == ["b.1"]
    assert f"{tmp_path / 'test.txt'} is missing" in refused(spec, "test")
    (tmp_path / "val.txt").write_text("b\n")
    assert f"{tmp_path / 'val.txt'} lists b, but images/ has no such file" in refused(spec, "val")
    (tmp_path / "val.txt").write_text("a\na.png\n")
    assert "lists a.png twice" in refused(spec, "val")
    (tmp_path / "val.txt").write_text("\n")
    assert "no samples of split 'val'" in refused(spec, "val")
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\x00")
    assert f"{tmp_path / 'val.txt'}: expected names" in refused(spec, "val")


def test_folder_with_directories(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    for part in ("images", "labels"):
        (tmp_path / part).rename(tmp_path / "old")
        (tmp_path / part).mkdir()
        (tmp_path / "old").rename(tmp_path / part / "val")
    spec = f"folder:{tmp_path}"
    assert names_of(spec, "val") == ["a", "b.1", "c"]
    assert len(labels_of(spec, "val")) == 3
    assert "expected classes.json" in refused(spec, "train")
    assert "images/train/ and labels/train/" in refused(spec, "train")


def test_folder_with_two_images_of_one_name(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    write_image(tmp_path / "images" / "a.jpg")
    assert "a.png: a.jpg has the same name" in refused(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    "table",
    [
        {"classes": [{"name": "road", "color": [1, 2, 3]}, {"name": "car", "color": [4, 5, 6]}]},
        {"names": ["road", "car"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore_index": 255},
        {"names": ["road", "car"], "palette_rgb": [[1, 2, 3], [4, 5, 6]]},
    ],
)
def test_folder_classes(tmp_path: Path, table: dict[str, Any]) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(table))
    read = class_table(f"folder:{tmp_path}")
    assert (read.names, read.ignore_index) == (("road", "car"), 255)
    assert read.palette_rgb == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize("key", ["classes", "names"])
def test_folder_classes_without_colours(tmp_path: Path, key: str) -> None:
    path = tmp_path / "classes.json"
    names = [f"class {i}" for i in range(254)]
    path.write_text(json.dumps({key: names, "ignore_index": 254}))
    read = class_table(f"folder:{tmp_path}")
    assert read.names == tuple(names)
    assert read.palette_rgb == default_palette(254)
    assert read.ignore_index == 254
    if key == "names":
        assert read == read_classes(path)  # as `rtseg run --classes` reads it


def test_folder_may_ignore_one_of_its_classes(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    table = {"classes": ["void", "road"], "ignore_index": 0}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    message = refused(f"folder:{tmp_path}")
    assert message.endswith("label value 255 is unknown: expected 0 to 1")
    for path in (tmp_path / "labels").iterdir():
        write_values(path, (0, 1))
    assert all(np.array_equal(got, columns((0, 1))) for got in labels_of(f"folder:{tmp_path}"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("road\ncar\n", "Expecting value"),
        ("[]", "list indices"),
        ("{}", "names is missing"),
        ('{"classes": [{"color": [0, 0, 0]}]}', "name is missing"),
        ('{"classes": [{"name": 3}]}', "names must be texts"),
        ('{"names": "road"}', "names must be texts"),
        ('{"classes": []}', "expected 1 to 255"),
        ('{"classes": ["a", "a"]}', "names must differ"),
        ('{"classes": [{"name": "a", "color": [0, 0]}]}', "not enough values"),
        ('{"classes": [{"name": "a", "color": [0, 0, 300]}]}', "0..255"),
        ('{"names": ["a", "b"], "palette": [[0, 0, 0]]}', "expected 2 colours"),
        ('{"classes": ["a"], "ignore_index": 256}', "ignore_index"),
        ('{"classes": ["a"], "ignore_index": null}', "int()"),
    ],
)
def test_folder_with_an_unusable_list_of_classes(tmp_path: Path, text: str, reason: str) -> None:
    trees.folder(tmp_path)
    path = tmp_path / "classes.json"
    path.write_text(text)
    message = refused(f"folder:{tmp_path}")
    assert message.startswith(f"{path}: unusable list of classes (")
    assert reason in message
    assert 'expected {"classes": [{"name": "road", "color": [128, 64, 128]}' in message


def test_exporting_takes_the_classes_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    export = pytest.importorskip("rtseg.export")
    from rtseg import plugins
    from rtseg.models._weights import save_weights
    from rtseg.recipe import DataRecipe, ModelRecipe, OptimiserRecipe, Recipe

    trees.folder(tmp_path)
    monkeypatch.setenv("TINY_FOLDER", str(tmp_path))
    options = {
        "stem_channels": (8, 8),
        "channels": (8, 8, 16, 16),
        "blocks": (1, 1, 1, 1),
        "width": 8,
    }
    recipe = Recipe(
        "own",
        ModelRecipe("sfnet_lite", options),
        DataRecipe(("folder:$TINY_FOLDER",), "folder:$TINY_FOLDER", (), (64, 96), (64, 64)),
        OptimiserRecipe(steps=1),
    )
    torch.manual_seed(0)
    network = plugins.load("rtseg.models", "sfnet_lite").build(2, **options)
    save_weights(network.state_dict(), tmp_path / "own.safetensors")
    exported = []  # the contract is what matters here; test_export.py writes the file

    def keep(network: Any, contract: Contract, path: Path, **options: Any) -> float:
        exported.append(contract)
        return 0.0

    monkeypatch.setattr(export, "export_onnx", keep)
    export.export_checkpoint(recipe, tmp_path / "own.safetensors", tmp_path / "own.onnx")
    assert [c.classes for c in exported] == [class_table(f"folder:{tmp_path}")]
