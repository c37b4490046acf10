"""The CUDA kernels on a GPU: the comparisons made on the host, and what only a GPU shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from test_cuda_images import LEVELS, MEAN, STD, scaled
from test_native import KINDS, draw_logits

from rtseg.native import cuda as native_cuda
from rtseg.native import reference
from rtseg.native.cuda import Kernels

pytestmark = pytest.mark.cuda

GUARD = 256


@pytest.fixture
def kernels(cuda: Any) -> Kernels:
    return Kernels(native_cuda.load_module())


@pytest.fixture
def stream(cuda: Any) -> Any:
    return cuda.Stream()


class Device:
    """Copies of arrays on the GPU, until `free`."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._kept: list[Any] = []

    def put(self, array: NDArray[Any]) -> int:
        """The address of a copy."""
        raw = np.frombuffer(array.tobytes(), np.uint8)
        memory = self._driver.mem_alloc(raw.size)
        self._driver.memcpy_htod(memory, raw)
        self._kept.append(memory)
        return int(memory)

    def free(self) -> None:
        self._driver.Context.synchronize()
        for memory in self._kept:
            memory.free()

    def room(self, count: int, dtype: Any) -> tuple[int, Callable[[], NDArray[Any]]]:
        """The address of an array to write to, and a function that waits and reads it.

        That function fails if the bytes around the array have changed.
        """
        size = count * np.dtype(dtype).itemsize
        start = self.put(np.full(size + 2 * GUARD, 0xA5, np.uint8))

        def read() -> NDArray[Any]:
            self._driver.Context.synchronize()
            raw = np.empty(size + 2 * GUARD, np.uint8)
            self._driver.memcpy_dtoh(raw, start)
            assert (raw[:GUARD] == 0xA5).all()
            assert (raw[GUARD + size :] == 0xA5).all()
            return raw[GUARD : GUARD + size].view(dtype)

        return start + GUARD, read


@pytest.fixture
def device(cuda: Any) -> Iterator[Device]:
    device = Device(cuda)
    yield device
    device.free()


LABEL_CASES = [
    ((11, 24, 30), (90, 120)),
    ((11, 96, 120), (360, 480)),
    ((3, 2, 3), (300, 701)),
    ((5, 40, 300), (80, 601)),
    ((19, 65, 97), (65, 97)),
    ((255, 9, 14), (70, 111)),
    ((4, 33, 61), (20, 31)),
    ((1, 1, 1), (1, 1)),
]
LARGE = ((19, 128, 256), (1024, 2048))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("shape", "size", "kind"),
    [
        *((*case, kind) for case in LABEL_CASES for kind in KINDS),
        *((*LARGE, kind) for kind in ("smooth", "not finite")),
    ],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)),
)
def test_labels_equal_the_reference(
    kernels: Kernels,
    device: Device,
    stream: Any,
    shape: tuple[int, int, int],
    size: tuple[int, int],
    kind: str,
    dtype: type,
    align_corners: bool,
) -> None:
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        logits: NDArray[Any] = draw_logits(rng, kind, shape).astype(dtype)
    labels, read = device.room(size[0] * size[1], np.uint8)
    counts, read_counts = device.room(256, np.uint32)
    half = dtype is np.float16
    source = device.put(logits)
    expected = reference.upsample_argmax(logits, size, align_corners, 200)
    for target in (0, counts):
        kernels.upsample_argmax(
            source, shape, half, labels, size, align_corners, 200, stream, target
        )
        np.testing.assert_array_equal(read().reshape(size), expected)
    # Counts are added to what is there: the pattern that `room` begins with.
    added = read_counts() - np.uint32(0xA5A5A5A5)
    np.testing.assert_array_equal(added, np.bincount(expected.ravel(), minlength=256))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("pitch", [0, 5, 64])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((540, 960), (384, 480)),
        ((1080, 1920), (512, 1024)),
        ((64, 128), (32, 64)),
        ((37, 53), (97, 101)),
        ((33, 65), (33, 65)),
        ((1, 1), (7, 9)),
        ((120, 7), (1, 1)),
    ],
    ids=lambda value: "x".join(map(str, value)),
)
def test_blob_equals_opencv(
    kernels: Kernels,
    device: Device,
    stream: Any,
    source: tuple[int, int],
    target: tuple[int, int],
    pitch: int,
    half: bool,
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (source[0], 3 * source[1] + pitch), dtype=np.uint8)
    bgr = np.ascontiguousarray(rows[:, : 3 * source[1]]).reshape(*source, 3)
    blob, read = device.room(3 * target[0] * target[1], np.float16 if half else np.float32)
    kernels.preprocess_bgr(
        device.put(rows), source, rows.shape[1], blob, target, MEAN, STD, half, stream
    )
    expected = scaled(bgr, target)
    np.testing.assert_array_equal(
        read().reshape(expected.shape), expected.astype(np.float16) if half else expected
    )


