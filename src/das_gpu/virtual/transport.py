"""An index file, answering as the store of a Zarr group would."""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from das_gpu.answers import Errand
from das_gpu.errors import (
    ChunkCorruptError,
    ChunkMissingError,
    SourceError,
    SourceNotFoundError,
    UsageError,
)
from das_gpu.locations import Location, parse_location
from das_gpu.patience import Watch
from das_gpu.transports import Absent, Changed, CheckSize, Part, Stamp, Transport
from das_gpu.virtual.document import Document, inline, parse_document

SUFFIX = ".json"

_MOST_BYTES = 1 << 30
_held = threading.local()


def is_index(location: Location) -> bool:
    """Whether a location is an index file, not a folder: by its name, and locally by its kind."""
    if not location.prefix.endswith(SUFFIX):
        return False
    return not location.is_local or not location.path.is_dir()


def folder_of(location: Location) -> tuple[Location, str]:
    """The folder or prefix that an object lies in, and the object's name there."""
    folder, _, name = location.prefix.rpartition("/")
    return replace(location, prefix=folder or ("/" if location.is_local else "")), name


class IndexedFiles:
    """An index file and the files that it names, as a `das_gpu.transports.Transport`.

    Keys are those of the Zarr group that the index describes. The index is read with the first
    one that is asked for.

    Parameters
    ----------
    errand : Errand
        Whose location is the index file.
    open_at : callable
        Makes the transport that reads at a folder, or in a container.
    """

    def __init__(self, errand: Errand, open_at: Callable[[Location], Transport]) -> None:
        self._errand = errand
        self._open_at = open_at
        self._folder, self._name = folder_of(errand.location)
        self._document: Document | None = None
        self._versions: dict[str, str] = {}
        self._transports: dict[Location, Transport] = {}
        self._lock = threading.Lock()

    def get(
        self,
        key: str,
        check: CheckSize,
        watch: Watch,
        part: Part | None = None,
        version: str | None = None,  # noqa: ARG002 - an index has versions of files, not of keys
    ) -> memoryview:
        """Make an object of the group from what the index says."""
        document = self.document(watch)
        reference = document.refs.get(key)
        if isinstance(reference, str):
            body = memoryview(inline(reference))
            check(body.nbytes)
        elif reference is not None:
            name, first, size = reference
            low, high, _ = slice(*part or (0, None)).indices(size)
            return self._fetch(name, first + low, first + max(low, high), watch, check)
        else:
            body = self._assembled(document, key, check, watch)
        low, high, _ = slice(*part or (0, None)).indices(body.nbytes)
        return body[low:high]

    def stamp(self, key: str) -> Stamp:
        """Versions are those of the files; an object of the group has none."""
        raise Absent(key)

    def children(self) -> tuple[list[str], list[str]]:
        """Names of the group's arrays, and of its own metadata."""
        keys = () if self._document is None else self._document.refs
        folders = {key.partition("/")[0] for key in keys if "/" in key}
        return sorted(folders), sorted(key for key in keys if "/" not in key)

    def document(self, watch: Watch) -> Document:
        """The index, read once.

        Raises
        ------
        SourceNotFoundError, SourceError
            There is none, or the file is not one.
        """
        with self._lock:
            if self._document is None:
                place = str(self._errand.location)
                try:
                    transport = self._at(self._folder)
                    body = transport.get(self._name, self._check_size, watch)
                except Absent as error:
                    raise SourceNotFoundError(
                        f"There is no file {place}. Check the spelling; das-gpu index makes one."
                    ) from error
                document = parse_document(bytes(body), place)
                self._versions = {one.name: one.version for one in document.files}
                self._document = document
            return self._document

    def is_local(self, watch: Watch) -> bool:
        """Whether all files are on this machine."""
        return not any("://" in one.name for one in self.document(watch).files) and (
            self._folder.is_local
        )

    def _check_size(self, size: int) -> None:
        if size > _MOST_BYTES:
            raise SourceError(
                f"{self._errand.location} has {size} bytes; an index beyond {_MOST_BYTES} bytes "
                "is not read. Index fewer files at once."
            )

    def _assembled(
        self, document: Document, key: str, check: CheckSize, watch: Watch
    ) -> memoryview:
        name, _, last = key.rpartition("/")
        array = document.joined.get(name)
        parts = last.split(".")
        if array is None or not all(one.isdecimal() for one in parts):
            raise Absent(key)
        if len(parts) != len(array.chunks):
            raise Absent(key)
        check(array.chunk_nbytes)
        if len(getattr(_held, "memory", b"")) < array.chunk_nbytes:
            _held.memory = None
            _held.memory = bytearray(array.chunk_nbytes)
        out = memoryview(_held.memory)[: array.chunk_nbytes]

        def fetch(file: str, first: int, last: int) -> memoryview:
            return self._fetch(file, first, last, watch)

        array.assemble(tuple(map(int, parts)), out, fetch)
        return out

    def _fetch(
        self,
        name: str,
        first: int,
        last: int,
        watch: Watch,
        check: CheckSize = lambda _: None,
    ) -> memoryview:
        """Bytes of a file, if it is the one that was indexed."""
        folder, key = self._resolve(name)
        try:
            transport = self._at(folder)
            try:
                body = transport.get(key, check, watch, (first, last), self._versions.get(name))
            except Changed:
                transport.stamp(key)  # some stores say "changed" of what is not there
                raise
        except Changed as error:
            raise ChunkMissingError(
                f"{name} has changed since it was indexed in {self._errand.location}, so what is "
                "there is not what was indexed. Index the files again; a copy of a file counts "
                "as changed unless it keeps its time."
            ) from error
        except Absent as error:
            raise ChunkMissingError(
                f"{name}, which {self._errand.location} names, is not there any more. Put it "
                "back, or index the files that there are."
            ) from error
        if body.nbytes != last - first:
            raise ChunkCorruptError(
                f"{name} ends {last - first - body.nbytes} bytes before the byte {last} at which "
                f"{self._errand.location} expects samples. Index the files again."
            )
        return body

    def _resolve(self, name: str) -> tuple[Location, str]:
        """Where a file lies: a folder or a container, and the key there.

        Raises
        ------
        SourceError
            The index leads to where its own place does not entitle it to.
        """
        base = self._folder
        if "://" in name:
            try:
                found = parse_location(name)
            except UsageError as error:
                raise SourceError(f"{self._errand.location} names a file so: {error}") from error
            # Whoever wrote the index must not choose the server that is sent a credential.
            if found.is_local or (found.scheme == "azure" and not found.is_known_service):
                raise SourceError(
                    f"{self._errand.location} names {found}, which is on no known server of "
                    "Azure. Such files are not read by way of an index."
                )
            return replace(found, prefix=""), found.prefix
        if base.is_local:
            path = Path(base.prefix, name)
            return replace(base, prefix=str(path.parent)), path.name
        key = posixpath.normpath(posixpath.join(base.prefix, name))
        if name.startswith("/") or key.startswith(".."):
            raise SourceError(
                f"{self._errand.location} names {name}, which is outside its container. Index "
                "the files where they are."
            )
        return replace(base, prefix=""), key

    def _at(self, place: Location) -> Transport:
        transport = self._transports.get(place)
        if transport is None:
            if place.is_local and not place.path.is_dir():
                raise Absent(place)
            transport = self._transports[place] = self._open_at(place)
        return transport


def name_from(index: Location, file: Location) -> str:
    """How an index names a file: relative where the file is below its folder."""
    folder, _ = folder_of(index)
    if not file.is_local:
        inside = replace(file, prefix="") == replace(folder, prefix="")
        below = f"{folder.prefix}/" if folder.prefix else ""
        if inside and file.prefix.startswith(below):
            return file.prefix.removeprefix(below)
        base = str(replace(file, prefix=""))
        return f"{base}/{quote(file.prefix)}"
    path, root = Path(file.prefix), Path(folder.prefix)
    if folder.is_local and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return path.as_posix()
