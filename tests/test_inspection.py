"""`rtseg inspect`: what model files and plans say of themselves, and what is broken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from _command import Rtseg, refusal
from test_plans import manifest_of

from rtseg import plans
from rtseg.artifact import Contract, load_model


def test_inspection_of_models(rtseg_command: Rtseg, tiny_path: Path) -> None:
    lines = rtseg_command("inspect", tiny_path).out.splitlines()
    assert "kind: model file" in lines
    assert "contract.input_hw: 64, 96" in lines
    assert f"sha256: {load_model(str(tiny_path)).sha256()}" in lines
    record = json.loads(rtseg_command("inspect", "street-s", "--json", "-").out)
    assert record["contract"]["classes"]["names"][0] == "Sky"
    assert record["output"] == "logits (N, 11, h, w)"


def test_inspection_of_what_is_broken(
    rtseg_command: Rtseg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def told(name: str) -> str:
        return refusal(rtseg_command("inspect", name))

    assert "x.plan: no such plan" in told("x.plan")
    assert "x.json: no manifest" in told("x.json")
    assert "unknown model 'nothing'" in told("nothing")
    Path("cut.onnx").write_bytes(tiny_path.read_bytes()[:999])
    assert "not an ONNX model, or truncated" in told("cut.onnx")
    Path("x.plan").write_bytes(b"a plan")
    assert "no manifest beside the plan: build it with" in told("x.plan")
    manifest = _manifest(b"a plan", load_model(str(tiny_path)).contract)
    plans.write_plan(Path("x.plan"), b"a plan", manifest)
    assert rtseg_command("inspect", "x.plan").code == 0
    Path("x.plan").write_bytes(b"b plan")
    assert "corrupt: its sha256 is not that of its manifest: build it again" in told("x.json")
    plans.write_plan(Path("y.plan"), b"a plan", _manifest(b"a plan", None))
    assert "unusable preprocess contract" in told("y.plan")


def _manifest(plan: bytes, contract: Contract | None) -> plans.Manifest:

    metadata = {} if contract is None else contract.to_metadata()
    return dataclasses.replace(manifest_of(plan), contract=metadata)
