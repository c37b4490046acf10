"""Plans on disk: manifests, the reasons to build again, and a store that builds once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtseg import plans
from rtseg.errors import EngineError, ModelError
from rtseg.plans import Key, Machine, Manifest, Shapes, Store

SHAPES = Shapes.fixed((1, 3, 384, 480))
HERE = Machine("tensorrt-rtx", "1.7.1", "SM86")
KEY = Key("street-s", "ab" * 32, "fp16", SHAPES, HERE)
TENSORS: dict[str, dict[str, Any]] = {
    "image": {"mode": "input", "dtype": "float32", "shape": [-1, 3, -1, -1]},
    "logits": {"mode": "output", "dtype": "float16", "shape": [-1, 11, -1, -1]},
}


def manifest_of(plan: bytes, **changes: Any) -> Manifest:
    """What belongs to a plan that is right for KEY."""
    right = Manifest(
        name="street-s",
        onnx_sha256=KEY.onnx_sha256,
        flavour=HERE.flavour,
        version=HERE.version,
        compute_capabilities=("SM80", "SM86"),
        precision="fp16",
        shapes=SHAPES,
        contract={"rtseg.name": '"street-s"'},
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        build_seconds=0.5,
        created="2026-11-21T12:00:00+00:00",
        tensors=TENSORS,
        parity={"pixel_agreement": 0.9999, "miou_difference": None, "frames": 4},
    )
    return dataclasses.replace(right, **changes)


class Builder:
    """Gives a plan and counts how often it was asked to."""

    def __init__(self, plan: bytes = b"a plan") -> None:
        self.plan, self.count = plan, 0

    def __call__(self) -> tuple[bytes, Manifest]:
        self.count += 1
        return self.plan, manifest_of(self.plan)


def test_a_plan_is_plain_and_its_manifest_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.plan"
    manifest = manifest_of(b"plain bytes")
    plans.write_plan(path, b"plain bytes", manifest)
    assert path.read_bytes() == b"plain bytes"
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.json", "x.plan"]
    assert plans.read_manifest(path) == plans.read_manifest(path.with_suffix(".json")) == manifest
    assert plans.intact(path, manifest) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no manifest beside the plan"),
        ("{", "not a readable manifest"),
        ("[1, 2]", "not a manifest"),
        ("{}", "not a manifest, name is missing"),
        ({"shapes": {"min": [1, 3, 8, 8]}}, "opt is missing"),
        ({"shapes": {"min": [1], "opt": [1], "max": [1]}}, r"expected a shape \(N, 3, H, W\)"),
        ({"plan_bytes": "many"}, "plan_bytes is 'many'"),
        ({"tensors": 3}, "tensors is 3"),
    ],
)
def test_what_is_no_manifest(tmp_path: Path, text: Any, message: str) -> None:
    if isinstance(text, dict):
        text = json.dumps({**manifest_of(b"").to_dict(), **text})
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        plans.read_manifest(tmp_path / "x.plan")
    assert "rtseg build" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"flavour": "tensorrt"}, "built by tensorrt, this machine has tensorrt-rtx"),
        ({"version": "1.6.0"}, "built by tensorrt-rtx 1.6.0, this machine has 1.7.1"),
        ({"compute_capabilities": ("SM75", "SM89")}, "built for SM75, SM89, this GPU is SM86"),
    ],
)
def test_a_plan_belongs_to_a_machine(changes: dict[str, Any], reason: str) -> None:
    assert plans.check(manifest_of(b"", **changes), HERE) == reason


def test_without_a_gpu_no_plan_runs() -> None:
    reason = plans.check(manifest_of(b""), dataclasses.replace(HERE, compute_capability=""))
    assert reason == "built for SM80, SM86, this GPU is missing"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"onnx_sha256": "00"}, "built from another model file"),
        ({"precision": "int8"}, "built in int8, wanted is fp16"),
        ({"shapes": Shapes.fixed((1, 3, 64, 64))}, "built for 64x64, wanted is 384x480"),
        ({"tensors": {}}, "it has nothing, not input image and output logits"),
        (
            {"tensors": {"x": TENSORS["image"], "logits": TENSORS["logits"]}},
            "it has input x, output logits, not input image and output logits",
        ),
        (
            {"tensors": {**TENSORS, "image": {"mode": "input", "shape": [1, 4, 8, 8]}}},
            "image has the shape [1, 4, 8, 8], not (N, 3, H, W)",
        ),
    ],
)
def test_a_plan_of_something_else(changes: dict[str, Any], reason: str) -> None:
    assert KEY.mismatch(manifest_of(b"", **changes)) == reason


def test_shapes() -> None:
    wide = Shapes((1, 3, 256, 256), (1, 3, 384, 480), (2, 3, 1024, 2048))
    assert wide.covers(SHAPES)
    assert wide.covers(wide)
    assert not SHAPES.covers(wide)
    assert str(SHAPES) == "384x480"
    assert str(wide) == "256x256 to 2 x 1024x2048, best at 384x480"
    with pytest.raises(ValueError, match=r"expected a shape \(N, 3, H, W\), got \(1, 4, 8, 8\)"):
        Shapes.fixed((1, 4, 8, 8))
    with pytest.raises(ValueError, match="min <= opt <= max"):
        Shapes((1, 3, 64, 64), (1, 3, 32, 64), (1, 3, 64, 64))


def test_the_store_builds_once(tmp_path: Path) -> None:
    store, build, notices = Store(tmp_path / "store"), Builder(), list[str]()
    first = store.find_or_build(KEY, build, notices.append)
    again = Store(tmp_path / "store").find_or_build(KEY, build, notices.append)
    assert first == again
    assert build.count == 1
    assert first.read_bytes() == b"a plan"
    assert notices == [f"building {first.name}: there is none yet"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "street-m"},
        {"onnx_sha256": "cd" * 32},
        {"precision": "fp32"},
        {"shapes": Shapes.fixed((1, 3, 384, 512))},
        {"shapes": Shapes((1, 3, 32, 32), (1, 3, 384, 480), (1, 3, 384, 480))},
        {"machine": Machine("tensorrt", "1.7.1", "SM86")},
        {"machine": Machine("tensorrt-rtx", "1.7.2", "SM86")},
        {"machine": Machine("tensorrt-rtx", "1.7.1", "SM89")},
    ],
    ids=str,
)
def test_every_part_of_the_key_counts(change: dict[str, Any]) -> None:
    assert dataclasses.replace(KEY, **change).file_name() != KEY.file_name()


def _truncate(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-1])


def _flip(plan: Path) -> None:
    data = bytearray(plan.read_bytes())
    data[2] ^= 1
    plan.write_bytes(data)


def _forget(plan: Path) -> None:
    plan.with_suffix(".json").unlink()


def _swap(plan: Path) -> None:
    other = manifest_of(plan.read_bytes(), version="1.6.0")
    plan.with_suffix(".json").write_text(json.dumps(other.to_dict()))


def _rename(plan: Path) -> None:
    other = manifest_of(plan.read_bytes(), tensors={"x": {"mode": "input", "shape": []}})
    plan.with_suffix(".json").write_text(json.dumps(other.to_dict()))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "corrupt: 5 bytes, its manifest says 6"),
        (_flip, "corrupt: its sha256 is not that of its manifest"),
        (_forget, "no manifest beside the plan"),
        (_swap, "built by tensorrt-rtx 1.6.0, this machine has 1.7.1"),
        (_rename, "it has input x, not input image and output logits"),
    ],
)
def test_what_must_not_be_loaded_is_named_and_built_again(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    store, build, notices = Store(tmp_path), Builder(), list[str]()
    path = store.find_or_build(KEY, build)
    damage(path)
    assert store.find_or_build(KEY, build, notices.append) == path
    assert build.count == 2
    assert len(notices) == 1
    assert reason in notices[0]
    assert path.read_bytes() == b"a plan"
    assert store.find(KEY) == (path, "")


def test_a_plan_of_another_gpu_is_named(tmp_path: Path) -> None:
    store, notices = Store(tmp_path), list[str]()
    old = store.find_or_build(KEY, Builder())
    newer = dataclasses.replace(KEY, machine=Machine("tensorrt-rtx", "1.7.1", "SM120"))

    def build() -> tuple[bytes, Manifest]:
        return b"other", manifest_of(b"other", compute_capabilities=("SM120",))

    path = store.find_or_build(newer, build, notices.append)
    assert path != old
    expected = f"{old.name} was built for SM80, SM86, this GPU is SM120"
    assert notices == [f"building {path.name}: {expected}"]
    assert store.find(KEY) == (old, "")


def test_plans_of_rtseg_build_are_found(tmp_path: Path) -> None:
    plans.write_plan(tmp_path / "engines" / "mine.plan", b"mine", manifest_of(b"mine"))
    foreign = manifest_of(b"other", version="1")
    plans.write_plan(tmp_path / "engines" / "a.plan", b"other", foreign)
    build = Builder()
    store = Store(tmp_path / "store", also=(tmp_path / "engines", tmp_path / "missing"))
    assert store.find_or_build(KEY, build).name == "mine.plan"
    assert build.count == 0
    assert not (tmp_path / "store").exists()


def test_a_builder_that_gives_another_plan(tmp_path: Path) -> None:
    def build() -> tuple[bytes, Manifest]:
        return b"x", manifest_of(b"x", precision="fp32")

    with pytest.raises(EngineError, match="not the plan that was asked for: built in fp32"):
        Store(tmp_path).find_or_build(KEY, build)
    assert not list(tmp_path.glob("*.plan"))


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> tuple[bytes, Manifest]:
        raise EngineError("no tactic")

    with pytest.raises(EngineError, match="no tactic"):
        Store(tmp_path).find_or_build(KEY, fail)
    assert not list(tmp_path.glob("*.plan")) + list(tmp_path.glob("*.json"))
    assert Store(tmp_path).find_or_build(KEY, Builder()).exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="set RTSEG_ENGINES to a directory that can be written"):
        Store(tmp_path / "file" / "store").find_or_build(KEY, Builder())
    with pytest.raises(EngineError, match=r"cannot write the plan: .*: choose another place"):
        plans.write_plan(tmp_path / "file" / "x.plan", b"", manifest_of(b""))


def test_where_the_store_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RTSEG_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Store().directory == tmp_path / "rtseg" / "engines"
    monkeypatch.setenv("RTSEG_ENGINES", str(tmp_path / "mine"))
    assert Store().directory == tmp_path / "mine"


WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_plans import KEY, manifest_of
from rtseg.plans import Store
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
def build():
    with (folder / "builds").open("a") as file:
        file.write("built\\n")
    print("building", flush=True)
    time.sleep(seconds)
    return b"a plan", manifest_of(b"a plan")
path = Store(folder / "store").find_or_build(KEY, build, lambda line: print(line, flush=True))
print(path.name, flush=True)
"""


def worker(folder: Path, seconds: float) -> subprocess.Popen[str]:
    code = WORKER.format(tests=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


def test_two_processes_build_once(tmp_path: Path) -> None:
    both = [worker(tmp_path, 1.5) for _ in range(2)]
    said = [process.communicate(timeout=30)[0] for process in both]
    assert (tmp_path / "builds").read_text() == "built\n"
    assert all(text.splitlines()[-1] == KEY.file_name() for text in said)
    assert sum("building\n" in text for text in said) == 1


def test_a_process_that_waits_says_so_and_one_that_dies_leaves_no_lock(tmp_path: Path) -> None:
    first = worker(tmp_path, 60)
    assert first.stdout is not None
    while first.stdout.readline().strip() != "building":
        assert first.poll() is None
    second = worker(tmp_path, 0)
    assert second.stdout is not None
    assert "another process builds it" in second.stdout.readline()
    time.sleep(0.2)
    assert second.poll() is None
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=30)
    out, _ = second.communicate(timeout=30)
    assert second.returncode == 0
    assert out.splitlines()[-1] == KEY.file_name()
    assert (tmp_path / "builds").read_text() == "built\nbuilt\n"
