"""The CUDA kernels compiled for the host, behind the part of pycuda's interface that we use."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtseg.native import cuda

SHIM = Path(__file__).parent / "cuda_host" / "shim.h"
GUARD = 64
ORDERS = (1, 255, 77)
"""Forwards, backwards, and all over the place: the order of a block's threads."""

_TYPES: dict[str, Any] = {
    "P": ctypes.c_void_p,
    "i": ctypes.c_int,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}


def compiler() -> str | None:
    """A C++ compiler, or None."""
    return shutil.which("g++")


@functools.cache
def host_module() -> HostModule:
    """Compiles kernels.cu with the shim, once, and loads it."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        build(library)
        return HostModule(ctypes.CDLL(str(library)))


def build(library: Path, *flags: str) -> None:
    """Compiles kernels.cu with the shim; `flags` for a sanitiser, say."""
    source = cuda.find_file("kernels.cu")
    subprocess.run(
        [
            *("g++", "-x", "c++", "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC"),
            *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", *flags),
            *("-include", str(SHIM), "-o", str(library), str(source)),
        ],
        check=True,
    )


class HostModule:
    """Stands in for `pycuda.driver.Module`: device pointers are addresses of host memory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def get_function(self, name: str) -> HostFunction:
        return HostFunction(self._library, name)

    def set_order(self, order: int) -> None:
        """One of ORDERS, for all launches from now on."""
        self._library.set_order(order)


class HostFunction:
    """Runs a kernel block by block, as soon as it is launched."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._library = library
        self._call = library[name]
        self._call.restype = None

    def prepare(self, arg_types: str) -> None:
        self._call.argtypes = [_TYPES[character] for character in arg_types]

    def prepared_async_call(
        self, grid: tuple[int, int], block: tuple[int, int, int], stream: Any, *args: float
    ) -> None:
        assert block == (cuda.THREADS, 1, 1)
        for y in range(grid[1]):
            for x in range(grid[0]):
                self._library.set_block(x, y)
                self._call(*args)


def address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def guarded(count: int, dtype: Any, offset: int = 0) -> tuple[NDArray[Any], Callable[[], bool]]:
    """An array off by `offset` bytes from 64, and whether the bytes around it are untouched."""
    size = count * np.dtype(dtype).itemsize
    raw = np.full(size + 3 * GUARD, 0xA5, np.uint8)
    start = GUARD - raw.ctypes.data % 64 + offset
    inner = raw[start : start + size]

    def untouched() -> bool:
        return bool((raw[:start] == 0xA5).all() and (raw[start + size :] == 0xA5).all())

    return inner.view(dtype), untouched
