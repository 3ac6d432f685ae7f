"""What more workers bring, what handing out segments costs, and how soon the first image is there.

    python bench/scale.py                 # all parts, about ten minutes
    python bench/scale.py --parts overhead full_size
    python bench/scale.py --tiny          # small; shows that it runs, no figure

``throughput``: two dask workers against one, each pinned to a core of its own, taking turns on one
archive. ``overhead``: segments that cost nothing through the run's own loop and ledger.
``first_image``: from the command line to the first image. ``full_size``: a driver that plans the
published archive and takes in the records of all its tiles. From these figures `scale_model.py`
simulates 1 to 512 workers. Results go to a JSON file and, as tables, to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import scale_driver
import scale_model
from bars_archive import linked
from das_gpu import Recipe, extract
from das_gpu.plan import Plan
from das_gpu.simulate import Scene, simulate
from machine import describe

HERE = Path(__file__).resolve().parent
PACKAGES = ("das-gpu", "numpy", "scipy", "zarr", "numcodecs", "obstore", "dask", "distributed")
DEADLINE_S = 600.0
START_S = 60.0
PARTS = ("throughput", "overhead", "first_image", "full_size")
BARS = {
    "two_workers_over_one": 1.8,
    "overhead_ms": 5.0,
    "rss_10000_over_1000": 1.05,
    "first_image_s": 5.0,
    "first_image_cluster_s": 5.0,
    "full_size_peak_mb": 300.0,
}
AT_LEAST = "two_workers_over_one"
"""The bar that is to be reached; the others are not to be passed."""
PINNED = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv.pop(1))})
from distributed.cli.dask_worker import main
main()
"""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    scene : Scene
        The archive that is read; of its channels every fifth is kept, 750 to a tile.
    times : int
        How often its chunks follow one another, as links, in the archive that workers share.
    segment_minutes : float
        Length of their segments.
    cable : Scene
        The archive that is planned; it has no samples.
    first_channel : int
        Where the selection of it begins.
    segments : int
        Segments that cost nothing.
    repeats : int
        Runs of each kind that is timed.
    """

    scene: Scene
    times: int
    segment_minutes: float
    cable: Scene
    first_channel: int
    segments: int
    repeats: int

    @property
    def recipe(self) -> Recipe:
        """The published archive's default tiles, as many as the scene has channels for."""
        bands = max(1, self.scene.channels // 5 // 750)
        return Recipe().with_settings({"selection.channel_step": 5, "tile.bands": bands})


FULL = Size(
    scene=Scene(channels=12_000, seconds=720.0),
    times=4,
    segment_minutes=4.0,
    cable=Scene(channels=47_500, seconds=39_168_000 / 200),
    first_channel=10_000,
    segments=10_000,
    repeats=5,
)
TINY = Size(
    scene=Scene(channels=300, seconds=30.0, chunk_shape=(100, 3000)),
    times=2,
    segment_minutes=0.25,
    cable=Scene(channels=15_000, seconds=3600.0),
    first_channel=7500,
    segments=100,
    repeats=1,
)


# --- throughput ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Team:
    """A scheduler's file, and the processes of its workers."""

    file: Path
    workers: list[int]

    def cpu_s(self) -> list[float]:
        """Processor seconds of each worker so far."""
        stats = [Path(f"/proc/{pid}/stat").read_text().split() for pid in self.workers]
        ticks = os.sysconf("SC_CLK_TCK")
        return [(int(stat[13]) + int(stat[14])) / ticks for stat in stats]


@contextmanager
def team(folder: Path, cores: list[int]) -> Iterator[Team]:
    """Start a scheduler, and a worker pinned to each of the cores."""
    folder.mkdir()
    file = folder / "scheduler.json"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file"]
    scheduler += [str(file), "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = ["--scheduler-file", str(file), "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    worker += ["--memory-limit", "0", "--local-directory", str(folder)]
    pinned = [[sys.executable, "-c", PINNED, str(core), *worker] for core in cores]
    processes = []
    with ExitStack() as stack, (folder / "said").open("wb") as said:
        for command in (scheduler, *pinned):
            running = stack.enter_context(subprocess.Popen(command, stdout=said, stderr=said))
            stack.callback(running.terminate)
            processes.append(running.pid)
            deadline = time.monotonic() + START_S
            while not file.exists():
                if running.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"No scheduler:\n{(folder / 'said').read_text()}")
                time.sleep(0.05)
        yield Team(file, processes[1:])


def throughput(size: Size, store: Path, folder: Path) -> dict[str, Any]:
    """Seconds that one pinned worker, and two, take for all segments, in turn.

    Some twenty seconds for one worker: what a run costs once would hide what workers bring.
    From the first segment handed out to the last one entered: starting is `first_image`'s.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("Two workers cannot be pinned to two cores: this process has one.")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    cpu_s: dict[int, list[list[float]]] = {1: [], 2: []}
    with ExitStack() as stack:
        teams = {n: stack.enter_context(team(folder / f"team-{n}", cores[:n])) for n in seconds}
        for n, each in teams.items():
            _wait_for_workers(each.file, n)
        # The first run of each imports and warms up, and does not count.
        for repeat in range(size.repeats + 1):
            for n in (1, 2) if repeat % 2 == 0 else (2, 1):
                before = teams[n].cpu_s()
                done = extract(
                    store,
                    folder / f"out-{n}-{repeat}",
                    size.recipe,
                    scheduler_file=teams[n].file,
                    segment_minutes=size.segment_minutes,
                )
                if done.exit_code:
                    raise SystemExit(f"The run by {n} workers came to {dict(done.tiles)}.")
                if repeat:
                    seconds[n].append(round(done.seconds, 3))
                    used = zip(teams[n].cpu_s(), before, strict=True)
                    cpu_s[n].append([round(after - earlier, 2) for after, earlier in used])
    medians = {n: statistics.median(values) for n, values in seconds.items()}
    # On a machine that others use, too: what the busiest worker was at.
    busiest = {n: statistics.median(map(max, values)) for n, values in cpu_s.items()}
    return {
        "seconds": seconds,
        "median_seconds": medians,
        "cpu_seconds_of_each": cpu_s,
        "segments": round(size.times * size.scene.seconds / 60 / size.segment_minutes),
        "tiles": done.images,
        "stored_mb_per_chunk": done.stored_bytes / done.chunks / 1e6,
        "chunks": done.chunks,
        "ratio": round(medians[1] / medians[2], 3),
        "cpu_ratio": round(busiest[1] / busiest[2], 3),
    }


def _wait_for_workers(file: Path, number: int) -> None:
    from distributed import Client

    open_client: Callable[..., Any] = Client
    with open_client(scheduler_file=str(file), set_as_default=False) as client:
        client.wait_for_workers(number, timeout=START_S)


# --- segments that cost nothing -----------------------------------------------------------


def driven(store: Path, out: Path, kind: str, size: Size) -> dict[str, Any]:
    """Figures of `scale_driver.py`, in a process whose memory is its own."""
    command = [sys.executable, scale_driver.__file__, kind, str(store), str(out)]
    command += ["--first-channel", str(size.first_channel), "--segments", str(size.segments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# --- the first image ----------------------------------------------------------------------


def first_image(store: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds from the command line to the first image, for each executor of this machine."""
    ways: dict[str, list[str]] = {"here": [], "cluster": ["--cluster", "local"]}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, options in ways.items():
            out = folder / f"first-{name}-{repeat}"
            command = [sys.executable, "-m", "das_gpu", "extract", str(store), str(out)]
            command += ["--channels", "::5", "--bands", "1", *options]
            seconds[name].append(_until_an_image(command, out))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": seconds, "median_seconds": medians}


def _until_an_image(command: list[str], out: Path) -> float:
    begin = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        while not any(out.glob("images/*/*/*.png")):
            if running.poll() not in (None, 0) or time.perf_counter() - begin > START_S:
                running.kill()
                _, said = running.communicate()
                raise SystemExit(f"{' '.join(command)}\nmade no image:\n{said}")
            time.sleep(0.005)
        seconds = round(time.perf_counter() - begin, 3)
        running.terminate()
        running.communicate(timeout=START_S)
    return seconds


# --- together -----------------------------------------------------------------------------


def model_input(plan: Plan, found: dict[str, Any]) -> dict[str, Any]:
    """What `scale_model.scenarios` takes, for a segment of the whole archive.

    Time goes by tiles: short segments read their halos more often, so that this is rather too
    much. The driver's time is the wall time of a run whose workers compute nothing.
    """
    one = found["throughput"]
    segments = plan.rows / plan.rows_per_segment
    tiles = plan.rows_per_segment * plan.bands
    chunks = plan.chunk_reads / segments
    return {
        "segment": {
            "worker_s": round(one["median_seconds"][1] / one["tiles"] * tiles, 3),
            "stored_mb": round(chunks * one["stored_mb_per_chunk"], 1),
            "requests": round(chunks + tiles),
            "rows": plan.rows_per_segment,
        },
        "segments": round(segments, 2),
        "driver_ms": found["full_size"]["ms_per_segment"],
        "start_s": found["first_image"]["median_seconds"]["cluster"],
    }


def bars(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each bar of a part that was run, and what was found."""
    values: dict[str, float] = {}
    if "throughput" in found:
        values["two_workers_over_one"] = found["throughput"]["ratio"]
    if "overhead" in found:
        overhead = found["overhead"]
        early, late = overhead["rss_mb"].values()
        values["overhead_ms"] = overhead["ms_per_segment"]
        values["rss_10000_over_1000"] = round(late / early, 3)
    if "first_image" in found:
        medians = found["first_image"]["median_seconds"]
        values["first_image_s"] = medians["here"]
        values["first_image_cluster_s"] = medians["cluster"]
    if "full_size" in found:
        values["full_size_peak_mb"] = found["full_size"]["peak_mb"]
    return {
        name: {
            "bar": BARS[name],
            "found": value,
            "met": value >= BARS[name] if name == AT_LEAST else value <= BARS[name],
        }
        for name, value in values.items()
    }


def measure(size: Size, parts: list[str], folder: Path) -> dict[str, Any]:
    """Run the parts, and the model when it has all it needs."""
    found: dict[str, Any] = {}
    cable = folder / "cable.zarr"
    if {"overhead", "full_size"} & set(parts):
        simulate(cable, size.cable, samples=False)
    store = folder / "archive.zarr"
    if {"throughput", "first_image"} & set(parts):
        simulate(store, size.scene)
    # What is not yet on the disk would be written while the first runs read.
    os.sync()
    if "throughput" in parts:
        channels, seconds = size.scene.channels, size.times * size.scene.seconds
        long = linked(folder / "long.zarr", store, size.scene, channels=channels, seconds=seconds)
        found["throughput"] = throughput(size, long, folder)
    if "overhead" in parts:
        found["overhead"] = driven(cable, folder / "overhead", "small", size)
    if "first_image" in parts:
        found["first_image"] = first_image(store, folder, size.repeats)
    if "full_size" in parts:
        found["full_size"] = driven(cable, folder / "full_size", "large", size)
    if set(parts) == set(PARTS):
        plan = scale_driver.cable_plan(cable, size.first_channel, small=False)
        found["model"] = model_input(plan, found)
    return found


def roofline() -> dict[str, Any] | None:
    """What `roofline.py` found, when it has been run."""
    file = HERE / "results" / "roofline.json"
    found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Bars and figures, as Markdown."""
    lines = ["| figure | bar | found |", "|---|---|---|"]
    for name, each in found.items():
        missed = "" if each["met"] else ", **missed**"
        lines.append(f"| {name} | {each['bar']:g} | {each['found']:g}{missed} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the JSON result, print the tables."""
    parser = argparse.ArgumentParser(description="Measure what more workers bring.")
    parser.add_argument("--tiny", action="store_true", help="small; no figure")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which")
    parser.add_argument("--repeats", type=int, default=FULL.repeats, help="runs of each")
    default = HERE / "results" / "scale.json"
    parser.add_argument("--json", type=Path, default=default, help=f"result (default {default})")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: at least 1 run of each is needed")

    size = TINY if options.tiny else replace(FULL, repeats=options.repeats)
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    load = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(size, options.parts, Path(folder))
    curves = scale_model.scenarios(found["model"], roofline()) if "model" in found else []
    result = {
        "date": begun,
        "bars": bars(found),
        **found,
        "curves": scale_model.as_json(curves),
        "machine": {"load_average_at_start": load, **describe(PACKAGES)},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result["bars"]))
    print()
    print(scale_model.tables(curves))
    print(options.json)


if __name__ == "__main__":
    main()
