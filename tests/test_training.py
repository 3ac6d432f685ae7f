"""docs/training.py: every tile once, whatever the number of workers and ranks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

import das_gpu
from das_gpu import Recipe
from tests.archives import random_walk, write_archive
from tests.pages import DOCS, REPOSITORY, blocks, commands

SCRIPT = DOCS / "training.py"
RECIPE = Recipe().with_settings({
    "selection.channel_step": 1, "tile.seconds": 2, "tile.bands": 2, "image.height": 24,
    "image.width": 16,
})  # fmt: skip
ROWS = 5


@pytest.fixture(scope="module")
def training(torch):
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
def test_every_tile_comes_once(torch, training, store, whole, workers):
    found = []
    for images, records in training.loader(dataset(training, store), 4, workers):
        assert images.shape == (len(records), 1, 24, 16)
        assert images.dtype == torch.float32
        assert 0 <= images.min() < images.max() <= 1
        found += map(place, records)
    assert sorted(found) == whole
    assert len(whole) == 2 * ROWS


def test_workers_and_ranks_get_parts_of_their_own(torch, training, monkeypatch):
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


@pytest.mark.slow
def test_ranks_of_a_process_group_share_the_tiles(torch, store, whole, tmp_path):
    """Two processes that meet, as a launcher starts them: each has a share, together every tile."""
    (tmp_path / "recipe.toml").write_text(RECIPE.to_toml())
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.rank", str(rank), "2", tmp_path / "meeting"),
                *(store, tmp_path / "recipe.toml"),
            ],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        answers = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], answers
    shares, seen_by_the_other = (json.loads(said) for said, _ in answers)
    assert shares == seen_by_the_other
    assert all(0 < len(share) < len(whole) for share in shares)
    assert sorted(tuple(each) for share in shares for each in share) == whole


@pytest.mark.slow
def test_the_script_trains_as_the_readme_says(torch, tmp_path):
    shell = [block.text for block in blocks(REPOSITORY / "README.md") if block.language == "bash"]
    (command,) = (
        words
        for text in shell
        if "docs/training.py" in text
        for words in commands(text, {})
        if words[0] == "python"
    )
    answer = subprocess.run(
        [sys.executable, *command[1:]], cwd=REPOSITORY, capture_output=True, text=True, timeout=200
    )
    assert answer.returncode == 0, answer.stderr
    *_, last = answer.stdout.splitlines()
    assert last.startswith("40 tiles, mean squared error 0.")
