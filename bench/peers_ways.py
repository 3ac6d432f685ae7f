"""The ways to make an envelope that `peers.py` compares: das-gpu's and those of four peers.

Read by processes in whatever environment holds a package: nothing but NumPy is imported before
the package itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW_HZ, HIGH_HZ, ORDER, KEEP_EVERY = 14.0, 35.0, 8, 2
DB_REFERENCE = 120.0
"""20*log10(1/1e-6): the level of 1 count re 1e-6 count."""
FLOOR_DB = -400.0
"""Stands for the level of an envelope that is 0, which has none."""
BLOCK_CHANNELS = 50
SPACING_M = 10.0
TILE_S = 15.0


@dataclass(frozen=True)
class Job:
    """The samples: a file of int32, channel after channel."""

    counts: Path
    channels: int
    rate_hz: float

    @property
    def samples(self) -> int:
        """Samples of each channel."""
        return self.counts.stat().st_size // (4 * self.channels)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """The samples of a few channels at a time, and the first of these channels."""
        for first in range(0, self.channels, BLOCK_CHANNELS):
            rows = min(BLOCK_CHANNELS, self.channels - first)
            start, count = 4 * first * self.samples, rows * self.samples
            block = np.fromfile(self.counts, dtype=np.int32, count=count, offset=start)
            yield first, block.reshape(rows, self.samples)

    def as_float(self) -> NDArray[np.float64]:
        """All samples in float64."""
        values = np.empty((self.channels, self.samples))
        for first, block in self.blocks():
            values[first : first + len(block)] = block
        return values

    def times(self) -> NDArray[np.datetime64]:
        """The time of each sample."""
        step = np.timedelta64(round(1e9 / self.rate_hz), "ns")
        start = np.datetime64("2021-11-01T00:00:00", "ns")
        times: NDArray[np.datetime64] = start + np.arange(self.samples) * step
        return times

    def distances_m(self) -> NDArray[np.float64]:
        """The place of each channel along the cable."""
        return np.arange(self.channels, dtype=np.float64) * SPACING_M


@dataclass(frozen=True)
class Pass:
    """``run`` is what is timed; ``levels`` turns what it gives into dB re 1e-6 count."""

    run: Callable[[], Any]
    levels: Callable[[Any], NDArray[Any]]


@dataclass(frozen=True)
class Way:
    """How one package is used.

    Attributes
    ----------
    package : str
        The distribution that has to be installed.
    same_job : bool
        Whether it is a zero-phase Butterworth band-pass of order 8, without a second filter.
    does : str
        What is computed, as far as it is not plain from the job.
    prepare : callable
        Puts the samples in place.
    """

    package: str
    same_job: bool
    does: str
    prepare: Callable[[Job], AbstractContextManager[Pass]]


def in_db(envelope: NDArray[Any]) -> NDArray[Any]:
    """Level of a linear envelope, dB re 1e-6 count."""
    with np.errstate(divide="ignore"):
        return floored(20 * np.log10(np.abs(envelope)) + DB_REFERENCE)


def floored(levels: NDArray[Any]) -> NDArray[Any]:
    """Levels of which none is infinite."""
    finite: NDArray[Any] = np.maximum(levels, FLOOR_DB)
    return finite


@contextmanager
def das_gpu(
    asked: Job, *, tile_s: float | None, dtype: str, linear: bool, compiled: bool = True
) -> Iterator[Pass]:
    """The CPU backend over a full ring: its analytic signal, then the envelope.

    Tile by tile with halos, as a run does; or, where no length of a tile is given, over all
    samples at once and without halos, as the peers do. The envelope is the backend's, in dB, or
    the analytic signal's magnitude, as the peers'. Loops are ``compiled`` by numba, or NumPy's.

    Raises
    ------
    ValueError
        When the record is not a whole number of tiles.
    """
    from das_gpu.backends import Backend
    from das_gpu.backends.cpu import CpuBackend
    from das_gpu.model import Acquisition, RowWindow
    from das_gpu.plan import plan
    from das_gpu.process import design
    from das_gpu.recipe import Recipe
    from das_gpu.spans import archive_window, held, ring_layout, row_spans
    from das_gpu.timeline import Cuts
    from loops import insist

    if compiled:
        insist()
    shape = (asked.channels, asked.samples)
    recording = Acquisition(
        shape=shape,
        chunk_shape=shape,
        dims=("distance", "time"),
        dtype="int32",
        sampling_rate_hz=asked.rate_hz,
        channel_spacing_m=SPACING_M,
        start_ns=0,
        last_ns=round((asked.samples - 1) / asked.rate_hz * 1e9),
    )
    recipe = Recipe().with_settings(
        {
            "selection.channel_step": 1,
            "selection.time_step": KEEP_EVERY,
            "filter.low_hz": LOW_HZ,
            "filter.high_hz": HIGH_HZ,
            "filter.order": ORDER,
            "median.kind": "none",
            "tile.seconds": asked.samples / asked.rate_hz if tile_s is None else tile_s,
            "filter.halo_s": 0 if tile_s is None else "auto",
            "tile.bands": 1,
            "compute.dtype": dtype,
        }
    )
    laid = plan(recording, recipe)
    if laid.unused_samples:
        raise ValueError(f"{asked.samples} samples are not a whole number of tiles of {tile_s} s.")
    chain, layout = design(laid), ring_layout(laid, laid.segment(0))
    rows = [
        RowWindow(
            row=row,
            held0=held(laid, archive_window(laid, row)[0]),
            length=chain.length,
            spans=row_spans(laid, row, Cuts([], []), {0: ()}, fill=False),
            start_ns=0,
            end_ns=0,
            quality=0,
        )
        for row in range(laid.rows)
    ]
    envelope = np.empty((asked.channels, laid.rows * laid.tile_samples), dtype=chain.dtype)
    backend: Backend = CpuBackend(threads=1, compiled=compiled)
    with backend.workspace(layout, chain) as work:
        for first, block in asked.blocks():
            with work.ring.room(layout.first, first, first + len(block)) as room:
                room[...] = block

        def run() -> NDArray[Any]:
            for row in rows:
                start = row.row * laid.tile_samples
                kept = envelope[:, start : start + laid.tile_samples]
                signal = work.analytic(row)
                if linear:
                    np.abs(signal.values, out=kept)
                else:
                    kept[...] = work.envelope_db(signal, None).values[0]
            return envelope

        yield Pass(run, in_db if linear else floored)


@contextmanager
def dascore(asked: Job, *, defaults: bool) -> Iterator[Pass]:
    """A Patch, its methods chained as its documentation does."""
    package = importlib.import_module("dascore")
    patch = package.Patch(
        data=asked.as_float(),
        coords={"distance": asked.distances_m(), "time": asked.times()},
        dims=("distance", "time"),
    )
    band = (LOW_HZ, HIGH_HZ)

    def run() -> Any:
        if defaults:
            return patch.pass_filter(time=band).decimate(time=KEEP_EVERY).envelope("time")
        filtered = patch.pass_filter(time=band, corners=ORDER)
        return filtered.decimate(time=KEEP_EVERY, filter_type=None).envelope("time")

    yield Pass(run, lambda found: in_db(found.data))


@contextmanager
def xdas(asked: Job, *, defaults: bool) -> Iterator[Pass]:
    """A DataArray and the functions of its processing vocabulary, on one thread."""
    package = importlib.import_module("xdas")
    package.config.set("n_workers", 1)
    times = asked.times()
    time_axis = {
        "tie_values": times[:1],
        "tie_lengths": [asked.samples],
        "sampling_interval": times[1] - times[0],
    }
    axes = {"distance": asked.distances_m(), "time": time_axis}
    record = package.DataArray(asked.as_float(), axes)
    band = (LOW_HZ, HIGH_HZ)

    def run() -> Any:
        if defaults:
            kept = package.resample(package.filter(record, band), asked.rate_hz / KEEP_EVERY)
        else:
            filtered = package.filter(record, band, order=ORDER, zerophase=True)
            kept = filtered.isel(time=slice(None, None, KEEP_EVERY))
        return np.abs(package.hilbert(kept))

    yield Pass(run, lambda found: in_db(found.values))


@contextmanager
def daspy(asked: Job, *, prepared: bool, defaults: bool) -> Iterator[Pass]:
    """A Section, whose methods replace its data one after the other."""
    package = importlib.import_module("daspy")
    samples = asked.as_float()

    def run() -> Any:
        section = package.Section(samples, SPACING_M, asked.rate_hz)
        if prepared:
            section.detrending()
            section.cosine_taper()
        if defaults:
            section.bandpass(LOW_HZ, HIGH_HZ)
            section.downsampling(tint=KEEP_EVERY)
        else:
            section.bandpass(LOW_HZ, HIGH_HZ, corners=ORDER, zerophase=True)
            section.downsampling(tint=KEEP_EVERY, lowpass_filter=False)
        section.envelope()
        return section.data

    yield Pass(run, in_db)


@contextmanager
def das4whales(asked: Job, *, defaults: bool) -> Iterator[Pass]:
    """Its filters; the envelope is SciPy's, as in its tutorial."""
    dsp = importlib.import_module("das4whales").dsp
    signal = importlib.import_module("scipy.signal")
    samples = asked.as_float()

    def run() -> Any:
        if defaults:
            sections = dsp.butterworth_filter([5, [LOW_HZ, HIGH_HZ], "bp"], asked.rate_hz)
            kept = signal.sosfiltfilt(sections, samples, axis=1)[:, ::KEEP_EVERY]
        else:
            kept = dsp.bp_filt(samples, asked.rate_hz, LOW_HZ, HIGH_HZ)[:, ::KEEP_EVERY]
        return np.abs(signal.hilbert(kept, axis=1))

    yield Pass(run, in_db)


