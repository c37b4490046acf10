"""Every plugin keeps its package's contract: a new file is tested the day it is added."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from _data_trees import TREES, plant

from rtseg import engine as engines
from rtseg import plugins
from rtseg.artifact import ModelFile
from rtseg.data import DataSet, class_table, open_data
from rtseg.engine import PRECISIONS, open_engine
from rtseg.errors import ConfigError, RtsegError
from rtseg.frame import ClassTable, Frame, ImageBGR, LabelMap
from rtseg.source import Source, SourceInfo, open_source

SHARED = Path(__file__).parents[1] / "../shared/data"
PACKAGES = ("rtseg.source", "rtseg.sink", "rtseg.engine", "rtseg.models", "rtseg.data")
SOURCES, SINKS = plugins.names("rtseg.source"), plugins.names("rtseg.sink")
DATA_SETS = plugins.names("rtseg.data")
TABLE = ClassTable(("road", "car"), ((128, 64, 128), (64, 0, 128)))


# Plugins as such


@pytest.mark.parametrize("package", PACKAGES)
def test_every_plugin_says_what_it_is(package: str) -> None:
    names = plugins.names(package)
    assert names
    for name in names:
        module = plugins.load(package, name)
        assert (module.__doc__ or "").strip(), f"{package}.{name} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_plugin_lists_the_known_ones(package: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown .* 'nonsense': choose one of") as caught:
        plugins.load(package, "nonsense")
    assert all(name in str(caught.value) for name in plugins.names(package))


def test_files_with_an_underscore_are_no_plugins() -> None:
    assert not any(name.startswith("_") for package in PACKAGES for name in plugins.names(package))


# Sources


@pytest.fixture
def images_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    for i in range(4):
        cv2.imwrite(str(directory / f"{i}.png"), np.full((48, 64, 3), 60 * i, np.uint8))
    return directory


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Six frames of 64x48 by the sink that writes videos."""
    path = tmp_path / "six.mp4"
    sink = plugins.load("rtseg.sink", "video").open(str(path), fps=25.0)
    for i in range(6):
        sink.write(*result_of(i, wants_picture=True))
    sink.close()
    return path


def attempt(function: Callable[[], Any]) -> tuple[Any, str]:
    """What a function gives, or else the one line it refuses with."""
    try:
        return function(), ""
    except RtsegError as error:
        return None, str(error)


def first_of(functions: Sequence[Callable[[], Any]]) -> Any:
    """The result of the first that does not refuse; skips if all do."""
    refusals = []
    for function in functions:
        result, refusal = attempt(function)
        if not refusal:
            return result
        assert "\n" not in refusal
        refusals.append(refusal)
    return pytest.skip(refusals[0])


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, images_dir: Path, video: Path) -> Iterator[Source]:
    """Each kind of source, opened on the first target it takes."""
    uris = [f"{request.param}:{target}" for target in ("", video, images_dir)]
    opened: Source = first_of([partial(open_source, uri) for uri in uris])
    yield opened
    opened.close()


def test_a_source_gives_frames_in_order(source: Source) -> None:
    info = source.info
    assert isinstance(info, SourceInfo)
    assert info.name
    assert isinstance(source.warnings, list)
    assert info.fps is None or info.fps > 0
    taken: list[Frame] = []
    for frame in source:
        assert isinstance(frame, Frame)
        assert frame.captured_at <= time.monotonic()
        taken.append(frame)
        if len(taken) == 4:
            break
    assert len(taken) == 4
    assert taken[0].size_hw == info.size_hw
    assert [f.index for f in taken] == sorted({f.index for f in taken})
    assert all(a.pts_seconds < b.pts_seconds for a, b in itertools.pairwise(taken))
    assert all((f.labels is not None) == (info.classes is not None) for f in taken)


def test_closing_ends_a_source(source: Source) -> None:
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    # One that was read ahead may still come.
    assert sum(1 for _ in zip(range(100), frames, strict=False)) < 100


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("target", ["/no/such/thing", "/no/such/thing.xyz", "99999", "?", "a=b"])
def test_a_source_refuses_nonsense_in_one_line(kind: str, target: str) -> None:
    with pytest.raises(RtsegError) as caught:
        open_source(f"{kind}:{target}")
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", SOURCES)
def test_accepts_answers_for_any_text(kind: str) -> None:
    accepts = plugins.load("rtseg.source", kind).accepts
    for uri in ("", " ", ":", "x", "/", "a/b.mp4", "rtsp://host/path", "camera:0", "\0", "é:ü"):
        assert isinstance(accepts(uri), bool)


