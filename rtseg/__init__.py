"""rtseg: real-time video segmentation, from source to overlay.

    import rtseg

    labels = rtseg.load("street-m")(bgr).labels       # (H, W) uint8 of one image
    report = rtseg.run("drive.mp4", save=Path("overlay.mp4"))

Public names are loaded when they are first used; `import rtseg` itself loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtseg.errors import RtsegError
    from rtseg.frame import ClassTable, Frame, LabelMap
    from rtseg.runner import run
    from rtseg.segmenter import Segmenter, load
    from rtseg.timing import RunReport

__version__ = "0.1.0"

_PUBLIC = {
    "ClassTable": "rtseg.frame",
    "Frame": "rtseg.frame",
    "LabelMap": "rtseg.frame",
    "RtsegError": "rtseg.errors",
    "RunReport": "rtseg.timing",
    "Segmenter": "rtseg.segmenter",
    "load": "rtseg.segmenter",
    "run": "rtseg.runner",
}

__all__ = [
    "ClassTable",
    "Frame",
    "LabelMap",
    "RtsegError",
    "RunReport",
    "Segmenter",
    "__version__",
    "load",
    "run",
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rtseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
