"""The shipped models in int8: what they lose against float32, and what they gain on a CPU.

    CAMVID=DIR python benchmarks/int8.py --json benchmarks/results/int8.json

Each model is quantised on frames of the training split, where the gate of `rtseg.quantise` decides
which layers stay in high precision. The validation split, of which quantisation has seen nothing,
is then labelled by the float32 file and by the int8 file in ONNX Runtime, and by the int8 file and
the float32 file in OpenVINO at the precision it chooses for that (bf16 where the CPU has it). The
last two are also timed, engine alone, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _record import compare, write_record

from rtseg.artifact import load_model, shipped
from rtseg.calibration import METHODS, read_frames
from rtseg.data import DataSet, open_data
from rtseg.engine import open_engine
from rtseg.evaluate import label_table
from rtseg.metrics import Confusion
from rtseg.precision import full_precision
from rtseg.quantise import Quantisation, measure_ranges, quantise, rank_layers
from rtseg.segmenter import Segmenter

MOST_LOST = 0.005
"""mIoU, as a fraction: the project's bound."""
REFERENCE = "onnxruntime fp32"
Row = dict[str, Any]


def quantised_file(model: str, path: Path, args: argparse.Namespace) -> Quantisation:
    """Writes the int8 file of a model; what `rtseg.quantise` did."""
    file = load_model(model)
    frames = read_frames(args.data, file.contract.classes, count=args.frames)
    proto, done = quantise(
        onnx.load(str(file.path)), frames, method=args.method, for_cpu=True, on_progress=print
    )
    onnx.save(proto, str(path))
    return done


def costs(model: str, args: argparse.Namespace) -> list[Row]:
    """What quantising each layer alone costs, the most sensitive first."""
    file = load_model(model)
    proto = full_precision(onnx.load(str(file.path)))
    frames = read_frames(args.data, file.contract.classes, count=args.frames)
    ranges = measure_ranges(proto, frames.images, method=args.method)
    ranked = rank_layers(proto, ranges, frames.take(4).images)
    return [
        {key: value if isinstance(value, str) else round(value, 6) for key, value in row.items()}
        for row in map(asdict, ranked)
    ]


def label(segmenters: dict[str, Segmenter], data: DataSet, limit: int | None) -> dict[str, Row]:
    """{name: {miou, pixel_agreement}} over the data set; agreement is with the first."""
    classes = next(iter(segmenters.values())).model.contract.classes
    translate = label_table(data, classes)
    confusion = {name: Confusion(len(classes)) for name in segmenters}
    same = dict.fromkeys(segmenters, 0)
    total = 0
    for sample in data.samples[:limit]:
        image, truth = sample.load()
        first = None
        for name, segmenter in segmenters.items():
            labels = segmenter(image).labels
            first = labels if first is None else first
            same[name] += int(np.count_nonzero(labels == first))
            confusion[name].add(translate[truth], labels)
        total += truth.size
    return {
        name: {
            "miou": round(confusion[name].mean_iou(), 5),
            "pixel_agreement": round(same[name] / total, 6),
        }
        for name in segmenters
    }


def measure(model: str, args: argparse.Namespace, data: DataSet, directory: Path) -> Row:
    """One model: quantised, evaluated, timed."""
    file = load_model(model)
    path = directory / f"{file.contract.name}-int8.onnx"
    done = quantised_file(model, path, args)
    int8 = load_model(str(path))
    with contextlib.ExitStack() as stack:
        segmenters = {}
        for which, engine, precision in (
            (file, "onnxruntime", "fp32"),
            (int8, "onnxruntime", "int8"),
            (file, "openvino", "auto"),
            (int8, "openvino", "int8"),
        ):
            opened = open_engine(which, engine, precision)
            segmenter = Segmenter(which, opened)
            stack.callback(segmenter.close)
            segmenters[f"{engine} {opened.info.precision}"] = segmenter
        scores = label(segmenters, data, args.val_frames)
        engines = {n: s for n, s in segmenters.items() if n.startswith("openvino")}
        height, width = next(iter(engines.values())).input_hw or file.contract.input_hw
        images = np.random.default_rng(0).standard_normal((1, 3, height, width), np.float32)
        times = compare(
            {name: partial(s.engine.infer, images) for name, s in engines.items()},
            args.seconds,
        )
    for name, timing in times.items():
        scores[name] |= {"engine_fps": round(1e3 / timing["p50_ms"], 2), **timing}
    lost = scores[REFERENCE]["miou"] - scores["onnxruntime int8"]["miou"]
    slower, faster = (scores[name]["p50_ms"] for name in engines)
    return {
        "layers": done.layers,
        "kept": list(done.kept),
        "calibration": done.calibration,
        "miou_lost": round(lost, 5),
        "speed_up": round(slower / faster, 3),
        "bytes": {"fp32": file.path.stat().st_size, "int8": path.stat().st_size},
        "input_size": [height, width],
        "engines": scores,
        "costs": costs(model, args)[: args.costs] if args.costs else [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="shipped name or .onnx file, as often as you like (default: all shipped models)",
    )
    parser.add_argument("--data", default="camvid:$CAMVID", help="(default: camvid:$CAMVID)")
    parser.add_argument("--frames", type=int, default=32, help="to calibrate on (default: 32)")
    parser.add_argument("--method", default="percentile", choices=METHODS)
    parser.add_argument("--val-frames", type=int, help="of the validation split (default: all)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing, per model")
    parser.add_argument("--costs", type=int, default=5, help="sensitive layers to list")
    parser.add_argument("--keep", metavar="DIR", help="where to leave the int8 files")
    args = parser.parse_args()
    spec, args.data = args.data, os.path.expandvars(args.data)
    data = open_data(args.data, "val")

    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(args.keep or temporary)
        directory.mkdir(parents=True, exist_ok=True)
        rows = {Path(m).stem: measure(m, args, data, directory) for m in args.model or shipped()}

    print(f"\n{data.name} {data.split}, mIoU in per cent; kept: layers in high precision")
    print("model         fp32    int8   lost   alike   kept   OpenVINO FPS: int8   otherwise")
    for model, row in rows.items():
        engines = row["engines"]
        plain, int8 = engines[REFERENCE], engines["onnxruntime int8"]
        (other, slow), (_, fast) = (i for i in engines.items() if i[0].startswith("openvino"))
        print(
            f"{model:12}{100 * plain['miou']:6.2f}  {100 * int8['miou']:6.2f}  "
            f"{100 * row['miou_lost']:5.2f}  {100 * int8['pixel_agreement']:6.2f}  "
            f"{len(row['kept']):2}/{row['layers']}   {fast['engine_fps']:18.1f}   "
            f"{slow['engine_fps']:.1f} ({other.split()[-1]}), x{row['speed_up']:.2f}"
        )
    write_record(
        args.json,
        "int8",
        rows,
        data=f"{spec.partition(':')[0]} val",
        calibration={"split": "train", "frames": args.frames, "method": args.method},
    )
    failed = [model for model, row in rows.items() if row["miou_lost"] > MOST_LOST]
    if failed:
        raise SystemExit(f"more than {100 * MOST_LOST:g} mIoU points lost: {', '.join(failed)}")


if __name__ == "__main__":
    main()
