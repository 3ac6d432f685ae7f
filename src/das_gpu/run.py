"""A whole run: segments -> an executor -> records; progress, stop, summary."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

from das_gpu import host
from das_gpu.archive import Archive
from das_gpu.backends import Selected
from das_gpu.credentials import refuse_ambiguous
from das_gpu.crew import Crew, Kind, hire
from das_gpu.errors import ChunkError, DeviceError, InterruptedRunError, SourceError
from das_gpu.identity import header_of, identity_of
from das_gpu.ledger import Ledger, read_identity
from das_gpu.model import Status
from das_gpu.plan import Plan
from das_gpu.recipe import Recipe
from das_gpu.segment import SegmentResult, failed_records
from das_gpu.sink import open_sink
from das_gpu.store import Access
from das_gpu.stream import OnMissing
from das_gpu.task import Job, Workbench, extract_task, open_planned

_log = logging.getLogger(__name__)

SEGMENT_MINUTES = 15.0
WAIT_S = 0.5
"""Longest wait without looking whether the run was stopped."""
DEVICE_ATTEMPTS = 3
"""Times a segment is begun whose GPU fails."""
REMOTE_LOADERS = 12
"""Chunk requests in flight to a store over a network; bench/README.md has the measurements."""


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
class Summary:
    """What a run came to.

    ``tiles`` counts the tiles of the whole plan by status, earlier runs into the same folder
    included; ``made`` counts those this call worked on. ``notes`` are the plan's;
    ``warnings`` name software or machines that changed since the run was begun.
    """

    out: str
    tiles: Mapping[str, int]
    made: int
    seconds: float
    stored_bytes: int
    chunks: int
    backend: str
    backend_reason: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def images(self) -> int:
        """Tiles that are delivered."""
        return sum(n for status, n in self.tiles.items() if Status(status).delivered)

    @property
    def finished_before(self) -> bool:
        """True when there was nothing left to do."""
        return self.made == 0

    @property
    def exit_code(self) -> int:
        """0, or 3 when tiles are missing, corrupt or in error; a gap is a fact, no failure."""
        lost = (Status.MISSING, Status.CORRUPT, Status.ERROR)
        return 3 if any(self.tiles.get(status, 0) for status in lost) else 0


def resolve_source(source: str | Path) -> str | Path:
    """The archive behind a source: ``demo:`` becomes the synthetic one, made on first use."""
    if str(source) == "demo:":
        from das_gpu.simulate import demo_archive

        return demo_archive()
    return source


def prepare(
    source: str | Path,
    recipe: Recipe,
    *,
    segment_minutes: float = SEGMENT_MINUTES,
    access: Access | None = None,
) -> tuple[Archive, Plan]:
    """Open an archive and plan a recipe on it; no sample is read.

    Raises
    ------
    SourceError, AccessDeniedError
        When the archive cannot be opened.
    UsageError
        When the time range or the recipe does not fit the recording.
    """
    return open_planned(resolve_source(source), recipe, segment_minutes, access)


def default_loaders(archive: Archive, workers: int) -> int:
    """Loader threads: as many as cores from a local disk, more over a network."""
    return workers if archive.location.is_local else max(workers, REMOTE_LOADERS)


def extract(
    source: str | Path,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    backend: str = "auto",
    cluster: Kind | None = None,
    workers: int | None = None,
    loaders: int | None = None,
    segment_minutes: float | None = None,
    on_missing: OnMissing = "skip",
    overwrite: bool = False,
    access: Access | None = None,
    out_access: Access | None = None,
    on_start: Callable[[Plan, Selected], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Turn an archive into images and a manifest.

    Parameters
    ----------
    source : str or Path
        A Zarr archive: a folder, a URL, or ``demo:``.
    out : str or Path
        The folder, or the URL of an Azure container and prefix, to write. The same call again
        does what is missing.
    recipe : Recipe, optional
        What to compute; the ``continuous`` preset by default.
    backend : {"auto", "cpu", "gpu"}
        Where to compute.
    cluster : {"local", "cuda"}, optional
        Let worker processes of this machine make the segments; with ``cuda`` each has a GPU.
    workers : int, optional
        Compute threads, or processes of the cluster; by default the processors this process
        may use, with ``cuda`` the GPUs.
    loaders : int, optional
        Chunk requests in flight, in each process; by default `default_loaders`.
    segment_minutes : float, optional
        Length of the unit of resume: by default that of the run in ``out``, else 15. It
        changes no pixel.
    on_missing : {"skip", "error", "fill"}
        A lost chunk loses its tiles, stops the run, or makes its channels dead.
    overwrite : bool
        Start over: remove the run that is in ``out``.
    access, out_access : Access, optional
        Credential and patience for the archive and for ``out``, and the archive's transport.
    on_start : callable, optional
        Told the plan and the chosen backend before the first sample is read.
    on_progress : callable, optional
        Told where the run stands after every tile row, or segment of a cluster.

    Returns
    -------
    Summary
        Counts by status; ``exit_code`` is what the command would return.

    Raises
    ------
    DasGpuError
        See `das_gpu.errors`; whatever was finished is kept.

    Examples
    --------
    >>> from das_gpu import Recipe, extract
    >>> recipe = Recipe().with_settings({"tile.bands": 2, "image.format": "npy"})
    >>> summary = extract(recording, folder / "arrays", recipe)
    >>> summary.images, summary.exit_code
    (4, 0)
    >>> extract(recording, folder / "arrays", recipe).finished_before
    True
    """
    recipe = recipe or Recipe()
    _refuse_shared_secret(source, out, access or Access(), out_access or Access())
    sink = open_sink(out, out_access)
    identity = None if overwrite else read_identity(sink)
    if segment_minutes is None:
        segment_minutes = (identity or {}).get("segment_minutes", SEGMENT_MINUTES)
    archive, plan = prepare(source, recipe, segment_minutes=segment_minutes, access=access)
    if backend == "auto" and identity is not None:
        backend = identity.get("backend", backend)
    with hire(cluster, backend, workers) as crew:
        selected = crew.selected
        ledger = Ledger.open(
            sink,
            identity_of(archive, plan, selected, segment_minutes, on_missing),
            header_of(recipe, selected, plan),
            overwrite=overwrite,
            n_segments=plan.n_segments,
        )
        if on_start is not None:
            on_start(plan, selected)
        loaders = loaders or default_loaders(archive, crew.processors)
        bench = Workbench(
            archive, plan, selected.backend, sink, loaders, crew.processors, on_missing
        )
        run = _Run(crew, bench, ledger, on_progress)
        if not crew.remote:
            host.give_big_buffers_back()
            with host.single_threaded_blas():
                return run.through(run.extract_here)
        job = Job(
            run=uuid4().hex,
            source=archive.location,
            access=access or Access(),
            recipe=recipe,
            segment_minutes=segment_minutes,
            out=(out_access or Access()).locate(out),
            out_access=out_access or Access(),
            backend=selected.backend.kind,
            threads=crew.processors,
            loaders=loaders,
            on_missing=on_missing,
        )
        return run.through(partial(extract_task, job))


