"""The light networks of the zoo under the same conditions: one recipe, one budget, one machine.

    CAMVID=CamVid python benchmarks/zoo.py --runs runs/zoo --json benchmarks/results/zoo.json

Each network is trained from random weights by the recipe below, in which one line differs: its
name. CamVid train and the procedural drive, the same crops in the same order, the same number of
steps; what a network would reach with ten times the steps is another question. Then its best
checkpoint is exported and measured by OpenVINO: mIoU on CamVid val, frames per second of the whole
pipeline (file source, null sink) and of the engine alone, the networks taking turns, and which
operator its engine spends most time in. The shipped networks are among them, from random weights
like the others: it is their architecture that is compared. What is done lies in the directory of
`--runs`, so that a run that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _record import write_record
from _runs import open_clip, open_segmenter, open_sink, run_clip
from speed import in_child

from rtseg.artifact import WEIGHTS_DIRECTORY
from rtseg.models import Variant
from rtseg.models._catalogue import measure, names, table
from rtseg.recipe import DataRecipe, ModelRecipe, OptimiserRecipe, Recipe, read_recipe

LIGHT_GMACS = 120.0
"""Networks above are left out, at 1024x2048 with 19 classes: hours on a CPU for one row."""
SEED = 5
SHIPPED = tuple(sorted(path.stem for path in WEIGHTS_DIRECTORY.glob("*.toml")))
Row = dict[str, Any]


def recipe(network: str, camvid: str, steps: int) -> Recipe:
    """The same for all but for its second line."""
    return Recipe(
        network,
        model(network),
        DataRecipe(
            (f"camvid:{camvid}", "synth:seed=1,frames=400"),
            f"camvid:{camvid}",
            share=(0.8, 0.2),
            crop_hw=(256, 320),
            scale=(0.6, 1.6),
        ),
        OptimiserRecipe(
            steps,
            learning_rate=1.5e-3,
            warmup_steps=max(1, steps // 10),
            ema_decay=0.99,
            validate_every=steps,
        ),
        seed=SEED,
    )


def model(network: str) -> ModelRecipe:
    """A network of the zoo, or the architecture of a shipped one."""
    if network in SHIPPED:
        return read_recipe(WEIGHTS_DIRECTORY / f"{network}.toml").model
    return ModelRecipe(network=network)


def facts(network: str) -> Row:
    """{family, params, gmacs} at 1024x2048 with 19 classes."""
    row = next((row for row in table() if row["name"] == network), None)
    if row is None:
        own = model(network)
        row = measure(own.family, network, Variant(own.options))
    return {key: row[key] for key in ("family", "params", "gmacs")}


def light_networks() -> list[str]:
    """The first network of each family and the shipped ones, those that are light."""
    first: dict[str, str] = {}
    for row in table():
        first.setdefault(row["family"], row["name"])
    return [n for n in (*first.values(), *SHIPPED) if facts(n)["gmacs"] <= LIGHT_GMACS]


def train_one(network: str, camvid: str, steps: int, directory: Path) -> Row:
    """Trains and exports a network; {train_minutes, miou of the average weights}."""
    from rtseg.export import export_checkpoint
    from rtseg.train import train

    began = time.monotonic()
    plan = recipe(network, camvid, steps)
    best = train(plan, directory, progress=print)
    export_checkpoint(plan, best, directory / f"{network}.onnx")
    return {"train_minutes": round((time.monotonic() - began) / 60, 1)}


def score(path: Path, camvid: str) -> float:
    """mIoU on CamVid val, as `rtseg eval` gives it."""
    from rtseg.data import open_data
    from rtseg.evaluate import evaluate

    with contextlib.closing(open_segmenter(str(path))) as segmenter:
        found = evaluate(segmenter, open_data(f"camvid:{camvid}", "val"))
    return round(float(found.confusion.mean_iou()), 4)


def operators(path: Path, hw: tuple[int, int]) -> dict[str, float]:
    """Share of the engine's time by operator, the largest three, by OpenVINO's own profile."""
    import numpy as np
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape([1, 3, *hw])
    compiled = core.compile_model(model, "CPU", {"PERF_COUNT": "YES"})
    request = compiled.create_infer_request()
    images = np.zeros((1, 3, *hw), np.float32)
    spent: dict[str, float] = {}
    for turn in range(12):
        request.infer([images])
        if turn >= 2:
            for node in request.profiling_info:
                seconds = node.real_time.total_seconds()
                spent[node.node_type] = spent.get(node.node_type, 0.0) + seconds
    whole = sum(spent.values())
    most = sorted(spent.items(), key=lambda item: -item[1])[:3]
    return {kind: round(seconds / whole, 3) for kind, seconds in most}


def pace(models: dict[str, Path], args: argparse.Namespace) -> dict[str, Row]:
    """{fps, engine_fps, input_size} of each, medians over rounds in which all take their turn."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    sizes: dict[str, Any] = {}
    with (
        contextlib.ExitStack() as cleanup,
        open_clip(None, "360x480", args.frames) as (video, _),
    ):
        ready = {name: open_segmenter(str(path)) for name, path in models.items()}
        for segmenter in ready.values():
            cleanup.callback(segmenter.close)
            run_clip(video, segmenter, [open_sink("null")], 8)
        for _ in range(args.rounds):
            for name, segmenter in ready.items():
                report = run_clip(video, segmenter, [open_sink("null")], args.frames).report(
                    measure_engine=False
                )
                seen[name].append((report.fps or 0.0, segmenter.engine_fps(1.0) or 0.0))
                sizes[name] = report.input_size
    return {
        name: {
            "fps": round(statistics.median(fps for fps, _ in rounds), 2),
            "engine_fps": round(statistics.median(engine for _, engine in rounds), 2),
            "input_size": sizes[name],
        }
        for name, rounds in seen.items()
    }


