"""Training: a few steps on four tiny pictures, resumed and not, from scratch and from a file."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from rtseg import plugins  # noqa: E402
from rtseg.errors import ConfigError, DataError  # noqa: E402
from rtseg.models import AUXILIARY_PREFIX  # noqa: E402
from rtseg.models._weights import load_weights, start_from_model_file  # noqa: E402
from rtseg.recipe import Recipe  # noqa: E402
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

    whole, parts = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts")
    )
    for part in ("network", "average"):
        assert whole[part].keys() == parts[part].keys()
        for key, value in whole[part].items():
            assert torch.equal(value, parts[part][key]), f"{part} {key}"
    assert whole["best_miou"] == parts["best_miou"]
    assert log_of(tmp_path / "whole")[-1]["val_miou"] == log_of(tmp_path / "parts")[-1]["val_miou"]


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
