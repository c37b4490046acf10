"""The shipped models end to end, over a plain network's engine alone: the reference, `fpn-r18`.

    python benchmarks/speed.py --json benchmarks/results/speed.json

The reference is a plain ResNet-18 + FPN-128 (`rtseg.models.fpn`) with random weights: there is no
trained file, and speed needs none. It has no pipeline around it, only inferences back to back, as
many at once as in the pipeline; same engine, same precision, same input size, same run. Each
model's pipeline (file source, null sink), its engine alone and the reference's take turns, and a
round's ratio is against the reference before and after it. mIoU is what the model file says of
itself; nothing is evaluated here.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from _record import write_record
from _runs import open_clip, open_segmenter, open_sink, run_clip

from rtseg.artifact import Contract, load_model, shipped
from rtseg.segmenter import Segmenter

if TYPE_CHECKING:
    from torch import nn

REFERENCE = "fpn-r18"
SEED = 0
Row = dict[str, Any]
T = TypeVar("T")


def export_untrained(network: nn.Module, contract: Contract, path: Path) -> Row:
    """Exports a network as it is, under a contract; {params, gmacs} of what is in the file."""
    from rtseg.export import export_onnx, gmacs
    from rtseg.models._catalogue import parameters

    facts = {
        "params": parameters(network),
        "gmacs": round(gmacs(network, contract.input_hw), 2),
    }
    export_onnx(network, replace(contract, measured={}, trained_on="", facts=facts), path)
    return facts


def export_reference(like: Contract, path: Path) -> Row:
    """Exports `fpn-r18` with the classes and the input of another model."""
    import torch

    from rtseg.models import fpn

    torch.manual_seed(SEED)
    network = fpn.build(len(like.classes))
    contract = replace(
        like,
        name=REFERENCE,
        family="fpn",
        options={},
        input_multiple=network.input_multiple,
        output_stride=network.output_stride,
        align_corners=network.align_corners,
    )
    return export_untrained(network, contract, path)


def in_child(function: Callable[..., T], *arguments: object) -> T:
    """Calls a function in a process of its own, so that no thread of PyTorch is left in this one.

    The threads of an export beside those of an engine spoil timings, and have been seen to hang.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure(
    video: Path,
    segmenter: Segmenter,
    reference: Segmenter,
    *,
    frames: int,
    rounds: int,
    engine_seconds: float,
) -> Row:
    """Runs, the engine alone and the reference in turns; medians over the rounds, and each round.

    Both segmenters must be warm.
    """
    before = reference.engine_fps(engine_seconds) or 0.0
    rows: list[dict[str, float]] = []
    for _ in range(rounds):
        pipeline = run_clip(video, segmenter, [open_sink("null")], frames)
        report = pipeline.report(measure_engine=False)
        engine = segmenter.engine_fps(engine_seconds) or 0.0
        after = reference.engine_fps(engine_seconds) or 0.0
        plain = 2 / (1 / before + 1 / after)
        before = after
        fps = report.fps or 0.0
        rows.append(
            {
                "fps": fps,
                "engine_fps": engine,
                "reference_fps": plain,
                "ratio": fps / plain,
                "engine_ratio": engine / plain,
            }
        )
    return {
        **{key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0]},
        "frames": report.frames_out,
        "input_size": report.input_size,
        "source_size": report.source_size,
        "engine": f"{report.engine} {report.precision}",
        "requests": segmenter.engine.info.requests,
        "rounds": [{key: round(value, 4) for key, value in row.items()} for row in rows],
    }


def measure_model(video: Path, model: str, reference: Path, args: argparse.Namespace) -> Row:
    """`measure` for a model's name or file, with what its file says of the network."""
    with contextlib.ExitStack() as cleanup:
        ours = open_segmenter(model, args.engine, args.precision)
        cleanup.callback(ours.close)
        run_clip(video, ours, [open_sink("null")], args.frames)
        assert ours.input_hw is not None
        plain = open_segmenter(
            str(reference), args.engine, args.precision, "x".join(map(str, ours.input_hw))
        )
        cleanup.callback(plain.close)
        run_clip(video, plain, [open_sink("null")], 4)
        seen = [(s.input_hw, s.engine.info) for s in (ours, plain)]
        if seen[0] != seen[1]:
            raise RuntimeError(f"{model}: not the reference's input or engine: {seen}")
        row = measure(
            video,
            ours,
            plain,
            frames=args.frames,
            rounds=args.rounds,
            engine_seconds=args.engine_seconds,
        )
        contract = ours.model.contract
    facts = {key: contract.facts.get(key) for key in ("params", "gmacs")}
    return {**facts, "measured": dict(contract.measured), **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument("--video", metavar="FILE", help="a video; else one is made from synth:")
    parser.add_argument("--clip", default="360x480", metavar="HxW", help="size of a made video")
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="shipped name or .onnx file, as often as you like (default: all shipped models)",
    )
    parser.add_argument("--frames", type=int, default=200, help="per run (default: 200)")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--engine-seconds", type=float, default=1.5, help="alone, per round")
    args = parser.parse_args()
    models = args.model or shipped()

    with (
        tempfile.TemporaryDirectory() as directory,
        open_clip(args.video, args.clip, args.frames) as (video, name),
    ):
        path = Path(directory) / f"{REFERENCE}.onnx"
        reference = in_child(export_reference, load_model(models[0]).contract, path)
        rows = [(Path(m).stem, measure_model(video, m, path, args)) for m in models]
    results = dict(rows)

    print(
        f"{name}: frames per second, medians of {args.rounds} alternating rounds; the reference, "
        f"{REFERENCE}, has {reference['params'] / 1e6:.1f} M parameters and "
        f"{reference['gmacs']:.1f} GMACs\n"
    )
    print("model          params   GMACs    mIoU*  pipeline   engine   reference   ratio")
    for model, row in results.items():
        miou = row["measured"].get("miou")
        print(
            f"{model:12} {_number(row['params'], 1e-6):>6} M {_number(row['gmacs']):>7} "
            f"{_number(miou, 100):>7} {row['fps']:10.1f} {row['engine_fps']:8.1f} "
            f"{row['reference_fps']:11.1f} {row['ratio']:7.2f}"
        )
    print("\n* as the model file says: " + "; ".join(_measured(*item) for item in results.items()))
    write_record(
        args.json,
        "speed",
        results,
        video=name,
        reference={"name": REFERENCE, "weights": "random", "seed": SEED, **reference},
    )


def _number(value: float | None, scale: float = 1.0) -> str:
    return "-" if value is None else f"{scale * value:.1f}"


def _measured(model: str, row: Row) -> str:
    says = row["measured"]
    where = " ".join(str(says[key]) for key in ("data", "split", "size") if key in says)
    return f"{model} on {where}" if where else f"{model} nothing"


if __name__ == "__main__":
    main()
