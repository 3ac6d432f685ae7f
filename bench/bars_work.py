"""What the parts of `bars.py` share: runs that take turns, medians, bars."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bars_archive import Sizes

DEADLINE_S = 1800.0
NUMBA = {"yes": "numba", "no": "without numba"}

Figures = dict[str, Any]
Repeats = dict[str, list[Figures]]
"""By way, what each run of it gave."""


@dataclass(frozen=True)
class Bar:
    """One thing that das-gpu must be, and what it was found to be.

    Attributes
    ----------
    part, what : str
        Which part it belongs to; what was measured.
    unit : str
        Of ``value``, ``limit`` and ``aim``: ``times``, ``s``, ``MB``.
    value : float or None
        None when it was not measured.
    limit, aim : float or None
        The bar, and what is hoped for; without a bar the figure is told only.
    at_least : bool
        Whether ``value`` must reach ``limit``; otherwise it must not exceed it.
    """

    part: str
    what: str
    unit: str
    value: float | None
    limit: float | None = None
    aim: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None when there is none. What was not measured is not met."""
        if self.limit is None:
            return None
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Job:
    """What every part is given: an archive, room for others, and how often to measure.

    ``fast``: the ways to run, ``yes`` with numba and ``no`` without.
    """

    store: Path
    sizes: Sizes
    folder: Path
    repeats: int
    tiny: bool = False
    fast: tuple[str, ...] = ("no",)

    @property
    def warm_ups(self) -> int:
        """Runs of each way that do not count: what numba compiles, it compiles then."""
        return 0 if self.tiny else 1


@dataclass
class Measured:
    """A part's figures and bars."""

    figures: Figures = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)


def interleaved(
    ways: Mapping[str, Callable[[], Figures]], repeats: int, warm_ups: int = 0
) -> Repeats:
    """Run all ways in turn, who goes first alternating, and give what each run gave."""
    found: Repeats = {name: [] for name in ways}
    for repeat in range(-warm_ups, repeats):
        for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            figures = ways[name]()
            if repeat >= 0:
                found[name].append(figures)
    return found


def medians(runs: Sequence[Figures]) -> dict[str, float]:
    """Give the median of each figure that is one number."""
    return {
        name: round(float(statistics.median(run[name] for run in runs)), 6)
        for name, value in runs[0].items()
        if isinstance(value, int | float)
    }


def summed_up(found: Repeats) -> Figures:
    """Give each way's medians beside its runs."""
    return {name: {"median": medians(runs), "runs": runs} for name, runs in found.items()}


def over(first: Figures, second: Figures, name: str) -> float | None:
    """Give the ratio of two ways' medians; None when one was not measured."""
    if not first or not second:
        return None
    return round(float(first["median"][name]) / float(second["median"][name]), 3)


def process(command: Sequence[str], *, fast: str | None = None) -> tuple[str, Figures]:
    """Run a process to its end: what it wrote to stdout, its seconds and processor seconds.

    Raises
    ------
    SystemExit
        When it fails.
    """
    environment = {name: text for name, text in os.environ.items() if name != "DAS_GPU_FAST"}
    if fast is not None:
        environment["DAS_GPU_FAST"] = fast
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=DEADLINE_S, env=environment
    )
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, {"seconds": round(seconds, 3), "processor_s": round(cpu_s, 3)}


def outputs(folder: Path) -> Iterator[Path]:
    """Give new folders to write to; the one before is removed, for the disk's sake."""
    number = 0
    while True:
        out = folder / f"out-{number}"
        yield out
        shutil.rmtree(out, ignore_errors=True)
        number += 1
