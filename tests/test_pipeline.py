"""The pipeline with sources, engines and sinks that know nothing of rtseg but its protocols.

Nothing here waits for a time to pass: the fakes wait for each other.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from rtseg import pipeline as pipeline_module
from rtseg.artifact import Contract, ModelFile
from rtseg.engine import EngineInfo
from rtseg.errors import ConfigError, EngineError, SinkError, SourceError, StreamLostError
from rtseg.frame import ClassTable, Frame, ImageBGR, LabelMap, Labels
from rtseg.overlay import Renderer
from rtseg.pipeline import Pipeline, Progress
from rtseg.segmenter import Segmenter
from rtseg.sink import StopRequested
from rtseg.source import SourceInfo

Limited = Callable[[Callable[[], Any]], Any]

SIZE = (8, 12)
TABLE = ClassTable(("road", "car", "sky"), ((128, 64, 128), (64, 0, 128), (128, 128, 128)))
STEP = 60
"""Class i is painted as grey 60 i, which `PaintEngine` reads back."""


def truth_of(index: int) -> Labels:
    """(H, W) uint8 labels of frame `index`: different in every frame."""
    return np.random.default_rng(index).integers(0, len(TABLE), SIZE, np.uint8)


def frame_of(index: int, labels: Labels | None = None, age: float = 0.0) -> Frame:
    grey = (labels if labels is not None else truth_of(index)) * STEP
    image = np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)
    return Frame(image, index, index / 25.0, time.monotonic() - age, labels)


class ListSource:
    """Gives frames made before; may raise, wait or tell others on its way."""

    def __init__(
        self,
        frames: Sequence[Frame],
        *,
        error: BaseException | None = None,
        classes: ClassTable | None = None,
        before: Callable[[int], object] = lambda number: None,
        live: bool = False,
    ) -> None:
        self.info = SourceInfo("list", live, SIZE, 25.0, len(frames), classes)
        self.warnings = ["a line for the user"]
        self.closed = 0
        self._frames, self._error, self._before = frames, error, before

    def __iter__(self) -> Iterator[Frame]:
        for number, frame in enumerate(self._frames):
            self._before(number)
            yield frame
        self._before(len(self._frames))
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self.closed += 1


class EndlessSource(ListSource):
    """New frames as fast as they are taken, until closed."""

    def __init__(self) -> None:
        super().__init__([])

    def __iter__(self) -> Iterator[Frame]:
        for index in itertools.count():
            if self.closed:
                return
            yield frame_of(index)


class PaintEngine:
    """Logits that say what is painted; may raise or wait at a given call."""

    info = EngineInfo("paint", "test", "fp32", "1.0")

    def __init__(self, before: Callable[[int], object] = lambda call: None) -> None:
        self.calls = 0
        self.closed = 0
        self._before = before

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self._before(self.calls)
        self.calls += 1
        grey = images[:, :1] * 255.0
        classes = STEP * np.arange(len(TABLE), dtype=np.float32)[None, :, None, None]
        logits: NDArray[np.float32] = -np.abs(grey - classes)
        return logits

    def close(self) -> None:
        self.closed += 1


class ListSink:
    """Keeps what it gets; may raise at a given frame, or on closing."""

    def __init__(
        self,
        *,
        wants_picture: bool = False,
        fail_at: int | None = None,
        error: Exception | None = None,
        close_error: Exception | None = None,
    ) -> None:
        self.wants_picture = wants_picture
        self.got: list[int] = []
        self.labels: list[Labels] = []
        self.pictures: list[ImageBGR | None] = []
        self.closed = 0
        self._fail_at, self._error, self._close_error = fail_at, error, close_error

    def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        assert not self.closed
        assert result.pts_seconds == frame.pts_seconds
        assert result.captured_at == frame.captured_at
        if self._error is not None and len(self.got) == self._fail_at:
            raise self._error
        self.got.append(frame.index)
        self.labels.append(result.labels)
        self.pictures.append(picture)

    def close(self) -> None:
        self.closed += 1
        if self._close_error is not None:
            raise self._close_error


def build(
    source: Any,
    *sinks: Any,
    engine: Any = None,
    policy: str = "every",
    renderer: Any = None,
    max_frames: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Pipeline:
    contract = Contract(
        "paint", TABLE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), SIZE, input_multiple=1, output_stride=1
    )
    segmenter = Segmenter(ModelFile(Path("paint.onnx"), contract, 3), engine or PaintEngine())
    return Pipeline(
        source,
        segmenter,
        renderer or Renderer(TABLE, hud=False),
        list(sinks),
        policy=policy,
        max_frames=max_frames,
        on_progress=on_progress,
    )


def frames(count: int) -> list[Frame]:
    return [frame_of(i) for i in range(count)]


def test_every_keeps_all_frames_in_order(limited: Limited) -> None:
    sink = ListSink()
    run = build(ListSource(frames(40)), sink)
    limited(run.run)
    assert sink.got == list(range(40))
    assert all(np.array_equal(sink.labels[i], truth_of(i)) for i in range(40))
    assert sink.closed == 1
    report = run.report(measure_engine=False)
    assert (report.frames_in, report.frames_out, report.frames_dropped) == (40, 40, 0)


def test_an_empty_source_is_an_empty_run(limited: Limited) -> None:
    sink = ListSink()
    run = build(ListSource([]), sink)
    limited(run.run)
    assert (sink.got, sink.closed) == ([], 1)
    report = run.report()
    assert (report.frames_in, report.frames_out, report.fps, report.miou) == (0, 0, None, None)
    json.dumps(report.to_dict(), allow_nan=False)


def test_latest_drops_the_oldest(limited: Limited) -> None:
    """While the engine is busy with frame 0, frames 1 to 9 come: only 9 is worth its time."""
    started, drained = threading.Event(), threading.Event()

    def before_frame(number: int) -> None:
        if number == 1:
            started.wait()
        if number == 10:
            drained.set()

    def before_inference(call: int) -> None:
        if call == 0:
            started.set()
            drained.wait()

    sink = ListSink()
    source = ListSource(frames(10), before=before_frame, live=True)
    run = build(source, sink, engine=PaintEngine(before_inference), policy="latest")
    limited(run.run)
    assert sink.got == [0, 9]
    report = run.report(measure_engine=False)
    assert (report.frames_in, report.frames_out, report.frames_dropped) == (10, 2, 8)


def test_latest_drops_nothing_that_there_is_time_for(limited: Limited) -> None:
    sink = ListSink()
    delivered = threading.Semaphore(1)
    source = ListSource(frames(20), before=lambda number: delivered.acquire())
    run = build(source, sink, policy="latest", on_progress=lambda moment: delivered.release())
    limited(run.run)
    assert sink.got == list(range(20))
    assert run.report(measure_engine=False).frames_dropped == 0


@pytest.mark.parametrize("policy", ["latest", "every"])
def test_max_frames(policy: str, limited: Limited) -> None:
    sink = ListSink()
    run = build(EndlessSource(), sink, policy=policy, max_frames=7)
    limited(run.run)
    assert len(sink.got) == 7
    assert sink.got == sorted(set(sink.got))
    assert sink.closed == 1
    report = run.report(measure_engine=False)
    assert report.frames_out == 7
    if policy == "every":
        assert sink.got == list(range(7))
        assert report.frames_in == 7


def test_mask_age_counts_from_the_capture(limited: Limited) -> None:
    ages: list[float] = []
    old = [frame_of(i, age=5.0) for i in range(6)]
    run = build(
        ListSource(old), ListSink(), on_progress=lambda moment: ages.append(moment.mask_age_ms)
    )
    limited(run.run)
    assert all(age >= 5000.0 for age in ages)
    age = run.report(measure_engine=False).mask_age_ms
    assert 5000.0 <= age["p50"] <= age["p95"] <= age["p99"]


@pytest.mark.parametrize("error", [SourceError("cut"), StreamLostError("gone")])
@pytest.mark.parametrize("policy", ["latest", "every"])
def test_a_source_that_breaks_delivers_what_it_gave(
    error: SourceError, policy: str, limited: Limited
) -> None:
    sink = ListSink()
    run = build(ListSource(frames(9), error=error), sink, policy=policy)
    with pytest.raises(type(error), match=str(error)):
        limited(run.run)
    assert sink.closed == 1
    assert sink.got[-1] == 8
    if policy == "every":
        assert sink.got == list(range(9))
    assert run.report(measure_engine=False).frames_out == len(sink.got)


def test_a_source_with_a_bug_ends_the_run(limited: Limited) -> None:
    sink = ListSink()
    run = build(ListSource(frames(3), error=ZeroDivisionError("bug")), sink)
    with pytest.raises(ZeroDivisionError, match="bug"):
        limited(run.run)
    assert sink.closed == 1


def test_a_source_that_breaks_at_once(limited: Limited) -> None:
    sink = ListSink()
    with pytest.raises(SourceError, match="cut"):
        limited(build(ListSource([], error=SourceError("cut")), sink).run)
    assert (sink.got, sink.closed) == ([], 1)


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("policy", ["latest", "every"])
def test_a_raising_engine(at: int, policy: str, limited: Limited) -> None:
    def fail(call: int) -> None:
        if call == at:
            raise EngineError("out of memory")

    sink = ListSink()
    # Frames one by one, so that the policy "latest" drops none before the failure.
    delivered = threading.Semaphore(1)
    source = ListSource(frames(400), before=lambda number: delivered.acquire(timeout=0.2))
    run = build(
        source,
        sink,
        engine=PaintEngine(fail),
        policy=policy,
        on_progress=lambda moment: delivered.release(),
    )
    with pytest.raises(EngineError, match="out of memory"):
        limited(run.run)
    assert sink.got == list(range(at))
    assert sink.closed == 1


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("policy", ["latest", "every"])
def test_a_raising_sink(at: int, policy: str, limited: Limited) -> None:
    first, last = ListSink(), ListSink()
    bad = ListSink(fail_at=at, error=SinkError("disk full"))
    run = build(EndlessSource(), first, bad, last, policy=policy)
    with pytest.raises(SinkError, match="disk full"):
        limited(run.run)
    assert [sink.closed for sink in (first, bad, last)] == [1, 1, 1]
    assert len(bad.got) == at
    assert first.got[:at] == bad.got


def test_a_sink_that_fails_to_close(limited: Limited) -> None:
    first, last = ListSink(close_error=SinkError("no trailer")), ListSink()
    run = build(ListSource(frames(3)), first, last)
    with pytest.raises(SinkError, match="no trailer"):
        limited(run.run)
    assert [first.closed, last.closed] == [1, 1]
    assert last.got == [0, 1, 2]


def test_the_first_error_is_the_one_raised(limited: Limited) -> None:
    sink = ListSink(fail_at=1, error=SinkError("disk full"), close_error=SinkError("no trailer"))
    with pytest.raises(SinkError, match="disk full"):
        limited(build(ListSource(frames(5)), sink).run)


class BadRenderer:
    """Draws two pictures and fails at the third."""

    def __init__(self) -> None:
        self.count = 0

    def render(self, frame: Frame, result: LabelMap, **live: object) -> ImageBGR:
        self.count += 1
        if self.count == 3:
            raise RuntimeError("cannot draw")
        return frame.image


def test_a_raising_renderer(limited: Limited) -> None:
    sink = ListSink(wants_picture=True)
    run = build(EndlessSource(), sink, renderer=BadRenderer())
    with pytest.raises(RuntimeError, match="cannot draw"):
        limited(run.run)
    assert (sink.got, sink.closed) == ([0, 1], 1)


def test_nothing_is_rendered_for_sinks_that_want_no_picture(limited: Limited) -> None:
    renderer = BadRenderer()
    sink = ListSink()
    run = build(ListSource(frames(5)), sink, renderer=renderer)
    limited(run.run)
    assert renderer.count == 0
    assert sink.pictures == [None] * 5
    assert "render" not in run.report(measure_engine=False).stages


def test_a_raising_progress_callback(limited: Limited) -> None:
    def fail(moment: Progress) -> None:
        raise KeyError("mine")

    sink = ListSink()
    with pytest.raises(KeyError, match="mine"):
        limited(build(EndlessSource(), sink, on_progress=fail).run)
    assert sink.closed == 1


@pytest.mark.parametrize("policy", ["latest", "every"])
def test_a_sink_may_end_the_run(policy: str, limited: Limited) -> None:
    window = ListSink(fail_at=2, error=StopRequested())
    file = ListSink()
    run = build(EndlessSource(), window, file, policy=policy)
    limited(run.run)  # a wish, not an error
    assert [window.closed, file.closed] == [1, 1]
    assert len(window.got) == 2
    # Every mask that was finished is in the file, the one at which the window closed too.
    assert len(file.got) == run.report(measure_engine=False).frames_out >= 3


def test_stop_finishes_what_is_in_flight(limited: Limited) -> None:
    sink = ListSink()
    run = build(
        EndlessSource(),
        sink,
        on_progress=lambda moment: run.stop() if moment.frames_out == 5 else None,
    )
    limited(run.run)
    assert sink.got == list(range(len(sink.got)))
    assert len(sink.got) >= 5
    assert sink.closed == 1


class StuckSource:
    """Gives three frames, then hangs in a read until it is closed, or for ever."""

    def __init__(self, *, heeds_close: bool) -> None:
        self.info = SourceInfo("stuck", True, SIZE)
        self.warnings: list[str] = []
        self.stuck, self.freed = threading.Event(), threading.Event()
        self._heeds_close = heeds_close

    def __iter__(self) -> Iterator[Frame]:
        yield from frames(3)
        self.stuck.set()
        self.freed.wait()

    def close(self) -> None:
        if self._heeds_close:
            self.freed.set()


@pytest.mark.parametrize("heeds_close", [True, False])
def test_stop_ends_a_run_whose_source_hangs(
    heeds_close: bool, limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_STUCK_SECONDS", 0.1)
    source, sink = StuckSource(heeds_close=heeds_close), ListSink()
    run = build(source, sink, policy="every")

    def stop() -> None:
        source.stuck.wait()
        run.stop()

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    limited(run.run)
    assert sink.got == [0, 1, 2]
    assert sink.closed == 1
    assert source.freed.is_set() is heeds_close
    source.freed.set()
    stopper.join()


def test_an_error_ends_a_run_whose_source_hangs(
    limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_STUCK_SECONDS", 0.1)
    source = StuckSource(heeds_close=True)
    sink = ListSink(fail_at=2, error=SinkError("disk full"))
    with pytest.raises(SinkError, match="disk full"):
        limited(build(source, sink).run)
    assert sink.closed == 1


def threads_of_rtseg() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name in ("rtseg-decode", "rtseg-segment")]


def test_no_thread_outlives_a_run(limited: Limited) -> None:
    before = threads_of_rtseg()
    limited(build(ListSource(frames(5)), ListSink()).run)
    with pytest.raises(SourceError):
        limited(build(ListSource(frames(5), error=SourceError("cut")), ListSink()).run)
    assert threads_of_rtseg() == before


def test_opencv_gets_its_threads_back(limited: Limited) -> None:
    before = cv2.getNumThreads()
    limited(build(ListSource(frames(3)), ListSink()).run)
    with pytest.raises(SourceError):
        limited(build(ListSource(frames(3), error=SourceError("cut")), ListSink()).run)
    assert cv2.getNumThreads() == before


def test_truth_gives_miou_one(limited: Limited) -> None:
    labelled = [frame_of(i, truth_of(i)) for i in range(6)]
    run = build(ListSource(labelled, classes=TABLE), ListSink())
    limited(run.run)
    report = run.report(measure_engine=False)
    assert report.miou == 1.0
    mean = np.mean([[(truth_of(i) == c).mean() for c in range(3)] for i in range(6)], axis=0)
    assert list(report.class_fraction) == list(TABLE.names)
    assert list(report.class_fraction.values()) == pytest.approx(mean, abs=1e-5)


def test_truth_is_matched_by_class_name(limited: Limited) -> None:
    """The source counts its classes in another order, in capitals, and knows one more."""
    other = ClassTable(("SKY", "Dog", "Road", "CAR"), ((0, 0, 0),) * 4, ignore_index=7)
    to_other = np.array([2, 3, 0], np.uint8)
    labelled = []
    for i in range(4):
        painted = frame_of(i)
        labels = to_other[truth_of(i)]
        labels[0, :4] = 1  # dogs: the model has no such class
        labels[1, :4] = 7  # ignored
        labelled.append(Frame(painted.image, i, i / 25.0, painted.captured_at, labels))
    run = build(ListSource(labelled, classes=other), ListSink())
    limited(run.run)
    assert run.report(measure_engine=False).miou == 1.0


def test_an_ignored_class_of_the_source_is_ignored(limited: Limited) -> None:
    """Some data sets give their ignore index a name of its own."""
    other = ClassTable(TABLE.names, TABLE.palette_rgb, ignore_index=2)
    labelled = []
    for i in range(4):
        painted = frame_of(i)
        labels = truth_of(i)
        labels[:3] = 2
        labelled.append(Frame(painted.image, i, i / 25.0, painted.captured_at, labels))
    run = build(ListSource(labelled, classes=other), ListSink())
    limited(run.run)
    report = run.report(measure_engine=False)
    assert report.miou is not None
    hits = sum((truth_of(i)[3:] == c).sum() for i in range(4) for c in (0, 1))
    assert hits
    # Where truth is labelled, the labels are right; sky, never in the truth, lies below it.
    assert report.miou == 1.0


def test_without_truth_there_is_no_miou(limited: Limited) -> None:
    run = build(ListSource(frames(3)), ListSink())
    limited(run.run)
    assert run.report(measure_engine=False).miou is None


KEYS = {
    "frames_in", "frames_out", "frames_dropped", "fps", "engine_fps", "mask_age_ms", "stages",
    "class_fraction", "miou", "model", "engine", "precision", "device", "versions", "command",
}  # fmt: skip


def test_the_report_has_every_key(limited: Limited) -> None:
    run = build(ListSource(frames(8)), ListSink(wants_picture=True))
    limited(run.run)
    report = run.report(command=["rtseg", "run"]).to_dict()
    assert set(report) >= KEYS
    assert json.loads(json.dumps(report, allow_nan=False))["command"] == ["rtseg", "run"]
    assert set(report["mask_age_ms"]) == {"p50", "p95", "p99"}
    assert set(report["stages"]) >= {
        "decode", "preprocess", "infer", "argmax", "render", "encode"
    }  # fmt: skip
    for stage in report["stages"].values():
        assert set(stage) >= {"p50_ms", "p95_ms", "p99_ms"}
        assert 0 <= stage["p50_ms"] <= stage["p95_ms"] <= stage["p99_ms"]
    assert (report["model"], report["engine"], report["precision"]) == ("paint", "paint", "fp32")
    assert report["engine_fps"] > 0
    assert report["warnings"] == ["a line for the user"]
    assert report["versions"]["paint"] == "1.0"
    assert sum(report["class_fraction"].values()) == pytest.approx(1.0, abs=1e-4)


def test_pictures_are_the_frames_own_size(limited: Limited) -> None:
    sink = ListSink(wants_picture=True)
    limited(build(ListSource(frames(3)), sink).run)
    assert [p.shape for p in sink.pictures if p is not None] == [(*SIZE, 3)] * 3


def test_run_takes_any_sink(tiny_path: Path, limited: Limited) -> None:
    import rtseg

    sink = ListSink(wants_picture=True)
    report = limited(
        lambda: rtseg.run(
            "synth:seed=2,size=64x96,frames=4", model=str(tiny_path), sinks=[sink], engine="auto"
        )
    )
    assert sink.got == [0, 1, 2, 3]
    assert sink.closed == 1
    assert report.frames_out == 4
    assert report.policy == "every"
    assert 0.0 <= report.miou <= 1.0


def test_a_sink_is_closed_when_the_next_cannot_be_opened(tiny_path: Path, tmp_path: Path) -> None:
    import rtseg

    with pytest.raises(SinkError, match="is a file"):
        rtseg.run(
            "synth:seed=2,size=64x96,frames=4",
            model=str(tiny_path),
            save=tmp_path / "out.mp4",
            masks=tiny_path,
        )
    assert not (tmp_path / "out.mp4").exists()  # an empty one is no use


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "newest"}, "unknown policy 'newest': choose one of latest, every"),
        ({"opacity": 1.5}, r"--opacity must be in 0\.\.1"),
        ({"max_frames": 0}, "--max-frames must be at least 1"),
        ({"effect": "sparkle"}, "unknown effect 'sparkle': choose one of overlay"),
        ({"effect": "blur:dragon"}, "unknown class 'dragon'"),
        ({"engine": "caffe"}, "unknown engine"),
    ],
)
def test_bad_arguments_of_run(tiny_path: Path, changes: dict[str, Any], message: str) -> None:
    import rtseg

    with pytest.raises(ConfigError, match=message):
        rtseg.run("synth:size=64x96,frames=2", model=str(tiny_path), **changes)


def test_frames_of_changing_size(limited: Limited) -> None:
    """Images of a directory may differ; each mask has its own frame's size."""
    sizes = [(8, 12), (9, 7), (8, 12), (16, 24), (33, 65)]
    shown = [
        Frame(np.full((*hw, 3), STEP, np.uint8), i, i / 25.0, time.monotonic())
        for i, hw in enumerate(sizes)
    ]
    sink = ListSink(wants_picture=True)
    limited(build(ListSource(shown), sink).run)
    assert [labels.shape for labels in sink.labels] == sizes
    assert all((labels == 1).all() for labels in sink.labels)
