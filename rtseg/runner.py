"""From a config to a run: opens source, model, engine and sinks, runs the pipeline, closes all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rtseg import plugins
from rtseg.artifact import load_model
from rtseg.config import RunConfig, as_path, as_text
from rtseg.engine import OnProgress, open_engine, quiet
from rtseg.errors import ConfigError, RtsegError
from rtseg.overlay import Renderer
from rtseg.pipeline import REQUESTS, Pipeline, Progress
from rtseg.segmenter import Segmenter, round_up
from rtseg.sink import Sink
from rtseg.source import GpuSource, Source, SourceInfo, open_source
from rtseg.timing import RunReport


def run(
    source: str | Path | Source,
    *,
    sinks: Sequence[Sink] = (),
    model: str | Path = "street-m",
    engine: str = "auto",
    precision: str = "auto",
    size: tuple[int, int] | None = None,
    policy: str | None = None,
    effect: str = "overlay",
    opacity: float = 0.5,
    save: str | Path | None = None,
    masks: str | Path | None = None,
    jsonl: str | Path | None = None,
    show: bool = False,
    max_frames: int | None = None,
    classes_file: str | Path | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    measure_engine: bool = False,
) -> RunReport:
    """Segments a source into sinks and returns the report.

    Args:
        source: URI, as on the command line, or any object that fits `rtseg.source.Source`; closed
            by the run.
        sinks: any objects that fit `rtseg.sink.Sink`; closed by the run. One that raises
            `rtseg.sink.StopRequested` ends it.
        model, engine, precision, size, policy, effect, opacity, save, masks, jsonl, show,
            max_frames, classes_file, mean, std: see `rtseg.config.RunConfig`.
        measure_engine: time the engine alone after the run, for the report's `engine_fps`.

    Raises:
        RtsegError: one of its kinds, for anything the caller can mend; its `report` is of what was
            done until then.
    """
    own = source if isinstance(source, Source) else None
    config = RunConfig(
        as_text(source, "source") if own is None else own.info.name,
        model=as_text(model, "model"),
        engine=engine,
        precision=precision,
        size=size,
        policy=policy,
        effect=effect,
        opacity=opacity,
        save=as_path(save, "save"),
        masks=as_path(masks, "masks"),
        jsonl=None if jsonl is None else as_text(jsonl, "jsonl"),
        show=show,
        max_frames=max_frames,
        classes_file=as_path(classes_file, "classes_file"),
        mean=mean,
        std=std,
    )
    return run_config(config, source=own, sinks=sinks, measure_engine=measure_engine)


def run_config(
    config: RunConfig,
    *,
    source: Source | None = None,
    sinks: Sequence[Sink] = (),
    on_notice: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[Progress], None] | None = None,
    on_pipeline: Callable[[Pipeline], None] = lambda pipeline: None,
    on_build: OnProgress = quiet,
    measure_engine: bool = False,
    command: Sequence[str] = (),
) -> RunReport:
    """Opens what the config names, runs it, closes it.

    Args:
        source: in place of the config's; closed by the run.
        sinks: more sinks than the config's own; closed by the run.
        on_notice: gets lines that the user should see once.
        on_progress: called after each frame.
        on_pipeline: gets the pipeline before it starts, for `stop`.
        on_build: told how far an engine is that has to be built first.
        measure_engine: time the engine alone after the run, for the report.
        command: for the report.
    """
    with ExitStack() as cleanup:
        unused = cleanup.enter_context(ExitStack())  # closes what the pipeline did not come to own
        for sink in _checked(sinks):
            unused.callback(sink.close)
        source = open_source(config.source) if source is None else source
        cleanup.callback(source.close)
        file = load_model(
            config.model, classes_file=config.classes_file, mean=config.mean, std=config.std
        )
        contract = file.contract
        if config.size and round_up(config.size, contract.input_multiple) != config.size:
            height, width = round_up(config.size, contract.input_multiple)
            on_notice(
                f"--size rounded up to {height}x{width}: "
                f"{contract.name} takes multiples of {contract.input_multiple}"
            )
        policy = config.policy or ("latest" if source.info.live else "every")
        engine = open_engine(
            file,
            config.engine,
            config.precision,
            requests=REQUESTS[policy],
            on_progress=on_build,
        )
        segmenter = Segmenter(file, engine, size=config.size)
        cleanup.callback(segmenter.close)
        title = f"{contract.name} {engine.info.name} {engine.info.precision}"
        renderer = Renderer(contract.classes, config.effect, config.opacity, title=title)
        segmenter.warm_up(source.info.size_hw)
        if engine.info.takes_frames and isinstance(source, GpuSource):
            source.decode_on_gpu(engine.info.gpu)
        own = open_sinks(config, source.info)
        for sink in own:
            unused.callback(sink.close)
        if renderer.blending and any(sink.wants_picture for sink in [*own, *sinks]):
            segmenter.blend_with(*renderer.blending)
        pipeline = Pipeline(
            source,
            segmenter,
            renderer,
            [*own, *sinks],
            policy=policy,
            max_frames=config.max_frames,
            on_progress=on_progress,
        )
        on_pipeline(pipeline)
        unused.pop_all()
        try:
            pipeline.run()
        except RtsegError as error:
            error.report = pipeline.report(measure_engine=False, command=command)
            raise
        finally:
            for line in source.warnings:
                on_notice(line)
        return pipeline.report(measure_engine=measure_engine, command=command)


def _checked(sinks: Sequence[Sink]) -> Sequence[Sink]:
    """The sinks, if they are some; ConfigError says what is missing."""
    if not isinstance(sinks, Sequence):
        raise ConfigError(f"sinks: expected a list of them, got {type(sinks).__name__}")
    for sink in sinks:
        missing = [n for n in ("wants_picture", "write", "close") if not hasattr(sink, n)]
        if missing:
            raise ConfigError(
                f"sinks: {type(sink).__name__} has no {', '.join(missing)}: see rtseg.sink.Sink"
            )
    return sinks


def open_sinks(config: RunConfig, info: SourceInfo) -> list[Sink]:
    """The sinks that a config names; if one cannot be opened, those before it are closed."""
    targets = {
        "video": config.save,
        "masks": config.masks,
        "jsonl": config.jsonl,
        "window": "rtseg" if config.show else None,
    }
    with ExitStack() as cleanup:
        opened: list[Sink] = []
        for kind, target in targets.items():
            if target is not None:
                sink: Sink = plugins.load("rtseg.sink", kind).open(str(target), fps=info.fps)
                cleanup.callback(sink.close)
                opened.append(sink)
        cleanup.pop_all()
    return opened
