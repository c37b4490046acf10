"""`rtseg doctor`: what this machine has, and the fix for what it lacks."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtseg import engine, native, plugins
from rtseg.artifact import shipped
from rtseg.errors import RtsegError
from rtseg.machine import cpu_count, cpu_features, cpu_name
from rtseg.timing import versions


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
        _gpu(),
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


def _gpu() -> Finding:
    devices = sorted(str(p) for p in Path("/dev").glob("nvidia[0-9]*"))
    tegra = Path("/etc/nv_tegra_release")
    if tegra.exists():
        return Finding("GPU", tegra.read_text().splitlines()[0], ok=True)
    if devices:
        return Finding("GPU", ", ".join(devices), ok=True)
    return Finding("GPU", "no NVIDIA device: engines run on the CPU", ok=False)


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