SPECTRAL = (
    "straight line through both ends taken off; squared response and Hilbert transform in one "
    "pair of transforms, compiled by numba"
)
FORTH_AND_BACK = "second-order sections forwards and backwards with odd padding"
WAYS: Mapping[str, Way] = {
    "das-gpu": Way(
        "das-gpu",
        True,
        f"float32 from integer counts; {SPECTRAL}",
        partial(das_gpu, tile_s=None, dtype="float32", linear=True),
    ),
    "das-gpu, NumPy": Way(
        "das-gpu",
        True,
        "the same without numba: SciPy's transforms, NumPy's loops",
        partial(das_gpu, tile_s=None, dtype="float32", linear=True, compiled=False),
    ),
    "das-gpu, dB": Way(
        "das-gpu",
        True,
        "the same, and the envelope's level in dB",
        partial(das_gpu, tile_s=None, dtype="float32", linear=False),
    ),
    "das-gpu, float64": Way(
        "das-gpu",
        True,
        f"float64 from integer counts; {SPECTRAL}",
        partial(das_gpu, tile_s=None, dtype="float64", linear=True),
    ),
    "das-gpu, tiles": Way(
        "das-gpu",
        True,
        "float32 and dB, in tiles of 15 s with their halos, of which the first and the last are "
        "mirrored beyond the array",
        partial(das_gpu, tile_s=TILE_S, dtype="float32", linear=False),
    ),
    "dascore": Way(
        "dascore",
        True,
        f"{FORTH_AND_BACK}; decimated without a second low-pass",
        partial(dascore, defaults=False),
    ),
    "dascore, defaults": Way(
        "dascore",
        False,
        "order 4 forwards and backwards, then a Chebyshev low-pass of order 8, forwards and "
        "backwards, before it decimates",
        partial(dascore, defaults=True),
    ),
    "xdas": Way(
        "xdas",
        True,
        f"{FORTH_AND_BACK}; decimated without a second low-pass",
        partial(xdas, defaults=False),
    ),
    "xdas, defaults": Way(
        "xdas",
        False,
        "order 4 forwards only, so not zero-phase; then a symmetric low-pass before it decimates",
        partial(xdas, defaults=True),
    ),
    "daspy": Way(
        "daspy-toolbox",
        True,
        "second-order sections forwards and backwards from rest, without padding, so that the "
        "offset rings in from both ends; decimated without a second low-pass",
        partial(daspy, prepared=False, defaults=False),
    ),
    "daspy, detrended": Way(
        "daspy-toolbox",
        True,
        "the same after a least-squares line is taken off and 5 % of the record tapered at "
        "either end",
        partial(daspy, prepared=True, defaults=False),
    ),
    "daspy, defaults": Way(
        "daspy-toolbox",
        False,
        "order 4 forwards and backwards from rest, without padding; then a Chebyshev low-pass, "
        "forwards only, before it decimates",
        partial(daspy, prepared=False, defaults=True),
    ),
    "das4whales": Way(
        "das4whales",
        True,
        "polynomials of order 16 (not sections) forwards and backwards with odd padding; every "
        "second sample and the Hilbert transform by NumPy and SciPy",
        partial(das4whales, defaults=False),
    ),
    "das4whales, defaults": Way(
        "das4whales",
        False,
        "order 5, as in its tutorial, in sections forwards and backwards by SciPy; the rest the "
        "same",
        partial(das4whales, defaults=True),
    ),
}
"""Every way that is compared, by its name."""
