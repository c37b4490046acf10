"""`rtseg doctor`: what this machine has, and the fix for what it lacks."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtseg import engine, native, plugins
from rtseg.artifact import shipped
from rtseg.build import cannot_build
from rtseg.engine import _cuda, _tensorrt
from rtseg.engine_recipe import read_engine_recipe
from rtseg.errors import RtsegError
from rtseg.machine import cpu_count, cpu_features, cpu_name
from rtseg.native import cuda as cuda_kernels
from rtseg.source import _nvdec
from rtseg.timing import versions

_TEGRA = Path("/etc/nv_tegra_release")
_DRIVER = Path("/proc/driver/nvidia/version")
_INSTALL_DRIVER = "install NVIDIA's driver (Debian: apt install nvidia-driver, from non-free)"


@dataclass(frozen=True)
class Finding:
    """One line of the examination: `fix` is empty if there is nothing to do."""

    what: str
    found: str
    ok: bool
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def examine() -> list[Finding]:
    """Looks at system, kernels, engines, GPU, decoders, cameras and windows; changes nothing."""
    return [
        _system(),
        _kernels(),
        *(_engine(name) for name in engine.names()),
        *_nvidia(),
        _decoder(),
        _gstreamer(),
        _window(),
        _cameras(),
        _models(),
    ]


def _system() -> Finding:
    have = versions("numpy", "opencv-python", "av", "openvino")
    packages = ", ".join(f"{k} {v}" for k, v in have.items())
    features = " ".join(cpu_features())
    found = f"{cpu_name()}, {cpu_count()} cores, {features}; {packages}"
    return Finding("system", found, ok=sys.version_info >= (3, 10))


def _kernels() -> Finding:
    if native.BACKEND == "c++":
        return Finding("kernels", f"C++ ({native.ISAS[0]})", ok=True)
    return Finding(
        "kernels",
        "pure Python",
        ok=False,
        fix="install a C++ compiler (Debian: apt install g++) and reinstall rtseg: "
        "argmax is slow without it",
    )


def _engine(name: str) -> Finding:
    reason = engine.available(name)
    if reason:
        return Finding(f"engine {name}", "not installed", ok=False, fix=reason)
    package = {"openvino": "openvino", "onnxruntime": "onnxruntime", "eager": "torch"}.get(
        name, name
    )
    return Finding(f"engine {name}", versions(package).get(package, "installed"), ok=True)


def _nvidia() -> list[Finding]:
    """GPU, driver, TensorRT and what goes with it; each with the command that mends it."""
    return [
        _gpu(),
        _driver(),
        _tensorrt_found(),
        _package("PyCUDA", "pycuda", "the TensorRT engine needs it"),
        _package("CUDA graphs", "cuda-bindings", "TensorRT launches faster with it"),
        _cuda_kernels(),
        _hardware_decoder(),
        *_recipes(),
    ]


def _gpu() -> Finding:
    if not _cuda.missing():
        names = [f"{d.name}, SM{d.capability}, {d.memory_mib} MiB" for d in _cuda.devices()]
        return Finding("GPU", "; ".join(names), ok=True)
    if _TEGRA.exists():
        return Finding("GPU", _TEGRA.read_text().splitlines()[0], ok=True)
    devices = sorted(str(p) for p in Path("/dev").glob("nvidia[0-9]*"))
    if devices:
        return Finding("GPU", ", ".join(devices), ok=True)
    if _on_the_bus():
        return Finding("GPU", "an NVIDIA GPU without its driver", ok=False, fix=_INSTALL_DRIVER)
    return Finding("GPU", "no NVIDIA device: engines run on the CPU", ok=False)


def _has_gpu() -> bool:
    return _TEGRA.exists() or _on_the_bus() or any(Path("/dev").glob("nvidia[0-9]*"))


def _on_the_bus() -> bool:
    """Whether a display controller of NVIDIA is on the PCI bus."""
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        kind = vendor.with_name("class")
        if vendor.read_text().strip() == "0x10de" and kind.read_text().startswith("0x03"):
            return True
    return False


def _driver() -> Finding:
    """The kernel's driver, by what it says of itself."""
    try:
        text = _DRIVER.read_text()
    except OSError:
        if _TEGRA.exists():
            return Finding("NVIDIA driver", "JetPack's own", ok=True)
        fix = _INSTALL_DRIVER if _on_the_bus() else ""
        return Finding("NVIDIA driver", "not loaded", ok=False, fix=fix)
    number = re.search(r"\d+\.\d+(\.\d+)?", text)
    found = number[0] if number else text.splitlines()[0]
    reason = _cuda.missing()
    answers = not reason or "driver" not in reason
    return Finding("NVIDIA driver", found, ok=answers, fix="" if answers else reason)


