"""Worker processes on this machine, by dask: the only module that knows dask, dask-cuda and RMM.

The scheduler and the workers listen on the loopback address only and speak TLS with a key made
for the run, so that nobody else on a shared machine can hand them work. Workers are spawned:
they inherit the environment, and with it what credentials name.
"""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal, ParamSpec, TypeVar
from uuid import uuid4

from das_gpu.backends.cuda import Finding
from das_gpu.errors import DasGpuError, InterruptedRunError, UsageError

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

Kind = Literal["local", "cuda"]

START_S = 120.0
"""Longest wait for the workers to be there."""
CLOSE_S = 30.0
"""Longest wait for them to go; then they are killed."""
FINISH_S = 600.0
"""Longest wait, when a run is stopped, for the segments that are being made."""
POOL_SHARE = 0.1
"""Of a GPU's memory, what RMM takes at the start. It takes more when that is wanted, and not
before: batches are as large as the memory that the driver calls free allows."""
POOL_LIMIT = 0.9
"""Of a GPU's memory, the most that RMM takes."""
LEAST_DASK_CUDA = 26

_CONFIG = {
    # Forking after the readers' threads have run hangs the child.
    "distributed.worker.multiprocessing-method": "spawn",
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.no-workers-timeout": "300s",
    # The pages of scheduler and workers would be shown to anybody on this machine.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
_PRELOAD = "distributed.worker.preload"
_INSTALL = "pip install 'das-gpu[cuda12]' or 'das-gpu[cuda13]', as the driver allows"


@dataclass(frozen=True)
class Team:
    """Workers that are ready.

    Attributes
    ----------
    executor : concurrent.futures.Executor
        Hands work to them. ``shutdown(cancel_futures=True)`` lets what has begun end.
    capacity : int
        How many tasks they work on at once.
    """

    executor: Executor
    capacity: int


@contextmanager
def start(kind: Kind, workers: int | None = None) -> Iterator[Team]:
    """Start worker processes of one thread each; they are gone when the context ends.

    Parameters
    ----------
    kind : {"local", "cuda"}
        ``cuda``: each worker has a GPU of its own, and CuPy takes its memory from a pool of RMM.
    workers : int, optional
        By default one, with ``cuda`` one for each GPU.

    Raises
    ------
    UsageError
        dask-cuda, RMM or a GPU is missing.
    DasGpuError
        The workers do not come up.
    """
    if kind == "cuda":
        _refuse_missing()
    import dask
    import distributed

    with ExitStack() as stack:
        preloads = list(dask.config.get(_PRELOAD, []) or [])
        stack.enter_context(dask.config.set(_CONFIG))
        with _starting(kind):
            options = _options([*preloads, __name__])
            cluster = _cuda(workers, options) if kind == "cuda" else _local(workers or 1, options)
            stack.callback(_close, cluster)
            client = _untyped(distributed.Client)(cluster, timeout=START_S, set_as_default=False)
            stack.callback(_close, client)
            capacity = len(cluster.workers)
            client.wait_for_workers(capacity, timeout=START_S)
        yield Team(WorkerExecutor(client), capacity)


def _options(preload: list[str]) -> dict[str, Any]:
    """What both kinds of cluster are made with."""
    from distributed import Security

    return {
        "host": "127.0.0.1",
        "security": _untyped(Security.temporary)(),
        "threads_per_worker": 1,
        # A limit would pause a worker at 80 % of it, for ever if nothing frees memory.
        "memory_limit": 0,
        "dashboard_address": "127.0.0.1:0",
        "scheduler_kwargs": {"dashboard": False},
        "death_timeout": START_S,
        "preload": preload,
        "silence_logs": logging.ERROR,
    }


def _local(workers: int, options: dict[str, Any]) -> Any:
    from distributed import LocalCluster

    return _untyped(LocalCluster)(n_workers=workers, processes=True, **options)


def _cuda(workers: int | None, options: dict[str, Any]) -> Any:
    from dask_cuda import LocalCUDACluster

    return LocalCUDACluster(
        n_workers=workers,
        device_memory_limit=None,
        rmm_pool_size=POOL_SHARE,
        rmm_maximum_pool_size=POOL_LIMIT,
        rmm_allocator_external_lib_list="cupy",
        **options,
    )


@contextmanager
def _starting(kind: Kind) -> Iterator[None]:
    """Turn what dask, dask-cuda, RMM and NVML raise into errors that say what to do."""
    try:
        yield
    except DasGpuError:
        raise
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        if kind == "cuda" and type(error).__name__.startswith("NVMLError"):
            raise UsageError(
                f"--cluster cuda finds no GPU: {said}. `das-gpu doctor` shows what is missing; "
                "--cluster local computes on processors."
            ) from error
        raise DasGpuError(
            f"The workers of --cluster {kind} did not come up: {said}. A program that calls "
            'das-gpu must do so under `if __name__ == "__main__":`; without --cluster no worker '
            "process is needed."
        ) from error


def _untyped(function: Any) -> Any:
    """The same; dask says of some parameters what they are, and not of others."""
    return function


def _close(part: Any) -> None:
    """Close a client or a cluster, within a time."""
    try:
        part.close(timeout=CLOSE_S)
    except Exception as error:  # noqa: BLE001 - the run is over, and its result stands
        _log.warning("The workers did not go by themselves: %r", error)


def dask_setup(worker: object) -> None:  # noqa: ARG001 - dask's signature
    """Prepare a worker; dask calls this in its main thread.

    A terminal sends Ctrl-C to the workers as well. It is the driver's to decide what ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class _Answer:
    """What a task came to. An error that it raised would be logged by the worker as its own."""

    result: Any = None
    error: DasGpuError | None = None


def _answer(function: Callable[..., Any], args: Any, kwargs: Any) -> _Answer:
    try:
        return _Answer(function(*args, **kwargs))
    except DasGpuError as error:
        return _Answer(error=error)


class WorkerExecutor(Executor):
    """Hands tasks to dask's workers; futures raise what the task raised, or a `DasGpuError`.

    Futures count as running from the start: only `shutdown` knows which have begun.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        # Impure, or a segment tried again would be given its old error; how often it is tried
        # again is the run's to say.
        self._executor = client.get_executor(pure=False, retries=0)
        self._waiting: dict[Future[Any], tuple[str, Future[_Answer]]] = {}
        self._stopping = False
        self._names = (f"{uuid4().hex[:8]}-{number}" for number in itertools.count())

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run a function that can be pickled in one of the workers."""
        future: Future[_T] = Future()
        future.set_running_or_notify_cancel()
        key = f"task-{next(self._names)}"
        inner = self._executor.submit(_answer, fn, args, kwargs, key=key)
        self._waiting[future] = key, inner
        inner.add_done_callback(partial(self._hand_over, future))
        return future

    def _hand_over(self, future: Future[Any], inner: Future[_Answer]) -> None:
        self._waiting.pop(future, None)
        if inner.cancelled():
            future.set_exception(self._why_cancelled())
            return
        error = inner.exception()
        if error is not None:
            future.set_exception(_translated(error))
            return
        answer = inner.result()
        if answer.error is not None:
            future.set_exception(answer.error)
        else:
            future.set_result(answer.result)

    def _why_cancelled(self) -> DasGpuError:
        if self._stopping:
            return InterruptedRunError("The run was stopped before this task was begun.")
        return DasGpuError(
            "The connection to the worker processes was lost. What was finished is kept, and the "
            "same command continues."
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; wait for what has begun, or for all, but no longer than `FINISH_S`.

        Parameters
        ----------
        wait : bool
            Whether to wait at all.
        cancel_futures : bool
            Give up what has not begun: its futures raise ``InterruptedRunError``.
        """
        self._stopping = True
        if cancel_futures:
            begun = self._begun()
            for key, inner in list(self._waiting.values()):
                if key not in begun:
                    inner.cancel()
        if wait:
            wait_for(list(self._waiting), timeout=FINISH_S)

    def _begun(self) -> set[str]:
        """Keys of the tasks that workers are at."""
        with suppress(OSError):
            # Of all tasks: a key that has just gone would be an error.
            stacks = self._client.call_stack() if self._waiting else {}
            return {key for worker in stacks.values() for key in worker}
        return set()


def _translated(error: BaseException) -> BaseException:
    """A vendor's error, told as ours; any other as it is."""
    if type(error).__module__.partition(".")[0] != "distributed":
        return error
    told = DasGpuError(
        f"The worker processes could not do their work: {error} If they were killed, it was most "
        "likely for want of memory: try fewer --workers. What was finished is kept, and the same "
        "command continues."
    )
    told.__cause__ = error
    return told


# --- what is there ------------------------------------------------------------------------


def findings(*, load: bool) -> Iterator[Finding]:
    """What ``--cluster cuda`` needs besides the GPU backend.

    Parameters
    ----------
    load : bool
        Import the packages too, which takes seconds and, without a driver, fails.
    """
    yield _package("dask-cuda", "dask_cuda", ("dask-cuda",), load)
    yield _package("RMM", "rmm", ("rmm-cu13", "rmm-cu12", "rmm"), load)


def _package(name: str, module: str, wheels: tuple[str, ...], load: bool) -> Finding:
    remedy = f"--cluster cuda needs it: {_INSTALL}."
    if find_spec(module) is None:
        return Finding(name, f"{name} is not installed.", remedy)
    found = ""
    for wheel in wheels:
        with suppress(PackageNotFoundError):
            found = found or version(wheel)
    major = found.partition(".")[0]
    if module == "dask_cuda" and major.isdigit() and int(major) < LEAST_DASK_CUDA:
        return Finding(name, f"{name} {found} is older than {LEAST_DASK_CUDA}.", remedy)
    if load:
        try:
            import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
            return Finding(name, f"{name} cannot be imported: {error}.", remedy)
    return Finding(name, found or "installed")


def _refuse_missing() -> None:
    missing = next((one for one in findings(load=True) if not one.ok), None)
    if missing is not None:
        raise UsageError(
            f"--cluster cuda cannot run: {missing.found} {missing.remedy} --cluster local "
            "computes on processors."
        )
