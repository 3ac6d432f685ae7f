"""Streams as queues: operations wait in them until something forces them to run.

Every operation carries a vector clock: for each stream the last operation that is certain to
have finished before it starts, because of the order within its stream, of an event it waits for,
or of a synchronisation of the host before it was issued. Two operations of which neither follows
the other are concurrent (L. Lamport, "Time, Clocks, and the Ordering of Events in a Distributed
System", 1978; F. Mattern, "Virtual Time and Global States of Distributed Systems", 1989).

The host has one clock for all its threads: what one thread has waited for counts as waited for by
the others, since the locks by which threads tell each other are not seen here.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tests.gpu.harness import wheel
from tests.gpu.harness.blocks import Access, Block, DisciplineError

if TYPE_CHECKING:
    from tests.gpu.harness.devices import Devices

Schedule = Literal["eager", "late", "random"]
"""When operations run: as they are issued; when something waits for them; at random moments."""

HERE = str(Path(__file__).parent)
OWN_FILES = (HERE, contextmanager.__code__.co_filename)


@dataclass(frozen=True)
class Site:
    """A line that records, waits for or synchronises with an event or a stream."""

    kind: Literal["record", "wait_event", "synchronize"]
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.kind} at {Path(self.file).name}:{self.line}"


@dataclass
class Counts:
    """What a program asked of the device."""

    launches: Counter[str] = field(default_factory=Counter)
    fft_calls: int = 0
    h2d_bytes: int = 0
    d2h_bytes: int = 0
    d2d_bytes: int = 0
    memset_bytes: int = 0
    allocations: int = 0
    allocated_bytes: int = 0
    pinned_allocations: int = 0
    hidden_syncs: int = 0
    explicit_syncs: int = 0


@dataclass(eq=False)
class Queue:
    """A stream: its operations that have not run, and its clock."""

    number: int
    device: int
    made_at: str
    issued: int = 0
    clock: dict[int, int] = field(default_factory=dict)
    waiting: deque[Operation] = field(default_factory=deque)

    def __str__(self) -> str:
        return f"stream {self.number} (made at {self.made_at})"


@dataclass(eq=False)
class Operation:
    """Something a stream does.

    Attributes
    ----------
    accesses : callable
        The byte ranges it reads and writes. Called when it runs: they may depend on values
        that earlier operations leave on the device.
    after : sequence of Operation
        Operations of other streams that must have run.
    clock : dict
        For each stream, the last operation that this one follows; itself included.
    """

    number: int
    what: str
    queue: Queue
    site: str
    thread: str
    run: Callable[[Operation], None]
    accesses: Callable[[], Sequence[Access]]
    after: Sequence[Operation]
    clock: dict[int, int]
    tick: int
    done: bool = False
    asked: bool = False

    def follows(self, other: Operation) -> bool:
        """Whether ``other`` is certain to have finished before this one starts."""
        return self.clock.get(other.queue.number, 0) >= other.tick

    def __str__(self) -> str:
        return f"#{self.number} {self.what} on {self.queue} (issued at {self.site})"


def caller() -> tuple[str, int]:
    """File and line, outside this harness, that made the call in progress."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OWN_FILES):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def place() -> str:
    """The caller, for messages."""
    file, line = caller()
    return f"{Path(file).name}:{line}"


def _nothing(_: Operation) -> None:
    """What an event or a wait does, besides ordering."""


def _no_accesses() -> Sequence[Access]:
    return ()


