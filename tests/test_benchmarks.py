"""The benchmark scripts run to their end and write what they say; their figures are not judged."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _data_trees import plant

ROOT = Path(__file__).parents[1]
RECORD_KEYS = {"name", "date", "device", "versions", "commit", "command", "results"}


def run_script(script: str, *arguments: str, directory: Path) -> dict[str, Any]:
    """Runs a benchmark and returns its record, which is its last line and its file alike."""
    path = directory / "record.json"
    outcome = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--json", str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert outcome.returncode == 0, outcome.stderr
    record: dict[str, Any] = json.loads(path.read_text())
    assert json.loads(outcome.stdout.splitlines()[-1]) == record
    assert record.keys() >= RECORD_KEYS
    assert record["name"] == script.removesuffix(".py")
    return record


def figures_module() -> Any:
    """benchmarks/figures.py, imported."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import figures
    finally:
        sys.path.pop(0)
    return figures


@pytest.mark.slow
def test_pipeline(tiny_path: Path, tmp_path: Path) -> None:
    record = run_script(
        "pipeline.py", "--model", str(tiny_path), "--clip", "64x96", "--frames", "12",
        "--rounds", "2", "--engine-seconds", "0.01", directory=tmp_path,
    )  # fmt: skip
    assert record["results"].keys() == {"null", "save"}
    for row in record["results"].values():
        assert row.keys() >= {"fps", "engine_fps", "bound_fps", "of_engine", "of_bound", "stages"}
        assert row["frames"] == 12
        assert len(row["rounds"]) == 2
    assert {"render", "encode"} <= record["results"]["save"]["stages"].keys()


