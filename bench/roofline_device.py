"""What a row asks of a device besides its kernels' traffic: launches, copies, waits, registers.

The real backend runs over the tests' strict double of CuPy, on rows small enough for that. The
formulas of the copies are held against what the double counts, and then give those of any row.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import numpy as np
from tests.gpu.harness import double, nvrtc

from das_gpu.backends import cuda
from das_gpu.backends.gpu import GpuBackend, GpuWorkspace
from das_gpu.backends.launch import Launch
from das_gpu.backends.rowshape import FACTS
from das_gpu.model import RingLayout, RowWindow
from das_gpu.plan import Plan
from das_gpu.process import Processor, design
from das_gpu.recipe import Recipe
from das_gpu.spans import archive_window, held, ring_layout, row_spans
from das_gpu.timeline import Cuts
from roofline_counts import cable_plan

ARCHITECTURES = ("80", "90", "100")
WARP = 32
REGISTERS = 65536
REGISTER_UNIT = 256
PARTITIONS = 4
MOST_WARPS = 64
MOST_BLOCKS = 32
RESERVED_SHARED_BYTES = 1024
SHARED_BYTES = {"80": 164 * 1024, "90": 228 * 1024, "100": 228 * 1024}
"""Of a multiprocessor ("Technical Specifications per Compute Capability" in NVIDIA's CUDA C++
Programming Guide); a block takes a kilobyte beyond what it asks for."""
SMALL = {"tile.seconds": 3, "tile.bands": 2, "image.height": 16, "image.width": 16}
SMALL_CHUNKS = (20, 600)
SMALL_CHANNELS = 12
INDEX_BYTES = 8


@dataclass(frozen=True)
class RowRequests:
    """What one row asks of the device.

    Attributes
    ----------
    launches : dict of str to int
        By kernel; ``cuFFT`` for the transforms.
    h2d_bytes, d2h_bytes : int
        Copied to the device and from it.
    hidden_syncs, waits : int
        Synchronisations that no line asks for, and waits of the host for a row's results.
    allocations : int
        Of device memory.
    """

    launches: dict[str, int]
    h2d_bytes: int
    d2h_bytes: int
    hidden_syncs: int
    waits: int
    allocations: int

    @property
    def calls(self) -> int:
        """Kernel launches and transforms."""
        return sum(self.launches.values())


def small_plan(recipe: Recipe, minutes: float = 0.3) -> Plan:
    """Rows that the double can run: stored chunks as long as a tile."""
    return cable_plan(recipe.with_settings(SMALL), SMALL_CHANNELS, SMALL_CHUNKS, minutes)


def requested(made: Plan) -> list[RowRequests]:
    """Run a segment on the double; what each of its rows asks for, in order.

    Raises
    ------
    tests.gpu.harness.double.DisciplineError
        At a hidden synchronisation, or any other fault.
    """
    segment, chain = made.segment(0), design(made)
    layout = ring_layout(made, segment)
    found: list[RowRequests] = []
    with (
        double.installed("eager") as gpu,
        mock.patch.object(cuda, "_functions", {}),
        GpuBackend().workspace(layout, chain) as work,
    ):
        processor = Processor(made, chain, work)
        filled = iter(_fill(work, layout))
        begun: deque[Any] = deque()
        ready = layout.first
        for row in range(segment.row0, segment.row1):
            gpu.reset_counts()
            window = row_window(made, row)
            pieces = layout.pieces(window.held0, window.held0 + window.length)
            while ready <= pieces[-1][0]:
                ready = next(filled)
            begun.append(processor.begin(window))
            if len(begun) > work.depth:
                processor.finish(begun.popleft())
            found.append(_requests(gpu.counts))
        for each in begun:
            processor.finish(each)
    return found


def _fill(work: GpuWorkspace, layout: RingLayout) -> Iterator[int]:
    """Fill the ring column by column; the number of the next one."""
    rng = np.random.default_rng(2)
    for column in range(layout.first, layout.first + len(layout.bounds) - 1):
        for k0, k1 in zip(layout.blocks, layout.blocks[1:], strict=False):
            if k0 < k1:
                with work.ring.room(column, k0, k1) as room:
                    room[...] = rng.integers(1_700_000, 1_900_000, room.shape)
                work.ring.flush()
        yield column + 1


def _requests(counts: double.Counts) -> RowRequests:
    launches = Counter(counts.launches)
    launches["cuFFT"] = counts.fft_calls
    return RowRequests(
        launches=dict(launches),
        h2d_bytes=counts.h2d_bytes,
        d2h_bytes=counts.d2h_bytes,
        hidden_syncs=counts.hidden_syncs,
        waits=counts.explicit_syncs,
        allocations=counts.allocations,
    )


def row_window(made: Plan, row: int) -> RowWindow:
    """A row of which nothing is lost."""
    chunk_rows, _ = made.chunk_grid(made.segment(0))
    spans = row_spans(made, row, Cuts([], []), dict.fromkeys(chunk_rows, ()), fill=False)
    start = held(made, archive_window(made, row)[0])
    return RowWindow(row, start, made.window_span // made.hold_step, spans, 0, 0, 0)


def kept_bytes(made: Plan) -> int:
    """Integer samples that a row adds to the ring, where halos are whole."""
    item = np.dtype(made.acquisition.dtype).itemsize
    return made.kept_channels * (made.tile_span // made.hold_step) * item


def h2d_bytes(made: Plan, row: int) -> int:
    """Copied to the device for a row: its samples, and the tables that say where they lie."""
    layout, window = ring_layout(made, made.segment(0)), row_window(made, row)
    pieces = layout.pieces(window.held0, window.held0 + window.length)
    return kept_bytes(made) + INDEX_BYTES * (3 * len(pieces) + 6 * len(window.spans))


def d2h_bytes(made: Plan) -> int:
    """Copied from the device for a row: its images, and the numbers of their records."""
    chain = design(made)
    if chain.picture is None:
        raise ValueError("a row that makes images is wanted")
    pixel_bytes = 2 if chain.picture.highest > np.iinfo(np.uint8).max else 1
    pixels = chain.picture.height * chain.picture.width * pixel_bytes
    levels, facts = 3 * np.dtype(np.float64).itemsize, np.dtype(np.int32).itemsize
    return chain.bands * (pixels + levels + facts) + FACTS * facts


@dataclass(frozen=True)
class Fit:
    """What a kernel needs on one architecture, and how many warps of it fit."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    occupancy: float

    def as_json(self) -> dict[str, float]:
        """For a file."""
        return asdict(self)


def fits(launch: Launch) -> dict[str, Fit]:
    """Compile a launch's kernel for every architecture."""
    found = {}
    for arch in ARCHITECTURES:
        needs = nvrtc.resources(launch.source, launch.options, arch)[launch.kernel]
        threads = int(np.prod(launch.block))
        shared = needs.shared_bytes + launch.shared_bytes
        found[arch] = Fit(
            needs.registers,
            needs.spill_store_bytes + needs.spill_load_bytes,
            shared,
            occupancy(arch, needs.registers, shared, threads),
        )
    return found


def occupancy(arch: str, registers: int, shared_bytes: int, threads: int) -> float:
    """Share of a multiprocessor's 64 warps that can be resident at once.

    Registers are given to a warp in units of 256, from its partition's quarter of 65,536.
    """
    warps = -(-threads // WARP)
    of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // PARTITIONS // of_warp * PARTITIONS // warps
    by_shared = SHARED_BYTES[arch] // (shared_bytes + RESERVED_SHARED_BYTES)
    return warps * min(by_registers, by_shared, MOST_WARPS // warps, MOST_BLOCKS) / MOST_WARPS