@pytest.mark.parametrize("source", [(540, 960), (66, 34), (65, 33)])
@pytest.mark.parametrize("target", [(384, 480), (65, 33), (21, 130)])
def test_nv12_equals_opencv(
    kernels: Kernels,
    device: Device,
    stream: Any,
    source: tuple[int, int],
    target: tuple[int, int],
) -> None:
    height, width = (n + n % 2 for n in source)
    rng = np.random.default_rng(0)
    nv12 = rng.integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)
    bgr = cv2.cvtColor(nv12, cv2.COLOR_YUV2BGR_NV12)[: source[0], : source[1]]
    expected = cv2.resize(bgr, target[::-1], interpolation=cv2.INTER_LINEAR)[:, :, ::-1]
    y = device.put(nv12)
    blob, read = device.room(3 * target[0] * target[1], np.float32)
    kernels.preprocess_nv12(
        y, y + height * width, width, source, blob, target, *LEVELS, False, stream
    )
    levels = np.rint(read().reshape(3, *target)).transpose(1, 2, 0)
    np.testing.assert_array_equal(levels, expected)


@pytest.mark.parametrize("opacity", [0, 0.1, 0.45, 0.5, 1])
@pytest.mark.parametrize("size", [(1, 1), (37, 53), (540, 960)])
@pytest.mark.parametrize("offset", [0, 1])
def test_blend_equals_the_reference(
    kernels: Kernels,
    device: Device,
    stream: Any,
    size: tuple[int, int],
    opacity: float,
    offset: int,
) -> None:
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = rng.integers(0, 256, size, dtype=np.uint8)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    out, read = device.room(bgr.size + offset, np.uint8)
    kernels.blend(
        device.put(bgr), device.put(labels), device.put(palette), size, opacity, out + offset,
        stream,
    )  # fmt: skip
    expected = reference.blend(bgr, labels, palette, opacity)
    np.testing.assert_array_equal(read()[offset:].reshape(bgr.shape), expected)


def test_streams_do_not_disturb_each_other(cuda: Any, kernels: Kernels, device: Device) -> None:
    rng = np.random.default_rng(0)
    runs = []
    for _ in range(4):
        logits = rng.standard_normal((19, 64, 128)).astype(np.float32)
        labels, read = device.room(512 * 1024, np.uint8)
        runs.append((cuda.Stream(), logits, device.put(logits), labels, read))
    for _ in range(5):
        for stream, _, source, labels, _ in runs:
            kernels.upsample_argmax(
                source, (19, 64, 128), False, labels, (512, 1024), False, 255, stream
            )
    for _, logits, _, _, read in runs:
        expected = reference.upsample_argmax(logits, (512, 1024), False)
        np.testing.assert_array_equal(read().reshape(512, 1024), expected)


def test_compiled_at_run_time_they_are_the_same(cuda: Any, device: Device, tmp_path: Path) -> None:
    nvcc = native_cuda.find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    capability = cuda.Context.get_device().compute_capability()
    cubin = native_cuda.compile_kernels(nvcc, capability, tmp_path)
    kernels = Kernels(cuda.module_from_file(str(cubin)))
    logits = np.random.default_rng(0).standard_normal((11, 24, 30)).astype(np.float32)
    labels, read = device.room(90 * 120, np.uint8)
    kernels.upsample_argmax(
        device.put(logits), (11, 24, 30), False, labels, (90, 120), True, 255, None
    )
    expected = reference.upsample_argmax(logits, (90, 120), True)
    np.testing.assert_array_equal(read().reshape(90, 120), expected)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("needs compute-sanitizer")
    chosen = "equal and not 2048 and not 1080 and (noise or finite or opencv or blend)"
    done = subprocess.run(
        [
            *(sanitizer, "--tool", tool, "--error-exitcode", "9"),
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-k", chosen, __file__),
        ],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "ERROR SUMMARY: 0 errors" in done.stdout or "0 hazards" in done.stdout
