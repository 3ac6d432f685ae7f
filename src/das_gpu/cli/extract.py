"""``das-gpu extract``: turn an archive into images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from das_gpu.cli import console
from das_gpu.cli.access import ACCESS, AccessOptions
from das_gpu.cli.demo import resolve_demo
from das_gpu.cli.options import LOADERS, OUTPUT, RUNNING, OutputOptions, RecipeOptions, option
from das_gpu.cli.places import Out, Source
from das_gpu.cli.plan import show
from das_gpu.cli.report import EarlyPage, page_at_end
from das_gpu.cli.stop import stoppable
from das_gpu.errors import UsageError

if TYPE_CHECKING:
    from das_gpu.backends import Selected
    from das_gpu.plan import Plan
    from das_gpu.run import Progress, Summary


def extract(
    source: Source,
    out: Out,
    /,
    *,
    options: RecipeOptions | None = None,
    reading: AccessOptions | None = None,
    out_credential: Annotated[
        str, option(ACCESS, "As --credential, for OUT. [default: auto]", metavar="FORM")
    ] = "auto",
    backend: Annotated[
        Literal["auto", "cpu", "gpu"],
        option(RUNNING, "Where to compute. [default: auto]"),
    ] = "auto",
    cluster: Annotated[
        Literal["local", "cuda"] | None,
        option(
            RUNNING,
            "Worker processes here, with cuda one per GPU. [default: this process alone]",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        option(
            RUNNING,
            "Address of a dask scheduler whose workers do it: tcp://host:8786.",
            metavar="URL",
        ),
    ] = None,
    scheduler_file: Annotated[
        Path | None,
        option(
            RUNNING, "The file that holds the address, written by the scheduler.", metavar="FILE"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        option(
            RUNNING,
            "Compute threads, processes of --cluster, or threads of each worker of --scheduler. "
            "[default: one per processor, or GPU; 1]",
            metavar="N",
        ),
    ] = None,
    fast: Annotated[
        bool | None,
        option(
            RUNNING,
            "Let numba compile the CPU's loops, or not. [default: where it is installed, for "
            "more than some minutes of recording]",
            negative="--no-fast",
        ),
    ] = None,
    loaders: LOADERS = None,
    on_missing: Annotated[
        Literal["skip", "error", "fill"],
        option(
            RUNNING,
            "A lost chunk: skip its tiles, stop, or count its channels as dead. [default: skip]",
        ),
    ] = "skip",
    segment_minutes: Annotated[
        float | None,
        option(
            RUNNING, "Unit of resume. [default: that of the run in OUT, else 15]", metavar="MINUTES"
        ),
    ] = None,
    stall_minutes: Annotated[
        float,
        option(
            RUNNING,
            "A segment without a sign of life for so long is tried again. [default: 10]",
            metavar="MINUTES",
        ),
    ] = 10.0,
    retry_quarantined: Annotated[
        bool, option(RUNNING, "Try segments again that were put aside after three failures.")
    ] = False,
    overwrite: Annotated[
        bool, option(RUNNING, "Delete the run that OUT holds and start over.")
    ] = False,
    manifest: Annotated[
        tuple[str, ...],
        option(
            OUTPUT,
            "Write manifest.parquet or manifest.csv beside metadata.jsonl; both: parquet,csv.",
            metavar="parquet|csv",
        ),
    ] = (),
    dry_run: Annotated[
        bool, option(RUNNING, "Show the plan only, as `das-gpu plan` does.")
    ] = False,
    log_json: Annotated[
        Path | None,
        option(
            OUTPUT,
            "The log: a file of JSON lines. [default: OUT/logs/..., when OUT is a folder]",
            metavar="FILE",
        ),
    ] = None,
    output: OutputOptions | None = None,
) -> int:
    """Turn an archive into images and a manifest.

    The recording is read once, segment by segment, band-passed, turned into its envelope in dB
    and cut into tiles, each of which becomes an image. What cannot be made - chunks that are
    missing or corrupt, gaps of the clock - costs the tiles it touches, and is listed with reasons.
    A run may be stopped at any moment: the same command again does what is missing.
    """
    as_json = (output or OutputOptions()).json
    options, reading = options or RecipeOptions(), reading or AccessOptions()
    if dry_run:
        return show(source, options, reading, segment_minutes, loaders, as_json=as_json)
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers} leaves nobody to compute: give at least 1.")
    from das_gpu.manifest import require

    manifests = require([part.strip() for text in manifest for part in text.split(",")])
    recipe = options.recipe()
    access, out_access = reading.access(), reading.access(out_credential)
    resolve_demo(source)
    from das_gpu import run

    early = EarlyPage()
    with stoppable(), console.progress_bar("extracting") as bar:
        summary = run.extract(
            source,
            out,
            recipe,
            backend=backend,
            cluster=cluster,
            scheduler=scheduler,
            scheduler_file=scheduler_file,
            workers=workers,
            fast=fast,
            loaders=loaders,
            segment_minutes=segment_minutes,
            stall_minutes=stall_minutes,
            on_missing=on_missing,
            retry_quarantined=retry_quarantined,
            overwrite=overwrite,
            manifest=manifests,
            access=access,
            out_access=out_access,
            log_json=log_json,
            on_start=_announce,
            on_progress=lambda progress: _show(bar, progress, early),
        )
    for warning in summary.warnings:
        console.note(warning)
    read = console.bytes_text(summary.stored_bytes)
    console.detail(f"read: {summary.chunks:,} chunks, {read} as stored")
    for line in summary_lines(summary, out):
        console.say(line)
    page = page_at_end(out, out_access, changed=not summary.finished_before)
    if as_json:
        console.write_json({**_facts(summary, out), "report": page})
    return summary.exit_code


def _announce(plan: Plan, selected: Selected) -> None:
    """Say what a user should know before the run starts."""
    for note in plan.notes:
        console.note(note)
    console.detail(
        f"plan: {plan.n_tiles:,} tiles in {plan.n_segments:,} segments, {plan.chunk_reads:,} "
        f"chunks to read, {plan.read_amplification:.3f} samples read per sample in tiles"
    )
    console.say(f"Computing on the {selected.backend.kind.upper()}, {selected.reason.rstrip('.')}.")


def _show(bar: console.ProgressBar, progress: Progress, early: EarlyPage) -> None:
    """Draw where a run stands, and get ready for its end."""
    if progress.done_tiles:
        early.begin()
    left = progress.remaining_s
    rate = f"{progress.tiles_per_s:.1f} tiles/s" if progress.done_tiles else "starting"
    detail = f"{progress.done_tiles}/{progress.total_tiles} tiles, {rate}"
    if left is not None:
        detail += f", {console.duration_text(round(left))} left"
    bar.update(progress.done_tiles, progress.total_tiles, detail)


def summary_lines(summary: Summary, out: str | Path) -> list[str]:
    """What a run came to, for people: counts, what to do about the rest, where things are."""
    out = str(out).rstrip("/") or "/"
    total = sum(summary.tiles.values())
    lost = {name: summary.tiles.get(name, 0) for name in ("missing", "corrupt", "error")}
    counts = ", ".join(f"{number} {name}" for name, number in summary.tiles.items() if number)
    lines = []
    if summary.finished_before:
        lines.append(f"Nothing to do: {out} holds this run, finished ({counts}).")
    else:
        lines.append(
            f"{summary.images} images of {total} tiles ({counts}); {summary.made} made in "
            f"{summary.seconds:.1f} s, {_tiles_per_s(summary):.1f} tiles/s."
        )
    if any(lost.values()):
        named = ", ".join(f"{number} {name}" for name, number in lost.items() if number)
        lines.append(
            f"Not delivered: {named}. The same command tries these again; the reasons are in "
            f"{out}/undelivered.jsonl."
        )
    if summary.quarantined:
        many = (
            "1 segment is"
            if len(summary.quarantined) == 1
            else f"{len(summary.quarantined)} segments are"
        )
        lines.append(
            f"{many} put aside after three failures; --retry-quarantined tries again, `das-gpu "
            f"status {out} --failed` says why."
        )
    if gaps := summary.tiles.get("gap", 0):
        lines.append(
            f"{gaps} tiles lie across a gap in the recording and make no image; they are listed "
            f"in {out}/undelivered.jsonl."
        )
    if summary.images:
        lines.append(f"Images: {out}/images; manifest: {out}/metadata.jsonl.")
    return lines


def _tiles_per_s(summary: Summary) -> float:
    return summary.made / summary.seconds if summary.seconds > 0 else 0.0


def _facts(summary: Summary, out: str | Path) -> dict[str, Any]:
    """The same for machines."""
    return {
        **asdict(summary),
        "tiles": dict(summary.tiles),
        "notes": list(summary.notes),
        "warnings": list(summary.warnings),
        "quarantined": list(summary.quarantined),
        "out": str(out),
        "images": summary.images,
        "tiles_per_s": _tiles_per_s(summary),
        "finished_before": summary.finished_before,
        "exit_code": summary.exit_code,
    }
