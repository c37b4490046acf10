"""The CUDA kernels on a GPU: against the bandwidth of a copy, and against torch on the same GPU.

    python benchmarks/cuda_kernels.py --json benchmarks/results/cuda_kernels.json

`copy_us` is how long the bytes that the kernel must read and write once take at the bandwidth
(bytes read and written) of a device-to-device copy measured in the same run. "cold" rotates through
more memory than the GPU's cache holds; "warm" uses the same again, as after a network that has just
written its logits. Launches are queued behind a long copy, so that the time of launching does not
count. The last line is the record as JSON. Without a GPU: one line, exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from _record import write_record
from kernels import MEAN, STD, UPSAMPLINGS, boundary_share, network_like
from numpy.typing import NDArray

from rtseg.errors import MissingDependencyError, RtsegError
from rtseg.native import cuda, reference

COLD_BYTES = 192 << 20
COPY_BYTES = 256 << 20
LAUNCHES = 20
Address = int
Row = dict[str, Any]


class Gpu:
    """The first GPU: memory, a stream, and times measured on it."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.stream = driver.Stream()
        self._kept: list[Any] = []
        self._copy = [self.room(COPY_BYTES), self.room(COPY_BYTES)]
        self._blockers = 1
        self.copy_seconds = float(np.median([self._time([self._copy_once]) for _ in range(20)]))
        # Three milliseconds in front of what is measured: enough to queue all of it.
        self._blockers = max(1, round(3e-3 / self.copy_seconds))
        self.bandwidth = 2 * COPY_BYTES / self.copy_seconds  # bytes read and written per second

    def put(self, array: NDArray[Any]) -> Address:
        """A copy on the GPU, kept until `free`."""
        address = self.room(array.nbytes)
        self._driver.memcpy_htod(address, np.ascontiguousarray(array))
        return address

    def get(self, address: Address, like: NDArray[Any]) -> NDArray[Any]:
        out = np.empty_like(like)
        self._driver.Context.synchronize()
        self._driver.memcpy_dtoh(out, address)
        return out

    def room(self, count: int) -> Address:
        self._kept.append(self._driver.mem_alloc(count))
        return int(self._kept[-1])

    def free(self, keep: int = 0) -> None:
        """Frees all but the first `keep` allocations."""
        self._driver.Context.synchronize()
        while len(self._kept) > keep:
            self._kept.pop().free()

    @property
    def allocations(self) -> int:
        return len(self._kept)

    def _copy_once(self) -> None:
        source, target = self._copy
        self._driver.memcpy_dtod_async(target, source, COPY_BYTES, self.stream)

    def _time(self, launches: Sequence[Callable[[], object]]) -> float:
        """Seconds per launch on the GPU, the launches queued back to back."""
        start, end = self._driver.Event(), self._driver.Event()
        for _ in range(self._blockers):
            self._copy_once()
        start.record(self.stream)
        for launch in launches:
            launch()
        end.record(self.stream)
        end.synchronize()
        return float(end.time_since(start)) / 1e3 / len(launches)

    def measure(self, launches: Sequence[Callable[[], object]], seconds: float) -> dict[str, float]:
        """p50 and p99 in microseconds, `LAUNCHES` of them at a time, taken in turns."""
        turn = [launches[i % len(launches)] for i in range(max(LAUNCHES, len(launches)))]
        for _ in range(3):
            self._time(turn)
        rounds = min(500, max(10, round(seconds / (self._time(turn) * len(turn) + 3e-3))))
        p50, p99 = np.percentile([self._time(turn) for _ in range(rounds)], (50, 99)) * 1e6
        return {"p50_us": round(float(p50), 2), "p99_us": round(float(p99), 2), "n": rounds}

    def compare(
        self,
        make: Callable[[], Callable[[], object]],
        moved: int,
        seconds: float,
    ) -> Row:
        """Times a kernel, cold and warm, against a copy of `moved` bytes.

        `make` gives a launch with memory of its own.
        """
        before = self.allocations
        launches = [make() for _ in range(max(2, -(-COLD_BYTES // moved)))]
        copy_us = moved / self.bandwidth * 1e6
        row: Row = {"bytes": moved, "copy_us": round(copy_us, 2)}
        for name, chosen in (("cold", launches), ("warm", launches[:1])):
            row[name] = self.measure(chosen, seconds)
            row[name]["of_copy"] = round(row[name]["p50_us"] / copy_us, 2)
        self.free(before)
        return row


@contextmanager
def open_gpu() -> Iterator[tuple[Gpu, cuda.Kernels, Row]]:
    """The first GPU, its kernels, and what it is.

    Raises:
        MissingDependencyError: there is none, or no driver, pycuda or kernels for it.
    """
    try:
        driver = importlib.import_module("pycuda.driver")
        driver.init()
        device = driver.Device(0)
    except Exception as error:
        raise MissingDependencyError(
            f"this benchmark needs an NVIDIA GPU, its driver and pycuda: {error}"
        ) from error
    context = device.retain_primary_context()
    context.push()
    try:
        gpu = Gpu(driver)
        facts = {
            "name": device.name(),
            "compute_capability": list(device.compute_capability()),
            "driver_cuda": driver.get_driver_version(),
            "pycuda_cuda": list(driver.get_version()),
            "memory_mib": device.total_memory() >> 20,
            "copy_gb_per_second": round(gpu.bandwidth / 1e9, 1),
        }
        try:
            yield gpu, cuda.Kernels(cuda.load_module()), facts
        finally:
            gpu.free()
    finally:
        driver.Context.pop()


def torch_microseconds(
    logits: NDArray[Any], size: tuple[int, int], seconds: float
) -> dict[str, float] | None:
    """interpolate + argmax + uint8 on the same GPU; None without torch for CUDA."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    tensor = torch.from_numpy(logits)[None].cuda()
    event: Any = torch.cuda.Event

    def once() -> float:
        start, end = (event(enable_timing=True) for _ in range(2))
        start.record()
        torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False).argmax(
            1
        ).to(torch.uint8)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3

    for _ in range(5):
        once()
    times = [once() for _ in range(min(500, max(10, round(seconds / (once() / 1e6)))))]
    p50, p99 = np.percentile(times, (50, 99))
    return {"p50_us": round(float(p50), 2), "p99_us": round(float(p99), 2), "n": len(times)}


def upsampling(
    gpu: Gpu,
    kernels: cuda.Kernels,
    logits: NDArray[Any],
    size: tuple[int, int],
    seconds: float,
) -> Row:
    classes, height, width = logits.shape
    half = logits.dtype == np.float16
    targets: list[Address] = []

    def make() -> Callable[[], None]:
        source, labels = gpu.put(logits), gpu.room(size[0] * size[1])
        targets.append(labels)
        return lambda: kernels.upsample_argmax(
            source, (classes, height, width), half, labels, size, False, 255, gpu.stream
        )

    before = gpu.allocations
    make()()
    expected = reference.upsample_argmax(logits, size, False)
    differing = int((gpu.get(targets[0], expected) != expected).sum())
    gpu.free(before)
    row = gpu.compare(make, logits.nbytes + size[0] * size[1], seconds)
    row |= {"differing_pixels": differing, "boundary_share": round(boundary_share(logits), 3)}
    row["torch"] = torch_microseconds(logits, size, seconds)
    if row["torch"] is not None:
        row["torch_ratio"] = round(row["torch"]["p50_us"] / row["warm"]["p50_us"], 1)
    return row


def preprocessing(
    gpu: Gpu, kernels: cuda.Kernels, source: tuple[int, int], size: tuple[int, int], half: bool,
    nv12: bool, seconds: float,
) -> Row:  # fmt: skip
    rng = np.random.default_rng(0)
    shape = (source[0] * 3 // 2, source[1]) if nv12 else (*source, 3)
    frame = rng.integers(0, 256, shape, dtype=np.uint8)
    out_bytes = 3 * size[0] * size[1] * (2 if half else 4)

    def make() -> Callable[[], None]:
        src, dst = gpu.put(frame), gpu.room(out_bytes)
        if nv12:
            uv = src + source[0] * source[1]
            return lambda: kernels.preprocess_nv12(
                src, uv, source[1], source, dst, size, MEAN, STD, half, gpu.stream
            )
        return lambda: kernels.preprocess_bgr(
            src, source, 3 * source[1], dst, size, MEAN, STD, half, gpu.stream
        )

    return gpu.compare(make, frame.nbytes + out_bytes, seconds)


def blending(gpu: Gpu, kernels: cuda.Kernels, size: tuple[int, int], seconds: float) -> Row:
    rng = np.random.default_rng(0)
    bgr = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    coarse = network_like(11, size[0] // 8, size[1] // 8).argmax(0).astype(np.uint8)
    labels = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)

    def make() -> Callable[[], None]:
        a, b, c, out = (*map(gpu.put, (bgr, labels, palette)), gpu.room(bgr.nbytes))
        return lambda: kernels.blend(a, b, c, size, 0.5, out, gpu.stream)

    return gpu.compare(make, 2 * bgr.nbytes + labels.nbytes, seconds)


def measure(gpu: Gpu, kernels: cuda.Kernels, seconds: float) -> list[Row]:
    """All cases; prints a line for each."""
    results = []

    def note(case: str, row: Row) -> None:
        results.append({"case": case, **row})
        line = f"{case:64} copy {row['copy_us']:8.1f} us"
        for name in ("cold", "warm"):
            line += f"  {name} {row[name]['p50_us']:8.1f} us ({row[name]['of_copy']:.2f} x)"
        if row.get("torch"):
            line += f"  torch {row['torch']['p50_us']:9.1f} us ({row['torch_ratio']:.1f} x)"
        print(line, flush=True)

    for shape, size in UPSAMPLINGS:
        noise = np.random.default_rng(0).standard_normal(shape, np.float32)
        for kind, logits in (("network-like", network_like(*shape)), ("noise", noise)):
            for dtype in (np.float32, np.float16):
                values = logits.astype(dtype)
                shapes = f"{'x'.join(map(str, shape))} to {size[0]}x{size[1]}"
                case = f"upsample_argmax {shapes}, {kind}, {values.dtype}"
                note(case, upsampling(gpu, kernels, values, size, seconds))
    for source, size in (((540, 960), (384, 480)), ((1080, 1920), (512, 1024))):
        for half in (False, True):
            for nv12 in (False, True):
                sizes = f"{source[0]}x{source[1]} to {size[0]}x{size[1]}"
                case = f"preprocess {'nv12' if nv12 else 'bgr'} {sizes}, float{16 if half else 32}"
                note(case, preprocessing(gpu, kernels, source, size, half, nv12, seconds))
        note(f"blend {source[0]}x{source[1]}", blending(gpu, kernels, source, seconds))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument("--seconds", type=float, default=1.0, help="per figure (default: 1)")
    args = parser.parse_args()
    try:
        with open_gpu() as (gpu, kernels, facts):
            results = measure(gpu, kernels, args.seconds)
    except RtsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    write_record(args.json, "cuda_kernels", results, gpu=facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
