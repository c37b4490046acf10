"""The README's tables of measured figures, made from the records in benchmarks/results.

    python benchmarks/figures.py            print them
    python benchmarks/figures.py --write    put them into the README, between their marks

A test compares the two, so no figure in it is typed by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
Row = tuple[str, str, str]


def table(results: Path) -> str:
    """Markdown: what was measured, the figure, the command that measures it again."""
    main = _read(results, "pipeline")
    rows = [row for path in sorted(results.glob("eval*.json")) for row in _accuracy(path)]
    for name, rows_of in _RECORDS:
        if (results / f"{name}.json").exists():
            record = _read(results, name)
            elsewhere = "" if _machine(record) == _machine(main) else f", {_machine(record)}"
            rows += [(what + elsewhere, figure, how) for what, figure, how in rows_of(record)]
    intro = (
        f"On {_machine(main)}, shared with other work, where nothing else is "
        "said; ratios are of runs in turns. Records with versions and dates lie in "
        "[benchmarks/results](benchmarks/results)."
    )
    shown = (f"| {what} | {figure} | `{command}` |" for what, figure, command in rows)
    return _markdown(intro, "| what | figure | command |", shown)


def _markdown(intro: str, header: str, rows: Iterable[str]) -> str:
    """A paragraph and a table, whose header and rows have their bars already."""
    rule = "|" + "---|" * (header.count("|") - 1)
    return "\n".join([intro, "", header, rule, *rows])


def _read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text())


def _command(record: Any) -> str:
    return f"python benchmarks/{record['command']}".partition(" --json")[0]


def _machine(record: Any) -> str:
    """ "2 cores of an AMD EPYC (avx512_bf16)": the processor, and what it has for bf16."""
    device = record["device"]
    newest = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in device["flags"]]
    return f"{device['cores']} cores of an {device['cpu']} ({', '.join(newest[-1:]) or 'SSE2'})"


def _accuracy(path: Path) -> list[Row]:
    record = json.loads(path.read_text())
    command = " ".join(record["command"]).partition(" --json")[0]
    figure = f"{100 * record['miou']:.1f} % mIoU, {100 * record['pixel_accuracy']:.1f} % of pixels"
    height, width = record["size"]
    what = f"`{record['model']}` on CamVid {record['split']}, {record['frames']} images"
    return [
        (
            f"{what}, input {height}×{width}, {record['engine']} {record['precision']}",
            figure,
            command,
        )
    ]


def _pipeline(record: Any) -> list[Row]:
    rows = []
    source = "synthetic drive" if record["video"].startswith("synth") else "real street"
    for case, what in (("null", "masks"), ("save", "masks, overlay and H.264 file")):
        row = record["results"][case]
        height, width = row["source_size"]
        rows.append(
            (
                f"{source} {height}×{width} to {what}, end to end",
                f"{row['fps']:.0f} FPS: {row['of_engine']:.2f} of the engine alone, "
                f"{row['of_bound']:.2f} of what two cores allow",
                _command(record),
            )
        )
    return rows


def _live(record: Any) -> list[Row]:
    rows = []
    for row in record["results"]:
        height, width = row["source_size"]
        age, engine_ms = row["mask_age_ms"], row["engine_ms"]
        rows.append(
            (
                f"mask age, live H.264 {height}×{width} at {row['sent_fps']:g} FPS",
                f"p50 {age['p50']:.0f} ms, p99 {age['p99']:.0f} ms, {row['fps']:.0f} FPS of masks "
                f"(the engine alone: {engine_ms:.0f} ms a frame)",
                _command(record),
            )
        )
    return rows


def _speed(record: Any) -> list[Row]:
    rows = []
    for model, row in record["results"].items():
        height, width = row["source_size"]
        facts = [f"{row['params'] / 1e6:.1f} M parameters"]
        if says := row["measured"]:
            facts.insert(0, f"{100 * says['miou']:.1f} % mIoU on {says['data']} {says['split']}")
        rows.append(
            (
                f"`{model}` ({', '.join(facts)}), video {height}×{width} to masks, end to end",
                f"{row['fps']:.0f} FPS: {row['ratio']:.2f}× the engine alone of "
                f"`{record['reference']['name']}`, a plain ResNet-18 + FPN-128",
                _command(record),
            )
        )
    return rows


def _peers(record: Any) -> list[Row]:
    names = {
        "torch": "a plain PyTorch + OpenCV loop",
        "onnxruntime": "an ONNX Runtime + OpenCV loop",
        "model api": "OpenVINO Model API, asynchronous, full-size argmax by its own wrapper",
        "model api, argmax in graph": "the same, argmax put into the graph by hand",
        "model api, opencv tail": "the same, OpenCV running maximum put in by hand",
        "model api, coarse": "the same at its fastest: coarser masks, the argmax before enlarging",
    }
    rows = record["results"]["labels"]
    return [
        (
            f"masks by {what}",
            f"{rows[name]['fps']:.0f} FPS, "
            f"{100 * record['agreement'][name]:.1f} % of pixels alike: "
            f"rtseg is {rows[name]['ratio']:.2f}× as fast",
            _command(record),
        )
        for name, what in names.items()
        if name in rows
    ]


def _kernels(record: Any) -> list[Row]:
    cases = {case["case"]: case["rows"] for case in record["results"]}
    differing = sum(case.get("differing_pixels") or 0 for case in record["results"])
    rows = []
    for kind, what in (("network-like", "on logits like a network's"), ("noise", "on noise")):
        row = cases[f"upsample_argmax 19x128x256 to 1024x2048, {kind}"]
        rows.append(
            (
                f"upsampling and argmax, 19×128×256 to 1024×2048, {what}",
                f"{row['rtseg']['p50_ms']:.1f} ms, {differing} pixels differ: "
                f"{_times(row, 'torch interpolate + argmax')} PyTorch, "
                f"{_times(row, 'opencv resize + numpy argmax')} OpenCV + NumPy argmax, "
                f"{_times(row, 'opencv running maximum')} OpenCV with a running maximum",
                _command(record),
            )
        )
    for case, peers in (
        (
            "preprocess 540x960 to 384x480",
            {
                "opencv resize + numpy": "the NumPy expression",
                "opencv blobFromImageWithParams": "OpenCV's blobFromImageWithParams",
            },
        ),
        (
            "blend 540x960",
            {
                "numpy palette + opencv addWeighted": "the NumPy expression",
                "opencv applyColorMap + addWeighted": "OpenCV",
            },
        ),
        ("yuv420_to_bgr 540x960", {"opencv cvtColor": "OpenCV", "swscale": "swscale"}),
        ("to_yuv420 540x960", {"opencv cvtColor": "OpenCV", "swscale": "swscale"}),
    ):
        row = cases[case]
        ratios = ", ".join(f"{_times(row, peer)} {what}" for peer, what in peers.items())
        figure = f"{row['rtseg']['p50_ms']:.2f} ms: {ratios}"
        rows.append((case.replace("x", "×"), figure, _command(record)))
    return rows


def _times(rows: Any, peer: str) -> str:
    ratio = rows[peer]["p50_ms"] / rows["rtseg"]["p50_ms"]
    return f"{ratio:.0f}×" if ratio >= 20 else f"{ratio:.1f}×"


def _drive(record: Any) -> list[Row]:
    what = f"the procedural drive, {record['size'].replace('x', '×')}, one core"
    return [(what, f"{record['results']['fps']:.0f} frames per second", _command(record))]


def _memory(record: Any) -> list[Row]:
    names = {"null": "masks", "video": "overlay and file"}
    return [
        (
            f"memory over {row['frames']:,} frames, {names[row['sink']]}",
            f"{row['growth_mib']:.1f} MiB growth at {row['peak_mib']:.0f} MiB",
            _command(record),
        )
        for row in record["results"]
    ]


def _startup(record: Any) -> list[Row]:
    rows = record["results"]
    return [
        ("`rtseg --help`", f"{rows['help']['p50_ms'] / 1e3:.2f} s", _command(record)),
        (
            "from the shell to a finished video of one frame",
            f"{rows['first_overlay']['p50_ms'] / 1e3:.2f} s",
            _command(record),
        ),
    ]


_RECORDS: tuple[tuple[str, Callable[[Any], list[Row]]], ...] = (
    ("pipeline", _pipeline),
    ("pipeline-amx", _pipeline),
    ("pipeline-synth", _pipeline),
    ("pipeline-drive", _pipeline),
    ("live", _live),
    ("speed", _speed),
    ("peers", _peers),
    ("kernels", _kernels),
    ("drive", _drive),
    ("memory", _memory),
    ("startup", _startup),
)
"""By file, in the order of the table."""


def architecture(results: Path) -> str:
    """Markdown: what each part of SFNet-Lite costs."""
    record = _read(results, "ablation")
    intro = (
        f"`{record['model']}` at {record['size'].replace('x', '×')}, {record['engine']}, with "
        f"random weights, on {_machine(record)}; `{_command(record)}`:"
    )
    rows = (
        f"| {row['variant']} | {row['params'] / 1e6:.2f} M | {row['gmacs']:.2f} "
        f"| {row['relative']:.2f}× |"
        for row in record["results"]
    )
    return _markdown(intro, "| variant | parameters | GMACs | speed |", rows)


def int8(results: Path) -> str:
    """Markdown: what int8 costs in mIoU and gains in speed."""
    record = _read(results, "int8")
    calibration = record["calibration"]
    intro = (
        f"Calibrated on {calibration['frames']} frames of {calibration['split']}, measured on "
        f"{record['data']}, on {_machine(record)}; `CAMVID=CamVid {_command(record)}`:"
    )
    header = "| model | fp32 | int8 | pixels alike | layers kept | OpenVINO, int8 over bf16 |"
    rows = []
    for model, row in record["results"].items():
        full, small = (row["engines"][f"onnxruntime {kind}"] for kind in ("fp32", "int8"))
        rows.append(
            f"| `{model}` | {100 * full['miou']:.2f} % | {100 * small['miou']:.2f} % "
            f"| {100 * small['pixel_agreement']:.2f} % | {len(row['kept'])} of {row['layers']} "
            f"| {row['speed_up']:.2f}× |"
        )
    return _markdown(intro, header, rows)


def zoo(results: Path) -> str:
    """Markdown: the light networks of the zoo under the same recipe and budget."""
    record = _read(results, "zoo")
    intro = (
        f"Each from random weights for {record['steps']} steps of the same recipe, on CamVid train "
        f"and the drive, on {_machine(record)}; `CAMVID=CamVid {_command(record)}`:\n\n"
        "![mIoU over frames per second](benchmarks/results/zoo.png)"
    )
    header = (
        "| network | parameters | GMACs | mIoU, camvid val | FPS, 360×480 | engine | mostly in |"
    )
    rows = []
    for name, row in record["results"].items():
        most = list(row["operators"].items())[:2]
        operators = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in most)
        rows.append(
            f"| `{name}` | {row['params'] / 1e6:.2f} M | {row['gmacs']:.1f} "
            f"| {100 * row['miou']:.1f} % | {row['fps']:.0f} | {1e3 / row['engine_fps']:.1f} ms "
            f"| {operators} |"
        )
    return _markdown(intro, header, rows)


TABLES = {"figures": table, "architecture": architecture, "int8": int8, "zoo": zoo}
"""By the mark that they stand under in the README."""


def written(readme: str, results: Path) -> str:
    """The README with every table made anew."""
    for mark, make in TABLES.items():
        before, begin, rest = readme.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition(f"<!-- /{mark} -->")
        if not begin or not end:
            raise SystemExit(f"README.md has no <!-- {mark} --> ... <!-- /{mark} -->")
        readme = before + begin + make(results) + "\n" + end + after
    return readme


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into the README")
    if parser.parse_args().write:
        README.write_text(written(README.read_text(), RESULTS))
    else:
        print("\n\n".join(make(RESULTS) for make in TABLES.values()))


if __name__ == "__main__":
    main()
