"""`rtseg build` and `rtseg inspect`: every recipe, the parity gate, and what users get wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from _command import Rtseg, refusal
from onnx import TensorProto, helper

from rtseg import build, calibration, plans
from rtseg.artifact import Contract, load_model
from rtseg.calibration import read_frames
from rtseg.engine import _plan, _tensorrt
from rtseg.engine_recipe import read_engine_recipe
from rtseg.errors import ConfigError, EngineError

WriteOnnx = Callable[..., Path]
Recipe = Callable[..., Path]

BODY = {
    "model": '"tiny.onnx"',
    "targets": '["SM80", "SM86"]',
    "flavour": '"rtx"',
    "precision": '"fp16"',
    "input_hw": "[64, 96]",
}
CALIBRATION = '[calibration]\ndata = ["synth:seed=1,frames=4,size=64x96"]\nframes = 4\n'


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.fixture
def recipe(tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Writes a recipe of the tiny model; None takes a key out of it."""
    (tmp_path / "tiny.onnx").write_bytes(tiny_path.read_bytes())
    monkeypatch.chdir(tmp_path)

    def write(name: str = "tiny", end: str = "", **changes: str | None) -> Path:
        lines = [f"{k} = {v}" for k, v in {**BODY, **changes}.items() if v is not None]
        path = tmp_path / f"{name}.toml"
        path.write_text("\n".join([*lines, end]) + "\n")
        return path

    return write


