"""Runtimes that turn images into logits. One file per runtime; `open_engine` picks one.

An engine file gives `available() -> str`, empty if it can run here and else one line saying what
is missing, and `open(model, precision, requests, on_progress) -> Engine`. Its public name on the
command line may differ from the file's (`ALIASES`), as the file must not shadow the runtime's own
package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rtseg import plugins
from rtseg.artifact import ModelFile
from rtseg.errors import ConfigError, MissingDependencyError
from rtseg.frame import NV12, ImageBGR, Labels

ALIASES = {"openvino": "ov", "onnxruntime": "ort", "tensorrt": "trt"}
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8", "fp8")
_PREFERENCE = ("trt", "ov", "ort", "eager")
OnProgress = Callable[[int, "int | None", str], None]
"""Takes (steps done, steps in all or None, what is being done) while an engine is built."""


def quiet(done: int, total: int | None, what: str) -> None:
    """An `OnProgress` that says nothing."""


@dataclass(frozen=True)
class EngineInfo:
    """What runs the model.

    Attributes:
        name: as on the command line: "openvino", "onnxruntime", "tensorrt", "eager".
        device: for people: the CPU's or GPU's own name.
        precision: what it computes in: "fp32", "fp16", "bf16", ...
        version: of the runtime.
        requests: how many inferences may run at once, each called from a thread of its own.
        takes_frames: whether it is a `FrameEngine`.
        gpu: ordinal of the GPU on which a `FrameEngine` takes them.
    """

    name: str
    device: str
    precision: str
    version: str
    requests: int = 1
    takes_frames: bool = False
    gpu: int = 0


class Engine(Protocol):
    """A model, loaded and ready. Used by at most `info.requests` threads at a time."""

    info: EngineInfo

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32] | NDArray[np.float16]:
        """Logits (N, C, h, w) of images (N, 3, H, W) float32, RGB normalised.

        A change of H or W may compile anew. The returned array is the caller's own.
        EngineError if the runtime fails.
        """

    def close(self) -> None:
        """Frees what the runtime holds; the engine cannot be used afterwards."""


class FrameEngine(Engine, Protocol):
    """An engine on a device that does the rest there too: whole frames in, labels out."""

    def segment(
        self, picture: ImageBGR | NV12, size: tuple[int, int]
    ) -> tuple[Labels, NDArray[np.int64], ImageBGR | None]:
        """Preprocess, network and argmax of a frame, as `Segmenter` does them on a CPU.

        Args:
            picture: (H, W, 3) uint8 BGR, or one that is on the GPU already.
            size: (h, w) of the network's input.

        Returns:
            Labels (H, W) uint8; how many pixels have each, (256,) int64; and, after `blend_with`
            and of a BGR picture, the blended one (H, W, 3) uint8. All are the caller's own.
        """

    def blend_with(self, palette: NDArray[np.uint8], opacity: float) -> None:
        """From now on `segment` blends the colours in as well, as `rtseg.native.blend` does.

        Args:
            palette: (256, 3) uint8 BGR.
            opacity: 0..1.
        """

    def repeat(self, size: tuple[int, int], count: int) -> None:
        """Runs the network alone so many times on what is on the device, and waits for it."""


def names() -> list[str]:
    """Public names of all engines, whether or not they can run here."""
    public = {file: name for name, file in ALIASES.items()}
    return sorted(public.get(file, file) for file in plugins.names(__name__))


def available(name: str) -> str:
    """Empty if the named engine can run on this machine, else a line that says what is missing."""
    reason: str = plugins.load(__name__, ALIASES.get(name, name)).available()
    return reason


def open_engine(
    model: ModelFile,
    name: str = "auto",
    precision: str = "auto",
    *,
    requests: int = 1,
    on_progress: OnProgress = quiet,
) -> Engine:
    """Loads a model into an engine.

    Args:
        name: a public engine name, or "auto" for the first that can run here, GPU ones first.
        precision: one of PRECISIONS; "auto" is what the device runs fastest with parity.
        requests: how many inferences the caller would run at once, for throughput rather than
            latency; the engine says in its info how many it takes, which may be fewer.
        on_progress: told of work that takes seconds, such as building a TensorRT plan.

    Raises:
        ConfigError: unknown name or precision.
        MissingDependencyError: the engine's package or device is not there.
        EngineError: the runtime cannot load the model.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if name == "auto":
        files = [f for f in _PREFERENCE if f in plugins.names(__name__)]
        reasons = []
        for file in files:
            reason = plugins.load(__name__, file).available()
            if not reason:
                return _open(file, model, precision, requests, on_progress)
            reasons.append(reason)
        raise MissingDependencyError("no engine can run here: " + "; ".join(reasons))
    if name not in names():
        raise ConfigError(f"unknown engine {name!r}: choose auto or one of {', '.join(names())}")
    file = ALIASES.get(name, name)
    reason = plugins.load(__name__, file).available()
    if reason:
        raise MissingDependencyError(reason)
    return _open(file, model, precision, requests, on_progress)


def _open(
    file: str, model: ModelFile, precision: str, requests: int, on_progress: OnProgress
) -> Engine:
    engine: Engine = plugins.load(__name__, file).open(model, precision, requests, on_progress)
    return engine
