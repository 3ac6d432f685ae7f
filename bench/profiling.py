"""Where a run's time goes: seconds of each kind of work, for a row of tiles and for a tile.

    python bench/profiling.py            # 12,000 channels x 240 s, every fifth; three runs
    python bench/profiling.py --tiny     # small; shows that it runs, no figure

The real functions of das-gpu are wrapped while ``das_gpu.run.extract`` runs in this process; no
other code runs than in use. Each thread has a stack of what it is at, so that a function's
seconds are its own: those of wrapped functions that it calls are theirs. Two clocks run: the
thread's processor time, which adds up to that of the process, and the clock on the wall, which
also counts waiting for a processor, for a lock or for other threads. What no wrapped function
accounts for is Python's rest.

Start-up is measured apart, in new processes: until the archive's first byte and its first sample
are asked for, until ``--help`` has answered, and which packages' imports cost most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import scipy.fft

from das_gpu import segment
from das_gpu.backends import analytic, cpu, plain, window
from das_gpu.bloscframe import BloscFrame
from das_gpu.chunks import StoredArray
from das_gpu.codec import Codec
from das_gpu.host import processors
from das_gpu.ledger import Ledger
from das_gpu.process import Processor
from das_gpu.recipe import Recipe
from das_gpu.run import extract
from das_gpu.simulate import Scene, simulate
from das_gpu.sink import LocalSink
from das_gpu.stream import SegmentStream
from das_gpu.timeline import Timeline
from loops import insist
from machine import describe
from starting import BEGINNINGS, helped, started

HERE = Path(__file__).resolve().parent
PACKAGES = ("das-gpu", "numpy", "scipy", "zarr", "numcodecs", "pillow")
TILE_SECONDS = 15.0

WAITS = ("wait for chunks", "wait for room", "wait for threads")
"""Only the clock on the wall runs there."""
REST = "Python's rest"
WAYS = {"numpy": False, "compiled": True}
"""Whether loops are compiled."""


@dataclass
class Spent:
    """Seconds by kind of work: of processors, on the wall, and how often it was begun."""

    processor_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    wall_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)


class Profile:
    """What the threads of this process are at, as far as wrapped functions say."""

    def __init__(self) -> None:
        self.spent = Spent()
        self._lock = threading.Lock()
        self._thread = threading.local()

    @property
    def _stack(self) -> list[list[float]]:
        """For each wrapped function this thread is in, the seconds of those it has called."""
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
        stack: list[list[float]] = self._thread.stack
        return stack

    @contextmanager
    def at(self, kind: str) -> Iterator[None]:
        """Count the block as this kind of work."""
        stack = self._stack
        inner = [0.0, 0.0]
        stack.append(inner)
        begun_cpu_s, begun_s = time.thread_time(), time.perf_counter()
        try:
            yield
        finally:
            wall_s, cpu_s = time.perf_counter() - begun_s, time.thread_time() - begun_cpu_s
            stack.pop()
            if stack:
                stack[-1][0] += cpu_s
                stack[-1][1] += wall_s
            with self._lock:
                self.spent.processor_s[kind] += cpu_s - inner[0]
                self.spent.wall_s[kind] += wall_s - inner[1]
                self.spent.calls[kind] += 1

    def wrapped(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """Give the function, counted as this kind of work."""

        @wraps(function)
        def counted(*arguments: Any, **named: Any) -> Any:
            with self.at(kind):
                return function(*arguments, **named)

        return counted

    def step(self, method: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """Give a backend's step: what it hands to its threads is counted as this kind too."""

        @wraps(method)
        def counted(*arguments: Any, **named: Any) -> Any:
            self._thread.kind = kind
            try:
                with self.at(kind):
                    return method(*arguments, **named)
            finally:
                self._thread.kind = None

        return counted

    def each(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Give `CpuBackend.each`, whose items are counted on the threads that do them."""

        @wraps(method)
        def counted(backend: cpu.CpuBackend, step: Callable[[Any], Any], items: Any) -> Any:
            kind = self._thread.kind
            with self.at("wait for threads"):
                return method(backend, self.wrapped(step, kind), items)

        return counted


PLACES: tuple[tuple[object, str, str], ...] = (
    (StoredArray, "_fetch", "fetch"),
    (Codec, "decode", "decode"),
    (BloscFrame, "decode_part", "decode"),
    (SegmentStream, "_keep_some", "keep channels"),
    (Timeline, "read", "time axis"),
    (SegmentStream, "_await", "wait for chunks"),
    (SegmentStream, "_await_room", "wait for room"),
    (window, "limits", "gather: dead channels"),
    (cpu, "gather", "gather: copy"),
    (plain.Detrend, "apply", "gather: detrend"),
    (scipy.fft, "rfft", "FFT forward"),
    (scipy.fft, "ifft", "FFT inverse"),
    (plain, "fold", "gains and folding"),
    (analytic.AnalyticPlan, "apply", "gather, FFTs, gains: compiled"),
    (Processor, "finish", "records"),
    (segment, "encode_png", "encode"),
    (segment, "_deliver", "records"),
    (LocalSink, "put", "write"),
    (LocalSink, "flush", "write: fsync"),
    (Ledger, "open", "ledger"),
    (Ledger, "finish_segment", "ledger"),
    (Ledger, "publish", "ledger"),
)
"""Where a function is looked up when it is called, its name there, and what it does."""
STEPS = {
    "analytic": "analytic signal: rest",
    "common_mode": "median",
    "envelope_db": "dB",
    "levels": "levels",
    "draw": "resize",
}
"""The backend's steps, which hand parts to its threads."""


@contextmanager
def profiled() -> Iterator[Profile]:
    """Wrap das-gpu's functions for a while."""
    profile = Profile()
    with ExitStack() as stack:

        def put(place: object, name: str, wrapped: object) -> None:
            # As it stands in the class: getattr would bind a class method.
            original = vars(place)[name]
            stack.callback(setattr, place, name, original)
            setattr(place, name, wrapped)

        for place, name, kind in PLACES:
            original = vars(place)[name]
            if isinstance(original, classmethod):
                put(place, name, classmethod(profile.wrapped(original.__func__, kind)))
            else:
                put(place, name, profile.wrapped(original, kind))
        for name, kind in STEPS.items():
            put(cpu.CpuWorkspace, name, profile.step(vars(cpu.CpuWorkspace)[name], kind))
        put(cpu.CpuBackend, "each", profile.each(cpu.CpuBackend.each))
        yield profile


def run_once(store: Path, out: Path, recipe: Recipe, *, fast: bool) -> dict[str, Any]:
    """Seconds by kind of one run in this process, and of the whole."""
    begun_cpu_s, begun_s = time.process_time(), time.perf_counter()
    with profiled() as profile:
        summary = extract(store, out, recipe, backend="cpu", fast=fast)
    wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
    spent = profile.spent
    rest_s = cpu_s - sum(spent.processor_s.values())
    return {
        "tiles": summary.images,
        "stored_bytes": summary.stored_bytes,
        "chunks": summary.chunks,
        "wall_s": wall_s,
        "processor_s": cpu_s,
        "kinds": {
            kind: {
                "processor_s": spent.processor_s[kind],
                "wall_s": spent.wall_s[kind],
                "calls": spent.calls[kind],
            }
            for kind in spent.calls
        }
        | {REST: {"processor_s": rest_s, "wall_s": None, "calls": None}},
    }


def middle(runs: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    """Medians over the runs, of the whole and for one row and one tile."""
    tiles = runs[0]["tiles"]
    kinds: dict[str, Any] = {}
    for kind in runs[0]["kinds"]:
        of_kind = [run["kinds"][kind] for run in runs if kind in run["kinds"]]
        cpu_s = statistics.median(each["processor_s"] for each in of_kind)
        walls = [each["wall_s"] for each in of_kind if each["wall_s"] is not None]
        kinds[kind] = {
            "processor_s": round(cpu_s, 4),
            "wall_s": round(statistics.median(walls), 4) if walls else None,
            "row_ms": round(1000 * cpu_s / rows, 3),
            "tile_ms": round(1000 * cpu_s / tiles, 3),
            "calls": of_kind[0]["calls"],
        }
    wall_s, cpu_s = (
        statistics.median(run[name] for run in runs) for name in ("wall_s", "processor_s")
    )
    return {
        "tiles": tiles,
        "rows": rows,
        "runs_s": [round(run["wall_s"], 3) for run in runs],
        "wall_s": round(wall_s, 3),
        "processor_s": round(cpu_s, 3),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1]["processor_s"])),
    }


