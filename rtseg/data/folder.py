"""A folder of your own: images, label files of class indices, and a list of the classes.

    ROOT/classes.json
    ROOT/images/NAME.jpg or .png          ROOT/labels/NAME.png

    {"classes": [{"name": "road", "color": [128, 64, 128]}, {"name": "car"}], "ignore_index": 255}

Colours are (R, G, B) and may be left out, as may the ignore index. What `rtseg run --classes`
reads is read as well: {"names": ["road", "car"], "palette": [[128, 64, 128], [0, 0, 142]]}. A label
file may be grey or have a palette; its values are indices into the list, or the ignore index.

Splits are train, val and test, in one of two ways:

    ROOT/train.txt val.txt test.txt       names, one a line, with or without suffix
    ROOT/images/train/NAME.jpg            ROOT/labels/train/NAME.png (the same with val, test)

A folder with neither has one set of pictures, and every split is all of it: enough to evaluate a
model on, but make a split before training, or validation repeats what was learnt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rtseg.data._pairs import Codes, Pair, check_split, images_in, no_samples, pairs, wrong_tree
from rtseg.errors import DataError
from rtseg.frame import ClassTable, default_palette

_SPLITS = ("train", "val", "test")
_EXPECTED = (
    "classes.json, images/NAME.jpg or .png and labels/NAME.png "
    "(or images/{split}/ and labels/{split}/; or {split}.txt that lists the names)"
)
_EXPECTED_CLASSES = (
    '{"classes": [{"name": "road", "color": [128, 64, 128]}, ...], "ignore_index": 255}'
)


def classes(root: str) -> ClassTable:
    """The table in ROOT/classes.json.

    Raises:
        DataError: the file is missing, or is no table of classes.
    """
    path = Path(root) / "classes.json"
    if not path.is_file():
        raise wrong_tree("folder", root, "no classes.json", _EXPECTED.format(split="SPLIT"))
    try:
        table = json.loads(path.read_text("utf-8"))
        names, colours = _named(table["classes"]) if "classes" in table else _listed(table)
        usual = default_palette(len(colours))
        palette = tuple(c or usual[i] for i, c in enumerate(colours))
        return ClassTable(names, palette, int(table.get("ignore_index", 255)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{path}: unusable list of classes ({reason}): expected {_EXPECTED_CLASSES}"
        ) from error


def samples(root: str, split: str) -> list[Pair]:
    """All pictures of a split: in the order of its list, or else by name.

    Raises:
        DataError: the split is unknown, the tree is another one, a list names what is not there,
            or labels are missing.
    """
    check_split("folder", split, _SPLITS)
    base, table = Path(root), classes(root)
    images, labels = base / "images", base / "labels"
    lists = [name for name in _SPLITS if (base / f"{name}.txt").is_file()]
    if not lists and any((images / name).is_dir() for name in _SPLITS):
        images, labels = images / split, labels / split
    paths = _by_stem(images)
    chosen = _listed_in(base / f"{split}.txt", paths) if lists else list(paths.values())
    if not chosen or not labels.is_dir():
        raise no_samples("folder", root, split, _EXPECTED.format(split=split))
    return pairs(chosen, labels, Codes.indices(len(table), table.ignore_index))


def _by_stem(directory: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in images_in(directory):
        if path.stem in found:
            raise DataError(f"{path}: {found[path.stem].name} has the same name: rename one")
        found[path.stem] = path
    return found


def _listed_in(listing: Path, paths: dict[str, Path]) -> list[Path]:
    """The images that a list names; DataError if it is missing, repeats itself or names others."""
    if not listing.is_file():
        raise DataError(f"folder: {listing} is missing: it lists the images of the split")
    try:
        lines = [line.strip() for line in listing.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listing}: expected names of images, one a line: {error}") from error
    chosen: dict[str, Path] = {}
    for line in filter(None, lines):
        path = paths.get(line) or paths.get(Path(line).stem)
        if path is None:
            raise DataError(f"{listing} lists {line}, but images/ has no such file")
        if path.stem in chosen:
            raise DataError(f"{listing} lists {line} twice")
        chosen[path.stem] = path
    return list(chosen.values())


_Colours = Sequence["tuple[int, int, int] | None"]


def _named(entries: list[Any]) -> tuple[tuple[str, ...], _Colours]:
    """Names and colours of [{"name", "color"}, ...], where an entry may be just the name."""
    tables = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    return _names([t["name"] for t in tables]), [_colour(t.get("color")) for t in tables]


def _listed(table: dict[str, Any]) -> tuple[tuple[str, ...], _Colours]:
    """Names and colours of {"names": [...], "palette": [...]}."""
    names = _names(table["names"])
    palette = table.get("palette") or table.get("palette_rgb") or [None] * len(names)
    return names, [_colour(c) for c in palette]


def _names(values: list[Any]) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"names must be texts, got {values}")
    return tuple(values)


def _colour(value: Any) -> tuple[int, int, int] | None:
    if value is None:
        return None
    red, green, blue = (int(v) for v in value)
    return red, green, blue
