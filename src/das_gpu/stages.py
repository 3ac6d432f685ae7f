"""Contestants of a benchmark: each makes the same tiles, stage by stage and as a whole run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from das_gpu import reference
from das_gpu.archive import Archive
from das_gpu.backends import Backend, Chain, Workspace, fast
from das_gpu.backends.cpu import CpuBackend
from das_gpu.errors import UsageError
from das_gpu.model import RowWindow
from das_gpu.plan import Plan
from das_gpu.plan import plan as lay_out
from das_gpu.process import design
from das_gpu.recipe import Recipe, Scale
from das_gpu.render import encode_npy, encode_png, file_name, iso_utc
from das_gpu.run import default_loaders, extract
from das_gpu.spans import ring_layout
from das_gpu.stream import SegmentStream

STAGES = ("analytic", "common_mode", "envelope_db", "levels", "draw", "encode")
"""Steps of one row of tiles, in order; after ``draw`` its images are on the host."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lap:
    """What one thing took once: seconds, and processor seconds of all of the process's threads."""

    seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class Stopwatch:
    """Laps by name, in the order they were run."""

    laps: dict[str, list[Lap]] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block."""
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        yield
        lap = Lap(time.perf_counter() - begun_s, time.process_time() - begun_cpu_s)
        self.laps.setdefault(name, []).append(lap)


@dataclass(frozen=True)
class Stretch:
    """A part of an archive under a recipe.

    Attributes
    ----------
    plan : Plan
        All its tiles; its recipe names the stretch's end.
    middle : Plan
        Its middle row of tiles alone, with the halos that the archive has for it.
    """

    archive: Archive
    plan: Plan
    middle: Plan

    @classmethod
    def of(cls, archive: Archive, recipe: Recipe, minutes: float) -> Self:
        """Lay the recipe over the first minutes of what it selects.

        Raises
        ------
        UsageError
            When the recipe cannot be carried out there.
        """
        rate_hz = archive.acquisition.sampling_rate_hz
        selection = recipe.selection
        start, stop = archive.sample_range(selection.start_ns, selection.stop_ns)
        if start + round(60 * minutes * rate_hz) < stop:
            stop = start + round(60 * minutes * rate_hz)
            stop_ns = int(archive.times_ns(stop, stop + 1)[0])
            recipe = recipe.with_settings({"selection.stop": iso_utc(stop_ns)})
        plan = lay_out(archive.acquisition, recipe, (start, stop))
        first = start + plan.rows // 2 * plan.row_stride
        last = min(first + plan.tile_span, stop)
        return cls(archive, plan, lay_out(archive.acquisition, recipe, (first, last)))


class Contestant(Protocol):
    """One way to make a stretch's tiles."""

    @property
    def name(self) -> str:
        """Short, for tables and JSON."""

    @property
    def about(self) -> str:
        """One line on what it does."""

    @property
    def stretch(self) -> Stretch:
        """What it is asked for."""

    def held(self) -> AbstractContextManager[Callable[[Stopwatch], None]]:
        """With the middle row's samples in memory: a call makes the row once, stage by stage."""

    def envelopes_db(self) -> list[NDArray[Any]]:
        """Envelope of each tile of the middle row, (channel, sample), dB re 1e-6 count."""

    def read(self) -> None:
        """Fetch and decode the stretch's chunks and keep what is wanted of them; no more."""

    def whole(self, out: Path) -> None:
        """Make the stretch's images in a new folder."""


