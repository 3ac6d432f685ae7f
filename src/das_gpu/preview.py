"""One tile, step by step: what a recipe does to a recording, before a night of it is run.

The tile is made by `das_gpu.segment.extract_segment` as any other, on the CPU, while somebody
watches what passes between the steps. So the last step is the tile that a run delivers.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu import host, units
from das_gpu.archive import Archive
from das_gpu.backends import Chain, Outcome, fast, plain
from das_gpu.backends.cpu import CpuBackend, CpuWorkspace, Envelope, Signal
from das_gpu.backends.window import HostRing
from das_gpu.errors import UsageError
from das_gpu.instants import utc_ns
from das_gpu.model import RingLayout, RowWindow, TileRecord
from das_gpu.plan import Plan
from das_gpu.recipe import Recipe
from das_gpu.run import compiled_loops, default_loaders, prepare
from das_gpu.segment import extract_segment
from das_gpu.segmentfile import LOST
from das_gpu.sink import LocalSink
from das_gpu.store import Access
from das_gpu.timescale import iso_time

ROBUST_PERCENT = 1.0
"""Share of samples beyond either end of a step's colours."""


@dataclass(frozen=True)
class Step:
    """A tile after one of the recipe's steps.

    Attributes
    ----------
    name : str
        ``raw``, ``time-median``, ``band-pass``, ``common-mode`` or ``envelope``.
    title : str
        What was done, for people.
    values : (channel, sample) array
        NaN in channels that do not live, but for ``raw``.
    unit : str
    low, high : float or None
        Robust limits for colours: percentiles of the live channels' samples, around 0 for what
        swings about it. None without a live channel.
    """

    name: str
    title: str
    values: NDArray[Any]
    unit: str
    low: float | None
    high: float | None

    @property
    def swings(self) -> bool:
        """Whether values lie on both sides of 0."""
        return self.low is not None and self.low == -(self.high or 0.0)


@dataclass(frozen=True)
class Preview:
    """A tile and what it was made from.

    Attributes
    ----------
    source : str
        Where the archive is; no secret.
    plan : Plan
        Whose tile it is.
    record : TileRecord
        As a run would record it.
    row, band : int
        Its place in the plan.
    distance_m : (channel + 1,) float64
        Of each of its kept channels, and of the one after the last.
    live : (channel,) bool
        Which channels live; empty when no image was made.
    steps : tuple of Step
        In the recipe's order; empty when no image was made.
    tile : array or None
        Pixels (height, width) as they are delivered, or levels (channel, sample) for ``npy``;
        None when no image was made.
    chunks, stored_bytes : int
        What was read.
    """

    source: str
    plan: Plan
    record: TileRecord
    row: int
    band: int
    distance_m: NDArray[np.float64]
    live: NDArray[np.bool_]
    steps: tuple[Step, ...]
    tile: NDArray[Any] | None
    chunks: int
    stored_bytes: int

    @property
    def exit_code(self) -> int:
        """What the command returns: 3 for a tile that a run could not deliver, as of a run."""
        return 3 if self.record.status in LOST else 0


@dataclass(frozen=True)
class Aim:
    """What is to be looked at; nothing of it has been read.

    Attributes
    ----------
    source : str
        Where the archive is; no secret.
    plan : Plan
        The run's.
    reading : Plan
        The same, of the tile's own channels where the others have no part in it; a segment of
        it is a row of tiles.
    row, band : int
        The tile's place in the run's plan.
    """

    source: str
    archive: Archive
    plan: Plan
    reading: Plan
    row: int
    band: int

    @property
    def chunks(self) -> int:
        """Stored chunks that will be read."""
        rows, columns = self.reading.chunk_grid(self.reading.segment(self.row))
        return len(rows) * len(columns)

    @property
    def decoded_bytes(self) -> int:
        """Their size, decoded."""
        return self.chunks * self.archive.data.chunk_nbytes


