"""`rtseg inspect`: what a model file or a plan says of itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rtseg.artifact import Contract, load_model
from rtseg.errors import ModelError
from rtseg.plans import check_tensors, intact, read_manifest


def inspect_file(name_or_path: str) -> dict[str, Any]:
    """What is known about a file, for JSON and for people.

    Args:
        name_or_path: a shipped name, an ONNX file, a plan or its manifest.

    Returns:
        {kind, path, bytes, sha256, contract} of a model file; for a plan its manifest as well.

    Raises:
        ModelError: there is no such file, it is corrupt, or nothing is known about it.
    """
    path = Path(name_or_path)
    if path.suffix in (".plan", ".engine", ".json"):
        return _plan(path)
    model = load_model(name_or_path)
    return {
        "kind": "model file",
        "path": str(model.path),
        "bytes": model.path.stat().st_size,
        "sha256": model.sha256(),
        "input": "image (N, 3, H, W)",
        "output": f"logits (N, {model.num_classes or 'C'}, h, w)",
        "contract": _contract(model.contract),
    }


def _plan(path: Path) -> dict[str, Any]:
    plan = path.with_suffix(".plan") if path.suffix == ".json" else path
    if path.suffix != ".json" and not path.is_file():
        raise ModelError(f"{path}: no such plan")
    manifest = read_manifest(path)
    wrong = intact(plan, manifest) or check_tensors(manifest.tensors)
    if wrong:
        raise ModelError(f"{plan}: {wrong}: build it again with `rtseg build`")
    try:
        contract = Contract.from_metadata(manifest.contract)
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: unusable preprocess contract in the manifest: {error}"
        ) from error
    return {
        "kind": "plan",
        "path": str(plan),
        **manifest.to_dict(),
        "contract": _contract(contract),
    }


def _contract(contract: Contract) -> dict[str, Any]:
    facts = dataclasses.asdict(contract)
    table = contract.classes
    facts["classes"] = {
        "names": list(table.names),
        "palette_rgb": ["#{:02x}{:02x}{:02x}".format(*rgb) for rgb in table.palette_rgb],
        "ignore_index": table.ignore_index,
    }
    return {key: value for key, value in facts.items() if value not in ("", {}, ())}
