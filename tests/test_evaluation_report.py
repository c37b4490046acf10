"""The confusion matrix as file and picture, and the worst images; `rtseg eval` around them."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from _command import Rtseg, refusal
from _fakes import TABLE, PaintEngine, frame_of, truth_of

from rtseg.artifact import Contract, ModelFile
from rtseg.data import DataSet
from rtseg.data.camvid import CLASSES
from rtseg.errors import ConfigError, MissingDependencyError
from rtseg.evaluate import Evaluation, evaluate
from rtseg.evaluation_report import (
    EvaluationReport,
    confusion_csv,
    confusion_png,
    confusions,
    file_name,
    write_worst,
)
from rtseg.frame import ClassTable, ImageBGR, Labels
from rtseg.metrics import Confusion
from rtseg.segmenter import Segmenter

CONTRACT = Contract(
    "paint", TABLE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (8, 12), input_multiple=1, output_stride=1
)


class Painted:
    """A sample whose picture says its labels, but for a share of rows that it gets wrong."""

    def __init__(self, name: str, wrong_rows: int, ignored: bool = False) -> None:
        self.name = name
        self._wrong_rows, self._ignored = wrong_rows, ignored

    def load(self) -> tuple[ImageBGR, Labels]:
        truth = truth_of(5)
        image = frame_of(5, truth).image
        truth = truth.copy()
        truth[: self._wrong_rows] = (truth[: self._wrong_rows] + 1) % len(TABLE)
        if self._ignored:
            truth[:] = 255
        return image, truth


@pytest.fixture
def segmenter() -> Iterator[Segmenter]:
    segmenter = Segmenter(ModelFile(Path("paint.onnx"), CONTRACT, 3), PaintEngine())
    yield segmenter
    segmenter.close()


@pytest.fixture
def data() -> DataSet:
    samples = [
        Painted("good", 0),
        Painted("../up/and away", 6),
        Painted("void", 0, ignored=True),
        Painted("fair", 2),
        Painted("bad", 8),
    ]
    return DataSet("painted", "val", TABLE, samples)


@pytest.fixture
def evaluation(segmenter: Segmenter, data: DataSet) -> Evaluation:
    return evaluate(segmenter, data, boundary=True)


def test_images_are_scored_one_by_one(evaluation: Evaluation) -> None:
    good, up, void, fair, bad = evaluation.image_miou
    assert good == 1.0
    assert np.isnan(void)
    assert 1.0 > fair > up > bad == 0.0
    assert evaluation.frames == 5
    assert evaluation.boundary is not None
    assert 0 < evaluation.boundary.mean() < 1


def test_contours_are_scored_only_when_asked_for(segmenter: Segmenter, data: DataSet) -> None:
    assert evaluate(segmenter, data).boundary is None


def small() -> Confusion:
    confusion = Confusion(3)
    confusion.add(
        np.array([[0, 0, 0, 1, 1, 2]], np.uint8), np.array([[0, 0, 1, 1, 0, 2]], np.uint8)
    )
    return confusion


def test_confusion_as_csv() -> None:
    rows = list(csv.reader(confusion_csv(small(), TABLE).splitlines()))
    assert rows == [
        ["truth \\ prediction", "road", "car", "sky"],
        ["road", "2", "1", "0"],
        ["car", "1", "1", "0"],
        ["sky", "0", "0", "1"],
    ]


def test_confusion_as_csv_says_what_got_no_class() -> None:
    confusion = small()
    confusion.add(np.array([[2]], np.uint8), np.array([[255]], np.uint8))
    rows = list(csv.reader(confusion_csv(confusion, TABLE).splitlines()))
    assert [row[-1] for row in rows] == ["no class", "0", "0", "1"]


def names_with_commas() -> ClassTable:
    return ClassTable(('a "b", c', "d\ne", "f"), TABLE.palette_rgb)


def test_confusion_as_csv_quotes_names() -> None:
    text = confusion_csv(small(), names_with_commas())
    assert [r[0] for r in csv.reader(text.splitlines(keepends=True))][1:] == [
        'a "b", c', "d\ne", "f",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 3, 40])
def test_confusion_as_picture(count: int) -> None:
    pytest.importorskip("matplotlib")
    classes = ClassTable(tuple(f"class {i}" for i in range(count)), ((9, 9, 9),) * count)
    confusion = Confusion(count)
    truth = np.arange(count, dtype=np.uint8)[None]
    confusion.add(truth, truth)
    png = cv2.imdecode(np.frombuffer(confusion_png(confusion, classes, "t"), np.uint8), 1)
    assert png is not None
    assert min(png.shape[:2]) > 200
    blue = (png[:, :, 0].astype(int) - png[:, :, 2] > 60).mean()
    assert 0.001 < blue < 0.9  # the diagonal is dark blue, the paper is white


def test_the_worst_images_come_lowest_first(
    evaluation: Evaluation, segmenter: Segmenter, data: DataSet, tmp_path: Path
) -> None:
    write_worst(tmp_path, 3, evaluation, segmenter, data)
    names = sorted(p.name for p in tmp_path.iterdir())
    percent = [100 * evaluation.image_miou[i] for i in (1, 3)]
    assert names == [
        "1_miou-00.0_bad.png",
        f"2_miou-{percent[0]:04.1f}_up_and_away.png",
        f"3_miou-{percent[1]:04.1f}_fair.png",
    ]
    for name in names:
        picture = cv2.imread(str(tmp_path / name))
        assert picture is not None
        assert picture.shape[1] > 2 * 400
        assert picture.std() > 10


def test_all_images_are_drawn_where_there_are_fewer_but_none_without_truth(
    evaluation: Evaluation, segmenter: Segmenter, data: DataSet, tmp_path: Path
) -> None:
    write_worst(tmp_path, 20, evaluation, segmenter, data)
    assert [p.name[0] for p in sorted(tmp_path.iterdir())] == ["1", "2", "3", "4"]


def test_errors_are_in_the_colour_of_the_truth(tmp_path: Path) -> None:
    table = ClassTable(TABLE.names, ((1, 2, 3), (0, 255, 0), (9, 8, 7)))
    contract = Contract("p", table, CONTRACT.mean, CONTRACT.std, (8, 12), 1, 1)
    alone = Segmenter(ModelFile(Path("p.onnx"), contract, 3), PaintEngine())

    class Road:
        name = "road"

        def load(self) -> tuple[ImageBGR, Labels]:
            truth = np.zeros((8, 12), np.uint8)
            image = frame_of(0, truth).image
            truth[:, :3] = 1
            return image, truth

    data = DataSet("painted", "val", table, [Road()])
    write_worst(tmp_path, 1, evaluate(alone, data), alone, data)
    alone.close()
    (path,) = tmp_path.iterdir()
    picture = cv2.imread(str(path))
    assert picture is not None
    green = (picture == (0, 255, 0)).all(axis=2)
    half = picture.shape[1] // 2
    assert green[:, :half].sum() < green[:, half:].sum() / 10  # only the legend's square is left
    assert green[:, half:].sum() == 8 * 3 * 40**2  # a pixel is 40 wide here


def test_confusions_of_one_image() -> None:
    truth = np.array([[0, 0, 0, 0, 1, 1, 2, 255]], np.uint8)
    prediction = np.array([[0, 1, 1, 1, 1, 2, 255, 0]], np.uint8)
    got = confusions(truth, prediction, TABLE)
    assert [(true, taken) for true, taken, _ in got] == [(0, 1), (1, 2), (2, 255)]
    assert [share for *_, share in got] == pytest.approx([3 / 7, 1 / 7, 1 / 7])
    assert confusions(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), TABLE) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0016E5_08085", "0016E5_08085"),
        ("../../etc/passwd", "etc_passwd"),
        ("aachen/aachen 01:2", "aachen_aachen_01_2"),
        ("…", "image"),
        ("x" * 300, "x" * 80),
    ],
)
def test_file_names(name: str, expected: str) -> None:
    assert file_name(name) == expected


def test_a_missing_matplotlib_is_said_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    EvaluationReport([tmp_path / "c.csv"])
    with pytest.raises(MissingDependencyError, match=r"matplotlib: pip install 'rtseg\[bench\]'"):
        EvaluationReport([tmp_path / "c.png"])


def test_a_full_disk_is_one_line(
    evaluation: Evaluation, segmenter: Segmenter, data: DataSet, tmp_path: Path
) -> None:
    report = EvaluationReport([tmp_path / "c.csv"])
    (tmp_path / "c.csv").mkdir()
    with pytest.raises(ConfigError, match=r"c\.csv: cannot be written"):
        report.write(evaluation, segmenter, data)


# The command


def test_eval_writes_what_is_asked_for(
    rtseg_command: Rtseg, tiny_path: Path, camvid_like: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    table, picture, worst = tmp_path / "c.csv", tmp_path / "c.PNG", tmp_path / "a" / "worst"
    done = rtseg_command(
        "eval", "--data", f"camvid:{camvid_like}", "--model", tiny_path, "--json", "-",
        "--confusion", table, "--confusion", picture, "--worst", 8, worst,
    )  # fmt: skip
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert 0 <= result["boundary_f1"] <= 1
    assert list(result["boundary_f1_per_class"]) == list(CLASSES)
    assert result["boundary_tolerance"] == 0.0075
    assert result["augmentation"] == {"flip": False, "scales": [1.0], "window": None}
    rows = list(csv.reader(table.read_text().splitlines()))
    assert [[int(v) for v in row[1:]] for row in rows[1:]] == result["confusion"]
    assert cv2.imread(str(picture)) is not None
    assert [p.name[:7] for p in sorted(worst.iterdir())] == ["1_miou-", "2_miou-"]


@pytest.mark.parametrize(
    ("flags", "augmentation", "said"),
    [
        (["--flip"], {"flip": True, "scales": [1.0], "window": None}, "flip"),
        (
            ["--scales", "0.5,1.0"],
            {"flip": False, "scales": [0.5, 1.0], "window": None},
            "scales 0.5 1",
        ),
        (
            ["--window", "32x32"],
            {"flip": False, "scales": [1.0], "window": [32, 32]},
            "window 32x32",
        ),
    ],
)
def test_eval_augmented(
    rtseg_command: Rtseg,
    tiny_path: Path,
    camvid_like: Path,
    tmp_path: Path,
    flags: list[str],
    augmentation: dict[str, Any],
    said: str,
) -> None:
    path = tmp_path / "result.json"
    done = rtseg_command(
        "eval", "--data", f"camvid:{camvid_like}", "--model", tiny_path, "--json", path, *flags
    )
    assert done.code == 0, done.err
    result = json.loads(path.read_text())
    assert result["augmentation"] == augmentation
    assert result["size"] == ([32, 32] if "--window" in flags else [64, 64])
    assert said in done.out
    assert "boundary F1" in done.out


def test_eval_without_contours(
    rtseg_command: Rtseg, tiny_path: Path, camvid_like: Path, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    done = rtseg_command(
        "eval", "--data", f"camvid:{camvid_like}", "--model", tiny_path, "--no-boundary",
        "--json", path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "boundary" not in done.out
    result = json.loads(path.read_text())
    assert result["boundary_f1"] is result["boundary_f1_per_class"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--confusion", "c.pdf"], "--confusion c.pdf: expected a file name ending in .png or"),
        (["--confusion", "-"], "--confusion -: expected a file name ending in .png or .csv"),
        (["--confusion", "nodir/c.csv"], "directory nodir does not exist: create it first"),
        (["--worst", "0", "worst"], "--worst: expected at least 1 image, got 0"),
        (["--worst", "8", "/proc/worst"], "/proc/worst: cannot be written"),
        (["--worst", "8", __file__], "is a file: name a directory"),
        (["--scales", "1,,2"], "--scales '1,,2': expected numbers such as 0.75,1.0,1.25"),
        (["--scales", "-1"], "--scales: expected numbers in 0.25..4"),
        (["--window", "64"], "--window '64': expected HEIGHTxWIDTH"),
        (["--window", "64x64", "--size", "64x64"], "exclude one another"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_eval_is_one_line_before_anything_runs(
    rtseg_command: Rtseg,
    tiny_path: Path,
    camvid_like: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rtseg.evaluate.evaluate", None)  # calling it would be a TypeError
    before = sorted(tmp_path.iterdir())
    done = rtseg_command(
        "eval", "--data", f"camvid:{camvid_like}", "--model", tiny_path, *arguments
    )
    assert message in refusal(done)
    assert sorted(tmp_path.iterdir()) == before
