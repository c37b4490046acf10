"""CamVid: 701 stills of driving video with 11 classes (Brostow et al., ECCV 2008).

Two layouts are read:

    ROOT/train  ROOT/trainannot     images and PNGs of class indices, 11 = unlabelled
    (the same with val, valannot, test, testannot)

    ROOT/701_StillsRaw_full  ROOT/LabeledApproved_full  ROOT/train.txt val.txt test.txt
                                    images and PNGs in the 32 original colours, grouped to 11
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rtseg.data import Sample
from rtseg.errors import DataError
from rtseg.frame import ImageBGR, Labels

CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
)
PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
IGNORE_INDEX = 11

# The 32 original colours (RGB) by the class each belongs to in the 11-class grouping of
# Badrinarayanan et al., "SegNet", section 4.1; Void and the rest are ignored.
_ORIGINAL_COLOURS: dict[int, tuple[tuple[int, int, int], ...]] = {
    0: ((128, 128, 128),),  # Sky
    1: ((0, 128, 64), (128, 0, 0), (64, 192, 0), (64, 0, 64), (192, 0, 128)),
    # Bridge, Building, Wall, Tunnel, Archway
    2: ((192, 192, 128), (0, 0, 64)),  # Column_Pole, TrafficCone
    3: ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # Road, LaneMkgsDriv, LaneMkgsNonDriv
    4: ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # Sidewalk, ParkingBlock, RoadShoulder
    5: ((128, 128, 0), (192, 192, 0)),  # Tree, VegetationMisc
    6: ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # SignSymbol, Misc_Text, TrafficLight
    7: ((64, 64, 128),),  # Fence
    8: ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),
    # Car, SUVPickupTruck, Truck_Bus, Train, OtherMoving
    9: ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),
    # Pedestrian, Child, CartLuggagePram, Animal
    10: ((0, 128, 192), (192, 0, 192)),  # Bicyclist, MotorcycleScooter
}
_SPLITS = ("train", "val", "test")
_EXPECTED = (
    "expected {split}/ and {split}annot/ in it, or 701_StillsRaw_full/, "
    "LabeledApproved_full/ and {split}.txt"
)


@cache
def _colour_table() -> NDArray[np.uint8]:
    """(2**24,) uint8: 24-bit RGB value to class index, the ignore index for every other."""
    table = np.full(1 << 24, IGNORE_INDEX, np.uint8)
    for index, colours in _ORIGINAL_COLOURS.items():
        for red, green, blue in colours:
            table[red << 16 | green << 8 | blue] = index
    return table


@dataclass(frozen=True)
class CamVidSample:
    """One still with its annotation."""

    image_path: Path
    labels_path: Path
    colours: bool

    @property
    def name(self) -> str:
        return self.image_path.stem

    def load(self) -> tuple[ImageBGR, Labels]:
        """(H, W, 3) uint8 BGR and (H, W) uint8; DataError names the file that is wrong."""
        image = cv2.imread(str(self.image_path), cv2.IMREAD_COLOR)
        if image is None:
            raise DataError(f"{self.image_path}: not a readable image")
        mode = cv2.IMREAD_COLOR if self.colours else cv2.IMREAD_UNCHANGED
        labels = cv2.imread(str(self.labels_path), mode)
        if labels is None:
            raise DataError(f"{self.labels_path}: not a readable image")
        if self.colours:
            blue, green, red = (labels[:, :, i].astype(np.int32) for i in range(3))
            labels = _colour_table()[red << 16 | green << 8 | blue]
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise DataError(
                f"{self.labels_path}: expected an 8-bit image with one channel of class indices, "
                f"got {labels.shape} {labels.dtype}"
            )
        if labels.shape != image.shape[:2]:
            raise DataError(
                f"{self.labels_path}: labels are {labels.shape[0]}x{labels.shape[1]}, "
                f"the image is {image.shape[0]}x{image.shape[1]}"
            )
        if labels.max() > IGNORE_INDEX:
            raise DataError(
                f"{self.labels_path}: label value {int(labels.max())} is unknown: "
                f"expected 0 to 10, or {IGNORE_INDEX} for unlabelled"
            )
        return image.astype(np.uint8, copy=False), labels.astype(np.uint8, copy=False)


def samples(root: str, split: str) -> list[Sample]:
    """All stills of a split, by name.

    Raises:
        DataError: the split is unknown, or the directory shows neither layout.
    """
    if split not in _SPLITS:
        raise DataError(f"camvid: unknown split {split!r}: choose one of {', '.join(_SPLITS)}")
    base = Path(root)
    if (base / split).is_dir() and (base / f"{split}annot").is_dir():
        return _index_layout(base, split)
    if (base / "701_StillsRaw_full").is_dir():
        return _original_layout(base, split)
    raise DataError(
        f"camvid: {root or '.'} has no split {split!r}: {_EXPECTED.format(split=split)}"
    )


def _index_layout(base: Path, split: str) -> list[Sample]:
    found: list[Sample] = []
    for path in sorted((base / split).iterdir()):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            continue
        labels_path = base / f"{split}annot" / f"{path.stem}.png"
        if not labels_path.is_file():
            raise DataError(f"{path}: its labels are missing: expected {labels_path}")
        found.append(CamVidSample(path, labels_path, colours=False))
    return found


def _original_layout(base: Path, split: str) -> list[Sample]:
    listing = base / f"{split}.txt"
    if not listing.is_file():
        raise DataError(f"camvid: {listing} is missing: it lists the file names of the split")
    found: list[Sample] = []
    for line in listing.read_text().split():
        stem = Path(line).stem
        image_path = base / "701_StillsRaw_full" / f"{stem}.png"
        labels_path = base / "LabeledApproved_full" / f"{stem}_L.png"
        for path in (image_path, labels_path):
            if not path.is_file():
                raise DataError(f"{listing} lists {stem}, but {path} is missing")
        found.append(CamVidSample(image_path, labels_path, colours=True))
    return found
