"""The model file: an ONNX graph that carries its own preprocess contract.

The contract lies in the ONNX metadata under `rtseg.*` keys, so that every engine prepares its
input from the same numbers. It is read here without the `onnx` package: the few protobuf fields
that are needed are walked by hand, which also notices a truncated file. The field numbers are
those of onnx.proto (ONNX IR specification).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rtseg.config import check_triple
from rtseg.errors import ModelError
from rtseg.frame import ClassTable, default_palette
from rtseg.models._catalogue import names

WEIGHTS_DIRECTORY = Path(__file__).parent / "weights"

_PREFIX = "rtseg."
_REQUIRED = ("classes", "mean", "std")


@dataclass(frozen=True)
class Contract:
    """How to prepare a model's input and read its output.

    Attributes:
        name: of the model.
        classes: names, colours, ignore index.
        mean, std: per channel, RGB, of pixels in 0..1.
        input_hw: (H, W) the model was trained for.
        input_multiple: height and width of an input must be multiples of this.
        output_stride: input size over logits size.
        align_corners: how logits are upsampled.
        family, options: the network in `rtseg.models` and its build options; "" if not ours.
        precision: what the graph itself computes in ("fp16", "int8", "fp8"); "" leaves it to the
            engine.
        trained_on: data sets, for people.
        measured: {data, split, size, miou} of this file, or empty.
        facts: {params, gmacs, paper, year} of the network, for people.
        licence: of the weights.
    """

    name: str
    classes: ClassTable
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_hw: tuple[int, int] = (384, 480)
    input_multiple: int = 32
    output_stride: int = 4
    align_corners: bool = False
    family: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    precision: str = ""
    trained_on: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""

    def __post_init__(self) -> None:
        for key, value in (("mean", self.mean), ("std", self.std)):
            if len(value) != 3:
                raise ValueError(f"{key}: expected three numbers (R, G, B), got {value}")
        if any(not v > 0 for v in self.std):
            raise ValueError(f"std: expected positive numbers, got {self.std}")
        if min(*self.input_hw, self.input_multiple, self.output_stride) < 1:
            raise ValueError("input_hw, input_multiple and output_stride must be at least 1")

    def to_metadata(self) -> dict[str, str]:
        """The `rtseg.*` metadata entries that `from_metadata` reads back."""
        classes = {
            "names": self.classes.names,
            "palette_rgb": self.classes.palette_rgb,
            "ignore_index": self.classes.ignore_index,
        }
        values: dict[str, Any] = {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "classes": classes,
            "colour_order": "RGB",
            "resize": "bilinear, stretched to the input size",
        }
        return {_PREFIX + k: json.dumps(v) for k, v in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Contract:
        """Reads the contract; KeyError names what is missing, ValueError what is wrong."""
        found = {k[len(_PREFIX) :]: v for k, v in metadata.items() if k.startswith(_PREFIX)}
        for key in _REQUIRED:
            if key not in found:
                raise KeyError(key)
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: json.loads(v) for k, v in found.items() if k in known}
        table = values.pop("classes")
        try:
            values["classes"] = ClassTable(
                tuple(table["names"]),
                tuple(tuple(c) for c in table["palette_rgb"]),
                table["ignore_index"],
            )
        except KeyError as error:
            raise ValueError(f"classes: {error.args[0]} is missing") from error
        for key in ("mean", "std", "input_hw"):
            if key in values:
                values[key] = tuple(values[key])
        return cls(**{"name": "", **values})


@dataclass(frozen=True)
class ModelFile:
    """A model file on disk with its contract.

    Attributes:
        path: of the `.onnx`.
        contract: how to use it.
        num_classes: channels of the output, as the graph says; 0 where it leaves them open.
    """

    path: Path
    contract: Contract
    num_classes: int

    def sha256(self) -> str:
        """Hex digest of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def shipped() -> list[str]:
    """Names of the model files that come with the package."""
    return sorted(p.stem for p in WEIGHTS_DIRECTORY.glob("*.onnx"))


def find_model(name_or_path: str) -> Path:
    """Path of a shipped model or of a file.

    Raises:
        ModelError: there is neither; lists the shipped names, or says how a network without
            weights gets some.
    """
    if name_or_path in shipped():
        return WEIGHTS_DIRECTORY / f"{name_or_path}.onnx"
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix == ".onnx" or len(path.parts) > 1:
        raise ModelError(f"{path}: no such model file")
    if name_or_path in names():
        raise ModelError(
            f"{name_or_path} is a network without weights here: train it (network = "
            f'"{name_or_path}" in a recipe of `rtseg train`), or import its authors\' weights '
            f"(rtseg import FILE -o {name_or_path}.onnx)"
        )
    near = difflib.get_close_matches(name_or_path, [*shipped(), *names()], n=3, cutoff=0.0)
    raise ModelError(
        f"unknown model {name_or_path!r}: give an .onnx file or one of {', '.join(shipped())}; "
        f"the nearest names are {', '.join(near)}"
    )