@pytest.fixture
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four small synthetic frames to compare on, in place of sixteen."""
    monkeypatch.setattr(build, "_PARITY_PIXELS", 1)
    monkeypatch.setattr(calibration, "_DRIVE", "synth:seed=11,frames=4,size=64x96")


@pytest.mark.usefixtures("few_frames")
def test_a_batch_from_the_command_line(rtx: Any, rtseg_command: Rtseg, recipe: Recipe) -> None:
    good = recipe("good")
    single = recipe("single", precision='"fp32"')
    jetson = recipe("jetson", targets='["jetson-orin"]', flavour='"tensorrt"')
    bad = recipe("bad", targets='["SM35"]')
    done = rtseg_command("build", good, single, jetson, bad, "--out", "plans", "--json", "b.json")
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.startswith("rtseg: 1 of 4 engines were not built: tiny: tensorrt-rtx ")
    assert "cannot build for SM35" in last
    assert "1 not built: it is built on the device itself (SM87)" in done.out
    assert " 80–86 " in done.out
    made = sorted(path.name for path in Path("plans").iterdir())
    assert made == ["good.json", "good.plan", "single.json", "single.plan"]
    rows = {row["name"]: row for row in json.loads(Path("b.json").read_text())}
    assert list(rows) == ["good", "single", "jetson", "bad"]
    parity = rows["good"]["manifest"]["parity"]
    assert parity["reference"] == "onnxruntime fp32"
    assert 0.995 <= parity["pixel_agreement"] <= 1
    assert parity["frames"] == 4
    assert rows["single"]["manifest"]["parity"]["pixel_agreement"] >= 0.9999
    assert rows["jetson"]["manifest"] is None
    assert "on the device itself" in rows["jetson"]["skipped"]
    assert rows["good"]["seconds"] >= rows["good"]["manifest"]["build_seconds"]
    alone = rtseg_command("build", good)
    assert alone.code == 0, alone.err
    assert Path("good.plan").stat().st_size == Path("plans/good.plan").stat().st_size
    told = rtseg_command("inspect", "good.plan", "--json", "-")
    record = json.loads(told.out)
    assert record["kind"] == "plan"
    assert record["contract"]["name"] == "tiny"
    assert record["plan_sha256"] == plans.read_manifest(Path("good.plan")).plan_sha256
    assert "compute_capabilities: SM80, SM86" in rtseg_command("inspect", "good.json").out


def test_a_recipe_of_another_machine_alone_is_refused(
    rtx: Any, rtseg_command: Rtseg, recipe: Recipe
) -> None:
    jetson = recipe("thor", targets='["jetson-thor"]', flavour='"tensorrt"')
    assert "thor: it is built on the device itself (SM110)" in refusal(
        rtseg_command("build", jetson)
    )
    done = rtseg_command("build", jetson, recipe("orin", targets='["jetson-orin"]', flavour=None))
    assert done.code == 2
    assert "this machine can build none of 2 recipes" in done.err


@pytest.mark.usefixtures("few_frames")
def test_on_the_device_the_gpu_need_not_be_known(
    rtx: Any, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "cuda_capability", lambda: "SM87")
    asked: list[Any] = []

    def build_plan(model: bytes, **options: Any) -> _tensorrt.BuiltPlan:
        asked.append(options["compute_capabilities"])
        return _tensorrt.BuiltPlan(b"plan", {})

    monkeypatch.setattr(_tensorrt, "build_plan", build_plan)
    monkeypatch.setattr(build, "measure_parity", lambda *a, **k: None)
    for targets in ('["jetson-orin", "jetson-thor"]', '["this machine"]'):
        path = recipe(targets=targets, flavour=None)
        read = read_engine_recipe(path)
        assert build.cannot_build(read) == ""
        row = build.build_engine(read, path, path.parent, trt=rtx)
        assert row.manifest is not None
        assert row.manifest.compute_capabilities == ("SM87",)
    assert asked == [(), ()]
    thor = read_engine_recipe(recipe(targets='["jetson-thor"]', flavour=None))
    assert build.cannot_build(thor).endswith("(SM110), and this machine is SM87")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precison": '"fp16"'}, "unknown key 'precison': did you mean 'precision'?"),
        ({"end": "[calibration]\nframe = 3"}, "[calibration]: unknown key 'frame': did you mean"),
        ({"model": None}, "missing key 'model'"),
        ({"model": '"none.onnx"'}, "none.onnx: no such model file"),
        ({"model": '"street-xl"'}, "unknown model 'street-xl'"),
        ({"precision": '"fp64"'}, "precision is 'fp64': choose one of fp32, fp16, int8, fp8"),
        ({"flavour": '"trt"'}, "flavour is 'trt': choose one of rtx, tensorrt, any"),
        ({"targets": "[]"}, "targets is empty"),
        ({"targets": '["sm_86"]'}, "unknown target 'sm_86'"),
        ({"targets": '["this machine", "SM86"]'}, "'this machine' stands alone"),
        ({"targets": '["jetson-orin", "SM86"]', "flavour": None}, "need a recipe each"),
        ({"targets": '["jetson-orin"]'}, "Jetson has no TensorRT-RTX"),
        ({"targets": '"SM86"'}, "targets must be a list of texts"),
        ({"precision": '"fp8"', "end": CALIBRATION}, "fp8 needs SM89 or newer, not SM80, SM86"),
        ({"input_hw": "[65, 96]"}, "input_hw must be multiples of 32 for"),
        ({"input_hw": "[64, 96]", "min_hw": "[64, 96]"}, "give either input_hw, or all of min_hw"),
        ({"input_hw": None}, "give either input_hw, or all of min_hw, opt_hw, max_hw"),
        ({"input_hw": "[64]"}, "input_hw must be two positive integers"),
        ({"input_hw": "[64.0, 96.0]"}, "input_hw must be two whole numbers"),
        (
            {
                "input_hw": None,
                "min_hw": "[64, 96]",
                "opt_hw": "[32, 96]",
                "max_hw": "[96, 96]",
            },
            "min_hw, opt_hw and max_hw must rise",
        ),
        ({"batch": "0"}, "batch must be in 1..64, got 0"),
        ({"optimisation_level": "9"}, "optimisation_level must be in 0..5"),
        ({"workspace_mib": "-1"}, "workspace_mib must be in 0.."),
        ({"precision": '"int8"'}, "int8 needs frames to calibrate on"),
        ({"end": CALIBRATION}, "is not calibrated: remove [calibration]"),
        (
            {"precision": '"int8"', "end": CALIBRATION + 'source = "x.mp4"'},
            "[calibration] has data and source: remove one",
        ),
        (
            {"precision": '"int8"', "end": CALIBRATION + 'method = "median"'},
            "[calibration] method is 'median': choose one of percentile, entropy",
        ),
    ],
    ids=str,
)
def test_bad_recipes(
    rtseg_command: Rtseg, recipe: Recipe, changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(rtseg_command("build", recipe(**changes)))


def test_files_that_are_no_recipes(rtseg_command: Rtseg, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    assert "cannot read the recipe" in refusal(rtseg_command("build", path))
    path.write_bytes(b"\xff\xfe = 3")
    assert "not valid TOML" in refusal(rtseg_command("build", path))


def test_dynamic_shapes_and_a_model_relative_to_the_recipe(recipe: Recipe) -> None:
    path = recipe(
        input_hw=None, min_hw="[32, 32]", opt_hw="[64, 96]", max_hw="[96, 128]", batch="2"
    )
    read = read_engine_recipe(path)
    assert read.shapes == plans.Shapes((2, 3, 32, 32), (2, 3, 64, 96), (2, 3, 96, 128))
    assert Path(read.model) == path.parent / "tiny.onnx"


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ('data = ["camvid:$NO_SUCH"]', "set the environment variable NO_SUCH"),
        ('data = ["camvid:nowhere"]', "nowhere"),
        ('source = "empty"', "no images in this directory"),
        ('source = "gone.mp4"', "gone.mp4: no such file"),
    ],
)
def test_frames_to_calibrate_on_that_are_not_there(
    rtx: Any, rtseg_command: Rtseg, recipe: Recipe, calibration: str, message: str
) -> None:
    Path("empty").mkdir()
    path = recipe(precision='"int8"', end=f"[calibration]\n{calibration}")
    assert message in refusal(rtseg_command("build", path))


def test_an_operator_that_tensorrt_lacks(
    rtx: Any, rtseg_command: Rtseg, recipe: Recipe, write_onnx: WriteOnnx, contract: Contract
) -> None:
    path = write_onnx("odd.onnx", metadata=contract.to_metadata())
    model = onnx.load(str(path))
    model.graph.node[0].output[0] = "plain"
    model.graph.initializer.append(helper.make_tensor("two", TensorProto.INT64, [2], [0, 1]))
    model.graph.node.extend(
        [
            helper.make_node("NonZero", ["image"], ["where"], name="find_them"),
            helper.make_node("Cast", ["where"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float", "two"], ["mean"], keepdims=0),
            helper.make_node("Add", ["plain", "mean"], ["logits"]),
        ]
    )
    onnx.save(model, str(path))
    bad = recipe(model='"odd.onnx"', input_hw="[32, 48]")
    message = refusal(rtseg_command("build", bad))
    assert "cannot take the operator NonZero of the node 'find_them'" in message
    assert not list(bad.parent.glob("*.plan"))


def test_a_place_that_cannot_be_written(rtx: Any, rtseg_command: Rtseg, recipe: Recipe) -> None:
    Path("file").touch()
    done = rtseg_command("build", recipe(), "--out", "file/plans")
    assert "cannot write plans there" in refusal(done)
    assert "--out DIR" in done.err
    assert "/proc: cannot write plans there" in refusal(
        rtseg_command("build", recipe(), "--out", "/proc")
    )
    done = rtseg_command("build", recipe(), "--json", "nodir/x.json")
    assert "directory nodir does not exist" in refusal(done)


def test_without_tensorrt(
    rtseg_command: Rtseg, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, package, None)
    message = refusal(rtseg_command("build", recipe()))
    assert message.endswith("pip install 'rtseg[tensorrt]'")


def negated(graph: bytes) -> bytes:
    """A model with every weight and bias the wrong way round."""
    model = onnx.load_model_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.dims and tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            values = -onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    data: bytes = model.SerializeToString()
    return data


def test_the_gate_on_a_shipped_network() -> None:
    model = load_model("street-s")
    frames = read_frames(
        "synth:seed=3,frames=4,size=192x256", model.contract.classes, count=4, split="val"
    )
    graph = _plan.typed_graph(model, "fp16")
    parity = build.measure_parity(model, graph, "fp16", frames, (192, 256))
    assert parity is not None
    assert 0.999 < parity["pixel_agreement"] < 1
    assert abs(parity["miou_difference"]) < 0.005
    with pytest.raises(EngineError, match=r"street-s: fp16 gives .* 99\.5 % are needed"):
        build.measure_parity(model, negated(graph), "fp16", frames, (192, 256))


@pytest.mark.usefixtures("few_frames")
def test_a_graph_that_misses_the_gate(
    rtx: Any, rtseg_command: Rtseg, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "typed_graph", lambda *a: negated(_plan.typed_graph(*a)))
    message = refusal(rtseg_command("build", recipe()))
    assert message.startswith("tiny: fp16 gives ")
    assert "99.5 % are needed" in message
    assert not list(Path().glob("*.plan"))
    done = rtseg_command("build", recipe(), "--allow-mismatch")
    assert done.code == 0, done.err
    parity = plans.read_manifest(Path("tiny.plan")).parity
    assert parity is not None
    assert parity["pixel_agreement"] < 0.99


@pytest.mark.usefixtures("few_frames")
def test_no_comparison_without_onnx_runtime(
    rtx: Any, recipe: Recipe, rtseg_command: Rtseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "available", lambda name: f"{name} is missing")
    message = refusal(rtseg_command("build", recipe()))
    assert "the comparison with float32 cannot be made: onnxruntime is missing" in message
    assert rtseg_command("build", recipe(), "--allow-mismatch").code == 0
    assert plans.read_manifest(Path("tiny.plan")).parity is None


def test_an_engine_is_found_built_and_built_again(
    rtx: Any, tiny_path: Path, tmp_path: Path
) -> None:
    model, store, notices = load_model(str(tiny_path)), plans.Store(tmp_path), list[str]()

    def plan_for(capability: tuple[int, int]) -> Path:
        return _plan.plan_for(
            model,
            (1, 3, 64, 96),
            "fp16",
            capability,
            store=store,
            on_notice=notices.append,
            trt=rtx,
        )

    path = plan_for((8, 6))
    assert plan_for((8, 6)) == path
    path.write_bytes(path.read_bytes()[:-100])
    assert plan_for((8, 6)) == path
    assert notices[0].endswith(".plan: there is none yet")
    assert ".plan: corrupt: " in notices[1]
    assert len(notices) == 2
    assert plans.intact(path, plans.read_manifest(path)) == ""
    other = plan_for((8, 9))
    assert other != path
    assert "was built for SM86, this GPU is SM89" in notices[2]
    assert plans.read_manifest(other).compute_capabilities == ("SM89",)


def test_graphs_are_typed_as_asked(tiny_path: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_path))

    def weights(precision: str) -> set[int]:
        graph = onnx.load_model_from_string(_plan.typed_graph(model, precision)).graph
        return {t.data_type for t in graph.initializer if len(t.dims) == 4}

    assert weights("fp32") == {TensorProto.FLOAT}
    assert weights("fp16") == {TensorProto.FLOAT16}
    with pytest.raises(ConfigError, match="computes in float32, not in int8: quantise it by a"):
        _plan.typed_graph(model, "int8")
    half = tmp_path / "half.onnx"
    half.write_bytes(_plan.typed_graph(model, "fp16"))
    with pytest.raises(ConfigError, match="computes in fp16, not in fp32: run it with"):
        _plan.typed_graph(load_model(str(half)), "fp32")


def test_the_verdict() -> None:
    done = build.EngineRow("a", Path("a.toml"))
    skipped = build.EngineRow("b", Path("b.toml"), skipped="no GPU")
    failed = build.EngineRow("c", Path("c.toml"), error="no tactic")
    assert build.verdict([done, skipped]) == ""
    assert build.verdict([skipped, skipped]).endswith("none of 2 recipes: no GPU")
    assert build.verdict([done, failed]) == "1 of 2 engines were not built: no tactic"
