"""A synthetic archive: a scene written as Zarr format 2, chunk by chunk.

The layout is that of the published Ocean Observatories Initiative recording: ``RawData``
(distance, time) int32, ``RawDataTime`` in microseconds, ``RawDataSampleCount`` and
``GpsStatus``, Blosc-lz4 with byte shuffle, consolidated metadata, no attributes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from das_gpu.errors import DestinationError
from das_gpu.model import Window
from das_gpu.scene import Note, Scene, notes
from das_gpu.soundscape import Soundscape

__all__ = ["DEMO_SCENE", "SCENE_VERSION", "Note", "Scene", "demo_archive", "notes", "simulate"]

SCENE_VERSION = 1
"""Counts up whenever the same scene gives other samples, so that cached demos are remade."""

DEMO_SCENE = Scene(channels=3000, seconds=60.0, seed=1)

_WORKERS = 2
_GPS_LOCKED = 3
_COMPRESSOR = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
_AXES = {"RawDataTime": "<i8", "RawDataSampleCount": "<i8", "GpsStatus": "|u1"}

Encode = Callable[[NDArray[np.generic]], bytes]


def simulate(
    path: str | Path,
    scene: Scene,
    *,
    samples: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """Write a scene as an archive.

    The archive appears whole or not at all: it is written under a temporary name beside
    ``path`` and renamed. Memory stays at a few chunks, whatever the record's length.

    Parameters
    ----------
    path : str or Path
        The archive's folder; must not exist. Its parents are made.
    scene : Scene
        What to record.
    samples : bool
        False writes the metadata and the time axes only: every chunk of ``RawData`` is then
        missing, and an archive of any size costs little.
    progress : callable, optional
        Called with the fraction done, from 0 to 1.

    Returns
    -------
    Path
        The archive's folder.

    Raises
    ------
    DestinationError
        When something is there already, or the folder cannot be written or is too small.
    """
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise DestinationError(
            f"The archive cannot be written to {target}: something is there already. "
            "Name another folder, or remove that one first."
        )
    report = progress or _ignore
    with _published(target) as folder:
        if samples:
            _require_room(folder, scene)
        encode = _encoder()
        _write_metadata(folder, scene)
        report(0.0)
        rows, columns = scene.chunk_grid
        total = columns + (rows * columns if samples else 0)
        done = 0
        for tick in _write_axes(folder, scene, encode):
            done += tick
            if done % 64 == 0:
                report(done / total)
        if samples:
            # Closed at once when interrupted, so that nothing is written any more when the
            # folder is removed.
            with closing(_write_samples(folder, scene, encode)) as written:
                for _ in written:
                    done += 1
                    report(done / total)
        report(1.0)
    return target


def demo_archive(progress: Callable[[float], None] | None = None) -> Path:
    """Give the demonstration archive: one minute of 3000 channels, with whale calls.

    Made at the first call and kept in ``$XDG_CACHE_HOME/das-gpu`` (``~/.cache/das-gpu``).
    Two processes may ask at once; both get the same whole archive.

    Parameters
    ----------
    progress : callable, optional
        Called with the fraction done while the archive is made.

    Returns
    -------
    Path

    Raises
    ------
    DestinationError
        When the cache folder cannot be written.
    """
    target = _cache_folder() / f"demo-{_scene_key(DEMO_SCENE)}.zarr"
    if target.is_dir():
        return target
    try:
        return simulate(target, DEMO_SCENE, progress=progress)
    except DestinationError as error:
        if target.is_dir():
            return target
        raise DestinationError(
            f"The demonstration archive cannot be kept under {target.parent}. {error} "
            "Set XDG_CACHE_HOME to a folder that can be written."
        ) from error


def _cache_folder() -> Path:
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification has relative paths ignored.
    base = configured if configured.is_absolute() else Path("~/.cache").expanduser()
    return base / "das-gpu"


def _scene_key(scene: Scene) -> str:
    return f"{SCENE_VERSION}-{sha256(repr(scene).encode()).hexdigest()[:8]}"


@contextmanager
def _published(target: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the target's name at the end, or leaves no trace."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except OSError as error:
        raise DestinationError(
            f"The archive cannot be written to {target}: {error.strerror or error}. "
            "Name a folder that can be written and has room."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_room(folder: Path, scene: Scene) -> None:
    # Noise fills the lower two bytes of a sample; shuffle and lz4 pack the upper two away.
    needed = 2.2 * scene.channels * scene.samples
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DestinationError(
            f"The archive needs about {needed / 1e9:.1f} GB and {folder.parent} has "
            f"{free / 1e9:.1f} GB free. Ask for fewer channels or a shorter record, or name a "
            "folder with more room."
        )


def _write_metadata(folder: Path, scene: Scene) -> None:
    entries: dict[str, dict[str, object]] = {".zgroup": {"zarr_format": 2}, ".zattrs": {}}
    shape = (scene.channels, scene.samples)
    entries |= _array("RawData", "<i4", ("distance", "time"), shape, scene.chunk_shape)
    for name, dtype in _AXES.items():
        entries |= _array(name, dtype, ("time",), shape[1:], scene.chunk_shape[1:])
    for key, entry in entries.items():
        file = folder / key
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(entry, indent=1))
    consolidated = {"zarr_consolidated_format": 1, "metadata": entries}
    (folder / ".zmetadata").write_text(json.dumps(consolidated, indent=1))


def _array(
    name: str,
    dtype: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
) -> dict[str, dict[str, object]]:
    array = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunks,
        "dtype": dtype,
        "compressor": _COMPRESSOR,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
    }
    return {f"{name}/.zarray": array, f"{name}/.zattrs": {"_ARRAY_DIMENSIONS": dims}}


def _write_axes(folder: Path, scene: Scene, encode: Encode) -> Iterator[int]:
    """Write the time axes, yielding 1 for each chunk column."""
    length = scene.chunk_shape[1]
    locked = encode(np.full(length, _GPS_LOCKED, np.uint8))
    for column in range(scene.chunk_grid[1]):
        t0 = column * length
        counter = scene.counter(t0, min(t0 + length, scene.samples))
        counter = np.pad(counter, (0, length - counter.size), mode="edge")
        micros = np.rint(counter * (1e6 / scene.rate_hz)).astype(np.int64)
        micros += scene.start_ns // 1000
        (folder / "RawDataTime" / str(column)).write_bytes(encode(micros))
        (folder / "RawDataSampleCount" / str(column)).write_bytes(encode(counter))
        (folder / "GpsStatus" / str(column)).write_bytes(locked)
        yield 1


def _write_samples(folder: Path, scene: Scene, encode: Encode) -> Generator[None, None, None]:
    """Write the chunks of the recording, yielding after each."""
    from threadpoolctl import threadpool_limits

    soundscape = Soundscape(scene)
    missing, corrupt = scene.lost_chunks()
    rows, columns = scene.chunk_grid

    def write(row: int, column: int) -> None:
        if (row, column) in missing:
            return
        data = encode(_chunk(soundscape, row, column))
        if (row, column) in corrupt:
            data = data[: len(data) // 2]
        (folder / "RawData" / f"{row}.{column}").write_bytes(data)

    # The chunks are the parallelism; a matrix product's own threads would change low bits.
    with threadpool_limits(1), ThreadPoolExecutor(_WORKERS) as pool:
        pending: deque[Future[None]] = deque()
        try:
            for column in range(columns):
                for row in range(rows):
                    pending.append(pool.submit(write, row, column))
                    if len(pending) > _WORKERS:
                        pending.popleft().result()
                        yield
            while pending:
                pending.popleft().result()
                yield
        finally:
            pool.shutdown(cancel_futures=True)


def _chunk(soundscape: Soundscape, row: int, column: int) -> NDArray[np.int32]:
    """One stored chunk, at the record's edges filled up with zeros."""
    scene = soundscape.scene
    height, length = scene.chunk_shape
    c0, t0 = row * height, column * length
    window = Window(t0, min(t0 + length, scene.samples), c0, min(c0 + height, scene.channels))
    counts = soundscape.counts(window, (row, column))
    if counts.shape == scene.chunk_shape:
        return counts
    whole = np.zeros(scene.chunk_shape, np.int32)
    whole[: counts.shape[0], : counts.shape[1]] = counts
    return whole


def _encoder() -> Encode:
    from numcodecs.blosc import Blosc

    settings = {key: value for key, value in _COMPRESSOR.items() if key != "id"}
    blosc = Blosc(**settings)

    def encode(array: NDArray[np.generic]) -> bytes:
        return bytes(blosc.encode(array))

    return encode


def _ignore(_: float) -> None:
    """Progress that nobody asked for."""
