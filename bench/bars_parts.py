"""What `bars.py` measures, part by part: every single figure, and what it comes to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from bars_archive import linked
from bars_process import BANDS, CHANNEL_STEP
from bars_work import (
    NUMBA,
    Bar,
    Figures,
    Job,
    Measured,
    interleaved,
    outputs,
    over,
    process,
    summed_up,
)
from das_gpu.host import processors
from starting import BEGINNINGS, helped, started

HERE = Path(__file__).resolve().parent
TILE_SECONDS = 15.0
TILES = ("--channels", f"::{CHANNEL_STEP}", "--bands", str(BANDS))
NOTEBOOK = ("--preset", "notebook", "--dtype", "float64")
PEER = "notebook's pipeline"
WHOLE = {"continuous": (), "notebook": NOTEBOOK}
"""Options by part of those that are whole processes beside the peer."""
MODES = {None: "by default", "yes": NUMBA["yes"], "no": NUMBA["no"]}
LIMITS = {"continuous": (6.0, 9.0), "notebook": (4.0, None)}
STEADY = {"yes": (3.0, 2.4), "no": (4.2, None)}
STEPS = {
    "median over channels": "median over channels",
    "detrend, band-pass, envelope": "spectral envelope, over transforms by hand",
    "resize": "resize",
    "encode": "PNG encode",
}
"""Steps of `kernels.py` that have a bar, and what they are called here."""
PEAK_MB = 600.0
START_LIMITS = {"first_byte": 1.5, "first_sample": None, "help": 0.5}


# --- whole processes ----------------------------------------------------------------------


def digest(out: Path) -> tuple[int, str]:
    """Give the number of images below a folder, and a digest of their names and all pixels."""
    files = sorted(out.rglob("*.png"), key=lambda file: file.name)
    whole = sha256()
    for file in files:
        image = np.asarray(Image.open(file))
        whole.update(f"{file.name} {image.dtype} {image.shape}".encode())
        whole.update(image.tobytes())
    return len(files), whole.hexdigest()


def to_images(job: Job, parts: Sequence[str]) -> Measured:
    """``continuous`` and ``notebook``: processes from the command line to the last image.

    All ways of both parts take turns with the peer, so that one peer serves both. The bar is for
    the command as it comes; beside it stand those that insist on numba, and on none.

    Raises
    ------
    SystemExit
        When a process fails or makes other images than it should.
    """
    tiles = BANDS * int(job.sizes.scene.seconds // TILE_SECONDS)
    folders = outputs(job.folder / "images")

    def timed(command: Sequence[str], options: Sequence[str], fast: str | None) -> Figures:
        out = next(folders)
        _, figures = process([*command, str(job.store), str(out), *options], fast=fast)
        images, check = digest(out)
        if images != tiles:
            raise SystemExit(f"{' '.join(command)} wrote {images} images, not {tiles}.")
        return {**figures, "pixels": check}

    ours, theirs = [sys.executable, "-m", "das_gpu", "extract"], HERE / "notebook_pipeline.py"
    modes: list[str | None] = [None] if job.tiny else [None, *job.fast]
    ways: dict[str, Callable[[], Figures]] = {
        way(part, fast): partial(timed, ours, [*TILES, *WHOLE[part]], fast)
        for part in parts
        for fast in modes
    }
    striding = ["--channel-step", str(CHANNEL_STEP), "--time-step", "2", "--bands", str(BANDS)]
    striding += ["--workers", str(processors())]
    ways[PEER] = partial(timed, [sys.executable, str(theirs)], striding, None)
    runs = interleaved(ways, job.repeats, job.warm_ups)
    wanted = runs[PEER][0]["pixels"]
    for name in (way("notebook", fast) for fast in modes):
        if any(run["pixels"] != wanted for run in runs.get(name, [])):
            raise SystemExit(f"{name}: not pixel by pixel the images of the {PEER}.")
    found = summed_up(runs)
    bars = []
    for part in parts:
        for fast in modes:
            ran = found[way(part, fast)]
            # Whoever gives no option has the bar's speed.
            limit, aim = LIMITS[part] if fast is None else (None, None)
            ratio = over(found[PEER], ran, "seconds")
            text = f"faster than the {PEER}, {MODES[fast]}"
            bars.append(Bar(part, text, "times", ratio, limit, aim, at_least=True))
            seconds = ran["median"]["seconds"]
            bars.append(Bar(part, f"seconds, {MODES[fast]}", "s", seconds))
        bars.append(Bar(part, f"seconds, {PEER}", "s", found[PEER]["median"]["seconds"]))
    return Measured({"tiles": tiles, "ways": found}, bars)


def way(part: str, fast: str | None) -> str:
    """Name a way to run."""
    return f"{part}, {MODES[fast]}"


# --- steady state -------------------------------------------------------------------------


def slope(at_s: Sequence[float], edge: int) -> float:
    """Seconds per row of tiles: the least-squares line through the times of the middle rows.

    Parameters
    ----------
    at_s : sequence of float
        When each row was written.
    edge : int
        Rows to leave out at either end.

    Raises
    ------
    ValueError
        When fewer than two rows are left, or rows were not written one after the other.
    """
    middle = np.asarray(at_s[edge : len(at_s) - edge])
    if middle.size < 2 or any(later < one for one, later in pairwise(middle)):
        raise ValueError(f"No pace can be told from {len(at_s)} rows without {edge} at each end.")
    return float(np.polyfit(np.arange(middle.size), middle, 1)[0])


def steady(job: Job) -> Measured:
    """Seconds a row of tiles takes once a run is going, over those of fetching and decoding alone.

    A run notes when each of its rows was written; the line through those of the middle rows has
    the pace as its slope, so that start-up, the filling of buffers and the end are left out.
    Against it stands a bare loop, on as many threads, that reads the same files, a column of
    chunks for each row, into the same buffer again and again. Each is a process of its own.
    """
    sizes = job.sizes
    store = linked(
        *(job.folder / "steady.zarr", job.store, sizes.scene),
        channels=sizes.scene.channels,
        seconds=sizes.steady_s,
    )
    folders = outputs(job.folder / "steady")

    def child(what: str, *options: str) -> Figures:
        command = [sys.executable, str(HERE / "bars_process.py"), what, str(store)]
        said, _ = process([*command, str(next(folders)), *options])
        found: Figures = json.loads(said)
        return found

    def rows(fast: str) -> Figures:
        found = child("rows", "--fast", fast)
        return {
            "seconds_per_row": round(slope(found["row_s"], sizes.edge_rows), 5),
            "processor_s_per_row": round(slope(found["processor_s"], sizes.edge_rows), 5),
            **found,
        }

    def bare() -> Figures:
        found = child("bare")
        columns = found["columns"]
        return {
            "seconds_per_row": round(found["seconds"] / columns, 5),
            "processor_s_per_row": round(found["processor_s"] / columns, 5),
            **found,
        }

    ways: dict[str, Callable[[], Figures]] = {NUMBA[fast]: partial(rows, fast) for fast in job.fast}
    found = summed_up(interleaved({**ways, "bare": bare}, job.repeats, job.warm_ups))
    bars = []
    for fast, limits in STEADY.items():
        ran = found.get(NUMBA[fast], {})
        ratio = over(ran, found["bare"], "seconds_per_row")
        text = f"a row of tiles over fetching and decoding it, {NUMBA[fast]}"
        bars.append(Bar("steady", text, "times", ratio, *limits))
    per_row = found["bare"]["median"]["seconds_per_row"]
    bars.append(Bar("steady", "fetching and decoding a row's chunks alone", "s", per_row))
    return Measured({"record_seconds": sizes.steady_s, "ways": found}, bars)


# --- steps --------------------------------------------------------------------------------


def kernels(job: Job) -> Measured:
    """Each step of a tile on one core, by `kernels.py`, against plain NumPy, SciPy and Pillow."""
    file = job.folder / "kernels.json"
    command = [sys.executable, str(HERE / "kernels.py"), "--no-start-up", "--json", str(file)]
    process([*command, *(["--tiny"] if job.tiny else ["--repeats", str(max(9, job.repeats))])])
    found: Figures = json.loads(file.read_text())
    bars = []
    for step, text in STEPS.items():
        times: Mapping[str, float] = found["steps"][step]["times_plain"]
        if "yes" in job.fast:
            best = times.get("compiled", times["numpy"])
            bars.append(Bar("kernels", f"{text}, numba", "times", best, 3.0, at_least=True))
        else:
            bars.append(Bar("kernels", f"{text}, numba", "times", None, 3.0, at_least=True))
        bars.append(Bar("kernels", f"{text}, without numba", "times", times["numpy"]))
    return Measured(found, bars)


# --- memory -------------------------------------------------------------------------------


def memory(job: Job) -> Measured:
    """Peak memory of runs over a wide archive: every fifth channel, short and long, and every one.

    The bar is for every fifth channel, which the presets take: with every channel, the counts of
    one window alone are 562 MB. Whether memory grows with the length is seen at every fifth: of
    the long record every channel would take many minutes, five times over.
    """
    sizes, folders = job.sizes, outputs(job.folder / "memory")
    stores = {
        seconds: linked(
            *(job.folder / f"wide-{seconds:g}.zarr", job.store, sizes.scene),
            channels=sizes.wide_channels,
            seconds=seconds,
        )
        for seconds in (sizes.short_s, sizes.long_s)
    }

    def peak(step: int, seconds: float, fast: str) -> Figures:
        command = [sys.executable, str(HERE / "bars_process.py"), "peak", str(stores[seconds])]
        options = ["--channels", f"::{step}", "--workers", "2"]
        said, figures = process([*command, str(next(folders)), *options], fast=fast)
        found: Figures = json.loads(said)
        return {"peak_mb": found["peak_mb"], **figures}

    def name(step: int, seconds: float, fast: str) -> str:
        channels = -(-sizes.wide_channels // step)
        return (
            f"{channels:,} channels kept of {sizes.wide_channels:,}, {seconds:g} s, {NUMBA[fast]}"
        )

    first = job.fast[0]
    short, long = (CHANNEL_STEP, sizes.short_s, first), (CHANNEL_STEP, sizes.long_s, first)
    modes = job.fast[:1] if job.tiny else job.fast
    asked = [short, long, *((CHANNEL_STEP, sizes.short_s, other) for other in modes[1:])]
    asked.append((1, sizes.short_s, first))
    ways: dict[str, Callable[[], Figures]] = {name(*what): partial(peak, *what) for what in asked}
    found = summed_up(interleaved(ways, job.repeats))
    limited = {name(*what) for what in asked if what[0] == CHANNEL_STEP}
    bars = [
        Bar(
            *("memory", f"peak, {what}", "MB", ran["median"]["peak_mb"]),
            PEAK_MB if what in limited else None,
        )
        for what, ran in found.items()
    ]
    text = f"{sizes.long_s:g} s over {sizes.short_s:g} s, every fifth channel, {NUMBA[first]}"
    growth = over(found[name(*long)], found[name(*short)], "peak_mb")
    bars.append(Bar("memory", text, "times", growth, 1.1))
    return Measured({"channels": sizes.wide_channels, "workers": 2, "ways": found}, bars)


# --- start-up -----------------------------------------------------------------------------


def start_up(job: Job) -> Measured:
    """Seconds from the start of a process to what it first does."""
    ways: dict[str, Callable[[], Figures]] = {
        "extract": lambda: dict(started(job.store, job.folder, list(TILES))[0]),
        "help": lambda: dict(helped()),
    }
    found = summed_up(interleaved(ways, job.repeats, job.warm_ups))
    taken = {**found["extract"]["median"], **found["help"]["median"]}
    bars = [
        Bar("startup", BEGINNINGS[name], "s", taken[f"{name}_s"], limit)
        for name, limit in START_LIMITS.items()
    ]
    return Measured(found, bars)
