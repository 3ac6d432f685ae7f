"""A whole run, from what a user asks for to what it came to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from das_gpu import host
from das_gpu.archive import Archive
from das_gpu.backends import Selected
from das_gpu.crew import Crew, Hiring, Kind, hire
from das_gpu.dispatch import Dispatch, Progress, Tally
from das_gpu.errors import DasGpuError, UsageError
from das_gpu.identity import header_of, identity_of
from das_gpu.journal import facts, name_of_log, written_to
from das_gpu.ledger import Ledger, read_identity
from das_gpu.lock import Hold
from das_gpu.manifest import Format, kept, require
from das_gpu.model import Status
from das_gpu.plan import Plan
from das_gpu.recipe import Recipe
from das_gpu.sink import LocalSink, Sink, open_sink
from das_gpu.store import Access, refuse_shared_secret
from das_gpu.stream import OnMissing
from das_gpu.task import Job, Workbench, extract_task, open_planned

__all__ = ["Kind", "Progress", "Summary", "extract", "prepare", "resolve_source"]

_log = logging.getLogger(__name__)

SEGMENT_MINUTES = 15.0
STALL_MINUTES = 10.0
FAST_SAMPLES = 25_000_000
"""Kept samples of a run from which on compiled loops save more than loading them takes."""
REMOTE_LOADERS = 12
"""Chunk requests in flight to a store over a network; bench/README.md has the measurements."""


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    ``tiles`` counts the tiles of the whole plan by status, earlier runs into the same folder
    included; ``made`` counts those this call worked on. ``notes`` are the plan's;
    ``warnings`` name software or machines that changed since the run was begun; ``quarantined``
    are the segments that are put aside after failing three times.
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
    quarantined: tuple[int, ...] = ()

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
    return workers if archive.data.is_local else max(workers, REMOTE_LOADERS)


def compiled_loops(plan: Plan, asked: bool | None) -> bool | None:
    """Whether a plan's loops are to be compiled: as asked, else not where little is to be done."""
    few = plan.n_tiles * plan.band_channels * plan.tile_samples < FAST_SAMPLES
    return False if asked is None and few else asked


