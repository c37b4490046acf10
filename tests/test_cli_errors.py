"""The command line: one clear line, exit code 2, for what a user gets wrong."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from _command import Rtseg, refusal

from rtseg.artifact import Contract
from rtseg.errors import SourceError
from rtseg.source import synth

WriteOnnx = Callable[..., Path]


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
        (["--engine", "onnxruntime", "--precision", "int8"], "has no int8 scales"),
        (["--policy", "newest"], "unknown policy 'newest': choose one of latest, every"),
        (["--effect", "sparkle"], "unknown effect 'sparkle': choose one of"),
        (["--effect", "blur:dragon"], "unknown class 'dragon': choose one of"),
        (["--effect", "blur"], "name the classes to keep sharp"),
        (["--opacity", "1.5"], "--opacity must be in 0..1"),
        (["--opacity", "nan"], "--opacity must be in 0..1"),
        (["--max-frames", "0"], "--max-frames must be at least 1"),
        (["--mean", "1,2"], "--mean '1,2': expected three numbers"),
        (["--std", "a,b,c"], "--std 'a,b,c': expected three numbers"),
        (["--std", "0,0,0"], "--std: expected three numbers (R, G, B) of pixels in 0..1, above 0"),
        (["--mean", "123,116,103"], "--mean: expected three numbers (R, G, B) of pixels in 0..1"),
        (["--mean", "nan,0,0"], "--mean: expected three numbers"),
        (["--mean", "0.5,0.5,0.5"], "has a preprocess contract of its own"),
        (["--classes", "none.txt"], "has a preprocess contract of its own"),
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


@pytest.mark.parametrize("prefix", ["", "file:", "stream:"])
@pytest.mark.parametrize("flag", ["--save", "--jsonl", "--report"])
def test_the_source_is_not_overwritten(
    rtseg_command: Rtseg, short: list[object], tmp_path: Path, flag: str, prefix: str
) -> None:
    video = tmp_path / "drive.mp4"
    assert rtseg_command(*short, "--save", video).code == 0
    before = video.read_bytes()
    done = rtseg_command(*short, "--source", f"{prefix}{video}", flag, f"{tmp_path}/./drive.mp4")
    assert f"{flag} {tmp_path}/" in refusal(done)
    assert "is the source itself: choose another name" in done.err
    assert video.read_bytes() == before


def test_masks_do_not_replace_the_source_s_images(
    rtseg_command: Rtseg, short: list[object], tmp_path: Path
) -> None:
    image = tmp_path / "000000.png"
    cv2.imwrite(str(image), np.zeros((64, 96, 3), np.uint8))
    before = image.read_bytes()
    for source in (tmp_path, f"{tmp_path}/*.png", f"{tmp_path}/*", f"images:{tmp_path}", image):
        done = rtseg_command(*short, "--source", source, "--masks", tmp_path)
        assert f"--masks {tmp_path}" in refusal(done)
    assert image.read_bytes() == before
    assert rtseg_command(*short, "--source", image, "--masks", tmp_path / "masks").code == 0


@pytest.mark.parametrize(
    ("first", "second"), [("--save", "--report"), ("--save", "--jsonl"), ("--jsonl", "--report")]
)
def test_two_outputs_cannot_share_a_file(
    rtseg_command: Rtseg, short: list[object], tmp_path: Path, first: str, second: str
) -> None:
    (tmp_path / "sub").mkdir()
    paths = tmp_path / "x.mp4", tmp_path / "sub" / ".." / "x.mp4"
    message = refusal(rtseg_command(*short, first, paths[0], second, paths[1]))
    assert f"{first} and {second} both write" in message
    assert not paths[0].exists()
    assert rtseg_command(*short, "--jsonl", "/dev/null", "--report", "/dev/null").code == 0


@pytest.mark.parametrize("flag", ["--source", "--save", "--report", "--jsonl", "--masks"])
def test_a_name_that_is_too_long(rtseg_command: Rtseg, short: list[object], flag: str) -> None:
    refusal(rtseg_command(*short, flag, "x" * 300 + ".mp4"))


def test_a_directory_that_one_may_not_read(
    rtseg_command: Rtseg, short: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)  # root, who may run this, may read everything
    message = refusal(rtseg_command(*short, "--source", tmp_path))
    assert message == f"{tmp_path}: cannot be read: Permission denied"


def test_a_signal_before_the_source_answers(
    rtseg_command: Rtseg, short: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera that one no longer wants to wait for is no mistake."""

    def never(uri: str) -> None:
        on_interrupt = signal.getsignal(signal.SIGINT)
        assert callable(on_interrupt)
        on_interrupt(signal.SIGINT, None)
        raise SourceError("no answer in time")

    monkeypatch.setattr(synth, "open", never)
    done = rtseg_command(*short)
    assert (done.code, done.err) == (0, "rtseg: stopped before the first frame\n")


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
    assert "unknown data 'camvit'" in refusal(rtseg_command(*evaluate, "camvit:x"))
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
        ["bench", "--frames", "9"],
        ["models", "--json", "nodir/x.json"],
        ["models", "no-such-network"],
    ],
    ids=" ".join,
)
def test_every_wrong_use_is_one_line(
    rtseg_command: Rtseg,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(rtseg_command(*arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0, 1, 3])
def test_verbose_shows_the_traceback(rtseg_command: Rtseg, place: int) -> None:
    words = ["run", "--source", "missing.mp4"]
    done = rtseg_command(*words[:place], "-v", *words[place:])
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith("rtseg: ")


def test_the_codes_of_errors() -> None:
    from rtseg import errors

    assert errors.RtsegError.exit_code == errors.ConfigError.exit_code == 2
    assert errors.SourceError.exit_code == 2
    assert errors.StreamLostError.exit_code == 3
