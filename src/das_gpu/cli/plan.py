"""``das-gpu plan``: what a run would read and make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from das_gpu.cli import console
from das_gpu.cli.access import AccessOptions
from das_gpu.cli.demo import resolve_demo
from das_gpu.cli.options import LOADERS, RUNNING, OutputOptions, RecipeOptions, option
from das_gpu.cli.places import Source

if TYPE_CHECKING:
    from das_gpu.archive import Archive
    from das_gpu.plan import Plan


def plan(
    source: Source,
    /,
    *,
    options: RecipeOptions | None = None,
    reading: AccessOptions | None = None,
    segment_minutes: Annotated[
        float | None,
        option(RUNNING, "Unit of resume. [default: 15]", metavar="MINUTES"),
    ] = None,
    loaders: LOADERS = None,
    output: OutputOptions | None = None,
) -> int:
    """Show what a run would read and make, and how much memory it takes.

    It takes the options of extract. No sample is read and nothing is written: tiles and segments,
    halo, bytes and requests, memory, and what of the recording is left over.
    """
    return show(
        source,
        options or RecipeOptions(),
        reading or AccessOptions(),
        segment_minutes,
        loaders,
        as_json=(output or OutputOptions()).json,
    )


def show(
    source: str | Path,
    options: RecipeOptions,
    reading: AccessOptions,
    segment_minutes: float | None,
    loaders: int | None,
    *,
    as_json: bool,
) -> int:
    """Plan a run and write what it would read and make to stdout."""
    from das_gpu.host import processors
    from das_gpu.run import SEGMENT_MINUTES, default_loaders, prepare

    recipe = options.recipe()
    resolve_demo(source)
    archive, planned = prepare(
        source,
        recipe,
        segment_minutes=SEGMENT_MINUTES if segment_minutes is None else segment_minutes,
        access=reading.access(),
    )
    facts = describe(archive, planned, loaders or default_loaders(archive, processors()))
    if as_json:
        console.write_json({**facts, "exit_code": 0})
    else:
        console.write_table(_rows(facts))
    return 0


def describe(archive: Archive, plan: Plan, loaders: int) -> dict[str, Any]:
    """Facts about a plan by name, units in the names, ready for JSON."""
    from das_gpu.timescale import iso_time

    first_ns, last_ns = _limits_ns(archive, plan)
    rate_hz = plan.acquisition.sampling_rate_hz
    chunk_bytes = archive.data.chunk_nbytes
    return {
        "tiles": plan.n_tiles,
        "rows": plan.rows,
        "bands": plan.bands,
        "tile_channels": plan.band_channels,
        "tile_samples": plan.tile_samples,
        "segments": plan.n_segments,
        "rows_per_segment": plan.rows_per_segment,
        "halo_before_s": plan.halo_before / rate_hz,
        "halo_after_s": plan.halo_after / rate_hz,
        "common_mode": plan.common_mode,
        "decoded_bytes": plan.chunk_reads * chunk_bytes,
        "requests": plan.chunk_reads + _axis_reads(archive, plan),
        "read_amplification": plan.read_amplification,
        "loaders": loaders,
        "memory_bytes": memory_bytes(archive, plan, loaders),
        "first_tile_time": iso_time(first_ns),
        "last_tile_end": iso_time(last_ns),
        "unused_channels": plan.unused_channels,
        "unused_samples": plan.unused_samples,
        "notes": list(plan.notes),
        "recipe_digest": plan.recipe.digest,
    }


def memory_bytes(archive: Archive, plan: Plan, loaders: int) -> int:
    """Estimate of what a run on the CPU holds at once, beyond the program itself.

    The ring (see `das_gpu.model.RingLayout`), for each loader a chunk as stored, which is at most
    as large as decoded, for each processor a decoded chunk, and for one row of tiles the analytic
    signal (complex) and its envelope (real) in the recipe's precision::

        capacity * held + (loaders + decoders) * chunk + kept * tile_samples * 3 * real

    The envelope of bands that share channels is as large as they are together.
    """
    import numpy as np

    from das_gpu.host import processors
    from das_gpu.spans import held_dtype, ring_layout

    middle = ring_layout(plan, plan.segment(plan.n_segments // 2), ahead=False)
    ring = middle.capacity * held_dtype(plan).itemsize
    chunks = (loaders + min(loaders, processors())) * archive.data.chunk_nbytes
    real = np.dtype(plan.recipe.compute.dtype).itemsize
    shared = plan.bands * plan.band_channels - plan.kept_channels
    return ring + chunks + (plan.kept_channels * 3 + shared) * plan.tile_samples * real


def _axis_reads(archive: Archive, plan: Plan) -> int:
    """Requests for the time axis and its companions, over all segments."""
    variables = [archive.time, *(variable for variable, _ in archive.quality)]
    if archive.count is not None:
        variables.append(archive.count)
    sizes = [variable.chunk_shape[0] for variable in variables]
    reads = [segment.read for segment in plan.segments()]
    return sum(-(-read.t1 // size) - read.t0 // size for read in reads for size in sizes)


def _limits_ns(archive: Archive, plan: Plan) -> tuple[int, int]:
    """Time of the first tile's first sample, and the end of the last tile.

    Off the time axis where it can be read, else counted from the record's start.
    """
    from das_gpu.errors import ChunkError

    period_ns = 1e9 / plan.acquisition.sampling_rate_hz
    first = plan.sample_start
    last = min(first + plan.covered_span, plan.acquisition.n_samples) - 1
    limits = []
    for sample, after in ((first, 0), (last, 1)):
        try:
            time_ns = int(archive.times_ns(sample, sample + 1)[0])
        except ChunkError:
            time_ns = plan.acquisition.start_ns + round(sample * period_ns)
        limits.append(time_ns + round(after * period_ns))
    return limits[0], limits[1]


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    median = "over the live channels" if facts["common_mode"] else "not over channels"
    read = console.bytes_text(facts["decoded_bytes"])
    rows = [
        ("tiles", f"{facts['tiles']:,} = {facts['rows']:,} rows x {facts['bands']} bands"),
        ("a tile", f"{facts['tile_channels']:,} channels x {facts['tile_samples']:,} samples kept"),
        ("first tile", facts["first_tile_time"]),
        ("last tile ends", facts["last_tile_end"]),
        ("segments", f"{facts['segments']:,} of {facts['rows_per_segment']:,} rows"),
        ("halo", f"{facts['halo_before_s']:g} s before, {facts['halo_after_s']:g} s after"),
        ("common-mode median", median),
        ("reading", f"{read} decoded, {facts['requests']:,} requests"),
        ("amplification", f"{facts['read_amplification']:.3f} samples read per sample in tiles"),
        ("loaders", f"{facts['loaders']} chunks asked for at a time"),
        ("memory", f"about {console.bytes_text(facts['memory_bytes'])}"),
        (
            "left over",
            f"{facts['unused_channels']:,} kept channels, {facts['unused_samples']:,} samples",
        ),
    ]
    return [*rows, *(("note", note) for note in facts["notes"])]
