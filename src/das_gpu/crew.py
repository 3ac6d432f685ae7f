"""Who makes a run's segments, and on which backend: a thread of this process, or processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from das_gpu import backends, host
from das_gpu.backends import Backend, Selected
from das_gpu.errors import ClusterError, UsageError
from das_gpu.task import select_backend
from das_gpu.workers import Here, Workers

__all__ = ["Crew", "Hiring", "Kind", "hire"]

Kind: TypeAlias = Literal["local", "cuda"]
"""Worker processes that can be started on this machine; see `das_gpu.cluster.start`."""

IN_FLIGHT = 2
"""Segments handed out for each that is being made, so that nobody waits for the next one."""


@dataclass(frozen=True)
class Hiring:
    """Whom to hire.

    Attributes
    ----------
    backend : {"auto", "cpu", "gpu"}
        What was asked for. On a cluster of GPUs the workers choose, since only they may touch
        their devices; it can only be the GPU.
    cluster : {"local", "cuda"} or None
        Processes started on this machine.
    scheduler : str or None
        Address of the scheduler of a dask cluster that is there already.
    scheduler_file : Path or None
        File that holds it.
    workers : int or None
        Processes started, or compute threads; None for one per processor, or GPU. Of workers
        that are there already, the threads of each: None for one, or what feeds its GPU.
    stall_s : float
        Longest wait for the first worker of a cluster that is there already.
    fast : bool or None
        Whether a CPU's loops are to be compiled; None for where numba is installed.
    """

    backend: str = "auto"
    cluster: Kind | None = None
    scheduler: str | None = None
    scheduler_file: Path | None = None
    workers: int | None = None
    stall_s: float = 600.0
    fast: bool | None = None

    @property
    def attached(self) -> bool:
        """Whether the workers are those of a cluster that is there already."""
        return self.scheduler is not None or self.scheduler_file is not None


@dataclass(frozen=True)
class Crew:
    """Those who make segments.

    Attributes
    ----------
    workers : Workers
        Do what they are handed.
    processors : int
        How many of them each may use.
    selected : Selected
        The backend of each, and why it was chosen.
    remote : bool
        Whether they are other processes: what they are given must be picklable.
    """

    workers: Workers
    processors: int
    selected: Selected
    remote: bool

    @property
    def window(self) -> int:
        """Segments to have handed out at a time; to those who are not there yet, one."""
        return max(1, IN_FLIGHT * self.workers.capacity if self.remote else 1)


@contextmanager
def hire(hiring: Hiring) -> Iterator[Crew]:
    """Choose the backend and have somebody to work with it, until the context ends.

    Raises
    ------
    UsageError
        The backend cannot be had, or contradicts the kind of cluster.
    ClusterError
        The worker processes do not come up, or no scheduler answers.
    """
    ways = (hiring.cluster, hiring.scheduler, hiring.scheduler_file)
    if sum(way is not None for way in ways) > 1:
        raise UsageError(
            "--cluster, --scheduler and --scheduler-file exclude each other: give one."
        )
    if hiring.attached:
        from das_gpu import cluster

        with cluster.attach(hiring.scheduler, hiring.scheduler_file) as team:
            yield _attached(team, hiring)
        return
    match hiring.cluster:
        case None:
            processors = hiring.workers or host.processors()
            selected = backends.select(hiring.backend, processors, hiring.fast)
            yield Crew(Here(), processors, selected, remote=False)
        case "local":
            from das_gpu import cluster

            selected = backends.select(hiring.backend, 1, hiring.fast)
            with cluster.start("local", hiring.workers or host.processors()) as team:
                yield _started(team, selected)
        case "cuda":
            if hiring.backend == "cpu":
                raise UsageError(
                    "--cluster cuda computes on GPUs, but the CPU was asked for, or the run in the "
                    "output folder was begun on it. Take --cluster local, or leave --backend out "
                    "and choose another folder."
                )
            from das_gpu import cluster

            with cluster.start("cuda", hiring.workers) as team:
                _, reason = team.submit(select_backend, "gpu", 1).result(cluster.START_S)
                yield _started(team, Selected(_backend("gpu", 1), reason))
        case _:
            raise UsageError(f"There is no cluster {hiring.cluster!r}; choose local or cuda.")


def _started(team: Workers, selected: Selected) -> Crew:
    processors = max(1, host.processors() // max(1, team.capacity))
    return Crew(team, processors, _by(team, selected), remote=True)


def _attached(team: Workers, hiring: Hiring) -> Crew:
    """Let the first worker that is there say which backend it is; the others are to be like it."""
    asked = team.submit(select_backend, hiring.backend, 1, hiring.fast)
    try:
        kind, reason = asked.result(hiring.stall_s)
    except TimeoutError as error:
        trouble = team.trouble()
        team.shutdown(wait=False, cancel_futures=True)
        raise ClusterError(
            f"No worker took up any work within {hiring.stall_s:g} s: {trouble}. Start workers "
            "that belong to this scheduler, and run the same command again."
        ) from error
    threads = hiring.workers
    if threads is None:
        # Its threads decode what a GPU computes; other workers share their machine with more.
        gpu = kind == "gpu"
        threads = team.submit(host.processors).result(hiring.stall_s) if gpu else 1
    return Crew(team, threads, _by(team, Selected(_backend(kind, threads), reason)), remote=True)


def _backend(kind: str, threads: int) -> Backend:
    """A backend of the kind that workers have chosen, of which only the kind is ever asked."""
    if kind == "gpu":
        from das_gpu.backends.gpu import GpuBackend

        return GpuBackend()
    from das_gpu.backends.cpu import CpuBackend

    return CpuBackend(threads)


def _by(team: Workers, selected: Selected) -> Selected:
    many = "1 worker process" if team.capacity == 1 else f"{team.capacity} worker processes"
    return replace(selected, reason=f"by {many}, {selected.reason}")
