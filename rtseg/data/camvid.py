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

import numpy as np
from numpy.typing import NDArray

from rtseg.data import Sample
from rtseg.data._pairs import Codes, check_same_size, check_split, images_in, pairs, read_image
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
class ColourPair:
    """One still with its annotation in the original colours."""

    image_path: Path
    labels_path: Path

    @property
    def name(self) -> str:
        return self.image_path.stem

    def load(self) -> tuple[ImageBGR, Labels]:
        """(H, W, 3) uint8 BGR and (H, W) uint8; DataError names the file that is wrong."""
        image, colours = read_image(self.image_path), read_image(self.labels_path)
        blue, green, red = (colours[:, :, i].astype(np.int32) for i in range(3))
        labels = _colour_table()[red << 16 | green << 8 | blue]
        check_same_size(labels, self.labels_path, image)
        return image, labels


def samples(root: str, split: str) -> list[Sample]:
    """All stills of a split, by name.

    Raises:
        DataError: the split is unknown, or the directory shows neither layout.
    """
    check_split("camvid", split, _SPLITS)
    base = Path(root)
    if (base / split).is_dir() and (base / f"{split}annot").is_dir():
        codes = Codes.indices(len(CLASSES), IGNORE_INDEX)
        return list(pairs(images_in(base / split), base / f"{split}annot", codes))
    if (base / "701_StillsRaw_full").is_dir():
        return _original_layout(base, split)
    raise DataError(
        f"camvid: {root or '.'} has no split {split!r}: {_EXPECTED.format(split=split)}"
    )


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
        found.append(ColourPair(image_path, labels_path))
    return found
