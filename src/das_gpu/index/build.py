"""Files of one recording -> an index."""

from __future__ import annotations

import json
import logging
import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.errors import DestinationError, SourceError, SourceNotFoundError, UsageError
from das_gpu.index.grid import Layout, lay_out
from das_gpu.index.hdf5 import Piece, StoredFile, import_h5py
from das_gpu.index.layouts import COMPANIONS, Recorded, read_file
from das_gpu.locations import Location
from das_gpu.store import Access, Store
from das_gpu.timescale import iso_time
from das_gpu.virtual.document import Document, FileGap, IndexedFile, Reference
from das_gpu.virtual.transport import SUFFIX, folder_of, name_from

_LOG = logging.getLogger(__name__)

_ENDINGS = (".h5", ".hdf5", ".hdf", ".he5")
_AT_ONCE = 8
_INLINE_LENGTH = 1 << 16
_RATE_TOLERANCE = 1e-3
_SETUP = ("SpatialSamplingInterval", "GaugeLength", "StartLocusIndex", "OutputDataRate")
"""Attributes that must not change from file to file: channels would not be the same ones."""
_INLINE_CODEC = {"id": "blosc", "cname": "zstd", "clevel": 7, "shuffle": 1, "blocksize": 0}


@dataclass(frozen=True, slots=True)
class Summary:
    """What was indexed.

    Attributes
    ----------
    path : Path
        The index file.
    document : Document
        Its content.
    channels, samples : int
    dtype : str
        NumPy's name of the samples' type.
    sampling_rate_hz : float
    nbytes : int
        Size of the index file.
    """

    path: Path
    document: Document
    channels: int
    samples: int
    dtype: str
    sampling_rate_hz: float
    nbytes: int


