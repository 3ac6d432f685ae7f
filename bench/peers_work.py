"""One way to make an envelope, timed on one core in a process of its own, for `peers.py`.

    python bench/peers_work.py dascore counts.i4 --channels 750 --rate-hz 200 --result R.json

Runs in whatever environment holds the package. The samples are read, turned into the type that
the package works in and put where it wants them before the clock starts. Then the way is run once
unmeasured, so that imports made late, filter designs and caches are in place, and `--calls` times
measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from peers_ways import WAYS, Job, Way


def measured(way: Way, asked: Job, calls: int, levels: Path | None) -> dict[str, Any]:
    """Run a way; the median of its calls, the memory it took, and who took part.

    ``peak_mb`` is the whole process's; ``above_input_mb`` what it has beyond what it had with
    its imports and its samples in place.
    """
    with way.prepare(asked) as prepared:
        gc.collect()
        before_mb = memory_mb("VmRSS")
        seconds, cpu_seconds = [], []
        found = None
        for _ in range(1 + calls):
            found = None
            begin, cpu = time.perf_counter(), time.process_time()
            found = prepared.run()
            cpu_seconds.append(time.process_time() - cpu)
            seconds.append(time.perf_counter() - begin)
        peak_mb = memory_mb("VmHWM")
        if levels is not None:
            np.ascontiguousarray(prepared.levels(found), dtype=np.float64).tofile(levels)
    return {
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu_seconds[1:]),
        "first_seconds": seconds[0],
        "peak_mb": peak_mb,
        "above_input_mb": peak_mb - before_mb,
        "versions": {"python": platform.python_version(), **versions(way.package)},
    }


def versions(package: str) -> dict[str, str]:
    """Versions of a package and of what it computes with, as far as they are installed."""
    found = {}
    for name in (package, "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def memory_mb(field: str) -> float:
    """A figure of this process's memory, 10^6 bytes.

    The resource usage that is passed down from a parent to its child would include the parent's
    own peak; the status file does not.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status does not state {field}.")


def main() -> None:
    """Pin this process to one core, run one way, write what was measured."""
    parser = argparse.ArgumentParser(description="Time one way to make an envelope.")
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("counts", type=Path, help="int32 samples, channel after channel")
    parser.add_argument("--channels", type=int, required=True)
    parser.add_argument("--rate-hz", type=float, required=True)
    parser.add_argument("--calls", type=int, default=3, help="passes, after an unmeasured one")
    parser.add_argument("--core", type=int, help="the processor to run on")
    parser.add_argument("--levels", type=Path, help="where the levels go, float64 dB")
    parser.add_argument("--result", type=Path, required=True, help="where the figures go, JSON")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    asked = Job(options.counts, options.channels, options.rate_hz)
    found = measured(WAYS[options.way], asked, options.calls, options.levels)
    options.result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
