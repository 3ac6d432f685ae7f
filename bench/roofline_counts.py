"""What the kernels of a tile row move through global memory, counted on a processor.

The kernels are executed by the launcher of the tests, which notes every access, on a part of a
row: a number of whole bands, so that the part has the row's own alignments and whole blocks. What
was counted is scaled to the whole row. `pick_channels` and `common_mode`, which see the whole row
at once, are executed as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from tests.gpu.harness import host

from das_gpu.backends import MEDIAN_CHANNELS, Chain, filtering, imaging, resizing, response
from das_gpu.backends.launch import Launch
from das_gpu.backends.rowshape import ROUNDS, RowShape, Scratch
from das_gpu.model import Acquisition
from das_gpu.plan import Plan, plan
from das_gpu.process import design
from das_gpu.recipe import Recipe
from das_gpu.spans import archive_window, held, ring_layout

SECTOR_BYTES = 32
CHUNK_SHAPE = (3000, 3000)
RATE_HZ, SPACING_M = 200.0, 2.0419
MIDDLE_ROW = 2
"""A row with a whole halo on either side."""


@dataclass(frozen=True)
class Step:
    """One kernel launch, or one transform, of a row.

    Attributes
    ----------
    name : str
        The kernel; ``rfft`` and ``ifft`` for the transforms.
    launch : Launch or None
        As it was executed; None for a transform.
    read_bytes, written_bytes : float
        Sectors that the warps of the whole row ask for, times 32.
    least_read_bytes, least_written_bytes : int
        Elements that the step must read and write, each once.
    blocks_counted, blocks : int
        Blocks that were executed, and blocks of the whole row; 0 for a transform.
    """

    name: str
    launch: Launch | None
    read_bytes: float
    written_bytes: float
    least_read_bytes: int
    least_written_bytes: int
    blocks_counted: int = 0
    blocks: int = 0

    @property
    def moved_bytes(self) -> float:
        """Read and written."""
        return self.read_bytes + self.written_bytes

    @property
    def least_bytes(self) -> int:
        """The least that can be read and written."""
        return self.least_read_bytes + self.least_written_bytes


def cable_plan(
    recipe: Recipe, channels: int, chunk_shape: tuple[int, int] = CHUNK_SHAPE, minutes: float = 2.0
) -> Plan:
    """Tiles over a cable's recording, of which every fifth channel is kept.

    Parameters
    ----------
    recipe : Recipe
        Its channel selection is replaced.
    channels : int
        Kept channels; stored ones are five times as many, and begin inside a stored chunk.
    chunk_shape : (int, int)
        Channels and samples of a stored chunk.
    minutes : float
        Length of the recording.
    """
    step, first = 5, chunk_shape[0] // 3
    samples = int(minutes * 60 * RATE_HZ)
    recording = Acquisition(
        shape=(first + step * channels, samples),
        chunk_shape=chunk_shape,
        dims=("distance", "time"),
        dtype="int32",
        sampling_rate_hz=RATE_HZ,
        channel_spacing_m=SPACING_M,
        start_ns=0,
        last_ns=round((samples - 1) / RATE_HZ * 1e9),
    )
    selection = {"selection.channel_start": first, "selection.channel_step": step}
    return plan(recording, recipe.with_settings(selection))


def columns_of(made: Plan, row: int) -> NDArray[np.int64]:
    """The columns of chunks that a row's window lies in, as `gather` is told of them.

    All have slot 0; see `das_gpu.backends.filtering.gather` for the table.
    """
    layout = ring_layout(made, made.segment(0))
    held0, length = held(made, archive_window(made, row)[0]), made.window_span // made.hold_step
    bounds = [layout.samples(column) for column, _, _ in layout.pieces(held0, held0 + length)]
    return np.array([(start - held0, stop - start, 0) for start, stop in bounds], dtype=np.int64)


def counted_steps(made: Plan, part_bands: int, seed: int = 1) -> list[Step]:
    """Count a row of the ``continuous`` recipe, in the order of its launches.

    Parameters
    ----------
    made : Plan
        Of the whole row.
    part_bands : int
        Bands that are executed.
    seed : int
        Of the samples.
    """
    chain = design(made)
    least = least_bytes(chain)
    part = _bands_of(chain, part_bands)
    scale = chain.bands / part_bands
    signal: NDArray[Any] = np.empty(0)
    steps: dict[str, Step] = {}
    for launch in _row(part, columns_of(made, MIDDLE_ROW), seed):
        if launch.kernel in ("pick_channels", "common_mode"):
            host.execute(launch)
            signal = launch.args[0] if launch.kernel == "common_mode" else signal
        else:
            steps[launch.kernel] = _counted(launch, scale, least)
    for launch in _whole(chain, signal):
        steps[launch.kernel] = _counted(launch, 1.0, least)
    for name in ("rfft", "ifft"):
        steps[name] = Step(name, None, *least[name], *least[name])
    return [steps[name] for name in least]


def _counted(launch: Launch, scale: float, least: dict[str, tuple[int, int]]) -> Step:
    """Execute a launch and scale what it moved."""
    blocks = int(np.prod(launch.grid))
    traffic = host.execute(launch, flavour="counted").total
    return Step(
        launch.kernel,
        launch,
        SECTOR_BYTES * traffic.sectors_read * scale,
        SECTOR_BYTES * traffic.sectors_written * scale,
        *least[launch.kernel],
        blocks,
        round(blocks * scale),
    )


def _bands_of(chain: Chain, bands: int) -> Chain:
    """A chain of the first bands of a row."""
    distance_m = chain.distance_m[: bands * chain.band_channels]
    return replace(chain, bands=bands, distance_m=distance_m, aperture_m=0.0)


def _scratch(chain: Chain) -> tuple[RowShape, resizing.Resizing, Scratch]:
    shape = RowShape.of(chain)
    if chain.picture is None:
        raise ValueError("a row that makes images is wanted")
    resized = resizing.tables(shape.samples, shape.band_channels, chain.dtype, chain.picture)
    needs = Scratch.needs(shape, resized)
    return shape, resized, Scratch(**{name: np.empty(*need) for name, need in needs.items()})


def _row(chain: Chain, columns: NDArray[np.int64], seed: int) -> Iterator[Launch]:
    """The launches of a row, on arrays; each is to be executed before the next is asked for."""
    if chain.weights is None:
        raise ValueError("a row of the spectral recipe is wanted")
    shape, resized, scratch = _scratch(chain)
    channels, real = shape.channels, shape.dtype
    complex_dtype = np.result_type(real, np.complex64)
    ring, table = _ring(columns, channels, seed)
    spans = np.array([(0, channels, 0, chain.length, 0, channels)], dtype=np.int64)
    window = np.empty((channels, chain.length), real)
    live = np.empty(channels, np.uint8)
    yield filtering.gather(ring, table, spans, window, live, detrend=True)
    spectrum = scipy.fft.rfft(window, axis=1)
    folded = np.zeros((channels, shape.row_length), complex_dtype)
    first, last = response.passband(chain.weights, real)
    weights = chain.weights.astype(real)
    yield filtering.spectral_response(spectrum, weights, folded, first=first, last=last)
    signal = scipy.fft.ifft(folded, axis=1, norm="forward")
    yield imaging.pick_channels(shape, live, chain.distance_m, scratch, chain.aperture_m)
    yield imaging.common_mode(shape, signal, scratch)
    yield imaging.envelope_db(shape, signal, live, scratch, chain.scale, subtract=True)
    yield from imaging.levels(shape, live, scratch, chain.scale)
    yield from imaging.grey(shape, live, scratch, resized)


def _whole(chain: Chain, part: NDArray[Any]) -> Iterator[Launch]:
    """The launches that are made for the whole row; a part's signal is repeated."""
    shape, _, scratch = _scratch(replace(chain, aperture_m=0.0))
    signal = np.resize(part, (shape.channels, shape.row_length))
    live = np.ones(shape.channels, np.uint8)
    yield imaging.pick_channels(shape, live, chain.distance_m, scratch, 0.0)
    yield imaging.common_mode(shape, signal, scratch)