def extract(
    source: str | Path,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    backend: str = "auto",
    cluster: Kind | None = None,
    scheduler: str | None = None,
    scheduler_file: Path | None = None,
    workers: int | None = None,
    fast: bool | None = None,
    loaders: int | None = None,
    segment_minutes: float | None = None,
    stall_minutes: float = STALL_MINUTES,
    on_missing: OnMissing = "skip",
    retry_quarantined: bool = False,
    overwrite: bool = False,
    manifest: Sequence[Format] = (),
    access: Access | None = None,
    out_access: Access | None = None,
    log_json: Path | None = None,
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
    scheduler : str, optional
        Let the workers of the dask cluster whose scheduler has this address make them.
    scheduler_file : Path, optional
        The same, with the file in which the scheduler has written its address.
    workers : int, optional
        Compute threads, or processes of the cluster; by default the processors this process
        may use, with ``cuda`` the GPUs. Of workers that are there already, the threads of each.
    fast : bool, optional
        Whether the CPU backend's loops are compiled, by numba. By default they are where it is
        installed and there is more to do than loading them takes; images may then differ by a
        grey level here and there.
    loaders : int, optional
        Chunk requests in flight, in each process; by default `default_loaders`.
    segment_minutes : float, optional
        Length of the unit of resume: by default that of the run in ``out``, else 15. It
        changes no pixel.
    stall_minutes : float
        A segment that gives no sign of life for so long is cancelled and tried again; it is at
        least the patience that a chunk is asked for with. Without any worker for so long, the
        run ends.
    on_missing : {"skip", "error", "fill"}
        A lost chunk loses its tiles, stops the run, or makes its channels dead.
    retry_quarantined : bool
        Try segments again that failed three times.
    overwrite : bool
        Start over: remove the run that is in ``out``.
    manifest : sequence of {"parquet", "csv"}
        Write the manifest as ``manifest.parquet`` (by pyarrow) or ``manifest.csv`` too. One that
        is there already is kept up to date in any case.
    access, out_access : Access, optional
        Credential and patience for the archive and for ``out``, and the archive's transport.
    log_json : Path, optional
        Where the log goes; by default into ``logs`` in ``out``, when that is a folder.
    on_start : callable, optional
        Told the plan and the chosen backend before the first sample is read.
    on_progress : callable, optional
        Told where the run stands after every tile row; from any thread.

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
    if not stall_minutes > 0:
        raise UsageError(f"A stall of {stall_minutes:g} minutes is no time: give more than 0.")
    require(manifest)
    access, out_access = access or Access(), out_access or Access()
    refuse_shared_secret((source, access), (out, out_access))
    sink = open_sink(out, out_access)
    identity = None if overwrite else read_identity(sink)
    if segment_minutes is None:
        segment_minutes = (identity or {}).get("segment_minutes", SEGMENT_MINUTES)
    archive, plan = prepare(source, recipe, segment_minutes=segment_minutes, access=access)
    if backend == "auto" and identity is not None:
        backend = identity.get("backend", backend)
    fast = compiled_loops(plan, fast)
    # A chunk that is asked for with patience gives no sign meanwhile.
    stall_s = max(60 * stall_minutes, 1.5 * access.patience.total_s)
    hiring = Hiring(backend, cluster, scheduler, scheduler_file, workers, stall_s, fast)
    with ExitStack() as stack:
        hold = stack.enter_context(sink.hold(uuid4().hex))
        manifests = require(manifest) if overwrite else kept(sink, manifest)
        crew = stack.enter_context(hire(hiring))
        selected = crew.selected
        ledger = Ledger.open(
            sink,
            identity_of(archive, plan, selected, segment_minutes, on_missing),
            header_of(recipe, selected, plan),
            overwrite=overwrite,
            n_segments=plan.n_segments,
        )
        log = log_json or _log_in(sink)
        if log is not None:
            stack.enter_context(written_to(log))
        _log.info(
            "run begun",
            extra=facts(
                run=hold.run,
                source=str(archive.location),
                out=sink.location,
                tiles=plan.n_tiles,
                segments=plan.n_segments,
                backend=selected.backend.kind,
                reason=selected.reason,
            ),
        )
        if on_start is not None:
            on_start(plan, selected)
        bench = Workbench(
            archive,
            plan,
            selected.backend,
            sink,
            loaders or default_loaders(archive, crew.processors),
            crew.processors,
            on_missing,
        )
        job = Job(
            run=hold.run,
            version=version("das-gpu"),
            source=archive.location,
            access=access,
            recipe=recipe,
            segment_minutes=segment_minutes,
            out=out_access.locate(out),
            out_access=out_access,
            backend=selected.backend.kind,
            threads=crew.processors,
            loaders=bench.loaders,
            on_missing=on_missing,
            fast=fast,
        )
        dispatch = Dispatch(
            crew, plan, ledger, sink, hold, stall_s=stall_s, on_progress=on_progress
        )
        pending = ledger.pending(quarantined=retry_quarantined)
        with _kept(ledger, hold, manifests):
            if crew.remote:
                tally = dispatch.through(pending, partial(extract_task, job))
                # A worker that was killed leaves what it was writing.
                sink.sweep()
            else:
                host.give_big_buffers_back()
                with host.single_threaded_blas():
                    tally = dispatch.through(pending, bench.extract)
        summary = _summary(bench, crew, ledger, tally, manifests)
        _log.info("run ended", extra=facts(tiles=summary.tiles, seconds=summary.seconds))
        return summary


@contextmanager
def _kept(ledger: Ledger, hold: Hold, manifests: Sequence[Format]) -> Iterator[None]:
    """See that what was finished is published, also when the run ends before its end."""
    try:
        yield
    except BaseException as error:
        # Whoever asked for the run tells the user.
        _log.info("run stopped: %s", error, extra=facts(error=type(error).__name__))
        if not hold.lost.is_set():
            with suppress(DasGpuError):
                ledger.publish(manifests)
        raise


def _log_in(sink: Sink) -> Path | None:
    """Where the log of a run goes by itself: into its folder, when it is one."""
    if not isinstance(sink, LocalSink):
        return None
    return Path(sink.location, "logs", name_of_log(datetime.now(UTC)))


def _summary(
    bench: Workbench, crew: Crew, ledger: Ledger, tally: Tally, manifests: Sequence[Format]
) -> Summary:
    totals = ledger.publish(manifests)
    return Summary(
        out=bench.sink.location,
        tiles=totals.statuses,
        made=tally.tiles,
        seconds=tally.seconds,
        stored_bytes=tally.stored_bytes,
        chunks=tally.chunks,
        backend=crew.selected.backend.kind,
        backend_reason=crew.selected.reason,
        notes=bench.plan.notes,
        warnings=ledger.warnings,
        quarantined=tuple(sorted(ledger.quarantined())),
    )
