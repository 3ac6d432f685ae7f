"""``das-gpu index``: make HDF5 recordings readable as one archive, where they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from das_gpu.cli import console
from das_gpu.cli.access import AccessOptions
from das_gpu.cli.gaps import gap_facts, gap_rows
from das_gpu.cli.options import OUTPUT, OutputOptions

if TYPE_CHECKING:
    from das_gpu.index import Summary


def index(
    *files: Annotated[
        str | Path,
        Parameter(
            help="HDF5 files, or folders of them (as a URL with a slash at its end), in any order."
        ),
    ],
    out: Annotated[
        Path,
        Parameter(
            name=["--out", "-o"],
            group=OUTPUT,
            help="The index file to write; its name ends in .json.",
            metavar="FILE",
        ),
    ],
    reading: AccessOptions | None = None,
    output: OutputOptions | None = None,
) -> int:
    """Index HDF5 recordings, to be read where they are as one archive.

    No sample is copied: the index says where in the files the samples lie, so the files must stay
    where and as they are; those below the folder of the index may be moved with it. Gaps, between
    files and inside them, are found and listed; files that overlap, or that differ in channels,
    type or rate, are refused. OptaSense's layout (ProdML) is read, and what DASCore understands.
    Extract, info, plan and preview take the index as SOURCE. Needs the extra hdf5: pip install
    'das-gpu[hdf5]'.
    """
    from das_gpu.index import index_files

    access = (reading or AccessOptions()).access()
    with console.progress_bar("indexing") as bar:
        summary = index_files(
            files, out, access, lambda done, total: bar.update(done, total, f"{done:,} files")
        )
    if (output or OutputOptions()).json:
        console.write_json(_facts(summary))
    else:
        console.write_table(_rows(summary))
    return 0


def _facts(summary: Summary) -> dict[str, Any]:
    document = summary.document
    return {
        "index": str(summary.path),
        "index_bytes": summary.nbytes,
        "files": len(document.files),
        "bytes": sum(file.size for file in document.files),
        "channels": summary.channels,
        "samples": summary.samples,
        "dtype": summary.dtype,
        "sampling_rate_hz": summary.sampling_rate_hz,
        "joined": sorted(document.joined),
        "gaps": gap_facts(document),
        "exit_code": 0,
    }


def _rows(summary: Summary) -> list[tuple[str, str]]:
    from das_gpu.timescale import iso_time

    document = summary.document
    size = console.bytes_text(sum(file.size for file in document.files))
    first, last = document.files[0], document.files[-1]
    seconds = summary.samples / summary.sampling_rate_hz
    return [
        ("index", f"{summary.path} ({console.bytes_text(summary.nbytes)})"),
        ("files", f"{len(document.files):,}, {size}"),
        ("shape", f"{summary.channels:,} channels x {summary.samples:,} samples {summary.dtype}"),
        ("recorded", f"{console.duration_text(seconds)} at {summary.sampling_rate_hz:g} Hz"),
        ("first sample", f"{iso_time(first.start_ns)} in {first.name}"),
        ("last sample", f"{iso_time(last.last_ns)} in {last.name}"),
        *gap_rows(summary.document),
    ]
