"""The wheel, in an environment that has nothing but what the wheel asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.slow,
    # Installing the dependencies takes a minute or two, most of it the network's.
    pytest.mark.timeout(900),
]


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command outside the checkout; a failure shows all that it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with the build tools that are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    builder: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    run(*builder, "--outdir", folder, REPOSITORY, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a new virtual environment that holds the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    programs = folder / "venv" / "bin"
    pip: list[str | Path] = [programs / "python", "-m", "pip", "--disable-pip-version-check", "-qq"]
    # Most of what pip would compile is never imported here.
    pip += ["install", "--no-compile", "-c", REPOSITORY / "constraints.txt"]
    run(*pip, wheel, folder=folder)
    return programs


def test_wheel_holds_the_package_its_types_its_command_and_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        commands = archive.read(entry_points).decode()
    source = REPOSITORY / "src"
    modules = {path.relative_to(source).as_posix() for path in source.rglob("das_gpu/**/*.py")}
    assert modules <= set(names)
    assert "das_gpu/py.typed" in names
    kernels = {f"das_gpu/_kernels/{path.name}" for path in (REPOSITORY / "kernels").glob("*.cu*")}
    assert len(kernels) > 8
    assert kernels <= set(names)
    assert "das-gpu = das_gpu.__main__:command" in commands
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert [name for name in names if name.startswith(("tests/", "bench/"))] == []


def test_clean_installation_turns_the_demo_into_images(clean: Path, tmp_path: Path) -> None:
    # One test, so that the tests' workers never make two such environments.
    script = "from importlib.metadata import version; print(version('das-gpu'))"
    version = run(clean / "python", "-c", script, folder=tmp_path).stdout.strip()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert version == project["version"]
    assert run(clean / "das-gpu", "--version", folder=tmp_path).stdout.split()[-1] == version

    frozen = run(clean / "python", "-m", "pip", "freeze", "--exclude", "das-gpu", folder=tmp_path)
    pinned = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert set(frozen.stdout.splitlines()) - set(pinned) == set()

    script = "from das_gpu.backends.cuda import kernel_folder; print(kernel_folder())"
    kernels = Path(run(clean / "python", "-c", script, folder=tmp_path).stdout.strip())
    assert clean.parent in kernels.parents
    assert (kernels / "gather.cu").is_file()

    out = tmp_path / "out"
    run(clean / "das-gpu", "extract", "demo:", out, folder=tmp_path)
    manifest = (out / "metadata.jsonl").read_text().splitlines()
    listed = {json.loads(line)["file_name"] for line in manifest}
    images = list((out / "images").rglob("*.png"))
    assert len(images) > 0
    assert {path.relative_to(out).as_posix() for path in images} == listed
    for path in images:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (256, 256))
