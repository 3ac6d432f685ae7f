"""``state.json``: where a run that is at work stands, rewritten every few seconds.

It is for people who look on. Nothing depends on it: it may be half a second old, left behind
by a run that was killed, or written by another version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from das_gpu.runfile import Store

STATE_KEY = "state.json"


@dataclass(frozen=True, slots=True)
class Running:
    """A segment that somebody is working on.

    Attributes
    ----------
    segment : int
    since : str
        When it was begun, ISO 8601, UTC, with a Z.
    tiles : int
        Tiles finished so far.
    worker : str
        Who has it, for people.
    """

    segment: int
    since: str
    tiles: int
    worker: str


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands.

    Attributes
    ----------
    run : str
        Tells this run from any other, as in `das_gpu.lock.Holder`.
    started, updated : str
        When its work began, and when this was written: ISO 8601, UTC, with a Z.
    done_tiles, total_tiles : int
        Of what this process has to do, which is what earlier ones have left.
    tiles_per_s : float
    remaining_s : float or None
        Seconds left at that rate, or None before the first tile.
    running : tuple of Running
    waiting : int
        Segments that nobody has begun.
    retried : mapping of int to int
        How often a segment has failed so far, for those that have.
    """

    run: str
    started: str
    updated: str
    done_tiles: int
    total_tiles: int
    tiles_per_s: float
    remaining_s: float | None
    running: tuple[Running, ...]
    waiting: int
    retried: Mapping[int, int]

    def as_json(self) -> dict[str, Any]:
        """The same in JSON's types; numbers of segments become texts where they are keys."""
        retried = {str(segment): failures for segment, failures in self.retried.items()}
        return asdict(self) | {"running": list(map(asdict, self.running)), "retried": retried}

    def as_bytes(self) -> bytes:
        """Content of ``state.json``."""
        return json.dumps(self.as_json(), indent=2, allow_nan=False).encode() + b"\n"


def read_state(sink: Store) -> State | None:
    """Read ``state.json``; None when there is none, or none that is understood."""
    data = sink.get(STATE_KEY)
    if data is None:
        return None
    try:
        found = json.loads(data)
        left = found["remaining_s"]
        return State(
            run=str(found["run"]),
            started=str(found["started"]),
            updated=str(found["updated"]),
            done_tiles=int(found["done_tiles"]),
            total_tiles=int(found["total_tiles"]),
            tiles_per_s=float(found["tiles_per_s"]),
            remaining_s=None if left is None else float(left),
            running=tuple(
                Running(int(one["segment"]), str(one["since"]), int(one["tiles"]), one["worker"])
                for one in found["running"]
            ),
            waiting=int(found["waiting"]),
            retried={int(number): int(times) for number, times in found["retried"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
