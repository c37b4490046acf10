"""Recipes: read once, checked once, errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtseg.errors import ConfigError
from rtseg.recipe import read_recipe

GOOD = """
name = "street"
seed = 2
[model]
family = "sfnet_lite"
options = { width = 32, channels = [8, 8, 16, 16] }
[data]
train = ["camvid:DIR", "synth:seed=1"]
share = [0.75, 0.25]
val = "camvid:DIR"
crop_hw = [128, 160]
[optimiser]
steps = 10
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_a_good_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, GOOD))
    assert (recipe.name, recipe.seed, recipe.init) == ("street", 2, "")
    assert recipe.model.family == "sfnet_lite"
    assert recipe.model.options["width"] == 32
    assert recipe.data.train == ("camvid:DIR", "synth:seed=1")
    assert recipe.data.crop_hw == (128, 160)
    assert recipe.data.input_hw == (384, 480)
    assert (recipe.optimiser.steps, recipe.optimiser.batch) == (10, 8)


def test_every_shipped_recipe_is_good() -> None:
    from rtseg.artifact import WEIGHTS_DIRECTORY

    recipes = {path.stem: read_recipe(path) for path in WEIGHTS_DIRECTORY.rglob("*.toml")}
    assert {name: recipe.name for name, recipe in recipes.items()} == {n: n for n in recipes}
    # A stage starts where the one before puts its best checkpoint.
    stages = {f"runs/{path.stem}/best.safetensors" for path in WEIGHTS_DIRECTORY.glob("stages/*")}
    assert stages == {recipe.init for recipe in recipes.values() if recipe.init}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "street"', "", r"missing key 'name'"),
        ("steps = 10", "steps = 0", r"\[optimiser\] steps must be positive"),
        ("steps = 10", "", r"\[optimiser\]: missing key 'steps'"),
        ("steps = 10", "steps = 10\nmomentum = 1", r"unknown key 'momentum': choose from steps,"),
        ("steps = 10", "steps = 10\nbatch = 2.5", r"batch must be a whole number, got 2\.5"),
        ("seed = 2", 'init = "a.onnx"\ngrow = "b"', "init and grow exclude each other"),
        ("[0.75, 0.25]", "[0.7, 0.3]\nclass_uniform = 1.5", r"class_uniform must be in 0\.\.1"),
        ("steps = 10", "steps = 10\n[distil]\nweight = 0.0", "weight and temperature must be"),
        ("[0.75, 0.25]", "[1.0]", r"share has 1 numbers for 2 data sets"),
        ('["camvid:DIR", "synth:seed=1"]\nshare = [0.75, 0.25]', "[]", r"train is empty"),
        ("[128, 160]", "[128]", r"crop_hw must be two positive integers, height first"),
        ("[128, 160]", "[128, -1]", r"crop_hw must be two positive integers"),
        ("crop_hw = [128, 160]", "scale = [2.0, 1.0]", r"scale must be two positive numbers"),
        ('[model]\nfamily = "sfnet_lite"', 'model = "x"\n[x]', r"model must be a table"),
        ("[optimiser]", "[optimiser", r"not valid TOML"),
        ("steps = 10", "steps = 10\nlearning_rate = 'x'", r"learning_rate must be a number"),
        ("steps = 10", "steps = 10\nclass_weights = 'x'", "choose one of log, median, equal"),
        ("steps = 10", "steps = 10\nclass_weight_offset = 1", "class_weight_offset must be above"),
        ("steps = 10", "steps = 10\nworkers = -1", r"workers must not be negative"),
        ("steps = 10", "steps = true", r"steps must be a whole number, got True"),
        ('val = "camvid:DIR"', "val = 3", r"val must be text, got 3"),
        ("seed = 2", "sede = 2", r"unknown key 'sede'"),
    ],
)
def test_a_bad_recipe_names_the_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe: No such file"):
        read_recipe(tmp_path / "none.toml")