def load_model(
    name_or_path: str,
    *,
    classes_file: Path | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> ModelFile:
    """Reads a model file's contract and checks the graph against it.

    Args:
        name_or_path: a shipped name such as "street-m", or a path.
        classes_file: JSON {"names": [...], "palette": [[r, g, b], ...], "ignore_index": n}, or a
            text file with one class name per line; with `mean` and `std` (R, G, B, of pixels in
            0..1) it replaces a missing contract.

    Raises:
        ModelError: missing, truncated or not ONNX; no contract, or one more than the file's own; or
            a graph that does not fit it.
        ConfigError: a mean or deviation that cannot be one.
    """
    path = find_model(name_or_path)
    mean, std = check_triple(mean, "mean"), check_triple(std, "std")
    graph = _read_graph(path)
    metadata = dict(graph.metadata)
    try:
        contract = Contract.from_metadata(metadata)
        if any(value is not None for value in (classes_file, mean, std)):
            raise ModelError(
                f"{path}: the file has a preprocess contract of its own (see `rtseg inspect`): "
                "leave out --classes, --mean and --std"
            )
    except KeyError as error:
        if classes_file is None or mean is None or std is None:
            raise ModelError(
                f"{path}: no preprocess contract in the file (rtseg.{error.args[0]} is missing): "
                "give --classes FILE, --mean and --std (in Python classes_file, mean and std), or "
                "export it with `rtseg export`"
            ) from error
        contract = Contract(path.stem, read_classes(classes_file), mean, std)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: unusable preprocess contract: {error}") from error
    if graph.output_rank not in (0, 4):
        raise ModelError(
            f"{path}: expected an output (N, C, h, w) of rank 4, got rank {graph.output_rank}: "
            "export the network up to its logits, without argmax"
        )
    channels = graph.output_channels
    if channels > 255:
        raise ModelError(f"{path}: {channels} classes: at most 255 fit a uint8 label map")
    if channels and channels != len(contract.classes):
        raise ModelError(
            f"{path}: the graph has {channels} output channels, "
            f"the class table {len(contract.classes)} names"
        )
    return ModelFile(path, contract, channels)


def read_classes(path: Path) -> ClassTable:
    """Reads a class table: JSON, or a text file with one name per line; ModelError if bad."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot read the class table: {error}") from error
    try:
        if text.lstrip().startswith("{"):
            table = json.loads(text)
            names = tuple(table["names"])
            palette = (
                table.get("palette") or table.get("palette_rgb") or default_palette(len(names))
            )
            return ClassTable(
                names, tuple(tuple(c) for c in palette), int(table.get("ignore_index", 255))
            )
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
        return ClassTable(names, default_palette(len(names)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: unusable class table: {error}") from error


@dataclass(frozen=True)
class _Graph:
    metadata: Mapping[str, str]
    output_rank: int
    output_channels: int


def _read_graph(path: Path) -> _Graph:
    """Metadata and output shape of an ONNX file."""
    try:
        return _parse_model(memoryview(path.read_bytes()))
    except (_ProtobufError, ValueError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path}: not an ONNX model, or truncated: copy or export it again"
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot read the model: {error.strerror}") from error


class _ProtobufError(Exception):
    pass


def _parse_model(data: memoryview) -> _Graph:
    metadata: dict[str, str] = {}
    rank, channels, has_graph = 0, 0, False
    for number, value in _fields(data):
        if isinstance(value, int):
            continue
        if number == 14:  # metadata_props
            entry = {n: bytes(v).decode() for n, v in _fields(value) if not isinstance(v, int)}
            metadata[entry.get(1, "")] = entry.get(2, "")
        elif number == 7:  # graph
            has_graph = True
            for n, v in _fields(value):
                if n == 12 and not isinstance(v, int) and not rank:  # first output
                    rank, channels = _output_shape(v)
    if not has_graph:
        raise _ProtobufError
    return _Graph(metadata, rank, channels)


def _output_shape(value_info: memoryview) -> tuple[int, int]:
    """(rank, size of dimension 1 or 0 if open) of a ValueInfoProto: type.tensor_type.shape.dim."""
    for path_end in _descend(value_info, (2, 1, 2)):
        dims = [v for n, v in _fields(path_end) if n == 1 and isinstance(v, memoryview)]
        size = 0
        if len(dims) > 1:
            size = next((v for n, v in _fields(dims[1]) if n == 1 and isinstance(v, int)), 0)
        return len(dims), size
    return 0, 0


def _descend(message: memoryview, path: tuple[int, ...]) -> Iterator[memoryview]:
    if not path:
        yield message
        return
    for number, value in _fields(message):
        if number == path[0] and isinstance(value, memoryview):
            yield from _descend(value, path[1:])


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a protobuf message; nested messages and strings as views."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _ProtobufError
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(message, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise _ProtobufError
        if position + length > end:
            raise _ProtobufError
        if wire == 2:
            yield number, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise _ProtobufError
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
