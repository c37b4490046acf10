"""How the CUDA kernels are found, compiled at run time and launched, without a GPU."""

from __future__ import annotations

import importlib.util
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rtseg.errors import EngineError, MissingDependencyError
from rtseg.native import cuda
from rtseg.native.cuda import Kernels

SOURCE = cuda.find_file("kernels.cu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def sources() -> str:
    assert SOURCE is not None
    return "".join((SOURCE.parent / name).read_text() for name in cuda.SOURCES)


def parameters() -> dict[str, list[tuple[str, str]]]:
    """{kernel: [(type character, name)]}, read from the source."""
    assert SOURCE is not None
    found = {}
    types = {"int": "i", "float": "f", "double": "d"}
    for name, text in re.findall(r"RTSEG_KERNEL (\w+)\(([^)]*)\)", SOURCE.read_text()):
        split = [p.rsplit(maxsplit=1) for p in " ".join(text.split()).split(", ")]
        found[name] = [("P" if "*" in kind else types[kind], label) for kind, label in split]
    return found


# --- launches -------------------------------------------------------------------------------------


class Recorder:
    """A module, its functions, and what was launched with them: (kernel, grid, stream, values)."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, tuple[int, int], Any, dict[str, float]]] = []
        self.formats: dict[str, str] = {}

    def get_function(self, name: str) -> Any:
        recorder = self

        class Function:
            def prepare(self, arg_types: str) -> None:
                recorder.formats[name] = arg_types

            def prepared_async_call(
                self, grid: tuple[int, int], block: tuple[int, ...], stream: Any, *args: float
            ) -> None:
                struct.pack(recorder.formats[name], *args)  # what pycuda does with them
                assert block == (cuda.THREADS, 1, 1)
                values = dict(zip((n for _, n in parameters()[name]), args, strict=True))
                recorder.launches.append((name, grid, stream, values))

        return Function()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def kernels(recorder: Recorder) -> Kernels:
    return Kernels(recorder)


def test_formats_are_the_signatures_of_the_source(recorder: Recorder, kernels: Kernels) -> None:
    assert recorder.formats == {
        name: "".join(kind for kind, _ in types) for name, types in parameters().items()
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kThreads", cuda.THREADS),
        ("kImageTileHeight", cuda.IMAGE_TILE_HW[0]),
        ("kImageTileWidth", cuda.IMAGE_TILE_HW[1]),
        ("kTileHeight", cuda.LABEL_TILE_HW[0]),
        ("kTileWidth", cuda.LABEL_TILE_HW[1]),
        ("kBlendPixels", cuda.BLEND_PIXELS),
    ],
)
def test_tiles_are_those_of_the_source(name: str, value: int) -> None:
    (text,) = re.findall(rf"\b{name} = ([^,;]+)[,;]", sources())
    assert eval(text, {"kThreads": cuda.THREADS}) == value


@pytest.mark.parametrize("half", [False, True])
def test_preprocess_bgr_is_launched_as_asked(
    recorder: Recorder, kernels: Kernels, half: bool
) -> None:
    kernels.preprocess_bgr(100, (540, 960), 2944, 200, (385, 449), MEAN, STD, half, "stream")
    ((name, grid, stream, values),) = recorder.launches
    assert name == ("preprocess_bgr_f16" if half else "preprocess_bgr_f32")
    assert (grid, stream) == ((8, 25), "stream")
    expected = {
        "src": 100, "pitch": 2944, "src_height": 540, "src_width": 960, "dst": 200,
        "height": 385, "width": 449, "scale_y": 540 / 385, "scale_x": 960 / 449,
        "scale_r": 1 / 255 / 0.229, "scale_b": 1 / 255 / 0.225, "shift_r": -0.485 / 0.229,
        "shift_g": -0.456 / 0.224,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == pytest.approx(expected)


def test_preprocess_nv12_is_launched_as_asked(recorder: Recorder, kernels: Kernels) -> None:
    kernels.preprocess_nv12(
        1, 2, 2048, (1080, 1920), 3, (512, 1024), MEAN, STD, True, None, True, "bt709"
    )
    ((name, grid, stream, values),) = recorder.launches
    assert (name, grid, stream) == ("preprocess_nv12_f16", (16, 32), None)
    expected = {
        "y": 1, "uv": 2, "pitch": 2048, "src_height": 1080, "src_width": 1920, "dst": 3,
        "height": 512, "width": 1024, "black": 0, "luma": 2**20, "red_v": round(1.5748 * 2**20),
        "blue_u": round(1.8556 * 2**20),
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    assert values["green_u"] / 2**20 == pytest.approx(-0.18732, abs=1e-5)
    assert values["green_v"] / 2**20 == pytest.approx(-0.46812, abs=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_upsample_argmax_is_launched_as_asked(
    recorder: Recorder, kernels: Kernels, half: bool
) -> None:
    kernels.upsample_argmax(1, (19, 128, 256), half, 2, (1025, 2047), True, 254, "s", 3)
    ((name, grid, stream, values),) = recorder.launches
    assert name == ("upsample_argmax_f16" if half else "upsample_argmax_f32")
    assert (grid, stream) == ((16, 65), "s")
    assert values == {
        "logits": 1, "classes": 19, "height": 128, "width": 256, "labels": 2, "out_height": 1025,
        "out_width": 2047, "align_corners": 1, "ignore_index": 254, "counts": 3,
    }  # fmt: skip


def test_blend_is_launched_as_asked(recorder: Recorder, kernels: Kernels) -> None:
    kernels.blend(1, 2, 3, (64, 65), 0.25, 4, "s")
    ((name, grid, stream, values),) = recorder.launches
    assert (name, grid, stream) == ("blend", (2, 1), "s")
    assert values == {
        "bgr": 1, "labels": 2, "palette": 3, "out": 4, "pixels": 4160, "opacity": 0.25,
        "rest": 0.75,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (lambda k: k.blend(1, 2, 3, (4, 4), 1.5, 4, None), "opacity: expected"),
        (lambda k: k.blend(1, 2, 3, (0, 4), 0.5, 4, None), "size: expected"),
        (
            lambda k: k.upsample_argmax(1, (256, 4, 4), False, 2, (8, 8), False, 255, None),
            "expected 1 to 255 classes, got 256",
        ),
        (
            lambda k: k.upsample_argmax(1, (3, 4, 4), False, 2, (8, 40000), False, 255, None),
            "size: expected",
        ),
        (
            lambda k: k.upsample_argmax(1, (3, 4, 4), False, 2, (8, 8), False, 256, None),
            r"ignore_index: expected 0\.\.255",
        ),
        (
            lambda k: k.preprocess_bgr(1, (4, 4), 11, 2, (4, 4), MEAN, STD, False, None),
            "pitch: expected at least 12 bytes, got 11",
        ),
        (
            lambda k: k.preprocess_nv12(1, 2, 4, (5, 5), 3, (4, 4), MEAN, STD, False, None),
            "pitch: expected at least 6 bytes, got 4",
        ),
        (
            lambda k: k.preprocess_bgr(1, (4, 4), 12, 2, (4, 4), MEAN, (1, 1, 0), False, None),
            "std > 0",
        ),
    ],
)
def test_wrong_numbers_are_not_launched(
    recorder: Recorder, kernels: Kernels, launch: Callable[[Kernels], None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        launch(kernels)
    assert not recorder.launches


# --- loading --------------------------------------------------------------------------------------


class FakeDriver(ModuleType):
    """Of `pycuda.driver` what loading needs; `accepts` says which files hold code for this GPU."""

    class Error(Exception):
        pass

    def __init__(self, accepts: Callable[[str], bool]) -> None:
        super().__init__("pycuda.driver")
        self.accepts = accepts
        driver = self

        class Context:
            @staticmethod
            def get_device() -> Any:
                return driver

        self.Context = Context

    def compute_capability(self) -> tuple[int, int]:
        return (8, 6)

    def module_from_file(self, path: str) -> str:
        if not self.accepts(path):
            raise self.Error("no kernel image is available")
        return path


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Pretends that pycuda is there, with or without a fatbin and nvcc."""

    def run(
        accepts: Callable[[str], bool] = lambda path: True,
        fatbin: bool = True,
        nvcc: str | None = None,
    ) -> None:
        package = ModuleType("pycuda")
        package.__spec__ = importlib.util.spec_from_loader("pycuda", loader=None)
        driver = FakeDriver(accepts)
        package.driver = driver  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pycuda", package)
        monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
        found = cuda.find_file
        own = tmp_path / "kernels.fatbin" if fatbin else None
        monkeypatch.setattr(
            cuda, "find_file", lambda name: own if name.endswith(".fatbin") else found(name)
        )
        monkeypatch.setattr(cuda, "find_nvcc", lambda: nvcc)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    return run


@pytest.fixture
def fake_nvcc(tmp_path: Path) -> str:
    """A compiler that only writes the file it is asked for."""
    path = tmp_path / "nvcc"
    path.write_text('#!/bin/sh\nfor a; do [ "$last" = -o ] && echo x > "$a"; last=$a; done; :\n')
    path.chmod(0o755)
    return str(path)


def test_the_fatbin_is_loaded(install: Callable[..., None], tmp_path: Path) -> None:
    install()
    assert cuda.load_module() == str(tmp_path / "kernels.fatbin")


@pytest.mark.parametrize("has_fatbin", [False, True])
def test_nvcc_is_the_fall_back(
    install: Callable[..., None], tmp_path: Path, fake_nvcc: str, has_fatbin: bool
) -> None:
    install(lambda path: path.endswith(".cubin"), has_fatbin, fake_nvcc)
    module = Path(cuda.load_module())
    assert module.parent == tmp_path / "rtseg" / "kernels"
    assert module.name.startswith("kernels-sm_86-")


def test_without_fatbin_and_nvcc_the_fix_is_named(install: Callable[..., None]) -> None:
    install(fatbin=False)
    with pytest.raises(MissingDependencyError, match=r"has no CUDA kernels: install the CUDA tool"):
        cuda.load_module()


def test_a_fatbin_for_other_gpus_is_named(install: Callable[..., None]) -> None:
    install(lambda path: False)
    with pytest.raises(MissingDependencyError, match=r"kernels.fatbin does not load .* sm_86 \(no"):
        cuda.load_module()


def test_a_driver_older_than_nvcc_is_named(install: Callable[..., None], fake_nvcc: str) -> None:
    install(lambda path: False, False, fake_nvcc)
    with pytest.raises(EngineError, match=r"kernels-sm_86-\w+\.cubin does not load .*update"):
        cuda.load_module()


def test_pycuda_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rtseg\[tensorrt\]'"):
        cuda.load_module()


def test_the_driver_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, install: Callable[..., None]
) -> None:
    install()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(MissingDependencyError, match=r"pycuda does not load .* NVIDIA's driver"):
        cuda.load_module()


def test_importing_loads_no_pycuda() -> None:
    code = "import sys, rtseg.native.cuda; print('pycuda' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
