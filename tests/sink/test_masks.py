"""`rtseg.sink.masks`: labels come back exactly; errors leave no half files."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from rtseg.errors import SinkError
from rtseg.frame import ClassTable, Frame, LabelMap
from rtseg.sink import masks

CLASSES = ClassTable(("road", "car"), ((128, 64, 128), (0, 0, 142)))


def put(sink: masks.MasksSink, index: int, labels: np.ndarray) -> None:
    frame = Frame(np.zeros((*labels.shape, 3), np.uint8), index, index / 25, time.monotonic())
    sink.write(frame, LabelMap(labels, CLASSES), None)


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 5), (63, 97), (540, 960)])
def test_labels_come_back(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    directory = tmp_path / "new" / "masks"
    sink = masks.open(str(directory))
    assert not sink.wants_picture
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, size_hw, np.uint8)
    blocks = np.repeat(np.repeat(noise, 8, 0), 8, 1)[: size_hw[0], : size_hw[1]]
    for index, labels in ((0, noise), (7, np.ascontiguousarray(blocks))):
        put(sink, index, labels)
        image = cv2.imread(str(directory / f"{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert image is not None
        assert image.dtype == np.uint8
        assert np.array_equal(image, labels)
    sink.close()
    assert sorted(p.name for p in directory.iterdir()) == ["000000.png", "000007.png"]


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="is a file: name a directory"):
        masks.open(str(tmp_path / "file"))
    with pytest.raises(SinkError, match="cannot be written"):
        masks.open(str(tmp_path / "file" / "below"))


def test_failed_write_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = masks.open(str(tmp_path))
    put(sink, 0, np.ones((4, 6), np.uint8))

    def fail(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(SinkError, match=r"000001.png: cannot be written \(No space left"):
        put(sink, 1, np.ones((4, 6), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["000000.png"]