# --- start-up -----------------------------------------------------------------------------


def imports(report: str) -> dict[str, float]:
    """Milliseconds that each package's modules took to import, from ``-X importtime``."""
    packages: Counter[str] = Counter()
    for line in report.splitlines():
        if not line.startswith("import time:") or "self" in line:
            continue
        own_us, _, name = line.removeprefix("import time:").split("|")
        packages[name.strip().split(".")[0]] += int(own_us)
    return {name: round(us / 1000, 1) for name, us in packages.most_common(15)}


def start_up(store: Path, folder: Path, options: list[str], repeats: int) -> dict[str, Any]:
    """Medians of the seconds that starting takes, and what the imports take of them."""
    runs = [started(store, folder, options)[0] | helped() for _ in range(repeats)]
    _, report = started(store, folder, options, "-X", "importtime")
    return {
        **{name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]},
        "imports_ms": imports(report),
    }


# --- the whole ----------------------------------------------------------------------------


def measure(scene: Scene, bands: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Profile runs over one archive, after one that only warms up; then start-up."""
    store = simulate(folder / "archive.zarr", scene)
    settings = {"selection.channel_step": 5, "tile.bands": bands}
    recipe = Recipe().with_settings({**settings, "tile.seconds": TILE_SECONDS})
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(1 + repeats):
        for way, compiled in WAYS.items():
            out = folder / f"{way}-{number}"
            runs[way].append(run_once(store, out, recipe, fast=compiled))
    rows = int(scene.seconds // TILE_SECONDS)
    stored, chunks = (runs["numpy"][0][name] for name in ("stored_bytes", "chunks"))
    height, width = scene.chunk_shape
    options = ["--channels", "::5", "--bands", str(bands)]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "archive": {
            "channels": scene.channels,
            "seconds": scene.seconds,
            "chunk_shape": scene.chunk_shape,
            "chunks_read": chunks,
            "stored_over_decoded": round(stored / (4 * height * width * chunks), 3),
        },
        "repeats": repeats,
        "threads": processors(),
        "runs": {way: middle(of_way[1:], rows) for way, of_way in runs.items()},
        "start_up": start_up(store, folder, options, repeats),
        "machine": describe(PACKAGES),
    }


def table(result: Mapping[str, Any]) -> str:
    """Markdown tables of a result."""
    starting, runs = result["start_up"], result["runs"]
    lines: list[str] = []
    for way, run in runs.items():
        lines += [
            f"| {way} | ms a row | ms a tile | share | seconds on the wall |",
            "|---|---|---|---|---|",
        ]
        for kind, spent in run["kinds"].items():
            wall = "" if spent["wall_s"] is None else f"{spent['wall_s']:.3f}"
            share = spent["processor_s"] / run["processor_s"]
            lines.append(
                f"| {kind} | {spent['row_ms']:.2f} | {spent['tile_ms']:.2f} | {share:.1%} "
                f"| {wall} |"
            )
        row_ms, tile_ms = (1000 * run["processor_s"] / run[name] for name in ("rows", "tiles"))
        lines += [
            f"| all | {row_ms:.2f} | {tile_ms:.2f} | 100.0% | {run['wall_s']:.3f} |",
            "",
        ]
    lines += [
        "| start-up | seconds | processor seconds |",
        "|---|---|---|",
        *(
            f"| {what} | {starting[f'{name}_s']:.2f} | {starting[f'{name}_processor_s']:.2f} |"
            for name, what in BEGINNINGS.items()
        ),
        "",
        "| imports of | ms |",
        "|---|---|",
        *(f"| {name} | {ms:.0f} |" for name, ms in starting["imports_ms"].items()),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, write the JSON result and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs that count")
    parser.add_argument("--tiny", action="store_true", help="600 channels x 30 s, once")
    default = HERE / "results" / "profile.json"
    parser.add_argument("--json", type=Path, default=default, help=f"result (default {default})")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: at least 1 run is needed")
    insist()
    scene, repeats = Scene(channels=12_000, seconds=240.0), options.repeats
    if options.tiny:
        scene, repeats = Scene(channels=600, seconds=30.0, chunk_shape=(300, 3000)), 1
    with tempfile.TemporaryDirectory() as folder:
        result = measure(scene, 4, repeats, Path(folder))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
