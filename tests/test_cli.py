"""The command line: what each command gives, and how a run is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from _command import Rtseg, toml_of

import rtseg
from rtseg import artifact, cli
from rtseg.artifact import ModelFile
from rtseg.data.camvid import CLASSES
from rtseg.recipe import Recipe

COMMANDS = sorted(
    command.name or command.callback.__name__
    for command in cli.app.registered_commands
    if command.callback is not None
)


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(rtseg_command: Rtseg, command: str | None) -> None:
    done = rtseg_command(*([command] if command else []), "--help")
    assert (done.code, done.err) == (0, "")
    assert "Usage:" in done.out
    for name in COMMANDS if command is None else ["--help"]:
        assert name in done.out


def test_a_run_writes_video_masks_lines_and_report(
    rtseg_command: Rtseg, short: list[object], tmp_path: Path
) -> None:
    video, masks = tmp_path / "out.mp4", tmp_path / "masks"
    lines, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    done = rtseg_command(
        *short, "--save", video, "--masks", masks, "--jsonl", lines, "--report", report
    )
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("5 frames")
    with av.open(str(video)) as container:
        assert [(f.height, f.width) for f in container.decode(video=0)] == [(64, 96)] * 5
    assert sorted(p.name for p in masks.iterdir()) == [f"{i:06d}.png" for i in range(5)]
    mask = cv2.imread(str(masks / "000003.png"), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert mask.shape == (64, 96)
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [r["index"] for r in records] == list(range(5))
    result = json.loads(report.read_text())
    assert (result["frames_in"], result["frames_out"], result["frames_dropped"]) == (5, 5, 0)
    assert result["engine_fps"] > 0
    assert 0 <= result["miou"] <= 1
    assert list(result["class_fraction"]) == list(CLASSES)


def test_a_run_reports_to_stdout_alone(rtseg_command: Rtseg, short: list[object]) -> None:
    done = rtseg_command(*short, "--report", "-")
    assert done.code == 0
    assert json.loads(done.out)["frames_out"] == 5


def test_lines_to_stdout(rtseg_command: Rtseg, short: list[object]) -> None:
    done = rtseg_command(*short, "--jsonl", "-")
    assert done.code == 0
    assert [json.loads(line)["index"] for line in done.out.splitlines()] == list(range(5))


@pytest.mark.parametrize("effect", ["overlay", "mask", "contour", "blur:car+road", "side-by-side"])
def test_effects(rtseg_command: Rtseg, short: list[object], tmp_path: Path, effect: str) -> None:
    video = tmp_path / "out.mp4"
    assert rtseg_command(*short, "--effect", effect, "--save", video).code == 0
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5


@pytest.mark.parametrize(
    ("size", "used", "said"),
    [("64x96", [64, 96], False), ("100x100", [128, 128], True), ("auto", [64, 96], False)],
)
def test_a_size_is_rounded_up_and_said_once(
    rtseg_command: Rtseg, short: list[object], size: str, used: list[int], said: bool
) -> None:
    done = rtseg_command(*short, "--size", size, "--report", "-")
    assert done.code == 0
    assert json.loads(done.out)["input_size"] == used
    assert done.err.count("rounded up to 128x128") == said


def test_a_real_drive(rtseg_command: Rtseg, tiny_path: Path, drive_video: Path) -> None:
    done = rtseg_command(
        "run", "--source", drive_video, "--model", tiny_path, "--max-frames", 3, "--report", "-"
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["source_size"] == [540, 960]
    assert (result["frames_out"], result["miou"]) == (3, None)


def test_models_as_json(rtseg_command: Rtseg) -> None:
    done = rtseg_command("models", "--json", "-")
    assert (done.code, done.err) == (0, "")
    for row in json.loads(done.out):
        assert set(row) >= {
            "name", "family", "params", "gmacs", "output_stride", "paper", "year", "reported",
            "shipped",
        }  # fmt: skip
    assert rtseg_command("models").code == 0


def test_doctor(rtseg_command: Rtseg) -> None:
    done = rtseg_command("doctor", "--json", "-")
    assert (done.code, done.err) == (0, "")
    findings = json.loads(done.out)
    assert {f["what"] for f in findings} >= {"system", "kernels", "engine openvino", "cameras"}
    table = rtseg_command("doctor")
    assert table.code == 0
    assert all(f["what"] in table.out for f in findings)


def test_eval(rtseg_command: Rtseg, tiny_path: Path, camvid_like: Path) -> None:
    done = rtseg_command(
        "eval", "--data", f"camvid:{camvid_like}", "--model", tiny_path, "--json", "-"
    )
    assert done.code == 0
    result = json.loads(done.out)
    assert set(result) >= {
        "miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "iou", "confusion", "frames",
        "model", "engine", "precision", "size", "versions", "command",
    }  # fmt: skip
    assert result["frames"] == 2
    assert list(result["iou"]) == list(CLASSES)
    assert np.array(result["confusion"]).shape == (11, 11)
    assert 0 <= result["miou"] <= 1


def test_bench(rtseg_command: Rtseg, tiny_path: Path) -> None:
    data = "synth:seed=5,frames=4,size=64x96"
    done = rtseg_command(
        "bench", "--data", data, "--model", tiny_path, "--frames", 12, "--json", "-"
    )
    assert done.code == 0
    record = json.loads(done.out)
    assert set(record) >= {"machine", "versions", "command", "rows"}
    (row,) = record["rows"]
    assert set(row) >= {
        "model", "engine", "precision", "size", "batch", "fps", "engine_fps", "miou",
        "pixel_agreement", "mask_age_ms", "stages", "peak_rss_mib", "error",
    }  # fmt: skip
    assert row["error"] is None
    assert row["fps"] > 0
    assert "synthetic" in record["data"]


@pytest.mark.slow
def test_train_writes_a_model_file_that_runs(
    rtseg_command: Rtseg,
    tiny_recipe: Recipe,
    camvid_like: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINY_DATA", str(camvid_like))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(toml_of(tiny_recipe))
    done = rtseg_command("train", recipe, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    model = tmp_path / "run" / "tiny.onnx"
    assert f"wrote {model}" in done.out
    card = model.with_suffix(".md").read_text()
    assert "| Road | " in card
    assert 'family = "sfnet_lite"' in card
    assert "Apache-2.0" in card
    again = rtseg_command(
        "run", "--source", "synth:size=64x96", "--model", model, "--max-frames", 2
    )
    assert again.code == 0


@pytest.mark.slow
def test_export(
    rtseg_command: Rtseg, tiny_recipe: Recipe, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    import onnx

    recipe, out = tmp_path / "tiny.toml", tmp_path / "full.onnx"
    recipe.write_text(toml_of(tiny_recipe))
    done = rtseg_command(
        "export", tiny_checkpoint, "--recipe", recipe, "-o", out, "--precision", "fp32"
    )
    assert done.code == 0, done.err
    kinds = {t.data_type for t in onnx.load(str(out)).graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in kinds


# In a process of its own


def start(*arguments: object) -> subprocess.Popen[str]:
    paths = [str(Path(rtseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "rtseg.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_cleanly(
    tiny_path: Path, tmp_path: Path, number: signal.Signals
) -> None:
    video, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    process = start(
        "run", "--source", "synth:size=64x96", "--model", tiny_path, "--save", video,
        "--jsonl", lines,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (lines.exists() and lines.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert out == ""
    with av.open(str(video)) as container:
        count = sum(1 for _ in container.decode(video=0))
    assert count == len(lines.read_text().splitlines()) > 0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_signal_while_the_model_loads_ends_the_run_too(
    rtseg_command: Rtseg, short: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtseg import runner

    def load_model(*arguments: Any, **options: Any) -> ModelFile:
        os.kill(os.getpid(), signal.SIGINT)
        return artifact.load_model(*arguments, **options)

    monkeypatch.setattr(runner, "load_model", load_model)
    done = rtseg_command(*short, "--report", "-")
    assert done.code == 0, done.err
    assert json.loads(done.out)["frames_out"] == 0


def test_a_reader_that_goes_away_ends_the_run(tiny_path: Path) -> None:
    process = start("run", "--source", "synth:size=64x96", "--model", tiny_path, "--jsonl", "-")
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["index"] == 0
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait(timeout=60) == 0
