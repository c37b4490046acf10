"""Every plugin keeps its package's contract: a new file is tested the day it is added."""

from __future__ import annotations

import inspect
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
from rtseg.artifact import Contract, ModelFile
from rtseg.data import DataSet, class_table, open_data
from rtseg.engine import PRECISIONS, open_engine
from rtseg.errors import ConfigError, RtsegError
from rtseg.frame import ClassTable, Frame, ImageBGR, LabelMap
from rtseg.source import Source, SourceInfo, open_source

SHARED = Path(__file__).parents[1] / "../shared/data"
PACKAGES = ("rtseg.source", "rtseg.sink", "rtseg.engine", "rtseg.models", "rtseg.data")
SOURCES, SINKS = plugins.names("rtseg.source"), plugins.names("rtseg.sink")
FAMILIES, DATA_SETS = plugins.names("rtseg.models"), plugins.names("rtseg.data")
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


# Networks


def build(family: str, num_classes: int = 5) -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return plugins.load("rtseg.models", family).build(num_classes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_states_its_facts(family: str) -> None:
    pytest.importorskip("torch")
    module = plugins.load("rtseg.models", family)
    assert module.OUTPUT_STRIDE >= 1
    assert module.INPUT_MULTIPLE % module.OUTPUT_STRIDE == 0
    assert isinstance(module.ALIGN_CORNERS, bool)
    assert module.PAPER
    assert 2010 < module.YEAR < 2100
    parameters = list(inspect.signature(module.build).parameters.values())
    assert parameters[0].name == "num_classes"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_in_training_gives_all_heads_and_a_gradient(family: str) -> None:
    network = build(family).train()
    torch = pytest.importorskip("torch")
    outputs = network(torch.randn(2, 3, 64, 96))
    assert isinstance(outputs, list)
    assert all(o.shape[:2] == (2, 5) for o in outputs)
    stride = plugins.load("rtseg.models", family).OUTPUT_STRIDE
    assert outputs[0].shape[-2:] == (64 // stride, 96 // stride)
    sum(o.square().mean() for o in outputs).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name} takes no part"
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [(1, 1), (1, 3), (3, 2)])
def test_a_network_in_use_gives_logits_at_any_size(family: str, scale: tuple[int, int]) -> None:
    network = build(family).eval()
    torch = pytest.importorskip("torch")
    module = plugins.load("rtseg.models", family)
    height, width = (2 * s * module.INPUT_MULTIPLE for s in scale)
    with torch.inference_mode():
        logits = network(torch.randn(1, 3, height, width))
    assert isinstance(logits, torch.Tensor)
    stride = module.OUTPUT_STRIDE
    assert logits.shape == (1, 5, height // stride, width // stride)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(65, 97), (71, 50), (101, 128)])
def test_a_network_survives_odd_sizes(family: str, size: tuple[int, int]) -> None:
    network = build(family).eval()
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        logits = network(torch.randn(1, 3, *size))
    assert logits.shape[:2] == (1, 5)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_the_norms_changes_nothing(family: str) -> None:
    torch = pytest.importorskip("torch")
    from rtseg.models.layers import fuse_batch_norm

    network = build(family).train()
    with torch.inference_mode():
        for _ in range(3):
            network(torch.randn(2, 3, 64, 96))
        network.eval()
        images = torch.randn(1, 3, 64, 96)
        before = network(images)
        after = fuse_batch_norm(network)(images)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    # float32 rounding of the folded weights, through some twenty layers
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_network_is_the_network(family: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    onnxruntime = pytest.importorskip("onnxruntime")
    from rtseg.export import export_onnx

    module = plugins.load("rtseg.models", family)
    network = build(family, len(TABLE)).eval()
    multiple = module.INPUT_MULTIPLE
    contract = Contract(
        family, TABLE, (0.0,) * 3, (1.0,) * 3, (2 * multiple, 3 * multiple), multiple,
        module.OUTPUT_STRIDE, module.ALIGN_CORNERS, family,
    )  # fmt: skip
    path = tmp_path / f"{family}.onnx"
    assert export_onnx(network, contract, path, half=False) < 1e-4
    session = onnxruntime.InferenceSession(str(path))
    for hw in ((3 * multiple, 2 * multiple), (5 * multiple, 4 * multiple)):
        images = torch.randn(1, 3, *hw)
        with torch.inference_mode():
            expected = network(images).numpy()
        got = session.run(["logits"], {"image": images.numpy()})[0]
        # relative to the size of the logits: float32 sums in another order
        assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()


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
