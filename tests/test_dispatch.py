"""Segments on their way through workers: what is tried again, what is put aside, what ends a run.

The work is scripted; archive, plan, ledger and folder are real.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from das_gpu import Recipe, dispatch, workers
from das_gpu.backends import Selected
from das_gpu.backends.cpu import CpuBackend
from das_gpu.crew import Crew
from das_gpu.dispatch import Dispatch, Progress
from das_gpu.errors import (
    AccessDeniedError,
    ChunkMissingError,
    ClusterError,
    DasGpuError,
    DestinationInUseError,
    DeviceError,
    InterruptedRunError,
    SourceError,
    WorkerError,
    WorkersDiedError,
)
from das_gpu.ledger import Ledger
from das_gpu.plan import Plan
from das_gpu.pulse import current
from das_gpu.run import prepare
from das_gpu.segment import SegmentResult, failed_records
from das_gpu.sink import LocalSink
from das_gpu.stream import Traffic
from das_gpu.workers import Here
from tests.archives import random_walk, write_archive

SEGMENTS = 5
BANDS = 3
PER_SEGMENT = 6


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """10 rows of 3 tiles, in 5 segments."""
    folder = tmp_path_factory.mktemp("store")
    store = write_archive(folder / "a.zarr", random_walk(36, 6000, seed=5), 200.0, (16, 700))
    recipe = Recipe().with_settings(
        {"selection.channel_step": 1, "tile.seconds": 3, "tile.bands": 3, "median.kind": "channel"}
    )
    planned = prepare(store, recipe, segment_minutes=0.1)[1]
    assert planned.n_segments == SEGMENTS
    return planned


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "WAIT_S", 0.02)
    monkeypatch.setattr(dispatch, "STATE_S", 0.0)


class Bench:
    """A ledger in a folder, and work that does as a test says."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.sink = plan, LocalSink(folder)
        self.done: list[int] = []
        self.attempts: Counter[int] = Counter()
        self.trouble: dict[int, Callable[[], object]] = {}
        self.progress: list[Progress] = []
        self.workers: workers.Workers = Here()

    def work(self, number: int) -> SegmentResult:
        """Make nothing, successfully: tiles across a gap have no image."""
        self.attempts[number] += 1
        if number in self.trouble:
            self.trouble[number]()
        self.done.append(number)
        for _ in range(2):
            current().beat(BANDS)
        records = failed_records(self.plan, number, "a gap")
        return SegmentResult([gap(each) for each in records], Traffic(2, 100))

    def run(self, **how: Any) -> Ledger:
        ledger = Ledger.open(self.sink, {"a": 1}, {}, n_segments=SEGMENTS)
        crew = Crew(self.workers, 1, Selected(CpuBackend(1), "asked for"), remote=False)
        with self.sink.hold("run") as hold:
            self.hold = hold
            through = Dispatch(
                crew,
                self.plan,
                ledger,
                self.sink,
                hold,
                **{"stall_s": 60.0, "on_progress": self.progress.append, **how},
            )
            self.tally = through.through(ledger.pending(), self.work)
        return ledger


def gap(record: Any) -> Any:
    from dataclasses import replace

    return replace(record, status="gap")


@pytest.fixture
def bench(plan: Plan, tmp_path: Path) -> Bench:
    return Bench(plan, tmp_path / "out")


def failing(times: float, error: Exception) -> Callable[[], None]:
    """Trouble of so many attempts."""
    left = [times]

    def trouble() -> None:
        if left[0] > 0:
            left[0] -= 1
            raise error

    return trouble


def statuses(bench: Bench, ledger: Ledger) -> dict[str, int]:
    return {name: number for name, number in ledger.publish().statuses.items() if number}


# --- the ordinary way ---------------------------------------------------------------------


def test_segments_are_made_in_order_and_counted(bench: Bench) -> None:
    ledger = bench.run()
    assert bench.done == list(range(SEGMENTS))
    assert statuses(bench, ledger) == {"gap": 30}
    assert (bench.tally.tiles, bench.tally.chunks, bench.tally.stored_bytes) == (30, 10, 500)


def test_progress_counts_rows_and_ends_with_everything(bench: Bench) -> None:
    bench.run()
    done = [each.done_tiles for each in bench.progress]
    assert done == sorted(done)
    assert (done[0], done[-1], bench.progress[-1].total_tiles) == (0, 30, 30)
    assert BANDS in done