class Machine:
    """The queues of all streams, what orders them, and what went through them.

    Parameters
    ----------
    schedule : {"eager", "late", "random"}
        When operations run.
    seed : int
        Of the random schedule.
    """

    def __init__(self, schedule: Schedule, seed: int) -> None:
        if schedule not in ("eager", "late", "random"):
            raise ValueError(f"there is no schedule {schedule!r}")
        self.schedule = schedule
        self.counts = Counts()
        self.log: list[Operation] = []
        self.violations: list[DisciplineError] = []
        self.queues: list[Queue] = []
        self.failed = False
        self.released: deque[Callable[[], None]] = deque()
        self.sites: list[Site] = []
        self.dropped: set[Site | int] = set()
        self._random = np.random.default_rng(seed)
        self._lock = threading.RLock()
        self._host: dict[int, int] = {}
        self._left: int | None = None
        self._status = 0
        self._lasting = True
        self._local = threading.local()
        self._operations = 0
        self.devices: Devices

    # Entering

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call of the program under test: one at a time, and it may fail as a device does."""
        with self._lock:
            if self._left is not None:
                if self._left == 0:
                    self.failed = self._lasting
                    if self.failed:
                        for queue in self.queues:
                            queue.waiting.clear()
                    else:
                        self._left = None
                    raise wheel.error("cuda.runtime.CUDARuntimeError")(self._status)
                self._left -= 1
            self.tidy()
            yield

    def tidy(self) -> None:
        """Take back the memory of what was garbage-collected since the last call."""
        while self.released:
            self.released.popleft()()

    def fail_after(self, calls: int, status: int, *, lasting: bool) -> None:
        """Let ``calls`` more calls succeed, then one or all of the following fail."""
        with self._lock:
            self._left, self._status, self._lasting = calls, status, lasting

    def violation(self, message: str) -> DisciplineError:
        """Remember a violation; the caller raises it."""
        fault = DisciplineError(message)
        self.violations.append(fault)
        return fault

    # Issuing

    def queue(self, device: int) -> Queue:
        """A new stream."""
        made = Queue(len(self.queues) + 1, device, place())
        self.queues.append(made)
        return made

    def issue(
        self,
        queue: Queue,
        what: str,
        run: Callable[[Operation], None] = _nothing,
        *,
        blocks: Sequence[Block] = (),
        accesses: Callable[[], Sequence[Access]] = _no_accesses,
        after: Sequence[Operation] = (),
    ) -> Operation:
        """Put an operation at the end of a stream; run what the schedule wants run."""
        self._operations += 1
        queue.issued += 1
        for clock in (self._host, *(operation.clock for operation in after)):
            _join(queue.clock, clock)
        queue.clock[queue.number] = queue.issued
        operation = Operation(
            self._operations,
            what,
            queue,
            place(),
            threading.current_thread().name,
            run,
            accesses,
            after,
            dict(queue.clock),
            queue.issued,
        )
        for block in blocks:
            block.users[queue.number] = queue.issued
        queue.waiting.append(operation)
        self.log.append(operation)
        if self.schedule == "eager":
            self.complete(operation)
        elif self.schedule == "random":
            while self._random.random() < 0.5:
                self.progress()
        return operation

    # Running

    def progress(self) -> None:
        """Run the first operation of a stream taken at random."""
        busy = [queue for queue in self.queues if queue.waiting]
        if busy:
            self.complete(busy[self._random.integers(len(busy))].waiting[0])

    def complete(self, operation: Operation) -> None:
        """Run an operation and what comes before it, no more."""
        while not operation.done:
            first = operation.queue.waiting[0]
            for earlier in first.after:
                self.complete(earlier)
            operation.queue.waiting.popleft()
            self._execute(first)

    def finish(self) -> None:
        """Run everything."""
        for queue in self.queues:
            while queue.waiting:
                self.complete(queue.waiting[-1])

    def _execute(self, operation: Operation) -> None:
        operation.done = True
        accesses = operation.accesses()
        try:
            for access in accesses:
                access.block.check(operation, access)
        except DisciplineError as fault:
            self.violations.append(fault)
            raise
        operation.run(operation)
        for access in accesses:
            access.block.note(operation, access)
        # The log must not keep memory alive.
        operation.run, operation.accesses, operation.after = _nothing, _no_accesses, ()

    # The host's side

    def known(self, queue: int, tick: int) -> bool:
        """Whether the host has waited for an operation of a stream."""
        return self._host.get(queue, 0) >= tick

    def wait_for(self, operation: Operation) -> None:
        """Hold the host until an operation has run."""
        self.complete(operation)
        _join(self._host, operation.clock)

    def wait_for_all(self) -> None:
        """Hold the host until everything has run."""
        self.finish()
        for queue in self.queues:
            _join(self._host, queue.clock)

    def poll(self, operation: Operation) -> bool:
        """Whether an operation has run; asking again lets it run, as time would."""
        over = operation.asked if self.schedule == "late" else self._random.random() < 0.5
        if over:
            self.complete(operation)
        operation.asked = True
        if operation.done:
            _join(self._host, operation.clock)
        return operation.done

    def unordered(self, block: Block, queue: Queue | None) -> list[int]:
        """Streams that may still use a block when ``queue`` (or the host) goes on to do so."""
        after = {} if queue is None else queue.clock
        return [
            number
            for number, tick in block.users.items()
            if not self.known(number, tick) and after.get(number, 0) < tick
        ]

    @contextmanager
    def allowing(self) -> Iterator[None]:
        """Let this thread synchronise implicitly."""
        before = self.allowed
        self._local.allowed = True
        try:
            yield
        finally:
            self._local.allowed = before

    @property
    def allowed(self) -> bool:
        """Whether this thread may synchronise implicitly."""
        return bool(getattr(self._local, "allowed", False))

    def hidden_sync(self, what: str) -> None:
        """Wait for everything, which only `allowing` makes right."""
        self.counts.hidden_syncs += 1
        if not self.allowed:
            raise self.violation(f"{what} at {place()} synchronises with the device")
        self.wait_for_all()

    def visit(self, kind: Literal["record", "wait_event", "synchronize"]) -> bool:
        """Note a line that orders something; False when it is to do nothing."""
        site = Site(kind, *caller())
        if site not in self.sites:
            self.sites.append(site)
        return site not in self.dropped and self.sites.index(site) not in self.dropped


def _join(clock: dict[int, int], other: dict[int, int]) -> None:
    for number, tick in other.items():
        if clock.get(number, 0) < tick:
            clock[number] = tick


current: list[Machine] = []
"""The machine that is installed, if any."""


def machine() -> Machine:
    """The machine that is installed.

    Raises
    ------
    DisciplineError
        When something of an earlier installation is used after its end.
    """
    if not current:
        raise DisciplineError("the device is gone: its installation has ended")
    return current[-1]
