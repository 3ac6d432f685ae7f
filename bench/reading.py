"""Ways to read an archive over a network, side by side: speed, processor time, memory.

    python bench/reading.py                           # three runs of each, half an hour
    python bench/reading.py --parts compare           # or loaders, or memory
    python bench/reading.py --tiny                    # small; shows that it runs, no figure

A simulated archive is served by `blob_server.py` under three conditions at once. Each run is
a process of its own (`reading_peers.py`), so that its processor time and its peak of memory
are its own. Runs take turns, in one order and then in the other, so that whatever else the
machine does falls on all. Results go to a JSON file and, as a table, to stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import reading_peers
from blob_server import serve
from das_gpu.host import processors
from das_gpu.run import REMOTE_LOADERS
from das_gpu.simulate import Scene, simulate
from machine import describe

HERE = Path(__file__).resolve().parent
PACKAGES = (
    *("das-gpu", "numpy", "scipy", "zarr", "numcodecs", "obstore"),
    *("azure-storage-blob", "xarray", "dask"),
)
DEADLINE_S = 300.0
PARTS = ("compare", "loaders", "memory")
LOADERS = (2, 4, 8, 12, 16, 24, 32)
FIGURES = ("seconds", "cpu_seconds", "peak_mb")
NEAR, MIDDLE, FAR = "near", "middle", "far"
CONDITIONS: Mapping[str, tuple[float, float | None]] = {
    NEAR: (0.0, None),
    MIDDLE: (10.0, 60.0),
    FAR: (50.0, 30.0),
}
"""Milliseconds before each answer, and 10^6 bytes per second of each stream."""


@dataclass(frozen=True)
class Trial:
    """One reader under one condition; run several times."""

    part: str
    reader: str
    condition: str
    channels: str
    seconds: float
    threads: int = REMOTE_LOADERS


@dataclass
class Outcome:
    """What the runs of a trial came to."""

    trial: Trial
    runs: list[dict[str, Any]] = field(default_factory=list)

    def median(self, figure: str) -> float:
        """Median over the runs."""
        return float(statistics.median(run[figure] for run in self.runs))

    @property
    def mb_per_s(self) -> float:
        """Decoded bytes of the chunks that are needed, over the median time, 10^6/s."""
        return float(self.runs[0]["decoded_mb"]) / self.median("seconds")

    @property
    def cpu_s_per_gb(self) -> float:
        """Median processor time over decoded bytes, s per 10^9."""
        return self.median("cpu_seconds") / float(self.runs[0]["decoded_mb"]) * 1000

    def as_json(self) -> dict[str, Any]:
        """Everything, the single runs included."""
        medians = {f"median_{name}": round(self.median(name), 3) for name in FIGURES}
        rates = {
            "mb_per_s": round(self.mb_per_s, 1),
            "cpu_s_per_gb": round(self.cpu_s_per_gb, 3),
        }
        return {**asdict(self.trial), **medians, **rates, "runs": self.runs}


def trials(scene: Scene, parts: Iterable[str]) -> Iterator[Trial]:
    """What is run for each part, on one archive."""
    whole = scene.seconds
    if "compare" in parts:
        for condition in (NEAR, FAR):
            for reader in reading_peers.READERS:
                yield Trial("compare", reader, condition, "::5", whole / 2)
        for reader in ("dask", "dask graph + processing"):
            yield Trial("compare", reader, FAR, "::5", whole / 2, processors())
        for reader in ("bare", "stream"):
            yield Trial("compare", reader, NEAR, "::1", whole / 2)
    if "loaders" in parts:
        for condition in (MIDDLE, FAR):
            for reader in ("stream", "stream + processing"):
                for threads in LOADERS:
                    yield Trial("loaders", reader, condition, "::5", whole / 2, threads)
    if "memory" in parts:
        for share in (8, 4, 1):
            channels = f":{scene.channels // 2}:5"
            yield Trial("memory", "stream + processing", NEAR, channels, whole / share)


def run(trial: Trial, url: str) -> dict[str, Any]:
    """Run a trial once, as a process of its own.

    Raises
    ------
    SystemExit
        When it fails; with what it says.
    """
    command = [sys.executable, reading_peers.__file__, trial.reader, url]
    command += ["--channels", trial.channels, "--seconds", str(trial.seconds)]
    command += ["--threads", str(trial.threads)]
    load = round(os.getloadavg()[0], 2)
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "load_average": load}


def measure(store: Path, todo: list[Trial], repeats: int) -> list[Outcome]:
    """Run all trials in turn, in one order and then in the other."""
    outcomes = [Outcome(trial) for trial in todo]
    with ExitStack() as stack:
        urls = {
            name: stack.enter_context(serve(store, *condition))
            for name, condition in CONDITIONS.items()
        }
        for repeat in range(repeats):
            for outcome in outcomes[:: 1 if repeat % 2 == 0 else -1]:
                outcome.runs.append(run(outcome.trial, urls[outcome.trial.condition]))
    require_same_work(outcomes)
    return outcomes


def require_same_work(outcomes: list[Outcome]) -> None:
    """Refuse figures of readers that did not come to the same samples or the same images.

    Raises
    ------
    SystemExit
        Naming the readers.
    """
    seen: dict[tuple[str, float, bool], tuple[str, Trial]] = {}
    for outcome in outcomes:
        trial = outcome.trial
        kind = (trial.channels, trial.seconds, "processing" in trial.reader)
        for found in outcome.runs:
            check, other = seen.setdefault(kind, (found["check"], trial))
            if found["check"] != check:
                raise SystemExit(
                    f"{trial.reader} ({trial.condition}) did not come to the same result as "
                    f"{other.reader} ({other.condition}): no figure of either means anything."
                )


def ratios(outcomes: list[Outcome]) -> dict[str, float]:
    """The figures that bars are set for, as far as their parts were run.

    ``far_speed_over_...``: another reader's time over the stream's, with the same processing
    and as many requests at a time, and with as many as dask has threads by default.
    ``near_cpu_over_bare``: the stream's processor time over the bare loop's.
    ``memory_8_over_2``: the peak for the whole record over that for a quarter of it; a shorter
    one would end before every loader has had a chunk.
    """
    found = {}
    compared = {
        (o.trial.reader, o.trial.condition, o.trial.channels, o.trial.threads): o
        for o in outcomes
        if o.trial.part == "compare"
    }
    if compared:
        streamed = compared["stream + processing", FAR, "::5", REMOTE_LOADERS].median("seconds")
        for name, reader, threads in (
            ("dask_rows", "dask rows + processing", REMOTE_LOADERS),
            ("dask_graph", "dask graph + processing", REMOTE_LOADERS),
            ("dask_graph_by_default", "dask graph + processing", processors()),
        ):
            other = compared[reader, FAR, "::5", threads].median("seconds")
            found[f"far_speed_over_{name}"] = other / streamed
        for name, channels in (("", "::5"), ("_every_channel", "::1")):
            stream, bare = (
                compared[reader, NEAR, channels, REMOTE_LOADERS].median("cpu_seconds")
                for reader in ("stream", "bare")
            )
            found[f"near_cpu_over_bare{name}"] = stream / bare
    peaks = [o.median("peak_mb") for o in outcomes if o.trial.part == "memory"]
    if peaks:
        found["memory_8_over_2"] = peaks[-1] / peaks[-2]
    return {name: round(value, 3) for name, value in found.items()}


def table(outcomes: list[Outcome]) -> str:
    """Medians, one line per trial."""
    head = f"{'':7} {'reader':24} {'network':7} {'channels':8} {'s':>4} {'at once':>7} "
    lines = [head + f"{'wall s':>7} {'MB/s':>6} {'CPU s/GB':>8} {'peak MB':>7}"]
    for one in outcomes:
        t = one.trial
        lines.append(
            f"{t.part:7} {t.reader:24} {t.condition:7} {t.channels:8} {t.seconds:4.0f} "
            f"{t.threads:7} {one.median('seconds'):7.2f} {one.mb_per_s:6.0f} "
            f"{one.cpu_s_per_gb:8.2f} {one.median('peak_mb'):7.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, write the JSON result, print the table and the ratios."""
    parser = argparse.ArgumentParser(description="Compare ways to read an archive.")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--tiny", action="store_true", help="1200 channels x 120 s, once")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to run")
    default = HERE / "results" / "reading.json"
    parser.add_argument("--json", type=Path, default=default, help=f"result (default {default})")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: at least 1 run of each is needed")

    if options.tiny:
        scene, repeats = Scene(channels=1200, seconds=120.0, chunk_shape=(300, 3000)), 1
    else:
        scene, repeats = Scene(channels=12_000, seconds=480.0), options.repeats
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory() as folder:
        store = simulate(Path(folder) / "archive.zarr", scene)
        # What is not yet on the disk would be written while the first runs read.
        os.sync()
        load = round(os.getloadavg()[0], 2)
        outcomes = measure(store, list(trials(scene, options.parts)), repeats)
    result = {
        "date": begun,
        "archive": {
            "channels": scene.channels,
            "seconds": scene.seconds,
            "chunk_shape": scene.chunk_shape,
        },
        "conditions": {
            name: {"latency_ms": latency_ms, "rate_mb_per_s": rate_mb}
            for name, (latency_ms, rate_mb) in CONDITIONS.items()
        },
        "repeats": repeats,
        "ratios": ratios(outcomes),
        "trials": [outcome.as_json() for outcome in outcomes],
        "machine": {"load_average_at_start": load, **describe(PACKAGES)},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(outcomes))
    print(f"{json.dumps(result['ratios'])}; {options.json}")


if __name__ == "__main__":
    main()
