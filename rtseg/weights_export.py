"""Weights of a network of the zoo, imported or trained, become a model file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from rtseg.artifact import read_classes
from rtseg.data import class_table
from rtseg.data.transforms import MEAN_RGB, STD_RGB
from rtseg.errors import ConfigError
from rtseg.export import OnNotice, contract_of, export_onnx, quiet
from rtseg.files import user_cache
from rtseg.frame import ClassTable
from rtseg.importing import Imported
from rtseg.models import AUXILIARY_PREFIX, Variant
from rtseg.models._catalogue import build, find
from rtseg.models._weights import load_weights, read_facts, read_shapes


def export_weights(
    name: str,
    weights: Path,
    path: Path,
    *,
    half: bool = True,
    classes_file: Path | None = None,
    input_hw: tuple[int, int] | None = None,
    on_notice: OnNotice = quiet,
) -> float:
    """Exports a network of the zoo with the weights of a safetensors file.

    Args:
        name: of the network, as in `rtseg models`.
        weights: from `rtseg import`, which puts mean, std and origin beside them, or from
            `rtseg train`.
        half, path: as for `export_onnx`, whose result this gives.
        classes_file: class table, see `classes_for`.
        input_hw: (H, W) that the contract names; None for that of the classes' data set.

    Raises:
        ConfigError: no such network, weights of another one, or a class table of another length.
        ModelError: the exported file does not reproduce the network.
    """
    family, variant = find(name)
    count, options = _fitting(family, variant, weights)
    classes, usual_hw = classes_for(count, classes_file)
    network = build(family, count, options)
    load_weights(network, weights)
    facts = read_facts(weights)
    contract = contract_of(
        network,
        name,
        family,
        options,
        classes,
        input_hw or usual_hw,
        mean=tuple(facts.get("mean", MEAN_RGB)),
        std=tuple(facts.get("std", STD_RGB)),
        licence=facts.get("licence", ""),
        source=facts.get("source", ""),
    )
    return export_onnx(network, contract, path, half=half, on_notice=on_notice)


def export_imported(
    imported: Imported,
    path: Path,
    *,
    half: bool = True,
    classes_file: Path | None = None,
    on_notice: OnNotice = quiet,
) -> float:
    """Exports a published checkpoint; see `export_onnx` for the check and the result.

    Raises:
        ConfigError: a class table of another length, or none for this number of classes.
        ModelError: the exported file does not reproduce the network.
    """
    classes, input_hw = classes_for(imported.num_classes, classes_file)
    contract = contract_of(
        imported.network,
        imported.name,
        imported.family,
        imported.options,
        classes,
        input_hw,
        mean=imported.release.mean,
        std=imported.release.std,
        source=imported.release.source,
    )
    return export_onnx(imported.network, contract, path, half=half, on_notice=on_notice)


def cached_model(name: str, weights: Path, *, classes_file: Path | None = None) -> Path:
    """The model file of a network with these weights, exported on first use into the user's cache.

    Raises:
        ConfigError, ModelError: see `export_weights`.
    """
    if not weights.is_file():
        raise ConfigError(f"{weights}: no such weights: give a .safetensors file")
    given = [name.encode(), weights.read_bytes()]
    if classes_file is not None and classes_file.is_file():
        given.append(classes_file.read_bytes())
    key = hashlib.sha256(b"\0".join(given)).hexdigest()[:20]
    path = user_cache() / "models" / f"{name}-{key}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        export_weights(name, weights, path, classes_file=classes_file)
    return path


def classes_for(count: int, file: Path | None) -> tuple[ClassTable, tuple[int, int]]:
    """The class table of so many classes, and the input (H, W) usual with it.

    Without a file: 19 are Cityscapes' classes, 11 are CamVid's.

    Raises:
        ConfigError: another number of classes and no file, or a file of another length.
    """
    known = {19: ("cityscapes", (512, 1024)), 11: ("camvid", (384, 480))}
    if file is not None:
        classes = read_classes(file)
        if len(classes) != count:
            raise ConfigError(f"{file}: {len(classes)} classes, the weights have {count}")
        return classes, known.get(count, ("", (512, 1024)))[1]
    if count not in known:
        raise ConfigError(f"{count} classes: give their names with --classes FILE")
    data, hw = known[count]
    return class_table(f"{data}:"), hw


def _fitting(family: str, variant: Variant, weights: Path) -> tuple[int, dict[str, Any]]:
    """C of the weights, and the options of the edition whose tensors they are.

    C is the length that a tensor has where ours, built for an unlikely C, has that one.
    """
    unlikely = 241
    shapes = read_shapes(weights)
    for options in variant.all_options():
        with torch.device("meta"):
            state = build(family, unlikely, options).state_dict()
        own = {k: tuple(v.shape) for k, v in state.items() if not k.startswith(AUXILIARY_PREFIX)}
        count = next(
            (
                shapes[key][shape.index(unlikely)]
                for key, shape in own.items()
                if unlikely in shape and len(shapes.get(key, ())) == len(shape)
            ),
            0,
        )
        expected = {
            key: tuple(count if n == unlikely else n for n in shape) for key, shape in own.items()
        }
        if count and all(shapes.get(key) == shape for key, shape in expected.items()):
            return count, options
    raise ConfigError(f"{weights}: not the weights of this network: a tensor is missing or differs")
