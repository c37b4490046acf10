"""`rtseg train`: a recipe in, a checkpoint and a log out.

Deterministic on one device: every draw comes from (seed, step), so a run that is stopped and
resumed does what one that was never stopped does. Does not know model files, but for the teacher
and the start; `export` writes them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from rtseg.artifact import load_model
from rtseg.batches import SKIP_BAD, Batch, batches, normalise, resized, to_tensor
from rtseg.data import DataSet, open_data
from rtseg.data.draws import Batches, Draws
from rtseg.data.transforms import MEAN_RGB, STD_RGB, Augmentation
from rtseg.engine.eager import build_network, cpu_has_bf16
from rtseg.errors import ConfigError, DataError, TrainingError
from rtseg.files import replacing
from rtseg.losses import (
    check_terms,
    distillation_loss,
    log_class_weights,
    median_class_weights,
)
from rtseg.metrics import Confusion
from rtseg.models._catalogue import build, resolve
from rtseg.models._weights import save_weights
from rtseg.models.layers import channels_last
from rtseg.objective import segmentation_loss
from rtseg.recipe import Recipe, expanded
from rtseg.warm_start import warm_start


def train(
    recipe: Recipe,
    directory: Path,
    *,
    resume: bool = True,
    skip_bad: bool = False,
    progress: Callable[[str], None] = print,
    on_step: Callable[[int, int, str], None] = lambda step, steps, note: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Path:
    """Trains a network and returns the path of the best checkpoint, its averaged weights.

    Writes `last.pt` (everything needed to resume), `best.safetensors` and `log.jsonl` to
    `directory`. With `resume`, an existing `last.pt` is continued. Under `torchrun` all processes
    train together, and the first one writes. A script of your own that calls this with loader
    processes in the recipe needs the usual `if __name__ == "__main__":`.

    Args:
        skip_bad: leave out samples that cannot be read, saying so once for each.
        progress: gets a line at each validation.
        on_step: gets the step, how many there are, and the loss, after each step.
        stopped: asked after each step; True ends the run there, with `last.pt` as of that step.

    Raises:
        ConfigError, DataError: before the first step; DataError also at an unreadable sample.
        TrainingError: the loss is not finite any more, or a checkpoint cannot be written.
    """
    for name in ("lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    fabric = _fabric()
    torch.manual_seed(recipe.seed)
    data = [open_data(expanded(spec), "train") for spec in recipe.data.train]
    val = open_data(expanded(recipe.data.val), "val")
    check_terms(recipe.loss or {"cross_entropy": 1.0})
    if any(d.classes.names != val.classes.names for d in data):
        raise ConfigError("the data sets of a recipe must have the same classes, in the same order")
    trainer = _Trainer(recipe, directory, fabric, data, val, skip_bad)
    if not fabric.is_global_zero:
        progress, on_step = (lambda line: None), (lambda step, steps, note: None)
    directory.mkdir(parents=True, exist_ok=True)
    if resume and trainer.last.is_file():
        trainer.resume()
        progress(f"resumed at step {trainer.step}")
    crops = Batches(
        _draws(recipe, data, skip_bad),
        trainer.step,
        recipe.optimiser.steps,
        recipe.optimiser.batch,
        fabric.global_rank,
        fabric.world_size,
    )
    began, first_step, losses = time.monotonic(), trainer.step, []
    for batch in batches(crops, recipe.optimiser.workers, fabric.device):
        for line in batch.bad:
            progress(f"left out: {line}")
        losses.append(trainer.learn(batch))
        pace = (time.monotonic() - began) / (trainer.step - first_step)
        steps = recipe.optimiser.steps
        on_step(trainer.step, steps, f"loss {losses[-1]:.3f}, {pace:.2f} s per step")
        ending = _any_process(fabric, stopped())
        if trainer.step % recipe.optimiser.validate_every == 0 or trainer.step == steps:
            record = {"loss": round(float(np.mean(losses)), 4), "step_seconds": round(pace, 3)}
            record = trainer.validate(record)
            progress(f"{json.dumps(record)} eta {pace * (steps - trainer.step) / 60:.0f} min")
            losses = []
        elif ending:
            trainer.save()
        if ending:
            progress(f"stopped at step {trainer.step} of {steps}: run it again to go on from there")
            break
    return trainer.best


def _any_process(fabric: Fabric, flag: bool) -> bool:
    """Whether the flag is set in any process, so that all of them leave a loop together."""
    if fabric.world_size == 1:
        return flag
    flags: Any = fabric.all_reduce(torch.tensor(int(flag), device=fabric.device), reduce_op="sum")
    return bool(flags)


class _Trainer:
    """The state of a run: network, its running average, optimiser, step, best result."""

    def __init__(
        self,
        recipe: Recipe,
        directory: Path,
        fabric: Fabric,
        data: Sequence[DataSet],
        val: DataSet,
        skip_bad: bool,
    ) -> None:
        self.recipe, self.fabric, self.val = recipe, fabric, val
        self.last, self.best = directory / "last.pt", directory / "best.safetensors"
        self.log = directory / "log.jsonl"
        options = recipe.optimiser
        model = recipe.model
        family, model_options = resolve(model.network, model.family, model.options)
        network = build(family, len(val.classes), model_options)
        self.align_corners, self.has_boundary_head = network.align_corners, network.boundary_head
        warm_start(network, recipe, data[0])
        self.teacher = _Teacher(recipe, val, fabric) if recipe.distil.teacher else None
        network = channels_last(network)
        optimiser = torch.optim.AdamW(
            _parameter_groups(network, options.weight_decay), lr=options.learning_rate
        )
        self.average = {k: v.to(fabric.device) for k, v in _copy_state(network).items()}
        self.network, self.optimiser = fabric.setup(network, optimiser)
        self.step, self.best_miou = 0, -1.0
        self.class_weights: Tensor | None = None
        if options.class_weights != "equal":
            counts = _class_counts(data[0], len(val.classes), skip_bad)
            if options.class_weights == "median":
                weights = median_class_weights(counts)
            else:
                frequency = (counts.sum(0) / counts.sum().clamp_min(1)).float()
                weights = log_class_weights(frequency, options.class_weight_offset)
            self.class_weights = weights.to(fabric.device)

    def resume(self) -> None:
        """Takes up `last.pt`."""
        try:
            state = torch.load(self.last, map_location=self.fabric.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, LookupError, EOFError, pickle.PickleError) as error:
            raise ConfigError(
                f"{self.last}: no checkpoint of this recipe's network: "
                "choose another --out, or --no-resume"
            ) from error
        self.average, self.step = state["average"], state["step"]
        self.best_miou = state["best_miou"]

    def learn(self, batch: Batch) -> float:
        """One optimiser step; returns its loss."""
        options = self.recipe.optimiser
        for group in self.optimiser.param_groups:
            group["lr"] = _learning_rate(self.recipe, self.step)
        self.network.train()
        # Dropout's draws: of the step and the process alone.
        torch.manual_seed(_seed_of(self.recipe.seed, self.step, self.fabric.global_rank))
        outputs = self.network(batch.images)
        loss = segmentation_loss(
            outputs,
            batch.labels,
            ignore_index=self.val.classes.ignore_index,
            class_weights=self.class_weights,
            auxiliary_weight=options.auxiliary_weight,
            terms=self.recipe.loss or None,
            align_corners=self.align_corners,
            boundary_weight=options.boundary_weight if self.has_boundary_head else None,
        )
        if self.teacher is not None:
            loss = loss + self.teacher.loss(outputs[0], batch.images)
        value = float(loss.detach())
        self._check_finite("loss", value, batch)
        self.optimiser.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.network, self.optimiser, max_norm=options.clip_norm, error_if_nonfinite=False
        )
        self._check_finite("gradient", float(norm or 0.0), batch)
        self.optimiser.step()
        self.step += 1
        decay = min(options.ema_decay, (1 + self.step) / (10 + self.step))
        _update_average(self.average, self.network, decay)
        return value

    def _check_finite(self, what: str, value: float, batch: Batch) -> None:
        """TrainingError, before the weights are touched, if a loss or a gradient's norm is not."""
        if math.isfinite(value):
            return
        kept = f"{self.last} holds the last good one" if self.last.is_file() else "none is kept"
        raise TrainingError(
            f"the {what} is {value} at step {self.step + 1}, on {', '.join(batch.names)}: "
            f"lower the learning rate or look at these samples; of checkpoints, {kept}"
        )

    def validate(self, record: dict[str, Any]) -> dict[str, Any]:
        """Measures the averaged weights, writes log and checkpoints; returns the log's line."""
        miou, per_class = self._measure()
        record = {
            "step": self.step,
            **record,
            "val_miou": _rounded(miou, 4),
            "val_iou": [_rounded(value, 3) for value in per_class],
            "learning_rate": self.optimiser.param_groups[0]["lr"],
        }
        better = miou > self.best_miou
        self.best_miou = max(miou, self.best_miou)
        self.save(record, better)
        return record

    def save(self, record: dict[str, Any] | None = None, better: bool = False) -> None:
        """Writes `last.pt`; before it the log's line if there is one, and the best weights."""
        if self.fabric.is_global_zero:
            try:
                if record is not None:
                    with self.log.open("a") as log:
                        log.write(json.dumps(record) + "\n")
                if better:
                    save_weights(self.average, self.best, step=self.step, miou=self.best_miou)
                with replacing(self.last) as partial:
                    torch.save(self._state(), partial)
            except (OSError, RuntimeError) as error:
                reason = str(error).splitlines()[0]
                raise TrainingError(
                    f"{self.last.parent}: cannot write the checkpoint of step {self.step} "
                    f"({reason}): free some space and run it again; the one before is intact"
                ) from error
        self.fabric.barrier()

    def _measure(self) -> tuple[float, list[float]]:
        """mIoU and IoU per class, at the labels' own size; the processes share the samples."""
        own = _copy_state(self.network)
        self.network.load_state_dict(self.average)
        self.network.eval()
        confusion = Confusion(len(self.val.classes))
        rank, world = self.fabric.global_rank, self.fabric.world_size
        with torch.inference_mode():
            for sample in self.val.samples[rank::world]:
                image, labels = sample.load()
                rgb = to_tensor(resized(image, self.recipe.data.input_hw))
                logits = self.network(normalise(rgb[None].to(self.fabric.device))).float()
                full = nn.functional.interpolate(
                    logits,
                    size=labels.shape,
                    mode="bilinear",
                    align_corners=self.align_corners,
                )
                confusion.add(labels, full.argmax(1)[0].to(torch.uint8).cpu().numpy())
        counts = torch.from_numpy(confusion.matrix).to(self.fabric.device)
        summed: Any = self.fabric.all_reduce(counts, reduce_op="sum")
        confusion.matrix = summed.cpu().numpy()
        self.network.load_state_dict(own)
        return confusion.mean_iou(), [float(v) for v in confusion.iou()]

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
            "best_miou": self.best_miou,
        }


