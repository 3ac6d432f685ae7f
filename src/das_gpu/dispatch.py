"""Segments handed to workers, a bounded number at a time; failures tried again, or put aside.

What belongs to the archive (a lost chunk, an unreachable store) becomes the status of tiles.
What belongs to a segment (its worker dies, hangs, or fails unforeseen) is tried again when the
others are done, and after three failures the segment is put in quarantine, so that the others
are not held up by it. What belongs to the run (the disk is full, access is denied) ends it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from das_gpu.crew import Crew
from das_gpu.errors import (
    ChunkError,
    ClusterError,
    DasGpuError,
    DestinationError,
    DestinationInUseError,
    DeviceError,
    InterruptedRunError,
    SourceError,
    WorkerError,
    WorkersDiedError,
)
from das_gpu.journal import facts
from das_gpu.ledger import Ledger
from das_gpu.lock import Hold
from das_gpu.plan import Plan
from das_gpu.segment import SegmentResult, failed_records
from das_gpu.sink import Sink
from das_gpu.state import STATE_KEY, Running, State
from das_gpu.workers import BEGUN

_log = logging.getLogger(__name__)

WAIT_S = 0.5
"""Longest wait without looking at those who work."""
STATE_S = 5.0
"""Between two reports for `das-gpu status`."""
ATTEMPTS = 3
"""Times a segment is begun that fails for reasons of its own, or of its GPU."""
DEATHS = 2
"""What it counts for that one worker after the other has died of a segment: dask itself has begun
it anew with three others before it says so."""
HOPELESS = 10
"""Failures after which a run ends in which no segment has ever come through."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands; ``done_tiles`` counts those made by this process."""

    done_tiles: int
    total_tiles: int
    seconds: float

    @property
    def tiles_per_s(self) -> float:
        """Tiles made per second so far."""
        return self.done_tiles / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at that rate, or None before the first tile."""
        return (self.total_tiles - self.done_tiles) / self.tiles_per_s if self.done_tiles else None


@dataclass(frozen=True)
class Tally:
    """What was worked on, and what reading it took."""

    tiles: int
    seconds: float
    chunks: int
    stored_bytes: int


@dataclass
class _Handed:
    """A segment that somebody has."""

    number: int
    heard: float
    since: str = ""
    tiles: int = 0
    stalled: bool = False


@dataclass
class _Count:
    """Numbers that only grow."""

    tiles: int = 0
    chunks: int = 0
    stored_bytes: int = 0
    through: int = 0
    failures: Counter[int] = field(default_factory=Counter)


class Dispatch:
    """One run's way through its pending segments.

    Parameters
    ----------
    crew : Crew
        Those who make the segments.
    plan : Plan
    ledger : Ledger
        Is told of every segment that is finished or put aside.
    sink : Sink
        Takes the state that ``das-gpu status`` shows.
    hold : Hold
        The right to write there; when it is lost, the run ends.
    stall_s : float
        Longest time without a sign of life, of a segment or of all workers.
    on_progress : callable, optional
        Told where the run stands, after every row of tiles.
    """

    def __init__(
        self,
        crew: Crew,
        plan: Plan,
        ledger: Ledger,
        sink: Sink,
        hold: Hold,
        *,
        stall_s: float,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._crew, self._plan, self._ledger = crew, plan, ledger
        self._sink, self._hold = sink, hold
        self._stall_s, self._on_progress = stall_s, on_progress
        self._pending: deque[int] = deque()
        self._handed: dict[Future[SegmentResult], _Handed] = {}
        self._lock = threading.Lock()
        self._count = _Count()
        self._total = 0
        self._relieved = False
        self._began = self._heard = time.monotonic()
        self._state_at = float("-inf")
        self._since = _now()

    def through(self, pending: list[int], work: Callable[[int], SegmentResult]) -> Tally:
        """Have every pending segment made, in order, and entered in the ledger.

        Parameters
        ----------
        pending : list of int
            Numbers of segments.
        work : callable
            Makes one of them; it runs where the crew's workers are.

        Raises
        ------
        InterruptedRunError
            On a ``KeyboardInterrupt``; what has been finished is kept.
        DasGpuError
            What ends the run.
        """
        self._pending = deque(pending)
        self._total = sum(map(self._tiles, pending))
        self._crew.workers.on_beat = self._beat
        self._report()
        try:
            while self._pending or self._handed:
                self._hand_out(work)
                done, _ = wait(self._handed, timeout=WAIT_S, return_when=FIRST_COMPLETED)
                # In order, so that the first error is the one that is told.
                for future in sorted(done, key=lambda each: self._handed[each].number):
                    self._settle(future)
                self._look()
        except BaseException as error:
            self._stop()
            if isinstance(error, KeyboardInterrupt):
                raise InterruptedRunError(
                    "Interrupted. Finished segments are saved; the same command continues the run."
                ) from error
            raise
        finally:
            if not self._hold.lost.is_set():
                with suppress(DasGpuError):
                    self._sink.delete(STATE_KEY)
        count = self._count
        return Tally(self._total, self._seconds(), count.chunks, count.stored_bytes)

    def _tiles(self, number: int) -> int:
        segment = self._plan.segment(number)
        return (segment.row1 - segment.row0) * self._plan.bands

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    # --- handing out --------------------------------------------------------------------

    def _hand_out(self, work: Callable[[int], SegmentResult]) -> None:
        while self._pending and len(self._handed) < self._crew.window:
            number = self._pending.popleft()
            with self._lock:
                # A beat may come before the future is in the table.
                future = self._crew.workers.submit(work, number)
                self._handed[future] = _Handed(number, time.monotonic())

    def _beat(self, future: Future[Any], tiles: int) -> None:
        """Hear from a segment; called from any thread."""
        with self._lock:
            handed = self._handed.get(future)
            if handed is None:
                return
            handed.heard = self._heard = time.monotonic()
            if tiles == BEGUN:
                handed.tiles, handed.since = 0, _now()
            else:
                handed.tiles += tiles
        if tiles > 0:
            self._report()

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._progress())

    def _progress(self) -> Progress:
        with self._lock:
            under_way = sum(handed.tiles for handed in self._handed.values())
            return Progress(self._count.tiles + under_way, self._total, self._seconds())

    # --- what comes back ----------------------------------------------------------------

    def _settle(self, future: Future[SegmentResult]) -> None:
        """Enter a segment in the ledger, or see what is to become of it."""
        with self._lock:
            handed = self._handed.pop(future)
            self._heard = time.monotonic()
        try:
            result = future.result()
        except (DeviceError, WorkerError) as error:
            self._failed(handed.number, error)
        except InterruptedRunError:
            # Its worker is going, by the order of whoever it belongs to.
            self._pending.appendleft(handed.number)
        except ChunkError:
            raise
        except SourceError as error:
            self._lost(handed.number, error)
        else:
            self._finish(handed.number, result)

    def _finish(self, number: int, result: SegmentResult) -> None:
        self._ledger.finish_segment(number, result.records)
        self._count.through += 1
        self._relieved = False
        self._count.chunks += result.traffic.chunks
        self._count.stored_bytes += result.traffic.stored_bytes
        _log.info("segment finished", extra=facts(segment=number, tiles=len(result.records)))
        self._leave(number)

    def _leave(self, number: int) -> None:
        """Count a segment that is not worked on any more."""
        with self._lock:
            self._count.tiles += self._tiles(number)
        self._report()

    def _lost(self, number: int, error: DasGpuError) -> None:
        """Put a segment's tiles in error. What an earlier run delivered of it stays."""
        _log.warning("Segment %d is lost. %s", number, error, extra=facts(segment=number))
        self._ledger.give_up(number, failed_records(self._plan, number, str(error)))
        self._leave(number)

    def _failed(self, number: int, error: DasGpuError) -> None:
        """Have a segment tried again when the others are done; or put it aside."""
        self._count.failures[number] += DEATHS if isinstance(error, WorkersDiedError) else 1
        failures = self._count.failures[number]
        told = facts(segment=number, failures=failures, trace=_notes(error))
        if failures < ATTEMPTS:
            _log.warning("Segment %d is tried again later. %s", number, error, extra=told)
            if self._count.failures.total() >= HOPELESS and not self._any_through():
                raise error
            self._pending.append(number)
        elif isinstance(error, DeviceError):
            self._lost(number, error)
        else:
            if not (self._any_through() or self._pending or self._handed):
                raise error
            reason = f"Failed time and again; the last time: {error}"
            _log.error("Segment %d is put aside. %s", number, reason, extra=told)
            self._ledger.quarantine(number, reason, failed_records(self._plan, number, reason))
            self._leave(number)

    def _any_through(self) -> bool:
        """Whether any segment has ever come through, now or in an earlier run."""
        return self._count.through > 0 or self._total < self._plan.n_tiles

    # --- watching -----------------------------------------------------------------------

    def _look(self) -> None:
        """See that the run may go on, and that those who work are alive."""
        if self._hold.lost.is_set():
            raise DestinationInUseError(self._hold.why)
        now = time.monotonic()
        for future, handed in list(self._handed.items()):
            if handed.since and not handed.stalled and now - handed.heard > self._stall_s:
                handed.stalled = True
                self._give_up(future, handed)
        self._crew.workers.tidy()
        ending = any(handed.stalled for handed in self._handed.values())
        if self._handed and not ending and now - self._heard > self._stall_s:
            self._nobody_works()
        if now - self._state_at > STATE_S:
            self._state_at = now
            self._tell()

    def _give_up(self, future: Future[SegmentResult], handed: _Handed) -> None:
        """Cancel a segment of which nothing is heard; where it hangs goes to the log."""
        self._heard = time.monotonic()
        stacks = self._crew.workers.stacks(future)
        _log.warning(
            "Segment %d has given no sign of life for %g s and is cancelled.",
            handed.number,
            self._stall_s,
            extra=facts(segment=handed.number, stacks=stacks),
        )
        hung = f"It hung: no chunk and no tile within {self._stall_s:g} s. The log shows where."
        self._crew.workers.cancel(future, WorkerError(hung))

    def _nobody_works(self) -> None:
        """Do something about workers of whom nothing is heard; once, unless that has helped."""
        trouble = self._crew.workers.trouble()
        text = f"Nothing has been heard of the workers for {self._stall_s:g} s: {trouble}."
        if self._relieved or not self._crew.workers.relieve():
            raise ClusterError(
                f"{text} See to the workers; what was finished is kept, and the same command "
                "continues."
            )
        _log.warning("%s They were restarted.", text)
        self._relieved, self._heard = True, time.monotonic()

    def _tell(self) -> None:
        """Write down where the run stands, for ``das-gpu status``."""
        progress = self._progress()
        with self._lock:
            running = tuple(
                Running(handed.number, handed.since, handed.tiles, self._crew.workers.where(future))
                for future, handed in self._handed.items()
                if handed.since
            )
            waiting = len(self._pending) + len(self._handed) - len(running)
        state = State(
            run=self._hold.run,
            started=self._since,
            updated=_now(),
            done_tiles=progress.done_tiles,
            total_tiles=progress.total_tiles,
            tiles_per_s=progress.tiles_per_s,
            remaining_s=progress.remaining_s,
            running=running,
            waiting=waiting,
            retried=dict(self._count.failures),
        )
        # A disk that is full will say so where it matters.
        with suppress(DestinationError):
            self._sink.put(STATE_KEY, state.as_bytes(), durable=False)

    def _stop(self) -> None:
        """Cancel what is being made, and keep what came to its end all the same."""
        self._crew.workers.shutdown(cancel_futures=True)
        if self._hold.lost.is_set():
            return
        for future, handed in self._handed.items():
            if future.done() and future.exception() is None:
                with suppress(DasGpuError):
                    self._finish(handed.number, future.result())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))
