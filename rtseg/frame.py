"""The values that travel down the pipeline: Frame, ClassTable, LabelMap. They check themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ImageBGR = NDArray[np.uint8]
"""(H, W, 3) uint8, BGR, C-contiguous."""
Labels = NDArray[np.uint8]
"""(H, W) uint8 class indices."""
Matrix = Literal["bt601", "bt709"]
"""The standard by which a video's luma and chroma were made of its colours."""


def _got(array: object) -> str:
    if isinstance(array, np.ndarray):
        return f"{tuple(array.shape)} {array.dtype}"
    return type(array).__name__


def check_image(image: ImageBGR) -> ImageBGR:
    """Returns the image if it is (H, W, 3) uint8 and not empty, else raises ValueError."""
    ok = isinstance(image, np.ndarray) and image.dtype == np.uint8
    if not ok or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image: expected (H, W, 3) uint8 BGR, got {_got(image)}")
    return image


def check_labels(labels: Labels) -> Labels:
    """Returns the labels if they are (H, W) uint8 and not empty, else raises ValueError."""
    ok = isinstance(labels, np.ndarray) and labels.dtype == np.uint8
    if not ok or labels.ndim != 2 or labels.size == 0:
        raise ValueError(f"labels: expected (H, W) uint8, got {_got(labels)}")
    return labels


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of a stream.

    Attributes:
        image: (H, W, 3) uint8 BGR, contiguous; owned by the frame, not written to by anyone.
        index: position in the source, from 0; gaps mean frames lost or dropped by the source.
        pts_seconds: presentation time on the stream's own clock, exact.
        captured_at: `time.monotonic()` seconds when the frame reached this process.
        labels: (H, W) uint8 ground truth where the source knows it, else None.
    """

    image: ImageBGR
    index: int
    pts_seconds: float
    captured_at: float
    labels: Labels | None = None

    def __post_init__(self) -> None:
        check_image(self.image)
        if not self.image.flags.c_contiguous:
            raise ValueError("image: expected a C-contiguous array, got a strided view")
        if self.labels is not None and check_labels(self.labels).shape != self.image.shape[:2]:
            raise ValueError(
                f"labels: expected {self.image.shape[:2]} like the image, got {self.labels.shape}"
            )

    @property
    def size_hw(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        height, width = self.image.shape[:2]
        return height, width

    def __repr__(self) -> str:
        height, width = self.size_hw
        truth = "" if self.labels is None else ", labels"
        return f"Frame(#{self.index}, {height}x{width}, pts={self.pts_seconds:.6f} s{truth})"


@dataclass(frozen=True, slots=True, eq=False)
class NV12:
    """A picture in a GPU's memory as video decoders leave it: complete, nothing to wait for.

    Whoever reads it holds on to this object until his stream has passed; when nobody holds it any
    more, its memory is used for another picture.

    Attributes:
        y: device address of the luma, (H, W) uint8.
        uv: device address of the chroma, (H / 2, W / 2, 2) uint8, U first.
        pitch_bytes: from row to row, of both.
        size_hw: (H, W) in pixels, both even.
        full_range: luma covers 0..255, not 16..235.
        matrix: the standard of the colours.
        to_bgr: downloads and converts: (H, W, 3) uint8 BGR, contiguous, the caller's own.
    """

    y: int
    uv: int
    pitch_bytes: int
    size_hw: tuple[int, int]
    full_range: bool
    matrix: Matrix
    to_bgr: Callable[[], ImageBGR]


class GpuFrame(Frame):
    """A frame whose picture is on a GPU, `surface`; `image` is downloaded when first asked for."""

    __slots__ = ("_image", "_lock", "surface")
    surface: NV12
    _image: ImageBGR | None
    _lock: threading.Lock

    def __init__(self, surface: NV12, index: int, pts_seconds: float, captured_at: float) -> None:
        values = {"index": index, "pts_seconds": pts_seconds, "captured_at": captured_at}
        own = {"surface": surface, "labels": None, "_image": None, "_lock": threading.Lock()}
        for name, value in {**values, **own}.items():
            object.__setattr__(self, name, value)

    @property
    def image(self) -> ImageBGR:
        """(H, W, 3) uint8 BGR, contiguous."""
        with self._lock:
            if self._image is None:
                object.__setattr__(self, "_image", self.surface.to_bgr())
            assert self._image is not None
            return self._image

    @property
    def size_hw(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.surface.size_hw


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Names and colours of the classes, by index.

    Attributes:
        names: one per class, at most 255 (an index must fit uint8 beside the ignore index).
        palette_rgb: one (R, G, B) in 0..255 per class.
        ignore_index: the label of pixels that count for nothing, 0..255.
    """

    names: tuple[str, ...]
    palette_rgb: tuple[tuple[int, int, int], ...]
    ignore_index: int = 255

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= 255:
            raise ValueError(f"classes: expected 1 to 255, got {len(self.names)}")
        if len(set(self.names)) != len(self.names):
            twice = sorted({n for n in self.names if self.names.count(n) > 1})
            raise ValueError(f"classes: names must differ, got {', '.join(twice)} more than once")
        if len(self.palette_rgb) != len(self.names):
            raise ValueError(
                f"palette: expected {len(self.names)} colours, got {len(self.palette_rgb)}"
            )
        if any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in self.palette_rgb):
            raise ValueError("palette: expected (R, G, B) triples in 0..255")
        if not 0 <= self.ignore_index <= 255:
            raise ValueError(f"ignore_index: expected 0..255, got {self.ignore_index}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Index of a class by name, case-insensitive; ValueError lists the names there are."""
        for i, known in enumerate(self.names):
            if known.lower() == name.lower():
                return i
        raise ValueError(f"unknown class {name!r}: choose one of {', '.join(self.names)}")

    def table_to(self, other: ClassTable) -> Labels:
        """(256,) uint8: each label of this table to the other's class of the same name.

        255 where the other has no such class, and for the ignore index, class or not.
        """
        table = np.full(256, 255, np.uint8)
        known = {name.lower(): i for i, name in enumerate(other.names)}
        for i, name in enumerate(self.names):
            table[i] = known.get(name.lower(), 255)
        table[self.ignore_index] = 255
        return table

    def lut_bgr(self) -> NDArray[np.uint8]:
        """(256, 3) uint8 BGR lookup table; every index that is no class is black."""
        lut = np.zeros((256, 3), np.uint8)
        lut[: len(self.names)] = np.asarray(self.palette_rgb, np.uint8)[:, ::-1]
        return lut


def default_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colours by bit interleaving, as in PASCAL VOC; the first is not black."""
    colours = []
    for index in range(1, num_classes + 1):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colours.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colours)


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """The segmentation of one frame.

    Attributes:
        labels: (H, W) uint8 class indices at the frame's own size.
        classes: what the indices mean.
        pts_seconds: of the frame, on the stream's own clock.
        captured_at: of the frame, `time.monotonic()` seconds.
        confidence: (H, W) float32 in 0..1, or None.
        counts: (256,) int64, how many pixels have each label, from whoever counted them already;
            None to count when asked.
        blended: (H, W, 3) uint8 BGR, the frame with the colours mixed in, where the device has
            done that already; else None.
    """

    labels: Labels
    classes: ClassTable
    pts_seconds: float = 0.0
    captured_at: float = 0.0
    confidence: NDArray[np.float32] | None = None
    counts: NDArray[np.int64] | None = None
    blended: ImageBGR | None = None

    def __post_init__(self) -> None:
        check_labels(self.labels)
        if self.counts is not None and self.counts.shape != (256,):
            raise ValueError(f"counts: expected (256,), got {self.counts.shape}")
        if self.confidence is not None and self.confidence.shape != self.labels.shape:
            raise ValueError(
                f"confidence: expected {self.labels.shape}, got {self.confidence.shape}"
            )

    def fractions(self) -> dict[str, float]:
        """Share of the pixels of each class, by name; ignored pixels count for none of them."""
        counts = self.histogram()
        total = float(self.labels.size)
        return {name: float(counts[i]) / total for i, name in enumerate(self.classes.names)}

    def histogram(self) -> NDArray[np.int64]:
        """(256,) int64: how many pixels have each label."""
        if self.counts is not None:
            return self.counts
        return np.bincount(self.labels.ravel(), minlength=256).astype(np.int64, copy=False)

    def mask(self, name: str) -> NDArray[np.bool_]:
        """(H, W) bool: where the named class is."""
        return np.equal(self.labels, self.classes.index(name))

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return (
            f"LabelMap({height}x{width}, {len(self.classes)} classes, pts={self.pts_seconds:.6f} s)"
        )
