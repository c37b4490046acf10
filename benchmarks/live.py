"""Mask age on a live stream: H.264 in MPEG-TS over UDP on loopback, at several rates.

    python benchmarks/live.py --video drive.mp4 --json benchmarks/results/live.json

A second process sends the video again and again in real time, as a network camera does; the
pipeline reads it under the policy "latest". The age of a mask is counted from the moment when the
picture's last packet reached this process; the engine's own time for one frame, measured after each
run, is the least that it can be. At rates above the engine's, not every frame can be segmented.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from _record import write_record
from _runs import add_arguments, open_clip, open_segmenter, open_sink

from rtseg.overlay import Renderer
from rtseg.pipeline import Pipeline
from rtseg.segmenter import STAGES, Segmenter
from rtseg.source import open_source
from rtseg.timing import StageClock

_TICKS = 90_000
ADDRESS = "udp://127.0.0.1:{port}?pkt_size=1316"


def send(video: Path, fps: float, port: int) -> None:
    """Sends the video's packets without end, one every 1 / fps seconds."""
    with av.open(ADDRESS.format(port=port), "w", format="mpegts") as output:
        stream, sent, began = None, itertools.count(), time.monotonic()
        while True:
            with av.open(str(video)) as source:
                track = source.streams.video[0]
                stream = stream or output.add_stream_from_template(track)
                for packet in source.demux(track):
                    if packet.size == 0:
                        continue
                    number = next(sent)
                    time.sleep(max(0.0, began + number / fps - time.monotonic()))
                    # With B-frames a picture is shown some frames after it is decoded.
                    later = (packet.pts - packet.dts) * packet.time_base * track.average_rate
                    packet.stream = stream
                    packet.time_base = Fraction(1, _TICKS)
                    packet.dts = round(number * _TICKS / fps)
                    packet.pts = packet.dts + round(float(later) * _TICKS / fps)
                    output.mux(packet)


@contextlib.contextmanager
def sending(video: Path, fps: float, port: int) -> Iterator[None]:
    """A process that sends, for the length of a block."""
    process = multiprocessing.get_context("spawn").Process(
        target=send, args=(video, fps, port), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def measure(
    video: Path, segmenter: Segmenter, fps: float, *, seconds: float, port: int
) -> dict[str, Any]:
    """One live run of so many seconds."""
    segmenter.clock = StageClock(STAGES)
    with (
        sending(video, fps, port),
        contextlib.closing(open_source(ADDRESS.format(port=port))) as source,
    ):
        segmenter.warm_up(source.info.size_hw)
        pipeline = Pipeline(
            source,
            segmenter,
            Renderer(segmenter.model.contract.classes),
            [open_sink("null")],
            policy="latest",
        )
        timer = threading.Timer(seconds, pipeline.stop)
        timer.start()
        try:
            pipeline.run()
        finally:
            timer.cancel()
    report = pipeline.report(measure_engine=False)
    return {
        "sent_fps": fps,
        "seconds": report.seconds,
        "fps": report.fps,
        "frames_in": report.frames_in,
        "frames_out": report.frames_out,
        "frames_dropped": report.frames_dropped,
        "mask_age_ms": report.mask_age_ms,
        "stages": report.stages,
        "engine_ms": round(1e3 / (segmenter.engine_fps(2.0) or 0.0), 3),
        "source_size": report.source_size,
        "input_size": report.input_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, frames=200)
    parser.add_argument("--rates", default="15,30,60,120", help="frames per second, as sent")
    parser.add_argument("--seconds", type=float, default=20.0, help="per rate")
    parser.add_argument("--port", type=int, default=23_456)
    args = parser.parse_args()

    rows = []
    segmenter = open_segmenter(args.model, policy="latest")
    try:
        with open_clip(args.video, args.clip, args.frames) as (video, name):
            for rate in (float(text) for text in args.rates.split(",")):
                row = measure(video, segmenter, rate, seconds=args.seconds, port=args.port)
                rows.append(row)
                ages = ", ".join(f"{k} {v:.1f}" for k, v in row["mask_age_ms"].items())
                print(
                    f"{rate:g} FPS sent: {row['fps']} FPS of masks, "
                    f"{row['frames_dropped']} of {row['frames_in']} dropped, age in ms: {ages}; "
                    f"the engine alone {row['engine_ms']:.1f}"
                )
    finally:
        segmenter.close()
    info = segmenter.engine.info
    facts = {"engine": f"{info.name} {info.precision}", "model": args.model, "video": name}
    write_record(args.json, "live", rows, **facts)


if __name__ == "__main__":
    main()
