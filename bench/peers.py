"""Band-pass, envelope and decimation of one array on one core: das-gpu and four peers.

    python bench/peers.py                    # 750 channels x 60 s, five runs of each
    python bench/peers.py --here             # only with what this environment holds
    python bench/peers.py --tiny --here      # small; shows that it runs, no figure

Every run is a process of its own (`peers_work.py`), on one processor, with one thread wherever a
library asks how many. Peers live in environments of their own, made at the first call, because
they want other versions of the same libraries. Runs take turns, in one order and then in the
other. How far each is from the truth is measured against the same chain in float64 over a longer
record, of which the array is the middle.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import peers_work
from machine import describe
from peers_ways import BLOCK_CHANNELS, HIGH_HZ, KEEP_EVERY, LOW_HZ, ORDER, WAYS, in_db

HERE = Path(__file__).resolve().parent
REQUIREMENTS: Mapping[str, str] = {
    "dascore": "dascore==0.1.24",
    "xdas": "xdas==0.2.10",
    "daspy-toolbox": "daspy-toolbox==1.2.7",
    "das4whales": "das4whales==0.2.2",
}
"""What is installed for each peer."""
OURS = "das-gpu"
BAR = 5.0
RATE_HZ = 200.0
MARGIN_S = 10.0
"""Recorded before and after the array, for the reference alone."""
EDGE_S = 5.0
"""What counts as the array's edge, at either end."""
RANGE_DB = 60.0
"""Levels further under the array's maximum are not compared."""
THREADS = dict.fromkeys(
    (
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
        *("NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
    ),
    "1",
)
FIGURES = ("seconds", "cpu_seconds", "first_seconds", "peak_mb", "above_input_mb")
RUN_DEADLINE_S = 300.0
INSTALL_DEADLINE_S = 1200.0

Find = Callable[[str], Path]
"""The Python that holds a distribution."""


class UnavailableError(Exception):
    """A peer that cannot take part here, and why."""


@dataclass
class Outcome:
    """What the runs of one way came to."""

    way: str
    runs: list[dict[str, Any]] = field(default_factory=list)
    distance: dict[str, dict[str, float]] = field(default_factory=dict)

    def median(self, figure: str) -> float:
        """Median over the runs."""
        return float(statistics.median(run[figure] for run in self.runs))

    def as_json(self, samples: int) -> dict[str, Any]:
        """Everything, the single runs included; ``samples`` is the size of the array."""
        way = WAYS[self.way]
        runs = [{key: run[key] for key in (*FIGURES, "load_average")} for run in self.runs]
        return {
            "way": self.way,
            "package": way.package,
            "versions": self.runs[0]["versions"],
            "same_job": way.same_job,
            "does": way.does,
            "msamples_per_s": round(samples / self.median("seconds") / 1e6, 2),
            **{f"median_{name}": round(self.median(name), 4) for name in FIGURES},
            "distance_db": self.distance,
            "runs": runs,
        }


def recording(channels: int, seconds: float) -> NDArray[np.int32]:
    """Counts with margins: an offset, slow drift, noise and a whale's notes along the cable."""
    rng = np.random.default_rng(1)
    samples = round((seconds + 2 * MARGIN_S) * RATE_HZ)
    time_s = np.arange(samples) / RATE_HZ
    counts = np.empty((channels, samples), dtype=np.int32)
    for channel in range(channels):
        drift = np.cumsum(rng.normal(0, 20, samples)) + rng.uniform(1.7e6, 1.9e6)
        trace = drift + rng.normal(0, 60, samples)
        delay_s = np.hypot(channel - channels / 3, 40) * 10 / 1500
        for begin_s in np.arange(4.0, time_s[-1], 7.0) + delay_s:
            heard = slice(*np.searchsorted(time_s, (begin_s - 1.5, begin_s + 1.5)))
            since_s = time_s[heard] - begin_s
            sweep = 2 * np.pi * (28.0 * since_s - 7.0 * since_s**2)
            trace[heard] += 4000 * np.exp(-((since_s / 0.25) ** 2) / 2) * np.cos(sweep)
        counts[channel] = np.rint(trace)
    return counts


def reference(counts: NDArray[np.int32]) -> NDArray[np.float64]:
    """Levels of the array in the middle of a recording, dB: float64, SciPy, the whole recording."""
    from scipy import signal

    sections = signal.butter(ORDER, [LOW_HZ, HIGH_HZ], "bandpass", fs=RATE_HZ, output="sos")
    margin = round(MARGIN_S * RATE_HZ)
    parts = []
    for first in range(0, len(counts), BLOCK_CHANNELS):
        block = counts[first : first + BLOCK_CHANNELS].astype(np.float64)
        analytic = signal.hilbert(signal.sosfiltfilt(sections, block, axis=1), axis=1)
        parts.append(in_db(analytic[:, margin:-margin:KEEP_EVERY]))
    return np.concatenate(parts)


def distance(
    levels: NDArray[np.float64], truth: NDArray[np.float64]
) -> dict[str, dict[str, float]]:
    """How far levels are from the reference inside the array and at its edges: rms, maximum.

    Raises
    ------
    UnavailableError
        When there are more or fewer of them.
    """
    if levels.size != truth.size:
        raise UnavailableError(f"gave {levels.size} levels where {truth.size} are expected")
    off = np.abs(levels.reshape(truth.shape) - truth)
    counted = truth >= truth.max() - RANGE_DB
    edge = round(EDGE_S * RATE_HZ / KEEP_EVERY)
    inside = np.zeros(truth.shape[1], dtype=bool)
    inside[edge:-edge] = True
    return {
        name: {
            "rms": round(float(np.sqrt(np.mean(off[where] ** 2))), 6),
            "max": round(float(off[where].max()), 6),
        }
        for name, where in (("inside", counted & inside), ("edges", counted & ~inside))
    }


def here(package: str) -> Path:
    """This Python, when it holds the package.

    Raises
    ------
    UnavailableError
        When it does not.
    """
    if package not in peers_work.versions(package):
        raise UnavailableError(f"{package} is not installed in this environment")
    return Path(sys.executable)


def environment(package: str, cache: Path) -> Path:
    """The Python of an environment that holds a peer alone, made when it is not there yet.

    Raises
    ------
    UnavailableError
        When the package cannot be installed on this Python.
    """
    if package == OURS:
        return here(package)
    requirement = REQUIREMENTS[package]
    major, minor = sys.version_info[:2]
    folder = cache / f"{requirement.replace('==', '-')}-py{major}.{minor}"
    python, made = folder / "bin" / "python", folder / "complete"
    if made.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # This environment's pip installs into the other: none has to be put there first.
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], INSTALL_DEADLINE_S)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    try:
        _run([*pip, "install", "--quiet", "--no-input", requirement], INSTALL_DEADLINE_S)
    except UnavailableError as error:
        shutil.rmtree(folder, ignore_errors=True)
        what = f"{requirement} cannot be installed on Python {major}.{minor}"
        raise UnavailableError(f"{what}: {error}") from error
    made.touch()
    return python


