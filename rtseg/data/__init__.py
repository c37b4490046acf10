"""Data sets. One file per data set, each with CLASSES, PALETTE, IGNORE_INDEX and `samples`.

`samples(root, split)` gives a list of `Sample`; `open_data` reads a spec such as
"camvid:DIR" or "synth:seed=1,frames=200". A data set whose classes depend on its directory has
`classes(root) -> ClassTable` in place of the three constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rtseg import plugins
from rtseg.errors import DataError
from rtseg.frame import ClassTable, ImageBGR, Labels

NO_PLUGINS = ("transforms", "draws")
"""Files beside the data sets."""


class Sample(Protocol):
    """One annotated picture, read when asked for."""

    @property
    def name(self) -> str:
        """Short and unique within the data set, for messages."""

    def load(self) -> tuple[ImageBGR, Labels]:
        """The image (H, W, 3) uint8 BGR and its labels (H, W) uint8; DataError if unreadable."""


@dataclass(frozen=True)
class DataSet:
    """A data set opened at one split.

    Attributes:
        name: of the plugin, such as "camvid".
        split: as the data set calls it: "train", "val", "test".
        classes: names, colours and ignore index.
        samples: all of them, in a fixed order.
    """

    name: str
    split: str
    classes: ClassTable
    samples: Sequence[Sample]


def open_data(spec: str, split: str) -> DataSet:
    """Opens a data set by its spec NAME:ROOT.

    Raises:
        ConfigError: there is no such data set; lists those there are.
        DataError: the directory does not look like that data set, or the split is empty.
    """
    name, _, root = spec.partition(":")
    module = plugins.load(__name__, name)
    classes = class_table(spec)
    samples = module.samples(root, split)
    if not samples:
        raise DataError(f"{spec}: split {split!r} has no samples")
    return DataSet(name, split, classes, samples)


def class_table(spec: str) -> ClassTable:
    """Names, colours and ignore index of a data set, by its spec NAME:ROOT.

    ROOT is looked at only where the classes depend on it.

    Raises:
        ConfigError: there is no such data set; lists those there are.
        DataError: the directory does not say what its classes are.
    """
    name, _, root = spec.partition(":")
    module = plugins.load(__name__, name)
    if hasattr(module, "classes"):
        table: ClassTable = module.classes(root)
        return table
    return ClassTable(module.CLASSES, module.PALETTE, module.IGNORE_INDEX)
