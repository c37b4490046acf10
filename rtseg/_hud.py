"""The live legend and the HUD line, drawn on top of a rendered picture.

Knows nothing of effects or label maps: it gets class shares and numbers. Panels are rendered
a few times a second at most and kept premultiplied, so that a frame costs one multiply and one
add per panel. Drawing never decides what a pixel's class is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from rtseg.frame import ClassTable, ImageBGR

REFRESH_SECONDS = 0.25
"""Numbers change at most this often, in stream time: faster is unreadable."""
SHOW_SHARE, HIDE_SHARE = 0.003, 0.0015
"""A class enters the legend at the first share and leaves below the second."""
SWAP_SHARE = 0.01
"""A row moves up only if it leads its neighbour by this share of the picture."""
SMOOTH_SECONDS = 0.5
"""Time constant of the shares' smoothing."""
MIN_SHORT_SIDE_PX = 160
"""No panels on smaller pictures: the text would cover what it explains."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SUPERSAMPLE = 4
_MAX_NAME = 20
_PANEL_BGR, _PANEL_ALPHA = (22, 18, 16), 0.66
_BRIGHT_BGR, _SOFT_BGR = (255, 255, 255), (196, 190, 186)

Mask = NDArray[np.float32]
"""(h, w) float32 coverage in 0..1."""


def printable(text: str) -> str:
    """The text in the characters every OpenCV font has: accents dropped, the rest as '?'."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else "?" for c in plain)


@lru_cache(maxsize=32)
def _type_metrics(cap_px: int) -> tuple[float, int, int]:
    """(font scale, thickness, overhang) for capitals `cap_px` high after supersampling.

    Measured from the ink: OpenCV 4 draws stroke fonts and OpenCV 5 TrueType ones under the
    same constant, and their sizes differ. The overhang is how far a stroke reaches, in
    supersampled pixels, below the baseline and above the capitals.
    """
    probe = np.zeros((200, 200), np.uint8)
    cv2.putText(probe, "H", (20, 160), _FONT, 4.0, 255, 1, cv2.LINE_AA)
    rows = np.flatnonzero(probe.max(axis=1) > 127)
    cap = cap_px * _SUPERSAMPLE
    is_truetype = hasattr(cv2, "FontFace")  # there thickness picks a weight, not a stroke width
    thickness = 1 if is_truetype else max(1, round(cap / 7.5))
    overhang = 0 if is_truetype else thickness // 2
    return 4.0 * (cap - 2 * overhang) / float(rows[-1] - rows[0] + 1), thickness, overhang


