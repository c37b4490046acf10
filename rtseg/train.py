"""`rtseg train`: a recipe in, a checkpoint and a log out.

Deterministic on one device: every draw comes from (seed, step), so a run that is stopped and
resumed does what one that was never stopped does. Does not know model files; `export` does.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rtseg import plugins
from rtseg.data import DataSet, Sample, open_data
from rtseg.data.transforms import MEAN_RGB, STD_RGB, Augmentation, augment
from rtseg.errors import ConfigError
from rtseg.frame import ImageBGR
from rtseg.losses import log_class_weights, segmentation_loss
from rtseg.metrics import Confusion
from rtseg.models._weights import load_weights, save_weights, start_from_model_file
from rtseg.recipe import Recipe


def train(
    recipe: Recipe,
    directory: Path,
    *,
    resume: bool = True,
    progress: Callable[[str], None] = print,
) -> Path:
    """Trains a network and returns the path of the best checkpoint, its averaged weights.

    Writes `last.pt` (everything needed to resume), `best.safetensors` and `log.jsonl` to
    `directory`. With `resume`, an existing `last.pt` is continued.

    Raises:
        ConfigError, DataError: before the first step.
    """
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    precision: Any = "bf16-mixed" if _has_fast_bf16() else "32-true"
    fabric = Fabric(accelerator="auto", devices=1, precision=precision)
    torch.manual_seed(recipe.seed)
    data = [open_data(_expanded(spec), "train") for spec in recipe.data.train]
    val = open_data(_expanded(recipe.data.val), "val")
    classes = val.classes
    if any(d.classes.names != classes.names for d in data):
        raise ConfigError("the data sets of a recipe must have the same classes, in the same order")

    network = plugins.load("rtseg.models", recipe.model.family).build(
        len(classes), **recipe.model.options
    )
    if recipe.init:
        _start(network, Path(_expanded(recipe.init)), data[0])
    network = network.to(memory_format=torch.channels_last)
    options = recipe.optimiser
    optimiser = torch.optim.AdamW(
        _parameter_groups(network, options.weight_decay), lr=options.learning_rate
    )
    average = _copy_state(network)
    network, optimiser = fabric.setup(network, optimiser)

    directory.mkdir(parents=True, exist_ok=True)
    last, best = directory / "last.pt", directory / "best.safetensors"
    step, best_miou = 0, -1.0
    if resume and last.is_file():
        try:
            state = torch.load(last, map_location=fabric.device, weights_only=True)
            network.load_state_dict(state["network"])
            optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, LookupError, EOFError, pickle.PickleError) as error:
            raise ConfigError(
                f"{last}: no checkpoint of this recipe's network: "
                "choose another --out, or --no-resume"
            ) from error
        average, step, best_miou = state["average"], state["step"], state["best_miou"]
        progress(f"resumed at step {step}")
    weights = None
    if options.class_weight_offset:
        frequency = _class_frequency(data[0], len(classes))
        weights = log_class_weights(frequency, options.class_weight_offset).to(fabric.device)

    began, first_step, losses = time.monotonic(), step, []
    for images, labels in _batches(recipe, data, step, fabric.device):
        rate = _learning_rate(recipe, step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        network.train()
        torch.manual_seed(_seed_of_step(recipe.seed, step))  # dropout's draws
        loss = segmentation_loss(
            network(images),
            labels,
            ignore_index=classes.ignore_index,
            class_weights=weights,
            auxiliary_weight=options.auxiliary_weight,
        )
        optimiser.zero_grad(set_to_none=True)
        fabric.backward(loss)
        fabric.clip_gradients(network, optimiser, max_norm=options.clip_norm)
        optimiser.step()
        step += 1
        _update_average(average, network, min(options.ema_decay, (1 + step) / (10 + step)))
        losses.append(float(loss.detach()))
        if step % options.validate_every == 0 or step == options.steps:
            miou, per_class = _validate(network, average, val, recipe, fabric.device)
            pace = (time.monotonic() - began) / (step - first_step)
            record = {
                "step": step,
                "loss": round(float(np.mean(losses)), 4),
                "val_miou": round(miou, 4),
                "val_iou": [round(v, 3) for v in per_class],
                "learning_rate": rate,
                "step_seconds": round(pace, 3),
            }
            with (directory / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            progress(f"{json.dumps(record)} eta {pace * (options.steps - step) / 60:.0f} min")
            losses = []
            if miou > best_miou:
                best_miou = miou
                save_weights(average, best, step=step, miou=miou)
            _save(
                {
                    "network": network.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "average": average,
                    "step": step,
                    "best_miou": best_miou,
                },
                last,
            )
    return best


def _expanded(text: str) -> str:
    """The text with $NAME replaced by environment variables; ConfigError if one is not set."""
    expanded = os.path.expandvars(text)
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise ConfigError(f"{text}: set the environment variable {unset[1]}, the data's directory")
    return expanded


def _start(network: nn.Module, path: Path, data: DataSet) -> None:
    """Loads a checkpoint, or continues from a model file with norms calibrated on 8 samples."""
    if path.suffix != ".onnx":
        load_weights(network, path)
        return
    chosen = data.samples[:: max(1, len(data.samples) // 8)][:8]
    images = [_to_tensor(_resized(sample.load()[0], (384, 480))) for sample in chosen]
    start_from_model_file(network, path, _normalise(torch.stack(images)))


def _resized(bgr: ImageBGR, size: tuple[int, int]) -> ImageBGR:
    return cv2.resize(bgr, size[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


def _to_tensor(bgr: ImageBGR) -> Tensor:
    """(3, H, W) uint8 RGB of an (H, W, 3) uint8 BGR image."""
    return torch.from_numpy(np.ascontiguousarray(bgr[:, :, ::-1].transpose(2, 0, 1)))


def _normalise(rgb: Tensor) -> Tensor:
    """(N, 3, H, W) float32, channels last, of uint8 RGB."""
    mean = 255.0 * torch.tensor(MEAN_RGB, device=rgb.device)[:, None, None]
    std = 255.0 * torch.tensor(STD_RGB, device=rgb.device)[:, None, None]
    return ((rgb.float() - mean) / std).contiguous(memory_format=torch.channels_last)


class _Draws(Dataset[tuple[Tensor, Tensor]]):
    """Sample number i of the endless stream of training crops; a function of (seed, i) alone."""

    def __init__(self, recipe: Recipe, data: list[DataSet], first: int) -> None:
        self.recipe = recipe
        self.data = data
        self.first = first
        self.length = max(0, recipe.optimiser.steps * recipe.optimiser.batch - first)
        sizes = np.array([len(d.samples) for d in data], float)
        share = np.array(recipe.data.share or sizes, float)
        self.share = share / share.sum()
        self.augmentation = Augmentation(
            recipe.data.input_hw,
            recipe.data.crop_hw,
            scale=recipe.data.scale,
            colour=recipe.data.colour,
        )
        self.cache: dict[tuple[int, int], tuple[Any, Any]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        cv2.setNumThreads(1)
        number = self.first + position
        rng = np.random.default_rng((self.recipe.seed, number))
        which = int(rng.choice(len(self.data), p=self.share))
        chosen = self.data[which]
        index = int(rng.integers(len(chosen.samples)))
        image, labels = self._load(which, index, chosen.samples[index])
        image, labels = augment(image, labels, self.augmentation, chosen.classes.ignore_index, rng)
        return _to_tensor(image), torch.from_numpy(labels)

    def _load(self, which: int, index: int, sample: Sample) -> tuple[Any, Any]:
        key = (which, index)
        if key not in self.cache:
            if len(self.cache) >= 4000:
                return sample.load()
            self.cache[key] = sample.load()
        return self.cache[key]


def _batches(
    recipe: Recipe, data: list[DataSet], step: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images (N, 3, h, w) float32 and labels (N, h, w) int64, from `step` on."""
    options = recipe.optimiser
    loader = DataLoader(
        _Draws(recipe, data, step * options.batch),
        batch_size=options.batch,
        num_workers=options.workers,
        prefetch_factor=4 if options.workers else None,
    )
    for rgb, labels in loader:
        yield _normalise(rgb.to(device)), labels.to(device).long()


