"""Which precision a quantised file runs in: its own."""

from __future__ import annotations

from rtseg.artifact import ModelFile
from rtseg.errors import ConfigError

QUANTISED = ("int8", "fp8")


def quantised_precision(model: ModelFile, precision: str) -> str:
    """The 8-bit precision that the file computes in; "" for a file that is not quantised.

    Args:
        precision: what the user asks for.

    Raises:
        ConfigError: an 8-bit precision of a file without its scales, or another one than the
            quantised file's own.
    """
    own = model.contract.precision if model.contract.precision in QUANTISED else ""
    if precision in QUANTISED and precision != own:
        raise ConfigError(
            f"{model.path} has no {precision} scales: make a file that has them with "
            f'`rtseg build` and a recipe of precision = "{precision}", or use --precision auto'
        )
    if own and precision not in ("auto", own):
        raise ConfigError(
            f"{model.path} computes in {own}: use --precision auto, or the file it was made from "
            f"for {precision}"
        )
    return own
