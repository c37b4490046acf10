"""Engines: they agree with the reference, and refuse what they cannot do in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtseg import engine as engines
from rtseg.artifact import Contract, ModelFile, load_model, shipped
from rtseg.data.synth import Drive
from rtseg.engine import PRECISIONS, open_engine, ov
from rtseg.errors import ConfigError, EngineError, ModelError, RtsegError
from rtseg.frame import Frame, ImageBGR, Labels
from rtseg.segmenter import Segmenter

# The gate of a build: share of pixels that must agree with ONNX Runtime in fp32.
AGREEMENT = {"fp32": 0.9999, "bf16": 0.995, "fp16": 0.995}
WriteOnnx = Callable[..., Path]


@contextlib.contextmanager
def segmenter(
    model: ModelFile, name: str, precision: str, size: tuple[int, int] | None = None
) -> Iterator[Segmenter]:
    """A segmenter that is closed; skips if the engine or the precision is not of this machine."""
    if reason := engines.available(name):
        pytest.skip(reason)
    try:
        opened = Segmenter(model, open_engine(model, name, precision), size=size)
    except ConfigError as error:
        pytest.skip(str(error))
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture(scope="module", params=shipped())
def street(request: pytest.FixtureRequest) -> ModelFile:
    """Each shipped model."""
    return load_model(request.param)


@pytest.fixture(scope="module")
def frames() -> list[ImageBGR]:
    """Streets of several seeds, one of them not the size of training."""
    pictures = [Drive(seed, (360, 480)).frame(60 * seed)[0] for seed in (1, 2, 3)]
    return [*pictures, Drive(4, (270, 480)).frame(5)[0]]


@pytest.fixture(scope="module")
def reference(street: ModelFile, frames: list[ImageBGR]) -> list[Labels]:
    """Labels by ONNX Runtime in fp32."""
    with segmenter(street, "onnxruntime", "fp32") as segment:
        return [segment(bgr).labels for bgr in frames]


@pytest.mark.parametrize("precision", AGREEMENT)
@pytest.mark.parametrize("name", engines.names())
def test_parity(
    street: ModelFile,
    frames: list[ImageBGR],
    reference: list[Labels],
    name: str,
    precision: str,
) -> None:
    with segmenter(street, name, precision) as segment:
        equal = [
            segment(bgr).labels == expected for bgr, expected in zip(frames, reference, strict=True)
        ]
    share = np.concatenate([e.ravel() for e in equal]).mean()
    assert share >= AGREEMENT[precision]


@pytest.mark.parametrize("name", engines.names())
def test_another_size_of_input_and_back(tiny: ModelFile, name: str) -> None:
    rng = np.random.default_rng(0)
    images = [
        rng.standard_normal((1, 3, *hw), dtype=np.float32)
        for hw in ((64, 96), (96, 64), (32, 32), (64, 96))
    ]
    with segmenter(tiny, "onnxruntime", "fp32") as segment:
        expected = [np.array(segment.engine.infer(x)) for x in images]
    with segmenter(tiny, name, "fp32") as segment:
        for x, wanted in zip(images, expected, strict=True):
            got = segment.engine.infer(x)
            assert got.shape == wanted.shape
            # float32 sums in another order, through some twenty layers
            assert np.allclose(got, wanted, rtol=1e-3, atol=1e-3)


def test_openvino_keeps_the_latest_shapes(tiny: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs lie and stand in turns; compiling takes as long as dozens of them."""
    compiled: list[tuple[int, ...]] = []
    compile_one = ov.OpenVINOEngine._compile

    def spy(engine: ov.OpenVINOEngine, shape: tuple[int, ...]) -> Any:
        compiled.append(shape)
        return compile_one(engine, shape)

    monkeypatch.setattr(ov.OpenVINOEngine, "_compile", spy)
    shapes = [(1, 3, 32 * (1 + i), 64) for i in range(5)]
    with segmenter(tiny, "openvino", "fp32") as segment:
        for shape in (shapes[0], shapes[1], shapes[0], shapes[1]):
            segment.engine.infer(np.zeros(shape, np.float32))
        assert compiled == shapes[:2]
        for shape in shapes[2:]:  # the fifth is one too many: the one used longest ago goes
            segment.engine.infer(np.zeros(shape, np.float32))
        segment.engine.infer(np.zeros(shapes[1], np.float32))
        assert compiled == shapes
        segment.engine.infer(np.zeros(shapes[0], np.float32))
        assert compiled == [*shapes, shapes[0]]


def test_openvino_takes_views(tiny: ModelFile) -> None:
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 96), dtype=np.float32)
    with segmenter(tiny, "openvino", "fp32") as segment:
        got = segment.engine.infer(images[..., ::-1])
        assert np.array_equal(got, segment.engine.infer(images[..., ::-1].copy()))


