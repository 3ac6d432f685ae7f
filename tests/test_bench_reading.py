"""The benchmark of readers: all read the same, and its ratios are those it names."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zarr

from das_gpu.simulate import Scene, simulate

BENCH = Path(__file__).resolve().parents[1] / "bench"
SCENE = Scene(channels=600, seconds=52.0, chunk_shape=(200, 3000))


@pytest.fixture(scope="module")
def benchmark() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        names = ("blob_server", "reading", "reading_peers")
        yield {name: importlib.import_module(name) for name in names}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("served") / "archive.zarr", SCENE)


@pytest.fixture(scope="module")
def url(archive: Path, benchmark: dict[str, ModuleType]) -> Iterator[str]:
    with benchmark["blob_server"].serve(archive) as url:
        yield url


def check(peers: ModuleType, url: str, reader: str, channels: str) -> str:
    transport = "azure-sdk" if reader.endswith("azure-sdk") else "obstore"
    asked = peers.job(url, channels, 45.0, 3, transport)
    found: str = peers.READERS[reader](asked)()
    return found


@pytest.mark.parametrize("channels", ["::5", "3:483:2"])
@pytest.mark.slow
def test_all_readers_bring_the_samples_that_are_stored(
    benchmark: dict[str, ModuleType], archive: Path, url: str, channels: str
) -> None:
    raw = zarr.open_consolidated(str(archive), mode="r")["RawData"]
    assert isinstance(raw, zarr.Array)
    wanted = slice(*(int(part) if part else None for part in channels.split(":")))
    firsts = np.asarray(raw[:, [0, 3000, 6000]])[wanted]
    peers = benchmark["reading_peers"]
    readers = [name for name in peers.READERS if "processing" not in name]
    found = {name: check(peers, url, name, channels) for name in readers}
    assert found == dict.fromkeys(readers, str(int(firsts.sum())))


@pytest.mark.slow
def test_all_readers_with_processing_come_to_the_same_pixels(
    benchmark: dict[str, ModuleType], url: str
) -> None:
    peers = benchmark["reading_peers"]
    readers = [name for name in peers.READERS if "processing" in name]
    assert len(readers) == 3
    found = {check(peers, url, name, "::5") for name in readers}
    assert len(found) == 1
    assert found != {check(peers, url, readers[0], "1::5")}


def test_an_archive_whose_tiles_are_not_its_chunks_is_refused(
    benchmark: dict[str, ModuleType], tmp_path: Path
) -> None:
    store = simulate(tmp_path / "a.zarr", replace(SCENE, channels=8, chunk_shape=(8, 2500)))
    with pytest.raises(ValueError, match="3000 samples and a stored chunk 2500"):
        benchmark["reading_peers"].job(str(store), "::1", 45.0, 1)


def outcomes(reading: ModuleType, parts: list[str], **changed: float) -> list[Any]:
    """Made-up runs: all take 2 s, 1 s of processor time and 400 MB, but for ``changed``."""
    made = []
    for trial in reading.trials(SCENE, parts):
        run = {"seconds": 2.0, "cpu_seconds": 1.0, "peak_mb": 400, "decoded_mb": 1000.0}
        check = "pixels" if "processing" in trial.reader else "samples"
        key = f"{trial.reader} x{trial.threads} {trial.condition} {trial.channels}"
        key += f" {trial.seconds:g}"
        run["seconds"] = changed.get(f"{key} wall", 2.0)
        run["cpu_seconds"] = changed.get(f"{key} cpu", 1.0)
        run["peak_mb"] = changed.get(f"{key} peak", 400)
        run["check"] = check + trial.channels + str(trial.seconds)
        made.append(reading.Outcome(trial, [run]))
    return made


def test_ratios_are_those_that_bars_are_set_for(
    benchmark: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = benchmark["reading"]
    monkeypatch.setattr(reading, "processors", lambda: 3)
    k = reading.REMOTE_LOADERS
    changed = {
        f"stream + processing x{k} far ::5 26 wall": 4.0,
        f"dask rows + processing x{k} far ::5 26 wall": 10.0,
        f"dask graph + processing x{k} far ::5 26 wall": 7.0,
        "dask graph + processing x3 far ::5 26 wall": 12.0,
        f"dask graph + processing x{k} near ::5 26 wall": 1.0,
        f"stream x{k} near ::5 26 cpu": 1.2,
        f"stream x{k} near ::1 26 cpu": 1.3,
        f"bare x{k} far ::5 26 cpu": 0.1,
        f"stream + processing x{k} near :300:5 52 peak": 404,
    }
    assert reading.ratios(outcomes(reading, ["compare", "memory"], **changed)) == {
        "far_speed_over_dask_rows": 2.5,
        "far_speed_over_dask_graph": 1.75,
        "far_speed_over_dask_graph_by_default": 3.0,
        "near_cpu_over_bare": 1.2,
        "near_cpu_over_bare_every_channel": 1.3,
        "memory_8_over_2": 1.01,
    }
    assert reading.ratios(outcomes(reading, ["loaders"])) == {}


def test_figures_of_readers_that_disagree_are_refused(benchmark: dict[str, ModuleType]) -> None:
    reading = benchmark["reading"]
    made = outcomes(reading, ["compare"])
    reading.require_same_work(made)
    dask = next(o for o in made if (o.trial.reader, o.trial.condition) == ("dask", reading.FAR))
    dask.runs[0]["check"] = "other samples"
    with pytest.raises(SystemExit, match=r"dask \(far\) did not come to the same result as bare"):
        reading.require_same_work(made)


def test_rates_are_decoded_bytes_over_medians(benchmark: dict[str, ModuleType]) -> None:
    reading = benchmark["reading"]
    trial = next(reading.trials(SCENE, ["memory"]))
    runs = [
        {"seconds": s, "cpu_seconds": 3.0, "peak_mb": 1, "decoded_mb": 2000.0} for s in (1, 4, 9)
    ]
    found = reading.Outcome(trial, runs).as_json()
    assert (found["mb_per_s"], found["cpu_s_per_gb"]) == (500.0, 1.5)
    assert found["runs"] == runs


@pytest.mark.slow
def test_the_benchmark_runs_and_says_what_it_measured(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, str(BENCH / "reading.py"), "--tiny", "--parts", "memory"]
    done = subprocess.run(
        [*command, "--json", str(result)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stream + processing") == 3
    found = json.loads(result.read_text())
    assert [trial["seconds"] for trial in found["trials"]] == [15.0, 30.0, 120.0]
    assert [trial["runs"][0]["chunks"] for trial in found["trials"]] == [4, 6, 16]
    assert found["ratios"].keys() == {"memory_8_over_2"}
    assert found["machine"]["packages"].keys() >= {"das-gpu", "obstore", "zarr", "dask"}
