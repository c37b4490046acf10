"""Every network keeps the contract of `rtseg.models`: a new family is tested the day it is added.

The first variant of a family, its lightest, goes through everything; the others, which differ in
depth and width, are built, counted and compared with the published table.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")

from rtseg import engine as engines  # noqa: E402
from rtseg import plugins  # noqa: E402
from rtseg.artifact import Contract, ModelFile, load_model  # noqa: E402
from rtseg.bench import bench_row  # noqa: E402
from rtseg.data import class_table, open_data  # noqa: E402
from rtseg.engine import open_engine  # noqa: E402
from rtseg.export import export_onnx  # noqa: E402
from rtseg.frame import Labels  # noqa: E402
from rtseg.models import _catalogue  # noqa: E402
from rtseg.models.layers import Network, fuse_batch_norm  # noqa: E402
from rtseg.native import upsample_argmax  # noqa: E402
from rtseg.objective import segmentation_loss  # noqa: E402
from rtseg.precision import to_fp16  # noqa: E402

FAMILIES = plugins.names("rtseg.models")
SYNTH = "synth:seed=5,frames=4,size=96x128"
CLASSES = class_table(SYNTH)

RANDOM_LOGITS_AGREE = 0.99
"""Share of pixels that must agree in float32: of random weights, whose classes lie close together.

The parity gate's 0.9999 is for trained networks. How near two classes lie in a random one differs
by family, so the logits themselves are compared too, tightly.
"""

NOT_IN_TENSORRT: dict[str, str] = {}
"""Families that TensorRT cannot build, and its reason."""


def variants(family: str) -> dict[str, Any]:
    found: dict[str, Any] = plugins.load("rtseg.models", family).VARIANTS
    return found


def build(family: str, num_classes: int = len(CLASSES)) -> Network:
    torch.manual_seed(0)
    first = next(iter(variants(family).values()))
    return _catalogue.build(family, num_classes, first.options)


def settled(family: str) -> Network:
    """In eval mode, with norms whose statistics are those of noise."""
    network = build(family).train()
    multiple = network.input_multiple
    with torch.inference_mode():
        for _ in range(3):
            network(torch.randn(2, 3, 2 * multiple, 3 * multiple))
    return network.eval()


# What a family states


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_states_its_facts(family: str) -> None:
    module = plugins.load("rtseg.models", family)
    assert module.PAPER
    assert 2010 < module.YEAR < 2100
    assert module.VARIANTS
    assert all(name == name.lower() and "_" not in name for name in module.VARIANTS)
    parameters = list(inspect.signature(module.build).parameters.values())
    assert parameters[0].name == "num_classes"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[1:])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_what_the_code_builds(family: str) -> None:
    rows = [dict(row) for row in _catalogue.table() if row["family"] == family]
    assert rows == _catalogue.measure_family(family), "run: python -m rtseg.models._catalogue"


def test_no_two_networks_share_a_name() -> None:
    names = [name for family in FAMILIES for name in variants(family)]
    assert len(set(names)) == len(names)
    assert names == _catalogue.names()


def test_files_of_networks_are_short() -> None:
    package = Path(_catalogue.__file__).parent
    for path in package.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 250, f"{path.name}: at most 250 lines"


# What a network does


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("odd", [(1, 1), (7, 18), (29, 0)])
def test_a_network_survives_odd_sizes(family: str, odd: tuple[int, int]) -> None:
    network = build(family, 5).eval()
    size = (2 * network.input_multiple + odd[0], 3 * network.input_multiple + odd[1])
    with torch.inference_mode():
        logits = network(torch.randn(1, 3, *size))
    assert logits.shape[:2] == (1, 5)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_have_the_stride_that_is_stated(family: str) -> None:
    network = build(family, 5).eval()
    stride, multiple = network.output_stride, network.input_multiple
    assert multiple % stride == 0
    for scale in ((2, 2), (2, 5)):
        height, width = (s * multiple for s in scale)
        with torch.inference_mode():
            logits = network(torch.randn(1, 3, height, width))
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (1, 5, height // stride, width // stride)


@pytest.mark.parametrize("family", FAMILIES)
def test_eval_is_deterministic(family: str) -> None:
    network = settled(family)
    images = torch.randn(2, 3, 2 * network.input_multiple, 2 * network.input_multiple)
    with torch.inference_mode():
        first, again = network(images), network(images)
        alone = network(images[:1])
    assert torch.equal(first, again)
    # An image's logits do not depend on its batch.
    torch.testing.assert_close(alone, first[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_reaches_every_weight_and_lowers_the_loss(family: str) -> None:
    network = build(family, 5).train()
    # A picture whose brightness tells the class.
    labels = torch.arange(5).repeat_interleave(2).reshape(1, 1, 10).expand(2, 10, 10)
    side = 2 * network.input_multiple
    tall = torch.nn.functional.interpolate(labels[:, None].float(), size=(side, side))
    truth = tall[:, 0].long()
    images = (tall / 2 - 1).expand(-1, 3, -1, -1) + 0.1 * torch.randn(2, 3, side, side)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for step in range(6):
        torch.manual_seed(step)
        outputs = network(images)
        assert isinstance(outputs, list)
        loss = segmentation_loss(
            outputs,
            truth,
            ignore_index=255,
            align_corners=network.align_corners,
            boundary_weight=20.0 if network.boundary_head else None,
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, f"{name} takes no part"
            assert torch.isfinite(parameter.grad).all(), name
        optimiser.step()
        losses.append(float(loss.detach()))
    semantic = outputs[:-1] if network.boundary_head else outputs
    assert all(o.shape[:2] == (2, 5) for o in semantic)
    assert not network.boundary_head or outputs[-1].shape[:2] == (2, 1)
    assert min(losses[3:]) < losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_the_norms_changes_nothing(family: str) -> None:
    network = settled(family)
    images = torch.randn(1, 3, 2 * network.input_multiple, 3 * network.input_multiple)
    with torch.inference_mode():
        before = network(images)
        after = fuse_batch_norm(network)(images)
    # Float32 rounding of the folded weights, through all the layers.
    assert (after - before).norm() < 1e-3 * before.norm()


# The model file


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(network, its model file), each family once."""
    family = request.param
    network = settled(family)
    multiple = network.input_multiple
    first = next(iter(variants(family).values()))
    contract = Contract(
        family, CLASSES, (0.5,) * 3, (0.25,) * 3, (2 * multiple, 3 * multiple), multiple,
        network.output_stride, network.align_corners, family, first.options,
    )  # fmt: skip
    path = tmp_path_factory.mktemp(family) / f"{family}.onnx"
    assert export_onnx(network, contract, path, half=False) < 1e-3
    return network, load_model(str(path))