class _Teacher:
    """A trained, larger network whose logits the pupil learns to give (Hinton et al., 2015)."""

    def __init__(self, recipe: Recipe, val: DataSet, fabric: Fabric) -> None:
        file = load_model(expanded(recipe.distil.teacher))
        if file.contract.classes.names != val.classes.names:
            raise ConfigError(f"{file.path}: the teacher must have the classes of the data sets")
        self._network = channels_last(build_network(file)).to(fabric.device)
        self._fabric, self._options = fabric, recipe.distil
        # Of the pupil's normalised images to the teacher's: x * scale + shift, per channel.
        mean, std = torch.tensor(file.contract.mean), torch.tensor(file.contract.std)
        scale = torch.tensor(STD_RGB) / std
        shift = (torch.tensor(MEAN_RGB) - mean) / std
        self._scale = scale[:, None, None].to(fabric.device)
        self._shift = shift[:, None, None].to(fabric.device)

    def loss(self, logits: Tensor, images: Tensor) -> Tensor:
        """The weighted distance of the pupil's logits to the teacher's on the same images."""
        with torch.no_grad(), self._fabric.autocast():
            target = self._network(images * self._scale + self._shift)
        options = self._options
        return options.weight * distillation_loss(logits, target, temperature=options.temperature)


def _fabric() -> Fabric:
    """One process on one device, or, under torchrun, as many as it started."""
    precision: Any = "bf16-mixed" if torch.cuda.is_available() or cpu_has_bf16() else "32-true"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Fabric(accelerator="auto", devices=1, precision=precision)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    fabric = Fabric(
        accelerator="auto",
        devices=local,
        num_nodes=world // local,
        strategy="ddp",
        precision=precision,
    )
    fabric.launch()
    return fabric


def _draws(recipe: Recipe, data: Sequence[DataSet], skip_bad: bool) -> Draws:
    options = recipe.data
    return Draws(
        data,
        options.share,
        Augmentation(options.input_hw, options.crop_hw, scale=options.scale, colour=options.colour),
        seed=recipe.seed,
        class_uniform=options.class_uniform,
        paste=options.paste,
        skip_bad=skip_bad,
    )


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


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


def _rounded(value: float, digits: int) -> float | None:
    """For JSON, which has no NaN: null for a class that never occurs."""
    return None if math.isnan(value) else round(value, digits)


def _class_counts(data: DataSet, num_classes: int, skip_bad: bool) -> Tensor:
    """(S, C) float64 pixels of each class in each of up to 400 samples."""
    counts = [np.zeros(256, np.int64)]
    for sample in data.samples[:400]:
        try:
            counts.append(np.bincount(sample.load()[1].ravel(), minlength=256))
        except DataError as error:
            if not skip_bad:
                raise DataError(f"{error} {SKIP_BAD}") from error
    return torch.from_numpy(np.stack(counts)[:, :num_classes].astype(np.float64))
