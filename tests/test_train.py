"""Training: a few steps on four tiny pictures, resumed and not, from scratch and from a file."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from _command import toml_of  # noqa: E402

import rtseg.train  # noqa: E402
from rtseg import plugins  # noqa: E402
from rtseg.artifact import Contract  # noqa: E402
from rtseg.errors import ConfigError, DataError, TrainingError  # noqa: E402
from rtseg.models import AUXILIARY_PREFIX  # noqa: E402
from rtseg.models._weights import load_weights, start_from_model_file  # noqa: E402
from rtseg.objective import segmentation_loss  # noqa: E402
from rtseg.recipe import DistilRecipe, ModelRecipe, Recipe  # noqa: E402
from rtseg.train import train  # noqa: E402


@pytest.fixture(autouse=True)
def tiny_data(camvid_like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `camvid:$TINY_DATA` in the tiny recipe means."""
    monkeypatch.setenv("TINY_DATA", str(camvid_like))


def run(recipe: Recipe, directory: Path, **options: Any) -> list[str]:
    """Trains and returns the lines of progress."""
    lines: list[str] = []
    best = train(recipe, directory, progress=lines.append, **options)
    assert best == directory / "best.safetensors"
    return lines


def changed(recipe: Recipe, **optimiser: Any) -> Recipe:
    return dataclasses.replace(recipe, optimiser=dataclasses.replace(recipe.optimiser, **optimiser))


