"""The command line: flags only. Each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rtseg import cli_engines, cli_models
from rtseg.cli_models import Weights, need_torch, with_weights
from rtseg.config import RunConfig, StandIns, parse_size, parse_triple
from rtseg.errors import ConfigError, MissingDependencyError, RtsegError
from rtseg.json_output import Json, check_json, write_json
from rtseg.messages import forget_stdout, tell
from rtseg.signals import stop_asked, stop_on_signals

if TYPE_CHECKING:
    from rtseg.artifact import ModelFile
    from rtseg.terminal import RunDisplay
    from rtseg.timing import RunReport

app = typer.Typer(
    name="rtseg",
    help="Real-time video segmentation: a class for every pixel, every frame on time.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_UsageError: Any = typer.BadParameter.__mro__[1]  # click's, or that of typer's own copy of it

Model = Annotated[
    str, typer.Option(help="A shipped model's name, an .onnx file, or a network with --weights.")
]
Engine = Annotated[str, typer.Option(help="auto, openvino, onnxruntime, tensorrt or eager.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, fp16, bf16, int8 or fp8.")]
Size = Annotated[str, typer.Option(help="Input of the network, HEIGHTxWIDTH, or auto.")]
Classes = Annotated[
    Path | None, typer.Option("--classes", help="Class table of a model file without a contract.")
]
Mean = Annotated[str | None, typer.Option(help="R,G,B in 0..1, for a file without a contract.")]
Std = Annotated[str | None, typer.Option(help="R,G,B in 0..1, for a file without a contract.")]


@app.callback()
def _common(
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show tracebacks of errors.")
    ] = False,
) -> None:
    if verbose:
        os.environ["RTSEG_VERBOSE"] = "1"


@app.command()
def run(
    source: Annotated[
        str,
        typer.Option(
            help="camera, camera:N, /dev/videoN, csi:N (each may have ?width=W&height=H&fps=F), "
            "a video, a directory or glob of images, rtsp://, http(s)://, or synth:"
        ),
    ],
    model: Model = "street-m",
    weights: Weights = None,
    engine: Engine = "auto",
    precision: Precision = "auto",
    size: Size = "auto",
    policy: Annotated[
        str | None,
        typer.Option(help="latest drops the oldest waiting frame, every drops none."),
    ] = None,
    effect: Annotated[
        str,
        typer.Option(help="overlay, mask, contour, blur:CLASS[+CLASS] or side-by-side."),
    ] = "overlay",
    opacity: Annotated[float, typer.Option(help="Of the colours, 0 to 1.")] = 0.5,
    save: Annotated[Path | None, typer.Option(help="Write an H.264 video (.mp4).")] = None,
    masks: Annotated[Path | None, typer.Option(help="Write index PNGs to a directory.")] = None,
    jsonl: Annotated[str | None, typer.Option(help="Write a line per frame; - for stdout.")] = None,
    show: Annotated[bool, typer.Option(help="Open a window; q ends the run.")] = False,
    max_frames: Annotated[int | None, typer.Option(help="Stop after so many frames.")] = None,
    report: Annotated[
        str | None, typer.Option("--report", "--json", help="Write the run report; - for stdout.")
    ] = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Std = None,
) -> None:
    """Segment a camera, a video or images, live."""
    config = RunConfig(
        source,
        model=with_weights(model, weights, classes),
        engine=engine,
        precision=precision,
        size=parse_size(size),
        policy=policy,
        effect=effect,
        opacity=opacity,
        save=save,
        masks=masks,
        jsonl=jsonl,
        report=report,
        show=show,
        max_frames=max_frames,
        **_stand_ins(weights, classes, mean, std),
    )
    check_json(report)
    on_pipeline, stopped = stop_on_signals()
    from rtseg.runner import run_config
    from rtseg.terminal import RunDisplay

    try:
        with RunDisplay() as display:
            result = run_config(
                config,
                on_notice=display.notice,
                on_progress=display.progress,
                on_pipeline=on_pipeline,
                on_build=display.building,
                measure_engine=report is not None,
                command=_command(),
            )
    except RtsegError as error:
        if error.report is not None:  # hours may have passed before a camera was lost
            _tell(display, error.report, report)
        elif stopped():  # while a camera was waited for that did not come
            tell("rtseg: stopped before the first frame")
            return
        raise
    _tell(display, result, report)


def _tell(display: RunDisplay, result: RunReport, path: str | None) -> None:
    display.summary(result)
    if path is not None:
        write_json(result.to_dict(), path)


app.command()(cli_models.models)


@app.command(name="eval")
def evaluate(
    data: Annotated[str, typer.Option(help="NAME:DIR, such as camvid:CamVid, or synth:seed=1.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    model: Model = "street-m",
    weights: Weights = None,
    engine: Engine = "auto",
    precision: Precision = "auto",
    size: Size = "auto",
    flip: Annotated[bool, typer.Option("--flip", help="Look at the mirrored image too.")] = False,
    scales: Annotated[
        str, typer.Option(help="Look at several scales, such as 0.75,1.0,1.25.")
    ] = "1.0",
    window: Annotated[
        str | None,
        typer.Option(help="Slide a window, HEIGHTxWIDTH, over the image at its own scale."),
    ] = None,
    boundary: Annotated[
        bool, typer.Option("--boundary/--no-boundary", help="Score the contours, boundary F1.")
    ] = True,
    confusion: Annotated[
        list[Path] | None,
        typer.Option(help="Write the confusion matrix, .png or .csv; may be repeated."),
    ] = None,
    worst: Annotated[
        tuple[int, Path] | None,
        typer.Option(metavar="N DIR", help="Draw the N images of the lowest mIoU into DIR."),
    ] = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Std = None,
    json_path: Json = None,
) -> None:
    """Measure mIoU, accuracy and boundary F1 against the labels of a data set."""
    check_json(json_path)
    from rtseg.data import open_data
    from rtseg.evaluate import evaluate as evaluate_model
    from rtseg.evaluation_report import EvaluationReport
    from rtseg.terminal import Bar, evaluation_table
    from rtseg.tta import Augmentation, open_segmenter

    hw = parse_size(size)
    augmentation = Augmentation.parse(flip, scales, window, size)
    report = EvaluationReport(tuple(confusion or ()), worst)
    samples = open_data(data, split)
    file = _model_file(model, weights, classes, mean, std)
    segmenter = open_segmenter(file, engine, precision, hw, augmentation)
    try:
        report.prepare()
        with Bar("eval") as bar:
            evaluation = evaluate_model(
                segmenter, samples, boundary=boundary, on_progress=bar.update
            )
        report.write(evaluation, segmenter, samples)
        result = evaluation.to_dict(segmenter, samples, _command())
    finally:
        segmenter.close()
    if json_path is not None:
        write_json(result, json_path)
    if json_path != "-":
        evaluation_table(result)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A training recipe, TOML.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory of checkpoints and log [runs/NAME].")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue from the directory's last.pt.")] = True,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out samples that cannot be read.")
    ] = False,
) -> None:
    """Train a network by a recipe: checkpoints, a log, an ONNX file and a model card.

    Several processes: torchrun --nproc-per-node N -m rtseg.cli train RECIPE
    """
    from rtseg.recipe import read_recipe

    plan = read_recipe(recipe)
    need_torch("training")
    from rtseg.export import export_checkpoint
    from rtseg.model_card import model_card
    from rtseg.terminal import Bar
    from rtseg.train import train as train_network

    directory = out or Path("runs") / plan.name
    stopped = stop_asked()
    with Bar("steps") as bar:
        best = train_network(
            plan,
            directory,
            resume=resume,
            skip_bad=skip_bad,
            progress=bar.print,
            on_step=bar.update,
            stopped=stopped,
        )
    if stopped():
        raise typer.Exit(130)
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun, the first one exports
        return
    path = directory / f"{plan.name}.onnx"
    error = export_checkpoint(plan, best, path)
    card = path.with_suffix(".md")
    card.write_text(model_card(path, recipe, directory / "log.jsonl"))
    _say(f"wrote {path} (relative error against PyTorch {error:.1e}) and {card}")


app.command()(cli_models.export)
app.command(name="import")(cli_models.import_)
app.command()(cli_engines.build)
app.command()(cli_engines.inspect)


@app.command()
def bench(
    data: Annotated[
        str, typer.Option(help="Labelled frames to run on, NAME:DIR.")
    ] = "synth:seed=5,frames=64",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    model: Model = "street-m",
    weights: Weights = None,
    engine: Engine = "auto",
    precision: Precision = "auto",
    size: Size = "auto",
    frames: Annotated[int, typer.Option(help="Frames to run through the pipeline.")] = 300,
    classes: Classes = None,
    mean: Mean = None,
    std: Std = None,
    json_path: Json = None,
) -> None:
    """Measure frames per second against mIoU."""
    if frames < 10:
        raise ConfigError(f"--frames must be at least 10, got {frames}")
    check_json(json_path)
    from rtseg.bench import bench_row, results
    from rtseg.data import open_data
    from rtseg.terminal import Bar, bench_table

    hw = parse_size(size)
    samples = open_data(data, split)
    file = _model_file(model, weights, classes, mean, std)
    with Bar("bench") as bar:
        row = bench_row(
            file,
            samples,
            engine=engine,
            precision=precision,
            size=hw,
            frames=frames,
            on_progress=bar.update,
        )
    record = results([row], samples, _command())
    if json_path is not None:
        write_json(record, json_path)
    if row["error"]:
        raise ConfigError(row["error"])
    if json_path != "-":
        bench_table(record)


@app.command()
def doctor(json_path: Json = None) -> None:
    """Show what this machine has, and what to do about what is missing."""
    from rtseg.doctor import examine
    from rtseg.terminal import doctor_table

    findings = examine()
    if json_path is not None:
        write_json([f.to_dict() for f in findings], json_path)
    if json_path != "-":
        doctor_table(findings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a command and exits with its code (see `rtseg.errors`)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # errors are told once, by us
    if {"-v", "--verbose"} & set(given[1:]):  # wherever it stands: people put it last
        given = ["--verbose", *(word for word in given if word not in ("-v", "--verbose"))]
    try:
        sys.exit(app(given or ["--help"], standalone_mode=False))
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "rtseg"
        _fail(ConfigError(f"{_one_line(error.format_message())}: see {command} --help"), 2)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except SystemExit as stop:
        # The reader of our output went away (`rtseg --help | head`): nothing is wrong here.
        gone = stop.code == 1 and type(sys.stdout).__name__ == "PacifyFlushWrapper"
        sys.exit(0 if gone else stop.code)
    except RtsegError as error:
        _fail(error, error.exit_code)
    except ImportError as error:
        if ".so" not in str(error):
            raise
        desktop = "libg" in str(error).lower()  # libGL, libgthread: what OpenCV links to
        hint = "apt install libgl1 libglib2.0-0" if desktop else "reinstall rtseg"
        _fail(MissingDependencyError(f"a library cannot be loaded ({error}): {hint}"), 2)
    except BrokenPipeError:
        forget_stdout()
        sys.exit(0)


def _model_file(
    model: str, weights: Path | None, classes: Path | None, mean: str | None, std: str | None
) -> ModelFile:
    from rtseg.artifact import load_model

    name = with_weights(model, weights, classes)
    return load_model(name, **_stand_ins(weights, classes, mean, std))


def _stand_ins(
    weights: Path | None, classes: Path | None, mean: str | None, std: str | None
) -> StandIns:
    """What stands in for a missing contract; weights that are exported first get one with it."""
    return {
        "classes_file": None if weights else classes,
        "mean": None if mean is None else parse_triple(mean, "--mean"),
        "std": None if std is None else parse_triple(std, "--std"),
    }


def _one_line(message: str) -> str:
    return " ".join(message.split()).rstrip(".")


def _fail(error: RtsegError, code: int) -> None:
    if os.environ.get("RTSEG_VERBOSE"):
        tell(traceback.format_exc().rstrip())
    tell(f"rtseg: {error}")
    sys.exit(code)


def _command() -> list[str]:
    """How this process was called, without the directory it is installed in."""
    return ["rtseg", *sys.argv[1:]]


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