def _run(command: Sequence[str], deadline_s: float) -> None:
    """Run a command with one thread.

    Raises
    ------
    UnavailableError
        With its last words, without addresses: they may name a private registry, or hold a
        password.
    """
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=deadline_s,
            env={**os.environ, **THREADS, "MPLBACKEND": "Agg"},
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"was not done after {deadline_s:g} s") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        last = said[-1].strip() if said else "it said nothing"
        raise UnavailableError(re.sub(r"\S+://\S+", "(address)", last))


def run(way: str, python: Path, counts: Path, channels: int, calls: int) -> dict[str, Any]:
    """Run a way once, in a process of its own; its levels are put beside the counts.

    Raises
    ------
    UnavailableError
        When it fails, with what it says last.
    """
    result, levels = counts.with_suffix(".json"), counts.with_suffix(".levels")
    command = [str(python), "-s", peers_work.__file__, way, str(counts)]
    command += ["--channels", str(channels), "--rate-hz", str(RATE_HZ), "--calls", str(calls)]
    command += ["--core", str(max(os.sched_getaffinity(0)))]
    command += ["--levels", str(levels), "--result", str(result)]
    load = round(os.getloadavg()[0], 2)
    _run(command, RUN_DEADLINE_S)
    found: dict[str, Any] = json.loads(result.read_text())
    return {**found, "load_average": load}


def measure(
    counts: NDArray[np.int32], ways: Sequence[str], find: Find, repeats: int, calls: int
) -> tuple[list[Outcome], dict[str, str]]:
    """Run all ways in turn, in one order and then in the other.

    Returns
    -------
    outcomes : list of Outcome
        Of the ways that could be run.
    missing : dict
        Why the others could not.
    """
    margin = round(MARGIN_S * RATE_HZ)
    truth, missing = reference(counts), {}
    pythons: dict[str, Path] = {}
    for way in ways:
        try:
            pythons[way] = find(WAYS[way].package)
        except UnavailableError as error:
            missing[way] = str(error)
    outcomes = {way: Outcome(way) for way in pythons}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts.i4"
        np.ascontiguousarray(counts[:, margin:-margin]).tofile(file)
        for repeat in range(repeats):
            for way in list(outcomes)[:: 1 if repeat % 2 == 0 else -1]:
                try:
                    found = run(way, pythons[way], file, len(counts), calls)
                    outcomes[way].runs.append(found)
                    if repeat == 0:
                        levels = np.fromfile(file.with_suffix(".levels"))
                        outcomes[way].distance = distance(levels, truth)
                except UnavailableError as error:
                    missing[way] = str(error)
                    del outcomes[way]
    return list(outcomes.values()), missing


