"""`rtseg models`: what is shipped, read from the model files, and what can be built and trained."""

from __future__ import annotations

from typing import Any

from rtseg.artifact import load_model, shipped
from rtseg.models._catalogue import SIZE_HW, table


def model_rows(wanted: str = "") -> list[dict[str, Any]]:
    """A row per shipped model, then one per network of the zoo, whose `shipped` is None.

    Args:
        wanted: part of a name, a family or a paper's title; case does not count. Empty for all.

    Returns:
        Rows {name, family, params, gmacs, gmacs_size, input, output_stride, paper, year, reported,
        shipped}. `gmacs` are billions of multiply-accumulates at `gmacs_size` (H, W), `reported`
        what the authors give, `shipped` what we measured.
    """
    rows = [_shipped_row(name) for name in shipped()] + [_network_row(row) for row in table()]
    text = wanted.casefold()
    keys = ("name", "family", "paper")
    return [row for row in rows if any(text in str(row[key]).casefold() for key in keys)]


def _shipped_row(name: str) -> dict[str, Any]:
    file = load_model(name)
    contract = file.contract
    facts = contract.facts
    return {
        "name": name,
        "family": contract.family,
        "params": facts.get("params"),
        "gmacs": facts.get("gmacs"),
        "gmacs_size": list(contract.input_hw),
        "input": list(contract.input_hw),
        "output_stride": contract.output_stride,
        "paper": facts.get("paper"),
        "year": facts.get("year"),
        "reported": [],
        "shipped": {**contract.measured, "bytes": file.path.stat().st_size},
    }


def _network_row(row: Any) -> dict[str, Any]:
    return {**row, "gmacs_size": list(SIZE_HW), "input": None, "shipped": None}
