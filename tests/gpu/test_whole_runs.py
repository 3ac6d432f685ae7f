"""The whole of ``extract --backend gpu`` on real-sized recordings, against ``--backend cpu``."""

from __future__ import annotations

from pathlib import Path

import pytest

from das_gpu import Recipe, extract
from das_gpu.cli import main
from das_gpu.simulate import demo_archive
from tests import recordings
from tests.gpu.agreement import assert_runs_agree
from tests.gpu.conftest import Stage
from tests.outputs import files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HALF = ["--stop", "2021-11-01T23:11:44.834"]


def both(device: Stage, source: Path, folder: Path, recipe: Recipe) -> None:
    extract(source, folder / "cpu", recipe, backend="cpu")
    with device.installed():
        extract(source, folder / "gpu", recipe, backend="gpu")
    assert_runs_agree(folder / "gpu", folder / "cpu", str(recipe.compute.dtype))


def test_the_demo_recording(device: Stage, tmp_path: Path) -> None:
    """Its first half, which has every channel, and two rows of tiles."""
    source, out = demo_archive(), tmp_path / "gpu"
    with device.installed():
        assert main(["extract", str(source), str(out), "--backend", "gpu", *HALF]) == 0
    assert main(["extract", str(source), str(tmp_path / "cpu"), "--backend", "cpu", *HALF]) == 0
    assert len(files(out)) > 20
    assert_runs_agree(out, tmp_path / "cpu", "float32")


@pytest.mark.parametrize("preset", ["continuous", "notebook"])
@pytest.mark.parametrize("name", ["silixa", "optodas"])
def test_real_recordings(
    device: Stage, shared_recordings: Path, tmp_path: Path, name: str, preset: str
) -> None:
    source = shared_recordings / f"{name}.zarr"
    settings = recordings.settings(shared_recordings, name)
    both(device, source, tmp_path, Recipe.from_preset(preset).with_settings(settings))
