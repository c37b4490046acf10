"""The command line: what each command gives, and one clear line for what a user gets wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import pytest

import rtseg
from rtseg import artifact, cli
from rtseg.artifact import Contract, ModelFile
from rtseg.data.camvid import CLASSES
from rtseg.recipe import Recipe

WriteOnnx = Callable[..., Path]
COMMANDS = sorted(
    command.name or command.callback.__name__
    for command in cli.app.registered_commands
    if command.callback is not None
)


class Done(NamedTuple):
    code: int
    out: str
    err: str


Rtseg = Callable[..., Done]


@pytest.fixture
def rtseg_command(capfd: pytest.CaptureFixture[str]) -> Iterator[Rtseg]:
    """Runs the command line in this process: exit code, and all that reached the two outputs."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    os.environ.pop("RTSEG_VERBOSE", None)

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code: object = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return Done(code, *capfd.readouterr())

    yield call
    os.environ.pop("RTSEG_VERBOSE", None)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def short(tiny_path: Path) -> list[object]:
    """A run of five small frames on the tiny model; what comes after it wins."""
    return [
        "run", "--source", "synth:seed=1,size=64x96", "--model", tiny_path, "--max-frames", 5,
    ]  # fmt: skip


def refusal(done: Done) -> str:
    """The message of a command that refused: code 2, one line on stderr, nothing on stdout."""
    assert done.code == 2, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("rtseg: ")
    return lines[0].removeprefix("rtseg: ")


# What the commands give


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
        "bench", "--data", data, "--model", tiny_path, "--frames", 6, "--json", "-"
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


