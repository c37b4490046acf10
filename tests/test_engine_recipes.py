"""The recipes in engines/: complete, and every plan that can be built without a GPU is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from rtseg import plans
from rtseg.artifact import Contract, load_model, shipped
from rtseg.engine import _plan, _tensorrt
from rtseg.engine_recipe import DESKTOP, read_engine_recipe
from rtseg.precision import full_precision, to_fp16
from rtseg.qdq import convolutions, insert_qdq

RECIPES = sorted((Path(__file__).parents[1] / "engines").glob("*.toml"))
SIZES = ((384, 480), (512, 1024), (1024, 2048))


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


def test_there_is_a_recipe_for_every_network_size_and_kind_of_machine() -> None:
    recipes = [read_engine_recipe(path) for path in RECIPES]
    for model in shipped():
        for size in SIZES:
            found = {
                (r.precision, r.flavour) for r in recipes if r.model == model and r.input_hw == size
            }
            wanted = {("fp16", "rtx"), ("fp16", "tensorrt")}
            if size == SIZES[0]:
                wanted |= {(p, "rtx") for p in ("fp32", "int8", "fp8")}
                wanted |= {("int8", "tensorrt"), ("int8", "any")}
            assert found == wanted
    fp16 = [r for r in recipes if (r.precision, r.flavour) == ("fp16", "rtx")]
    assert all(r.capabilities == DESKTOP for r in fp16)
    jetson = [r for r in recipes if r.flavour == "tensorrt"]
    assert all(r.capabilities == ("SM87", "SM110") and r.on_device for r in jetson)
    assert all(r.for_cpu for r in recipes if r.flavour == "any")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_named_after_what_it_makes(path: Path) -> None:
    recipe = read_engine_recipe(path)
    size = "dynamic" if recipe.input_hw is None else "{}x{}".format(*recipe.input_hw)
    kind = {"rtx": "rtx", "tensorrt": "jetson", "any": "cpu"}[recipe.flavour]
    assert path.stem == recipe.name == f"{recipe.model}-{size}-{recipe.precision}-{kind}"


@pytest.mark.parametrize(
    "path",
    [p for p in RECIPES if p.stem.endswith(("fp16-rtx", "fp32-rtx"))],
    ids=lambda path: path.stem,
)
def test_every_recipe_builds_without_a_gpu(rtx: Any, tmp_path: Path, path: Path) -> None:
    recipe = read_engine_recipe(path)
    model = load_model(recipe.model)
    plan, manifest = _plan.compile_plan(
        model,
        _plan.typed_graph(model, recipe.precision),
        precision=recipe.precision,
        shapes=recipe.shapes,
        capabilities=recipe.capabilities,
        workspace_mib=recipe.workspace_mib,
        optimisation_level=recipe.optimisation_level,
        trt=rtx,
    )
    target = tmp_path / f"{recipe.name}.plan"
    plans.write_plan(target, plan, manifest)
    read = plans.read_manifest(target)
    assert read == manifest
    assert plans.intact(target, read) == ""
    assert plans.check_tensors(read.tensors) == ""
    assert read.tensors["logits"]["dtype"] == {"fp16": "float16", "fp32": "float32"}[read.precision]
    assert (read.flavour, read.version) == ("tensorrt-rtx", rtx.__version__)
    assert read.compute_capabilities == recipe.capabilities
    assert (read.onnx_sha256, read.shapes) == (model.sha256(), recipe.shapes)
    assert Contract.from_metadata(read.contract) == model.contract
    assert read.plan_bytes == len(plan) > 1_000_000
    for capability in recipe.capabilities:
        machine = plans.Machine("tensorrt-rtx", rtx.__version__, capability)
        assert plans.check(read, machine) == ""


@pytest.mark.parametrize("name", shipped())
@pytest.mark.parametrize(("precision", "capabilities"), [("int8", DESKTOP), ("fp8", DESKTOP[3:])])
def test_quantised_graphs_build_without_a_gpu(
    rtx: Any, name: str, precision: str, capabilities: tuple[str, ...]
) -> None:
    graph = full_precision(onnx.load(str(load_model(name).path)))
    layers = convolutions(graph)
    ranges = dict.fromkeys((n for node in graph.graph.node for n in node.input), 4.0)
    typed = to_fp16(insert_qdq(graph, ranges, set(layers), precision))
    built = _tensorrt.build_plan(
        typed.SerializeToString(),
        profiles=[plans.Shapes.fixed((1, 3, 384, 480))],
        compute_capabilities=capabilities,
        trt=rtx,
    )
    assert built.tensors["logits"]["dtype"] == "float16"
