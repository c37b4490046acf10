"""The pipeline with sources, engines and sinks that know nothing of rtseg but its protocols.

Nothing here waits for a time to pass: the fakes wait for each other.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from _fakes import (
    SIZE,
    EndlessSource,
    Limited,
    ListSink,
    ListSource,
    PaintEngine,
    build,
    frame_of,
    frames,
    truth_of,
)

from rtseg import pipeline as pipeline_module
from rtseg.errors import EngineError, SinkError, SourceError, StreamLostError
from rtseg.frame import Frame, ImageBGR, LabelMap
from rtseg.pipeline import Progress
from rtseg.sink import StopRequested
from rtseg.source import SourceInfo


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


@pytest.mark.parametrize("ends", ["max_frames", "stop"])
def test_a_source_that_breaks_when_nobody_listens_any_more(ends: str, limited: Limited) -> None:
    """A camera that hangs is given up seconds later; the run was over by then, and all was well."""
    over, delivered = threading.Event(), threading.Semaphore(1)

    def before_frame(number: int) -> None:
        delivered.acquire()
        if number == 3:
            over.wait()

    def progress(moment: Progress) -> None:
        delivered.release()
        if moment.frames_out == 3:
            if ends == "stop":
                run.stop()
            threading.Timer(0.2, over.set).start()

    sink = ListSink()
    source = ListSource(frames(3), error=StreamLostError("gone"), before=before_frame)
    limit = 3 if ends == "max_frames" else None
    run = build(source, sink, max_frames=limit, policy="latest", on_progress=progress)
    limited(run.run)
    assert sink.got == [0, 1, 2]
