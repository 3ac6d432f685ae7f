"""Everything that orders the device's work is needed: few slots, rows in flight, early ends.

The double says of any two operations, and of the host, whether something puts them in order; the
recordings here are long for their chunks, so that slots and pinned buffers are used many times.
"""

from __future__ import annotations

import gc
from collections import deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from das_gpu import Recipe
from das_gpu.backends.cpu import CpuBackend
from das_gpu.backends.gpu import GpuBackend
from das_gpu.process import Processor, design
from das_gpu.pulse import Pulse, under
from das_gpu.run import prepare
from das_gpu.segment import extract_segment
from das_gpu.sink import open_sink
from das_gpu.spans import ring_layout
from das_gpu.stream import SegmentStream
from tests.archives import random_walk, write_archive
from tests.gpu.conftest import Stage
from tests.gpu.harness import double
from tests.outputs import files

SETTINGS: dict[str, str | int | float | bool | None] = {
    "selection.channel_step": 1, "tile.seconds": 2, "tile.bands": 1, "median.kind": "channel",
    "image.height": 8, "image.width": 8,
}  # fmt: skip
RECIPE = Recipe.from_preset("continuous").with_settings(SETTINGS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = random_walk(4, 2900, seed=8, swell=10)
    return write_archive(tmp_path_factory.mktemp("store") / "a.zarr", samples, 200.0, (2, 90))


@pytest.fixture(scope="module")
def calm(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What comes out when every operation runs as it is issued."""
    archive, plan = prepare(store, RECIPE)
    folder = tmp_path_factory.mktemp("calm")
    with Stage(real=False).installed("eager"):
        extract_segment(archive, plan, 0, GpuBackend(), open_sink(folder), loaders=1)
    return files(folder)


@pytest.mark.parametrize(("schedule", "seed"), [("late", 0), ("random", 1)])
@pytest.mark.slow
def test_slots_and_buffers_are_used_again_only_when_they_are_free(
    double_device: Stage,
    store: Path,
    calm: dict[str, str],
    tmp_path: Path,
    schedule: double.Schedule,
    seed: int,
) -> None:
    archive, plan = prepare(store, RECIPE)
    assert plan.n_segments == 1
    layout = ring_layout(plan, plan.segment(0))
    assert len(layout.bounds) - 1 > layout.slots + 10
    with double_device.installed(schedule, seed=seed):
        extract_segment(archive, plan, 0, GpuBackend(), open_sink(tmp_path), loaders=1)
    assert files(tmp_path) == calm


@pytest.mark.parametrize("schedule", ["late", "random"])
@pytest.mark.slow
def test_a_segment_that_is_given_up_waits_for_the_device(
    double_device: Stage, store: Path, tmp_path: Path, schedule: double.Schedule
) -> None:
    """Memory that a stream may still use must not be given back."""
    archive, plan = prepare(store, RECIPE)

    def give_up(tiles: int) -> None:
        if tiles:
            raise KeyboardInterrupt

    with double_device.installed(schedule) as gpu:
        with pytest.raises(KeyboardInterrupt), under(Pulse(beat=give_up)):
            extract_segment(archive, plan, 0, GpuBackend(), open_sink(tmp_path), loaders=1)
        gc.collect()
        assert gpu is not None
        assert gpu.used_bytes == [0]


@pytest.mark.slow
def test_samples_read_ahead_wait_for_the_row_whose_place_they_take(
    double_device: Stage, store: Path
) -> None:
    """Loaders as fast as they can be: after each row they fill all that it lets go of."""
    archive, plan = prepare(store, RECIPE)
    segment, chain = plan.segment(0), design(plan)
    layout = ring_layout(plan, segment)
    with (
        CpuBackend(1).workspace(layout, chain) as calm,
        SegmentStream(archive, plan, segment, calm.ring, layout, loaders=1) as stream,
    ):
        rows = list(stream)
    samples = np.random.default_rng(1).integers(-900, 900, (layout.channels, layout.bounds[-1]))
    columns = iter(range(layout.first, layout.first + len(layout.bounds) - 1))
    with double_device.installed("late"), GpuBackend().workspace(layout, chain) as work:
        processor = Processor(plan, chain, work)
        begun: deque[Any] = deque()
        for row in rows:
            needed = layout.pieces(row.held0, row.held0 + row.length)
            for column in columns:
                start, stop = layout.samples(column)
                for k0, k1 in pairwise(layout.blocks):
                    with work.ring.room(column, k0, k1) as room:
                        room[...] = samples[k0:k1, start:stop]
                    while work.ring.flush():
                        pass
                if column + 1 - needed[0][0] >= layout.slots:
                    break
            begun.append(processor.begin(row))
            if len(begun) > work.depth:
                processor.finish(begun.popleft())
        assert next(columns, None) is None
        while begun:
            processor.finish(begun.popleft())