def aim(
    source: str | Path,
    recipe: Recipe,
    *,
    at: str | None = None,
    band: int | None = None,
    access: Access | None = None,
) -> Aim:
    """Find the tile at a time; no sample is read.

    Parameters
    ----------
    source : str or Path
        A Zarr archive: a folder, a URL, or ``demo:``.
    recipe : Recipe
        What a run would be given.
    at : str, optional
        UTC, ISO 8601: the tile is the one whose time it lies in; the first by default.
    band : int, optional
        Which of the tiles side by side; the middle one by default.
    access : Access, optional
        How the source is reached.

    Raises
    ------
    UsageError
        When there is no such tile, naming those there are; as `das_gpu.run.prepare`.
    SourceError, AccessDeniedError
        When the archive cannot be opened.
    """
    archive, plan = prepare(source, recipe, access=access)
    row = 0 if at is None else _row_at(archive, plan, at)
    if band is None:
        band = plan.bands // 2
    if not 0 <= band < plan.bands:
        raise UsageError(
            f"There is no band {band}: of tiles side by side there are {plan.bands}, 0 to "
            f"{plan.bands - 1}. Give --band one of these."
        )
    reading = replace(plan, rows_per_segment=1)
    if not plan.common_mode:
        core = plan.tile(row, band).core
        reading = replace(
            reading,
            channel_start=core.c0,
            channel_stop=core.c1,
            selected_channels=plan.band_channels,
            bands=1,
        )
    told = "demo:" if str(source) == "demo:" else str(archive.location)
    return Aim(told, archive, plan, reading, row, band)


def look(at: Aim) -> Preview:
    """Read what the tile takes, make it, and keep what it was after each step.

    Raises
    ------
    SourceError, AccessDeniedError
        When the archive cannot be read. A chunk that is lost is no error: the record says so.
    """
    threads = host.processors()
    # As a run without any wish: one that compiles may differ by a grey level here and there.
    compiled = compiled_loops(at.plan, None) is not False and fast.installed()
    backend = CpuBackend(threads, compiled=compiled)
    band = at.band if at.reading.bands > 1 else 0
    watching = _Watching(backend, band, at.plan)
    with TemporaryDirectory(prefix="das-gpu-preview-") as folder, host.single_threaded_blas():
        sink = LocalSink(folder)
        result = extract_segment(
            at.archive,
            at.reading,
            at.row,
            watching,
            sink,
            loaders=default_loaders(at.archive, threads),
            decoders=threads,
        )
        record = result.records[band]
        name = record.file_name or record.array_file
        data = None if name is None else sink.get(name)
    first = at.band * at.plan.band_stride
    kept = range(first, first + at.plan.band_channels + 1)
    witness = None if data is None else watching.witness
    return Preview(
        source=at.source,
        plan=at.plan,
        record=record,
        row=at.row,
        band=at.band,
        distance_m=np.array([at.plan.kept_distance_m(k) for k in kept]),
        live=np.zeros(0, dtype=bool) if witness is None else witness.live,
        steps=() if witness is None else tuple(witness.steps),
        tile=None if data is None else _decoded(data),
        chunks=result.traffic.chunks,
        stored_bytes=result.traffic.stored_bytes,
    )


def _row_at(archive: Archive, plan: Plan, at: str) -> int:
    """The row of tiles that a time lies in."""
    try:
        time_ns = utc_ns(at)
    except ValueError as error:
        raise UsageError(f"The time {at!r} to look at {error}.") from error
    first = plan.sample_start
    sample = archive.sample_at(time_ns) - first
    if time_ns >= plan.acquisition.start_ns and 0 <= sample < plan.covered_span:
        return min(sample // plan.row_stride, plan.rows - 1)
    last = min(first + plan.covered_span, plan.acquisition.n_samples) - 1
    first_ns, last_ns = (int(archive.times_ns(n, n + 1)[0]) for n in (first, last))
    raise UsageError(
        f"There is no whole tile at {iso_time(time_ns)}: those of this recipe run from "
        f"{iso_time(first_ns)} to {iso_time(last_ns)}. Give --at a time between these."
    )


def _decoded(data: bytes) -> NDArray[Any]:
    """Pixels or levels of a tile's file."""
    if data.startswith(b"\x89PNG"):
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(data)))
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


