"""Built engines on disk: the plan, the manifest beside it, and the store that finds them again.

A plan is what TensorRT wrote, byte by byte, so NVIDIA's own tools load it. All that is known about
it lies in `NAME.json` beside `NAME.plan`, because a plan says nothing of itself on a machine
without its GPU. Nothing here needs TensorRT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rtseg.errors import EngineError, ModelError
from rtseg.files import replacing, user_cache

INPUT, OUTPUT = "image", "logits"
"""Names of the tensors of every model and plan of rtseg."""

NCHW = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shapes:
    """The input shapes (N, 3, H, W) that a plan takes, and the one it is tuned for.

    Raises:
        ValueError: no (N, 3, H, W), or not smallest, optimum, largest.
    """

    min: NCHW
    opt: NCHW
    max: NCHW

    def __post_init__(self) -> None:
        for shape in (self.min, self.opt, self.max):
            if len(shape) != 4 or shape[1] != 3 or any(n < 1 for n in shape):
                raise ValueError(f"expected a shape (N, 3, H, W), got {tuple(shape)}")
        if any(not a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError(f"expected min <= opt <= max, got {self.min}, {self.opt}, {self.max}")

    @classmethod
    def fixed(cls, shape: Sequence[int]) -> Shapes:
        """One shape and no other."""
        batch, channels, height, width = shape
        only = (batch, channels, height, width)
        return cls(only, only, only)

    def covers(self, other: Shapes) -> bool:
        """Whether a plan of these shapes takes every input of the others."""
        lower = all(a <= b for a, b in zip(self.min, other.min, strict=True))
        return lower and all(a >= b for a, b in zip(self.max, other.max, strict=True))

    def __str__(self) -> str:
        """ "384x480", or "256x256 to 1024x2048, best at 384x480"; with the batch unless it is 1."""
        if self.min == self.max:
            return _size(self.min)
        return f"{_size(self.min)} to {_size(self.max)}, best at {_size(self.opt)}"


@dataclass(frozen=True)
class Machine:
    """What a plan must have been built for to run here.

    Attributes:
        flavour: "tensorrt" or "tensorrt-rtx".
        version: of it, in full.
        compute_capability: of the GPU, such as "SM87"; empty where there is none.
    """

    flavour: str
    version: str
    compute_capability: str = ""


@dataclass(frozen=True)
class Manifest:
    """What is known about a plan.

    Attributes:
        name: of the model.
        onnx_sha256: of the model file the plan was built from, before any change of precision.
        flavour, version: of the TensorRT that built it, and the only one that runs it.
        compute_capabilities: GPUs it runs on, such as ("SM86", "SM89").
        precision: "fp32", "fp16", "int8" or "fp8".
        calibration: hash of frames and method; empty where there was none.
        shapes: of the input.
        tensors: {name: {"mode", "dtype", "shape"}} of inputs and outputs, -1 where dynamic.
        contract: the model file's `rtseg.*` metadata.
        parity: {reference, pixel_agreement, miou_difference, frames} against the fp32 model as
            measured before the build; None if it was not measured.
        plan_sha256, plan_bytes: of the plan file.
        build_seconds: TensorRT's own time.
        created: UTC, ISO 8601.
    """

    name: str
    onnx_sha256: str
    flavour: str
    version: str
    compute_capabilities: tuple[str, ...]
    precision: str
    shapes: Shapes
    contract: Mapping[str, str]
    plan_sha256: str
    plan_bytes: int
    build_seconds: float
    created: str
    calibration: str = ""
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parity: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Of what `to_dict` gave; KeyError names what is missing, ValueError what is wrong."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        for name, entry in known.items():
            required = entry.default is dataclasses.MISSING
            if required and entry.default_factory is dataclasses.MISSING and name not in values:
                raise KeyError(name)
        given = {k: v for k, v in values.items() if k in known}
        for key, value in given.items():
            kinds = _KINDS.get(key, (str,))
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{key} is {value!r}")
        shapes = {k: tuple(int(n) for n in given["shapes"][k]) for k in ("min", "opt", "max")}
        given["shapes"] = Shapes(**shapes)  # type: ignore[arg-type]
        given["compute_capabilities"] = tuple(given["compute_capabilities"])
        return cls(**given)


_KINDS: dict[str, tuple[type, ...]] = {
    "compute_capabilities": (list, tuple),
    "shapes": (dict,),
    "contract": (dict,),
    "tensors": (dict,),
    "parity": (dict, type(None)),
    "plan_bytes": (int,),
    "build_seconds": (int, float),
}


def manifest_path(plan: Path) -> Path:
    """`NAME.json` of `NAME.plan`."""
    return plan.with_suffix(".json")


def write_plan(path: Path, plan: bytes, manifest: Manifest) -> None:
    """Writes `NAME.plan` and the manifest `NAME.json` beside it; each is whole or not there.

    Raises:
        EngineError: the directory cannot be written.
    """
    text = json.dumps(manifest.to_dict(), indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(plan)
        with replacing(manifest_path(path)) as partial:
            partial.write_text(text)
    except OSError as error:
        why = f"cannot write the plan: {error.strerror}: choose another place"
        raise EngineError(f"{path}: {why}") from error


def read_manifest(path: Path) -> Manifest:
    """The manifest of a plan; `path` is either file.

    Raises:
        ModelError: there is none, or it is not one.
    """
    path = manifest_path(path)
    again = "build it with `rtseg build`"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no manifest beside the plan: {again}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable manifest: {again}") from error
    try:
        return Manifest.from_dict(values)
    except KeyError as error:
        raise ModelError(f"{path}: not a manifest, {error.args[0]} is missing: {again}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not a manifest, {error}: {again}") from error


def check(manifest: Manifest, machine: Machine) -> str:
    """Empty if the plan runs on a machine, else why it does not."""
    if manifest.flavour != machine.flavour:
        return f"built by {manifest.flavour}, this machine has {machine.flavour}"
    if manifest.version != machine.version:
        return f"built by {manifest.flavour} {manifest.version}, this machine has {machine.version}"
    if machine.compute_capability not in manifest.compute_capabilities:
        built = ", ".join(manifest.compute_capabilities)
        return f"built for {built}, this GPU is {machine.compute_capability or 'missing'}"
    return ""


def check_tensors(tensors: Mapping[str, Mapping[str, Any]]) -> str:
    """Empty if there is one input `image` (N, 3, H, W) and one output `logits`, else what is."""
    wanted = {INPUT: "input", OUTPUT: "output"}
    modes = {name: str(tensor.get("mode")) for name, tensor in tensors.items()}
    if modes != wanted:
        have = ", ".join(f"{mode} {name}" for name, mode in modes.items()) or "nothing"
        return f"it has {have}, not input {INPUT} and output {OUTPUT}"
    for name, tensor in tensors.items():
        shape = list(tensor.get("shape", ()))
        if len(shape) != 4 or (name == INPUT and shape[1] not in (3, -1)):
            return f"{name} has the shape {shape}, not (N, {'3' if name == INPUT else 'C'}, H, W)"
    return ""


def intact(path: Path, manifest: Manifest) -> str:
    """Empty if a plan is the file its manifest speaks of, else what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if len(data) != manifest.plan_bytes:
        return f"corrupt: {len(data)} bytes, its manifest says {manifest.plan_bytes}"
    if hashlib.sha256(data).hexdigest() != manifest.plan_sha256:
        return "corrupt: its sha256 is not that of its manifest"
    return ""


