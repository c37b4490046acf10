"""The CUDA kernels (`kernels.cu`): found or compiled, and launched on a stream.

Nothing here allocates device memory, copies or waits. Pointers are device addresses as integers;
the caller keeps the memory alive until its stream has passed the launch. Results:

- `preprocess_*`: the resize equals OpenCV's INTER_LINEAR on uint8 bit by bit (its own fixed-point
  arithmetic), the rest equals `rtseg.native.preprocess` with the extension; so within
  `reference.PREPROCESS_ATOL` of the reference, rounded once more for float16.
- `upsample_argmax` equals `reference.upsample_argmax`, and `blend` `reference.blend`, bit by bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rtseg import native
from rtseg.errors import EngineError, MissingDependencyError
from rtseg.files import user_cache
from rtseg.frame import Matrix
from rtseg.native.reference import yuv_coefficients

# As in the .cuh files.
THREADS = 256
IMAGE_TILE_HW = (16, 64)
LABEL_TILE_HW = (16, 128)
BLEND_PIXELS = 4096

_NORMALISATION = "ffffff"
FORMATS = {
    "preprocess_bgr_f32": "PiiiPiidd" + _NORMALISATION,
    "preprocess_bgr_f16": "PiiiPiidd" + _NORMALISATION,
    "preprocess_nv12_f32": "PPiiiPiidd" + _NORMALISATION + "iiiiii",
    "preprocess_nv12_f16": "PPiiiPiidd" + _NORMALISATION + "iiiiii",
    "upsample_argmax_f32": "PiiiPiiiiP",
    "upsample_argmax_f16": "PiiiPiiiiP",
    "blend": "PPPPiff",
}
"""Every kernel and its parameters, as characters of the module `struct`."""

NVCC_FLAGS = ("-O3", "-std=c++17", "-fmad=false")
SOURCES = ("kernels.cu", "kernels.cuh", "upsample_argmax.cuh")

Size = tuple[int, int]


def load_module() -> Any:
    """The kernels as a `pycuda.driver.Module` of the current context.

    From `kernels.fatbin`, which the wheel holds if nvcc was there when it was built; else, or for a
    GPU that it does not cover, compiled by nvcc into the cache.

    Raises:
        MissingDependencyError: pycuda, NVIDIA's driver, or both the file and nvcc are missing.
        EngineError: nvcc or the driver refuses the kernels.
    """
    if importlib.util.find_spec("pycuda") is None:
        raise MissingDependencyError.for_extra("pycuda", "tensorrt", "running on an NVIDIA GPU")
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise MissingDependencyError(
            f"pycuda does not load ({error}): install NVIDIA's driver"
        ) from error
    refused: Exception | None = None
    fatbin = find_file("kernels.fatbin")
    if fatbin is not None:
        try:
            return driver.module_from_file(str(fatbin))
        except driver.Error as error:
            refused = error
    major, minor = driver.Context.get_device().compute_capability()
    nvcc = find_nvcc()
    if nvcc is None:
        lacks = (
            "this installation has no CUDA kernels"
            if fatbin is None
            else f"{fatbin.name} does not load on this GPU, sm_{major}{minor} ({refused})"
        )
        raise MissingDependencyError(
            f"{lacks}: install the CUDA toolkit (nvcc) to have them compiled at the first run"
        ) from refused
    cubin = compile_kernels(nvcc, (major, minor))
    try:
        return driver.module_from_file(str(cubin))
    except driver.Error as error:
        raise EngineError(
            f"{cubin} does not load ({error}): delete it, and update NVIDIA's driver if the "
            "toolkit is newer"
        ) from error


def find_file(name: str) -> Path | None:
    """A file installed beside this module, or with the extension in an editable installation."""
    paths = (Path(folder) / name for folder in native.__path__)
    return next((path for path in paths if path.is_file()), None)


def find_nvcc() -> str | None:
    """nvcc on PATH, in $CUDA_HOME, or where the toolkit installs itself."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    folders = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))


