"""Where a training run starts: a checkpoint, a model file, or a smaller network to grow from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rtseg.artifact import load_model
from rtseg.batches import normalise, resized, to_tensor
from rtseg.data import DataSet
from rtseg.errors import ConfigError
from rtseg.models._catalogue import build, resolve
from rtseg.models._weights import load_weights, start_from_model_file
from rtseg.recipe import Recipe, expanded


def warm_start(network: nn.Module, recipe: Recipe, data: DataSet) -> None:
    """Gives a network the weights that its recipe names; without any it keeps its random ones.

    Raises:
        ConfigError: the file is unreadable or of another network.
        DataError: a sample for the calibration of the norms cannot be read.
    """
    if recipe.init:
        _start(network, Path(expanded(recipe.init)), data)
    if recipe.grow:
        _grow(network, recipe, data)


def _start(network: nn.Module, path: Path, data: DataSet) -> None:
    """Loads a checkpoint, or continues from a model file with norms calibrated on 8 samples."""
    if path.suffix == ".onnx":
        start_from_model_file(network, path, _typical(data))
    else:
        load_weights(network, path)


def _grow(network: nn.Module, recipe: Recipe, data: DataSet) -> None:
    """Takes over from a smaller network of the same family what has the same name and shape."""
    file = load_model(expanded(recipe.grow))
    family, _ = resolve(recipe.model.network, recipe.model.family, recipe.model.options)
    if file.contract.family != family:
        raise ConfigError(
            f"{file.path} is a {file.contract.family}, the recipe's network a "
            f"{family}: grow from one of the same family"
        )
    small = build(family, len(file.contract.classes), file.contract.options)
    start_from_model_file(small, file.path, _typical(data))
    own, given = network.state_dict(), small.state_dict()
    shared = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    network.load_state_dict({**own, **shared})


def _typical(data: DataSet) -> Tensor:
    """Eight samples from all over the data set, normalised: (N, 3, H, W)."""
    chosen = data.samples[:: max(1, len(data.samples) // 8)][:8]
    images = [to_tensor(resized(sample.load()[0], (384, 480))) for sample in chosen]
    return normalise(torch.stack(images))
