"""Shared fixtures: a tiny model, small data sets, a time limit, real data where it is present."""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest
from _command import rtseg_command, short

from rtseg.artifact import Contract, ModelFile, load_model
from rtseg.data import camvid as camvid_data
from rtseg.frame import ClassTable
from rtseg.recipe import DataRecipe, ModelRecipe, OptimiserRecipe, Recipe

# Read when torch loads. Networks are tiny here: on busy cores a second thread is only waited for.
os.environ.setdefault("OMP_NUM_THREADS", "1")

__all__ = ["rtseg_command", "short"]
"""Fixtures of other modules; pytest finds those of this one by itself."""

SHARED = Path(__file__).parents[1] / "../shared/data"
LIMIT_SECONDS = 20.0
"""Far more than anything here needs: only a hang reaches it."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `cuda` is skipped without a GPU, and fails where there must be one."""
    if item.get_closest_marker("cuda") is not None and not _gpu_count():
        _without_cuda("no NVIDIA GPU, or no driver")


def _gpu_count() -> int:
    """GPUs that the driver shows; asks no package, so that a missing one is no excuse."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def _without_cuda(reason: str) -> NoReturn:
    if os.environ.get("RTSEG_REQUIRE_CUDA") == "1":
        pytest.fail(f"RTSEG_REQUIRE_CUDA=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture
def cuda() -> Iterator[Any]:
    """`pycuda.driver`, the first GPU's primary context current in this thread."""
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:
        _without_cuda(f"pycuda does not load: {error}")
    driver.init()
    context = driver.Device(0).retain_primary_context()
    context.push()
    try:
        yield driver
    finally:
        driver.Context.pop()


@pytest.fixture
def limited() -> Callable[[Callable[[], Any]], Any]:
    """Calls a function in a thread and fails if it has not returned within LIMIT_SECONDS."""

    def call(function: Callable[[], Any]) -> Any:
        outcome: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                outcome.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(LIMIT_SECONDS)
        if thread.is_alive():
            pytest.fail(f"not done within {LIMIT_SECONDS:g} s: it hangs")
        if errors:
            raise errors[0]
        return outcome[0]

    return call


@pytest.fixture(scope="session")
def camvid_dir() -> Path:
    """CamVid as it was published; skips where it is missing."""
    return _present(SHARED / "camvid")


@pytest.fixture(scope="session")
def drive_video() -> Path:
    """A real drive, 960x540, 25 fps, 221 frames; skips where it is missing."""
    return _present(SHARED / "video" / "solidWhiteRight.mp4")


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name} is not on this machine")
    return path


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """A network of a few thousand weights over CamVid's classes, trained for four steps."""
    options = {
        "stem_channels": (8, 8),
        "channels": (8, 8, 16, 16),
        "blocks": (1, 1, 1, 1),
        "width": 8,
    }
    return Recipe(
        "tiny",
        ModelRecipe("sfnet_lite", options),
        DataRecipe(("camvid:$TINY_DATA",), "camvid:$TINY_DATA", (), (64, 96), (64, 64)),
        OptimiserRecipe(steps=4, batch=2, warmup_steps=2, validate_every=2, workers=0),
        seed=7,
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for the tiny network, lively enough that classes differ over an image."""
    import torch

    from rtseg import plugins
    from rtseg.models._weights import save_weights

    torch.manual_seed(0)
    module = plugins.load("rtseg.models", tiny_recipe.model.family)
    network = module.build(len(camvid_data.CLASSES), **tiny_recipe.model.options)
    network.train()
    with torch.no_grad():
        for _ in range(8):  # gives the norms statistics that are not those of nothing
            network(torch.randn(4, 3, 64, 96))
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_weights(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_path(
    tiny_recipe: Recipe, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny network as a model file: 11 classes, input 64x96, multiple 32, stride 4."""
    from rtseg.export import export_checkpoint

    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    export_checkpoint(tiny_recipe, tiny_checkpoint, path)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> ModelFile:
    """The tiny network, its contract read."""
    return load_model(str(tiny_path))


@pytest.fixture
def write_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Writes a 1x1 convolution with a fixed output shape as ONNX, right or wrong as asked."""

    def write(
        name: str = "bare.onnx",
        *,
        channels: int = 3,
        rank: int = 4,
        metadata: Mapping[str, str] | None = None,
        declare_output: bool = True,
    ) -> Path:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        rng = np.random.default_rng(0)
        weights = rng.standard_normal((channels, 3, 1, 1)).astype(np.float32)
        nodes = [helper.make_node("Conv", ["image", "weight"], ["logits"])]
        shape: list[Any] = ["N", channels, "H", "W"]
        output, kind = "logits", TensorProto.FLOAT
        if rank == 3:
            nodes.append(helper.make_node("ArgMax", ["logits"], ["labels"], axis=1, keepdims=0))
            shape, output, kind = ["N", "H", "W"], "labels", TensorProto.INT64
        graph = helper.make_graph(
            nodes,
            "bare",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, "H", "W"])],
            [helper.make_tensor_value_info(output, kind, shape if declare_output else None)],
            [numpy_helper.from_array(weights, "weight")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        for key, value in (metadata or {}).items():
            model.metadata_props.add(key=key, value=value)
        path = tmp_path / name
        onnx.save(model, str(path))
        return path

    return write


@pytest.fixture
def contract() -> Contract:
    """Three classes, no normalisation, any input size, logits at full size."""
    table = ClassTable(("road", "car", "sky"), ((128, 64, 128), (64, 0, 128), (128, 128, 128)))
    return Contract(
        "bare", table, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (32, 48), input_multiple=1, output_stride=1
    )


@pytest.fixture
def camvid_like(tmp_path: Path) -> Path:
    """CamVid's index layout with 4 training and 2 validation images of 48x64."""
    root = tmp_path / "camvid-like"
    rng = np.random.default_rng(3)
    palette = np.array([*camvid_data.PALETTE, (0, 0, 0)], np.uint8)[:, ::-1]
    for split, count in (("train", 4), ("val", 2)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for i in range(count):
            coarse = rng.integers(0, 12, (6, 8), np.uint8)
            labels = np.kron(coarse, np.ones((8, 8), np.uint8))
            cv2.imwrite(str(root / split / f"{split}_{i}.png"), palette[labels])
            cv2.imwrite(str(root / f"{split}annot" / f"{split}_{i}.png"), labels)
    return root