def test_no_more_segments_are_handed_out_than_are_being_made(bench: Bench) -> None:
    class Counting(Here):
        most = now = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = super().submit(fn, *args, **kwargs)
            self.now += 1
            self.most = max(self.most, self.now)
            future.add_done_callback(lambda _: setattr(self, "now", self.now - 1))
            return future

    bench.workers = counting = Counting()
    bench.run()
    assert counting.most == 1


def test_a_run_says_where_it_stands_while_it_works_and_not_afterwards(bench: Bench) -> None:
    seen = []

    def look() -> None:
        deadline = time.monotonic() + 5
        while not (found := bench.sink.get("state.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(json.loads(found or b"{}"))

    bench.trouble[2] = look
    bench.run()
    [state] = seen
    assert (state["run"], state["total_tiles"], state["done_tiles"] >= 0) == ("run", 30, True)
    assert bench.sink.get("state.json") is None


# --- what is tried again ------------------------------------------------------------------


@pytest.mark.parametrize("error", [WorkerError("It died."), DeviceError("It fell."), ValueError(7)])
def test_two_failures_cost_nothing(bench: Bench, error: Exception) -> None:
    """The segment is tried again when the others are done."""
    bench.trouble[1] = failing(2, error)
    ledger = bench.run()
    assert bench.done == [0, 2, 3, 4, 1]
    assert statuses(bench, ledger) == {"gap": 30}
    assert not ledger.quarantined()


@pytest.mark.parametrize("error", [WorkerError("It died."), ValueError("of a dimension")])
@pytest.mark.slow
def test_three_failures_put_a_segment_aside_and_the_run_goes_on(
    bench: Bench, error: Exception
) -> None:
    bench.trouble[1] = failing(3, error)
    ledger = bench.run()
    assert bench.attempts[1] == 3
    assert statuses(bench, ledger) == {"gap": 24, "error": 6}
    [(number, reason)] = ledger.quarantined().items()
    assert number == 1
    assert str(error) in reason
    assert ledger.pending() == []
    assert ledger.pending(quarantined=True) == [1]


def test_workers_dying_of_a_segment_count_double(bench: Bench) -> None:
    """By then dask has tried it several times; once more, when the others are done, is enough."""
    bench.trouble[1] = failing(9, WorkersDiedError("One after the other."))
    ledger = bench.run()
    assert bench.attempts[1] == 2
    assert list(ledger.quarantined()) == [1]


def test_a_segment_put_aside_is_tried_again_when_asked_for(bench: Bench) -> None:
    bench.trouble[1] = failing(3, WorkerError("It died."))
    bench.run()
    again = Ledger.open(bench.sink, {"a": 1}, {}, n_segments=SEGMENTS)
    bench.work(1)
    again.finish_segment(1, bench.work(1).records)
    assert not again.quarantined()


def test_a_device_that_fails_for_good_puts_tiles_in_error_for_a_rerun_to_try(bench: Bench) -> None:
    bench.trouble[1] = failing(3, DeviceError("It fell off the bus."))
    ledger = bench.run()
    assert statuses(bench, ledger) == {"gap": 24, "error": 6}
    assert ledger.pending() == [1]


def test_a_store_that_cannot_be_read_is_not_asked_again_at_once(bench: Bench) -> None:
    bench.trouble[1] = failing(1, SourceError("The store is away."))
    ledger = bench.run()
    assert bench.attempts[1] == 1
    assert statuses(bench, ledger) == {"gap": 24, "error": 6}
    assert ledger.pending() == [1]


def test_a_worker_that_goes_by_order_hands_its_segment_to_the_next(bench: Bench) -> None:
    bench.trouble[1] = failing(1, InterruptedRunError("The worker is going."))
    ledger = bench.run()
    assert bench.done == list(range(SEGMENTS))
    assert statuses(bench, ledger) == {"gap": 30}


# --- what ends a run ----------------------------------------------------------------------


@pytest.mark.parametrize("error", [AccessDeniedError("No."), ChunkMissingError("Not there.")])
def test_what_is_the_runs_own_affair_ends_it_and_keeps_what_is_finished(
    bench: Bench, error: DasGpuError
) -> None:
    bench.trouble[2] = failing(1, error)
    with pytest.raises(type(error)):
        bench.run()
    assert Ledger.open(bench.sink, {"a": 1}, {}, n_segments=SEGMENTS).pending() == [2, 3, 4]


def test_a_run_in_which_nothing_works_ends_with_the_error(bench: Bench) -> None:
    for number in range(SEGMENTS):
        bench.trouble[number] = failing(100, ValueError("of a dimension"))
    with pytest.raises(WorkerError, match="ValueError: of a dimension"):
        bench.run()
    assert bench.attempts.total() == dispatch.HOPELESS
    assert not Ledger.open(bench.sink, {"a": 1}, {}, n_segments=SEGMENTS).quarantined()


def test_a_run_that_has_lost_its_folder_to_another_ends_and_writes_nothing(bench: Bench) -> None:
    def lose() -> None:
        bench.hold.lose("Another run has taken the folder.")
        while not current().cancelled.wait(5):
            raise AssertionError("never cancelled")
        raise InterruptedRunError("Cancelled.")

    bench.trouble[1] = lose
    with pytest.raises(DestinationInUseError, match="Another run has taken"):
        bench.run()
    assert bench.done == [0]


def test_ctrl_c_cancels_the_segment_that_is_being_made(bench: Bench) -> None:
    cancelled = threading.Event()

    def trouble() -> None:
        if current().cancelled.wait(10):
            cancelled.set()
            raise InterruptedRunError("Cancelled.")

    bench.trouble[1] = trouble

    def press(progress: Progress) -> None:
        if progress.done_tiles == PER_SEGMENT and threading.current_thread() is MAIN:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="same command continues"):
        bench.run(on_progress=press)
    assert bench.done == [0]


MAIN = threading.main_thread()


# --- watching -----------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No grace for what hangs; what hangs does so until the test ends."""
    monkeypatch.setattr(workers, "GRACE_S", 0.0)
    over = threading.Event()
    yield over
    over.set()


def test_a_segment_that_hangs_is_cancelled_and_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    hung: list[int] = []

    def hang() -> None:
        if not hung:
            hung.append(1)
            assert current().cancelled.wait(10)
            raise InterruptedRunError("Cancelled.")

    bench.trouble[1] = hang
    ledger = bench.run(stall_s=0.3)
    assert bench.attempts[1] == 2
    assert statuses(bench, ledger) == {"gap": 30}
    [warned] = [each for each in caplog.records if "no sign of life" in each.getMessage()]
    assert "in hang" in warned.das_gpu_facts["stacks"], "the log shows where it hung"


@pytest.mark.slow
def test_a_segment_that_cannot_even_be_cancelled_is_left_behind(
    bench: Bench, impatient: threading.Event
) -> None:
    bench.trouble[1] = lambda: impatient.wait(30) or None
    ledger = bench.run(stall_s=0.2)
    assert bench.attempts[1] == 3
    assert statuses(bench, ledger) == {"gap": 24, "error": 6}
    assert "It hung" in ledger.quarantined()[1]
    assert workers.anybody_stuck()
    impatient.set()
    deadline = time.monotonic() + 5
    while workers.anybody_stuck() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not workers.anybody_stuck()
    assert statuses(bench, ledger) == {"gap": 24, "error": 6}, "what comes late counts for nothing"


@pytest.mark.slow
def test_a_slow_segment_that_gives_signs_of_life_is_left_alone(bench: Bench) -> None:
    def slow() -> None:
        for _ in range(12):
            time.sleep(0.05)
            current().beat(0)

    bench.trouble[1] = slow
    bench.run(stall_s=0.3)
    assert bench.attempts[1] == 1


class Absent(Here):
    """Workers that never take anything up."""

    relieved = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ARG002
        return Future()

    def trouble(self) -> str:
        return "2 of 2 workers are paused"

    def relieve(self) -> bool:
        self.relieved += 1
        return True


class Pausing(Here):
    """Workers that are paused after each piece of work, until they are restarted."""

    def __init__(self) -> None:
        super().__init__()
        self.relieved = 0
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    def relieve(self) -> bool:
        self.relieved += 1
        future, work = self.waiting.pop()
        future.set_result(work())
        return True


def test_workers_are_restarted_again_as_long_as_that_helps(bench: Bench) -> None:
    bench.workers = pausing = Pausing()
    ledger = bench.run(stall_s=0.1)
    assert pausing.relieved == SEGMENTS
    assert statuses(bench, ledger) == {"gap": 30}


def test_workers_who_take_nothing_up_are_restarted_once_and_then_given_up(bench: Bench) -> None:
    bench.workers = absent = Absent()
    with pytest.raises(ClusterError, match=r"2 of 2 workers are paused.*same command continues"):
        bench.run(stall_s=0.2)
    assert absent.relieved == 1
