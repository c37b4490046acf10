"""`rtseg.sink.jsonl`: one line per frame, at once, and none in half."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from rtseg.errors import SinkError
from rtseg.frame import ClassTable, Frame, LabelMap
from rtseg.sink import jsonl

CLASSES = ClassTable(("road", "Gehweg/größer"), ((128, 64, 128), (0, 0, 142)))


def put(sink: jsonl.JsonlSink, index: int) -> None:
    captured_at = time.monotonic() - 0.25
    frame = Frame(np.zeros((4, 6, 3), np.uint8), index, index / 30, captured_at)
    labels = np.zeros((4, 6), np.uint8)
    labels[0] = 1
    labels[1] = 255
    sink.write(frame, LabelMap(labels, CLASSES), None)


def exhaust(sink: jsonl.JsonlSink) -> None:
    for index in range(4, 100):
        put(sink, index)


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = jsonl.open(str(path))
    assert not sink.wants_picture
    for index in range(3):
        put(sink, index)
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) == index + 1, "a line must be there when write returns"
    sink.close()
    record = json.loads(lines[2])
    assert list(record) == ["index", "pts", "age_ms", "classes"]
    assert record["index"] == 2
    assert record["pts"] == pytest.approx(2 / 30, abs=1e-6)
    assert 250 <= record["age_ms"] < 5000
    assert record["classes"] == {"road": 0.5, "Gehweg/größer": 0.25}


def test_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    sink = jsonl.open("-")
    put(sink, 5)
    sink.close()
    assert json.loads(capsys.readouterr().out)["index"] == 5


def test_reader_that_leaves_ends_the_run_cleanly() -> None:
    script = textwrap.dedent("""
        import sys
        sys.path.insert(0, sys.argv[1])
        from test_jsonl import put
        from rtseg.sink import StopRequested, jsonl
        sink = jsonl.open("-")
        try:
            for index in range(100_000):
                put(sink, index)
        except StopRequested:
            sink.close()
            sys.exit(7)
    """)
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 7
    assert errors == b""


def test_unwritable_places(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="gone does not exist"):
        jsonl.open(str(tmp_path / "gone" / "x.jsonl"))
    with pytest.raises(SinkError, match="Is a directory"):
        jsonl.open(str(tmp_path))


def test_full_disk_keeps_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    sink = jsonl.open(str(path))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        for index in range(4):
            put(sink, index)
        with pytest.raises(SinkError, match="cannot be written"):
            exhaust(sink)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    sink.close()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(len(lines)))
    assert len(lines) > 3
