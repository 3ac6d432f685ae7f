"""The steps of a tile on one core: plain calls, das-gpu's NumPy path, and its compiled one.

    python bench/kernels.py --json bench/results/kernels.json
    python bench/kernels.py --tiny               # small; shows that it runs, no figure

Each step three ways, in turns, so that whatever else the machine does falls on all of them:
``plain`` is the step as one writes it with NumPy, SciPy and Pillow, at the same precision;
``numpy`` is das-gpu without and ``compiled`` with its extra ``fast``. The tile is 600 channels of
which 1,500 samples are kept, its window 3,750 samples.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, signal
from threadpoolctl import threadpool_limits

from das_gpu import filters, render
from das_gpu.backends import Chain, Picture, cpu, grey
from das_gpu.model import RingLayout, RowWindow, Span, Status
from das_gpu.recipe import Scale
from loops import compiled
from machine import describe

PACKAGES = ("das-gpu", "numpy", "scipy", "pillow")
PERCENT = (0.5, 99.5)
STEP = 2
SPECTRAL = "detrend, band-pass, envelope"
SPECTRAL_SCIPY = "the same over sosfiltfilt and hilbert"
DEADLINE_S = 300.0
START_UP = """
import time
from das_gpu.backends import cpu, fast
import numpy
begin = time.perf_counter()
missing = fast.first_missing(numpy.dtype("float32"), numpy.dtype("int32"))
if missing:
    raise SystemExit(missing)
