"""Tiny trees in the layouts of the data sets: which file of a split holds which label values.

Every still is 6x8 and its label file holds its values in columns, so tests can tell what was read.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from rtseg.data import open_data
from rtseg.errors import DataError
from rtseg.frame import Labels

SIZE_HW = (6, 8)
VISTAS_NAMES = (
    "animal--bird",
    "construction--barrier--curb",
    "construction--flat--road",
    "human--rider--bicyclist",
    "marking--general",
    "object--traffic-light",
    "object--traffic-sign--back",
    "object--vehicle--on-rails",
    "void--unlabeled",
)
"""Some of version 1.2, in another order."""


def columns(values: Sequence[int]) -> Labels:
    """(6, 8) uint8 with the values in columns, the last one repeated."""
    row = [*values, *[values[-1]] * SIZE_HW[1]][: SIZE_HW[1]]
    return np.tile(np.array(row, np.uint8), (SIZE_HW[0], 1))


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((*SIZE_HW, 3), (10, 120, 230), np.uint8)
    assert cv2.imwrite(str(path), picture)


def write_values(path: Path, values: Sequence[int]) -> None:
    """A grey PNG of `columns(values)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), columns(values))


def write_palette_png(path: Path, values: Sequence[int], depth: int = 8) -> None:
    """`columns(values)` as a PNG of palette indices, which OpenCV cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    path.parent.mkdir(parents=True, exist_ok=True)
    indices = columns(values)
    height, width = indices.shape
    bits = np.unpackbits(indices[:, :, None], axis=2)[:, :, 8 - depth :]
    rows = np.packbits(bits.reshape(height, -1), axis=1)
    palette = np.random.default_rng(0).integers(0, 256, 3 << depth, np.uint8)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 3, 0, 0, 0))
        + chunk(b"PLTE", palette.tobytes())
        + chunk(b"tRNS", b"\0")
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
        + chunk(b"IEND", b"")
    )


def camvid(root: Path) -> None:
    for split in ("train", "val", "test"):
        for stem in ("a", "b"):
            write_image(root / split / f"{stem}.png")
            write_values(root / f"{split}annot" / f"{stem}.png", (0, 10, 11))


def cityscapes(root: Path, kinds: Sequence[str] = ("labelIds",)) -> None:
    """Label ids 7, 33, 4, 16; train ids, where asked for, 0, 18, 255, 255."""
    values = {"labelIds": (7, 33, 4, 16), "labelTrainIds": (0, 18, 255, 255)}
    for split in ("train", "val", "test"):
        for city in ("aachen", "ulm"):
            stem = f"{city}_000000_000019"
            write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            for kind in kinds:
                path = root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png"
                write_values(path, values[kind])


def bdd100k(root: Path) -> None:
    for split in ("train", "val"):
        for stem in ("0a", "0b"):
            write_image(root / "images" / "10k" / split / f"{stem}.jpg")
            write_values(root / "labels/sem_seg/masks" / split / f"{stem}.png", (0, 18, 255))


def bdd100k_of_old(root: Path) -> None:
    for split in ("train", "val"):
        for stem in ("0a", "0b"):
            write_image(root / "seg" / "images" / split / f"{stem}.jpg")
            write_values(root / "seg" / "labels" / split / f"{stem}_train_id.png", (0, 18, 255))


def kitti(root: Path, frames: int = 11) -> None:
    for i in range(frames):
        write_image(root / "training" / "image_2" / f"{i:06d}_10.png")
        write_values(root / "training" / "semantic" / f"{i:06d}_10.png", (7, 33, 4, 16))


def mapillary(
    root: Path,
    labels: str = "labels",
    config: str = "config_v1.2.json",
    names: Sequence[str] = VISTAS_NAMES,
) -> None:
    """Label files hold the first eight of the names."""
    root.mkdir(parents=True, exist_ok=True)
    listed = [{"name": name, "readable": name, "color": [0, 0, 0]} for name in names]
    (root / config).write_text(json.dumps({"labels": listed}))
    for folder in ("training", "validation"):
        for stem in ("x1", "x2"):
            write_image(root / folder / "images" / f"{stem}.jpg")
            write_palette_png(root / folder / labels / f"{stem}.png", range(min(8, len(names))))


def folder(root: Path) -> None:
    for stem, suffix in (("a", ".png"), ("b.1", ".jpg"), ("c", ".jpeg")):
        write_image(root / "images" / f"{stem}{suffix}")
        write_values(root / "labels" / f"{stem}.png", (0, 1, 255))
    classes = [{"name": "road", "color": [128, 64, 128]}, {"name": "car"}]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 255}))


TREES: dict[str, Callable[[Path], None]] = {
    "bdd100k": bdd100k,
    "camvid": camvid,
    "cityscapes": cityscapes,
    "folder": folder,
    "kitti": kitti,
    "mapillary": mapillary,
}
"""By data set; one that needs no files has none."""


def plant(name: str, directory: Path) -> Path:
    """Makes a data set's tree below a directory and returns its root."""
    root = directory / name
    TREES[name](root)
    return root


def refused(spec: str, split: str = "train") -> str:
    """The one line that opening or reading a data set fails with."""
    with pytest.raises(DataError) as caught:
        [sample.load() for sample in open_data(spec, split).samples]
    message = str(caught.value)
    assert "\n" not in message
    return message


def labels_of(spec: str, split: str = "train") -> list[Labels]:
    """All labels of a split; the images are checked on the way."""
    read = []
    for sample in open_data(spec, split).samples:
        image, labels = sample.load()
        assert image.shape == (*SIZE_HW, 3)
        assert image.dtype == labels.dtype == np.uint8
        assert np.abs(image.astype(int) - (10, 120, 230)).max() <= 6  # JPEG's loss
        assert labels.flags.c_contiguous
        read.append(labels)
    return read


def names_of(spec: str, split: str = "train") -> list[str]:
    return [sample.name for sample in open_data(spec, split).samples]
