"""The benchmarks' peer, the notebook's own pipeline, computes what it claims to."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import zarr
from scipy import signal

from das_gpu.simulate import Scene, simulate

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
RECORDINGS = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peer", BENCH / "notebook_pipeline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["silixa", "optodas"])
def test_the_peers_tile_is_the_notebooks(peer: ModuleType, name: str) -> None:
    if not RECORDINGS.is_dir():
        pytest.skip("the real recordings are not here")
    about = json.loads((RECORDINGS / f"{name}.json").read_text())
    expected = np.load(RECORDINGS / f"{name}.expected.npz")
    raw = zarr.open_consolidated(str(RECORDINGS / f"{name}.zarr"), mode="r")["RawData"][...]
    strided = np.asarray(raw)[
        about["first_channel"] :: about["channel_step"], :: about["time_step"]
    ]
    height, width = about["channels_per_tile"], about["samples_per_tile"]
    design = signal.butter(
        about["order"],
        [about["low_hz"], about["high_hz"]],
        "bandpass",
        fs=about["sampling_rate_hz"] / about["time_step"],
    )
    for (row, band), level_db, image in zip(
        expected["index"], expected["envelope_db"], expected["image"], strict=True
    ):
        tile = strided[band * height :, row * width :][:height, :width]
        found = peer.envelope_db(tile, *design)
        strong = level_db > level_db.max() - 80
        assert np.abs(found - level_db)[strong].max() < 1e-4
        assert np.array_equal(np.asarray(peer.grey_image(found)), image)


@pytest.mark.slow
def test_the_peer_writes_every_whole_tile_and_names_it(tmp_path: Path) -> None:
    store = simulate(tmp_path / "a.zarr", Scene(channels=123, seconds=10.5, chunk_shape=(50, 700)))
    command = [sys.executable, str(BENCH / "notebook_pipeline.py"), str(store), str(tmp_path / "o")]
    done = subprocess.run(
        [*command, "--bands", "2", "--seconds", "5", "--workers", "1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["images"] == 4
    assert said["seconds"].keys() == {"start", "open", "compute", "close"}
    assert {file.name for file in (tmp_path / "o").iterdir()} == {
        f"2021-11-01T23:11:{second}.834000000_start{distance}.png"
        for second in (14, 19)
        for distance in (0.0, 2.0419 * 60)
    }
