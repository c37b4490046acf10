"""The kernels against what a user would write instead, all in one run, on one machine.

    python benchmarks/kernels.py --json benchmarks/results/kernels.json

Every function is timed in turns with its peers. OpenCV and torch use their default threads; ours
uses one. The last line is the record as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import av
import cv2
import numpy as np
from _record import compare, write_record
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from rtseg import native
from rtseg.native import reference
from rtseg.planes import planes_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Functions = dict[str, Callable[[], Any]]

# (classes, h, w) to (H, W): Cityscapes, its half, and the sizes used per frame.
UPSAMPLINGS = [
    ((19, 128, 256), (1024, 2048)),
    ((19, 128, 256), (512, 1024)),
    ((11, 96, 120), (360, 480)),
    ((11, 96, 160), (540, 960)),
    ((19, 512, 1024), (1024, 2048)),
]


def network_like(classes: int, height: int, width: int) -> NDArray[np.float32]:
    """Logits with large regions and soft borders: about a fifth of the cells lie on a border."""
    rng = np.random.default_rng(0)
    planes = []
    for _ in range(classes):
        coarse, fine = rng.standard_normal((2, height, width), np.float32)
        coarse = cv2.GaussianBlur(coarse, (0, 0), height / 16) * (height / 4)
        planes.append(coarse + cv2.GaussianBlur(fine, (0, 0), 1.5) / 2)
    return np.stack(planes).astype(np.float32)


def boundary_share(logits: NDArray[np.float32]) -> float:
    """Share of the cells whose four corners do not have the same class."""
    labels = logits.argmax(axis=0)
    first = labels[:-1, :-1]
    others = (labels[:-1, 1:], labels[1:, :-1], labels[1:, 1:])
    return float(np.mean(np.any([first != other for other in others], axis=0)))


def running_maximum(logits: NDArray[np.float32], size: tuple[int, int]) -> Callable[[], Any]:
    """The best plain formulation known: one resize per class, buffers reused, SIMD throughout."""
    best, value = np.empty(size, np.float32), np.empty(size, np.float32)
    wins, labels = np.empty(size, np.uint8), np.empty(size, np.uint8)
    wh = size[::-1]

    def run() -> NDArray[np.uint8]:
        cv2.resize(logits[0], wh, dst=best)
        labels.fill(0)
        for k in range(1, len(logits)):
            cv2.resize(logits[k], wh, dst=value)
            cv2.compare(value, best, cv2.CMP_GT, dst=wins)
            cv2.max(value, best, dst=best)
            cv2.min(wins, k, dst=wins)  # type: ignore[call-overload]  # 0 or k
            cv2.max(wins, labels, dst=labels)  # k only grows
        return labels

    return run


def upsamplers(logits: NDArray[np.float32], size: tuple[int, int]) -> Functions:
    half, wh = logits.astype(np.float16), size[::-1]

    def resize_then_argmax() -> Any:
        return np.stack([cv2.resize(plane, wh) for plane in logits]).argmax(axis=0)

    functions: Functions = {
        "rtseg": lambda: native.upsample_argmax(logits, size, False),
        "rtseg float16": lambda: native.upsample_argmax(half, size, False),
        "opencv running maximum": running_maximum(logits, size),
        "opencv resize + numpy argmax": resize_then_argmax,
    }
    for isa in native.ISAS[1:]:
        functions[f"rtseg {isa}"] = partial(native.upsample_argmax, logits, size, False, isa=isa)
    try:
        import torch
    except ImportError:
        return functions
    tensor = torch.from_numpy(logits)[None]
    interpolate = torch.nn.functional.interpolate
    functions["torch interpolate + argmax"] = lambda: interpolate(
        tensor, size, mode="bilinear", align_corners=False
    ).argmax(1)
    return functions


def preprocessors(bgr: NDArray[np.uint8], size: tuple[int, int]) -> Functions:
    scale = 1 / (255 * np.array(STD))
    params = cv2.dnn.Image2BlobParams()
    params.size, params.swapRB = size[::-1], True
    params.mean, params.scalefactor = (*(255 * np.array(MEAN)), 0.0), (*scale, 0.0)
    out = np.empty((1, 3, *size), np.float32)
    return {
        "rtseg": lambda: native.preprocess(bgr, size, MEAN, STD, out=out),
        "opencv blobFromImageWithParams": lambda: cv2.dnn.blobFromImageWithParams(bgr, params),
        "opencv resize + numpy": lambda: normalised(cv2.resize(bgr, size[::-1])),
    }


def normalised(bgr: cv2.typing.MatLike) -> NDArray[np.float32]:
    rgb = bgr[:, :, ::-1].astype(np.float32) / np.float32(255)
    scaled = (rgb - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def blenders(bgr: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Functions:
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    out = np.empty_like(bgr)
    return {
        "rtseg": lambda: native.blend(bgr, labels, palette, 0.5, out=out),
        "opencv applyColorMap + addWeighted": lambda: cv2.addWeighted(
            bgr, 0.5, cv2.applyColorMap(labels, palette.reshape(256, 1, 3)), 0.5, 0
        ),
        "numpy palette + opencv addWeighted": lambda: cv2.addWeighted(
            bgr, 0.5, palette[labels], 0.5, 0
        ),
        "numpy": lambda: reference.blend(bgr, labels, palette, 0.5),
    }


def counters(labels: NDArray[np.uint8]) -> Functions:
    return {
        "rtseg": lambda: native.count_labels(labels),
        "opencv calcHist": lambda: cv2.calcHist([labels], [0], None, [256], [0, 256]),
        "numpy bincount": lambda: reference.count_labels(labels),
    }


def encoders(bgr: NDArray[np.uint8]) -> Functions:
    height, width = bgr.shape[:2]
    half = height // 2, width // 2
    planes = [np.empty(size, np.uint8) for size in ((height, width), half, half)]
    frame = av.VideoFrame.from_ndarray(bgr, "bgr24")
    return {
        "rtseg": lambda: native.to_yuv420(bgr, planes),
        "opencv cvtColor": lambda: cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420),
        "swscale": lambda: frame.reformat(format="yuv420p", threads=1),
    }


def decoders(bgr: NDArray[np.uint8]) -> Functions:
    """From a decoder's 4:2:0, BT.601, to BGR."""
    frame = av.VideoFrame.from_ndarray(bgr, "bgr24").reformat(format="yuv420p")
    planes = planes_of(frame)
    stacked = np.concatenate([plane.reshape(-1) for plane in planes]).reshape(-1, bgr.shape[1])
    out, swscale = np.empty_like(bgr), VideoReformatter()
    return {
        "rtseg": lambda: native.yuv420_to_bgr(planes, False, "bt601"),
        "opencv cvtColor": lambda: cv2.cvtColor(stacked, cv2.COLOR_YUV2BGR_I420, dst=out),
        "swscale": lambda: swscale.reformat(frame, format="bgr24", threads=1),
    }


