"""``das-gpu info``: what an archive holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from das_gpu.cli import console
from das_gpu.cli.access import AccessOptions
from das_gpu.cli.demo import resolve_demo
from das_gpu.cli.gaps import gap_facts, gap_rows
from das_gpu.cli.options import ArchiveOptions, OutputOptions
from das_gpu.cli.places import Source

if TYPE_CHECKING:
    from das_gpu.archive import Archive


def info(
    source: Source,
    /,
    *,
    options: ArchiveOptions | None = None,
    reading: AccessOptions | None = None,
    output: OutputOptions | None = None,
) -> int:
    """Show what an archive holds.

    Its metadata and the ends of its time axis are read, no sample: variables, shape, chunks,
    sampling rate and channel spacing with where these come from, first and last time, size.
    """
    from das_gpu.archive import open_archive
    from das_gpu.run import resolve_source

    recipe = (options or ArchiveOptions()).recipe()
    resolve_demo(source)
    access = (reading or AccessOptions()).access()
    archive = open_archive(resolve_source(source), recipe.archive, access)
    facts = describe(archive)
    if (output or OutputOptions()).json:
        console.write_json({**facts, "exit_code": 0})
    else:
        index = archive.index
        gaps = [] if index is None else gap_rows(index)
        console.write_table([*_rows(facts), *gaps])
    return 0


def describe(archive: Archive) -> dict[str, Any]:
    """Facts about an archive by name, units in the names, ready for JSON."""
    from das_gpu.store import Store
    from das_gpu.timescale import iso_time

    found = archive.acquisition
    index = archive.index
    itemsize = archive.data.dtype.itemsize
    return {
        "location": str(archive.location),
        "container": Store(archive.location, archive.access).container_facts(),
        "zarr_format": archive.zarr_format,
        "data": archive.data.name,
        "time": archive.time.name,
        "counter": None if archive.count is None else archive.count.name,
        "quality": [variable.name for variable, _ in archive.quality],
        "channels": found.n_channels,
        "samples": found.n_samples,
        "stored_dims": list(found.dims),
        "dtype": found.dtype,
        "chunk_channels": found.chunk_shape[0],
        "chunk_samples": found.chunk_shape[1],
        "codec": found.codec,
        "sampling_rate_hz": found.sampling_rate_hz,
        "sampling_rate_origin": found.sampling_rate_origin,
        "channel_spacing_m": found.channel_spacing_m,
        "channel_spacing_origin": found.channel_spacing_origin,
        "first_time": iso_time(found.start_ns),
        "last_time": iso_time(found.last_ns),
        "duration_s": (found.last_ns - found.start_ns) / 1e9,
        "decoded_bytes": found.n_channels * found.n_samples * itemsize,
        "files": None if index is None else [file.name for file in index.files],
        "gaps": None if index is None else gap_facts(index),
    }


def _container_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    return [("container", f"{found['access']}, last changed {found['last_modified']}")]


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    cable_m = facts["channel_spacing_m"] * (facts["channels"] - 1)
    spacing = f"{facts['channel_spacing_m']:g} m ({facts['channel_spacing_origin']})"
    return [
        ("archive", f"{facts['location']} (Zarr format {facts['zarr_format']})"),
        *_container_rows(facts["container"]),
        *([] if facts["files"] is None else [("files", f"{len(facts['files']):,} indexed")]),
        ("samples", f"{facts['data']} ({', '.join(facts['stored_dims'])}), {facts['dtype']}"),
        ("times", facts["time"]),
        ("sample counter", facts["counter"] or "none"),
        ("quality", ", ".join(facts["quality"]) or "none"),
        ("shape", f"{facts['channels']:,} channels x {facts['samples']:,} samples"),
        (
            "chunks",
            f"{facts['chunk_channels']:,} x {facts['chunk_samples']:,}, {facts['codec']}",
        ),
        ("sampling rate", f"{facts['sampling_rate_hz']:g} Hz ({facts['sampling_rate_origin']})"),
        (
            "channel spacing",
            f"{spacing}, {cable_m / 1000:.3f} km of cable",
        ),
        ("first sample", facts["first_time"]),
        ("last sample", facts["last_time"]),
        ("duration", console.duration_text(facts["duration_s"])),
        ("decoded size", console.bytes_text(facts["decoded_bytes"])),
    ]
