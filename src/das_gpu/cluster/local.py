"""Worker processes of this machine, started for a run and gone with it.

The scheduler and the workers listen on the loopback address only and speak TLS with a key made
for the run, so that nobody else on a shared machine can hand them work. Workers are spawned:
they inherit the environment, and with it what credentials name.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from das_gpu.cluster import worker
from das_gpu.cluster.executor import DaskWorkers
from das_gpu.cluster.packages import refuse_missing
from das_gpu.errors import ClusterError, DasGpuError, UsageError

_log = logging.getLogger(__name__)

Kind = Literal["local", "cuda"]

STARTS = 2
"""Times that the workers are started, when one dies meanwhile."""
START_S = 120.0
"""Longest wait for the workers to be there."""
CLOSE_S = 15.0
"""Longest wait for them to go; then they are killed."""
POOL_SHARE = 0.1
"""Of a GPU's memory, what RMM takes at the start. It takes more when that is wanted, and not
before: batches are as large as the memory that the driver calls free allows."""
POOL_LIMIT = 0.9
"""Of a GPU's memory, the most that RMM takes."""

_CONFIG = {
    # Forking after the readers' threads have run hangs the child.
    "distributed.worker.multiprocessing-method": "spawn",
    # Deaths of its worker that a task survives, before the run is told; with 0, whoever was in
    # the queue suffers too.
    "distributed.scheduler.allowed-failures": 2,
    # Dask would close a nanny for good whose worker is not back in time.
    "distributed.deploy.lost-worker-timeout": "365 days",
    "distributed.scheduler.no-workers-timeout": "300s",
    # The pages of scheduler and workers would be shown to anybody on this machine.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
_WORKER_NAME = "Dask Worker process"
"""How the names begin that dask's nannies give to their workers' processes."""
_PRELOAD = "distributed.worker.preload"


@contextmanager
def start(kind: Kind, workers: int | None = None) -> Iterator[DaskWorkers]:
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
    ClusterError
        The workers do not come up.
    """
    if kind == "cuda":
        refuse_missing()
    import dask

    preloads = list(dask.config.get(_PRELOAD, []) or [])
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_CONFIG))
        stack.enter_context(silence())
        options = _options([*preloads, worker.__name__])
        for attempt in range(1, STARTS + 1):
            try:
                client = _begin(kind, workers, options, stack)
                break
            except ClusterError as error:
                if attempt == STARTS:
                    raise
                _log.warning("%s Trying again.", error)
        yield DaskWorkers(client)


def _begin(kind: Kind, workers: int | None, options: dict[str, Any], stack: ExitStack) -> Any:
    """Start a cluster and connect to it; nothing is left of one that does not come up."""
    import distributed

    with ExitStack() as parts, _starting(kind):
        parts.callback(_kill_left)
        cluster = _cuda(workers, options) if kind == "cuda" else _local(workers or 1, options)
        parts.callback(close, cluster)
        client = untyped(distributed.Client)(cluster, timeout=START_S, set_as_default=False)
        parts.callback(close, client)
        client.wait_for_workers(len(cluster.workers), timeout=START_S)
        stack.push(parts.pop_all())
        return client


def _options(preload: list[str]) -> dict[str, Any]:
    """What both kinds of cluster are made with."""
    from distributed import Security

    return {
        "host": "127.0.0.1",
        "security": untyped(Security.temporary)(),
        "threads_per_worker": 1,
        # A limit would pause a worker at 80 % of it, for ever if nothing frees memory.
        "memory_limit": 0,
        "dashboard_address": "127.0.0.1:0",
        "scheduler_kwargs": {"dashboard": False},
        "death_timeout": START_S,
        "preload": preload,
        "silence_logs": logging.CRITICAL,
    }


def _local(workers: int, options: dict[str, Any]) -> Any:
    from distributed import LocalCluster

    return untyped(LocalCluster)(n_workers=workers, processes=True, **options)


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
        raise ClusterError(
            f"The workers of --cluster {kind} did not come up: {said}. If they were killed, it was "
            "most likely for want of memory: try fewer --workers. A Python program must call "
            'das-gpu under `if __name__ == "__main__":`.'
        ) from error


def _kill_left() -> None:
    """Kill worker processes that a closed cluster has left, busy with starting or stuck.

    They ignore SIGTERM, by which Python would end them, and it would then wait for them for ever.
    """
    for process in multiprocessing.active_children():
        if process.name.startswith(_WORKER_NAME):
            process.kill()


@contextmanager
def silence() -> Iterator[None]:
    """Keep dask's own view of what goes wrong off the terminal meanwhile."""
    loggers = [logging.getLogger(name) for name in worker.DASKS_LOGS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def untyped(function: Any) -> Any:
    """The same; dask says of some parameters what they are, and not of others."""
    return function


def close(part: Any) -> None:
    """Close a client or a cluster, within a time."""
    try:
        part.close(timeout=CLOSE_S)
    except Exception as error:  # noqa: BLE001 - the run is over, and its result stands
        _log.warning("The workers did not go by themselves: %r", error)