@dataclass(frozen=True)
class Ours:
    """das-gpu's own way, through a backend's steps and `das_gpu.run.extract`."""

    name: str
    about: str
    stretch: Stretch
    backend: Backend
    threads: int

    @contextmanager
    def held(self) -> Iterator[Callable[[Stopwatch], None]]:
        """See `Contestant`."""
        with (
            self._loaded(self.stretch.middle) as (work, row),
            ThreadPoolExecutor(self.threads) as encoders,
        ):
            yield partial(self._row, work, row, encoders)

    def _row(
        self, work: Workspace, row: RowWindow, encoders: ThreadPoolExecutor, watch: Stopwatch
    ) -> None:
        plan = self.stretch.plan
        with watch("analytic"):
            signal = work.analytic(row)
            _settle(work)
        common = None
        if plan.common_mode:
            with watch("common_mode"):
                common = work.common_mode(signal)
                _settle(work)
        with watch("envelope_db"):
            envelope = work.envelope_db(signal, common)
            _settle(work)
        with watch("levels"):
            levels = work.levels(envelope)
            _settle(work)
        with watch("draw"):
            outcome = work.collect(work.draw(envelope, levels))
        arrays = plan.recipe.image.format == "npy"
        with watch("encode"):
            _each(encoders, encode_npy if arrays else encode_png, outcome.pixels)

    def envelopes_db(self) -> list[NDArray[Any]]:
        """See `Contestant`: as float32."""
        with self._loaded(self.stretch.middle, arrays=True) as (work, row):
            signal = work.analytic(row)
            common = work.common_mode(signal) if self.stretch.plan.common_mode else None
            envelope = work.envelope_db(signal, common)
            return list(work.collect(work.draw(envelope, work.levels(envelope))).pixels)

    @contextmanager
    def _loaded(self, plan: Plan, *, arrays: bool = False) -> Iterator[tuple[Workspace, RowWindow]]:
        """A workspace whose ring holds the plan's only row; loading has ended."""
        chain = design(plan)
        if arrays:
            chain = replace(chain, picture=None, scale=Scale.parse("tile"))
        with self._stream(plan, 0, chain) as (work, stream):
            row = next(iter(stream))
            _refuse_lost(row)
            yield work, row

    @contextmanager
    def _stream(
        self, plan: Plan, number: int, chain: Chain
    ) -> Iterator[tuple[Workspace, SegmentStream]]:
        archive, segment = self.stretch.archive, plan.segment(number)
        layout = ring_layout(plan, segment, ahead=self.backend.ahead)
        loaders = default_loaders(archive, self.threads)
        decoders = min(loaders, self.threads)
        with (
            self.backend.workspace(layout, chain, decoders) as work,
            SegmentStream(
                *(archive, plan, segment, work.ring, layout), loaders=loaders, decoders=decoders
            ) as stream,
        ):
            yield work, stream

    def read(self) -> None:
        """See `Contestant`: on as many threads as a run would use."""
        plan = self.stretch.plan
        for number in range(plan.n_segments):
            with self._stream(plan, number, design(plan)) as (_, stream):
                for _ in stream:
                    pass

    def whole(self, out: Path) -> None:
        """See `Contestant`: as ``das-gpu extract`` does, in this process."""
        archive, recipe = self.stretch.archive, self.stretch.plan.recipe
        extract(
            str(archive.location),
            out,
            recipe,
            backend=self.backend.kind,
            workers=self.threads,
            fast=self.backend.compiled if isinstance(self.backend, CpuBackend) else None,
            access=archive.access,
        )


def uncompiled(stretch: Stretch) -> str | None:
    """What keeps the CPU's loops over a stretch from being compiled; None when they are.

    Asked as the CPU backend asks before its first row, where it falls back to NumPy with no more
    than a warning. Compiles them the first time on a machine, which takes some ten seconds.
    """
    held = ring_layout(stretch.plan, stretch.plan.segment(0)).dtype
    return fast.missing_for(design(stretch.plan), np.dtype(held))


