"""Mapillary Vistas: street scenes from all over the world, here in Cityscapes' 19 classes.

    ROOT/{training,validation}/images/NAME.jpg
    ROOT/{training,validation}/v2.0/labels/NAME.png     with ROOT/config_v2.0.json, or else
                               v1.2/labels/NAME.png     with ROOT/config_v1.2.json, or else
                               labels/NAME.png          with ROOT/config_v1.2.json or config.json

A label is an index into the list "labels" of the config file. Classes are matched by the names
given there, so both versions are read alike; `_CITYSCAPES` says how. The splits are train and val;
the labels of the testing part are not published.

Neuhold et al., "The Mapillary Vistas Dataset for Semantic Understanding of Street Scenes", ICCV
2017.
"""

from __future__ import annotations

import json
from pathlib import Path

from rtseg.data._cityscapes_classes import CLASSES, IGNORE_INDEX, PALETTE
from rtseg.data._pairs import Codes, Pair, check_split, images_in, no_samples, pairs
from rtseg.errors import DataError

__all__ = ["CLASSES", "IGNORE_INDEX", "PALETTE", "samples"]

_FOLDERS = {"train": "training", "val": "validation"}
_LAYOUTS = (
    ("v2.0/labels", ("config_v2.0.json",)),
    ("v1.2/labels", ("config_v1.2.json",)),
    ("labels", ("config_v1.2.json", "config.json")),
)
"""Where label files lie in a split's folder, and the config files that may explain them."""

# Vistas' name, or the beginning of several, to the class that Cityscapes' labelling policy gives
# such a thing: kerbs belong to the sidewalk, markings and cycle lanes to the road. What Cityscapes
# itself leaves out is not here and so ignored: parking, rail tracks, bridges, tunnels, guard rails,
# caravans, trailers, the backs of signs, billboards, street lights, animals.
_CITYSCAPES = {
    "construction--barrier--curb": "sidewalk",
    "construction--barrier--fence": "fence",
    "construction--barrier--wall": "wall",
    "construction--flat--bike-lane": "road",
    "construction--flat--crosswalk-plain": "road",
    "construction--flat--curb-cut": "sidewalk",
    "construction--flat--pedestrian-area": "sidewalk",
    "construction--flat--road": "road",
    "construction--flat--road-shoulder": "road",
    "construction--flat--service-lane": "road",
    "construction--flat--sidewalk": "sidewalk",
    "construction--flat--traffic-island": "sidewalk",
    "construction--structure--building": "building",
    "construction--structure--garage": "building",
    "human--person": "person",
    "human--rider": "rider",
    "marking": "road",
    "marking-only": "road",
    "nature--beach": "terrain",
    "nature--sand": "terrain",
    "nature--sky": "sky",
    "nature--terrain": "terrain",
    "nature--vegetation": "vegetation",
    "object--pothole": "road",
    "object--support--pole": "pole",
    "object--support--utility-pole": "pole",
    "object--traffic-light": "traffic light",
    "object--traffic-sign--direction-front": "traffic sign",
    "object--traffic-sign--front": "traffic sign",
    "object--traffic-sign--information-parking": "traffic sign",
    "object--traffic-sign--temporary-front": "traffic sign",
    "object--vehicle--bicycle": "bicycle",
    "object--vehicle--bus": "bus",
    "object--vehicle--car": "car",
    "object--vehicle--motorcycle": "motorcycle",
    "object--vehicle--on-rails": "train",
    "object--vehicle--truck": "truck",
}


def samples(root: str, split: str) -> list[Pair]:
    """All pictures of a split, by name.

    Raises:
        DataError: the split is unknown, the tree is another one, labels are missing, or the config
            file is missing or does not list the classes.
    """
    check_split("mapillary", split, tuple(_FOLDERS))
    folder = Path(root) / _FOLDERS[split]
    images = images_in(folder / "images")
    for labels, configs in _LAYOUTS:
        if images and (folder / labels).is_dir():
            return pairs(images, folder / labels, _codes(Path(root), configs))
    expected = (
        f"{folder.name}/images/NAME.jpg, {folder.name}/v2.0/labels/NAME.png and config_v2.0.json, "
        f"or {folder.name}/labels/NAME.png and config_v1.2.json"
    )
    raise no_samples("mapillary", root, split, expected)


def _codes(root: Path, configs: tuple[str, ...]) -> Codes:
    """What the label values mean, by the first of the config files that is there."""
    path = next((root / name for name in configs if (root / name).is_file()), None)
    if path is None:
        raise DataError(
            f"mapillary: {root / configs[0]} is missing: it lists the classes of the label files"
        )
    try:
        names = [str(label["name"]) for label in json.loads(path.read_text("utf-8"))["labels"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f'{path}: expected {{"labels": [{{"name": "construction--flat--road", ...}}, ...]}}'
        ) from error
    if len(names) > 256:
        raise DataError(f"{path}: {len(names)} classes: at most 256 fit an 8-bit label file")
    meaning = {value: _class_index(name) for value, name in enumerate(names)}
    if set(meaning.values()) <= {IGNORE_INDEX}:
        raise DataError(
            f"{path}: no name is one of Vistas', such as construction--flat--road: "
            f"got {', '.join(names[:3]) or 'none'}"
        )
    return Codes.of(meaning, f"0 to {len(names) - 1}, as {path.name} lists them")


def _class_index(name: str) -> int:
    """Cityscapes' class for a name of Vistas or the longest beginning of it that is known."""
    parts = name.split("--")
    for length in range(len(parts), 0, -1):
        known = _CITYSCAPES.get("--".join(parts[:length]))
        if known is not None:
            return CLASSES.index(known)
    return IGNORE_INDEX
