"""What a run reports and renders, and what `rtseg.run` takes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _fakes import (
    SIZE,
    STEP,
    TABLE,
    Limited,
    ListSink,
    ListSource,
    build,
    frame_of,
    frames,
    truth_of,
)

from rtseg.errors import ConfigError, SinkError
from rtseg.frame import ClassTable, Frame, ImageBGR, LabelMap


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


def test_masks_go_before_pictures_and_the_age_is_of_the_last(limited: Limited) -> None:
    order: list[str] = []
    moments: list[float] = []

    class Noting(ListSink):
        def write(self, frame: Frame, result: LabelMap, picture: ImageBGR | None) -> None:
            order.append("picture" if self.wants_picture else "mask")
            moments.append(1e3 * (time.monotonic() - frame.captured_at))
            super().write(frame, result, picture)

    ages: list[float] = []
    sinks = Noting(wants_picture=True), Noting(), Noting(wants_picture=True)
    run = build(
        ListSource(frames(4)), *sinks, on_progress=lambda moment: ages.append(moment.mask_age_ms)
    )
    limited(run.run)
    assert order == ["mask", "picture", "picture"] * 4
    for age, (first, second, third) in zip(
        ages, zip(moments[::3], moments[1::3], moments[2::3], strict=True), strict=True
    ):
        assert first <= second <= age <= third


def test_decoding_is_counted_by_frames(limited: Limited) -> None:
    """Neither the end of a file nor a live source's wait for its next picture is decoding."""
    slow = ListSource(frames(3), before=lambda number: time.sleep(0.3 if number == 3 else 0))
    run = build(slow, ListSink())
    limited(run.run)
    assert run.report(measure_engine=False).stages["decode"]["p99_ms"] < 300
    assert run._clock.wall["decode"].count == 3

    class Camera(ListSource):
        def __iter__(self) -> Iterator[Frame]:
            for number in range(3):
                time.sleep(0.3)
                yield frame_of(number)

    live = Camera([], live=True)
    run = build(live, ListSink())
    limited(run.run)
    assert run.report(measure_engine=False).stages["decode"]["p50_ms"] < 300