@lru_cache(maxsize=512)
def text_mask(text: str, cap_px: int) -> Mask:
    """Coverage (h, w) of one line of text, cropped to its ink in width; h = 2 * cap_px.

    The baseline lies at row `cap_px * 3 // 2`, so masks of one size align by their tops.
    """
    scale, thickness, overhang = _type_metrics(cap_px)
    big = cap_px * _SUPERSAMPLE
    canvas = np.zeros((2 * big, big * (2 * len(text) + 2)), np.uint8)
    origin = (big, (cap_px * 3 // 2) * _SUPERSAMPLE - overhang)
    cv2.putText(canvas, text, origin, _FONT, scale, 255, thickness, cv2.LINE_AA)
    columns = np.flatnonzero(canvas.max(axis=0))
    if columns.size == 0:
        return np.zeros((2 * cap_px, max(1, cap_px // 2)), np.float32)
    width = -(-int(columns[-1] + 1 - columns[0]) // _SUPERSAMPLE)
    ink = canvas[:, columns[0] : columns[0] + width * _SUPERSAMPLE]
    mask = cv2.resize(ink, (width, 2 * cap_px), interpolation=cv2.INTER_AREA)
    coverage: Mask = np.asarray(mask, np.float32) / np.float32(255)
    return coverage


@lru_cache(maxsize=64)
def _rounded(height: int, width: int, radius: int) -> Mask:
    """Coverage of a filled rounded rectangle, anti-aliased."""
    s = _SUPERSAMPLE
    h, w, r = height * s, width * s, max(1, min(radius, height // 2, width // 2) * s)
    shape = np.zeros((h, w), np.uint8)
    shape[:, r : w - r] = 255
    shape[r : h - r] = 255
    for cy in (r, h - 1 - r):
        for cx in (r, w - 1 - r):
            cv2.circle(shape, (cx, cy), r, 255, -1)
    mask = cv2.resize(shape, (width, height), interpolation=cv2.INTER_AREA)
    coverage: Mask = np.asarray(mask, np.float32) / np.float32(255)
    return coverage


@dataclass(frozen=True, eq=False)
class _Panel:
    """A finished translucent panel: `picture * keep / 255 + over`, both (h, w, 3) uint8."""

    keep: ImageBGR
    over: ImageBGR

    @property
    def size_hw(self) -> tuple[int, int]:
        height, width = self.keep.shape[:2]
        return height, width

    def lay_over(self, picture: ImageBGR, top: int, left: int) -> None:
        """Composites the panel into the picture, in place; it must fit."""
        height, width = self.size_hw
        target = picture[top : top + height, left : left + width]
        cv2.multiply(target, self.keep, dst=target, scale=1 / 255)
        cv2.add(target, self.over, dst=target)


class _Sketch:
    """A panel while it is being drawn, in float and premultiplied."""

    def __init__(self, height: int, width: int, radius: int) -> None:
        self._alpha = _rounded(height, width, radius) * np.float32(_PANEL_ALPHA)
        self._colour = self._alpha[..., None] * np.asarray(_PANEL_BGR, np.float32)

    def draw(self, mask: Mask, top: int, left: int, bgr: tuple[int, int, int]) -> None:
        """Paints a colour through a mask; what reaches past the panel is cut off."""
        mask = mask[: self._alpha.shape[0] - top, : self._alpha.shape[1] - left]
        at = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
        rest, colour = 1 - mask, np.asarray(bgr, np.float32)
        self._alpha[at] = self._alpha[at] * rest + mask
        self._colour[at] = self._colour[at] * rest[..., None] + mask[..., None] * colour

    def finish(self) -> _Panel:
        keep = np.rint(255 * (1 - self._alpha)).astype(np.uint8)
        over = np.rint(self._colour).astype(np.uint8)
        return _Panel(np.repeat(keep[..., None], 3, axis=2), over)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Sizes in pixels, all from the picture's own size."""

    cap_px: int
    pad_px: int
    row_px: int
    margin_px: int

    @classmethod
    def of(cls, height: int, width: int) -> _Layout:
        # Grows slower than the picture: 4K is looked at on larger screens than 240p.
        base = min(height, 0.75 * width)
        cap = max(7, round(10 * (base / 540) ** 0.75))
        return cls(
            cap, pad_px=round(0.9 * cap), row_px=round(1.9 * cap), margin_px=round(1.1 * cap)
        )


class Legend:
    """Which classes are in the picture, in which order, and how much of it they take.

    Shares are smoothed in stream time and start afresh after a cut, a jump or a step back;
    order and presence have hysteresis, so rows do not flicker.
    """

    def __init__(self, classes: ClassTable, only: tuple[int, ...] | None = None) -> None:
        """`only`: class indices that may be listed; None for all."""
        self._names = tuple(_shorten(printable(n)) for n in classes.names)
        self._colours = tuple((b, g, r) for r, g, b in classes.palette_rgb)
        self._listed = np.zeros(len(classes), bool)
        self._listed[list(range(len(classes)) if only is None else only)] = True
        self._shares: NDArray[np.float64] | None = None
        self._pts = 0.0
        self._order: list[int] = []

    def update(self, shares: NDArray[np.float64], pts_seconds: float) -> None:
        """Takes the (C,) shares, 0..1, of one frame."""
        shares = np.where(self._listed, shares, 0.0)
        step = pts_seconds - self._pts
        self._pts = pts_seconds
        old = self._shares
        if old is None or not 0 <= step <= 1 or np.abs(shares - old).sum() > 0.5:
            self._shares = shares
            self._order = [int(i) for i in np.argsort(-shares, kind="stable")]
        else:
            self._shares = old + (shares - old) * (1 - np.exp(-step / SMOOTH_SECONDS))

    def rows(self, shown: list[int]) -> list[int]:
        """Class indices to list, largest first; `shown` is what was listed before."""
        if self._shares is None:
            return []
        share, order = self._shares.tolist(), self._order
        swapped = True
        while swapped:
            swapped = False
            for i in range(len(order) - 1):
                if share[order[i + 1]] > share[order[i]] + SWAP_SHARE:
                    order[i], order[i + 1] = order[i + 1], order[i]
                    swapped = True
        return [i for i in order if share[i] >= (HIDE_SHARE if i in shown else SHOW_SHARE)]

    def percent(self, index: int) -> str:
        """The class's share as text."""
        value = 0.0 if self._shares is None else 100 * float(self._shares[index])
        return f"{value:.0f}%" if value >= 0.5 else "<1%"

    def draw(self, rows: list[int], layout: _Layout, max_height_px: int) -> _Panel | None:
        """The panel for these rows, or None if there is nothing to list or no room for it."""
        cap, pad, row = layout.cap_px, layout.pad_px, layout.row_px
        room = (max_height_px - 2 * pad + row - cap) // row
        if not rows or room < 2:
            return None
        more = len(rows) > room
        shown = rows[: room - 1] if more else rows
        swatch, gap = round(1.2 * cap), round(0.8 * cap)
        # As wide as any class needs, so the panel keeps its width when classes come and go.
        possible = [n for n, listed in zip(self._names, self._listed, strict=True) if listed]
        name_px = max(text_mask(n, cap).shape[1] for n in possible)
        number_px = text_mask("100%", cap).shape[1]
        width = 2 * pad + swatch + gap + name_px + 2 * gap + number_px
        panel = _Sketch(2 * pad + row * (len(shown) + more) - (row - cap), width, round(0.7 * cap))
        above = cap * 3 // 2 - cap  # text masks have this much room above their capitals
        text_left = pad + swatch + gap
        for i, index in enumerate(shown):
            top = pad + i * row
            rise = (swatch - cap) // 2
            panel.draw(_rounded(swatch, swatch, cap // 4), top - rise, pad, _BRIGHT_BGR)
            inner = swatch - 2 * max(1, cap // 12)
            inset = (swatch - inner) // 2
            fill = _rounded(inner, inner, cap // 5)
            panel.draw(fill, top - rise + inset, pad + inset, self._colours[index])
            panel.draw(text_mask(self._names[index], cap), top - above, text_left, _BRIGHT_BGR)
            number = text_mask(self.percent(index), cap)
            panel.draw(number, top - above, width - pad - number.shape[1], _SOFT_BGR)
        if more:
            note = text_mask(f"+{len(rows) - len(shown)} more", cap)
            panel.draw(note, pad + len(shown) * row - above, text_left, _SOFT_BGR)
        return panel.finish()


class Hud:
    """Legend at the top right, one line of numbers at the top left, for one stream.

    Not thread-safe; made for the one thread that renders.
    """

    def __init__(
        self, classes: ClassTable, title: str | None, only: tuple[int, ...] | None = None
    ) -> None:
        """`title`: shown after the numbers; `only`: see `Legend`."""
        self._legend = Legend(classes, only)
        self._title = printable(title) if title else ""
        self._refreshed_pts: float | None = None
        self._key: object = None
        self._rows: list[int] = []
        self._legend_key: object = None
        self._legend_panel: _Panel | None = None
        self._line_key: object = None
        self._line_panel: _Panel | None = None
        self._line_min_px = 0

    def draw(
        self,
        picture: ImageBGR,
        shares: NDArray[np.float64],
        pts_seconds: float,
        *,
        fps: float | None,
        mask_age_ms: float | None,
        legend_left: int = 0,
    ) -> None:
        """Draws both panels into the picture, in place.

        Args:
            picture: (H, W, 3) uint8 BGR, writeable.
            shares: (C,) share of the pixels per class, 0..1.
            pts_seconds: the frame's time, stream clock.
            fps: frames per second, or None to leave it out.
            mask_age_ms: milliseconds from capture to mask, or None to leave it out.
            legend_left: column where the part that the legend explains begins.
        """
        height, width = picture.shape[0], picture.shape[1] - legend_left
        self._legend.update(shares, pts_seconds)
        if min(height, width) < MIN_SHORT_SIDE_PX:
            return
        layout = _Layout.of(height, width)
        key = (height, width, legend_left, fps is None, mask_age_ms is None)
        since = None if self._refreshed_pts is None else pts_seconds - self._refreshed_pts
        if key != self._key or since is None or not 0 <= since < REFRESH_SECONDS:
            if key != self._key:
                self._key, self._line_min_px = key, 0
                self._line_key = self._legend_key = None
            self._refreshed_pts = pts_seconds
            self._refresh_line(layout, width=picture.shape[1], fps=fps, mask_age_ms=mask_age_ms)
            self._refresh_legend(layout, height)
        self._place(picture, layout, legend_left)

    def _place(self, picture: ImageBGR, layout: _Layout, legend_left: int) -> None:
        margin, height, width = layout.margin_px, picture.shape[0], picture.shape[1]
        line, legend = self._line_panel, self._legend_panel
        below, line_right = margin, 0
        if line is not None and line.size_hw[1] + 2 * margin <= width:
            line.lay_over(picture, margin, margin)
            line_right = margin + line.size_hw[1]
            below = 2 * margin + line.size_hw[0]
        if legend is not None:
            left = width - margin - legend.size_hw[1]
            top = below if left < line_right + margin else margin
            if left >= legend_left + margin and top + legend.size_hw[0] + margin <= height:
                legend.lay_over(picture, top, left)

    def _refresh_legend(self, layout: _Layout, height: int) -> None:
        self._rows = self._legend.rows(self._rows)
        key = [(i, self._legend.percent(i)) for i in self._rows]
        if key != self._legend_key:
            self._legend_key = key
            self._legend_panel = self._legend.draw(self._rows, layout, round(0.55 * height))

    def _refresh_line(
        self, layout: _Layout, *, width: int, fps: float | None, mask_age_ms: float | None
    ) -> None:
        words: list[tuple[str, str]] = []  # bright value, soft unit
        if fps is not None:
            words.append((f"{fps:.0f}" if fps >= 20 else f"{fps:.1f}", "FPS"))
        if mask_age_ms is not None:
            late = mask_age_ms >= 1000
            value = f"{mask_age_ms / 1000:.1f}" if late else f"{mask_age_ms:.0f}"
            words.append((value, "s mask age" if late else "ms mask age"))
        if self._title:
            words.append(("", self._title))
        if words == self._line_key:
            return
        self._line_key = words
        self._line_panel = None
        pieces, right = _line(words, layout)
        if right + 2 * layout.margin_px > width and self._title:  # figures before names
            pieces, right = _line(words[:-1], layout)
        if not pieces:
            return
        cap, pad = layout.cap_px, layout.pad_px
        self._line_min_px = max(self._line_min_px, right)
        panel = _Sketch(2 * pad + cap, self._line_min_px, round(0.7 * cap))
        for mask, left, colour in pieces:
            panel.draw(mask, pad - (cap * 3 // 2 - cap), left, colour)
        self._line_panel = panel.finish()


def _line(
    words: Sequence[tuple[str, str]], layout: _Layout
) -> tuple[list[tuple[Mask, int, tuple[int, int, int]]], int]:
    """The words side by side: masks, left edges, colours; and the width of their panel, pixels."""
    cap, pad = layout.cap_px, layout.pad_px
    space, gap = round(0.5 * cap), round(1.3 * cap)
    pieces: list[tuple[Mask, int, tuple[int, int, int]]] = []
    x = pad
    for value, unit in words:
        slack = 0
        if value:
            mask = text_mask(value, cap)
            pieces.append((mask, x, _BRIGHT_BGR))
            x += mask.shape[1] + space
            # Room for three digits: what follows stands still as numbers change.
            slack = max(0, text_mask("000", cap).shape[1] - mask.shape[1])
        mask = text_mask(unit, cap)
        pieces.append((mask, x, _SOFT_BGR))
        x += mask.shape[1] + gap + slack
    return pieces, x - gap + pad


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 2].rstrip() + ".."
