"""`rtseg import`: an author's published state dict becomes weights of our network.

The family is recognised by the keys and shapes: each release's rules (see `models.Release`) are
tried, and the network that has every key with its shape is it. The file is read as tensors only,
never as code.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rtseg import plugins
from rtseg.errors import ConfigError
from rtseg.models import AUXILIARY_PREFIX, Release
from rtseg.models._catalogue import CLASSES, build, find, parameters
from rtseg.models._weights import save_weights
from rtseg.models.layers import Network

State = dict[str, Tensor]
_WRAPPERS = ("module.", "model.", "net.", "network.", "_orig_mod.")
_LOSS = re.compile(r"\w*(loss|criterion)\b")
"""Keys that belong to a training's loss, not to a network."""
_SHOWN = 3
"""Unmatched keys that an error names."""


@dataclass(frozen=True)
class Imported:
    """A published checkpoint as one of our networks.

    Attributes:
        name: of the network, as in `rtseg models`.
        family, options: how it is built.
        network: with the weights, in eval mode.
        num_classes: C.
        release: whose rules fitted.
        dropped: published keys that take no part in the output.
        heads: what `dropped` belongs to, in the release's own names, such as "head.dsn".
    """

    name: str
    family: str
    options: Mapping[str, Any]
    network: Network
    num_classes: int
    release: Release
    dropped: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    def __str__(self) -> str:
        count = f"{parameters(self.network):,} parameters"
        return f"{self.name}, {self.num_classes} classes, {count} ({self.release.source})"


@dataclass
class _Attempt:
    """How well a checkpoint fits one network."""

    name: str
    family: str
    options: Mapping[str, Any]
    release: Release
    state: State
    num_classes: int
    dropped: tuple[str, ...]
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def misfits(self) -> int:
        return len(self.missing) + len(self.unknown) + len(self.wrong)

    def why(self) -> str:
        """What does not fit, in a few words."""
        for keys, text in (
            (self.wrong, "of another shape"),
            (self.unknown, "unknown to it"),
            (self.missing, "missing"),
        ):
            if keys:
                more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
                return f"{', '.join(keys[:_SHOWN])}{more} {text}"
        return "nothing"


def import_checkpoint(path: Path, name: str = "") -> Imported:
    """Reads a published checkpoint into the network that it is of.

    Args:
        path: `.pth`, `.pt` or `.safetensors`: a state dict, or one inside a training checkpoint.
        name: of the network, if it is to be of this one; recognised by the keys if empty.

    Raises:
        ConfigError: unreadable, not tensors alone, not finite, of no network that is known here,
            or of another than `name`.
    """
    published = read_state(path)
    best = min(_attempts(published, name), key=lambda a: a.misfits, default=None)
    if best is None:
        raise ConfigError(f"{name}: no published layout of this network is known to rtseg import")
    if best.misfits:
        raise ConfigError(
            f"{path}: nearest to {best.name} ({best.release.source}), but {best.why()}: "
            "is it complete, and of a network that `rtseg import` knows?"
        )
    network = build(best.family, best.num_classes, best.options)
    network.load_state_dict(best.state, strict=False)
    return Imported(
        best.name,
        best.family,
        best.options,
        network.eval(),
        best.num_classes,
        best.release,
        best.dropped,
        _heads(best.dropped, set(published) - set(best.dropped)),
    )


def _heads(dropped: Sequence[str], kept: set[str]) -> tuple[str, ...]:
    """The shortest beginnings of dropped keys, up to a dot, that no kept key shares."""
    begins = {key[:i] for key in kept for i, c in enumerate(key) if c == "."}
    heads = []
    for key in dropped:
        parts = key.split(".")
        names = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
        heads.append(next((name for name in names if name not in begins), key))
    return tuple(dict.fromkeys(heads))


def save_imported(imported: Imported, path: Path) -> None:
    """Writes the weights as safetensors, with the release's normalisation and origin beside them.

    Raises:
        ConfigError: the file cannot be written.
    """
    release = imported.release
    try:
        save_weights(
            imported.network.state_dict(),
            path,
            network=imported.name,
            options=imported.options,
            mean=release.mean,
            std=release.std,
            source=release.source,
        )
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the weights: {error.strerror}") from error


def importable() -> list[str]:
    """Families with published layouts that can be read."""
    families = plugins.names("rtseg.models")
    return [f for f in families if getattr(plugins.load("rtseg.models", f), "RELEASES", ())]