def _tensorrt_found() -> Finding:
    reason = _tensorrt.missing()
    if reason:
        return Finding("TensorRT", "not installed", ok=False, fix=reason)
    trt = _tensorrt.load()
    targets = ", ".join(_tensorrt.known_targets(trt)) or "this machine's GPU only"
    return Finding("TensorRT", f"{_tensorrt.title(trt)}, builds for {targets}", ok=True)


def _package(what: str, package: str, why: str) -> Finding:
    found = versions(package).get(package)
    if found:
        return Finding(what, f"{package} {found}", ok=True)
    fix = f"{why}: pip install 'rtseg[tensorrt]'" if _has_gpu() else ""
    return Finding(what, "not installed", ok=False, fix=fix)


def _cuda_kernels() -> Finding:
    if cuda_kernels.find_file("kernels.fatbin"):
        return Finding("CUDA kernels", "in this installation", ok=True)
    nvcc = cuda_kernels.find_nvcc()
    if nvcc:
        return Finding("CUDA kernels", f"compiled at the first run by {nvcc}", ok=True)
    return Finding(
        "CUDA kernels",
        "none",
        ok=False,
        fix="frames on a GPU need them: install the CUDA toolkit (nvcc) and reinstall rtseg",
    )


def _hardware_decoder() -> Finding:
    if _TEGRA.exists():
        return Finding("hardware decoding", "GStreamer's nvv4l2decoder, for csi:N", ok=True)
    reason = _nvdec.missing()
    if not reason:
        return Finding("hardware decoding", f"PyNvVideoCodec {_nvdec.version()}", ok=True)
    fix = f"videos are decoded on the CPU without it: {reason}" if _has_gpu() else ""
    return Finding("hardware decoding", "not on a GPU", ok=False, fix=fix)


def _recipes() -> list[Finding]:
    """Which of the recipes in ./engines this machine can build."""
    paths = sorted(Path("engines").glob("*.toml"))
    can, reasons = [], []
    for path in paths:
        try:
            reason = cannot_build(read_engine_recipe(path))
        except RtsegError as error:
            reason = str(error)
        if reason:
            reasons.append(reason)
        else:
            can.append(path.stem)
    if not paths:
        return []
    found = f"{len(can)} of {len(paths)} in ./engines can be built here"
    return [Finding("engine recipes", found, ok=bool(can), fix="" if can else reasons[0])]


def _decoder() -> Finding:
    import av

    wanted = [
        name for name in ("h264", "hevc", "av1", "vp9", "mjpeg") if name in av.codecs_available
    ]
    encoder = "libx264" if "libx264" in av.codecs_available else "no libx264"
    return Finding(
        "video",
        f"PyAV {av.__version__}: {' '.join(wanted)}; encoder {encoder}",
        ok=encoder == "libx264",
        fix=""
        if encoder == "libx264"
        else "--save needs libx264: pip install --force-reinstall av",
    )


def _gstreamer() -> Finding:
    import cv2

    build = cv2.getBuildInformation()
    have = any("GStreamer" in line and "YES" in line for line in build.splitlines())
    return Finding(
        "GStreamer",
        f"OpenCV {cv2.__version__} {'with' if have else 'without'} GStreamer",
        ok=have,
        fix="" if have else "only csi:N needs it: on Jetson use the system's OpenCV",
    )


def _window() -> Finding:
    try:
        plugins.load("rtseg.sink", "window").open()
    except RtsegError as error:
        return Finding("window", "none", ok=False, fix=f"for --show: {error}")
    return Finding("window", "can be shown", ok=True)


def _cameras() -> Finding:
    devices = sorted(str(p) for p in Path("/dev").glob("video[0-9]*"))
    if devices:
        return Finding("cameras", ", ".join(devices), ok=True)
    return Finding(
        "cameras", "none", ok=False, fix="plug one in, or try --source synth: or a video file"
    )


def _models() -> Finding:
    names = shipped()
    return Finding(
        "models",
        ", ".join(names) or "none",
        ok=bool(names),
        fix="" if names else "rtseg/weights is empty: reinstall rtseg",
    )