def measure(case: str, functions: Functions, seconds: float, **facts: object) -> dict[str, Any]:
    """Times one case and prints its table; ratios are to ours."""
    rows = compare(functions, seconds)
    ours = rows["rtseg"]["p50_ms"]
    print(f"\n{case}  {facts or ''}")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["p50_ms"]):
        ratio = row["p50_ms"] / ours
        print(f"  {name:36} {row['p50_ms']:9.3f} ms  p99 {row['p99_ms']:9.3f}  {ratio:7.1f} x")
    return {"case": case, **facts, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument("--seconds", type=float, default=4.0, help="per case (default: 4)")
    args = parser.parse_args()

    results = []
    for shape, size in UPSAMPLINGS:
        noise = np.random.default_rng(0).standard_normal(shape, np.float32)
        for kind, logits in (("network-like", network_like(*shape)), ("noise", noise)):
            expected = reference.upsample_argmax(logits, size, False)
            differing = int((native.upsample_argmax(logits, size, False) != expected).sum())
            case = f"upsample_argmax {'x'.join(map(str, shape))} to {size[0]}x{size[1]}, {kind}"
            facts = {
                "boundary_share": round(boundary_share(logits), 3),
                "differing_pixels": differing,
            }
            results.append(measure(case, upsamplers(logits, size), args.seconds, **facts))
    rng = np.random.default_rng(0)
    for (height, width), size in (((540, 960), (384, 480)), ((1080, 1920), (512, 1024))):
        frame = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        bgr = cv2.resize(frame, (width, height)).astype(np.uint8)
        coarse = network_like(11, height // 4, width // 4)
        labels = native.upsample_argmax(coarse, (height, width), False)
        case = f"preprocess {height}x{width} to {size[0]}x{size[1]}"
        results.append(measure(case, preprocessors(bgr, size), args.seconds / 2))
        results.append(measure(f"blend {height}x{width}", blenders(bgr, labels), args.seconds / 2))
        case = f"count_labels {height}x{width}"
        results.append(measure(case, counters(labels), args.seconds / 2))
        case = f"yuv420_to_bgr {height}x{width}"
        results.append(measure(case, decoders(bgr), args.seconds / 2))
        case = f"to_yuv420 {height}x{width}"
        results.append(measure(case, encoders(bgr), args.seconds / 2))
    write_record(args.json, "kernels", results, backend=native.BACKEND, isa=native.ISAS[:1])


if __name__ == "__main__":
    main()
