"""KITTI's semantic benchmark: 200 labelled frames, 1242x375, in Cityscapes' label ids.

    ROOT/training/image_2/NAME.png      ROOT/training/semantic/NAME.png

There is no official val split: of the labelled frames, sorted by name, every fifth from the first
is val (40 of the 200) and the others are train. `image_2` may hold more frames than are labelled,
as the stereo benchmark's does.

Alhaija et al., "Augmented Reality Meets Computer Vision", IJCV 2018. The labels of the benchmark's
own test images are not published.
"""

from __future__ import annotations

from pathlib import Path

from rtseg.data._cityscapes_classes import CLASSES, IGNORE_INDEX, LABEL_IDS, PALETTE
from rtseg.data._pairs import Pair, check_split, images_in, no_samples
from rtseg.errors import DataError

__all__ = ["CLASSES", "IGNORE_INDEX", "PALETTE", "VAL_EVERY", "samples"]

VAL_EVERY = 5
_SPLITS = ("train", "val")
_EXPECTED = (
    "training/image_2/NAME.png and training/semantic/NAME.png "
    f"(each {VAL_EVERY}th frame is val, the others are train)"
)


def samples(root: str, split: str) -> list[Pair]:
    """All labelled frames of a split, by name.

    Raises:
        DataError: the split is unknown, the tree is another one, or an image is missing.
    """
    check_split("kitti", split, _SPLITS)
    images = Path(root) / "training" / "image_2"
    found: list[Pair] = []
    for i, labels_path in enumerate(images_in(Path(root) / "training" / "semantic")):
        if (i % VAL_EVERY == 0) != (split == "val"):
            continue
        image_path = images / labels_path.name
        if not image_path.is_file():
            raise DataError(f"{labels_path}: its image is missing: expected {image_path}")
        found.append(Pair(image_path.stem, image_path, labels_path, LABEL_IDS))
    if not found:
        raise no_samples("kitti", root, split, _EXPECTED)
    return found
