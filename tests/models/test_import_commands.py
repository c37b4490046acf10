"""`rtseg import`, `rtseg export NAME --weights` and what they give, as a user runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from _command import Rtseg  # noqa: E402
from _data_trees import plant  # noqa: E402
from test_import import FIXTURES, fixture_code, published  # noqa: E402

from rtseg.artifact import load_model  # noqa: E402

pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason="no checkpoint fixtures here")
NAME = "ddrnet-23-slim"
SYNTH = "synth:seed=9,frames=2,size=96x128"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published checkpoint, as training leaves it."""
    filled = fixture_code().fill(published(NAME)["keys"])
    state = {f"model.{k}": torch.from_numpy(np.asarray(v)) for k, v in filled.items()}
    state["model.seghead_extra.conv1.weight"] = torch.ones(3)
    path = tmp_path_factory.mktemp("release") / "release.pth"
    torch.save({"state_dict": state, "epoch": 120}, path)
    return path


@pytest.fixture
def weights(checkpoint: Path, tmp_path: Path, rtseg_command: Rtseg) -> Path:
    path = tmp_path / "weights.safetensors"
    done = rtseg_command("import", checkpoint, "-o", path)
    assert done.code == 0, done.err
    assert "ddrnet-23-slim, 19 classes, 5,695,987 parameters" in done.out
    assert "left out: seghead_extra" in done.out
    return path


@pytest.mark.slow
def test_the_long_way_and_the_short_one_give_the_same_file(
    checkpoint: Path, weights: Path, tmp_path: Path, rtseg_command: Rtseg
) -> None:
    short, long = tmp_path / "short.onnx", tmp_path / "long.onnx"
    done = rtseg_command("import", checkpoint, "-o", short, "--precision", "fp32")
    assert done.code == 0, done.err
    done = rtseg_command("export", NAME, "--weights", weights, "-o", long, "--precision", "fp32")
    assert done.code == 0, done.err
    one, other = load_model(str(short)), load_model(str(long))
    assert one.contract == other.contract
    assert one.contract.family == "ddrnet"
    assert one.contract.output_stride == 8
    assert len(one.contract.classes) == 19
    graphs = [
        {t.name: t.raw_data for t in onnx.load(str(p)).graph.initializer} for p in (short, long)
    ]
    assert graphs[0] == graphs[1]


@pytest.mark.slow
def test_what_was_imported_runs_everywhere(
    weights: Path, tmp_path: Path, rtseg_command: Rtseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    cityscapes = f"cityscapes:{plant('cityscapes', tmp_path)}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = ["--model", NAME, "--weights", weights, "--size", "64x128"]
    run = ["run", "--source", SYNTH, "--max-frames", "2", *model]
    for command in (
        [*run, "--masks", tmp_path / "masks"],
        [*run, "--engine", "onnxruntime"],
        [*run, "--engine", "eager"],
        ["eval", "--data", cityscapes, *model],
        ["bench", "--data", cityscapes, "--frames", "10", *model],
        ["bench", "--data", SYNTH, "--frames", "10", *model],  # other classes: a pace, no mIoU
    ):
        done = rtseg_command(*command)
        assert done.code == 0, done.err
    assert len(list((tmp_path / "masks").iterdir())) == 2
    # It was exported once, into the cache.
    assert len(list((tmp_path / "cache" / "rtseg" / "models").iterdir())) == 1


def test_the_name_must_fit(checkpoint: Path, tmp_path: Path, rtseg_command: Rtseg) -> None:
    out = tmp_path / "w.safetensors"
    done = rtseg_command("import", checkpoint, "--as", "ddrnet-23", "-o", out)
    assert done.code == 2
    assert "of another shape" in done.err
    assert done.err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "none.pth", "-o", "w.safetensors"], "no such checkpoint"),
        (["import", "none.pth", "-o", "w.pth"], "ends in .safetensors or .onnx"),
        (["import", "none.pth", "-o", "w.onnx", "--precision", "int8"], "fp16 or fp32"),
        (["export", NAME, "-o", "x.onnx"], "--weights FILE"),
        (["export", "ddrnet-24", "--weights", "w", "-o", "x.onnx"], "nearest are ddrnet-23"),
        (["export", NAME, "--weights", "none.safetensors", "-o", "x.onnx"], "no safetensors file"),
        (["run", "--source", "synth:", "--model", NAME], "import its authors' weights"),
        (["run", "--source", "synth:", "--model", NAME, "--weights", "none"], "no such weights"),
        (["eval", "--data", SYNTH, "--model", "ddrnet-32"], "nearest names are ddrnet"),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], says: str, rtseg_command: Rtseg) -> None:
    done = rtseg_command(*arguments)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("\n") == 1


def test_weights_of_another_network(weights: Path, rtseg_command: Rtseg, tmp_path: Path) -> None:
    done = rtseg_command("export", "pidnet-s", "--weights", weights, "-o", tmp_path / "x.onnx")
    assert done.code == 2
    assert done.err.count("\n") == 1


def test_a_class_table_of_another_length(
    checkpoint: Path, tmp_path: Path, rtseg_command: Rtseg
) -> None:
    table = tmp_path / "classes.txt"
    table.write_text("road\ncar\n")
    out = tmp_path / "x.onnx"
    done = rtseg_command("import", checkpoint, "-o", out, "--classes", table)
    assert done.code == 2
    assert "2 classes, the weights have 19" in done.err
    assert not out.exists()