def compile_kernels(
    nvcc: str, compute_capability: tuple[int, int], cache: Path | None = None
) -> Path:
    """Compiles the kernels for one GPU, once per source, compiler and GPU.

    Args:
        nvcc: the compiler.
        compute_capability: (8, 7) for sm_87.
        cache: folder for the result; None is `rtseg/kernels` in the user's cache.

    Returns:
        A cubin for the driver. Processes that compile at the same time do not disturb each other.

    Raises:
        MissingDependencyError: the sources are not installed.
        EngineError: nvcc fails, or the cache cannot be written.
    """
    sources = [path for path in map(find_file, SOURCES) if path is not None]
    if len(sources) < len(SOURCES):
        raise MissingDependencyError("the sources of the CUDA kernels are gone: reinstall rtseg")
    arch = "sm_{}{}".format(*compute_capability)
    command = [nvcc, "--cubin", f"-arch={arch}", *NVCC_FLAGS]
    try:
        version = subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout
        key = hashlib.sha256(repr(command[1:]).encode() + version)
        for source in sources:
            key.update(source.read_bytes())
        folder = cache or user_cache() / "kernels"
        target = folder / f"kernels-{arch}-{key.hexdigest()[:16]}.cubin"
        if target.is_file():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / target.name
            subprocess.run(
                [*command, "-o", str(made), str(sources[0])],
                capture_output=True,
                check=True,
                text=True,
            )
            made.replace(target)
    except subprocess.CalledProcessError as error:
        said = str(error.stderr or error.stdout or "").strip().splitlines() or ["no message"]
        raise EngineError(f"{nvcc} cannot compile the kernels for {arch}: {said[0]}") from error
    except OSError as error:
        raise EngineError(f"the CUDA kernels cannot be compiled: {error}") from error
    return target


class PrimaryContext:
    """A GPU's primary context, the one that CUDA's run-time API and PyTorch use as well.

    Args:
        driver: the module `pycuda.driver`, initialised.
        ordinal: of the GPU.
    """

    def __init__(self, driver: Any, ordinal: int = 0) -> None:
        self._driver = driver
        self._context = driver.Device(ordinal).retain_primary_context()

    @property
    def handle(self) -> int:
        """CUDA's own handle."""
        return int(self._context.handle)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes it the calling thread's for the length of a block; the thread never keeps it."""
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def release(self) -> None:
        """Gives it back; what was allocated in it must be free."""
        self._context.detach()


