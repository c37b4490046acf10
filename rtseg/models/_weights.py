"""Weights of a network on disk: safetensors checkpoints, and starting again from a model file."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rtseg.errors import ConfigError
from rtseg.files import replacing
from rtseg.models import AUXILIARY_PREFIX


def save_weights(state: dict[str, Tensor], path: Path, **facts: float) -> None:
    """Writes a state dict as safetensors, with facts such as step and mIoU in its metadata."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={k: json.dumps(v) for k, v in facts.items()})


def read_facts(path: Path) -> dict[str, float]:
    """The facts that `save_weights` put beside the weights; empty if there are none."""
    with safe_open(str(path), framework="pt") as file:
        return {k: json.loads(v) for k, v in (file.metadata() or {}).items()}


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


@torch.no_grad()
def start_from_model_file(network: nn.Module, path: Path, images: Tensor) -> None:
    """Starts a network from a model file, in which the norms have been folded away.

    Each norm gets the statistics that its input has on `images`, and the scale and shift that
    undo them, so that the network computes what the file does and trains on from there. The
    auxiliary heads keep their random weights.

    Args:
        images: (N, 3, H, W) normalised, a few typical ones.

    Raises:
        ConfigError: the file's weights are not those of this network.
    """
    import onnx

    stored = {t.name: t for t in onnx.load(str(path)).graph.initializer}
    hooks = []
    for name, module in network.named_modules():
        if f"{name}.".startswith(AUXILIARY_PREFIX) or not isinstance(module, nn.Sequential):
            continue
        children = list(module.named_children())
        for (first, conv), (_, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                bias = _tensor(stored, f"{name}.{first}.bias", norm.bias, path)
                hooks.append(norm.register_forward_pre_hook(_undo_norm(norm, bias)))
    for key, parameter in network.named_parameters():
        owner = network.get_submodule(key.rpartition(".")[0])
        if not key.startswith(AUXILIARY_PREFIX) and not isinstance(owner, nn.BatchNorm2d):
            parameter.copy_(_tensor(stored, key, parameter, path))
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


def _tensor(stored: dict, key: str, like: Tensor, path: Path) -> Tensor:  # type: ignore[type-arg]
    import onnx

    tensor = stored.get(key)
    if tensor is None or tuple(tensor.dims) != tuple(like.shape):
        raise ConfigError(f"{path}: not the recipe's network: {key} is missing or of another shape")
    return torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype("float32"))
