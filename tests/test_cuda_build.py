"""How the CUDA kernels are compiled: fatbin, machine code, run-time nvcc, benchmark."""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rtseg.errors import EngineError
from rtseg.native import cuda

ROOT = Path(__file__).parents[1]
NVCC = cuda.find_nvcc()
SOURCE = cuda.find_file("kernels.cu")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")


@pytest.fixture(scope="session")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{kernel: its PTX}."""
    path = tmp_path_factory.mktemp("ptx") / "kernels.ptx"
    command = [str(NVCC), "--ptx", "-arch=compute_75", *cuda.NVCC_FLAGS]
    subprocess.run([*command, "-o", str(path), str(SOURCE)], check=True)
    _, *parts = path.read_text().split(".visible .entry ")
    return {part.partition("(")[0]: part for part in parts}


@needs_nvcc
def test_no_operation_is_fused_or_approximate(ptx: dict[str, str]) -> None:
    assert ptx.keys() == cuda.FORMATS.keys()
    for name, text in ptx.items():
        floats = re.findall(r"\b((?:add|sub|mul|div|fma|mad|rcp|sqrt)\.[\w.]*f(?:32|64))\b", text)
        assert floats, name
        assert {f.split(".")[1] for f in floats} == {"rn"}, name
        assert not re.findall(r"\b(?:fma|mad)\.\w+\.f\d\d|\.ftz|\.approx", text), name


@needs_nvcc
def test_parameters_lie_where_they_are_packed(ptx: dict[str, str]) -> None:
    kinds = {"u64": "P", "u32": "i", "f32": "f", "f64": "d"}
    for name, text in ptx.items():
        types = re.findall(r"\.param \.(\w+)(?: \.ptr[^_]*)? \w+_param_\d+", text)
        assert "".join(kinds[t] for t in types) == cuda.FORMATS[name]


@needs_nvcc
def test_kernels_compile_at_run_time(tmp_path: Path) -> None:
    assert NVCC is not None
    cubin = cuda.compile_kernels(NVCC, (8, 6), tmp_path / "new")
    assert cubin.read_bytes()[:4] == b"\x7fELF"
    assert list(cubin.parent.iterdir()) == [cubin], "something was left behind"
    written = cubin.stat().st_mtime_ns
    assert cuda.compile_kernels(NVCC, (8, 6), tmp_path / "new") == cubin
    assert cubin.stat().st_mtime_ns == written


@needs_nvcc
def test_an_unknown_gpu_is_one_line(tmp_path: Path) -> None:
    assert NVCC is not None
    with pytest.raises(EngineError, match=r"cannot compile the kernels for sm_13: .*") as caught:
        cuda.compile_kernels(NVCC, (1, 3), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 1\n")
    nvcc.chmod(0o755)
    with pytest.raises(EngineError, match=r"cannot be compiled: .*Not a directory"):
        cuda.compile_kernels(str(nvcc), (8, 6), nvcc / "cache")


def cmake_architectures() -> list[str]:
    (text,) = re.findall(r"set\(RTSEG_CUDA_ARCHITECTURES ([\d ]+)", _cmake())
    return [f"sm_{number}" for number in text.split()]


def _cmake() -> str:
    return (ROOT / "CMakeLists.txt").read_text()


def find_cuobjdump() -> str | None:
    beside = Path(NVCC).resolve().parent if NVCC else Path()
    spec = importlib.util.find_spec("nvidia")
    wheels = spec.submodule_search_locations or () if spec else ()
    folders = [beside, Path("/usr/local/cuda/bin"), *(Path(w) / "cu13" / "bin" for w in wheels)]
    return shutil.which("cuobjdump") or next(
        (str(f / "cuobjdump") for f in folders if (f / "cuobjdump").is_file()), None
    )


@pytest.fixture
def fatbin() -> Path:
    path = cuda.find_file("kernels.fatbin")
    if path is None:
        pytest.skip("installed without kernels.fatbin: no nvcc when the wheel was built")
    return path


def contents(fatbin: Path) -> tuple[list[str], list[str]]:
    """The architectures of the machine code and of the PTX in a fatbin, read from its headers."""
    data = fatbin.read_bytes()
    magic, _, header, size = struct.unpack_from("<IHHQ", data)
    assert (magic, header + size) == (0xBA55ED50, len(data))
    found: dict[int, list[str]] = {1: [], 2: []}  # PTX, ELF
    at = header
    while at < len(data):
        kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
        found[kind].append("sm_{}".format(*struct.unpack_from("<I", data, at + 28)))
        at += header + size
    return found[2], found[1]


def test_the_fatbin_has_every_architecture(fatbin: Path) -> None:
    known = cmake_architectures()
    if NVCC is not None:
        codes = subprocess.check_output([NVCC, "--list-gpu-code"], text=True).split()
        known = [arch for arch in known if arch in codes]
    assert contents(fatbin) == (known, known[:1])


def test_cuobjdump_sees_the_same(fatbin: Path) -> None:
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("needs cuobjdump")
    for option, expected in zip(("--list-elf", "--list-ptx"), contents(fatbin), strict=True):
        listed = subprocess.check_output([cuobjdump, option, str(fatbin)], text=True)
        assert re.findall(r"\.(sm_\d+)\.", listed) == expected


def test_cmake_and_the_run_time_use_the_same_flags() -> None:
    (flags,) = re.findall(r"target_compile_options\(kernels PRIVATE ([^)]*)\)", _cmake())
    assert {*flags.split(), "-std=c++17"} == set(cuda.NVCC_FLAGS)
    assert "CUDA_STANDARD 17" in _cmake()


def test_the_benchmark_without_a_gpu_is_one_line() -> None:
    if importlib.util.find_spec("pycuda") is not None:
        pytest.skip("pycuda is installed")
    script = ROOT / "benchmarks" / "cuda_kernels.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this benchmark needs an NVIDIA GPU")
    assert len(done.stderr.splitlines()) == 1