def index_files(
    sources: Sequence[str | Path],
    out: str | Path,
    access: Access | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Summary:
    """Index HDF5 recordings, so that they are read in place as one archive.

    The files are put in the order of their times. Nothing is copied.

    Parameters
    ----------
    sources : sequence of str or Path
        Files, or folders of files; paths or URLs.
    out : str or Path
        The index file, whose name ends in ``.json``; replaced when it is there.
    access : Access, optional
        How the files are reached.
    on_progress : callable
        Told how many files have been read, of how many.

    Returns
    -------
    Summary

    Raises
    ------
    UsageError
        There are no files, ``out`` has another ending, or h5py is missing.
    SourceError, AccessDeniedError
        A file cannot be read, or does not belong with the others.
    DestinationError
        The index cannot be written.
    """
    path = Path(out).expanduser().resolve()
    if path.suffix != SUFFIX:
        raise UsageError(f"The index {out} must be named so that it ends in {SUFFIX}: see -o.")
    access = access or Access()
    import_h5py()
    files = list(_found(sources, access))
    if not files:
        raise UsageError(
            "No file to index was given or found: give HDF5 files, or folders of them."
        )
    index = Location("file", "", str(path))
    read: list[tuple[IndexedFile, Recorded]] = []
    # HDF5 does one thing at a time: threads are for what comes over a network.
    at_once = 1 if all(file.is_local for file in files) else _AT_ONCE
    with ThreadPoolExecutor(at_once, "das-gpu-index") as pool:
        for one in pool.map(lambda file: _read(file, index, access), files):
            read.append(one)
            on_progress(len(read), len(files))
    read.sort(key=lambda pair: pair[1].start_ns)
    recorded = [one for _, one in read]
    _check_alike(recorded)
    document = replace(
        _document(recorded),
        files=tuple(file for file, _ in read),
        gaps=tuple(_gaps(recorded)),
    )
    body = document.to_bytes()
    _write(path, body)
    first = recorded[0]
    return Summary(
        path=path,
        document=document,
        channels=first.channels,
        samples=sum(one.samples for one in recorded),
        dtype=np.dtype(first.data.dtype).name,
        sampling_rate_hz=1e9 / first.step_ns,
        nbytes=len(body),
    )


def _found(sources: Sequence[str | Path], access: Access) -> Iterator[Location]:
    """The files that are meant: those named, and those in folders that are named."""
    for source in sources:
        place = access.locate(source)
        folder = place.path.is_dir() if place.is_local else str(source).endswith("/")
        if not folder:
            yield place
            continue
        _, names = Store(place, access).children()
        yield from (place.child(name) for name in sorted(names) if name.endswith(_ENDINGS))


def _read(file: Location, index: Location, access: Access) -> tuple[IndexedFile, Recorded]:
    folder, key = folder_of(file) if file.is_local else (replace(file, prefix=""), file.prefix)
    store = Store(folder, access)
    stamp = store.stamp(key)
    if stamp is None:
        raise SourceNotFoundError(f"There is no file {file}. Check the spelling.")
    name = name_from(index, file)
    handle: str | StoredFile = str(file)
    if not file.is_local:
        handle = StoredFile(store, key, stamp.size)
        handle.preload()  # beside other files: HDF5 itself reads one after the other
    found = read_file(handle, name)
    return IndexedFile(
        name, stamp.size, stamp.version, found.samples, found.start_ns, found.last_ns
    ), found


# --- files that belong together -----------------------------------------------------------


def _check_alike(files: Sequence[Recorded]) -> None:
    """Refuse files that are not one recording, by name."""
    first = files[0]
    for one in files[1:]:
        differences = [
            f"{what} {b}, not {a}"
            for what, a, b in (
                ("channels", first.channels, one.channels),
                ("dtype", first.data.dtype, one.data.dtype),
                ("the order of axes, time as axis", first.time_axis, one.time_axis),
                ("times of samples", first.times is not None, one.times is not None),
                ("distances", first.distances_m, one.distances_m),
                *((key, first.attributes.get(key), one.attributes.get(key)) for key in _SETUP),
            )
            if a != b
        ]
        if abs(one.step_ns - first.step_ns) > _RATE_TOLERANCE * first.step_ns:
            differences.append(f"{1e9 / one.step_ns:g} Hz, not {1e9 / first.step_ns:g} Hz")
        if differences:
            raise SourceError(
                f"{one.name} does not belong with {first.name}: it has {'; '.join(differences)}. "
                "Index files that differ on their own."
            )
    for before, after in pairwise(files):
        if after.start_ns < before.last_ns + 0.5 * before.step_ns:
            raise SourceError(
                f"{after.name} begins at {iso_time(after.start_ns)}, before {before.name} ends at "
                f"{iso_time(before.last_ns)}: the files overlap. Leave one of them out."
            )


def _gaps(files: Sequence[Recorded]) -> Iterator[FileGap]:
    """Places where times are off by more than half a sample period, in files and between them."""
    first = 0
    for number, file in enumerate(files):
        before = files[number - 1] if number else file
        expected_ns = before.last_ns + round(before.step_ns)
        if number and file.start_ns - expected_ns > 0.5 * before.step_ns:
            yield FileGap(first, before.name, file.name, expected_ns, file.start_ns)
        for sample, missing_ns, found_ns in file.jumps:
            yield FileGap(first + sample, file.name, file.name, missing_ns, found_ns)
        first += file.samples


# --- the group ----------------------------------------------------------------------------


def _document(files: Sequence[Recorded]) -> Document:
    first = files[0]
    refs: dict[str, Reference] = {}
    joined = {}
    metadata: dict[str, Any] = {".zgroup": {"zarr_format": 2}, ".zattrs": _common(files)}
    dims = ["distance", "distance"]
    dims[first.time_axis] = "time"

    def put(name: str, layout: Layout, dims: list[str], **attributes: str) -> None:
        metadata[f"{name}/.zarray"] = layout.metadata
        metadata[f"{name}/.zattrs"] = {"_ARRAY_DIMENSIONS": dims, **attributes}
        refs.update({f"{name}/{key}": one for key, one in layout.chunks.items()})
        if layout.joined is not None:
            joined[name] = layout.joined

    put("RawData", lay_out([one.data for one in files], first.time_axis), dims)
    times = _present([one.times for one in files])
    if times:
        put("RawDataTime", lay_out(times, 0), ["time"])
    else:
        put("time", _made_times(files), ["time"], units="nanoseconds since 1970-01-01")
    for name in COMPANIONS:
        pieces = _present([one.companions.get(name) for one in files])
        if len(pieces) == len(files) and len({piece.dtype for piece in pieces}) == 1:
            put(name, lay_out(pieces, 0), ["time"])
        elif pieces:
            _LOG.warning("%s is left out: not all files have it in one type", name)
    if first.distances_m is not None:
        start_m, step_m = first.distances_m
        distances = start_m + step_m * np.arange(first.channels)
        put("distance", _inline(_split(distances), len(distances)), ["distance"], units="m")
    texts = {key: json.dumps(one, separators=(",", ":")) for key, one in metadata.items()}
    consolidated = {"zarr_consolidated_format": 1, "metadata": metadata}
    texts[".zmetadata"] = json.dumps(consolidated, separators=(",", ":"))
    return Document(refs={**texts, **refs}, joined=joined)


def _present(pieces: Sequence[Piece | None]) -> list[Piece]:
    return [piece for piece in pieces if piece is not None]


def _common(files: Sequence[Recorded]) -> dict[str, Any]:
    """Attributes that are the same in all files."""
    first = files[0].attributes
    return {
        key: value
        for key, value in first.items()
        if all(one.attributes.get(key) == value for one in files[1:])
    }


def _made_times(files: Sequence[Recorded]) -> Layout:
    """Times of files that say only their beginning and step: inline, and very compressible."""

    def chunks() -> Iterator[NDArray[np.int64]]:
        held: list[NDArray[np.int64]] = []
        count = 0
        for file in files:
            for first in range(0, file.samples, _INLINE_LENGTH):
                size = min(_INLINE_LENGTH, file.samples - first)
                # Counted from the file's own beginning, in integers: no error adds up.
                steps = np.round(np.arange(first, first + size) * file.step_ns).astype(np.int64)
                held.append(file.start_ns + steps)
                count += size
                if count >= _INLINE_LENGTH:
                    joined = np.concatenate(held)
                    yield joined[:_INLINE_LENGTH]
                    held = [joined[_INLINE_LENGTH:]]
                    count -= _INLINE_LENGTH
        if count:
            yield np.concatenate(held)

    return _inline(chunks(), sum(file.samples for file in files))


def _split(values: NDArray[Any]) -> list[NDArray[Any]]:
    return [values[n : n + _INLINE_LENGTH] for n in range(0, len(values), _INLINE_LENGTH)]


def _inline(chunks: Iterator[NDArray[Any]] | Sequence[NDArray[Any]], length: int) -> Layout:
    """An array whose chunks stand in the index itself."""
    from numcodecs import Blosc

    encoder = Blosc("zstd", clevel=7, shuffle=Blosc.SHUFFLE)
    size = min(length, _INLINE_LENGTH)
    references: dict[str, Reference] = {}
    dtype = ""
    for number, chunk in enumerate(chunks):
        whole = np.resize(chunk, size) if len(chunk) < size else chunk
        dtype = whole.dtype.str
        references[str(number)] = "base64:" + b64encode(encoder.encode(whole)).decode()
    metadata = {
        "zarr_format": 2,
        "shape": [length],
        "chunks": [size],
        "dtype": dtype,
        "fill_value": None,
        "order": "C",
        "filters": None,
        "compressor": _INLINE_CODEC,
    }
    return Layout(metadata, references, None)


def _write(path: Path, body: bytes) -> None:
    """Put the file there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(body)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DestinationError(
            f"The index {path} cannot be written: {error.strerror or error}. Name another place "
            "with -o."
        ) from error
