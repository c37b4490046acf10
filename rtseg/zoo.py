"""`rtseg models`: what is shipped, read from the model files themselves."""

from __future__ import annotations

from typing import Any

from rtseg.artifact import load_model, shipped


def model_rows() -> list[dict[str, Any]]:
    """One row per shipped model: {name, family, params, gmacs, output_stride, paper, year, ...}."""
    return [_row(name) for name in shipped()]


def _row(name: str) -> dict[str, Any]:
    file = load_model(name)
    contract = file.contract
    facts = contract.facts
    return {
        "name": name,
        "family": contract.family,
        "params": facts.get("params"),
        "gmacs": facts.get("gmacs"),
        "input": list(contract.input_hw),
        "output_stride": contract.output_stride,
        "paper": facts.get("paper"),
        "year": facts.get("year"),
        "reported": None,
        "shipped": {**contract.measured, "bytes": file.path.stat().st_size},
    }
