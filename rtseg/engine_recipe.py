"""The engine recipe: which plan to build from which model, a TOML file read and checked once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rtseg.artifact import find_model, load_model, shipped
from rtseg.errors import ConfigError
from rtseg.plans import Shapes
from rtseg.recipe import read_tables

THIS_MACHINE, CPU = "this machine", "cpu"
DESKTOP = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
"""Compute capabilities that TensorRT-RTX builds for without their GPU."""
GROUPS = {"desktop": DESKTOP, "jetson-orin": ("SM87",), "jetson-thor": ("SM110",)}
PRECISIONS = ("fp32", "fp16", "int8", "fp8")
METHODS = ("percentile", "entropy")
FLAVOURS = {"rtx": "tensorrt-rtx", "tensorrt": "tensorrt", "any": "any"}
_LEAST_FP8 = 89


@dataclass(frozen=True)
class CalibrationRecipe:
    """What shows the ranges of the activations, for int8 and fp8.

    Attributes:
        data: data set specs NAME:ROOT; environment variables in them are expanded.
        split: of the data sets.
        source: or a source URI, as `rtseg run --source` takes.
        frames: how many, spread evenly over what there is.
        method: "percentile" or "entropy".
    """

    data: tuple[str, ...] = ()
    split: str = "train"
    source: str = ""
    frames: int = 128
    method: str = "percentile"


@dataclass(frozen=True)
class EngineRecipe:
    """A plan to build.

    Attributes:
        model: a shipped name, or the path of a model file, relative to the recipe.
        targets: compute capabilities ("SM86"), groups of them ("desktop", "jetson-orin",
            "jetson-thor") or "this machine"; "cpu" for an int8 model file and no plan.
        precision: "fp32", "fp16", "int8" or "fp8".
        input_hw: (H, W) of the input, if there is one only.
        min_hw, opt_hw, max_hw: else the range of (H, W), and the one to tune for.
        batch: frames per inference.
        flavour: "rtx", "tensorrt", or "any" for what is installed.
        workspace_mib: most scratch memory of a layer; 0 for TensorRT's default.
        optimisation_level: 0 (fast build) to 5 (fast engine).
        calibration: see its class; only for int8 and fp8.
        name: of the plan; the recipe's own file name if empty.
    """

    model: str
    targets: tuple[str, ...]
    precision: str = "fp16"
    input_hw: tuple[int, int] | None = None
    min_hw: tuple[int, int] | None = None
    opt_hw: tuple[int, int] | None = None
    max_hw: tuple[int, int] | None = None
    batch: int = 1
    flavour: str = "any"
    workspace_mib: int = 0
    optimisation_level: int = 3
    calibration: CalibrationRecipe = CalibrationRecipe()
    name: str = ""

    @property
    def shapes(self) -> Shapes:
        """Of the input, (N, 3, H, W)."""
        sizes = [self.input_hw or hw for hw in (self.min_hw, self.opt_hw, self.max_hw)]
        low, best, high = ((self.batch, 3, *hw) for hw in sizes if hw is not None)
        return Shapes(low, best, high)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities of all targets; empty for this machine's own."""
        named = [t for t in self.targets if t not in (THIS_MACHINE, CPU)]
        found = [name for t in named for name in GROUPS.get(t, (t,))]
        return tuple(sorted(set(found), key=lambda name: int(name[2:])))

    @property
    def for_cpu(self) -> bool:
        """Whether what comes out is a quantised model file, for OpenVINO and ONNX Runtime."""
        return self.targets == (CPU,)

    @property
    def on_device(self) -> bool:
        """Whether the plan can be built only on a machine it is for."""
        return self.targets == (THIS_MACHINE,) or any(t.startswith("jetson") for t in self.targets)


def read_engine_recipe(path: Path) -> EngineRecipe:
    """Reads and checks a recipe; its model must exist.

    Raises:
        ConfigError: unreadable, an unknown key (names the nearest), a missing key, or a value that
            is out of range or does not go with another.
        ModelError: the model is missing, or no model of rtseg.
    """
    recipe = read_tables(EngineRecipe, path, {"calibration": CalibrationRecipe})
    for key, value, known in (
        ("precision", recipe.precision, PRECISIONS),
        ("flavour", recipe.flavour, tuple(FLAVOURS)),
        ("[calibration] method", recipe.calibration.method, METHODS),
    ):
        if value not in known:
            raise ConfigError(f"{path}: {key} is {value!r}: choose one of {', '.join(known)}")
    _check_targets(recipe, path)
    _check_numbers(recipe, path)
    model = recipe.model
    if model not in shipped():
        model = str(find_model(str(path.parent / model)) if _is_path(model) else find_model(model))
    contract = load_model(model).contract
    _check_calibration(recipe, path, contract.precision)
    _check_shapes(recipe, path, contract.input_multiple)
    return dataclasses.replace(recipe, name=recipe.name or path.stem, model=model)


