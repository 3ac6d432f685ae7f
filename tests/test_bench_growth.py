"""The benchmark of growth runs, small, and what it counts is what is there."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from das_gpu import Recipe, extract
from tests.archives import random_walk, write_archive

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(scope="module")
def growth() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("growth")


def test_every_request_of_a_run_is_counted(growth: ModuleType, tmp_path: Path) -> None:
    """Ten chunks of samples, each once, and as many of the time axis as there are columns."""
    store = write_archive(tmp_path / "a.zarr", random_walk(24, 4000, seed=3), 200.0, (12, 900))
    recipe = Recipe().with_settings({"tile.seconds": 5, "tile.bands": 2})
    with growth.requests_counted() as asked:
        extract(store, tmp_path / "out", recipe, backend="cpu")
    samples = [key for key in asked if key.startswith("RawData/") and not key.endswith("y")]
    assert len(samples) == len(set(samples)) == 10
    before = len(asked)
    extract(store, tmp_path / "again", recipe, backend="cpu")
    assert len(asked) == before


@pytest.mark.slow
def test_the_benchmark_runs_and_longer_runs_cost_no_more_a_tile(
    growth: ModuleType, tmp_path: Path
) -> None:
    result = growth.measure(growth.TINY, tmp_path)
    json.dumps(result)
    assert result["bars"].keys() == growth.BARS.keys()
    assert result["bars"]["requests_per_tile_64_over_1"]["met"]
    assert [each["tiles"] for each in result["run"].values()] == [4, 8]
    assert result["cable"]["tiles"] == 10 * 3600 / 15
    assert "| 2 | 8 |" in growth.table(result)


def test_it_does_not_take_a_damaged_run_for_a_whole_one(
    growth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = growth.Scene(channels=15_000, seconds=60.0)
    small = growth.Size(growth.TINY.scene, (1,), scene, 7500, 1)
    growth.simulate(tmp_path / "cable.zarr", scene, samples=False)
    link = growth._link

    def torn(source: Path, path: Path) -> None:
        link(source, path)
        if path.name.endswith("ch07500.png"):
            path.unlink()
            path.write_bytes(b"torn")

    monkeypatch.setattr(growth, "_link", torn)
    with pytest.raises(SystemExit, match="not a whole run"):
        growth.cable(small, tmp_path / "cable.zarr", tmp_path / "out")
