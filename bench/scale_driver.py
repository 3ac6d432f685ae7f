"""The driver of a run whose segments cost nothing, as a process of its own; see `scale.py`.

    python bench/scale_driver.py small ARCHIVE OUT   # of one tile each, made by a thread
    python bench/scale_driver.py large ARCHIVE OUT   # a quarter of an hour each, by two processes

``ARCHIVE`` needs no samples. Plan, loop, ledger and workers are those of ``das-gpu extract``; what
the workers give back are the records of images that nobody has made. Figures go to stdout.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from das_gpu import Recipe
from das_gpu.crew import Hiring, hire
from das_gpu.dispatch import Dispatch, Progress
from das_gpu.identity import header_of, identity_of
from das_gpu.ledger import Ledger
from das_gpu.model import Status
from das_gpu.plan import Plan
from das_gpu.run import prepare
from das_gpu.segment import SegmentResult, failed_records
from das_gpu.sink import open_sink
from das_gpu.stream import Traffic

STALL_S = 60.0
SMALL_MINUTES, LARGE_MINUTES = 0.25, 15.0


def cable_plan(store: Path, first_channel: int, *, small: bool) -> Plan:
    """Plan every fifth channel of an archive; ``small``: a segment is a single tile."""
    bands = {"tile.bands": 1} if small else {}
    recipe = Recipe().with_settings(
        {"selection.channel_start": first_channel, "selection.channel_step": 5, **bands}
    )
    minutes = SMALL_MINUTES if small else LARGE_MINUTES
    return prepare(store, recipe, segment_minutes=minutes)[1]


def as_if_made(plan: Plan, number: int) -> SegmentResult:
    """Give the records of a segment all of whose tiles make an image, and no image."""
    made = [
        replace(
            record,
            status=Status.OK.value,
            reason=None,
            file_name=f"images/2021-11-01/23/{record.sample_start}_ch{record.channel_start}.png",
            db_low=100.0 + record.sample_start % 7 / 3,
            db_high=140.0 + record.sample_start % 7 / 3,
            sha256=sha256(str(record.sample_start).encode()).hexdigest(),
        )
        for record in failed_records(plan, number, "")
    ]
    return SegmentResult(made, Traffic())


def memory_mb(field: str) -> float:
    """Memory of this process: ``VmRSS`` now, or ``VmHWM``, its peak; 10^6 bytes.

    Raises
    ------
    SystemExit
        When the system does not tell.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / 1e6
    raise SystemExit(f"This system does not tell {field}.")


def drive(store: Path, out: Path, first_channel: int, most: int, *, small: bool) -> dict[str, Any]:
    """Hand out at most so many segments and enter what comes back.

    Raises
    ------
    SystemExit
        When not every tile was entered.
    """
    plan = cable_plan(store, first_channel, small=small)
    archive = prepare(store, plan.recipe)[0]
    numbers = list(range(plan.n_segments))[:most]
    marks: dict[int, float] = {}

    def note(progress: Progress) -> None:
        if small and progress.done_tiles in (most // 10, most):
            marks.setdefault(progress.done_tiles, memory_mb("VmRSS"))

    sink = open_sink(out)
    hiring = Hiring(backend="cpu") if small else Hiring(backend="cpu", cluster="local", workers=2)
    with sink.hold("scale") as hold, hire(hiring) as crew:
        ledger = Ledger.open(
            sink,
            identity_of(archive, plan, crew.selected, LARGE_MINUTES, "skip"),
            header_of(plan.recipe, crew.selected, plan),
            n_segments=plan.n_segments,
        )
        dispatch = Dispatch(crew, plan, ledger, sink, hold, stall_s=STALL_S, on_progress=note)
        begin_cpu = time.process_time()
        tally = dispatch.through(numbers, partial(as_if_made, plan))
        cpu_s = time.process_time() - begin_cpu
        begin = time.perf_counter()
        totals = ledger.publish()
        publish_s = time.perf_counter() - begin
    if totals.delivered != tally.tiles:
        raise SystemExit(f"{totals.delivered} of {tally.tiles} tiles were entered.")
    return {
        "segments": len(numbers),
        "tiles": tally.tiles,
        "seconds": round(tally.seconds, 3),
        "ms_per_segment": round(1000 * tally.seconds / len(numbers), 3),
        "cpu_ms_per_segment": round(1000 * cpu_s / len(numbers), 3),
        "publish_s": round(publish_s, 3),
        "rss_mb": {str(tiles): round(mb, 1) for tiles, mb in marks.items()},
        "peak_mb": round(memory_mb("VmHWM"), 1),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Drive segments that cost nothing.")
    parser.add_argument("kind", choices=("small", "large"))
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--first-channel", type=int, default=10_000)
    parser.add_argument("--segments", type=int, default=10_000, help="at most")
    asked = parser.parse_args()
    small = asked.kind == "small"
    print(
        json.dumps(drive(asked.store, asked.out, asked.first_channel, asked.segments, small=small))
    )


if __name__ == "__main__":
    main()