def _attempts(published: State, name: str) -> Iterator[_Attempt]:
    families = [find(name)[0]] if name else importable()
    for family in families:
        module = plugins.load("rtseg.models", family)
        for release in getattr(module, "RELEASES", ()):
            state, dropped = translate(published, release)
            head = state.get(release.classifier, torch.empty(0))
            num_classes = head.shape[0] or CLASSES
            for variant_name, variant in module.VARIANTS.items():
                if name and variant_name != name:
                    continue
                for options in variant.all_options():
                    yield _fitted(
                        _Attempt(
                            variant_name, family, options, release,
                            dict(state), num_classes, dropped,
                        )
                    )  # fmt: skip


def translate(published: State, release: Release) -> tuple[State, tuple[str, ...]]:
    """The state dict under our keys, and the published keys that were left out by name.

    Where two published keys become one of ours, the later one counts, as it does when PyTorch
    loads a state dict of a network that holds a module twice.
    """
    state: State = {}
    dropped = []
    for key, tensor in published.items():
        if any(re.match(pattern, key) for pattern in release.dropped):
            dropped.append(key)
            continue
        ours = key
        for pattern, replacement in release.rules:
            ours = re.sub(pattern, replacement, ours)
        state[ours] = tensor
    return state, tuple(dropped)


def _fitted(attempt: _Attempt) -> _Attempt:
    """Compares the state with the network's own, built without memory; absorbs biases."""
    with torch.device("meta"):
        network = build(attempt.family, attempt.num_classes, attempt.options)
    own = {k: v for k, v in network.state_dict().items() if not k.startswith(AUXILIARY_PREFIX)}
    state = attempt.state
    _absorb_biases(state, own)
    counters = ".num_batches_tracked"
    attempt.unknown = [k for k in state if k not in own and not k.endswith(counters)]
    attempt.missing = [k for k in own if k not in state and not k.endswith(counters)]
    attempt.wrong = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    return attempt


def _absorb_biases(state: State, own: State) -> None:
    """A convolution's bias in front of a norm goes into the norm's running mean.

    Our convolutions have none there, because the norm takes it off again.
    """
    for key in [k for k in state if k.endswith(".0.bias") and k not in own]:
        mean = f"{key.removesuffix('.0.bias')}.1.running_mean"
        if mean in own and mean in state and state[mean].shape == state[key].shape:
            state[mean] = state[mean] - state.pop(key)


def read_state(path: Path) -> State:
    """The tensors of a checkpoint, float32, without the wrappers that training puts around keys.

    Raises:
        ConfigError: missing, truncated, not tensors alone, larger inside than outside, or with
            values that are not finite.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint: give the file that the authors published")
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(str(path))
        else:
            _check_archive(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle's protocol: it is read or refused
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path}: holds more than tensors (Python code, which is never run), or is damaged: "
            "load it where you trust it and save its state_dict alone"
        ) from error
    except (
        OSError, RuntimeError, ValueError, LookupError, EOFError, SafetensorError,
        zipfile.BadZipFile, AttributeError, TypeError,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path}: truncated, or no checkpoint of PyTorch: {reason}") from error
    state = _unwrapped(_tensors(loaded))
    if not state:
        raise ConfigError(f"{path}: no state dict in this file")
    for key, tensor in state.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConfigError(f"{path}: {key} claims more values than the file holds: refused")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ConfigError(f"{path}: {key} is not finite: a broken training run")
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _check_archive(path: Path) -> None:
    """PyTorch stores its archives uncompressed: refuses one that would unfold to more."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > path.stat().st_size:
        raise ConfigError(
            f"{path}: would unfold to {claimed / 1e6:.0f} MB, more than the file has: refused"
        )


def _tensors(loaded: Any) -> State:
    """The dict of tensors in what was loaded: the largest one of those that lie in it."""
    if not isinstance(loaded, Mapping):
        return {}
    own = {k: v for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Tensor)}
    inner = [_tensors(value) for value in loaded.values() if isinstance(value, Mapping)]
    return max([own, *inner], key=len)


def _unwrapped(state: State) -> State:
    """Takes off the prefixes that wrappers of a network leave on every key."""
    for prefix in _WRAPPERS * 2:
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if inside and all(k.startswith(prefix) or _LOSS.match(k) for k in state):
            state = inside
    return state
