"""`rtseg.run` from Python: what it takes, what it closes, what it says of a run that broke off."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
from _command import Rtseg, refusal
from _fakes import Limited, ListSink, ListSource, frame_of

import rtseg
from rtseg.errors import ConfigError, EngineError, ModelError, SourceError, StreamLostError
from rtseg.one_thread import opencv_on_one_thread
from rtseg.sink import StopRequested
from rtseg.source import synth

SYNTH = "synth:seed=2,size=64x96,frames=4"
WriteOnnx = Callable[..., Path]


def test_paths_may_be_texts(tiny_path: Path, tmp_path: Path) -> None:
    out = {"save": "out.mp4", "masks": "masks", "jsonl": "out.jsonl"}
    outputs = {name: str(tmp_path / file) for name, file in out.items()}
    rtseg.run(SYNTH, model=tiny_path, **outputs)  # type: ignore[arg-type]
    assert (tmp_path / "out.mp4").stat().st_size > 0
    assert len(list((tmp_path / "masks").iterdir())) == 4
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    again = rtseg.run(tmp_path / "out.mp4", model=tiny_path, measure_engine=True)
    assert again.frames_out == len(lines) == 4
    assert again.engine_fps


def test_a_source_of_ones_own(tiny_path: Path, limited: Limited) -> None:
    source, sink = ListSource([frame_of(i) for i in range(12)]), ListSink()
    report = limited(lambda: rtseg.run(source, model=tiny_path, sinks=[sink]))
    assert sink.got == list(range(12))
    assert (report.source, report.frames_out) == ("list", 12)
    assert report.fps > 0
    assert source.closed == 1


def test_a_sink_may_end_the_run(tiny_path: Path, limited: Limited) -> None:
    sink = ListSink(fail_at=3, error=StopRequested())
    report = limited(lambda: rtseg.run("synth:size=64x96", model=tiny_path, sinks=[sink]))
    assert sink.got == [0, 1, 2]
    assert report.frames_out >= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": 0}, "source: expected a text or a path, got 0"),
        ({"size": "384x480"}, r"size: expected \(height, width\) such as \(384, 480\)"),
        ({"size": 384}, "size: expected"),
        ({"size": (0, 64)}, "size: expected"),
        ({"opacity": "0.5"}, "--opacity must be in 0..1"),
        ({"max_frames": "5"}, "--max-frames must be at least 1"),
        ({"save": 3}, "save: expected a text or a path"),
        ({"model": None}, "model: expected a text or a path"),
        ({"mean": (123.0, 116.0, 103.0)}, "mean: expected three numbers.* in 0..1"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "mean: expected three numbers"),
        ({"std": (0.0, 0.2, 0.2)}, r"std: expected three numbers .* in 0\.\.1, above 0"),
        ({"std": 0.2}, "std: expected three numbers"),
        ({"sinks": 5}, "sinks: expected a list of them, got int"),
        ({"sinks": [print]}, "has no wants_picture, write, close: see rtseg.sink.Sink"),
    ],
    ids=str,
)
def test_wrong_arguments_say_what_is_expected(
    tiny_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rtseg.run(**{"source": SYNTH, "model": tiny_path, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "missing.mp4"},
        {"model": "none.onnx"},
        {"effect": "sparkle"},
        {"save": "nodir/out.mp4"},
        {"engine": "caffe"},
    ],
    ids=str,
)
def test_sinks_are_closed_when_there_is_nothing_to_run(
    tiny_path: Path, changes: dict[str, Any]
) -> None:
    sink = ListSink()
    with pytest.raises(rtseg.RtsegError) as caught:
        rtseg.run(**{"source": SYNTH, "model": tiny_path, "sinks": [sink], **changes})
    assert sink.closed == 1
    assert caught.value.report is None


@pytest.mark.parametrize("error", [SourceError("it broke"), StreamLostError("it is gone")])
def test_a_run_that_breaks_off_has_a_report(
    tiny_path: Path, limited: Limited, error: SourceError
) -> None:
    source = ListSource([frame_of(i) for i in range(12)], error=error)
    with pytest.raises(type(error)) as caught:
        limited(lambda: rtseg.run(source, model=tiny_path))
    report = caught.value.report
    assert report is not None
    assert report.frames_out == 12
    assert report.warnings == ["a line for the user"]


def test_a_lost_stream_leaves_its_report(
    rtseg_command: Rtseg, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = StreamLostError("camera 0: no picture for 3 s: check the cable and its power")
    source = ListSource([frame_of(i) for i in range(12)], error=lost)
    monkeypatch.setattr(synth, "open", lambda uri: source)
    path = tmp_path / "report.json"
    done = rtseg_command("run", "--source", "synth:", "--model", tiny_path, "--report", path)
    assert done.code == 3
    assert done.err.splitlines()[-1] == f"rtseg: {lost}"
    assert "rtseg: a line for the user" in done.err
    assert json.loads(path.read_text())["frames_out"] == 12


def test_a_file_without_contract(write_onnx: WriteOnnx, tmp_path: Path, tiny_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("road\ncar\nsky\n")
    bare = write_onnx()
    facts: dict[str, Any] = {"classes_file": str(classes), "mean": [0.5] * 3, "std": (0.2,) * 3}
    with pytest.raises(ModelError, match="in Python classes_file, mean and std"):
        rtseg.load(bare)
    with rtseg.load(bare, **facts) as segmenter:
        assert segmenter(frame_of(0).image).classes.names == ("road", "car", "sky")
    assert rtseg.run(SYNTH, model=bare, **facts).frames_out == 4
    for name, value in facts.items():
        with pytest.raises(ModelError, match="has a preprocess contract of its own"):
            rtseg.load(tiny_path, **{name: value})


def test_a_closed_segmenter_says_so(tiny_path: Path) -> None:
    with rtseg.load(tiny_path, size=(32, 32)) as segmenter:
        segmenter(frame_of(0).image)
    segmenter.close()
    with pytest.raises(EngineError, match="closed: open another"):
        segmenter(frame_of(0).image)
    with pytest.raises(EngineError, match="closed"):
        segmenter.engine_fps()
    with pytest.raises(ConfigError, match="size: expected"):
        rtseg.load(tiny_path, size=384)  # type: ignore[arg-type]


def test_opencv_has_its_threads_back_after_the_last_of_several() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        first, second = opencv_on_one_thread(), opencv_on_one_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert cv2.getNumThreads() == 1
        second.__exit__(None, None, None)
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_two_runs_at_once(tiny_path: Path, limited: Limited) -> None:
    before = cv2.getNumThreads()
    sinks = ListSink(), ListSink()

    def run(sink: ListSink) -> None:
        rtseg.run("synth:size=64x96,frames=30", model=tiny_path, sinks=[sink])

    threads = [threading.Thread(target=run, args=(sink,)) for sink in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        limited(thread.join)
    assert [sink.got for sink in sinks] == [list(range(30))] * 2
    assert cv2.getNumThreads() == before


def test_bare_files_in_eval_and_bench(
    rtseg_command: Rtseg, write_onnx: WriteOnnx, tmp_path: Path
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("road\ncar\nsky\n")
    data = ["--data", "synth:seed=5,frames=4,size=64x96", "--model", write_onnx()]
    facts = ["--classes", classes, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]
    assert "no preprocess contract" in refusal(rtseg_command("bench", *data, "--frames", 12))
    done = rtseg_command("bench", *data, *facts, "--frames", 12, "--json", "-")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][0]["fps"] > 0
    message = refusal(rtseg_command("eval", *data, *facts))
    assert "classes" in message  # the drive has others
    bad = rtseg_command("eval", *data, *facts[:-1], "58,57,57")
    assert "--std: expected three numbers" in refusal(bad)


def test_frames_without_pace_give_no_fps(tiny_path: Path) -> None:
    """The second mask is ready a moment after the first: no rate to speak of."""
    assert rtseg.run(SYNTH, model=tiny_path).fps is None