def ratios(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """How many times faster each way of ours is than the fastest peer, as far as both were run.

    ``speed_over_peer`` is what the bar is set for: the fastest peer that does the same job.
    ``speed_over_default`` is over peers with their own default filters, which do another.
    ``cpu_...`` are the same of processor time, which other work on the machine changes less.
    """
    found: dict[str, dict[str, float]] = {}
    for kind, figure in (("speed", "seconds"), ("cpu", "cpu_seconds")):
        taken = {outcome.way: outcome.median(figure) for outcome in outcomes}
        ours = [way for way in taken if WAYS[way].package == OURS]
        for name, same_job in (("peer", True), ("default", False)):
            others = [
                seconds
                for way, seconds in taken.items()
                if way not in ours and WAYS[way].same_job is same_job
            ]
            for way in ours if others else ():
                ratio = round(min(others) / taken[way], 2)
                found.setdefault(way, {})[f"{kind}_over_{name}"] = ratio
    return found


def table(outcomes: Sequence[Outcome], missing: Mapping[str, str], samples: int) -> str:
    """Medians, one line per way, and what each way computes."""
    head = f"{'way':18} {'version':9} {'s':>7} {'Msamples/s':>10} {'peak MB':>8} {'own MB':>7}"
    lines = [f"{head} {'inside: rms, max dB':>20} {'edges: rms, max dB':>20}"]
    for one in outcomes:
        inside, edges = (one.distance[where] for where in ("inside", "edges"))
        seconds = one.median("seconds")
        lines.append(
            f"{one.way:18} {one.runs[0]['versions'].get(WAYS[one.way].package, ''):9} "
            f"{seconds:7.3f} {samples / seconds / 1e6:10.1f} {one.median('peak_mb'):8.0f} "
            f"{one.median('above_input_mb'):7.0f} {inside['rms']:11.4f} {inside['max']:8.3f} "
            f"{edges['rms']:11.4f} {edges['max']:8.3f}"
        )
    lines += [f"{one.way}: {WAYS[one.way].does}." for one in outcomes]
    lines += [f"{way}: not run, {reason}." for way, reason in missing.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, write the JSON result, print the table and the ratios."""
    parser = argparse.ArgumentParser(description="Compare das-gpu with its peers on one core.")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each (default 5)")
    parser.add_argument("--calls", type=int, default=3, help="measured passes in each (default 3)")
    parser.add_argument("--tiny", action="store_true", help="20 channels x 30 s, once")
    parser.add_argument("--here", action="store_true", help="install nothing, make no environment")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    kept = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "das-gpu" / "peers"
    parser.add_argument("--cache", type=Path, default=kept, help=f"environments (default {kept})")
    default = HERE / "results" / "peers.json"
    parser.add_argument("--json", type=Path, default=default, help=f"result (default {default})")
    options = parser.parse_args()
    if options.repeats < 1 or options.calls < 1:
        parser.error("--repeats and --calls: at least 1 run and 1 pass are needed")

    channels, seconds, repeats = 750, 60.0, options.repeats
    if options.tiny:
        channels, seconds, repeats = 20, 30.0, 1
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    load = round(os.getloadavg()[0], 2)
    outcomes, missing = measure(
        recording(channels, seconds),
        options.ways,
        here if options.here else lambda package: environment(package, options.cache.absolute()),
        repeats,
        options.calls,
    )
    samples = round(channels * seconds * RATE_HZ)
    found = ratios(outcomes)
    result = {
        "date": begun,
        "job": {
            "channels": channels,
            "samples": round(seconds * RATE_HZ),
            "rate_hz": RATE_HZ,
            "band_hz": [LOW_HZ, HIGH_HZ],
            "order": ORDER,
            "keep_every": KEEP_EVERY,
            "edge_s": EDGE_S,
            "range_db": RANGE_DB,
        },
        "repeats": repeats,
        "calls": options.calls,
        "bar": BAR,
        "ratios": found,
        "ways": [outcome.as_json(samples) for outcome in outcomes],
        "not_run": missing,
        "machine": {"load_average_at_start": load, **describe([OURS, "numpy", "scipy"])},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(outcomes, missing, samples))
    for way, figures in found.items():
        print(f"{way}: {json.dumps(figures)}")
    print(f"bar: speed_over_peer of {OURS} at least {BAR:g}; {options.json}")
    if OURS in missing:
        raise SystemExit(f"das-gpu itself was not run: {missing[OURS]}.")


if __name__ == "__main__":
    main()