def _ring(
    columns: NDArray[np.int64], channels: int, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Random walks near 1.8e6 counts in a ring of a slot for each column."""
    rng = np.random.default_rng(seed)
    width = int(columns[:, 1].max())
    table = columns.copy()
    table[:, 2] = np.arange(len(columns)) * channels * width
    ring = np.zeros(len(columns) * channels * width, np.int32)
    level = rng.integers(1_700_000, 1_900_000, (channels, 1))
    for _, samples, slot in table.tolist():
        walk = level + np.cumsum(rng.integers(-90, 91, (channels, samples)), axis=1)
        ring[slot : slot + walk.size] = walk.reshape(-1)
        level = walk[:, -1:]
    return ring, table


def least_bytes(chain: Chain) -> dict[str, tuple[int, int]]:
    """What each step of a spectral row must read and write, in the order of the steps.

    Counters, tables and what a block reads of its neighbours' inputs are not in it.
    """
    if chain.weights is None or chain.picture is None:
        raise ValueError("a row of the spectral recipe that makes images is wanted")
    shape, item = RowShape.of(chain), chain.dtype.itemsize
    channels, image_channels = shape.channels, shape.image_channels
    first, last = response.passband(chain.weights, chain.dtype)
    j0, j1 = response.folded_range(first, last, shape.row_length)
    window = channels * chain.length
    spectrum = 2 * item * channels * (chain.length // 2 + 1)
    signal = 2 * item * channels * shape.row_length
    picked = -(-channels // -(-channels // MEDIAN_CHANNELS))
    core = image_channels * shape.samples
    resized = resizing.tables(shape.samples, shape.band_channels, chain.dtype, chain.picture)
    needs = Scratch.needs(shape, resized)
    sizes = {name: int(np.prod(size)) * dtype.itemsize for name, (size, dtype) in needs.items()}
    rounds = ROUNDS[chain.dtype.name] if chain.scale.kind == "percentile" else 0
    return {
        "gather": (4 * window, item * window + channels),
        "rfft": (item * window, spectrum),
        "spectral_response": (
            2 * item * channels * (last - first),
            2 * item * channels * (j1 - j0),
        ),
        "ifft": (signal, signal),
        "pick_channels": (channels, sizes["counts"] + 4 * picked),
        "common_mode": (2 * item * picked * shape.samples, sizes["common"]),
        "envelope_db": (2 * item * core, item * core),
        **({"levels": (rounds * item * core, 0)} if rounds else {}),
        "along_time": (item * core, sizes["half"]),
        "along_channels": (sizes["half"], sizes["pixels"]),
    }