class Kernels:
    """Launches the kernels of a module (see `load_module`) on a stream of its context.

    `stream` is a `pycuda.driver.Stream`, or None for the default stream. Sizes are (height, width)
    in pixels. Methods raise `ValueError` for numbers that the kernels are not made for; a wrong
    address cannot be told from a right one.
    """

    def __init__(self, module: Any) -> None:
        self._functions = {name: module.get_function(name) for name in FORMATS}
        for name, function in self._functions.items():
            function.prepare(FORMATS[name])

    def preprocess_bgr(
        self,
        src: int,
        src_hw: Size,
        src_pitch_bytes: int,
        dst: int,
        dst_hw: Size,
        mean: Sequence[float],
        std: Sequence[float],
        half: bool,
        stream: Any,
    ) -> None:
        """Resizes, turns to RGB, normalises: `(value / 255 - mean) / std`.

        Args:
            src: (H, W, 3) uint8 BGR, rows `src_pitch_bytes` apart.
            dst: (3, h, w) float32, or float16 if `half`, contiguous.
            mean, std: three numbers each, RGB order, for values in 0..1.
        """
        _check_pitch(src_pitch_bytes, 3 * src_hw[1])
        picture = (src, src_pitch_bytes, *_check_size(src_hw), dst, *_check_size(dst_hw))
        scale, shift = native.normalisation(mean, std)
        arguments = (*picture, *_scales(src_hw, dst_hw), *scale, *shift)
        name = f"preprocess_bgr_{_suffix(half)}"
        self._launch(name, _grid(dst_hw, IMAGE_TILE_HW), stream, arguments)

    def preprocess_nv12(
        self,
        y: int,
        uv: int,
        pitch_bytes: int,
        src_hw: Size,
        dst: int,
        dst_hw: Size,
        mean: Sequence[float],
        std: Sequence[float],
        half: bool,
        stream: Any,
        full_range: bool = False,
        matrix: Matrix = "bt601",
    ) -> None:
        """The same from a decoder's NV12; limited BT.601 as `cv2.COLOR_YUV2BGR_NV12`, bit by bit.

        Args:
            y: (H, W) uint8 luma.
            uv: (ceil(H / 2), ceil(W / 2), 2) uint8 chroma, U first.
            pitch_bytes: from row to row, of both.
            full_range: luma covers 0..255, not 16..235.
            matrix: the standard of the colours; "bt709" for most video from 720 lines up.
        """
        _check_pitch(pitch_bytes, src_hw[1] + src_hw[1] % 2)
        picture = (y, uv, pitch_bytes, *_check_size(src_hw), dst, *_check_size(dst_hw))
        scale, shift = native.normalisation(mean, std)
        numbers = (*_scales(src_hw, dst_hw), *scale, *shift)
        arguments = (*picture, *numbers, *yuv_coefficients(full_range, matrix))
        name = f"preprocess_nv12_{_suffix(half)}"
        self._launch(name, _grid(dst_hw, IMAGE_TILE_HW), stream, arguments)

    def upsample_argmax(
        self,
        logits: int,
        chw: tuple[int, int, int],
        half: bool,
        labels: int,
        hw: Size,
        align_corners: bool,
        ignore_index: int,
        stream: Any,
        counts: int = 0,
    ) -> None:
        """The class of every pixel, as `rtseg.native.upsample_argmax`.

        Args:
            logits: (C, h, w) float32, or float16 if `half`, contiguous; C in 1..255.
            labels: (H, W) uint8, contiguous; `hw` is its size.
            counts: (256,) uint32, to which the number of pixels of each label is added; 0 for none.
        """
        classes, *low = chw
        if not 1 <= classes <= 255:
            raise ValueError(f"logits: expected 1 to 255 classes, got {classes}")
        if not 0 <= ignore_index <= 255:
            raise ValueError(f"ignore_index: expected 0..255, got {ignore_index}")
        inputs = (logits, classes, *_check_size((low[0], low[1])))
        outputs = (labels, *_check_size(hw), int(align_corners), ignore_index, counts)
        name = f"upsample_argmax_{_suffix(half)}"
        self._launch(name, _grid(hw, LABEL_TILE_HW), stream, (*inputs, *outputs))

    def blend(
        self,
        bgr: int,
        labels: int,
        palette: int,
        hw: Size,
        opacity: float,
        out: int,
        stream: Any,
    ) -> None:
        """Mixes the colour of each pixel's class into the image, as `rtseg.native.blend`.

        Args:
            bgr, out: (H, W, 3) uint8 BGR, contiguous; may be the same.
            labels: (H, W) uint8, contiguous.
            palette: (256, 3) uint8 BGR, contiguous.
            opacity: 0 (only the image) to 1 (only the colours).
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity: expected 0..1, got {opacity}")
        height, width = _check_size(hw)
        pixels = height * width
        arguments = (bgr, labels, palette, out, pixels, float(opacity), 1.0 - opacity)
        self._launch("blend", (-(-pixels // BLEND_PIXELS), 1), stream, arguments)

    def _launch(
        self, name: str, grid: tuple[int, int], stream: Any, arguments: tuple[float, ...]
    ) -> None:
        self._functions[name].prepared_async_call(grid, (THREADS, 1, 1), stream, *arguments)


def _suffix(half: bool) -> str:
    return "f16" if half else "f32"


def _grid(hw: Size, tile_hw: Size) -> tuple[int, int]:
    """Blocks along x and y that cover an image."""
    return -(-hw[1] // tile_hw[1]), -(-hw[0] // tile_hw[0])


def _check_size(hw: Size) -> Size:
    height, width = hw
    if not (0 < height <= 32767 and 0 < width <= 32767):
        raise ValueError(f"size: expected (height, width) in 1..32767, got {hw}")
    return int(height), int(width)


def _check_pitch(pitch_bytes: int, row_bytes: int) -> None:
    if not row_bytes <= pitch_bytes < 2**31:
        raise ValueError(f"pitch: expected at least {row_bytes} bytes, got {pitch_bytes}")


def _scales(src_hw: Size, dst_hw: Size) -> tuple[float, float]:
    """Source pixels per pixel along y and x, rounded twice as OpenCV does."""
    return 1.0 / (dst_hw[0] / src_hw[0]), 1.0 / (dst_hw[1] / src_hw[1])