def plot(rows: dict[str, Row], path: Path) -> None:
    """mIoU over frames per second, a point per network."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), dpi=120)
    for name, row in rows.items():
        color = "#d1242f" if name in SHIPPED else "#1f6feb"
        area = 18 + 6 * row["params"] / 1e6
        axes.scatter(row["fps"], 100 * row["miou"], s=area, color=color, alpha=0.75, lw=0)
    axes.set_xscale("log")
    ticks = [t for t in (10, 20, 30, 50, 70, 100, 150, 200, 300, 400) if _within(t, rows)]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("frames per second, 360x480 video to masks, end to end (log scale)")
    axes.set_ylabel("mIoU on CamVid val, percent")
    axes.set_title(
        "The same recipe and budget for every network (area: parameters, red: shipped)", fontsize=10
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _label(axes, {name: (row["fps"], 100 * row["miou"]) for name, row in rows.items()})
    figure.savefig(path)


def _label(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Writes each name beside its point, where it covers neither a point nor another name."""
    from matplotlib.transforms import Bbox

    axes.figure.canvas.draw()
    centres = [axes.transData.transform(point) for point in points.values()]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in centres]
    sides = [(7, 3, "left"), (7, -9, "left"), (-7, 3, "right"), (-7, -9, "right"), (0, 9, "center"),
             (0, -16, "center"), (0, 18, "center"), (0, -25, "center")]  # fmt: skip
    for name, point in points.items():
        for x, y, side in sides:
            text = axes.annotate(
                name, point, xytext=(x, y), textcoords="offset points", fontsize=7.5, ha=side
            )
            box = text.get_window_extent()
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            if (x, y, side) != sides[-1]:
                text.remove()
        taken.append(box)


def _within(tick: float, rows: dict[str, Row]) -> bool:
    paces: list[float] = [row["fps"] for row in rows.values()]
    return 0.8 * min(paces) <= tick <= 1.25 * max(paces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--camvid", default="$CAMVID", metavar="DIR")
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"), metavar="DIR")
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="(default: the light ones)")
    parser.add_argument("--steps", type=int, default=300, help="of training (default: 300)")
    parser.add_argument("--frames", type=int, default=100, help="per run (default: 100)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="PATH", help="also write the record to this file")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw mIoU over FPS")
    args = parser.parse_args()
    wanted = args.networks or light_networks()
    unknown = sorted(set(wanted) - {*names(), *SHIPPED})
    if unknown:
        parser.error(f"no such network: {', '.join(unknown)}")

    rows: dict[str, Row] = {}
    models: dict[str, Path] = {}
    for name in wanted:
        directory = args.runs / name
        done = directory / "result.json"
        if not done.is_file():
            print(f"{name}: {args.steps} steps", flush=True)
            trained = in_child(train_one, name, args.camvid, args.steps, directory)
            path = directory / f"{name}.onnx"
            miou = in_child(score, path, args.camvid)
            done.write_text(json.dumps({**trained, "miou": miou, "steps": args.steps}))
        rows[name] = facts(name) | json.loads(done.read_text())
        models[name] = directory / f"{name}.onnx"
    for name, row in in_child(pace, models, args).items():
        rows[name] |= row
        rows[name]["operators"] = in_child(operators, models[name], tuple(row["input_size"]))
    rows = dict(sorted(rows.items(), key=lambda item: -item[1]["miou"]))

    print("network                params   GMACs   mIoU    FPS  engine  ms   most time in")
    for name, row in rows.items():
        kind, share = next(iter(row["operators"].items()))
        print(
            f"{name:20} {row['params'] / 1e6:6.2f} M {row['gmacs']:7.1f} {100 * row['miou']:6.1f}"
            f" {row['fps']:6.1f} {1e3 / row['engine_fps']:9.1f}   {kind} {100 * share:.0f} %"
        )
    if args.plot:
        plot(rows, args.plot)
    write_record(args.json, "zoo", rows, steps=args.steps, seed=SEED, gmacs_size=[1024, 2048])


if __name__ == "__main__":
    main()
