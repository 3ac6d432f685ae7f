"""docs/training.py: every tile once, whatever the number of workers and ranks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import das_gpu
from das_gpu import Recipe
from tests.archives import random_walk, write_archive

torch = pytest.importorskip("torch")

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "training.py"
RECIPE = Recipe().with_settings({
    "selection.channel_step": 1, "tile.seconds": 2, "tile.bands": 2, "image.height": 24,
    "image.width": 16,
})  # fmt: skip
ROWS = 5


@pytest.fixture(scope="module")
def training():
    """The example as a module that spawned workers can import too."""
    spec = importlib.util.spec_from_file_location("training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        patch.setitem(sys.modules, "training", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    samples = random_walk(20, ROWS * 400, seed=3)
    return write_archive(tmp_path_factory.mktemp("train") / "a.zarr", samples, 200.0, (10, 400))


@pytest.fixture(scope="module")
def whole(store):
    return sorted(place(tile.record.as_json()) for tile in das_gpu.stream(store, RECIPE))


def place(record):
    return record["sample_start"], record["channel_start"]


def dataset(training, store):
    return training.Tiles(str(store), RECIPE, backend="cpu", workers=1, fast=False)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_every_tile_comes_once(training, store, whole, workers):
    found = []
    for images, records in training.loader(dataset(training, store), 4, workers):
        assert images.shape == (len(records), 1, 24, 16)
        assert images.dtype == torch.float32
        assert 0 <= images.min() < images.max() <= 1
        found += map(place, records)
    assert sorted(found) == whole
    assert len(whole) == 2 * ROWS


def test_workers_and_ranks_get_parts_of_their_own(training, monkeypatch):
    parts = set()
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
        for worker in range(2):
            info = type("Info", (), {"id": worker, "num_workers": 2})
            monkeypatch.setattr(training, "get_worker_info", lambda info=info: info)
            parts.add(training.part_of_this_process())
    assert parts == {(number, 6) for number in range(6)}


def test_a_real_rank_makes_its_share(training, store, whole, tmp_path):
    """Two ranks of a process group, one after the other: together they have every tile."""
    found = []
    for rank in range(2):
        with pytest.MonkeyPatch.context() as patch:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{tmp_path}/{rank}", rank=0, world_size=1
            )
            try:
                patch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
                patch.setattr(torch.distributed, "get_world_size", lambda: 2)
                share = [place(record) for _, record in dataset(training, store)]
            finally:
                torch.distributed.destroy_process_group()
        assert 0 < len(share) < len(whole)
        found += share
    assert sorted(found) == whole


@pytest.mark.slow
def test_the_script_trains():
    """As it stands in the documentation."""
    answer = subprocess.run(
        [sys.executable, SCRIPT, "demo:"], capture_output=True, text=True, timeout=200
    )
    assert answer.returncode == 0, answer.stderr
    *_, last = answer.stdout.splitlines()
    assert last.startswith("40 tiles, mean squared error 0.")
