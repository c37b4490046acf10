"""What `rtseg eval` writes beside its figures: the confusion matrix, and pictures of the worst."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rtseg._hud import printable, text_mask
from rtseg.data import DataSet
from rtseg.errors import ConfigError, MissingDependencyError
from rtseg.evaluate import Evaluation, Predictor, label_table, load_sample
from rtseg.files import replacing
from rtseg.frame import ClassTable, Frame, ImageBGR, LabelMap, Labels
from rtseg.metrics import Confusion
from rtseg.overlay import Renderer

_PANEL_WIDTH_PX = 480
"""Smaller images are enlarged to about this width, or nothing could be read on them."""
_PAPER_BGR, _INK, _SOFT_INK = (22, 18, 16), (255, 255, 255), (196, 190, 186)
_MAX_CELL_TEXT = 30
"""With more classes than this the numbers of a confusion picture would not fit their cells."""


@dataclass(frozen=True)
class EvaluationReport:
    """What to write, checked before anything is computed.

    Attributes:
        confusion: files for the confusion matrix, by their ending: .png a picture, .csv counts.
        worst: how many of the images with the lowest mIoU to draw, and into which directory;
            None for none.

    Raises:
        ConfigError: an unknown ending, a place that does not exist, or a count below 1.
        MissingDependencyError: a picture is asked for and matplotlib is missing.
    """

    confusion: Sequence[Path] = ()
    worst: tuple[int, Path] | None = None

    def __post_init__(self) -> None:
        for path in self.confusion:
            if path.suffix.lower() not in (".png", ".csv"):
                raise ConfigError(
                    f"--confusion {path}: expected a file name ending in .png or .csv"
                )
            if not path.parent.is_dir():
                raise ConfigError(
                    f"{path}: directory {path.parent} does not exist: create it first"
                )
            if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
                raise ConfigError(f"{path}: cannot write it: choose another place")
            if path.suffix.lower() == ".png" and importlib.util.find_spec("matplotlib") is None:
                raise MissingDependencyError.for_extra("matplotlib", "bench", f"--confusion {path}")
        if self.worst is not None and self.worst[0] < 1:
            raise ConfigError(f"--worst: expected at least 1 image, got {self.worst[0]}")

    def prepare(self) -> None:
        """Creates the directory of the worst images.

        Raises:
            ConfigError: it cannot be created or written.
        """
        if self.worst is None:
            return
        directory = self.worst[1]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe = directory / f".rtseg-{os.getpid()}.part"
            probe.touch()
            probe.unlink()
        except FileExistsError as error:
            raise ConfigError(f"--worst {directory}: is a file: name a directory") from error
        except OSError as error:
            raise _unwritable(directory, error) from error

    def write(self, evaluation: Evaluation, segmenter: Predictor, data: DataSet) -> None:
        """Writes all that was asked for; the worst images are segmented once more.

        Raises:
            ConfigError: a file cannot be written.
            DataError, EngineError: as in the evaluation.
        """
        title = f"{segmenter.model.contract.name} on {data.name} {data.split}"
        for path in self.confusion:
            if path.suffix.lower() == ".csv":
                _write(path, confusion_csv(evaluation.confusion, evaluation.classes).encode())
            else:
                _write(path, confusion_png(evaluation.confusion, evaluation.classes, title))
        if self.worst is not None:
            write_worst(self.worst[1], self.worst[0], evaluation, segmenter, data)


def confusion_csv(confusion: Confusion, classes: ClassTable) -> str:
    """Pixel counts: a row per class of the truth, a column per predicted class.

    A last column "no class" counts what was given no class at all, if there is any.
    """
    missed = bool(confusion.missed.any())
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["truth \\ prediction", *classes.names, *(["no class"] if missed else [])])
    for name, row, rest in zip(classes.names, confusion.matrix, confusion.missed, strict=True):
        table.writerow([name, *row.tolist(), *([int(rest)] if missed else [])])
    return out.getvalue()


def confusion_png(confusion: Confusion, classes: ClassTable, title: str) -> bytes:
    """A heat map, each row in percent of the true pixels of its class, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(classes)
    truth = confusion.matrix.sum(axis=1) + confusion.missed
    shares = 100 * confusion.matrix / np.maximum(truth, 1)[:, None]
    side = min(20.0, 2.6 + 0.56 * count)
    figure = Figure(figsize=(side + 0.6, side), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # A square root, so that confusions of a few per cent can be told from none.
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    ticks = range(count)
    axes.set_xticks(ticks, classes.names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, classes.names)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    miou = confusion.mean_iou()
    axes.set_title("" if math.isnan(miou) else f"mIoU {100 * miou:.1f} %", loc="right", fontsize=10)
    axes.set_title(title, loc="left", fontweight="bold")
    if count <= _MAX_CELL_TEXT:
        for i, j in np.ndindex(count, count):
            share = shares[i, j]
            if truth[i] and (share >= 0.05 or i == j):
                axes.text(
                    j, i, f"{share:.1f}" if share < 99.95 else "100", ha="center", va="center",
                    fontsize=8, color="white" if share > 30 else "#1b2a41",
                )  # fmt: skip
    bar = figure.colorbar(picture, ax=axes, shrink=0.7, ticks=[0, 5, 20, 50, 100])
    bar.set_label("% of the true pixels of a class")
    bar.outline.set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight", pad_inches=0.15)
    return out.getvalue()


def write_worst(
    directory: Path, count: int, evaluation: Evaluation, segmenter: Predictor, data: DataSet
) -> None:
    """Draws the images with the lowest mIoU, the lowest first, as `RANK_miou-PERCENT_NAME.png`.

    Left the prediction over the image; right the errors, in the colour of what is there; below
    what was taken for what.

    Raises:
        ConfigError: a file cannot be written.
    """
    scores = np.array(evaluation.image_miou)
    order = np.argsort(scores, kind="stable")  # NaN comes last
    chosen = [int(i) for i in order[:count] if np.isfinite(scores[i])]
    translate = label_table(data, evaluation.classes)
    digits = len(str(len(chosen)))
    for rank, index in enumerate(chosen, 1):
        sample, percent = data.samples[index], 100 * scores[index]
        frame, labels = load_sample(sample, index)
        result = segmenter.collect(segmenter.submit(frame))
        caption = f"{rank}.  mIoU {percent:.1f} %   {sample.name}"
        picture = compare(frame, result, translate[labels], caption)
        name = f"{rank:0{digits}d}_miou-{percent:04.1f}_{file_name(sample.name)}.png"
        ok, png = cv2.imencode(".png", picture)
        if not ok:
            raise ConfigError(f"{directory / name}: OpenCV could not encode it as PNG")
        _write(directory / name, png.tobytes())


def file_name(text: str) -> str:
    """The text in letters, digits, dots, dashes and underscores, at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[-80:] or "image"


def compare(frame: Frame, result: LabelMap, truth: Labels, caption: str) -> ImageBGR:
    """The picture of one image: caption, prediction beside errors, what was taken for what.

    Args:
        frame, result: the image and its labels.
        truth: (H, W) uint8 in the classes of the result; all that is no class is ignored.
        caption: one line.

    Returns:
        (H', W', 3) uint8 BGR.
    """
    classes = result.classes
    overlay = Renderer(classes, "overlay", 0.55, hud=False).render(frame, result).copy()
    wrong = (truth != result.labels) & (truth < len(classes))
    grey = cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY)
    errors = np.repeat((grey * 0.45).astype(np.uint8)[:, :, None], 3, axis=2)
    errors[wrong] = classes.lut_bgr()[truth[wrong]]
    enlarge = max(1, round(_PANEL_WIDTH_PX / frame.image.shape[1]))
    gap = np.full((frame.image.shape[0], max(1, 8 // enlarge), 3), _PAPER_BGR, np.uint8)
    panels = np.hstack([overlay, gap, errors]).repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    width = panels.shape[1]
    cap_px = int(np.clip(width // 90, 8, 24))
    top = _strip(width, cap_px)
    _text(top, caption, cap_px, cap_px, _INK)
    right = width // 2 + gap.shape[1] * enlarge // 2
    bottom = _strip(width, cap_px)
    _text(bottom, "prediction", cap_px, cap_px, _SOFT_INK)
    _text(bottom, "errors, in the colour of the truth", right, cap_px, _SOFT_INK)
    legend = _strip(width, cap_px)
    x = cap_px
    for true, taken, share in confusions(truth, result.labels, classes):
        line = f"{classes.names[true]} as {_name(classes, taken)} {100 * share:.1f} %"
        mask = text_mask(printable(line), cap_px)
        if x + 3 * cap_px + mask.shape[1] > width:
            break
        colour = classes.lut_bgr()[true].tolist()
        corner = (x, cap_px * 3 // 4)
        cv2.rectangle(legend, corner, (x + cap_px, corner[1] + cap_px), colour, -1)
        x = _text(legend, line, x + cap_px * 3 // 2, cap_px, _INK) + 2 * cap_px
    return np.vstack([top, panels, bottom, legend])


def confusions(
    truth: Labels, prediction: Labels, classes: ClassTable
) -> list[tuple[int, int, float]]:
    """(true class, predicted label, share of the labelled pixels) of all mistakes, most first."""
    known = truth < len(classes)
    if not known.any():
        return []
    pairs = truth[known].astype(np.int64) * 256 + prediction[known]
    counts = np.bincount(pairs, minlength=1 << 16)
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    return [(i >> 8, i & 255, counts[i] / pairs.size) for i in order if i >> 8 != i & 255]


def _name(classes: ClassTable, label: int) -> str:
    return classes.names[label] if label < len(classes) else "no class"


def _strip(width: int, cap_px: int) -> ImageBGR:
    return np.full((2 * cap_px + cap_px // 2, width, 3), _PAPER_BGR, np.uint8)


def _text(strip: ImageBGR, text: str, x: int, cap_px: int, bgr: tuple[int, int, int]) -> int:
    """Writes a line, cut at the right; returns the column after it."""
    mask: NDArray[np.float32] = text_mask(printable(text), cap_px)[:, : max(0, strip.shape[1] - x)]
    height, width = (int(n) for n in mask.shape)
    area = strip[cap_px // 4 : cap_px // 4 + height, x : x + width]
    area[:] = np.rint(area + mask[:, :, None] * (np.array(bgr, np.float32) - area))
    return x + width


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be written ({error.strerror}): choose another place")
