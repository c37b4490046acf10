"""The training recipe: a TOML file, read and checked once, as frozen values."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rtseg.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Section = TypeVar("Section")
CLASS_WEIGHTS = ("log", "median", "equal")


@dataclass(frozen=True)
class ModelRecipe:
    """Which network.

    Attributes:
        family: names a file in rtseg/models.
        options: go to its `build`.
        network: instead of the family, the name of a network that `rtseg models` lists; `options`
            then change it.
    """

    family: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    network: str = ""


@dataclass(frozen=True)
class DataRecipe:
    """What to learn from.

    Attributes:
        train: data set specs NAME:ROOT; environment variables in them are expanded.
        share: how often each is drawn, one number per spec; empty means by size.
        val: spec of the data set whose `val` split picks the best checkpoint.
        input_hw: (H, W) an image is resized to at scale 1, and for validation.
        crop_hw: (H, W) of a training crop.
        scale: smallest and largest random scale.
        colour: strength of the colour changes, 0 is off.
        class_uniform: share of the crops that are sought by a class, each as often as any other.
        paste: share of the crops into which a rare class of another sample is pasted.
    """

    train: tuple[str, ...]
    val: str
    share: tuple[float, ...] = ()
    input_hw: tuple[int, int] = (384, 480)
    crop_hw: tuple[int, int] = (256, 320)
    scale: tuple[float, float] = (0.6, 1.8)
    colour: float = 0.2
    class_uniform: float = 0.0
    paste: float = 0.0


@dataclass(frozen=True)
class OptimiserRecipe:
    """How to learn: AdamW, linear warm-up, then a cosine down to zero.

    Attributes:
        steps: optimiser steps in all.
        batch: samples per step and process.
        learning_rate: at the top of the schedule.
        warmup_steps: of linear rise at the start.
        weight_decay: of AdamW; not applied to biases and norms.
        ema_decay: of the averaged weights that are validated and shipped.
        clip_norm: largest gradient norm.
        auxiliary_weight: of each auxiliary head's loss.
        boundary_weight: of a boundary head's, where the network has one (PIDNet, STDC).
        class_weights: "log" for 1 / log(offset + frequency), "median" for median frequency
            balancing (both in `rtseg.losses`), "equal".
        class_weight_offset: the offset of "log"; a larger one bounds the weights more tightly.
        validate_every: steps between validations and checkpoints.
        workers: data loader processes.
    """

    steps: int
    batch: int = 8
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.02
    ema_decay: float = 0.998
    clip_norm: float = 5.0
    auxiliary_weight: float = 0.4
    boundary_weight: float = 20.0
    class_weights: str = "log"
    class_weight_offset: float = 1.10
    validate_every: int = 500
    workers: int = 1


@dataclass(frozen=True)
class DistilRecipe:
    """Whom to learn from besides the labels.

    Attributes:
        teacher: a model file or shipped name with the same classes; empty for nobody.
        weight: of its loss beside the labels'.
        temperature: both logits are divided by it.
    """

    teacher: str = ""
    weight: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A training run, complete.

    Attributes:
        name: of the model file that comes out.
        model, data, optimiser, distil: see their classes.
        loss: weights of the criteria by name, see `rtseg.losses.CRITERIA`; empty for cross-entropy.
        seed: of every random draw.
        init: a model file or checkpoint to start from; empty for random weights.
        grow: a model file or shipped name of the same family to take over from where the tensors
            have the same name and shape; the others start at random. Empty for none.
    """

    name: str
    model: ModelRecipe
    data: DataRecipe
    optimiser: OptimiserRecipe
    distil: DistilRecipe = DistilRecipe()
    loss: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    init: str = ""
    grow: str = ""


def read_recipe(path: Path) -> Recipe:
    """Reads and checks a recipe.

    Raises:
        ConfigError: unreadable, not TOML, an unknown or missing key, or a value out of range.
    """
    sections = {
        "model": ModelRecipe,
        "data": DataRecipe,
        "optimiser": OptimiserRecipe,
        "distil": DistilRecipe,
    }
    recipe = read_tables(Recipe, path, sections)
    _check(recipe, path)
    return recipe


