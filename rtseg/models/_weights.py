"""Weights of a network on disk: safetensors checkpoints, and starting again from a model file."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rtseg.errors import ConfigError
from rtseg.files import replacing
from rtseg.models import AUXILIARY_PREFIX


def save_weights(state: dict[str, Tensor], path: Path, **facts: Any) -> None:
    """Writes a state dict as safetensors, with facts such as step and mIoU in its metadata."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={k: json.dumps(v) for k, v in facts.items()})


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that `save_weights` put beside the weights; empty if there are none."""
    with safe_open(str(path), framework="pt") as file:
        return {k: json.loads(v) for k, v in (file.metadata() or {}).items()}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file, without its values.

    Raises:
        ConfigError: unreadable.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            keys = file.keys()
            return {key: tuple(file.get_slice(key).get_shape()) for key in keys}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: no safetensors file: {str(error).splitlines()[0]}") from error


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a safetensors checkpoint into a network of the same shape.

    Raises:
        ConfigError: unreadable, or of another network.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        network.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: cannot load this checkpoint: {reason}") from error


class StoredWeights:
    """The weights in a model file by the names that they have in our networks.

    Most keep their name in the graph. The exporter turns the matrices of linear layers over and
    keeps one of several equal tensors; `name_weights` has written down which.

    Raises:
        ConfigError: `tensor` finds none of that name and shape.
    """

    def __init__(self, path: Path) -> None:
        import onnx

        model = onnx.load(str(path))
        self._path = path
        self._stored = {t.name: t for t in model.graph.initializer}
        said = {entry.key: entry.value for entry in model.metadata_props}
        self._names: dict[str, list[Any]] = json.loads(said.get(_NAMES_KEY, "{}"))

    def tensor(self, key: str, like: Tensor) -> Tensor:
        """The weight `key`, float32, of the same shape as `like`."""
        import onnx

        name, turned = self._names.get(key, (key, False))
        stored = self._stored.get(name)
        if stored is None or int(np.prod(stored.dims)) != like.numel():
            raise ConfigError(f"{self._path}: {key} is missing or of another shape")
        values = torch.from_numpy(onnx.numpy_helper.to_array(stored).astype("float32"))
        if turned:
            return values.reshape(like.shape[::-1]).t().contiguous()
        if name == key and tuple(stored.dims) != tuple(like.shape):
            raise ConfigError(f"{self._path}: {key} is missing or of another shape")
        return values.reshape(like.shape)

    def load_into(self, network: nn.Module) -> None:
        """Sets all weights of a network with folded norms, but those of its auxiliary heads."""
        state = {
            key: self.tensor(key, value)
            for key, value in network.state_dict().items()
            if not key.startswith(AUXILIARY_PREFIX) and value.is_floating_point()
        }
        network.load_state_dict(state, strict=False)


_NAMES_KEY = "rtseg.weight_names"


def name_weights(network: nn.Module, model: Any) -> None:
    """Notes in an exported graph's metadata where the weights are that lost their names.

    Args:
        network: what was exported, float32, norms folded.
        model: onnx.ModelProto, its weights float32 still.
    """
    import onnx

    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    by_values = {value.tobytes(): name for name, value in stored.items() if value.size}
    names = {}
    for key, tensor in network.state_dict().items():
        if key.startswith(AUXILIARY_PREFIX) or not tensor.is_floating_point():
            continue
        value = tensor.detach().cpu().numpy()
        if key in stored and stored[key].shape == value.shape:
            continue
        for turned in (False, True) if value.ndim == 2 else (False,):
            name = by_values.get((value.T if turned else value).tobytes())
            if name is not None:
                names[key] = (name, turned)
                break
    if names:
        model.metadata_props.add(key=_NAMES_KEY, value=json.dumps(names))


@torch.no_grad()
def start_from_model_file(network: nn.Module, path: Path, images: Tensor) -> None:
    """Starts a network from a model file, in which the norms have been folded away.

    Each norm that was folded gets the statistics that its input has on `images`, and the scale and
    shift that undo them, so that the network computes what the file does and trains on from there.
    The auxiliary heads keep their random weights.

    Args:
        images: (N, 3, H, W) normalised, a few typical ones.

    Raises:
        ConfigError: the file's weights are not those of this network.
    """
    stored = StoredWeights(path)
    hooks, folded = [], set()
    for name, module in network.named_modules():
        if f"{name}.".startswith(AUXILIARY_PREFIX) or not isinstance(module, nn.Sequential):
            continue
        children = list(module.named_children())
        for (first, conv), (second, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(
                norm, nn.BatchNorm2d
            ):
                bias = stored.tensor(f"{name}.{first}.bias", norm.bias)
                hooks.append(norm.register_forward_pre_hook(_undo_norm(norm, bias)))
                folded.add(f"{name}.{second}")
                if conv.bias is not None:  # it is in the norm's shift now
                    conv.bias.zero_()
                    folded.add(f"{name}.{first}.bias")
    for key, value in network.state_dict().items():
        kept = key.startswith(AUXILIARY_PREFIX) or not value.is_floating_point()
        if not kept and key not in folded and key.rpartition(".")[0] not in folded:
            value.copy_(stored.tensor(key, value))
    network.eval()
    network(images)
    for hook in hooks:
        hook.remove()


def _undo_norm(norm: nn.BatchNorm2d, bias: Tensor):  # type: ignore[no-untyped-def]
    """A hook that sets `norm` so that its output is its input plus the bias."""

    def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
        mean = inputs[0].float().mean(dim=(0, 2, 3))
        variance = inputs[0].float().var(dim=(0, 2, 3), unbiased=False)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(torch.sqrt(variance + norm.eps))
        norm.bias.copy_(bias + mean)

    return hook