@dataclass(frozen=True)
class Key:
    """Which plan is wanted.

    Attributes:
        name: of the model, for the file's name.
        onnx_sha256: of the model file.
        precision: "fp32", "fp16", "int8" or "fp8".
        shapes: that it must take.
        machine: that it must run on.
    """

    name: str
    onnx_sha256: str
    precision: str
    shapes: Shapes
    machine: Machine

    def file_name(self) -> str:
        """The same for the same key, and readable."""
        told = json.dumps(dataclasses.asdict(self), sort_keys=True)
        digest = hashlib.sha256(told.encode()).hexdigest()[:12]
        size = "{2}x{3}".format(*self.shapes.opt)
        capability = self.machine.compute_capability
        return f"{self.name}-{size}-{self.precision}-{capability}-{digest}.plan"

    def mismatch(self, manifest: Manifest) -> str:
        """Empty if a plan is the one wanted, else why it is not."""
        return self.other_network(manifest) or check(manifest, self.machine)

    def other_network(self, manifest: Manifest) -> str:
        """Empty if a plan is of this network, on whatever machine, else what is different."""
        if manifest.onnx_sha256 != self.onnx_sha256:
            return "built from another model file"
        if manifest.precision != self.precision:
            return f"built in {manifest.precision}, wanted is {self.precision}"
        if not manifest.shapes.covers(self.shapes):
            return f"built for {manifest.shapes}, wanted is {self.shapes}"
        return check_tensors(manifest.tensors)


