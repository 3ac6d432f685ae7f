"""Work handed to dask's workers, followed, cancelled, and ended by force when need be."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar
from uuid import uuid4

from das_gpu.cluster.worker import Answer, perform, stacks
from das_gpu.errors import ClusterError, DasGpuError, InterruptedRunError, WorkersDiedError
from das_gpu.workers import BEGUN, GRACE_S, Here, Workers

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

ASK_S = 15.0
"""Longest wait for the scheduler's, or a worker's, answer to a question."""
COUNT_S = 5.0
"""Between two counts of the workers."""
SILENT_S = 30.0
"""A worker not heard of for so long does not answer; it reports every second or so."""
RESTART_S = 60.0
"""Longest wait for a worker that is restarted."""


@dataclass
class _Task:
    """A piece of work at dask's.

    ``asked`` is dask's own future. ``error`` is what it raises, once it is cancelled; ``ended``
    says that its worker is done with it, and that what it came to is on its way.
    """

    future: Future[Any]
    asked: Any
    worker: str | None = None
    ended: bool = False
    error: DasGpuError | None = None
    deadline: float = 0.0


class DaskWorkers(Workers):
    """Hands tasks to dask's workers.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._topic = f"das-gpu-{uuid4().hex}"
        self._names = itertools.count()
        self._tasks: dict[str, _Task] = {}
        self._keys: dict[Future[Any], str] = {}
        self._lock = threading.RLock()
        self._capacity, self._counted_at = 0, float("-inf")
        client.subscribe_topic(self._topic, self._hear)

    @property
    def capacity(self) -> int:
        """Threads of the workers that take work, as of a few seconds ago."""
        if time.monotonic() - self._counted_at > COUNT_S:
            self._counted_at = time.monotonic()
            found = self._workers()
            if found is not None:
                running = (each for each in found.values() if each["status"] == "running")
                self._capacity = sum(each["nthreads"] for each in running)
        return self._capacity

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Let one of the workers call a function that can be pickled."""
        future: Future[_T] = Future()
        future.set_running_or_notify_cancel()
        key = f"{self._topic}-{next(self._names)}"
        # Impure, or a segment tried again would be given its old error; how often it is tried
        # again is the run's to say.
        asked = self._client.submit(
            perform, self._topic, fn, args, kwargs, key=key, pure=False, retries=0
        )
        with self._lock:
            self._tasks[key], self._keys[future] = _Task(future, asked), key
        # Dask's own executor never tells of a task whose result is lost with its worker, and
        # that fails when dask has it done again.
        outcome = asyncio.run_coroutine_threadsafe(
            self._outcome(asked), self._client.loop.asyncio_loop
        )
        outcome.add_done_callback(partial(self._hand_over, key))
        return future

    async def _outcome(self, asked: Any) -> Answer:
        """Wait for what a task comes to."""
        answer: Answer = await self._client.gather(asked, asynchronous=True)
        return answer

    def _hand_over(self, key: str, outcome: Future[Answer]) -> None:
        """Hand over what a task came to, as soon as it is here."""
        with self._lock:
            task = self._tasks.get(key)
            if task is None or (task.error is not None and task.asked.cancelled()):
                # It goes on until its worker says that it has ended.
                return
        try:
            answer = outcome.result()
        except CancelledError:
            lost = "The connection to the dask scheduler was lost."
            answer = Answer(error=ClusterError(f"{lost} {_AGAIN}"))
        except Exception as error:  # noqa: BLE001 - dask's; what the work raised is in an answer
            answer = Answer(error=_translated(error))
        self._end(key, answer)

    def _end(self, key: str, answer: Answer) -> None:
        with self._lock:
            task = self._tasks.pop(key, None)
            if task is None:
                return
            del self._keys[task.future]
        if answer.error is not None:
            task.future.set_exception(answer.error)
        else:
            task.future.set_result(answer.result)

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take note of what a worker says; called in the client's thread."""
        said = event[1]
        key, what = said["key"], said["say"]
        with self._lock:
            task = self._tasks.get(key)
            if task is None:
                return
            if what == "begun":
                task.worker = said["worker"]
            if what in ("begun", "ended"):
                task.ended = what == "ended"
        if what == "ended":
            if task.error is not None:
                self._end(key, Answer(error=task.error))
        else:
            self.on_beat(task.future, BEGUN if what == "begun" else said["tiles"])

    def cancel(self, future: Future[Any], error: DasGpuError) -> None:
        """Let a task end; see `das_gpu.workers.Workers.cancel`."""
        with self._lock:
            key = self._keys.get(future, "")
            task = self._tasks.get(key)
            if task is None or task.error is not None or task.ended:
                return
            task.error, task.deadline = error, time.monotonic() + GRACE_S
        # The worker sees that it is no longer wanted, and says when it has ended.
        task.asked.cancel()
        if task.worker is None:
            self._end(key, Answer(error=error))

    def tidy(self) -> None:
        """Restart workers that do not let go of a cancelled task."""
        now = time.monotonic()
        for key, task in list(self._tasks.items()):
            if task.error is not None and now > task.deadline:
                self._restart([task.worker] if task.worker else [])
                self._end(key, Answer(error=task.error))

    def _restart(self, workers: list[str]) -> bool:
        """Restart workers, through the nannies that look after them."""
        _log.warning("Workers are restarted: %s.", ", ".join(workers) or "none")
        restart = partial(
            self._client.restart_workers, workers, timeout=RESTART_S, raise_for_error=False
        )
        outcome = self._ask(restart, RESTART_S + ASK_S)
        if outcome is None:
            _log.warning("They could not be restarted: no nanny looks after them.")
        return outcome is not None

    def stacks(self, future: Future[Any]) -> str:
        """Where the threads of the worker that does a piece of work stand."""
        worker = self.where(future)
        ask = partial(self._client.run, stacks, workers=[worker], on_error="ignore")
        found: dict[str, str] = (worker and self._ask(ask, ASK_S)) or {}
        return found.get(worker, f"The worker {worker} does not answer.")

    def where(self, future: Future[Any]) -> str:
        """Address of the worker that does a piece of work."""
        task = self._tasks.get(self._keys.get(future, ""))
        return (task.worker if task else None) or ""

    def trouble(self) -> str:
        """Whether there are workers at all, and whether they take work."""
        found = self._workers()
        if found is None:
            return "the scheduler does not answer"
        if not found:
            return "no worker is there"
        paused, silent = _paused(found.values()), _silent(found.values())
        if paused:
            return f"{len(paused)} of {len(found)} workers are paused for want of memory"
        if silent:
            return f"{len(silent)} of {len(found)} workers do not answer"
        return f"{len(found)} workers are there, at other work or unable to begin"

    def relieve(self) -> bool:
        """Restart workers that dask has paused, or that do not answer."""
        found = (self._workers() or {}).values()
        idle = sorted({*_paused(found), *_silent(found)})
        return bool(idle) and self._restart(idle)

    def _workers(self) -> dict[str, dict[str, Any]] | None:
        """What the scheduler knows of its workers; None when it does not answer."""
        info = self._ask(partial(self._client.scheduler_info, n_workers=-1), ASK_S)
        if info is None:
            return None
        return {a: {**facts, "address": a} for a, facts in info["workers"].items()}

    def _ask(self, question: Callable[[], Any], timeout_s: float) -> Any:
        """Answer to a question, or None: dask may wait for one for ever."""
        try:
            return Here().submit(question).result(timeout_s)
        except (DasGpuError, TimeoutError) as error:
            _log.info("A question to dask was not answered: %s", error)
            return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for all tasks; with ``cancel_futures`` cancel them, and wait no longer than that."""
        waiting = [task.future for task in list(self._tasks.values())]
        if cancel_futures:
            stopped = InterruptedRunError("The run was stopped before this segment was finished.")
            for future in waiting:
                self.cancel(future, stopped)
        if wait:
            wait_for(waiting, timeout=GRACE_S if cancel_futures else None)


def _paused(workers: Iterable[dict[str, Any]]) -> list[str]:
    return [each["address"] for each in workers if each["status"] == "paused"]


def _silent(workers: Iterable[dict[str, Any]]) -> list[str]:
    now = time.time()
    return [each["address"] for each in workers if now - each["last_seen"] > SILENT_S]


_AGAIN = "What was finished is kept, and the same command continues."


def _translated(error: Exception) -> DasGpuError:
    """What dask raises, told as ours."""
    if type(error).__name__ == "KilledWorker":
        told: DasGpuError = WorkersDiedError(
            "One worker process after the other died while it worked on this. Most often that is "
            "for want of memory (fewer --workers need less), or by the hand of a batch system. "
            f"Dask says: {error}"
        )
    else:
        told = ClusterError(f"The dask cluster could not do its work: {error} {_AGAIN}")
    told.__cause__ = error
    return told