class _Watching:
    """A CPU backend one of whose tiles is watched."""

    kind = "cpu"

    def __init__(self, backend: CpuBackend, band: int, plan: Plan) -> None:
        self._backend, self._band, self._plan = backend, band, plan
        self.ahead = backend.ahead
        self.witness: _Witness | None = None

    @contextmanager
    def workspace(self, layout: RingLayout, chain: Chain, fillers: int = 1) -> Iterator[_Witness]:
        """See `das_gpu.backends.Backend`."""
        with self._backend.workspace(layout, chain, fillers) as work:
            self.witness = _Witness(work, chain, self._band, self._plan)
            yield self.witness


class _Witness:
    """A workspace that keeps what one tile was after each step; else the backend's own."""

    def __init__(self, work: CpuWorkspace, chain: Chain, band: int, plan: Plan) -> None:
        self._work, self._chain, self._band, self._plan = work, chain, band, plan
        self._rows = chain.band(band)
        self.live: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self.steps: list[Step] = []

    @property
    def ring(self) -> HostRing:
        return self._work.ring

    @property
    def depth(self) -> int:
        return self._work.depth

    def analytic(self, row: RowWindow) -> Signal:
        held = self._held(row)
        signal = self._work.analytic(row)
        self.live = signal.live[self._rows].copy()
        chain, recipe = self._chain, self._plan.recipe
        self._note("raw", "Raw", held[:, :: chain.step])
        if chain.median_first:
            centred = held.astype(np.float64)
            ends = 0, centred.shape[1]
            plain.centre(centred, ends, ends)
            self._note("time-median", "Median over time off", centred[:, :: chain.step])
        passed = f"Band-pass {recipe.filter.low_hz:g}\N{EN DASH}{recipe.filter.high_hz:g} Hz"
        self._note("band-pass", passed, signal.values[self._rows].real)
        return signal

    def common_mode(self, signal: Signal) -> NDArray[Any] | None:
        return self._work.common_mode(signal)

    def envelope_db(self, signal: Signal, common: NDArray[Any] | None) -> Envelope:
        if common is not None:
            left = signal.values[self._rows].real - common.real
            self._note("common-mode", "Common mode off", left)
        return self._work.envelope_db(signal, common)

    def levels(self, envelope: Envelope) -> NDArray[np.float64]:
        levels = self._work.levels(envelope)
        offset_db = units.offset_db(self._plan.acquisition, self._plan.recipe)
        unit = f"dB re {self._plan.recipe.image.db_reference}"
        self._note("envelope", "Envelope", envelope.values[self._band] + offset_db, unit)
        return levels

    def draw(self, envelope: Envelope, levels: NDArray[np.float64]) -> Outcome:
        return self._work.draw(envelope, levels)

    def collect(self, drawn: Outcome) -> Outcome:
        return self._work.collect(drawn)

    def _held(self, row: RowWindow) -> NDArray[Any]:
        """The tile's samples as they are held, (channel, sample)."""
        chain = self._chain
        start = row.held0 + chain.core0
        stop = start + chain.step * chain.tile_samples
        pieces = self.ring.pieces(self._rows.start, self._rows.stop, start, stop)
        return np.concatenate(pieces, axis=1)

    def _note(self, name: str, title: str, values: NDArray[Any], unit: str = "counts") -> None:
        alive = values[self.live]
        limits: tuple[float, float] | tuple[None, None] = None, None
        finite = alive[np.isfinite(alive)]
        if finite.size and name in ("band-pass", "common-mode", "time-median"):
            most = float(np.percentile(np.abs(finite), 100 - ROBUST_PERCENT))
            limits = -most, most
        elif finite.size:
            low, high = np.percentile(finite, [ROBUST_PERCENT, 100 - ROBUST_PERCENT])
            limits = float(low), float(high)
        shown = values.astype(np.float64)
        if name != "raw":
            shown[~self.live] = np.nan
        self.steps.append(Step(name, title, shown, unit, *limits))
