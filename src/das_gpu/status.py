"""Where a run stands, by what its folder says: nothing is written, nobody is disturbed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from das_gpu.keys import segment_key
from das_gpu.lock import Holder
from das_gpu.outcome import (
    LOSSES_CODE,
    UNFINISHED_CODE,
    each,
    markers_in,
    quarantined,
    segments_in,
)
from das_gpu.runfile import number_in, require_run
from das_gpu.segmentfile import LOST, count_statuses, parse_segment
from das_gpu.sink import Sink, open_sink
from das_gpu.state import State, read_state
from das_gpu.store import Access


@dataclass(frozen=True, slots=True)
class Failure:
    """Tiles of one segment that were lost for the same reason.

    Attributes
    ----------
    segment : int
    status : str
        missing, corrupt or error.
    tiles : int
        How many.
    reason : str
    """

    segment: int
    status: str
    tiles: int
    reason: str


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands.

    Attributes
    ----------
    out : str
        The folder or container, without any secret.
    created, version : str
        When the run was begun, and by which das-gpu; empty when it doesn't say.
    segments : int
        Segments of the whole run.
    done : int
        Segments that are finished, whatever became of their tiles.
    failed : int
        Of these, segments with a tile missing, corrupt or in error; the next run tries them
        again.
    quarantined : mapping of int to str
        Of these, segments that are left alone until ``--retry-quarantined``, and why.
    total_tiles : int
        Tiles of the whole run.
    tiles : mapping of str to int
        Tiles of the finished segments, by status.
    failures : tuple of Failure
        What was lost, and why, by segment.
    holder : Holder or None
        Who is at work, when anybody is.
    state : State or None
        What they have last said of their work.
    """

    out: str
    created: str
    version: str
    segments: int
    done: int
    failed: int
    quarantined: Mapping[int, str]
    total_tiles: int
    tiles: Mapping[str, int]
    failures: tuple[Failure, ...]
    holder: Holder | None
    state: State | None

    @property
    def to_do(self) -> int:
        """Segments that are not finished."""
        return self.segments - self.done

    @property
    def lost(self) -> int:
        """Tiles missing, corrupt or in error; a gap in the recording is not among them."""
        return sum(self.tiles.get(status, 0) for status in LOST)

    @property
    def exit_code(self) -> int:
        """0 finished and all delivered, 3 finished with losses, 10 not finished, or at work."""
        if self.to_do or self.holder is not None:
            return UNFINISHED_CODE
        return LOSSES_CODE if self.lost else 0


def status(out: str | Path, access: Access | None = None) -> RunStatus:
    """Find out where a run stands, whether or not anybody is at work on it.

    Parameters
    ----------
    out : str or Path
        The folder, or the URL of an Azure container and prefix, that was given to `extract`.
    access : Access, optional
        Credential and patience, for a container.

    Raises
    ------
    DestinationError
        There is no run, or it cannot be read.
    AccessDeniedError
        The container's server refuses the credential.
    UsageError
        No run can be there, or the credential cannot be found.
    """
    sink = open_sink(out, access)
    run = require_run(sink)
    n_segments = number_in(sink, run.get("plan"), "segments")
    holder = sink.holder()
    state = None if holder is None else read_state(sink)
    # What another run left when it was killed says nothing of this one.
    if holder is not None and state is not None and holder.run not in ("", state.run):
        state = None
    found = _look(sink, n_segments)
    return RunStatus(
        out=sink.location,
        created=str(run.get("created", "")),
        version=str(run.get("das_gpu", "")),
        segments=n_segments,
        done=found.done,
        failed=len({failure.segment for failure in found.failures}),
        quarantined=quarantined(sink, markers_in(sink)),
        total_tiles=number_in(sink, run.get("plan"), "tiles"),
        tiles={name: found.tiles[name] for name in found.tiles if found.tiles[name]},
        failures=tuple(found.failures),
        holder=holder,
        state=state,
    )


@dataclass
class _Found:
    """What the finished segments come to."""

    done: int
    tiles: Counter[str]
    failures: list[Failure]


def _look(sink: Sink, n_segments: int) -> _Found:
    found = _Found(0, Counter(), [])
    numbers = sorted(number for number in segments_in(sink) if number < n_segments)
    for segment, data in zip(numbers, each(sink, sink.get, map(segment_key, numbers)), strict=True):
        counts = count_statuses(data)
        if counts is None or any(counts[status] for status in LOST):
            rows = parse_segment(data, segment)
            if rows is None:
                continue
            counts = Counter(row["status"] for row in rows)
            lost = Counter(
                (row["status"], row["reason"] or "") for row in rows if row["status"] in LOST
            )
            found.failures += [
                Failure(segment, name, tiles, reason) for (name, reason), tiles in lost.items()
            ]
        found.done += 1
        found.tiles.update(counts)
    return found