def labels_of(logits: Any, file: ModelFile) -> Labels:
    """At the input's size, as the segmenter makes them."""
    stride = file.contract.output_stride
    size = (logits.shape[2] * stride, logits.shape[3] * stride)
    return upsample_argmax(np.ascontiguousarray(logits[0]), size, file.contract.align_corners)


def images_for(file: ModelFile, scale: tuple[int, int] = (3, 2)) -> Any:
    height, width = (s * file.contract.input_multiple for s in scale)
    return np.random.default_rng(3).standard_normal((1, 3, height, width), dtype=np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [(3, 2), (4, 5)])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "eager"])
def test_engines_agree_with_torch(exported: Any, engine: str, scale: tuple[int, int]) -> None:
    if reason := engines.available(engine):
        pytest.skip(reason)
    network, file = exported
    images = images_for(file, scale)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    runner = open_engine(file, engine, precision="fp32")
    got = runner.infer(images)
    runner.close()
    assert got.shape == expected.shape
    assert np.linalg.norm(got - expected) < 1e-3 * np.linalg.norm(expected)
    same = labels_of(got, file) == labels_of(expected, file)
    assert same.mean() >= RANDOM_LOGITS_AGREE


@pytest.fixture(scope="module")
def halved(exported: Any) -> Any:
    """(network, its model file, the graph in fp16)."""
    import onnx

    network, file = exported
    return network, file, to_fp16(onnx.load(str(file.path)))


@pytest.mark.slow
def test_the_fp16_graph_is_the_network(halved: Any) -> None:
    network, file, graph = halved
    images = images_for(file)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    got = session.run(["logits"], {"image": images})[0].astype(np.float32)
    assert np.linalg.norm(got - expected) < 3e-2 * np.linalg.norm(expected)


@pytest.mark.slow
def test_tensorrt_builds_the_fp16_graph(halved: Any) -> None:
    from rtseg.engine import _tensorrt
    from rtseg.plans import Shapes

    if reason := _tensorrt.missing("tensorrt-rtx"):
        pytest.skip(reason)
    _, file, graph = halved
    if reason := NOT_IN_TENSORRT.get(file.contract.family, ""):
        pytest.xfail(reason)
    height, width = (s * file.contract.input_multiple for s in (2, 3))
    fixed = (1, 3, height, width)
    built = _tensorrt.build_plan(
        graph.SerializeToString(),
        profiles=[Shapes(fixed, fixed, fixed)],
        compute_capabilities=("SM86",),
        optimisation_level=0,
        trt=_tensorrt.load("tensorrt-rtx"),
    )
    assert len(built.data) > 1000
    assert set(built.tensors) == {"image", "logits"}


@pytest.mark.slow
def test_bench_runs_it(exported: Any) -> None:
    _, file = exported
    height, width = (s * file.contract.input_multiple for s in (2, 3))
    row = bench_row(
        file, open_data(SYNTH, "val"), engine="openvino", precision="fp32",
        size=(height, width), frames=10,
    )  # fmt: skip
    assert not row["error"]
    assert row["fps"] > 0
    assert row["miou"] is not None
