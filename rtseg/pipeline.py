"""The way of a frame: source -> segmenter -> overlay -> sinks.

    decode thread     source  -> waiting            (bounded; the policy says what a full one does)
    segment thread    waiting -> segmenter.submit   (preprocess; the engine has a thread of its own)
    calling thread    segmenter.collect -> render -> sinks

A place in flight is taken before the next frame is, so that under the policy "latest" the engine
always gets the freshest one. An exception in any thread ends the run: the queues are aborted, the
sinks closed with what they have, and the exception is raised in the caller.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from rtseg.errors import SourceError
from rtseg.frame import Frame, ImageBGR, LabelMap
from rtseg.machine import cpu_count
from rtseg.one_thread import opencv_on_one_thread
from rtseg.overlay import Renderer
from rtseg.queues import BoundedQueue
from rtseg.segmenter import InFlight, Segmenter
from rtseg.sink import Sink, StopRequested
from rtseg.source import Source
from rtseg.tally import Tally
from rtseg.timing import RateMeter, RunReport, bound_fps, versions

_WAITING = {"every": 2, "latest": 1}
_READY = {"every": 2, "latest": 0}
REQUESTS = {"every": 2, "latest": 1}
"""Frames decoded, frames prepared, frames in the engine at once: throughput for files, fresh masks
for cameras."""

_STUCK_SECONDS = 2.0
"""How long a read may take to end by itself when a run stops."""


@dataclass(frozen=True)
class Progress:
    """A moment of a run: frames out so far, how many there will be, current rate and mask age."""

    frames_out: int
    frame_count: int | None
    fps: float | None
    mask_age_ms: float


class Pipeline:
    """One run. Build it, call `run` once; `stop` may come from any thread or signal handler.

    Args:
        source, segmenter, renderer, sinks: open and ready; the caller closes source and segmenter,
            the pipeline closes the sinks.
        policy: "latest" or "every".
        max_frames: stop after this many masks; None for all.
        on_progress: called after each frame.
    """

    def __init__(
        self,
        source: Source,
        segmenter: Segmenter,
        renderer: Renderer,
        sinks: Sequence[Sink],
        *,
        policy: str,
        max_frames: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._source = source
        self._segmenter = segmenter
        self._renderer = renderer
        # Masks first: who only wants those shall not wait for an encoder.
        self._sinks = sorted(sinks, key=lambda sink: sink.wants_picture)
        self._policy = policy
        self._max_frames = max_frames
        self._on_progress = on_progress
        self._clock = segmenter.clock
        self._waiting: BoundedQueue[Frame] = BoundedQueue(
            _WAITING[policy], drop_oldest=policy == "latest"
        )
        # More than the engine takes, so that its next frames are ready; but none for fresh masks.
        depth = segmenter.engine.info.requests + _READY[policy]
        self._in_flight: BoundedQueue[InFlight] = BoundedQueue(depth)
        self._free = threading.Semaphore(depth)
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        self._tally = Tally(segmenter.model.contract.classes, source.info.classes)
        self._frames_in = 0

    def run(self) -> None:
        """Runs until the source ends, `stop`, `max_frames`, or an error; closes the sinks.

        Raises:
            Whatever a source, engine or sink raised first.
        """
        threads = [
            threading.Thread(target=self._guard, args=(work,), name=f"rtseg-{name}", daemon=True)
            for name, work in (("decode", self._decode), ("segment", self._segment))
        ]
        with ExitStack() as cleanup:
            # OpenCV's own threads would take the cores from the engine, and escape the clocks.
            cleanup.enter_context(opencv_on_one_thread())
            for sink in self._sinks:
                cleanup.callback(self._close_sink, sink)
            for thread in threads:
                thread.start()
            try:
                self._deliver()
            except BaseException as error:
                self._errors.append(error)
            finally:
                self._abort()
                self._join(threads)
        if self._errors:
            raise self._errors[0]

    def stop(self) -> None:
        """Asks the run to end: what is in flight is finished, nothing new is read."""
        self._stopping.set()
        self._waiting.close()

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        """Waits for the threads; a source that is stuck in a read is closed under it."""
        for thread in threads:
            thread.join(timeout=_STUCK_SECONDS)
        if any(thread.is_alive() for thread in threads):
            self._source.close()
            for thread in threads:
                thread.join(timeout=_STUCK_SECONDS)

    def _decode(self) -> None:
        frames = iter(self._source)
        while not self._stopping.is_set():
            began, cpu = time.monotonic(), time.thread_time()
            frame = next(frames, None)
            if frame is None:
                break
            # Of a live source not the wait for its next picture, but from its arrival on.
            began = frame.captured_at if self._source.info.live else began
            self._clock.add("decode", time.monotonic() - began, time.thread_time() - cpu)
            self._frames_in += 1
            if not self._waiting.put(frame):
                break
            if self._policy == "every" and self._frames_in == self._max_frames:
                break
        self._waiting.close()

    def _segment(self) -> None:
        while True:
            self._free.acquire()
            frame = self._waiting.get()
            if frame is None:
                break
            if not self._in_flight.put(self._segmenter.submit(frame)):
                break
        self._in_flight.close()

    def _deliver(self) -> None:
        """In the calling thread, because a window must be served from the main one."""
        rate = RateMeter()
        age_ms: float | None = None
        wants_picture = any(sink.wants_picture for sink in self._sinks)
        while (in_flight := self._in_flight.get()) is not None:
            frame = in_flight.frame
            in_flight.outcome.exception()  # waits for the engine; collect raises what it holds
            self._free.release()
            result = self._segmenter.collect(in_flight)
            fps = rate.tick(time.monotonic())
            picture: ImageBGR | None = None
            if wants_picture:
                with self._clock.time("render"):
                    picture = self._renderer.render(frame, result, fps=fps, mask_age_ms=age_ms)
            age = time.monotonic() - frame.captured_at
            with self._clock.time("encode"):
                for sink in self._sinks:
                    age = time.monotonic() - frame.captured_at
                    self._write(sink, frame, result, picture)
            age_ms = 1e3 * age
            with self._clock.time("score"):
                self._tally.add(frame, result, age)
            if self._on_progress is not None:
                self._on_progress(Progress(self._tally.frames, self._expected(), fps, age_ms))
            if self._max_frames is not None and self._tally.frames >= self._max_frames:
                break

    def _expected(self) -> int | None:
        """How many masks there will be, if that is known."""
        known = [n for n in (self._source.info.frame_count, self._max_frames) if n is not None]
        return min(known, default=None)

    def _write(self, sink: Sink, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
        """Also when one sink asks for the end, the others get the frame."""
        try:
            sink.write(frame, result, picture)
        except StopRequested:
            self.stop()

    def _guard(self, work: Callable[[], None]) -> None:
        """Runs a thread's work; an exception is kept for the caller and ends the run."""
        try:
            work()
        except SourceError as error:
            if not self._stopping.is_set():  # else nobody waits for its frames any more
                self._errors.append(error)
            self._waiting.close()  # masks of frames decoded before it broke are still delivered
        except BaseException as error:
            self._errors.append(error)
            self._abort()

    def _abort(self) -> None:
        self._stopping.set()
        self._waiting.abort()
        self._in_flight.abort()
        self._free.release()

    def _close_sink(self, sink: Sink) -> None:
        try:
            sink.close()
        except Exception as error:
            self._errors.append(error)

    def report(self, *, measure_engine: bool = True, command: Iterable[str] = ()) -> RunReport:
        """What the run did. With `measure_engine` the idle engine is timed alone, for a second."""
        tally, info, engine = self._tally, self._source.info, self._segmenter.engine.info
        fps = tally.fps()
        engine_fps = self._segmenter.engine_fps() if measure_engine else None
        stages = self._clock.report()
        other = sum(row["cpu_ms"] for stage, row in stages.items() if stage != "infer") / 1e3
        bound = bound_fps(engine_fps, other, cpu_count()) if engine_fps else None
        return RunReport(
            frames_in=self._frames_in,
            frames_out=tally.frames,
            frames_dropped=self._waiting.dropped,
            seconds=round(tally.seconds(), 3),
            fps=_rounded(fps, 2),
            engine_fps=_rounded(engine_fps, 2),
            bound_fps=_rounded(bound, 2),
            mask_age_ms=tally.age.percentiles_ms(),
            stages=stages,
            class_fraction=tally.class_fraction(),
            miou=_rounded(tally.miou(), 4),
            source=info.name,
            source_size=tally.frame_hw,
            input_size=self._segmenter.input_hw,
            model=self._segmenter.model.contract.name,
            engine=engine.name,
            precision=engine.precision,
            device=engine.device,
            cores=cpu_count(),
            policy=self._policy,
            versions={**versions("numpy", "opencv-python", "av"), engine.name: engine.version},
            command=list(command),
            warnings=list(self._source.warnings),
        )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
