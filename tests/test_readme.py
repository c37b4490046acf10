"""The README is a promise: what it shows is run, what it links exists, its figures are recorded."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rtseg import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CONSOLE = [
    line.removeprefix("$ ")
    for language, block in BLOCKS
    if language == "console"
    for line in block.splitlines()
    if line.startswith("$ ")
]
SETUP = [block.strip() for language, block in BLOCKS if language == "bash"]


def _rtseg(command: str) -> list[str]:
    """The arguments behind `rtseg` in a shell line."""
    words = shlex.split(command.rpartition("&&")[2])
    assert words[0].endswith("rtseg")
    return words[1:]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory after the README's first command, with less to do: fewer frames and steps."""
    directory = tmp_path_factory.mktemp("readme")
    (directory / "benchmarks").mkdir()
    (directory / "engines").symlink_to(ROOT / "engines")
    smoke = (ROOT / "benchmarks" / "smoke.toml").read_text()
    for long, brief in (("frames=200", "frames=8"), ("frames=24", "frames=2"), ("= 75", "= 2")):
        assert long in smoke
        smoke = smoke.replace(long, brief)
    smoke = smoke.replace("steps = 300", "steps = 4").replace("batch = 8", "batch = 2")
    (directory / "benchmarks" / "smoke.toml").write_text(smoke)
    arguments = _rtseg(SETUP[0])
    arguments[arguments.index("--max-frames") + 1] = "30"
    _run(arguments, directory)
    assert (directory / "drive.mp4").stat().st_size > 10_000
    assert (directory / "report.json").is_file()
    shutil.copy(directory / "drive.mp4", directory / "street.mp4")  # the user's own
    return directory


def _run(arguments: list[str], directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rtseg.cli", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", CONSOLE)
def test_console_commands_run(command: str, workplace: Path) -> None:
    if "rtx" in command:
        pytest.importorskip("tensorrt_rtx")
    _run(_rtseg(command), workplace)


@pytest.mark.slow
def test_python_example_runs(workplace: Path) -> None:
    (example,) = [block for language, block in BLOCKS if language == "python"]
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=workplace,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(360, 480)")
    assert done.stdout.count("road\n") == 10


def test_leads_with_a_picture_and_two_commands() -> None:
    picture = re.search(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert picture is not None
    assert README.index(picture[0]) < README.index("```bash")
    assert (ROOT / picture[1]).read_bytes().startswith(b"\x89PNG")
    assert len(SETUP) == 2
    assert all(len(command.splitlines()) == 1 for command in SETUP)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert SETUP[1] in (ROOT / ".ci" / "run").read_text()


def test_every_command_is_mentioned() -> None:
    names = [
        command.name or command.callback.__name__
        for command in cli.app.registered_commands
        if command.callback is not None
    ]
    missing = [name for name in names if f"rtseg {name}" not in README]
    assert not missing


def test_local_links_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_figures_are_those_of_the_records() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import figures
    finally:
        sys.path.pop(0)
    assert figures.written(README, ROOT / "benchmarks" / "results") == README