def _refuse_shared_secret(
    source: str | Path, out: str | Path, access: Access, out_access: Access
) -> None:
    """Refuse to send one account's secret to the other."""
    places = ((source, access), (out, out_access))
    auto = (how.locate(place) for place, how in places if how.credential.kind == "auto")
    refuse_ambiguous({place.account for place in auto if place.scheme == "azure"})


class _Run:
    """Hands pending segments to an executor, a bounded number at a time."""

    def __init__(
        self,
        crew: Crew,
        bench: Workbench,
        ledger: Ledger,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._crew, self._bench, self._plan = crew, bench, bench.plan
        self._ledger, self._on_progress = ledger, on_progress
        self._cancelled = threading.Event()
        self._done_tiles = 0
        self._total_tiles = 0
        self._started = time.monotonic()
        self._chunks = self._stored_bytes = 0
        self._failures: Counter[int] = Counter()

    def through(self, work: Callable[[int], SegmentResult]) -> Summary:
        """Run every pending segment and publish the manifest, also when stopped."""
        pending = deque(self._ledger.pending())
        self._total_tiles = sum(
            (segment.row1 - segment.row0) * self._plan.bands
            for segment in map(self._plan.segment, pending)
        )
        self._report(0)
        waiting: dict[Future[SegmentResult], int] = {}
        try:
            while True:
                while len(waiting) < self._crew.window and pending:
                    number = pending.popleft()
                    waiting[self._crew.executor.submit(work, number)] = number
                if not waiting:
                    break
                done, _ = wait(waiting, timeout=WAIT_S, return_when=FIRST_COMPLETED)
                # In order, so that the first error is the one that is told.
                for future in sorted(done, key=waiting.__getitem__):
                    number = waiting.pop(future)
                    if not self._finish(number, future):
                        pending.appendleft(number)
        except BaseException as error:
            self._cancelled.set()
            self._crew.executor.shutdown(cancel_futures=True)
            self._keep(waiting)
            self._ledger.publish()
            if isinstance(error, KeyboardInterrupt):
                raise InterruptedRunError(
                    "Interrupted. Finished segments are saved; the same command continues the run."
                ) from error
            raise
        return self._summary()

    def extract_here(self, number: int) -> SegmentResult:
        """Make one segment; what is fatal for the run ends it before the next one begins."""
        if self._cancelled.is_set():
            raise InterruptedRunError("The run was stopped before this segment was begun.")
        try:
            return self._bench.extract(number, on_tiles=self._report, cancelled=self._cancelled)
        except (SourceError, DeviceError) as error:
            if isinstance(error, ChunkError):
                self._cancelled.set()
            raise
        except BaseException:
            self._cancelled.set()
            raise

    def _keep(self, waiting: Mapping[Future[SegmentResult], int]) -> None:
        """Record the segments that came to their end while the run was stopped."""
        for future, number in waiting.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self._finish(number, future)

    def _finish(self, number: int, future: Future[SegmentResult]) -> bool:
        """Record a segment; False when its device failed and it is to be tried again.

        One whose source failed, or whose device failed too often, has its tiles in error, and
        others go on. What an earlier run delivered of such a segment stays.
        """
        try:
            result = future.result()
        except (SourceError, DeviceError) as error:
            if isinstance(error, ChunkError):
                raise
            self._failures[number] += 1
            if isinstance(error, DeviceError) and self._failures[number] < DEVICE_ATTEMPTS:
                _log.warning("Segment %d is tried again. %s", number, error)
                return False
            if not self._ledger.done(number):
                failed = failed_records(self._plan, number, str(error))
                self._ledger.finish_segment(number, failed)
            return True
        self._ledger.finish_segment(number, result.records)
        self._chunks += result.traffic.chunks
        self._stored_bytes += result.traffic.stored_bytes
        if self._crew.remote:
            self._report(len(result.records))
        return True

    def _report(self, tiles: int) -> None:
        self._done_tiles += tiles
        if self._on_progress is not None:
            seconds = time.monotonic() - self._started
            self._on_progress(Progress(self._done_tiles, self._total_tiles, seconds))

    def _summary(self) -> Summary:
        totals = self._ledger.publish()
        return Summary(
            out=self._bench.sink.location,
            tiles=totals.statuses,
            made=self._total_tiles,
            seconds=time.monotonic() - self._started,
            stored_bytes=self._stored_bytes,
            chunks=self._chunks,
            backend=self._crew.selected.backend.kind,
            backend_reason=self._crew.selected.reason,
            notes=self._plan.notes,
            warnings=self._ledger.warnings,
        )
