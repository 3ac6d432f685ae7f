"""Where the bytes of an HDF5 dataset lie, and files that are opened where they are."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from das_gpu.errors import SourceError, UsageError
from das_gpu.store import Store
from das_gpu.virtual.joined import Part

_BLOCK = 1 << 18
_FILTERS = {1: "zlib", 2: "shuffle", 3: "fletcher32", 32001: "blosc", 32004: "lz4", 32015: "zstd"}
_KNOWN_OTHERS = {4: "szip", 5: "nbit", 6: "scale-offset", 307: "bzip2", 32008: "bitshuffle"}


@dataclass(frozen=True, slots=True)
class Piece:
    """One file's part of an array, and the type of its samples, byte order included."""

    part: Part
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """In stored order."""
        return self.part.shape


def import_h5py() -> ModuleType:
    """Load h5py, and the filters that come in a package of their own if it is there.

    Raises
    ------
    UsageError
        h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise UsageError(
            "Reading HDF5 files needs the package h5py: install das-gpu[hdf5]."
        ) from error
    with suppress(ImportError):
        import hdf5plugin  # noqa: F401 - loading it makes its filters known
    module: ModuleType = h5py
    return module


class StoredFile(io.RawIOBase):
    """An object of a store as a file that can be read and sought; a few blocks of it are kept.

    Parameters
    ----------
    store : Store
    key : str
    size : int
        Of the whole object.
    """

    def __init__(self, store: Store, key: str, size: int) -> None:
        self._store, self._key, self._size = store, key, size
        self._place = 0
        self._blocks: dict[int, bytes] = {}

    def preload(self) -> None:
        """Fetch the beginning, where most of what a reader wants is."""
        self._block(0)

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, and give the new place."""
        base = (0, self._place, self._size)[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """Give the place."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read as much as there is room for, or as there is; a whole block at most."""
        number, inside = divmod(self._place, _BLOCK)
        if self._place >= self._size:
            return 0
        piece = self._block(number)[inside : inside + len(buffer)]
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            first = number * _BLOCK
            body = self._store.get(self._key, part=(first, min(first + _BLOCK, self._size)))
            if body is None:
                raise SourceError(f"{self._store.location}/{self._key} vanished. Index it again.")
            self._blocks[number] = bytes(body)
        return self._blocks[number]


@contextmanager
def opened(file: str | StoredFile, name: str) -> Iterator[Any]:
    """Open an HDF5 file, a local path or an object of a store.

    Raises
    ------
    SourceError
        It is not an HDF5 file, or is damaged.
    """
    h5py = import_h5py()
    source = file if isinstance(file, str) else io.BufferedReader(file, _BLOCK)
    try:
        with h5py.File(source, "r") as found:
            if found.userblock_size:
                raise SourceError(
                    f"{name} has a user block before its data, which is not read. Write it again "
                    "with h5repack --ublock, or convert it."
                )
            yield found
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        said = next(iter(str(error).splitlines()), "")
        raise SourceError(
            f"{name} cannot be read as HDF5: {said}. Check that it is a whole HDF5 file."
        ) from error


def piece_of(dataset: Any, name: str) -> Piece:
    """Find the bytes of a dataset.

    Parameters
    ----------
    dataset : h5py.Dataset
    name : str
        Of the file, as the index is to name it.

    Raises
    ------
    SourceError
        The bytes are not in this file as numbers, or encoded in a way that is not known.
    """
    what = f"{dataset.name} of {name}"
    dtype = dataset.dtype
    if dtype.kind not in "iuf" or dtype.itemsize not in (1, 2, 4, 8) or dtype.subdtype:
        raise SourceError(
            f"{what} has dtype {dtype}; plain integers and floats are read. Convert it to Zarr."
        )
    if dataset.is_virtual or dataset.external:
        raise SourceError(
            f"{what} has its samples in other files. Index those files instead of this one."
        )
    text = np.dtype(dtype).str
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is None:
            raise SourceError(
                f"{what} holds no samples: they were never written. Leave the file out."
            )
        return Piece(Part(name, dataset.shape, int(offset)), text)
    steps = _steps(dataset, what)
    chunks = tuple(int(size) for size in dataset.chunks)
    part = Part(name, dataset.shape, -1, chunks, steps)
    stored: list[tuple[int, int, int] | None] = [None] * math.prod(part.grid)

    def note(found: Any) -> None:
        index = [i // size for i, size in zip(found.chunk_offset, chunks, strict=True)]
        # A chunk beyond the end is left from before the dataset was made smaller.
        if all(i < n for i, n in zip(index, part.grid, strict=True)):
            place = int(np.ravel_multi_index(index, part.grid))
            stored[place] = (int(found.byte_offset), int(found.size), int(found.filter_mask))

    dataset.id.chunk_iter(note)
    return Piece(Part(name, dataset.shape, -1, chunks, steps, tuple(stored)), text)


def _steps(dataset: Any, what: str) -> tuple[str, ...]:
    properties = dataset.id.get_create_plist()
    steps = []
    for number in range(properties.get_nfilters()):
        code, _, values, said = properties.get_filter(number)
        step = _FILTERS.get(code)
        if step == "shuffle" and values and values[0] != dataset.dtype.itemsize:
            step = None
        if step is None:
            named = _KNOWN_OTHERS.get(code) or said.decode(errors="replace") or "unknown"
            raise SourceError(
                f"{what} is encoded by the HDF5 filter {code} ({named}); read are "
                f"{', '.join(_FILTERS.values())}. Write the file again with h5repack."
            )
        steps.append(step)
    return tuple(steps)
