"""Who makes a run's segments, and on which backend: a thread of this process, or processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from das_gpu import backends, cluster, host
from das_gpu.backends import Selected
from das_gpu.backends.gpu import GpuBackend
from das_gpu.cluster import Kind
from das_gpu.errors import UsageError
from das_gpu.task import backend_reason

__all__ = ["Crew", "Kind", "hire"]

IN_FLIGHT = 2
"""Segments handed out for each that is being made, so that nobody waits for the next one."""


@dataclass(frozen=True)
class Crew:
    """Those who make segments.

    Attributes
    ----------
    executor : concurrent.futures.Executor
        Hands work to them.
    capacity : int
        Segments they make at once.
    processors : int
        How many of them each may use.
    selected : Selected
        The backend of each, and why it was chosen.
    remote : bool
        Whether they are other processes: what they are given must be picklable.
    """

    executor: Executor
    capacity: int
    processors: int
    selected: Selected
    remote: bool

    @property
    def window(self) -> int:
        """Segments to have handed out at a time."""
        return IN_FLIGHT * self.capacity


@contextmanager
def hire(kind: Kind | None, backend: str, workers: int | None) -> Iterator[Crew]:
    """Choose the backend and have somebody to work with it, until the context ends.

    Parameters
    ----------
    kind : {"local", "cuda"} or None
        A cluster of processes on this machine, or one thread of this process.
    backend : {"auto", "cpu", "gpu"}
        What was asked for. On a cluster of GPUs the workers choose, since only they may touch
        their devices; it can only be the GPU.
    workers : int or None
        Processes of the cluster, or compute threads; None for one per processor, or GPU.

    Raises
    ------
    UsageError
        The backend cannot be had, or contradicts the kind of cluster.
    DasGpuError
        The worker processes do not come up.
    """
    match kind:
        case None:
            selected = backends.select(backend, workers or host.processors())
            with ThreadPoolExecutor(1, "das-gpu-segment") as executor:
                yield Crew(executor, 1, host.processors(), selected, remote=False)
        case "local":
            selected = backends.select(backend, 1)
            with cluster.start(kind, workers or host.processors()) as team:
                yield _crew(team, selected)
        case "cuda":
            if backend == "cpu":
                raise UsageError(
                    "--cluster cuda computes on GPUs, but the CPU was asked for, or the run in the "
                    "output folder was begun on it. Take --cluster local, or leave --backend out "
                    "and choose another folder."
                )
            with cluster.start(kind, workers) as team:
                asked = team.executor.submit(backend_reason, "gpu", 1)
                selected = Selected(GpuBackend(), asked.result(cluster.START_S))
                yield _crew(team, selected)
        case _:
            raise UsageError(f"There is no cluster {kind!r}; choose local or cuda.")


def _crew(team: cluster.Team, selected: Selected) -> Crew:
    many = "1 worker process" if team.capacity == 1 else f"{team.capacity} worker processes"
    return Crew(
        team.executor,
        team.capacity,
        max(1, host.processors() // team.capacity),
        replace(selected, reason=f"by {many}, {selected.reason}"),
        remote=True,
    )
