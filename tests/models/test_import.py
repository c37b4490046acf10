"""Published state dicts become our networks, and compute what the published ones computed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rtseg.importing import Imported, import_checkpoint  # noqa: E402

FIXTURES = Path(__file__).parents[2] / "../shared/checkpoints"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.json"))


def published(name: str) -> Any:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def fixture_code() -> Any:
    """The module `fill.py` beside the fixtures."""
    spec = importlib.util.spec_from_file_location("fill", FIXTURES / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=NAMES)
def imported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Imported]:
    """Each fixture's state dict, behind `module.` and beside an optimiser's, imported."""
    name = request.param
    filled = fixture_code().fill(published(name)["keys"])
    state = {f"module.{k}": torch.from_numpy(np.asarray(v)) for k, v in filled.items()}
    path = tmp_path / "release.pth"
    torch.save({"state_dict": state, "optimizer": {"state": {}}, "epoch": 3}, path)
    return name, import_checkpoint(path)


def test_it_computes_what_the_published_network_computes(imported: tuple[str, Imported]) -> None:
    name, result = imported
    images = torch.from_numpy(fixture_code().image())
    with torch.inference_mode():
        logits = result.network(images)
        if published(name)["logits_stride"] == 4:
            logits = torch.nn.functional.interpolate(
                logits, size=images.shape[-2:], mode="bilinear",
                align_corners=result.network.align_corners,
            )[..., ::4, ::4]  # fmt: skip
    expected = np.load(FIXTURES / f"{name}.npz")["logits"]
    assert logits.shape == expected.shape
    error = np.linalg.norm(logits.numpy() - expected) / np.linalg.norm(expected)
    assert error <= 1e-4


def test_it_says_what_it_found(imported: tuple[str, Imported]) -> None:
    name, result = imported
    assert result.num_classes == 19
    assert str(result).startswith(f"{result.name}, 19 classes, ")
    assert result.name == name
