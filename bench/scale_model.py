"""How long an archive takes 1 to 512 workers, simulated from what one segment was measured to cost.

    python bench/scale_model.py                          # from bench/results/scale.json
    python bench/scale_model.py --account-gbit 200       # a storage account with other limits

Every worker makes one segment at a time. Reading goes on while it computes, so that a segment
takes as long as the slower of the two. Workers share evenly what the storage account gives. The
driver takes up finished segments one after another, while workers go on. Nothing fails, all
segments cost the same (the last may be shorter), and cores do not disturb each other.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ACCOUNT_GBIT = 50.0
"""What Azure's scalability targets let a standard account send, by default; 200 in some regions."""
ACCOUNT_REQUESTS = 20_000.0
"""Requests a second that they let it answer, by default."""
STREAMS, STREAM_MB = 12, 30.0
"""Requests in flight of a worker, and what each is given, 10^6 bytes per second."""
BENT = 0.8
"""Efficiency below which the curve is said to have bent."""


@dataclass(frozen=True)
class Cost:
    """What one whole segment asks for.

    Attributes
    ----------
    worker_s : float
        Seconds of a worker that never waits for bytes.
    stored_mb : float
        Read from the storage, 10^6 bytes.
    requests : float
        Made of the storage, images included.
    driver_s : float
        Seconds of the driver.
    """

    worker_s: float
    stored_mb: float
    requests: float
    driver_s: float


@dataclass(frozen=True)
class Limits:
    """What the site gives, 10^6 bytes or requests per second; infinite where nothing limits."""

    worker_mb_per_s: float
    account_mb_per_s: float
    account_requests_per_s: float


@dataclass(frozen=True)
class Scenario:
    """A kind of worker, a site and an archive of so many segments; the last may be a part."""

    name: str
    cost: Cost
    limits: Limits
    segments: float
    start_s: float

    def segment_s(self, active: int = 1) -> float:
        """Seconds of a segment while so many workers are at one."""
        cost, limits = self.cost, self.limits
        return max(
            cost.worker_s,
            cost.stored_mb / limits.worker_mb_per_s,
            active * cost.stored_mb / limits.account_mb_per_s,
            active * cost.requests / limits.account_requests_per_s,
        )

    def ceilings(self, workers: int) -> dict[str, float]:
        """Segments per second that each limit by itself lets so many workers make."""
        cost, limits = self.cost, self.limits
        return {
            "work of the workers": workers / cost.worker_s,
            "network of a worker": workers * limits.worker_mb_per_s / cost.stored_mb,
            "bandwidth of the account": limits.account_mb_per_s / cost.stored_mb,
            "requests of the account": limits.account_requests_per_s / cost.requests,
            "driver": 1 / cost.driver_s,
        }


@dataclass(frozen=True)
class Point:
    """A point of the curve; ``limit`` is what costs most beyond the worker's own time."""

    workers: int
    hours: float
    segments_per_hour: float
    efficiency: float
    limit: str


def run_s(scenario: Scenario, workers: int) -> float:
    """Seconds from the start of the workers to the last segment's record."""
    todo = deque([1.0] * math.floor(scenario.segments))
    if rest := scenario.segments % 1:
        todo.append(rest)
    # Segments that are being made end when `progress`, which all of them share, gets there.
    ends: list[float] = []
    now, progress, recorded = scenario.start_s, 0.0, 0.0
    while todo or ends:
        while todo and len(ends) < workers:
            heappush(ends, progress + todo.popleft())
        now += (ends[0] - progress) * scenario.segment_s(len(ends))
        progress = heappop(ends)
        recorded = max(recorded, now) + scenario.cost.driver_s
    return recorded


def point(scenario: Scenario, workers: int) -> Point:
    """Simulate so many workers."""
    seconds, alone = run_s(scenario, workers), run_s(scenario, 1)
    ceilings = scenario.ceilings(workers)
    ideal_s = scenario.segments / workers * scenario.segment_s()
    slowest = min(ceilings, key=ceilings.__getitem__)
    shared_s = max(0.0, scenario.segments / ceilings[slowest] - ideal_s)
    losses = {
        "start of the workers": scenario.start_s,
        slowest: shared_s,
        "too few segments": seconds - scenario.start_s - ideal_s - shared_s,
    }
    efficiency = alone / seconds / workers
    return Point(
        workers=workers,
        hours=seconds / 3600,
        segments_per_hour=scenario.segments / seconds * 3600,
        efficiency=efficiency,
        limit=slowest if efficiency >= BENT else max(losses, key=losses.__getitem__),
    )


