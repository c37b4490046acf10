"""Cityscapes: 5,000 finely labelled street scenes from 50 cities, 2048x1024, 19 classes.

    ROOT/leftImg8bit/{train,val,test}/CITY/NAME_leftImg8bit.png
    ROOT/gtFine/{train,val,test}/CITY/NAME_gtFine_labelTrainIds.png     class indices, or else
                                      NAME_gtFine_labelIds.png          the 34 label ids

The published label ids are enough; the first kind is what cityscapesScripts makes of them, and is
taken where it lies beside. The labels of the test split are published blank: all is ignored.
"""

from __future__ import annotations

from pathlib import Path

from rtseg.data._cityscapes_classes import CLASSES, IGNORE_INDEX, LABEL_IDS, PALETTE, TRAIN_IDS
from rtseg.data._pairs import Pair, check_split, images_in, no_samples
from rtseg.errors import DataError

__all__ = ["CLASSES", "IGNORE_INDEX", "PALETTE", "samples"]

_SPLITS = ("train", "val", "test")
_EXPECTED = (
    "leftImg8bit/{split}/CITY/NAME_leftImg8bit.png and "
    "gtFine/{split}/CITY/NAME_gtFine_labelIds.png or NAME_gtFine_labelTrainIds.png"
)


def samples(root: str, split: str) -> list[Pair]:
    """All stills of a split, by city and name.

    Raises:
        DataError: the split is unknown, the tree is another one, or labels are missing.
    """
    check_split("cityscapes", split, _SPLITS)
    images, labels = Path(root) / "leftImg8bit" / split, Path(root) / "gtFine" / split
    cities = sorted(images.glob("*")) if labels.is_dir() else []
    found = [
        _pair(path, labels / city.name)
        for city in cities
        for path in images_in(city)
        if path.stem.endswith("_leftImg8bit")
    ]
    if not found:
        raise no_samples("cityscapes", root, split, _EXPECTED.format(split=split))
    return found


def _pair(image_path: Path, directory: Path) -> Pair:
    name = image_path.stem.removesuffix("_leftImg8bit")
    train_ids = directory / f"{name}_gtFine_labelTrainIds.png"
    label_ids = directory / f"{name}_gtFine_labelIds.png"
    if train_ids.is_file():
        return Pair(name, image_path, train_ids, TRAIN_IDS)
    if label_ids.is_file():
        return Pair(name, image_path, label_ids, LABEL_IDS)
    raise DataError(
        f"{image_path}: its labels are missing: expected {label_ids} or {train_ids.name}"
    )