@pytest.mark.parametrize("name", engines.names())
def test_a_batch_is_its_pictures(tiny: ModelFile, name: str) -> None:
    batch = np.random.default_rng(1).standard_normal((3, 3, 64, 96), dtype=np.float32)
    with segmenter(tiny, name, "fp32") as segment:
        together = np.array(segment.engine.infer(batch))
        apart = [np.array(segment.engine.infer(batch[i : i + 1])) for i in range(3)]
    assert together.shape == (3, 11, 16, 24)
    assert np.allclose(together, np.concatenate(apart), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", engines.names())
def test_a_precision_runs_or_is_refused(tiny: ModelFile, name: str, precision: str) -> None:
    if reason := engines.available(name):
        pytest.skip(reason)
    refusal = ""
    try:
        opened = open_engine(tiny, name, precision)
    except ConfigError as error:
        refusal = str(error)
    if refusal:
        assert precision in refusal
        assert "\n" not in refusal
        return
    assert precision in ("auto", opened.info.precision)
    assert opened.info.precision in PRECISIONS
    assert np.isfinite(opened.infer(np.zeros((1, 3, 64, 96), np.float32))).all()
    opened.close()


def test_unknown_names_list_the_known_ones(tiny: ModelFile) -> None:
    with pytest.raises(ConfigError, match="unknown engine 'caffe': choose auto or one of eager"):
        open_engine(tiny, "caffe")
    with pytest.raises(ConfigError, match="unknown precision 'fp64': choose one of auto, fp32"):
        open_engine(tiny, "auto", "fp64")


def test_auto_opens_one_that_can_run_here(tiny: ModelFile) -> None:
    opened = open_engine(tiny)
    assert opened.info.name in engines.names()
    assert engines.available(opened.info.name) == ""
    opened.close()


@pytest.mark.parametrize("name", engines.names())
def test_a_graph_that_no_runtime_loads(
    write_onnx: WriteOnnx, contract: Contract, name: str
) -> None:
    import onnx

    path = write_onnx(metadata=contract.to_metadata())
    graph = onnx.load(str(path))
    graph.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(graph, str(path))
    refused_by(name, load_model(str(path)))


@pytest.mark.parametrize("name", engines.names())
def test_several_requests_give_the_labels_of_one_in_order(tiny: ModelFile, name: str) -> None:
    if reason := engines.available(name):
        pytest.skip(reason)
    rng = np.random.default_rng(0)
    # Two sizes in turn, so that a shape is compiled while the other one still runs.
    pictures = [rng.integers(0, 256, (48 + 32 * (i % 2), 64, 3), np.uint8) for i in range(8)]
    results: list[list[Labels]] = []
    for requests in (1, 3):
        opened = open_engine(tiny, name, "fp32", requests=requests)
        assert 1 <= opened.info.requests <= requests
        with contextlib.closing(Segmenter(tiny, opened)) as segment:
            flying = [
                segment.submit(Frame(picture, i, 0.0, 0.0)) for i, picture in enumerate(pictures)
            ]
            results.append([segment.collect(frame).labels for frame in flying])
            fps = segment.engine_fps(0.01)
            assert fps is not None
            assert fps > 0
    for one, several in zip(*results, strict=True):
        np.testing.assert_array_equal(one, several)


def refused_by(name: str, model: ModelFile) -> str:
    """The one line with which an engine, or its first inference, fails."""
    if reason := engines.available(name):
        pytest.skip(reason)

    def use() -> None:
        with contextlib.closing(open_engine(model, name, "fp32")) as opened:
            opened.infer(np.zeros((1, 3, 32, 48), np.float32))

    with pytest.raises(RtsegError) as caught:
        use()
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, EngineError | ModelError)
    return message


def test_eager_refuses_a_network_that_is_not_ours(
    write_onnx: WriteOnnx, contract: Contract
) -> None:
    path = write_onnx(metadata=contract.to_metadata())
    assert "use --engine openvino or onnxruntime" in refused_by("eager", load_model(str(path)))


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_foreign_model_with_classes_mean_and_std(
    write_onnx: WriteOnnx, tmp_path: Path, name: str
) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("road\ncar\nsky\n")
    path = write_onnx(declare_output=False)
    model = load_model(str(path), classes_file=classes, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    bgr = np.random.default_rng(2).integers(0, 256, (32, 64, 3), np.uint8)
    with segmenter(model, name, "fp32") as segment:
        labels = segment(bgr).labels
    weights = np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32)[:, :, 0, 0]
    rgb = (bgr[:, :, ::-1] / 255.0 - model.contract.mean) / model.contract.std
    logits = rgb @ weights.T
    best = np.sort(logits, -1)
    clear = best[:, :, -1] - best[:, :, -2] > 1e-3  # ties may fall either way in float32
    assert clear.mean() > 0.99
    assert np.array_equal(labels[clear], logits.argmax(-1)[clear])


def test_classes_that_do_not_fit_an_open_graph(write_onnx: WriteOnnx, contract: Contract) -> None:
    path = write_onnx(channels=4, metadata=contract.to_metadata(), declare_output=False)
    with (
        segmenter(load_model(str(path)), "onnxruntime", "fp32") as segment,
        pytest.raises(EngineError, match="class table does not fit the graph"),
    ):
        segment(np.zeros((32, 48, 3), np.uint8))


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_parity_on_a_gpu(
    street: ModelFile, frames: list[ImageBGR], reference: list[Labels], precision: str
) -> None:
    with segmenter(street, "eager", precision) as segment:
        assert segment.engine.info.device != "CPU"
        equal = [
            segment(bgr).labels == expected for bgr, expected in zip(frames, reference, strict=True)
        ]
    assert np.concatenate([e.ravel() for e in equal]).mean() >= AGREEMENT[precision]
