"""A segment as a task for any process: what crosses to it, and what it keeps open between segments.

A `Job` names places (a location, the variable a secret is in) and says what to compute. Nothing
in it is an array, an open file or a secret, so it may be sent anywhere; a worker opens what it
names once for a run.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from socket import gethostname

from das_gpu import backends, host
from das_gpu.archive import Archive, open_archive
from das_gpu.backends import Backend
from das_gpu.errors import ClusterError, DestinationError
from das_gpu.locations import Location
from das_gpu.lock import LOCK_KEY
from das_gpu.plan import Plan
from das_gpu.plan import plan as lay_out
from das_gpu.recipe import Recipe
from das_gpu.segment import SegmentResult, extract_segment
from das_gpu.sink import Sink, open_sink
from das_gpu.store import Access
from das_gpu.stream import OnMissing


@dataclass(frozen=True)
class Job:
    """What all segments of a run have in common. Holds no secret.

    Attributes
    ----------
    run : str
        Tells this run from any other; the lock of its output folder says it too.
    version : str
        das-gpu's, which must be the same wherever segments are made.
    source, out : Location
        The archive, and where its images go.
    access, out_access : Access
        How these are reached; secrets are looked up where they are needed.
    recipe : Recipe
    segment_minutes : float
        Length of a segment.
    backend : {"cpu", "gpu"}
        Where to compute.
    threads : int
        Compute threads of one worker.
    loaders : int
        Chunk requests of one worker that are in flight.
    on_missing : {"skip", "error", "fill"}
        What a lost chunk does.
    fast : bool or None
        Whether a CPU's loops are to be compiled; None for where numba is installed.
    """

    run: str
    version: str
    source: Location
    access: Access
    recipe: Recipe
    segment_minutes: float
    out: Location
    out_access: Access
    backend: str
    threads: int
    loaders: int
    on_missing: OnMissing
    fast: bool | None = None


@dataclass(frozen=True)
class Workbench:
    """A job's archive, plan, backend and sink, opened.

    Attributes
    ----------
    archive, plan : Archive, Plan
        Where samples come from, and what to make of them.
    backend : Backend
        Does the arithmetic.
    sink : Sink
        Takes the images.
    loaders, decoders : int
        Chunk requests in flight, and threads of these that may decode at a time.
    on_missing : {"skip", "error", "fill"}
        What a lost chunk does.
    """

    archive: Archive
    plan: Plan
    backend: Backend
    sink: Sink
    loaders: int
    decoders: int
    on_missing: OnMissing

    def extract(self, number: int) -> SegmentResult:
        """Make the images of one segment; see `das_gpu.segment.extract_segment`."""
        return extract_segment(
            self.archive,
            self.plan,
            number,
            self.backend,
            self.sink,
            loaders=self.loaders,
            decoders=self.decoders,
            on_missing=self.on_missing,
        )


def open_planned(
    source: str | Path | Location, recipe: Recipe, segment_minutes: float, access: Access | None
) -> tuple[Archive, Plan]:
    """Open an archive and plan a recipe on it; no sample is read.

    Raises
    ------
    SourceError, AccessDeniedError
        When the archive cannot be opened.
    UsageError
        When the time range or the recipe does not fit the recording.
    """
    archive = open_archive(source, recipe.archive, access)
    samples = archive.sample_range(recipe.selection.start_ns, recipe.selection.stop_ns)
    return archive, lay_out(archive.acquisition, recipe, samples, segment_minutes=segment_minutes)


def extract_task(job: Job, number: int) -> SegmentResult:
    """Make one segment of a job in a process of its own.

    Its images are on the disk before the records come back: who sent the job vouches for them.

    Raises
    ------
    ClusterError
        This process has another version of das-gpu.
    DestinationError
        This process does not see the run's output folder, or another run is at work there.
    DasGpuError
        As `Workbench.extract`, and as opening what the job names.
    """
    if job.version != version("das-gpu"):
        raise ClusterError(
            f"The worker on {gethostname()} has das-gpu {version('das-gpu')}, but the run was "
            f"begun by das-gpu {job.version}. Install the same version everywhere."
        )
    bench = _workbench(job)
    if job.run.encode() not in (bench.sink.get(LOCK_KEY) or b""):
        raise DestinationError(
            f"The worker on {gethostname()} does not find this run in {bench.sink.location}. "
            "OUT must be a place that all workers share: a folder on a file system that each of "
            "them sees under the same name, or a container. If that is so, the run has ended "
            "meanwhile, or another one has taken its place."
        )
    with host.single_threaded_blas():
        result = bench.extract(number)
    bench.sink.flush()
    return result


def select_backend(kind: str, threads: int, fast: bool | None = None) -> tuple[str, str]:
    """Kind of the backend of the process that is asked, and why; see `das_gpu.backends.select`.

    Raises
    ------
    UsageError
        When it cannot be had.
    """
    selected = backends.select(kind, threads, fast)
    return selected.backend.kind, selected.reason


_opening = threading.Lock()
_opened: dict[str, Workbench] = {}


def _workbench(job: Job) -> Workbench:
    """What a job names, opened when its first segment comes; the run before is let go."""
    with _opening:
        if job.run not in _opened:
            _opened.clear()
            host.give_big_buffers_back()
            archive, plan = open_planned(job.source, job.recipe, job.segment_minutes, job.access)
            _opened[job.run] = Workbench(
                archive,
                plan,
                backends.select(job.backend, job.threads, job.fast).backend,
                open_sink(job.out, job.out_access),
                job.loaders,
                job.threads,
                job.on_missing,
            )
        return _opened[job.run]
