"""The data sets of stills: every layout, and every way a tree, a file or a value can be wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _data_trees as trees
import cv2
import numpy as np
import pytest
from _data_trees import (
    TREES,
    columns,
    labels_of,
    names_of,
    plant,
    refused,
    write_image,
    write_palette_png,
    write_values,
)

from rtseg.data import class_table
from rtseg.data._cityscapes_classes import CLASSES, LABEL_IDS, PALETTE, TRAIN_IDS

IGNORED = 255


# What all of them have in common


@dataclass(frozen=True)
class Case:
    """Where a tree has the first image of its train split, its labels, and what to say of it."""

    name: str
    image: str
    labels: str
    tree: str
    allowed: str


CASES = [
    Case(
        "cityscapes",
        "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
        "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
        "leftImg8bit/train/CITY/NAME_leftImg8bit.png and gtFine/train/CITY/NAME_gtFine_labelIds.png"
        " or NAME_gtFine_labelTrainIds.png",
        "label ids 0 to 33, or 255 for unlabelled",
    ),
    Case(
        "bdd100k",
        "images/10k/train/0a.jpg",
        "labels/sem_seg/masks/train/0a.png",
        "images/10k/train/NAME.jpg and labels/sem_seg/masks/train/NAME.png or "
        "seg/images/train/NAME.jpg and seg/labels/train/NAME_train_id.png",
        "0 to 18, or 255 for unlabelled",
    ),
    Case(
        "kitti",
        "training/image_2/000001_10.png",
        "training/semantic/000001_10.png",
        "training/image_2/NAME.png and training/semantic/NAME.png",
        "label ids 0 to 33, or 255 for unlabelled",
    ),
    Case(
        "mapillary",
        "training/images/x1.jpg",
        "training/labels/x1.png",
        "training/images/NAME.jpg, training/v2.0/labels/NAME.png and config_v2.0.json, or "
        "training/labels/NAME.png and config_v1.2.json",
        "0 to 8, as config_v1.2.json lists them",
    ),
    Case(
        "folder",
        "images/a.png",
        "labels/a.png",
        "classes.json, images/NAME.jpg or .png and labels/NAME.png",
        "0 to 1, or 255 for unlabelled",
    ),
]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_every_tree_has_a_case() -> None:
    assert {case.name for case in CASES} == set(TREES) - {"camvid"}  # which has its own file


@every
def test_another_tree_is_refused_with_the_expected_one(case: Case, tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    message = refused(f"{case.name}:{tmp_path}")
    assert message.startswith(f"{case.name}: {tmp_path}: no ")
    assert f"expected {case.tree}" in message
    message = refused(f"{case.name}:{tmp_path / 'none'}")
    assert "no such directory" in message
    assert f"expected {case.tree}" in message


@every
def test_an_empty_split_is_refused_with_the_expected_tree(case: Case, tmp_path: Path) -> None:
    root = plant(case.name, tmp_path)
    for path in root.rglob("*"):
        if path.suffix in (".jpg", ".jpeg", ".png"):
            path.unlink()
    message = refused(f"{case.name}:{root}")
    assert "no samples of split 'train'" in message
    assert case.tree in message


@every
def test_an_unknown_split(case: Case, tmp_path: Path) -> None:
    root = plant(case.name, tmp_path)
    message = refused(f"{case.name}:{root}", "dev")
    assert re.match(
        rf"{case.name}: unknown split 'dev': choose one of train, val(, test)?$", message
    )


@every
def test_a_missing_label_file(case: Case, tmp_path: Path) -> None:
    root = plant(case.name, tmp_path)
    if case.name == "kitti":  # may have images without labels, but not labels without image
        (root / case.image).unlink()
        message = refused(f"kitti:{root}")
        assert f"its image is missing: expected {root / case.image}" in message
        return
    (root / case.labels).unlink()
    message = refused(f"{case.name}:{root}")
    assert message.startswith(f"{root / case.image}: its labels are missing")
    assert str(root / case.labels) in message


@every
def test_an_unknown_label_value(case: Case, tmp_path: Path) -> None:
    root = plant(case.name, tmp_path)
    write_values(root / case.labels, (0, 1, 201, 200))
    message = refused(f"{case.name}:{root}")
    assert message == (f"{root / case.labels}: label value 200 is unknown: expected {case.allowed}")


@every
def test_labels_of_another_size(case: Case, tmp_path: Path) -> None:
    root = plant(case.name, tmp_path)
    cv2.imwrite(str(root / case.labels), np.zeros((6, 9), np.uint8))
    expected = f"{root / case.labels}: labels are 6x9, the image is 6x8"
    assert expected in refused(f"{case.name}:{root}")


@every
@pytest.mark.parametrize(
    "wrong", [np.zeros((6, 8, 3), np.uint8), np.zeros((6, 8), np.uint16)], ids=["colour", "16-bit"]
)
def test_labels_that_are_no_indices(
    case: Case, wrong: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    root = plant(case.name, tmp_path)
    cv2.imwrite(str(root / case.labels), wrong)
    expected = f"{root / case.labels}: expected an 8-bit image with one channel of class indices"
    assert expected in refused(f"{case.name}:{root}")


def emptied(data: bytes) -> bytes:
    return b""


def cut(data: bytes) -> bytes:
    return data[: len(data) * 3 // 4]


def replaced(data: bytes) -> bytes:
    return b"not a picture" * 9


@every
@pytest.mark.parametrize("part", ["image", "labels"])
@pytest.mark.parametrize("damage", [emptied, cut, replaced])
def test_a_corrupt_file(
    case: Case, part: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    root = plant(case.name, tmp_path)
    path = root / str(getattr(case, part))
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path}: not a readable image" in refused(f"{case.name}:{root}")


def test_a_jpeg_that_lacks_only_its_end(tmp_path: Path) -> None:
    root = plant("bdd100k", tmp_path)
    path = root / "images/10k/train/0b.jpg"
    path.write_bytes(path.read_bytes()[:-4])
    assert f"{path}: not a readable image" in refused(f"bdd100k:{root}")


@every
def test_hidden_files_are_left_out(case: Case, tmp_path: Path) -> None:
    root = plant(case.name, tmp_path)
    before = names_of(f"{case.name}:{root}")
    for path in (root / case.image, root / case.labels):
        (path.parent / f"._{path.name}").write_bytes(b"a Mac was here")
    assert names_of(f"{case.name}:{root}") == before


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_indices_of_any_depth(tmp_path: Path, depth: int) -> None:
    root = plant("folder", tmp_path)
    top = 2**depth - 1
    names = [f"class {i}" for i in range(min(top + 1, 255))]
    (root / "classes.json").write_text(json.dumps({"classes": names}))
    values = (0, top, 1, top - 1, 0, 1, top, top // 2)
    for path in (root / "labels").iterdir():
        write_palette_png(path, values, depth)
    assert all(np.array_equal(got, columns(values)) for got in labels_of(f"folder:{root}"))


# Cityscapes and those that share its classes


def test_the_label_ids_are_the_official_ones() -> None:
    assert len(CLASSES) == len(PALETTE) == len(set(PALETTE)) == 19
    assert LABEL_IDS.known.sum() == 35
    by_name = {
        "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
        "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
        "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31,
        "motorcycle": 32, "bicycle": 33,
    }  # fmt: skip
    for value in (*range(34), 255):
        names = [name for name, label_id in by_name.items() if label_id == value]
        assert LABEL_IDS.table[value] == (CLASSES.index(names[0]) if names else IGNORED)
    assert TRAIN_IDS.known.sum() == 20


@pytest.mark.parametrize("name", ["cityscapes", "bdd100k", "kitti", "mapillary"])
def test_they_share_the_classes(name: str) -> None:
    table = class_table(f"{name}:/nowhere")
    assert (table.names, table.palette_rgb, table.ignore_index) == (CLASSES, PALETTE, IGNORED)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    "kinds", [("labelIds",), ("labelTrainIds",), ("labelIds", "labelTrainIds")]
)
def test_cityscapes(tmp_path: Path, split: str, kinds: tuple[str, ...]) -> None:
    trees.cityscapes(tmp_path, kinds)
    spec = f"cityscapes:{tmp_path}"
    assert names_of(spec, split) == ["aachen_000000_000019", "ulm_000000_000019"]
    assert all(np.array_equal(g, columns((0, 18, 255, 255))) for g in labels_of(spec, split))


def test_cityscapes_prefers_train_ids_file_by_file(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path)
    path = tmp_path / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png"
    write_values(path, (5,))
    first, second = labels_of(f"cityscapes:{tmp_path}")
    assert np.array_equal(first, columns((0, 18, 255, 255)))
    assert np.array_equal(second, columns((5,)))
    write_values(path, (33,))
    assert "label value 33 is unknown: expected 0 to 18" in refused(f"cityscapes:{tmp_path}")


def test_cityscapes_with_a_missing_half(tmp_path: Path) -> None:
    trees.cityscapes(tmp_path)
    (tmp_path / "gtFine").rename(tmp_path / "gtCoarse")
    assert "expected leftImg8bit/val/CITY" in refused(f"cityscapes:{tmp_path}", "val")


@pytest.mark.parametrize("below", ["", "bdd100k"])
@pytest.mark.parametrize("plant_layout", [trees.bdd100k, trees.bdd100k_of_old])
@pytest.mark.parametrize("split", ["train", "val"])
def test_bdd100k(
    tmp_path: Path, below: str, plant_layout: Callable[[Path], None], split: str
) -> None:
    plant_layout(tmp_path / below)
    spec = f"bdd100k:{tmp_path}"
    assert names_of(spec, split) == ["0a", "0b"]
    assert all(np.array_equal(g, columns((0, 18, 255))) for g in labels_of(spec, split))


def test_bdd100k_of_old_with_a_missing_file(tmp_path: Path) -> None:
    trees.bdd100k_of_old(tmp_path)
    (tmp_path / "seg/labels/val/0b_train_id.png").unlink()
    message = refused(f"bdd100k:{tmp_path}", "val")
    assert "0b.jpg: its labels are missing: expected" in message
    assert message.endswith("seg/labels/val/0b_train_id.png")


def test_kitti_keeps_every_fifth_frame_for_validation(tmp_path: Path) -> None:
    trees.kitti(tmp_path)
    spec = f"kitti:{tmp_path}"
    val, train = names_of(spec, "val"), names_of(spec)
    assert val == ["000000_10", "000005_10", "000010_10"]
    assert sorted(val + train) == [f"{i:06d}_10" for i in range(11)]
    for labels in labels_of(spec) + labels_of(spec, "val"):
        assert np.array_equal(labels, columns((0, 18, 255, 255)))
    assert "unknown split 'test'" in refused(spec, "test")


def test_kitti_leaves_out_frames_without_labels(tmp_path: Path) -> None:
    trees.kitti(tmp_path)
    for i in range(11):
        write_image(tmp_path / "training" / "image_2" / f"{i:06d}_11.png")
    assert len(names_of(f"kitti:{tmp_path}")) == 8


# Mapillary Vistas

ROAD, SIDEWALK, LIGHT, RIDER, TRAIN = (
    CLASSES.index(n) for n in ("road", "sidewalk", "traffic light", "rider", "train")
)
VISTAS_LABELS = (IGNORED, SIDEWALK, ROAD, RIDER, ROAD, LIGHT, IGNORED, TRAIN)
VERSION_2 = {
    "construction--barrier--acoustic": None,
    "construction--flat--traffic-island": "sidewalk",
    "construction--flat--parking-aisle": None,
    "human--person--person-group": "person",
    "marking-only--discrete--crosswalk-zebra": "road",
    "object--traffic-light--general-upright": "traffic light",
    "object--traffic-sign--temporary-front": "traffic sign",
    "object--support--pole-group": None,
}


@pytest.mark.parametrize(
    ("labels", "config"),
    [
        ("labels", "config.json"),
        ("labels", "config_v1.2.json"),
        ("v1.2/labels", "config_v1.2.json"),
        ("v2.0/labels", "config_v2.0.json"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_mapillary(tmp_path: Path, labels: str, config: str, split: str) -> None:
    trees.mapillary(tmp_path, labels, config)
    spec = f"mapillary:{tmp_path}"
    assert names_of(spec, split) == ["x1", "x2"]
    assert all(np.array_equal(got, columns(VISTAS_LABELS)) for got in labels_of(spec, split))


def test_mapillary_takes_version_2_where_both_are(tmp_path: Path) -> None:
    trees.mapillary(tmp_path, "v1.2/labels", "config_v1.2.json")
    trees.mapillary(tmp_path, "v2.0/labels", "config_v2.0.json", tuple(VERSION_2))
    expected = [IGNORED if n is None else CLASSES.index(n) for n in VERSION_2.values()]
    assert all(np.array_equal(g, columns(expected)) for g in labels_of(f"mapillary:{tmp_path}"))


def test_mapillary_without_its_config(tmp_path: Path) -> None:
    trees.mapillary(tmp_path)
    (tmp_path / "config_v1.2.json").rename(tmp_path / "config_v2.0.json")
    assert f"{tmp_path / 'config_v1.2.json'} is missing" in refused(f"mapillary:{tmp_path}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", 'expected {"labels": [{"name"'),
        ("[]", 'expected {"labels": [{"name"'),
        ('{"labels": [{"readable": "Road"}]}', 'expected {"labels": [{"name"'),
        ('{"labels": [{"name": "Road"}]}', "no name is one of Vistas'"),
        ('{"labels": []}', "got none"),
        (json.dumps({"labels": [{"name": f"marking--{i}"} for i in range(257)]}), "at most 256"),
    ],
)
def test_mapillary_with_an_unusable_config(tmp_path: Path, text: str, reason: str) -> None:
    trees.mapillary(tmp_path)
    path = tmp_path / "config_v1.2.json"
    path.write_text(text)
    message = refused(f"mapillary:{tmp_path}")
    assert message.startswith(f"{path}: ")
    assert reason in message
