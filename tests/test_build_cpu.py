"""`rtseg build` for a CPU: a quantised model file, without TensorRT."""

from __future__ import annotations

from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from _command import Rtseg, refusal  # noqa: E402

from rtseg import build  # noqa: E402
from rtseg.artifact import load_model  # noqa: E402
from rtseg.engine import _tensorrt, open_engine  # noqa: E402

RECIPE = """
model = "tiny.onnx"
targets = ["cpu"]
precision = "int8"
input_hw = [64, 96]

[calibration]
data = ["synth:seed=1,frames=4,size=64x96"]
frames = 4
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.onnx").write_bytes(tiny_path.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_tensorrt, "missing", lambda wanted="any": "TensorRT is missing")
    monkeypatch.setattr(build, "_PARITY_PIXELS", 1)
    path = tmp_path / "tiny-int8-cpu.toml"
    path.write_text(RECIPE)
    return path


def test_a_model_file_that_runs_in_int8(recipe: Path, rtseg_command: Rtseg) -> None:
    done = rtseg_command("build", recipe, "--allow-mismatch")
    assert done.code == 0, done.err
    assert "CPU" in done.out
    model = load_model("tiny-int8-cpu.onnx")
    assert model.contract.precision == "int8"
    stored = [tensor.data_type for tensor in onnx.load(str(model.path)).graph.initializer]
    assert stored.count(onnx.TensorProto.INT8) > 20
    for name in ("openvino", "onnxruntime"):
        engine = open_engine(model, name)
        assert engine.info.precision == "int8"
        engine.close()
    run = rtseg_command(
        "run", "--source", "synth:size=64x96", "--max-frames", "3", "--model", model.path,
        "--precision", "int8", "--masks", "masks",
    )  # fmt: skip
    assert run.code == 0, run.err
    assert len(list(Path("masks").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"int8"', '"fp16"', "only int8 is built for a CPU"),
        ('["cpu"]', '["cpu", "SM86"]', "'cpu' stands alone in targets"),
    ],
)
def test_a_recipe_that_makes_no_sense(
    recipe: Path, rtseg_command: Rtseg, old: str, new: str, message: str
) -> None:
    recipe.write_text(RECIPE.replace(old, new))
    assert message in refusal(rtseg_command("build", recipe))


def test_a_directory_that_cannot_be_written(recipe: Path, rtseg_command: Rtseg) -> None:
    Path("out").write_text("a file")
    assert "out" in refusal(rtseg_command("build", recipe, "--out", "out/plans"))