def log_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def test_a_run_writes_checkpoint_and_log(tiny_recipe: Recipe, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run(tiny_recipe, directory)
    log = log_of(directory)
    assert [record["step"] for record in log] == [2, 4]
    assert all(math.isfinite(record["loss"]) and record["loss"] > 0 for record in log)
    assert all(0 <= record["val_miou"] <= 1 and len(record["val_iou"]) == 11 for record in log)
    assert torch.load(directory / "last.pt", weights_only=True)["step"] == 4
    network = plugins.load("rtseg.models", "sfnet_lite").build(11, **tiny_recipe.model.options)
    load_weights(network, directory / "best.safetensors")
    assert not list(directory.glob("*.partial"))


def test_training_learns(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """Four pictures whose colours are their labels: thirty steps must get somewhere."""
    recipe = changed(tiny_recipe, steps=30, validate_every=10, learning_rate=5e-3)
    run(recipe, tmp_path / "run")
    losses = [record["loss"] for record in log_of(tmp_path / "run")]
    assert losses[-1] < losses[0]


def test_a_resumed_run_is_the_uninterrupted_one(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """Bit for bit on one device: dropout, crops and noise included."""
    run(tiny_recipe, tmp_path / "whole")

    class StopHereError(Exception):
        pass

    def interrupt(step: int, steps: int, note: str) -> None:
        if step == 3:  # a step after the checkpoint
            raise StopHereError

    with pytest.raises(StopHereError):
        train(tiny_recipe, tmp_path / "parts", progress=print, on_step=interrupt)
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["step"] == 2
    assert run(tiny_recipe, tmp_path / "parts")[0] == "resumed at step 2"
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_that_is_asked_to_stop_goes_on_from_that_step(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    run(tiny_recipe, tmp_path / "whole")
    lines: list[str] = []
    answers = iter((False, False, True))
    train(tiny_recipe, tmp_path / "parts", progress=lines.append, stopped=lambda: next(answers))
    assert lines[-1] == "stopped at step 3 of 4: run it again to go on from there"
    assert run(tiny_recipe, tmp_path / "parts")[0] == "resumed at step 3"
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def assert_same_run(first: Path, second: Path) -> None:
    whole, parts = (torch.load(run / "last.pt", weights_only=True) for run in (first, second))
    for part in ("network", "average"):
        assert whole[part].keys() == parts[part].keys()
        for key, value in whole[part].items():
            assert torch.equal(value, parts[part][key]), f"{part} {key}"
    assert whole["best_miou"] == parts["best_miou"]
    assert log_of(first)[-1]["val_miou"] == log_of(second)[-1]["val_miou"]


def test_a_finished_run_is_left_alone(tiny_recipe: Recipe, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run(changed(tiny_recipe, steps=2), directory)
    before = (directory / "best.safetensors").read_bytes()
    assert run(changed(tiny_recipe, steps=2), directory) == ["resumed at step 2"]
    assert run(changed(tiny_recipe, steps=1), directory) == ["resumed at step 2"]
    assert (directory / "best.safetensors").read_bytes() == before


def test_not_resuming_begins_again(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = changed(tiny_recipe, steps=2)
    run(recipe, tmp_path / "run")
    lines = run(recipe, tmp_path / "run", resume=False)
    assert not lines[0].startswith("resumed")


def test_a_checkpoint_of_another_network(tiny_recipe: Recipe, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run(changed(tiny_recipe, steps=2), directory)
    model = dataclasses.replace(
        tiny_recipe.model, options={**tiny_recipe.model.options, "width": 16}
    )
    other = dataclasses.replace(tiny_recipe, model=model)
    with pytest.raises(ConfigError, match=r"last\.pt: no checkpoint of this recipe") as caught:
        run(other, directory)
    assert "\n" not in str(caught.value)
    (directory / "last.pt").write_bytes(b"half a file")
    with pytest.raises(ConfigError, match=r"last\.pt: no checkpoint of this recipe"):
        run(tiny_recipe, directory)


def test_starting_from_a_checkpoint(
    tiny_recipe: Recipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(changed(tiny_recipe, steps=2), init=str(tiny_checkpoint))
    run(recipe, tmp_path / "run")
    wrong = dataclasses.replace(recipe, init=str(tmp_path / "none.safetensors"))
    with pytest.raises(ConfigError, match="cannot load this checkpoint"):
        run(wrong, tmp_path / "other")


def test_starting_from_a_model_file_computes_what_the_file_does(
    tiny_recipe: Recipe, tiny_checkpoint: Path, tiny_path: Path
) -> None:
    build = plugins.load("rtseg.models", "sfnet_lite").build
    original = build(11, **tiny_recipe.model.options)
    load_weights(original, tiny_checkpoint)
    torch.manual_seed(1)
    fresh = build(11, **tiny_recipe.model.options)
    images = torch.randn(4, 3, 64, 96)
    start_from_model_file(fresh, tiny_path, images)
    with torch.inference_mode():
        expected, got = original.eval()(images), fresh.eval()(images)
    # The file holds its weights as float16, 11 bits: a few per mille after some twenty layers.
    assert (got - expected).norm() / expected.norm() < 5e-3
    assert isinstance(fresh.train()(images), list)
    assert any(key.startswith(AUXILIARY_PREFIX) for key in fresh.state_dict())


def test_starting_from_the_file_of_another_network(tiny_recipe: Recipe, tiny_path: Path) -> None:
    options = {**tiny_recipe.model.options, "width": 16}
    network = plugins.load("rtseg.models", "sfnet_lite").build(11, **options)
    with pytest.raises(ConfigError, match="is missing or of another shape"):
        start_from_model_file(network, tiny_path, torch.randn(1, 3, 64, 96))


def test_an_unset_variable_is_named(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINY_DATA")
    with pytest.raises(ConfigError, match="set the environment variable TINY_DATA"):
        run(tiny_recipe, tmp_path / "run")


def test_wrong_data_stops_before_the_first_step(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError):
        run(tiny_recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_growing_takes_what_fits_and_leaves_the_rest(
    tiny_recipe: Recipe, tiny_path: Path, tmp_path: Path
) -> None:
    """A wider last stage: the stem is the small network's, the last stage has its own weights."""
    model = dataclasses.replace(
        tiny_recipe.model, options={**tiny_recipe.model.options, "channels": (8, 8, 16, 24)}
    )
    recipe = dataclasses.replace(
        changed(tiny_recipe, steps=1, learning_rate=1e-12), model=model, grow=str(tiny_path)
    )
    run(recipe, tmp_path / "run")
    grown = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["network"]
    build = plugins.load("rtseg.models", "sfnet_lite").build
    small = build(11, **tiny_recipe.model.options)
    start_from_model_file(small, tiny_path, torch.randn(2, 3, 64, 96))
    key = "backbone.stem.0.0.weight"
    assert torch.allclose(grown[key], small.state_dict()[key], atol=1e-4)
    other = dataclasses.replace(recipe, model=ModelRecipe("fpn", {}))
    with pytest.raises(ConfigError, match="is a sfnet_lite, the recipe's network a fpn"):
        run(other, tmp_path / "other")


def spoil_step(monkeypatch: pytest.MonkeyPatch, step: int, what: str = "loss") -> None:
    """Makes the loss of one step NaN, or its gradient alone."""
    loss = segmentation_loss
    calls: list[None] = []

    def spoiled(outputs: Any, *args: Any, **options: Any) -> Any:
        calls.append(None)
        value = loss(outputs, *args, **options)
        if len(calls) != step:
            return value
        # The slope of a root at 0 is infinite, times 0 it is NaN.
        return value * math.nan if what == "loss" else value + (0 * outputs[0]).sqrt().sum()

    monkeypatch.setattr(rtseg.train, "segmentation_loss", spoiled)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    spoil_step(monkeypatch, 3, what)
    with pytest.raises(TrainingError, match=f"the {what} is nan at step 3, on train_") as caught:
        run(tiny_recipe, tmp_path / "run")
    assert "last.pt holds the last good one" in str(caught.value)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["step"] == 2
    assert all(torch.isfinite(v).all() for v in state["network"].values() if v.is_floating_point())


def test_a_full_disk_keeps_the_checkpoint_before(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    run(changed(tiny_recipe, steps=2), directory)
    before = (directory / "last.pt").read_bytes()

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"step 4 \(.*No space left.*free some space") as caught:
        run(tiny_recipe, directory)
    assert "\n" not in str(caught.value)
    assert (directory / "last.pt").read_bytes() == before
    assert not list(directory.glob("*.partial"))


def test_a_corrupt_image_is_named_or_left_out(
    tiny_recipe: Recipe, camvid_like: Path, tmp_path: Path
) -> None:
    (camvid_like / "train" / "train_1.png").write_bytes(b"broken")
    recipe = changed(tiny_recipe, steps=8, validate_every=8)
    with pytest.raises(DataError, match=r"train_1\.png.*--skip-bad"):
        run(dataclasses.replace(recipe, optimiser=recipe.optimiser), tmp_path / "strict")
    lines = run(recipe, tmp_path / "lenient", skip_bad=True)
    assert any(line.startswith("left out: ") and "train_1.png" in line for line in lines)
    workers = changed(recipe, workers=1)
    with pytest.raises(DataError, match=r"train_1\.png.*--skip-bad") as caught:
        run(workers, tmp_path / "worker")
    assert "\n" not in str(caught.value)


def test_loader_processes_inherit_no_locks(
    tiny_recipe: Recipe, limited: Callable[[Callable[[], Any]], Any], tmp_path: Path
) -> None:
    """OpenCV's threads run in this process; a fork of it would wait for them for ever."""
    spec = "synth:seed=1,frames=2,size=64x96"
    data = dataclasses.replace(tiny_recipe.data, train=(spec,), val=spec)
    recipe = dataclasses.replace(changed(tiny_recipe, workers=1), data=data)
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        cv2.GaussianBlur(np.zeros((2000, 2000), np.uint8), (0, 0), 9)
        limited(lambda: run(recipe, tmp_path / "run"))
    finally:
        cv2.setNumThreads(before)
    assert [record["step"] for record in log_of(tmp_path / "run")] == [2, 4]


def test_a_pupil_learns_its_teachers_logits(
    tiny_recipe: Recipe, tiny_path: Path, tmp_path: Path
) -> None:
    """With a teacher's loss that outweighs the labels', the pupil must come to say the same."""
    distil = DistilRecipe(teacher=str(tiny_path), weight=50.0)
    recipe = changed(tiny_recipe, steps=40, validate_every=10, learning_rate=5e-3)
    run(dataclasses.replace(recipe, distil=distil), tmp_path / "run")
    losses = [record["loss"] for record in log_of(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]


def test_a_teacher_of_other_classes_is_refused(
    tiny_recipe: Recipe, write_onnx: Callable[..., Path], contract: Contract, tmp_path: Path
) -> None:
    other = write_onnx(metadata=contract.to_metadata())
    recipe = dataclasses.replace(tiny_recipe, distil=DistilRecipe(teacher=str(other)))
    with pytest.raises(ConfigError, match="the teacher must have the classes of the data sets"):
        run(recipe, tmp_path / "run")


def test_a_recipe_chooses_its_loss(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = changed(tiny_recipe, steps=2)
    run(recipe, tmp_path / "plain")
    run(dataclasses.replace(recipe, loss={"cross_entropy": 1.0, "dice": 1.0}), tmp_path / "more")
    plain, more = (log_of(tmp_path / name)[0]["loss"] for name in ("plain", "more"))
    assert more > plain
    with pytest.raises(ConfigError, match="unknown loss 'hinge'"):
        run(dataclasses.replace(recipe, loss={"hinge": 1.0}), tmp_path / "wrong")


@pytest.mark.slow
@pytest.mark.parametrize("class_weights", ["median", "equal"])
def test_a_recipe_chooses_its_class_weights(
    tiny_recipe: Recipe, tmp_path: Path, class_weights: str
) -> None:
    """The first loss differs by them, and by nothing else."""
    first = {}
    for kind in ("log", class_weights):
        recipe = changed(tiny_recipe, steps=1, class_weights=kind, class_weight_offset=1.02)
        run(recipe, tmp_path / kind)
        first[kind] = log_of(tmp_path / kind)[0]["loss"]
    assert first["log"] != first[class_weights]


def test_two_processes_train_together(
    tiny_recipe: Recipe, camvid_like: Path, tmp_path: Path
) -> None:
    """torchrun with gloo: one log, one checkpoint, and the confusion of all validation samples."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(toml_of(tiny_recipe))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "rtseg.cli", "train", str(recipe), "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    paths = os.pathsep.join([str(Path(rtseg.__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        command,
        env={**os.environ, "TINY_DATA": str(camvid_like), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in log_of(tmp_path / "run")] == [2, 4]
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 4
    assert done.stdout.count("wrote ") == 1
    assert (tmp_path / "run" / "tiny.onnx").is_file()
