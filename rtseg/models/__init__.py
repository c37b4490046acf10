"""Segmentation networks. One file per family, each with `VARIANTS` and `build(num_classes, **)`.

A network is a `layers.Network`: it maps (N, 3, H, W) normalised RGB to logits (N, C, h, w) at its
own stride. In training mode it returns a list: the logits, then those of its auxiliary heads,
whose parameters lie under `auxiliary` and are not part of a model file.

A family file states, besides `build`:

- `PAPER` and `YEAR`: of the publication that the file is written from;
- `VARIANTS`: its networks by name, each a `Variant`: what `build` is called with, and what the
  authors report. The first is the lightest and the one that tests go deepest into;
- `RELEASES`, where authors have published weights: how the keys of their state dicts are ours.

`networks.json` beside this file lists all networks with what `rtseg models` shows of them, so
that nothing has to be imported to find one; `python -m rtseg.models._catalogue` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AUXILIARY_PREFIX = "auxiliary."
NO_PLUGINS = ("backbones", "context", "layers", "resampling")
"""Files that families share."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Reported:
    """A result as the authors give it, never one of ours.

    Attributes:
        miou: as a fraction.
        data, split: where it was measured.
        fps: their frames per second, if given, at `size` (H, W) on `device`.
    """

    miou: float
    data: str = "cityscapes"
    split: str = "val"
    fps: float | None = None
    size: tuple[int, int] | None = None
    device: str = ""


def on_gtx_1080_ti(
    size: tuple[int, int], val: float, test: float, fps: float
) -> tuple[Reported, Reported]:
    """Cityscapes val and test at one pace, as the STDC and PP-LiteSeg papers give them."""
    return (
        Reported(val, fps=fps, size=size, device="GTX 1080 Ti"),
        Reported(test, split="test", fps=fps, size=size, device="GTX 1080 Ti"),
    )


def camvid_on_gtx_1080_ti(miou: float, fps: float) -> Reported:
    """CamVid test at 720x960, of the same papers."""
    return Reported(miou, "camvid", "test", fps, (720, 960), "GTX 1080 Ti")


@dataclass(frozen=True)
class Variant:
    """One network of a family.

    Attributes:
        options: what the family's `build` takes besides the number of classes.
        editions: options in which other published weights of the same network differ from these;
            `rtseg import` tries them too.
        reported: results of the authors, best known first.
        paper, year: where they differ from the family's.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    reported: tuple[Reported, ...] = ()
    paper: str = ""
    year: int = 0
    editions: tuple[Mapping[str, Any], ...] = ()

    def all_options(self) -> list[dict[str, Any]]:
        """The options of every edition, its own first."""
        return [dict(self.options), *({**self.options, **other} for other in self.editions)]


@dataclass(frozen=True)
class Release:
    """How a published state dict of a family becomes one of ours.

    Attributes:
        rules: (pattern, replacement) pairs of `re.sub`. On each published key all rules are
            applied in their order; what comes out is our key.
        dropped: patterns, `re.match`ed on published keys, of what takes no part in the network's
            output: auxiliary heads, classifiers of a pre-training. Reported when left out.
        classifier: our key whose first dimension is the number of classes.
        mean, std: the normalisation the weights were trained with, RGB in 0..1.
        source: who published it, for people.
    """

    rules: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...] = ()
    classifier: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    source: str = ""
