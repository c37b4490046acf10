"""Checkpoints that are not what they should be: one clear line each, and nothing is run or kept."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from rtseg.errors import ConfigError  # noqa: E402
from rtseg.importing import import_checkpoint, read_state  # noqa: E402

WEIGHT = {"conv.weight": torch.ones(2, 3, 1, 1)}


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        import_checkpoint(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or options
    return str(caught.value)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path / "none.pth")


class Evil:
    """Unpickled by the trusting, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_never_run(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "evil.pth"
    content = {"state_dict": WEIGHT, "evil": Evil(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "never run" in refusal(path)
    assert not trace.exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Evil(trace)))
    refusal(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_file(tmp_path: Path, suffix: str, keep: float) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"cut{suffix}"
    state = {"conv.weight": torch.ones(8, 3, 32, 32)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    refusal(path)


def test_an_archive_that_unfolds_to_more_than_it_is(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain.pth", {"conv.weight": torch.zeros(64, 64, 32, 32)})
    bomb = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry.filename))
    assert bomb.stat().st_size < plain.stat().st_size / 10
    assert "would unfold to 17 MB" in refusal(bomb)


def test_a_tensor_that_claims_more_than_its_storage(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(1 << 40)
    assert "claims more values" in refusal(saved(tmp_path / "huge.pth", {"conv.weight": huge}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    broken = torch.ones(2, 3, 1, 1)
    broken[1, 2] = value
    path = saved(tmp_path / "nan.pth", {"model": {"conv.weight": broken}})
    assert "conv.weight is not finite" in refusal(path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, "text", torch.ones(3)])
def test_no_state_dict(tmp_path: Path, content: Any) -> None:
    assert "no state dict" in refusal(saved(tmp_path / "empty.pth", content))


def test_weights_of_no_network_that_is_known(tmp_path: Path) -> None:
    path = saved(tmp_path / "other.pth", {f"stem.{i}.weight": torch.ones(3) for i in range(9)})
    message = refusal(path)
    assert "stem.0.weight" in message
    assert "more" in message


def test_an_unknown_name(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path / "w.pth", WEIGHT), name="sfnet-light")
    assert "nearest" in message
    assert "sfnet-lite" in message


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.pth"
    path.write_text("not a checkpoint\n" * 20)
    refusal(path)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{k}": v for k, v in {**WEIGHT, "bn.bias": torch.ones(2).half()}.items()}
    content = {"state_dict": state, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}}
    read = read_state(saved(tmp_path / "wrapped.pth", content))
    assert set(read) == {"conv.weight", "bn.bias"}
    assert read["bn.bias"].dtype == torch.float32
