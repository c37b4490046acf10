"""The networks by name: which family builds them, and the table of their facts.

The table `networks.json` is generated, because building eighty networks to list them would take
half a minute: `python -m rtseg.models._catalogue` writes it, a test compares it with the code.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtseg import plugins
from rtseg.errors import ConfigError
from rtseg.models import AUXILIARY_PREFIX, Variant

if TYPE_CHECKING:
    from torch import nn

    from rtseg.models.layers import Network

TABLE = "networks.json"
CLASSES = 19
"""Cityscapes' number of classes: what parameters and GMACs of the table are counted with."""
SIZE_HW = (1024, 2048)
"""Input of the table's GMACs, Cityscapes' own size."""


@functools.cache
def table() -> tuple[Mapping[str, Any], ...]:
    """Rows {name, family, params, gmacs, output_stride, paper, year, reported}, by family."""
    text = resources.files("rtseg.models").joinpath(TABLE).read_text()
    return tuple(json.loads(text))


def names() -> list[str]:
    """The names of all networks."""
    return [row["name"] for row in table()]


def find(name: str) -> tuple[str, Variant]:
    """The family of a network, and the variant.

    Raises:
        ConfigError: there is none of that name; the message has the three nearest.
    """
    family = next((row["family"] for row in table() if row["name"] == name), None)
    if family is None:
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.0)
        raise ConfigError(f"unknown network {name!r}: the nearest are {', '.join(near)}")
    variants: Mapping[str, Variant] = plugins.load("rtseg.models", family).VARIANTS
    return family, variants[name]


def resolve(network: str, family: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(family, options of its `build`) of a network by name, or of a family with options.

    Raises:
        ConfigError: no such network or family.
    """
    if not network:
        plugins.load("rtseg.models", family)
        return family, dict(options)
    family, variant = find(network)
    return family, {**variant.options, **options}


def build(family: str, num_classes: int, options: Mapping[str, Any]) -> Network:
    """A network with random weights.

    Raises:
        ConfigError: the family is unknown, or takes no such options.
    """
    module = plugins.load("rtseg.models", family)
    try:
        network: Network = module.build(num_classes, **options)
    except TypeError as error:
        raise ConfigError(f"network {family}: {error}: see its build() for the options") from error
    return network


def parameters(network: nn.Module) -> int:
    """How many a network has in use: those of auxiliary heads are not counted."""
    named = network.named_parameters()
    return sum(p.numel() for name, p in named if not name.startswith(AUXILIARY_PREFIX))


def measure(family: str, name: str, variant: Variant) -> dict[str, Any]:
    """A row of the table, counted on PyTorch's meta device: no memory, no arithmetic."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    module = plugins.load("rtseg.models", family)
    with torch.device("meta"):
        network = build(family, CLASSES, variant.options).eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(torch.empty(1, 3, *SIZE_HW))
    row = {
        "name": name,
        "family": family,
        "params": parameters(network),
        "gmacs": round(counter.get_total_flops() / 2e9, 2),
        "output_stride": network.output_stride,
        "paper": variant.paper or module.PAPER,
        "year": variant.year or module.YEAR,
        "reported": [dataclasses.asdict(r) for r in variant.reported],
    }
    as_read: dict[str, Any] = json.loads(json.dumps(row))
    return as_read


def measure_family(family: str) -> list[dict[str, Any]]:
    """The rows of one family."""
    variants: Mapping[str, Variant] = plugins.load("rtseg.models", family).VARIANTS
    return [measure(family, name, variant) for name, variant in variants.items()]


def write(path: Path) -> int:
    """Writes the table of all families, a row per line; returns the number of networks."""
    rows = [row for family in plugins.names("rtseg.models") for row in measure_family(family)]
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return len(rows)


if __name__ == "__main__":
    print(f"{write(Path(__file__).with_name(TABLE))} networks")