def _is_path(model: str) -> bool:
    return model.endswith(".onnx") or "/" in model


def _check_targets(recipe: EngineRecipe, path: Path) -> None:
    if not recipe.targets:
        raise ConfigError(f"{path}: targets is empty: name at least one GPU, such as SM86")
    for target in recipe.targets:
        is_capability = target[:2] == "SM" and target[2:].isdigit()
        if target not in (*GROUPS, THIS_MACHINE, CPU) and not is_capability:
            raise ConfigError(
                f"{path}: unknown target {target!r}: give compute capabilities such as SM86, "
                f"{', '.join(GROUPS)}, or {THIS_MACHINE!r} or {CPU!r} alone"
            )
    for alone in (THIS_MACHINE, CPU):
        if alone in recipe.targets and len(recipe.targets) > 1:
            raise ConfigError(f"{path}: {alone!r} stands alone in targets")
    if recipe.for_cpu and recipe.precision != "int8":
        raise ConfigError(
            f"{path}: only int8 is built for a CPU: its engines take the model file as it is for "
            "fp32, fp16 and bf16"
        )
    jetson = [t.startswith("jetson") for t in recipe.targets]
    if any(jetson) and not all(jetson):
        raise ConfigError(f"{path}: Jetson and desktop targets need a recipe each")
    if any(jetson) and recipe.flavour == "rtx":
        raise ConfigError(f"{path}: Jetson has no TensorRT-RTX: set flavour to 'tensorrt'")
    old = [name for name in recipe.capabilities if int(name[2:]) < _LEAST_FP8]
    if recipe.precision == "fp8" and old:
        raise ConfigError(
            f"{path}: fp8 needs SM{_LEAST_FP8} or newer, not {', '.join(old)}: "
            "take them out of targets, or use int8"
        )


def _check_numbers(recipe: EngineRecipe, path: Path) -> None:
    for key, value, least, most in (
        ("batch", recipe.batch, 1, 64),
        ("workspace_mib", recipe.workspace_mib, 0, 1 << 20),
        ("optimisation_level", recipe.optimisation_level, 0, 5),
        ("[calibration] frames", recipe.calibration.frames, 1, 100_000),
    ):
        if not least <= value <= most:
            raise ConfigError(f"{path}: {key} must be in {least}..{most}, got {value}")


def _check_calibration(recipe: EngineRecipe, path: Path, own: str) -> None:
    """A model file that is quantised already (`own` is its precision) needs no calibration."""
    calibration = recipe.calibration
    quantised = recipe.precision in ("int8", "fp8") and own != recipe.precision
    if quantised and not (calibration.data or calibration.source):
        raise ConfigError(
            f"{path}: {recipe.precision} needs frames to calibrate on: set data or source in "
            "[calibration]"
        )
    if calibration.data and calibration.source:
        raise ConfigError(f"{path}: [calibration] has data and source: remove one")
    if not quantised and calibration != CalibrationRecipe():
        raise ConfigError(
            f"{path}: {recipe.precision} of {recipe.model} is not calibrated: remove [calibration]"
        )


def _check_shapes(recipe: EngineRecipe, path: Path, multiple: int) -> None:
    ranged = {"min_hw": recipe.min_hw, "opt_hw": recipe.opt_hw, "max_hw": recipe.max_hw}
    given = [key for key, value in ranged.items() if value is not None]
    if (recipe.input_hw is not None) == bool(given) or len(given) not in (0, 3):
        raise ConfigError(f"{path}: give either input_hw, or all of {', '.join(ranged)}")
    for key, size in {"input_hw": recipe.input_hw, **ranged}.items():
        if size is None:
            continue
        if len(size) != 2 or min(size) < 1:
            raise ConfigError(f"{path}: {key} must be two positive integers, height first")
        if any(n % multiple for n in size):
            up = "x".join(str(-(-n // multiple) * multiple) for n in size)
            raise ConfigError(
                f"{path}: {key} must be multiples of {multiple} for {recipe.model}: try {up}"
            )
    try:
        _ = recipe.shapes
    except ValueError as error:
        raise ConfigError(f"{path}: min_hw, opt_hw and max_hw must rise: {error}") from error
