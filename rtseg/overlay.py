"""From a frame and its labels to the picture that sinks show.

Five effects and a head-up display. Everything here runs once per frame on the render thread,
so effects work on whole arrays in OpenCV, with buffers that are reused from frame to frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rtseg import native
from rtseg._hud import Hud
from rtseg.errors import ConfigError
from rtseg.frame import ClassTable, Frame, ImageBGR, LabelMap, Labels

EFFECTS = ("overlay", "mask", "contour", "blur", "side-by-side")

_OUTLINE_BGR = (24, 20, 18)


@dataclass(frozen=True, slots=True)
class Effect:
    """What to draw.

    Attributes:
        kind: one of `EFFECTS`.
        classes: the class indices that `blur` keeps sharp; empty for the other effects.
    """

    kind: str
    classes: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str, classes: ClassTable) -> Effect:
        """Reads `overlay`, `mask`, `contour`, `side-by-side` or `blur:CLASS[+CLASS...]`.

        `blur` keeps the named classes sharp and blurs everything else, ignored pixels
        included: a portrait for a subject, privacy for what is around it. Names are
        case-insensitive.

        Raises:
            ConfigError: an unknown effect or class, or classes where none belong; the
                message lists what is allowed.
        """
        kind, colon, tail = text.partition(":")
        kind = kind.strip().lower()
        if kind not in EFFECTS:
            raise ConfigError(f"unknown effect {text!r}: choose one of {', '.join(EFFECTS)}")
        names = [name.strip() for name in tail.split("+") if name.strip()]
        if kind != "blur":
            if colon:
                raise ConfigError(f"effect {text!r}: only blur takes classes, use {kind!r}")
            return cls(kind)
        known = ", ".join(classes.names)
        if not names:
            raise ConfigError(
                f"effect {text!r}: name the classes to keep sharp, as in "
                f"blur:{classes.names[-1]} or blur:A+B; the classes are {known}"
            )
        try:
            kept = {classes.index(name) for name in names}
        except ValueError as error:
            raise ConfigError(f"effect {text!r}: {error}") from error
        return cls(kind, tuple(sorted(kept)))


class Renderer:
    """Draws one effect, and the head-up display, for one stream.

    Not thread-safe: one renderer per stream, called by one thread, in frame order.
    """

    def __init__(
        self,
        classes: ClassTable,
        effect: str = "overlay",
        opacity: float = 0.5,
        hud: bool = True,
        title: str | None = None,
    ) -> None:
        """
        Args:
            classes: names and colours; the results must use the same table.
            effect: see `Effect.parse`.
            opacity: 0 (image only) to 1 (colours only), for overlay and side-by-side.
            hud: draw the legend (share of each class) and the line with FPS, mask age
                and title; left out on pictures too small to read them on.
            title: shown in that line, e.g. "street-m  openvino bf16"; characters outside
                ASCII are replaced.

        Raises:
            ConfigError: unknown effect or class, or an opacity outside 0..1.
        """
        self.effect = Effect.parse(effect, classes)
        if not 0.0 <= opacity <= 1.0:  # false for NaN too
            raise ConfigError(f"opacity: expected 0 to 1, got {opacity}")
        self._opacity = float(opacity)
        self._classes = classes
        self._lut = classes.lut_bgr()
        if classes.ignore_index < len(classes):
            self._lut[classes.ignore_index] = 0
        self._colour_map = self._lut.reshape(256, 1, 3)
        self._unlabelled = [*range(len(classes), 256), classes.ignore_index]
        self._line_map = self._colour_map.copy()
        self._line_map[self._unlabelled] = _OUTLINE_BGR
        self._unlabelled_lut = np.zeros(256, np.uint8)
        self._unlabelled_lut[self._unlabelled] = 255
        self._keep_lut = np.zeros(256, np.uint8)
        self._keep_lut[list(self.effect.classes)] = 255
        self._hud = Hud(classes, title, self.effect.classes or None) if hud else None
        self._buffers: dict[str, NDArray[np.uint8]] = {}
        self._draw: Callable[[ImageBGR, Labels, LabelMap], ImageBGR] = {
            "overlay": self._overlay,
            "mask": self._mask,
            "contour": self._contour,
            "blur": self._blur,
            "side-by-side": self._side_by_side,
        }[self.effect.kind]

    @property
    def blending(self) -> tuple[NDArray[np.uint8], float] | None:
        """Palette (256, 3) uint8 BGR and opacity, for a device to blend by; None if unused."""
        if self.effect.kind in ("overlay", "side-by-side"):
            return self._lut, self._opacity
        return None

    def render(
        self,
        frame: Frame,
        result: LabelMap,
        *,
        fps: float | None = None,
        mask_age_ms: float | None = None,
    ) -> ImageBGR:
        """Draws the picture for one frame.

        Args:
            frame: the frame; not written to.
            result: its labels, of the frame's size; not written to. Indices that are no
                class, and the ignore index, show the image (black in `mask`).
            fps: frames per second for the display, or None to leave it out.
            mask_age_ms: milliseconds from capture to mask, or None to leave it out.

        Returns:
            (H, W, 3) uint8 BGR, or (H, 2W, 3) for side-by-side. The array belongs to the
            renderer and is valid until the next call: copy it to keep it.

        Raises:
            ValueError: the labels' size is not the frame's.
        """
        labels = result.labels
        if labels.shape != frame.size_hw:
            raise ValueError(f"labels: expected {frame.size_hw} like the frame, got {labels.shape}")
        picture = self._draw(frame.image, np.ascontiguousarray(labels), result)
        if self._hud is not None:
            self._hud.draw(
                picture,
                self._shares(result),
                frame.pts_seconds,
                fps=fps,
                mask_age_ms=mask_age_ms,
                legend_left=picture.shape[1] - labels.shape[1],
            )
        return picture

    def _buffer(self, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A reused uint8 array; its content is whatever the last frame left."""
        array = self._buffers.get(name)
        if array is None or array.shape != shape:
            array = self._buffers[name] = np.empty(shape, np.uint8)
        return array

    def _shares(self, result: LabelMap) -> NDArray[np.float64]:
        """(C,) share of each class, for the legend."""
        counts, labels = result.counts, result.labels
        if counts is None:  # from about 100 x 100 samples: enough for whole per cents
            step = max(1, min(labels.shape) // 100)
            # Strided both ways from the middle of a step, so that neither edge is favoured.
            labels = labels[step // 2 :: step, step // 2 :: step]
            counts = np.bincount(labels.ravel(), minlength=256)
        shares = counts[: len(self._classes)] / labels.size
        if self._classes.ignore_index < len(shares):
            shares[self._classes.ignore_index] = 0.0
        return shares

    def _blend_into(self, image: ImageBGR, labels: Labels, result: LabelMap, out: ImageBGR) -> None:
        if result.blended is None:
            native.blend(image, labels, self._lut, self._opacity, out=out)
        else:
            np.copyto(out, result.blended)
        if result.counts is not None and not result.counts[self._unlabelled].any():
            return
        # The table's entry for no class is black and would darken the image: put it back.
        unlabelled = self._buffer("unlabelled", labels.shape)
        cv2.LUT(labels, self._unlabelled_lut, dst=unlabelled)
        if unlabelled.any():
            cv2.copyTo(image, unlabelled, out)

    def _overlay(self, image: ImageBGR, labels: Labels, result: LabelMap) -> ImageBGR:
        out = self._buffer("picture", image.shape)
        self._blend_into(image, labels, result, out)
        return out

    def _mask(self, image: ImageBGR, labels: Labels, _: object) -> ImageBGR:
        out = self._buffer("picture", image.shape)
        cv2.applyColorMap(labels, self._colour_map, dst=out)
        return out

    def _side_by_side(self, image: ImageBGR, labels: Labels, result: LabelMap) -> ImageBGR:
        height, width = labels.shape
        out = self._buffer("picture", (height, 2 * width, 3))
        half = self._buffer("half", image.shape)  # kernels want contiguous output
        self._blend_into(image, labels, result, half)
        cv2.hconcat([image, half], dst=out)
        return out

    def _contour(self, image: ImageBGR, labels: Labels, _: object) -> ImageBGR:
        """Each side of a border in its own class colour, a dark line on both outsides."""
        shape, short = labels.shape, min(labels.shape)
        line_px, outline_px = max(1, round(short / 320)), max(1, round(short / 720))
        box = np.ones((2 * line_px + 1,) * 2, np.uint8)
        low = cv2.erode(labels, box, dst=self._buffer("low", shape))
        high = cv2.dilate(labels, box, dst=self._buffer("high", shape))
        line = cv2.compare(low, high, cv2.CMP_NE, dst=self._buffer("line", shape))
        box = np.ones((2 * outline_px + 1,) * 2, np.uint8)
        band = cv2.dilate(line, box, dst=self._buffer("band", shape))
        # Off the line the index becomes 255, whose colour is the outline's: one lookup for both.
        index = cv2.bitwise_not(line, dst=low)
        cv2.max(index, labels, dst=index)
        coloured = self._buffer("coloured", image.shape)
        cv2.applyColorMap(index, self._line_map, dst=coloured)
        out = self._buffer("picture", image.shape)
        np.copyto(out, image)
        cv2.copyTo(coloured, band, out)
        return out

    def _blur(self, image: ImageBGR, labels: Labels, _: object) -> ImageBGR:
        """Everything but the kept classes out of focus, with a feathered edge."""
        (height, width), short = labels.shape, min(labels.shape)
        keep = self._buffer("keep", labels.shape)
        cv2.LUT(labels, self._keep_lut, dst=keep)
        halvings = max(0, (short // 64).bit_length() - 1)
        small = _halve(image, halvings)
        # Blur only what is around: the subject's own colours would glow through as a halo.
        weight = _halve(np.bitwise_not(keep), halvings).astype(np.float32) / 255 + 1e-3
        weight = weight[..., None]
        sigma = max(1.0, min(small.shape[:2]) / 36)
        total = cv2.GaussianBlur(weight, (0, 0), sigma).reshape(weight.shape)
        soft = cv2.GaussianBlur(small * weight, (0, 0), sigma) / total
        soft = np.rint(soft).clip(0, 255).astype(np.uint8)
        out = self._buffer("picture", image.shape)
        cv2.resize(soft, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        _lay_over(image, keep, max(1, round(short / 240)), out)
        return out


def _halve(image: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """The image, (H, W[, 3]), halved some times by exact 2x2 means.

    Rows and columns past the last full block are left out: the even case is eight times
    faster, and what is done with the result is a blur many blocks wide.
    """
    height, width = (n >> times << times for n in image.shape[:2])
    image = image[:height, :width]
    for _ in range(times):
        size = (image.shape[1] // 2, image.shape[0] // 2)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return image


def _lay_over(image: ImageBGR, keep: Labels, feather_px: int, out: ImageBGR) -> None:
    """Lays the image over `out` where keep is 255; fades within `feather_px` of the edge."""
    left, top, wide, high = cv2.boundingRect(keep)
    if wide == 0:
        return
    rows = slice(max(0, top - feather_px), top + high + feather_px)
    columns = slice(max(0, left - feather_px), left + wide + feather_px)
    side = 2 * feather_px + 1
    alpha = cv2.blur(keep[rows, columns], (side, side), borderType=cv2.BORDER_REPLICATE)
    alpha = cv2.merge([alpha, alpha, alpha])
    target = out[rows, columns]
    sharp = cv2.multiply(image[rows, columns], alpha, scale=1 / 255)
    cv2.multiply(target, cv2.bitwise_not(alpha), dst=target, scale=1 / 255)
    cv2.add(target, sharp, dst=target)