@dataclass(frozen=True)
class Reference:
    """The notebook's way: tile by tile in plain SciPy, the tiles of a row on all threads.

    It reads a row of tiles at a time, plainly: each chunk once for a row. There is no dask
    client, whose scheduling and copies cost the real notebook more than its arithmetic.
    """

    stretch: Stretch
    threads: int
    name: str = "reference"
    about: str = "the notebook's steps in float64, plain NumPy, SciPy and Pillow"

    @contextmanager
    def held(self) -> Iterator[Callable[[Stopwatch], None]]:
        """See `Contestant`."""
        tiles = self._tiles(self.stretch.middle, 0)
        with ThreadPoolExecutor(self.threads) as pool:
            yield partial(self._row, tiles, pool)

    def _row(
        self, tiles: Sequence[NDArray[Any]], pool: ThreadPoolExecutor, watch: Stopwatch
    ) -> None:
        sos, image = self._sections, self.stretch.plan.recipe.image
        with watch("analytic"):
            signals = _each(pool, lambda counts: reference.analytic(counts, sos), tiles)
        with watch("envelope_db"):
            envelopes = _each(pool, reference.envelope_db, signals)
        with watch("levels"):
            limits = _each(pool, reference.levels, envelopes)
        with watch("draw"):
            pictures = _each(
                pool,
                lambda pair: reference.picture(pair[0], *pair[1], image.height, image.width),
                zip(envelopes, limits, strict=True),
            )
        with watch("encode"):
            _each(pool, reference.encode, pictures)

    def envelopes_db(self) -> list[NDArray[Any]]:
        """See `Contestant`: in float64."""
        tiles = self._tiles(self.stretch.middle, 0)
        return [reference.envelope_db(reference.analytic(tile, self._sections)) for tile in tiles]

    def read(self) -> None:
        """See `Contestant`: on one thread, a row after the other."""
        for row in range(self.stretch.plan.rows):
            self._tiles(self.stretch.plan, row)

    def whole(self, out: Path) -> None:
        """See `Contestant`."""
        archive, plan = self.stretch.archive, self.stretch.plan
        image, acquisition = plan.recipe.image, plan.acquisition
        (out / "images").mkdir(parents=True)

        def make(counts: NDArray[Any], row: int, band: int) -> None:
            core = plan.tile(row, band).core
            envelope = reference.envelope_db(reference.analytic(counts, self._sections))
            pixels = reference.picture(
                envelope, *reference.levels(envelope), image.height, image.width
            )
            name = file_name(
                "notebook",
                start_ns=int(archive.times_ns(core.t0, core.t0 + 1)[0]),
                channel=core.c0,
                distance_m=acquisition.distance_m(core.c0),
                suffix="png",
            )
            (out / name).write_bytes(reference.encode(pixels))

        with ThreadPoolExecutor(self.threads) as pool:
            for row in range(plan.rows):
                tiles = self._tiles(plan, row)
                list(pool.map(make, tiles, [row] * len(tiles), range(len(tiles))))

    @property
    def _sections(self) -> NDArray[np.float64]:
        plan, band = self.stretch.plan, self.stretch.plan.recipe.filter
        rate_hz = plan.acquisition.sampling_rate_hz / plan.time_step
        return reference.sections(band.low_hz, band.high_hz, band.order, rate_hz)

    def _tiles(self, plan: Plan, row: int) -> list[NDArray[Any]]:
        """Strided samples of a row's tiles, (channel, sample)."""
        first, last = plan.tile(row, 0).core, plan.tile(row, plan.bands - 1).core
        channels = slice(first.c0, min(last.c1, plan.acquisition.n_channels), plan.channel_step)
        samples = slice(first.t0, min(first.t1, plan.acquisition.n_samples), plan.time_step)
        data = self.stretch.archive.data
        if plan.acquisition.dims[0] == "time":
            kept = data[samples, channels].T
        else:
            kept = data[channels, samples]
        width, stride = plan.band_channels, plan.band_stride
        return [kept[band * stride : band * stride + width] for band in range(plan.bands)]


def _settle(work: Workspace) -> None:
    """Wait until a device has done what it was told, so that a stage's time is its own."""
    from das_gpu.backends.gpu import GpuWorkspace

    if isinstance(work, GpuWorkspace):
        work.close()


def _refuse_lost(row: RowWindow) -> None:
    """Refuse a row that a run would not make whole: its times would mean nothing."""
    for span in row.spans:
        if not span.status.delivered:
            raise UsageError(
                f"The tiles at {iso_utc(row.start_ns)}, in the middle of the stretch, cannot be "
                f"measured: {span.reason}. Choose another stretch with --start and --minutes."
            )


def _each(
    pool: ThreadPoolExecutor, step: Callable[[Item], Result], items: Iterable[Item]
) -> list[Result]:
    return list(pool.map(step, items))
