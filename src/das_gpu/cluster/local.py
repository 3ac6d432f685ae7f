"""Worker processes of this machine, started for a run and gone with it.

The scheduler and the workers listen on the loopback address only and speak TLS with a key made
for the run, so that nobody else on a shared machine can hand them work. Workers are spawned:
they inherit the environment, and with it what credentials name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from das_gpu.cluster import worker
from das_gpu.cluster.executor import DaskWorkers
from das_gpu.cluster.packages import refuse_missing
from das_gpu.errors import ClusterError, DasGpuError, UsageError

_log = logging.getLogger(__name__)

Kind = Literal["local", "cuda"]

START_S = 120.0
"""Longest wait for the workers to be there."""
CLOSE_S = 30.0
"""Longest wait for them to go; then they are killed."""
POOL_SHARE = 0.1
"""Of a GPU's memory, what RMM takes at the start. It takes more when that is wanted, and not
before: batches are as large as the memory that the driver calls free allows."""
POOL_LIMIT = 0.9
"""Of a GPU's memory, the most that RMM takes."""

_CONFIG = {
    # Forking after the readers' threads have run hangs the child.
    "distributed.worker.multiprocessing-method": "spawn",
    # How many deaths of its worker a task survives; with 0, whoever was in the queue suffers too.
    "distributed.scheduler.allowed-failures": 3,
    "distributed.scheduler.no-workers-timeout": "300s",
    # The pages of scheduler and workers would be shown to anybody on this machine.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}
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
    import distributed

    with ExitStack() as stack:
        preloads = list(dask.config.get(_PRELOAD, []) or [])
        stack.enter_context(dask.config.set(_CONFIG))
        with _starting(kind):
            options = _options([*preloads, worker.__name__])
            cluster = _cuda(workers, options) if kind == "cuda" else _local(workers or 1, options)
            stack.callback(close, cluster)
            client = untyped(distributed.Client)(cluster, timeout=START_S, set_as_default=False)
            stack.callback(close, client)
            capacity = len(cluster.workers)
            client.wait_for_workers(capacity, timeout=START_S)
            team = DaskWorkers(client)
        yield team


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
        "silence_logs": logging.ERROR,
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
            f"The workers of --cluster {kind} did not come up: {said}. A program that calls "
            'das-gpu must do so under `if __name__ == "__main__":`; without --cluster no worker '
            "process is needed."
        ) from error


def untyped(function: Any) -> Any:
    """The same; dask says of some parameters what they are, and not of others."""
    return function


def close(part: Any) -> None:
    """Close a client or a cluster, within a time."""
    try:
        part.close(timeout=CLOSE_S)
    except Exception as error:  # noqa: BLE001 - the run is over, and its result stands
        _log.warning("The workers did not go by themselves: %r", error)