def read_tables(kind: type[Section], path: Path, sections: Mapping[str, type]) -> Section:
    """Reads a TOML file into a dataclass, and its named tables into theirs.

    Raises:
        ConfigError: unreadable, not TOML, an unknown key (names the nearest), a missing key, or a
            value of another type than the field's.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key in sections:
            if not isinstance(value, dict):
                raise ConfigError(f"{path}: {key} must be a table: [{key}]")
            values[key] = _build(sections[key], value, f"{path}: [{key}]")
        else:
            values[key] = value
    return _build(kind, values, str(path))


def expanded(text: str) -> str:
    """The text with $NAME replaced by environment variables; ConfigError if one is not set."""
    expanded = os.path.expandvars(text)
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise ConfigError(f"{text}: set the environment variable {unset[1]}, the data's directory")
    return expanded


def _build(kind: type[Section], table: Mapping[str, Any], where: str) -> Section:
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = [key for key in table if key not in fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], fields, n=1)
        hint = f"did you mean {near[0]!r}? Known are" if near else "choose from"
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}: {hint} {', '.join(fields)}")
    required = [
        f.name
        for f in fields.values()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in table]
    if missing:
        raise ConfigError(f"{where}: missing key {missing[0]!r}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    for key, value in values.items():
        _check_type(fields[key].type, value, f"{where}: {key}")
    return kind(**values)


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "tuple[str, ...]": ((str,), "a list of texts"),
    "tuple[int, int]": ((int,), "two whole numbers"),
    "tuple[int, int] | None": ((int,), "two whole numbers"),
    "tuple[float, ...]": ((int, float), "a list of numbers"),
    "tuple[float, float]": ((int, float), "two numbers"),
}


def _check_type(annotation: object, value: object, where: str) -> None:
    """ConfigError if a value read from TOML is not of the field's type."""
    if annotation not in _TYPES:
        return
    kinds, text = _TYPES[str(annotation)]
    is_list = str(annotation).startswith("tuple")
    items = value if isinstance(value, tuple) else (value,)
    right = isinstance(value, tuple) == is_list
    if not right or any(not isinstance(v, kinds) or isinstance(v, bool) for v in items):
        raise ConfigError(f"{where} must be {text}, got {value!r}")


def _check(recipe: Recipe, path: Path) -> None:
    data, optimiser = recipe.data, recipe.optimiser
    if bool(recipe.model.family) == bool(recipe.model.network):
        raise ConfigError(
            f"{path}: [model] needs either network, a name that `rtseg models` lists, or family"
        )
    if not data.train:
        raise ConfigError(f"{path}: [data] train is empty: name at least one data set")
    if data.share and len(data.share) != len(data.train):
        raise ConfigError(
            f"{path}: [data] share has {len(data.share)} numbers for {len(data.train)} data sets"
        )
    for name, size in (("input_hw", data.input_hw), ("crop_hw", data.crop_hw)):
        if len(size) != 2 or min(size) < 1:
            raise ConfigError(f"{path}: [data] {name} must be two positive integers, height first")
    if len(data.scale) != 2 or not 0 < data.scale[0] <= data.scale[1]:
        raise ConfigError(f"{path}: [data] scale must be two positive numbers, smaller first")
    for name in ("steps", "batch", "validate_every", "learning_rate"):
        if not getattr(optimiser, name) > 0:
            raise ConfigError(f"{path}: [optimiser] {name} must be positive")
    if optimiser.class_weights not in CLASS_WEIGHTS:
        raise ConfigError(
            f"{path}: [optimiser] class_weights is {optimiser.class_weights!r}: "
            f"choose one of {', '.join(CLASS_WEIGHTS)}"
        )
    if not optimiser.class_weight_offset > 1:
        raise ConfigError(f"{path}: [optimiser] class_weight_offset must be above 1")
    if recipe.init and recipe.grow:
        raise ConfigError(f"{path}: init and grow exclude each other: remove one")
    for name in ("class_uniform", "paste"):
        if not 0 <= getattr(data, name) <= 1:
            raise ConfigError(f"{path}: [data] {name} must be in 0..1")
    if not recipe.distil.weight > 0 or not recipe.distil.temperature > 0:
        raise ConfigError(f"{path}: [distil] weight and temperature must be positive")
    for name in ("warmup_steps", "weight_decay", "workers", "auxiliary_weight"):
        if getattr(optimiser, name) < 0:
            raise ConfigError(f"{path}: [optimiser] {name} must not be negative")