print(time.perf_counter() - begin)
"""

Call = Callable[[], Any]


@dataclass(frozen=True)
class Tile:
    """What one tile is made from: counts (channel, sample), of which the core is kept."""

    counts: NDArray[np.int32]
    core0: int
    kept: int
    picture: Picture


@dataclass(frozen=True)
class Step:
    """One step three ways; each call gives its result.

    ``alike``: how the results are compared, ``values`` all of them, ``levels`` within 60 dB of
    the greatest, ``no`` where the ways are not meant to give the same.
    """

    name: str
    plain: Call
    numpy: Call
    compiled: Call | None
    alike: Literal["values", "levels", "no"] = "values"


def made_tile(tiny: bool) -> Tile:
    """Counts that wander as a cable's do, with noise of their own in each channel."""
    channels, length, kept = (40, 500, 200) if tiny else (600, 3750, 1500)
    random = np.random.default_rng(7)
    wander = np.cumsum(random.normal(0, 40, size=(channels, length)), axis=1)
    counts = wander + random.normal(0, 200, size=(channels, length)) + 1.8e6
    size = 32 if tiny else 256
    picture = Picture(size, size, 255, "time-down", "float")
    core0 = (length // STEP - kept) // 2 * STEP  # a sample that decimation keeps
    return Tile(counts.astype(np.int32), core0, kept, picture)


def plain_detrend(counts: NDArray[np.int32]) -> NDArray[np.float32]:
    """Subtract the line through the ends, in float64 as large counts need it."""
    window = counts.astype(np.float64)
    ramp = np.arange(window.shape[1]) / (window.shape[1] - 1)
    window -= window[:, :1] + (window[:, -1:] - window[:, :1]) * ramp
    return window.astype(np.float32)


def plain_analytic(real: NDArray[np.float32], gains: NDArray[np.float32]) -> NDArray[Any]:
    """Band-passed analytic signal at the full rate."""
    spectrum = np.zeros(real.shape, np.complex64)
    spectrum[:, : gains.size] = fft.rfft(real, axis=1)[:, : gains.size] * gains
    signal: NDArray[Any] = fft.ifft(spectrum, axis=1, norm="forward")
    return signal


def scipy_level(real: NDArray[np.float32], sections: NDArray[np.float64]) -> NDArray[np.float64]:
    """Level by the calls that SciPy has for this: filtered both ways, then Hilbert's transform."""
    filtered = signal.sosfiltfilt(sections, real, axis=1)
    level: NDArray[np.float64] = 20 * np.log10(np.abs(signal.hilbert(filtered, axis=1)) / 1e-6)
    return level


def plain_resize(level_db: NDArray[np.float32], low: float, high: float, to: Picture) -> Any:
    """Grey levels resized by Pillow in floating point."""
    grey_level = (level_db.T - low) * (to.highest / (high - low))
    image = Image.fromarray(np.ascontiguousarray(grey_level, dtype=np.float32))
    resized = np.asarray(image.resize((to.width, to.height), Image.Resampling.BICUBIC))
    return np.rint(np.clip(resized, 0, to.highest)).astype(np.uint8)


def plain_png(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pillow's own PNG, decoded again by whoever compares."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return np.frombuffer(file.getvalue(), np.uint8)


def chain_of(tile: Tile, weights: NDArray[np.float64]) -> Chain:
    """The numbers of a tile whose channels are one band."""
    channels, length = tile.counts.shape
    return Chain(
        dtype=np.dtype(np.float32), length=length, core0=tile.core0, step=STEP,
        tile_samples=tile.kept, weights=weights, sections=None, padding=0, median_first=False,
        bands=1, band_channels=channels, scale=Scale("percentile", *PERCENT), picture=tile.picture,
        distance_m=10.0 * np.arange(channels, dtype=np.float64), aperture_m=0.0,
    )  # fmt: skip


def opened(tile: Tile, chain: Chain, stack: ExitStack, *, compiled: bool) -> cpu.CpuWorkspace:
    """The CPU backend's workspace on one thread, whose ring holds the tile."""
    channels, length = tile.counts.shape
    layout = RingLayout(0, (0, length), 1, channels, "int32", (0, channels), False)
    backend = cpu.CpuBackend(compiled=compiled)
    work = stack.enter_context(backend.workspace(layout, chain))
    with work.ring.room(0, 0, channels) as room:
        room[...] = tile.counts
    return work


def steps(tile: Tile, stack: ExitStack, with_numba: bool) -> list[Step]:
    """All steps, each on what the one before it made."""
    counts, picture = tile.counts, tile.picture
    channels, length = counts.shape
    weights = filters.spectral_weights(filters.BandPass(14.0, 35.0, 8, 200.0), length, STEP)
    sections = signal.butter(8, [14, 35], "bandpass", fs=200, output="sos")
    chain = chain_of(tile, weights)
    numpy = opened(tile, chain, stack, compiled=False)
    compiled = opened(tile, chain, stack, compiled=True) if with_numba else None
    row = RowWindow(0, 0, length, (Span(0, channels, 0, length, Status.OK),), 0, 0, 0)
    gains, live = weights.astype(np.float32), np.ones(channels, bool)
    values = numpy.analytic(row).values.copy()
    signals = cpu.Signal(values, live)
    common = np.median(values.real, axis=0) + 1j * np.median(values.imag, axis=0)
    common = common.astype(np.complex64)
    levelled = numpy.envelope_db(cpu.Signal(values.copy(), live), common)
    level_db = levelled.values[0].copy()
    levelled = replace(levelled, values=level_db[None])
    limits = np.percentile(level_db, PERCENT)
    low, high = limits
    pixels = grey.in_float(level_db, live, low, high, picture)
    core = slice(tile.core0, tile.core0 + STEP * tile.kept, STEP)

    def plain_spectral() -> Any:
        z = plain_analytic(plain_detrend(counts), gains)
        return (20 * np.log10(np.abs(z) / 1e-6))[:, core]

    def step(
        name: str,
        call: Call,
        ours: Callable[[cpu.CpuWorkspace], Any],
        alike: Literal["values", "levels", "no"] = "values",
    ) -> Step:
        with_loops = None if compiled is None else partial(ours, compiled)
        return Step(name, call, partial(ours, numpy), with_loops, alike)

    encode = Step(
        "encode",
        lambda: plain_png(pixels),
        lambda: np.frombuffer(render.encode_png(pixels), np.uint8),
        None,
        "no",
    )
    return [
        step(
            SPECTRAL,
            plain_spectral,
            lambda work: work.envelope_db(work.analytic(row), None).values[0],
            "levels",
        ),
        step(
            SPECTRAL_SCIPY,
            lambda: scipy_level(plain_detrend(counts), sections)[:, core],
            lambda work: work.envelope_db(work.analytic(row), None).values[0],
            "no",  # the window's ends are mirrored there, joined here
        ),
        step(
            "median over channels",
            lambda: np.median(values.real, axis=0) + 1j * np.median(values.imag, axis=0),
            lambda work: work.common_mode(signals),
        ),
        step(
            "common mode off, level",
            lambda: 20 * np.log10(np.abs(values - common) / 1e-6),
            # Its memory takes the levels: the time of a copy counts against das-gpu.
            lambda work: work.envelope_db(cpu.Signal(values.copy(), live), common).values[0],
            "levels",
        ),
        step(
            "percentiles",
            lambda: np.percentile(level_db, PERCENT),
            lambda work: work.levels(levelled)[0],
        ),
        step(
            "resize",
            lambda: plain_resize(level_db, low, high, picture),
            lambda work: work.draw(levelled, limits[None]).pixels[0],
        ),
        encode,
    ]


def distance(found: NDArray[Any], expected: NDArray[Any], *, levels: bool) -> float:
    """Give the largest difference; of levels in dB, within 60 dB of the greatest."""
    apart = np.abs(found.astype(np.complex128) - expected)
    if levels:
        apart = apart[expected > expected.max() - 60]
    return float(apart.max())


def measured(step: Step, repeats: int) -> dict[str, Any]:
    """Milliseconds of each way, their ratios to the plain one, and how far results are apart."""
    ways = {"plain": step.plain, "numpy": step.numpy}
    if step.compiled is not None:
        ways["compiled"] = step.compiled
    apart = {}
    expected = np.array(step.plain())
    for name, call in ways.items():
        found = np.array(call())  # also the first call, which compiles
        if name != "plain" and step.alike != "no":
            apart[name] = distance(found, expected, levels=step.alike == "levels")
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        # Who goes first alternates.
        for name, call in list(ways.items())[:: 1 if repeat % 2 == 0 else -1]:
            begin = time.perf_counter()
            call()
            runs[name].append(1e3 * (time.perf_counter() - begin))
    median_ms = {name: statistics.median(taken) for name, taken in runs.items()}
    return {
        "median_ms": {name: round(taken, 3) for name, taken in median_ms.items()},
        "least_ms": {name: round(min(taken), 3) for name, taken in runs.items()},
        "times_plain": {n: round(median_ms["plain"] / t, 2) for n, t in median_ms.items()},
        "largest_difference": apart,
    }


def start_up(repeats: int) -> dict[str, float]:
    """Seconds to compile all steps (cold), or to load what was kept of that (warm).

    Raises
    ------
    RuntimeError
        When the process that is timed fails.
    """
    found: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        for run in range(repeats + 1):
            command = [sys.executable, "-c", START_UP]
            done = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                env=environment,
                timeout=DEADLINE_S,
            )
            if done.returncode:
                raise RuntimeError(f"Timing the start-up failed: {done.stderr.strip()[-500:]}")
            found["warm" if run else "cold"].append(float(done.stdout))
    return {f"{when}_s": round(statistics.median(runs), 3) for when, runs in found.items()}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--tiny", action="store_true", help="small and once; no figure")
    parser.add_argument("--no-start-up", action="store_true", help="leave compiling untimed")
    chosen = parser.parse_args()
    repeats = 1 if chosen.tiny else chosen.repeats
    with_numba = compiled()
    packages = (*PACKAGES, "numba", "llvmlite") if with_numba else PACKAGES
    tile = made_tile(chosen.tiny)
    cores = os.sched_getaffinity(0)
    with threadpool_limits(1), ExitStack() as stack:
        os.sched_setaffinity(0, {min(cores)})
        found = {s.name: measured(s, repeats) for s in steps(tile, stack, with_numba)}
        os.sched_setaffinity(0, cores)
    timed = with_numba and not chosen.no_start_up
    result = {
        "window": list(tile.counts.shape),
        "kept_samples": tile.kept,
        "image": [tile.picture.height, tile.picture.width],
        "repeats": repeats,
        "steps": found,
        "start_up": start_up(1 if chosen.tiny else 3) if timed else None,
        "machine": describe(packages),
    }
    for name, step in found.items():
        ways = ", ".join(
            f"{way} {taken:.2f} ms ({step['times_plain'][way]:.1f}x)"
            for way, taken in step["median_ms"].items()
        )
        print(f"{name}: {ways}")
    print(f"start-up: {json.dumps(result['start_up'])}")
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