class Store:
    """Plans that were built on demand, found again by the next run.

    Args:
        directory: where they lie; None for $RTSEG_ENGINES, else ~/.cache/rtseg/engines.
        also: directories in which to look for plans built by `rtseg build`; nothing is written
            there.
    """

    def __init__(self, directory: Path | None = None, *, also: Sequence[Path] = ()) -> None:
        self.directory = directory or default_directory()
        self._also = tuple(also)

    def find(self, key: Key) -> tuple[Path | None, str]:
        """A plan that may be loaded, or None with the reason, which names what was found."""
        path = self.directory / key.file_name()
        reason = _problem(path, key) if path.exists() else ""
        if path.exists() and not reason:
            return path, ""
        for folder in self._also:
            for other in sorted(folder.glob("*.plan")):
                if not _problem(other, key):
                    return other, ""
        return None, reason or self._foreign(key) or "there is none yet"

    def find_or_build(
        self,
        key: Key,
        build: Callable[[], tuple[bytes, Manifest]],
        on_notice: Callable[[str], None] = lambda line: None,
    ) -> Path:
        """The path of the plan, built first if need be; of concurrent processes one builds.

        Args:
            key: which plan.
            build: gives the plan and its manifest.
            on_notice: takes lines for the user: why a plan is built, whom this process waits for.

        Raises:
            EngineError: the store cannot be written, or `build` gave another plan than was wanted.
        """
        found, _ = self.find(key)
        if found is not None:
            return found
        path = self.directory / key.file_name()
        with self._locked(path, lambda: on_notice(f"{path.name}: another process builds it")):
            found, reason = self.find(key)
            if found is not None:
                return found
            on_notice(f"building {path.name}: {reason}")
            plan, manifest = build()
            wrong = key.mismatch(manifest)
            if wrong:
                raise EngineError(f"{path.name}: not the plan that was asked for: {wrong}")
            write_plan(path, plan, manifest)
            return path

    def _foreign(self, key: Key) -> str:
        """Names a plan of this model, precision and shape that another machine left here."""
        for path in sorted(self.directory.glob(f"{key.name}-*.json")):
            try:
                manifest = read_manifest(path)
            except ModelError:
                continue
            foreign = check(manifest, key.machine)
            if foreign and not key.other_network(manifest):
                return f"{path.with_suffix('.plan').name} was {foreign}"
        return ""

    @contextlib.contextmanager
    def _locked(self, path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
        """One process at a time; the system frees the lock of one that dies."""
        import fcntl

        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = path.with_suffix(".lock").open("a")
        except OSError as error:
            raise EngineError(
                f"{self.directory}: cannot keep engines there ({error.strerror}): "
                "set RTSEG_ENGINES to a directory that can be written"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def default_directory() -> Path:
    """$RTSEG_ENGINES, else `rtseg/engines` in the user's cache."""
    given = os.environ.get("RTSEG_ENGINES")
    return Path(given) if given else user_cache() / "engines"


def _problem(path: Path, key: Key) -> str:
    """Empty if a plan may be loaded for a key, else why not."""
    try:
        manifest = read_manifest(path)
    except ModelError as error:
        return str(error).rpartition(": ")[0]  # without its advice: it is built anew anyway
    return key.mismatch(manifest) or intact(path, manifest)


def _size(shape: NCHW) -> str:
    batch = f"{shape[0]} x " if shape[0] > 1 else ""
    return f"{batch}{shape[2]}x{shape[3]}"
