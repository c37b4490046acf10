"""`rtseg.source.images`: order, pixel formats, errors."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from rtseg.errors import SourceError
from rtseg.source import images, open_source


def write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def flat(value: int, size_hw: tuple[int, int] = (4, 6)) -> np.ndarray:
    return np.full((*size_hw, 3), value, np.uint8)


def test_directory_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1, 100, 20):
        write(tmp_path / f"img{number}.png", flat(number))
    (tmp_path / "readme.txt").write_text("no image")
    (tmp_path / "._img3.png").write_bytes(b"\0\5\x16\7")  # as macOS leaves them
    source = open_source(str(tmp_path))
    assert source.info.frame_count == 5
    assert source.info.fps == 30.0
    assert not source.info.live
    frames = list(source)
    assert [int(f.image[0, 0, 0]) for f in frames] == [1, 2, 10, 20, 100]
    assert [f.index for f in frames] == [0, 1, 2, 3, 4]
    assert [f.pts_seconds for f in frames] == [i / 30 for i in range(5)]
    assert source.warnings == []


def test_rate(tmp_path: Path) -> None:
    write(tmp_path / "a.png", flat(1))
    write(tmp_path / "b.png", flat(2))
    frames = list(images.open(str(tmp_path), fps=10))
    assert [f.pts_seconds for f in frames] == [0.0, 0.1]
    with pytest.raises(ValueError, match="fps"):
        images.open(str(tmp_path), fps=0)


def test_globs(tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    for name in ("left/1.png", "left/2.jpg", "3.png"):
        write(tmp_path / name, flat(9))
    assert open_source(f"{tmp_path}/left/*").info.frame_count == 2
    assert open_source(f"{tmp_path}/**/*.png").info.frame_count == 2
    assert open_source(f"images:{tmp_path}/*.png").info.frame_count == 1
    with pytest.raises(SourceError, match="no image matches"):
        open_source(f"{tmp_path}/*.tif")


def test_a_name_with_brackets_is_a_file(tmp_path: Path) -> None:
    write(tmp_path / "shot[1].png", flat(7))
    assert len(list(open_source(str(tmp_path / "shot[1].png")))) == 1


def test_differing_sizes(tmp_path: Path) -> None:
    write(tmp_path / "a.png", flat(1, (4, 6)))
    write(tmp_path / "b.png", flat(2, (7, 3)))
    source = open_source(str(tmp_path))
    assert source.info.size_hw == (4, 6)
    assert [f.size_hw for f in source] == [(4, 6), (7, 3)]


def test_pixel_formats_become_bgr(tmp_path: Path) -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    colour = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    cases: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "grey.png": (grey, np.repeat(grey[..., None], 3, -1)),
        "grey16.png": (grey.astype(np.uint16) * 256, np.repeat(grey[..., None], 3, -1)),
        "colour16.tif": (colour.astype(np.uint16) * 256, colour),
        "alpha.png": (np.dstack([colour, np.full((4, 6), 9, np.uint8)]), colour),
        "colour.bmp": (colour, colour),
    }
    for name, (stored, expected) in cases.items():
        frame = next(iter(open_source(str(write(tmp_path / name, stored)))))
        assert frame.image.dtype == np.uint8
        assert np.abs(frame.image.astype(int) - expected).max() <= (name == "colour16.tif"), name


def test_exif_orientation(tmp_path: Path) -> None:
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, 16:] = 255
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    # Orientation 6: the top of the stored picture is the right of the upright one.
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    image = next(iter(open_source(str(path)))).image
    assert image.shape == (32, 16, 3)
    assert image[:12].mean() < 20 < 235 < image[20:].mean()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "1.png", flat(1))
    (tmp_path / "2.png").write_bytes(content)
    source = open_source(str(tmp_path))
    iterator = iter(source)
    next(iterator)
    with pytest.raises(SourceError, match=r"2\.png: not an image"):
        next(iterator)


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.png: no such file"):
        open_source(str(tmp_path / "gone.png"))
    with pytest.raises(SourceError, match="no images in this directory"):
        open_source(str(tmp_path))


def test_close_ends_the_iteration(tmp_path: Path) -> None:
    for i in range(5):
        write(tmp_path / f"{i}.png", flat(i))
    source = open_source(str(tmp_path))
    taken = 0
    for _ in source:
        taken += 1
        source.close()
    assert taken == 1