# Sinks


def result_of(index: int, *, wants_picture: bool) -> tuple[Frame, LabelMap, ImageBGR | None]:
    image = np.full((48, 64, 3), 20 * index, np.uint8)
    frame = Frame(image, index, index / 25.0, time.monotonic())
    labels = np.zeros((48, 64), np.uint8)
    labels[:, index:] = 1
    result = LabelMap(labels, TABLE, frame.pts_seconds, frame.captured_at)
    return frame, result, image.copy() if wants_picture else None


@pytest.fixture(params=SINKS)
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each kind of sink, opened on the first target it takes; the test closes it."""
    open_sink = plugins.load("rtseg.sink", request.param).open
    targets = (str(tmp_path / "out.mp4"), "127.0.0.1:0")
    return first_of([partial(open_sink, target, fps=25.0) for target in targets])


def test_a_sink_takes_results_and_leaves_them_alone(sink: Any) -> None:
    assert isinstance(sink.wants_picture, bool)
    for i in range(5):
        frame, result, picture = result_of(i, wants_picture=sink.wants_picture)
        before = frame.image.copy(), result.labels.copy()
        sink.write(frame, result, picture)
        assert np.array_equal(frame.image, before[0])
        assert np.array_equal(result.labels, before[1])
        if picture is not None:
            assert np.array_equal(picture, before[0])
    sink.close()


def test_a_sink_may_be_closed_before_its_first_frame(sink: Any) -> None:
    sink.close()


# Engines


@pytest.mark.parametrize("name", engines.names())
def test_an_engine_says_whether_it_can_run(name: str) -> None:
    reason = engines.available(name)
    assert isinstance(reason, str)
    assert "\n" not in reason


@pytest.mark.parametrize("name", engines.names())
def test_an_engine_keeps_its_contract(tiny: ModelFile, name: str) -> None:
    if reason := engines.available(name):
        pytest.skip(reason)
    engine = open_engine(tiny, name)
    info = engine.info
    assert info.name == name
    assert info.precision in PRECISIONS[1:]
    assert info.device
    assert info.version
    for hw in ((64, 96), (32, 160), (64, 96)):
        images = np.zeros((1, 3, *hw), np.float32)
        before = images.copy()
        logits = engine.infer(images)
        assert logits.shape == (1, 11, hw[0] // 4, hw[1] // 4)
        assert logits.dtype in (np.float32, np.float16)
        assert np.isfinite(logits).all()
        assert np.array_equal(images, before)
    engine.close()


# Data sets


@pytest.fixture(params=DATA_SETS)
def data_spec(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each data set, on a tiny tree of its own layout if it needs any files."""
    name = request.param
    if name in TREES:
        return f"{name}:{plant(name, tmp_path)}"
    assert not attempt(partial(open_data, f"{name}:", "val"))[1], f"give {name} a tree in TREES"
    return f"{name}:"


def test_a_data_set_states_its_classes(data_spec: str) -> None:
    table = class_table(data_spec)
    assert table == open_data(data_spec, "val").classes
    assert len(set(table.palette_rgb)) == len(table)
    assert table.ignore_index >= len(table)


def check_samples(data: DataSet) -> None:
    assert len({s.name for s in data.samples}) == len(data.samples)
    allowed = {*range(len(data.classes)), data.classes.ignore_index}
    for sample in data.samples[:: max(1, len(data.samples) // 3)]:
        image, labels = sample.load()
        Frame(np.ascontiguousarray(image), 0, 0.0, 0.0, labels)  # checks shapes and types
        assert {int(v) for v in np.unique(labels)} <= allowed


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_samples_of_a_data_set_fit_its_classes(data_spec: str, split: str) -> None:
    check_samples(open_data(data_spec, split))


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_published_samples_of_a_data_set_fit_its_classes(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not on this machine")
    check_samples(open_data(f"{name}:{SHARED / name}", "val"))


def test_samples_go_to_worker_processes(data_spec: str) -> None:
    sample = open_data(data_spec, "train").samples[0]
    image, labels = pickle.loads(pickle.dumps(sample)).load()
    assert np.array_equal(image, sample.load()[0])
    assert np.array_equal(labels, sample.load()[1])


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_data_set_refuses_nonsense_in_one_line(name: str) -> None:
    with pytest.raises(RtsegError) as caught:
        open_data(f"{name}:/no/such/directory", "val")
    assert "\n" not in str(caught.value)