def curve(scenario: Scenario, workers: Iterable[int] = WORKERS) -> list[Point]:
    """Simulate each number of workers."""
    return [point(scenario, each) for each in workers]


def bend(scenario: Scenario, most: int = max(WORKERS)) -> Point | None:
    """The first number of workers that the curve has bent at, or None."""
    points = (point(scenario, each) for each in range(1, most + 1))
    return next((each for each in points if each.efficiency < BENT), None)


def scenarios(
    measured: Mapping[str, Any],
    roofline: Mapping[str, Any] | None,
    account_gbit: float = ACCOUNT_GBIT,
    account_requests: float = ACCOUNT_REQUESTS,
) -> list[Scenario]:
    """Workers of one core as measured, without and with limits; workers of a GPU as modelled.

    Parameters
    ----------
    measured : mapping
        What ``bench/scale.py`` found: ``segment`` (worker_s, stored_mb, requests, rows),
        ``segments``, ``driver_ms`` and ``start_s``.
    roofline : mapping, optional
        What ``bench/roofline.py`` found.
    account_gbit, account_requests : float
        What the storage account gives, 10^9 bits and requests per second.
    """
    segment = measured["segment"]
    cost = Cost(
        worker_s=segment["worker_s"],
        stored_mb=segment["stored_mb"],
        requests=segment["requests"],
        driver_s=measured["driver_ms"] / 1000,
    )
    limits = Limits(STREAMS * STREAM_MB, account_gbit * 1000 / 8, account_requests)
    nothing = Limits(math.inf, math.inf, math.inf)
    core = Scenario("one core each", cost, limits, measured["segments"], measured["start_s"])
    found = [replace(core, name="one core each, storage without limits", limits=nothing), core]
    if roofline is not None:
        stages: dict[str, float] = roofline["stages"]
        here = [ms for name, ms in stages.items() if not name.startswith("network")]
        gpu = replace(cost, worker_s=segment["rows"] * max(here) / 1000)
        fast = replace(limits, worker_mb_per_s=1000 * roofline["assumed"]["fast_network_gb_per_s"])
        found.append(replace(core, name="a GPU and 16 cores each (modelled)", cost=gpu))
        name = "the same, 10 GB/s each (modelled)"
        found.append(replace(core, name=name, cost=gpu, limits=fast))
    return found


def tables(found: Iterable[Scenario]) -> str:
    """The curves, as Markdown, and where they bend."""
    lines = []
    for scenario in found:
        lines += [
            _asks(scenario),
            "",
            "| workers | segments/hour | hours | efficiency | limit |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {each.workers} | {each.segments_per_hour:.0f} | {each.hours:.3g} "
            f"| {each.efficiency:.2f} | {each.limit} |"
            for each in curve(scenario)
        ]
        bent = bend(scenario)
        where = f"bends at {bent.workers} workers: {bent.limit}" if bent else "does not bend"
        lines += ["", f"The curve {where}.", ""]
    return "\n".join(lines)


def _asks(scenario: Scenario) -> str:
    cost = scenario.cost
    return (
        f"{scenario.name}: a segment is {cost.worker_s:.1f} s of a worker, "
        f"{cost.stored_mb / 1000:.1f} GB, {cost.requests:,.0f} requests and "
        f"{1000 * cost.driver_s:.1f} ms of the driver"
    )


def as_json(found: Iterable[Scenario]) -> list[dict[str, Any]]:
    """The curves and what they were made from, ready for JSON."""
    made = []
    for scenario in found:
        bent = bend(scenario)
        points = [asdict(each) for each in curve(scenario)]
        # JSON knows no infinity.
        limits = {k: None if math.isinf(v) else v for k, v in asdict(scenario.limits).items()}
        made.append(
            {
                **asdict(scenario),
                "limits": limits,
                "curve": points,
                "bend": None if bent is None else asdict(bent),
            }
        )
    return made


def main() -> None:
    """Print the curves."""
    parser = argparse.ArgumentParser(description="Simulate 1 to 512 workers.")
    results = HERE / "results"
    parser.add_argument("--measured", type=Path, default=results / "scale.json")
    parser.add_argument("--roofline", type=Path, default=results / "roofline.json")
    parser.add_argument("--account-gbit", type=float, default=ACCOUNT_GBIT)
    parser.add_argument("--account-requests", type=float, default=ACCOUNT_REQUESTS)
    options = parser.parse_args()
    measured = json.loads(options.measured.read_text())["model"]
    roofline = json.loads(options.roofline.read_text()) if options.roofline.exists() else None
    print(tables(scenarios(measured, roofline, options.account_gbit, options.account_requests)))


if __name__ == "__main__":
    main()
