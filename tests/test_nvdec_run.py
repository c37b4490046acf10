"""A run whose frames stay on the GPU from the decoder to the labels, on a driver that pretends."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from _fake_cuda import FakeStream
from _fake_nvdec import Kernels, PyNvVideoCodec, install
from _fake_tensorrt import pretend

from rtseg.data.synth import Drive
from rtseg.frame import Frame, GpuFrame, ImageBGR, LabelMap
from rtseg.native import cuda
from rtseg.runner import run

FRAMES, SIZE_HW = 12, (128, 192)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PyNvVideoCodec]:
    fake = install(monkeypatch)
    driver = fake.driver
    pretend(monkeypatch, driver, Kernels(driver), tmp_path / "engines")
    yield fake
    gc.collect()
    assert not any(driver.pushed.values()), "a thread kept the context"
    assert not driver.memory, "device memory was not freed"
    assert driver.retained == 0, "the primary context was not let go"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic drive with B-frames, BT.709."""
    path = tmp_path_factory.mktemp("video") / "drive.mp4"
    drive = Drive(3, SIZE_HW)
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=25, options={"bf": "2", "crf": "16"})
        track.height, track.width = SIZE_HW
        track.pix_fmt = "yuv420p"
        track.codec_context.colorspace, track.codec_context.color_range = 1, 1
        for index in range(FRAMES):
            bgr = drive.frame(40 + index)[0]
            picture = av.VideoFrame.from_ndarray(bgr, format="bgr24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)
            picture.pts, picture.time_base = index, Fraction(1, 25)
            container.mux(track.encode(picture))
        container.mux(track.encode(None))
    return path


class Keep:
    def __init__(self, wants_picture: bool = False) -> None:
        self.wants_picture = wants_picture
        self.frames: list[Frame] = []
        self.results: list[LabelMap] = []
        self.pictures: list[ImageBGR] = []

    def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        self.frames.append(frame)
        self.results.append(result)
        if picture is not None:
            self.pictures.append(picture.copy())

    def close(self) -> None:
        pass


def run_both(
    video: Path, monkeypatch: pytest.MonkeyPatch, *, wants_picture: bool = False
) -> tuple[Keep, Keep]:
    """The same run, decoded on the GPU and on the CPU."""
    kept = []
    for missing in ("", "not here"):
        if missing:
            monkeypatch.setattr("rtseg.source._nvdec.missing", lambda: "not here")
        keep = Keep(wants_picture)
        report = run(
            str(video), sinks=[keep], model="street-s", engine="tensorrt", precision="fp32"
        )
        assert (report.frames_in, report.frames_out) == (FRAMES, FRAMES)
        assert report.warnings == []
        kept.append(keep)
    return kept[0], kept[1]


def test_labels_are_those_of_the_cpu_s_decoder(
    library: PyNvVideoCodec, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one of them: both devices make the same colours of what their decoders leave."""
    uploads: list[int] = []
    upload = library.driver.memcpy_htod_async

    def spy(address: int, source: Any, stream: FakeStream) -> None:
        uploads.append(source.nbytes)
        upload(address, source, stream)

    monkeypatch.setattr(library.driver, "memcpy_htod_async", spy)
    on_gpu, on_cpu = run_both(video, monkeypatch)
    frame_bytes = 3 * SIZE_HW[0] * SIZE_HW[1]
    # Warming up uploads black; then only the CPU's frames cross over.
    assert uploads.count(frame_bytes) == FRAMES + 2 * 4
    assert all(isinstance(frame, GpuFrame) for frame in on_gpu.frames)
    assert not any(isinstance(frame, GpuFrame) for frame in on_cpu.frames)
    for frame, other in zip(on_gpu.frames, on_cpu.frames, strict=True):
        assert (frame.index, frame.pts_seconds) == (other.index, other.pts_seconds)
    for result, expected in zip(on_gpu.results, on_cpu.results, strict=True):
        assert len(np.unique(expected.labels)) > 2
        np.testing.assert_array_equal(result.labels, expected.labels)
        np.testing.assert_array_equal(
            result.histogram(), np.bincount(result.labels.ravel(), minlength=256)
        )
        assert result.blended is None


def test_pictures_are_drawn_from_the_frame(
    library: PyNvVideoCodec, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that wants pictures has them mixed on the CPU, from the downloaded frame."""
    on_gpu, on_cpu = run_both(video, monkeypatch, wants_picture=True)
    assert all(result.blended is None for result in on_gpu.results)
    assert all(result.blended is not None for result in on_cpu.results)
    pairs = zip(on_gpu.pictures, on_cpu.pictures, on_gpu.results, on_cpu.results, strict=True)
    for picture, other, result, expected in pairs:
        np.testing.assert_array_equal(result.labels, expected.labels)
        # Above, the display shows figures of the run.
        assert np.abs(picture[60:].astype(int) - other[60:]).max() <= 1


def test_the_fake_kernels_take_what_the_real_ones_take() -> None:
    for name in ("preprocess_bgr", "preprocess_nv12", "upsample_argmax", "blend"):
        fake = inspect.signature(getattr(Kernels, name)).parameters
        assert list(fake) == list(inspect.signature(getattr(cuda.Kernels, name)).parameters)
