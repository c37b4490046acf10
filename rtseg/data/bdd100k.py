"""BDD100K, its semantic part: 10,000 frames of American traffic, 1280x720, Cityscapes' 19 classes.

Two layouts are read, in ROOT or in ROOT/bdd100k; the labels are class indices, 255 = ignored:

    ROOT/images/10k/{train,val}/NAME.jpg    ROOT/labels/sem_seg/masks/{train,val}/NAME.png
    ROOT/seg/images/{train,val}/NAME.jpg    ROOT/seg/labels/{train,val}/NAME_train_id.png

Yu et al., "BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning", CVPR 2020.
The labels of its test split are not published.
"""

from __future__ import annotations

from pathlib import Path

from rtseg.data._cityscapes_classes import CLASSES, IGNORE_INDEX, PALETTE, TRAIN_IDS
from rtseg.data._pairs import Pair, check_split, images_in, no_samples, pairs

__all__ = ["CLASSES", "IGNORE_INDEX", "PALETTE", "samples"]

_SPLITS = ("train", "val")
_LAYOUTS = (("images/10k", "labels/sem_seg/masks", ""), ("seg/images", "seg/labels", "_train_id"))
"""Images, labels, and what a label file's name has behind the image's."""


def samples(root: str, split: str) -> list[Pair]:
    """All frames of a split, by name.

    Raises:
        DataError: the split is unknown, the tree is neither layout, or labels are missing.
    """
    check_split("bdd100k", split, _SPLITS)
    for base in (Path(root), Path(root) / "bdd100k"):
        for images, labels, suffix in _LAYOUTS:
            directory = base / labels / split
            if directory.is_dir() and (paths := images_in(base / images / split)):
                return pairs(paths, directory, TRAIN_IDS, suffix)
    expected = " or ".join(
        f"{images}/{split}/NAME.jpg and {labels}/{split}/NAME{suffix}.png"
        for images, labels, suffix in _LAYOUTS
    )
    raise no_samples("bdd100k", root, split, expected)