def _seed_of_step(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


def _learning_rate(recipe: Recipe, step: int) -> float:
    options = recipe.optimiser
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def _copy_state(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


@torch.no_grad()
def _update_average(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1.0 - decay)
        else:
            average[key].copy_(value)


@torch.inference_mode()
def _validate(
    network: nn.Module,
    average: dict[str, Tensor],
    val: DataSet,
    recipe: Recipe,
    device: torch.device,
) -> tuple[float, list[float]]:
    """mIoU and IoU per class of the averaged weights, at the labels' own size."""
    own = _copy_state(network)
    network.load_state_dict(average)
    network.eval()
    confusion = Confusion(len(val.classes))
    for sample in val.samples:
        image, labels = sample.load()
        rgb = _to_tensor(_resized(image, recipe.data.input_hw))
        logits = network(_normalise(rgb[None].to(device))).float()
        full = nn.functional.interpolate(
            logits, size=labels.shape, mode="bilinear", align_corners=True
        )
        confusion.add(labels, full.argmax(1)[0].to(torch.uint8).cpu().numpy())
    network.load_state_dict(own)
    return confusion.mean_iou(), [float(v) for v in confusion.iou()]


def _class_frequency(data: DataSet, num_classes: int) -> Tensor:
    """(C,) share of each class among the labelled pixels of up to 400 samples."""
    counts = np.zeros(256, np.int64)
    for sample in data.samples[:400]:
        counts += np.bincount(sample.load()[1].ravel(), minlength=256)
    kept = counts[:num_classes].astype(np.float64)
    return torch.from_numpy(kept / max(kept.sum(), 1.0)).float()


def _save(state: dict[str, Any], path: Path) -> None:
    """Writes beside the target first, so that an interrupted write loses no older checkpoint."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _has_fast_bf16() -> bool:
    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