def toml_of(recipe: Recipe) -> str:
    options = "\n".join(f"{k} = {json.dumps(v)}" for k, v in recipe.model.options.items())
    return f"""
name = "tiny"
[model]
family = "{recipe.model.family}"
[model.options]
{options}
[data]
train = ["camvid:$TINY_DATA"]
val = "camvid:$TINY_DATA"
input_hw = [64, 96]
crop_hw = [64, 64]
[optimiser]
steps = 2
batch = 2
validate_every = 2
workers = 0
"""


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
    done = rtseg_command("export", tiny_checkpoint, "--recipe", recipe, "-o", out, "--no-half")
    assert done.code == 0, done.err
    kinds = {t.data_type for t in onnx.load(str(out)).graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in kinds


# What the user gets wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "missing.mp4"], "missing.mp4"),
        (["--source", "no/such/directory/"], "no/such/directory"),
        (["--source", "what is this"], "cannot read 'what is this': expected an existing file"),
        (["--source", ""], "--source is empty"),
        (["--source", "camera:9"], "/dev/video9: no such camera"),
        (["--source", "/dev/video99"], "video99"),
        (["--source", "*.nothing"], "*.nothing"),
        (["--source", "synth:speed=3"], "unknown key 'speed'"),
        (["--save", "nodir/x.mp4"], "directory nodir does not exist: create it first"),
        (["--save", "out.gif"], "only MP4"),
        (["--jsonl", "nodir/x.jsonl"], "directory nodir does not exist: create it first"),
        (["--masks", "/proc/masks"], "/proc/masks: cannot be written"),
        (["--report", "nodir/x.json"], "nodir"),
        (["--model", "none.onnx"], "none.onnx: no such model file"),
        (["--model", "street-xxl"], "unknown model 'street-xxl': give an .onnx file or one of"),
        (["--size", "foo"], "--size 'foo': expected HEIGHTxWIDTH such as 384x480, or auto"),
        (["--size", "0x64"], "--size '0x64': expected HEIGHTxWIDTH"),
        (["--size", "64"], "--size '64'"),
        (["--engine", "caffe"], "unknown engine 'caffe': choose auto or one of"),
        (["--precision", "fp64"], "unknown precision 'fp64': choose one of"),
        (["--engine", "onnxruntime", "--precision", "int8"], "not int8"),
        (["--policy", "newest"], "unknown policy 'newest': choose one of latest, every"),
        (["--effect", "sparkle"], "unknown effect 'sparkle': choose one of"),
        (["--effect", "blur:dragon"], "unknown class 'dragon': choose one of"),
        (["--effect", "blur"], "name the classes to keep sharp"),
        (["--opacity", "1.5"], "--opacity must be in 0..1"),
        (["--opacity", "nan"], "--opacity must be in 0..1"),
        (["--max-frames", "0"], "--max-frames must be at least 1"),
        (["--mean", "1,2"], "--mean '1,2': expected three numbers"),
        (["--std", "a,b,c"], "--std 'a,b,c': expected three numbers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_run_is_one_line(
    rtseg_command: Rtseg,
    short: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refusal(rtseg_command(*short, *arguments))
    assert not list(tmp_path.iterdir())


def test_nothing_is_computed_for_a_report_that_cannot_be_written(
    rtseg_command: Rtseg, short: list[object], tmp_path: Path
) -> None:
    lines = tmp_path / "out.jsonl"
    refusal(rtseg_command(*short, "--report", tmp_path, "--jsonl", lines))
    assert not lines.exists()


def test_two_outputs_cannot_share_stdout(rtseg_command: Rtseg, short: list[object]) -> None:
    message = refusal(rtseg_command(*short, "--report", "-", "--jsonl", "-"))
    assert "stdout" in message


def test_the_source_is_not_overwritten(
    rtseg_command: Rtseg, short: list[object], tmp_path: Path
) -> None:
    video = tmp_path / "drive.mp4"
    assert rtseg_command(*short, "--save", video).code == 0
    before = video.read_bytes()
    done = rtseg_command(*short, "--source", video, "--save", f"{tmp_path}/./drive.mp4")
    assert "is the source itself: choose another name" in refusal(done)
    assert video.read_bytes() == before


def test_files_that_are_no_video(rtseg_command: Rtseg, short: list[object], tmp_path: Path) -> None:
    text, empty = tmp_path / "text.mp4", tmp_path / "empty.mp4"
    text.write_text("these are words\n" * 50)
    empty.touch()
    for path in (text, empty):
        assert str(path.name) in refusal(rtseg_command(*short, "--source", path))


def test_a_video_without_frames(rtseg_command: Rtseg, short: list[object], tmp_path: Path) -> None:
    path = tmp_path / "nothing.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    assert path.name in refusal(rtseg_command(*short, "--source", path))


def test_a_directory_without_images(
    rtseg_command: Rtseg, short: list[object], tmp_path: Path
) -> None:
    assert "no images in this directory" in refusal(rtseg_command(*short, "--source", tmp_path))


def test_bad_model_files(
    rtseg_command: Rtseg,
    short: list[object],
    tiny_path: Path,
    tmp_path: Path,
    write_onnx: WriteOnnx,
    contract: Contract,
) -> None:
    cut, text = tmp_path / "cut.onnx", tmp_path / "text.onnx"
    cut.write_bytes(tiny_path.read_bytes()[:5000])
    text.write_text("not a model")
    metadata = contract.to_metadata()
    cases = {
        cut: "not an ONNX model, or truncated",
        text: "not an ONNX model, or truncated",
        write_onnx("bare.onnx"): "give --classes FILE, --mean and --std",
        write_onnx("rank.onnx", rank=3, metadata=metadata): "got rank 3",
        write_onnx("many.onnx", channels=256, metadata=metadata): "at most 255",
        write_onnx("four.onnx", channels=4, metadata=metadata): "4 output channels",
    }
    for path, message in cases.items():
        assert message in refusal(rtseg_command(*short, "--model", path))


def test_a_model_without_contract_runs_with_its_classes(
    rtseg_command: Rtseg, short: list[object], tmp_path: Path, write_onnx: WriteOnnx
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("road\ncar\nsky\n")
    foreign = [*short, "--model", write_onnx(), "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]
    done = rtseg_command(*foreign, "--classes", classes, "--report", "-")
    assert done.code == 0, done.err
    assert list(json.loads(done.out)["class_fraction"]) == ["road", "car", "sky"]
    classes.write_text("road\ncar\n")
    assert "3 output channels" in refusal(rtseg_command(*foreign, "--classes", classes))
    missing = rtseg_command(*foreign, "--classes", tmp_path / "none.txt")
    assert "cannot read the class table" in refusal(missing)


def test_bad_data(rtseg_command: Rtseg, tiny_path: Path, camvid_like: Path, tmp_path: Path) -> None:
    evaluate = ["eval", "--model", tiny_path, "--data"]
    assert "unknown data 'kitti'" in refusal(rtseg_command(*evaluate, "kitti:x"))
    assert "has no split 'val'" in refusal(rtseg_command(*evaluate, f"camvid:{tmp_path}"))
    good = f"camvid:{camvid_like}"
    assert "unknown split 'dev'" in refusal(rtseg_command(*evaluate, good, "--split", "dev"))
    path = camvid_like / "valannot" / "val_0.png"
    cv2.imwrite(str(path), np.zeros((40, 64), np.uint8))
    assert "labels are 40x64, the image is 48x64" in refusal(rtseg_command(*evaluate, good))
    path.write_bytes(b"broken")
    assert "not a readable image" in refusal(rtseg_command(*evaluate, good))
    path.unlink()
    assert "its labels are missing" in refusal(rtseg_command(*evaluate, good))


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["run"],
        ["run", "--source", "synth:", "--sauce"],
        ["run", "--source", "synth:", "--max-frames", "many"],
        ["train", "missing.toml"],
        ["export", "none.safetensors", "--recipe", "missing.toml", "-o", "x.onnx"],
        ["bench", "--frames", "1"],
        ["models", "--json", "nodir/x.json"],
    ],
    ids=" ".join,
)
def test_every_wrong_use_is_code_2(
    rtseg_command: Rtseg,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    done = rtseg_command(*arguments)
    assert done.code == 2
    assert done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_verbose_shows_the_traceback(rtseg_command: Rtseg) -> None:
    done = rtseg_command("-v", "run", "--source", "missing.mp4")
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith("rtseg: ")


def test_the_codes_of_errors() -> None:
    from rtseg import errors

    assert errors.RtsegError.exit_code == errors.ConfigError.exit_code == 2
    assert errors.SourceError.exit_code == 2
    assert errors.StreamLostError.exit_code == 3


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
    from rtseg import pipeline

    def load_model(*arguments: Any, **options: Any) -> ModelFile:
        os.kill(os.getpid(), signal.SIGINT)
        return artifact.load_model(*arguments, **options)

    monkeypatch.setattr(pipeline, "load_model", load_model)
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