@pytest.mark.slow
def test_live(tiny_path: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    record = run_script(
        "live.py", "--model", str(tiny_path), "--clip", "64x96", "--frames", "30",
        "--rates", "20,40", "--seconds", "1", "--port", str(port), directory=tmp_path,
    )  # fmt: skip
    rows = record["results"]
    assert [row["sent_fps"] for row in rows] == [20, 40]
    for row in rows:
        assert 0 < row["frames_out"] + row["frames_dropped"] <= row["frames_in"]
        assert 0 < row["mask_age_ms"]["p50"] <= row["mask_age_ms"]["p99"]
        assert row["engine_ms"] > 0
    (first, _) = figures_module()._live(record)
    assert "at 20 FPS" in first[0]
    assert f"p99 {rows[0]['mask_age_ms']['p99']:.0f} ms" in first[1]


@pytest.mark.slow
def test_speed(tiny_path: Path, tmp_path: Path) -> None:
    record = run_script(
        "speed.py", "--model", str(tiny_path), "--clip", "64x96", "--frames", "12",
        "--rounds", "2", "--engine-seconds", "0.01", directory=tmp_path,
    )  # fmt: skip
    assert record["reference"].keys() >= {"name", "params", "gmacs", "weights", "seed"}
    assert record["results"].keys() == {"tiny"}
    row = record["results"]["tiny"]
    assert row["frames"] == 12
    assert row["input_size"] == [64, 96]
    for measured in row["rounds"]:
        assert measured["ratio"] == pytest.approx(
            measured["fps"] / measured["reference_fps"], abs=1e-3
        )
    assert len(row["rounds"]) == 2
    (line,) = figures_module()._speed(record)
    assert f"{row['ratio']:.2f}×" in line[1]
    assert "mIoU" not in line[0], "the tiny file says nothing of its accuracy"


@pytest.mark.slow
def test_int8(tiny_path: Path, camvid_like: Path, tmp_path: Path) -> None:
    record = run_script(
        "int8.py", "--model", str(tiny_path), "--data", f"camvid:{camvid_like}", "--frames", "4",
        "--seconds", "0.1", "--keep", str(tmp_path / "kept"), directory=tmp_path,
    )  # fmt: skip
    assert str(camvid_like) not in str(record["data"])
    row = record["results"]["tiny"]
    plain, int8 = (row["engines"][f"onnxruntime {name}"] for name in ("fp32", "int8"))
    assert row["miou_lost"] == pytest.approx(plain["miou"] - int8["miou"], abs=1e-5)
    assert plain["pixel_agreement"] == 1.0
    assert 0.98 <= int8["pixel_agreement"] <= 1.0
    assert len(row["costs"]) == 5
    assert row["engines"]["openvino int8"]["engine_fps"] > 0
    assert row["bytes"]["int8"] == (tmp_path / "kept" / "tiny-int8.onnx").stat().st_size


@pytest.mark.slow
def test_ablation(tiny_path: Path, tmp_path: Path) -> None:
    chosen = ("no warp, no gate: plain sum", "no PPM: 1x1 in its place")
    record = run_script(
        "ablation.py", "--model", str(tiny_path), "--rounds", "2", "--seconds", "0.01",
        *(word for name in chosen for word in ("--variant", name)), directory=tmp_path,
    )  # fmt: skip
    rows = {row["variant"]: row for row in record["results"]}
    assert rows.keys() == {"as shipped", "the file itself", *chosen}
    assert rows["as shipped"]["relative"] == 1.0
    assert all(len(row["rounds"]) == 2 for row in record["results"])
    for name in chosen:
        assert rows[name]["params"] < rows["as shipped"]["params"]
    assert rows["the file itself"]["params"] == rows["as shipped"]["params"]


@pytest.mark.slow
def test_peers(tiny_path: Path, tmp_path: Path) -> None:
    record = run_script(
        "peers.py", "--model", str(tiny_path), "--clip", "64x96", "--frames", "4",
        "--seconds", "0.01", "--save", directory=tmp_path,
    )  # fmt: skip
    peers = record["agreement"].keys()
    assert peers | record["missing"].keys() >= {"torch", "onnxruntime", "model api"}
    assert all("model api" in name for name in record["missing"])
    for rows in record["results"].values():
        assert rows.keys() == {"rtseg", *peers}
        assert rows["rtseg"]["ratio"] == 1.0
    # Random weights give noise, where half-precision and other resizing rules flip many pixels.
    assert record["agreement"]["torch"] > 0.9
    assert record["agreement"]["onnxruntime"] > 0.6


@pytest.mark.slow
def test_memory(tiny_path: Path, tmp_path: Path) -> None:
    record = run_script(
        "memory.py", "--model", str(tiny_path), "--clip", "64x96", "--frames", "230",
        "--warm-up", "100", "--every", "50", directory=tmp_path,
    )  # fmt: skip
    assert [row["sink"] for row in record["results"]] == ["null", "video"]
    for row in record["results"]:
        assert row["growth_mib"] >= 0
        assert [frame for frame, _ in row["series"]] == [50, 100, 150, 200]


@pytest.mark.slow
def test_startup(tiny_path: Path, tmp_path: Path) -> None:
    record = run_script(
        "startup.py", "--model", str(tiny_path), "--clip", "64x96", "--seconds", "0.01",
        directory=tmp_path,
    )  # fmt: skip
    assert record["results"].keys() == {"python", "help", "first_overlay"}


@pytest.mark.slow
def test_zoo(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    camvid, runs, picture = plant("camvid", tmp_path), tmp_path / "runs", tmp_path / "zoo.png"
    arguments = (
        "--camvid", str(camvid), "--runs", str(runs), "--networks", "contextnet14", "fast-scnn",
        "--steps", "2", "--frames", "12", "--rounds", "1", "--plot", str(picture),
    )  # fmt: skip
    record = run_script("zoo.py", *arguments, directory=tmp_path)
    assert record["results"].keys() == {"contextnet14", "fast-scnn"}
    for row in record["results"].values():
        assert row["steps"] == 2
        assert row["fps"] > 0
        assert row["engine_fps"] > 0
        assert 0 <= row["miou"] <= 1
        assert 0 < sum(row["operators"].values()) <= 1.001
    assert picture.stat().st_size > 5000
    # What is done is not done again.
    trained = (runs / "fast-scnn" / "last.pt").stat().st_mtime
    run_script("zoo.py", *arguments, directory=tmp_path)
    assert (runs / "fast-scnn" / "last.pt").stat().st_mtime == trained
