"""CamVid: both layouts, and every way a directory can be wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from rtseg.data import open_data
from rtseg.data.camvid import CLASSES, IGNORE_INDEX, PALETTE
from rtseg.errors import ConfigError, DataError

# A few of the 32 original colours (RGB) by the class they belong to; Void is ignored.
ORIGINAL = {
    (128, 128, 128): "Sky",
    (64, 192, 0): "Building",  # Wall
    (128, 0, 192): "Road",  # LaneMkgsDriv
    (0, 0, 192): "Pavement",  # Sidewalk
    (192, 192, 0): "Tree",  # VegetationMisc
    (0, 64, 64): "SignSymbol",  # TrafficLight
    (192, 128, 192): "Car",  # Truck_Bus
    (192, 128, 64): "Pedestrian",  # Child
    (192, 0, 192): "Bicyclist",  # MotorcycleScooter
    (0, 0, 0): None,  # Void
    (1, 2, 3): None,
}


def refused(root: Path, split: str = "train") -> str:
    """The one line that opening or reading the data set fails with."""
    with pytest.raises(DataError) as caught:
        [sample.load() for sample in open_data(f"camvid:{root}", split).samples]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_index_layout(camvid_like: Path) -> None:
    data = open_data(f"camvid:{camvid_like}", "train")
    assert (data.name, data.split) == ("camvid", "train")
    assert data.classes.names == CLASSES
    assert [s.name for s in data.samples] == [f"train_{i}" for i in range(4)]
    palette = np.array([*PALETTE, (0, 0, 0)], np.uint8)[:, ::-1]
    for sample in data.samples:
        image, labels = sample.load()
        assert image.shape == (48, 64, 3)
        assert np.array_equal(palette[labels], image)
    assert len(open_data(f"camvid:{camvid_like}", "val").samples) == 2


def original_layout(root: Path) -> Path:
    for folder in ("701_StillsRaw_full", "LabeledApproved_full"):
        (root / folder).mkdir(parents=True)
    row = np.array([list(ORIGINAL)], np.uint8)  # (1, n, 3) RGB
    picture = np.ascontiguousarray(np.repeat(row, 4, axis=0)[:, :, ::-1])
    for stem in ("0001TP_1", "0016E5_2", "not_listed"):
        cv2.imwrite(str(root / "701_StillsRaw_full" / f"{stem}.png"), picture)
        cv2.imwrite(str(root / "LabeledApproved_full" / f"{stem}_L.png"), picture)
    (root / "train.txt").write_text("0001TP_1.png\n0016E5_2\n")
    return root


def test_original_layout(tmp_path: Path) -> None:
    data = open_data(f"camvid:{original_layout(tmp_path)}", "train")
    assert [s.name for s in data.samples] == ["0001TP_1", "0016E5_2"]
    expected = [IGNORE_INDEX if n is None else CLASSES.index(n) for n in ORIGINAL.values()]
    for sample in data.samples:
        image, labels = sample.load()
        assert image.shape == (4, len(ORIGINAL), 3)
        assert labels.tolist() == [expected] * 4


def test_original_layout_with_a_missing_list_or_file(tmp_path: Path) -> None:
    root = original_layout(tmp_path)
    assert "val.txt is missing" in refused(root, "val")
    (root / "LabeledApproved_full" / "0016E5_2_L.png").unlink()
    assert "0016E5_2_L.png is missing" in refused(root)


def test_a_directory_without_either_layout(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none"):
        message = refused(root)
        assert "trainannot" in message
        assert "701_StillsRaw_full" in message


def test_an_unknown_split(camvid_like: Path) -> None:
    assert "unknown split 'dev': choose one of train, val, test" in refused(camvid_like, "dev")
    assert "test" in refused(camvid_like, "test")


def test_an_empty_split(tmp_path: Path) -> None:
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    assert "has no samples" in refused(tmp_path)


def test_missing_labels(camvid_like: Path) -> None:
    (camvid_like / "trainannot" / "train_2.png").unlink()
    message = refused(camvid_like)
    assert "train_2.png: its labels are missing" in message


def test_labels_of_another_size(camvid_like: Path) -> None:
    path = camvid_like / "trainannot" / "train_1.png"
    cv2.imwrite(str(path), np.zeros((48, 60), np.uint8))
    assert f"{path}: labels are 48x60, the image is 48x64" in refused(camvid_like)


def test_an_unknown_label_value(camvid_like: Path) -> None:
    path = camvid_like / "trainannot" / "train_1.png"
    cv2.imwrite(str(path), np.full((48, 64), 12, np.uint8))
    assert f"{path}: label value 12 is unknown" in refused(camvid_like)


def test_colour_labels_in_the_index_layout(camvid_like: Path) -> None:
    path = camvid_like / "trainannot" / "train_1.png"
    cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))
    assert "one channel of class indices, got (48, 64, 3) uint8" in refused(camvid_like)


@pytest.mark.parametrize("folder", ["train", "trainannot"])
def test_a_file_that_is_no_image(camvid_like: Path, folder: str) -> None:
    path = camvid_like / folder / "train_0.png"
    path.write_text("not a picture")
    assert f"{path}: not a readable image" in refused(camvid_like)


def test_unknown_data_set() -> None:
    with pytest.raises(ConfigError, match=r"unknown data 'camvit': choose one of .*camvid.*synth"):
        open_data("camvit:somewhere", "val")


def test_the_real_thing(camvid_dir: Path) -> None:
    for split, count in (("train", 367), ("val", 101)):
        data = open_data(f"camvid:{camvid_dir}", split)
        assert len(data.samples) == count
        image, labels = data.samples[-1].load()
        assert image.shape == (360, 480, 3)
        assert labels.max() <= IGNORE_INDEX
