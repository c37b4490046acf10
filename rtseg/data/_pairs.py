"""An image and a label file, read and checked: what every data set of stills has in common.

Nothing here knows a data set: each names its files and says what the values in them mean.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rtseg.errors import DataError
from rtseg.frame import ImageBGR, Labels

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """What the values in a label file mean.

    Attributes:
        table: (256,) uint8: value to class index or ignore index.
        known: (256,) uint8: 1 for each value that a file may hold, else 0.
        expected: those values for a message, such as "0 to 18, or 255 for unlabelled".
    """

    table: Labels
    known: Labels
    expected: str

    @classmethod
    def of(cls, meaning: Mapping[int, int], expected: str) -> Codes:
        """From a class index or the ignore index for each known value."""
        table, known = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
        for value, index in meaning.items():
            table[value], known[value] = index, 1
        return cls(table, known, expected)

    @classmethod
    def indices(cls, num_classes: int, ignore_index: int) -> Codes:
        """For files that hold class indices and the ignore index as they are."""
        expected = f"0 to {num_classes - 1}"
        if ignore_index >= num_classes:
            expected += f", or {ignore_index} for unlabelled"
        return cls.of({i: i for i in (*range(num_classes), ignore_index)}, expected)

    def decode(self, values: Labels, path: Path) -> Labels:
        """(H, W) uint8 values of the file at `path` as labels, new; DataError names a stray one."""
        if not cv2.LUT(values, self.known).all():
            present = np.bincount(values.ravel(), minlength=256) > 0
            stray = int(np.flatnonzero(present & (self.known == 0))[0])
            raise DataError(f"{path}: label value {stray} is unknown: expected {self.expected}")
        return cv2.LUT(values, self.table).astype(np.uint8, copy=False)


@dataclass(frozen=True, slots=True)
class Pair:
    """One still with a label file beside it."""

    name: str
    image_path: Path
    labels_path: Path
    codes: Codes

    def load(self) -> tuple[ImageBGR, Labels]:
        """(H, W, 3) uint8 BGR and (H, W) uint8; DataError names the file that is wrong."""
        image = read_image(self.image_path)
        values = read_values(self.labels_path)
        check_same_size(values, self.labels_path, image)
        return image, self.codes.decode(values, self.labels_path)


def read_image(path: Path) -> ImageBGR:
    """(H, W, 3) uint8 BGR of any image file; DataError if it cannot be read."""
    return _decode(_read(path), cv2.IMREAD_COLOR, path)


def read_values(path: Path) -> Labels:
    """(H, W) uint8 of a file with one 8-bit channel or a palette, of which the indices are read.

    Raises:
        DataError: unreadable, or colours, or 16 bits.
    """
    data, depth = _as_grey(_read(path))
    values = _decode(data, cv2.IMREAD_UNCHANGED, path)
    if values.ndim != 2 or values.dtype != np.uint8:
        raise DataError(
            f"{path}: expected an 8-bit image with one channel of class indices, "
            f"got {values.shape} {values.dtype}"
        )
    # Grey of 1, 2 or 4 bits is stretched to 0..255 by the decoder; palette indices must not be.
    return values if depth == 8 else values // np.uint8(255 // (2**depth - 1))


def check_same_size(labels: Labels, labels_path: Path, image: ImageBGR) -> None:
    """DataError if labels are not of the image's size."""
    if labels.shape != image.shape[:2]:
        raise DataError(
            f"{labels_path}: labels are {labels.shape[0]}x{labels.shape[1]}, "
            f"the image is {image.shape[0]}x{image.shape[1]}"
        )


def check_split(data_set: str, split: str, known: Sequence[str]) -> None:
    """DataError if a data set has no such split."""
    if split not in known:
        raise DataError(f"{data_set}: unknown split {split!r}: choose one of {', '.join(known)}")


def wrong_tree(data_set: str, root: str, what: str, expected: str) -> DataError:
    """The error for a directory that has not a data set's tree, or has it without files.

    Args:
        what: is wrong, such as "no classes.json".
        expected: the tree in one line, such as "images/NAME.jpg and labels/NAME.png".
    """
    where = root or "."
    if not os.path.isdir(where):
        what = "no such directory"
    return DataError(f"{data_set}: {where}: {what}: expected {expected}")


def no_samples(data_set: str, root: str, split: str, expected: str) -> DataError:
    """As `wrong_tree`, where nothing of a split was found."""
    return wrong_tree(data_set, root, f"no samples of split {split!r}", expected)


def images_in(directory: Path) -> list[Path]:
    """Image files in a directory by name, but for hidden ones; none if there is no directory."""
    if not os.path.isdir(directory):
        return []
    try:
        found = list(directory.iterdir())
    except OSError as error:
        raise DataError(f"{directory}: cannot be read: {error.strerror}") from error
    return sorted(
        path
        for path in found
        if path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def pairs(images: Iterable[Path], directory: Path, codes: Codes, suffix: str = "") -> list[Pair]:
    """Each image with its label file, and the image's stem as name.

    Args:
        images: files, in order.
        directory: where STEM + suffix + ".png" lies for each of them.
        codes: of the label files.
        suffix: what a label file's name has behind the image's.

    Raises:
        DataError: a label file is missing.
    """
    found = []
    for path in images:
        labels_path = directory / f"{path.stem}{suffix}.png"
        if not labels_path.is_file():
            raise DataError(f"{path}: its labels are missing: expected {labels_path}")
        found.append(Pair(path.stem, path, labels_path, codes))
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _decode(data: bytes, mode: int, path: Path) -> ImageBGR:
    """An image file's pixels. From memory: a truncated file on disk is filled up with grey."""
    # Marker bytes never occur in compressed data, so a scan that has ended has an end behind it.
    truncated = data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN) if data[:2] == b"\xff\xd8" else False
    image = None
    if data and not truncated:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
        except cv2.error as error:
            raise DataError(f"{path}: not a readable image: {error.err}") from error
    if image is None:
        raise DataError(f"{path}: not a readable image")
    return image  # type: ignore[return-value]


def _as_grey(data: bytes) -> tuple[bytes, int]:
    """A palette PNG as the grey PNG of its indices, and its bits per pixel; else (data, 8).

    OpenCV turns a palette into colours and drops the indices. Both kinds store pixels alike, so
    changing the header and leaving the palette out keeps them (PNG specification, section 11.2).
    """
    if len(data) < 33 or not data.startswith(_PNG_SIGNATURE) or data[25] != 3:
        return data, 8
    header = data[12:25] + b"\0" + data[26:29]
    checksum = zlib.crc32(header).to_bytes(4, "big")
    kept, position = [_PNG_SIGNATURE, data[8:12], header, checksum], 33
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] in (b"IDAT", b"IEND"):
            kept.append(data[position:end])
        position = end
    return b"".join(kept), data[24]
