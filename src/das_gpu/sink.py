"""Where a run's files go: each is there whole, or not at all.

Keys are relative, with forward slashes, the same in a folder and in a blob container (see
`das_gpu.blobsink`). A local file is written
under a temporary name in its own folder and renamed into place, so that a reader, a kill or
a crash never meets half a file. Renaming alone does not survive a power cut; for that the
data must be forced to the disk, at a cost that is too high per image. So images are put
with ``durable=False``, and ``flush`` forces all of them before the file that vouches for
them is put.
"""

from __future__ import annotations

import builtins
import errno
import itertools
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, Protocol

from das_gpu.errors import DestinationError, UsageError
from das_gpu.keys import IMAGES, QUARANTINE, SEGMENTS, SHEETS, TEMPORARY
from das_gpu.locations import Location
from das_gpu.lock import LOCK_KEY, Hold, Holder, folder_holder, hold_folder
from das_gpu.runfile import check_key
from das_gpu.store import Access

_CREATE_ATTEMPTS = 8
# What a file system answers that cannot force a folder; it orders renames by itself.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)

_ADVICE = {
    errno.ENOSPC: "The disk is full: free some space, then run the same command again.",
    errno.EDQUOT: "Your quota there is used up: free some space, then run the same command again.",
    errno.EFBIG: "The file-size limit of this session is in the way: raise it (ulimit -f).",
    errno.EROFS: "The file system is read-only: choose another output folder.",
    errno.EACCES: "You may not write there: ask for the permission or choose another folder.",
    errno.EPERM: "You may not write there: ask for the permission or choose another folder.",
    errno.ENOTDIR: "A part of this path is a file, not a folder: choose another output folder.",
    errno.EEXIST: "A part of this path is a file, not a folder: choose another output folder.",
    errno.EISDIR: "A folder stands where a file must go: move it or choose another output folder.",
    errno.ENAMETOOLONG: "The path is too long for this file system: choose a shorter one.",
    errno.ENOENT: "Something was taken away meanwhile: put it back if it was moved, then run the "
    "same command again.",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n).",
}
_ADVICE_ELSE = "Check that the folder can be written, or choose another output folder."


class Sink(Protocol):
    """A place for files, by key. Safe to call from several threads."""

    @property
    def location(self) -> str:
        """Secret-free text that tells a person where this is."""

    @property
    def writers(self) -> int:
        """How many threads should put, get or delete at once: more would gain nothing."""

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Store a file, replacing an earlier one; on return it is whole.

        With ``durable`` it also survives a power cut from here on, else from the next
        ``flush`` on.
        """

    def flush(self) -> None:
        """Make everything that was put or deleted before this call survive a power cut."""

    def open_writer(self, key: str) -> AbstractContextManager[IO[bytes]]:
        """Write a file piece by piece; it is there, durably, after the block, and not before.

        When the block raises, nothing has happened.
        """

    def get(self, key: str) -> bytes | None:
        """Content of a file, or None when there is none."""

    def list(self, prefix: str = "", *, limit: int | None = None) -> builtins.list[str]:
        """Keys that begin with ``prefix``, sorted; with ``limit``, any that many of them."""

    def delete(self, key: str) -> None:
        """Remove a file; nothing happens when there is none."""

    def sweep(self) -> None:
        """Remove what killed writers left; only when no other process writes here."""

    def hold(self, run: str) -> AbstractContextManager[Hold]:
        """Keep other runs from writing here; DestinationInUseError when one does already."""

    def holder(self) -> Holder | None:
        """Who holds this place now; None when nobody alive does. Changes nothing."""


class LocalSink:
    """A folder on this machine; it is made when the first file is put, or when it is held.

    While a run holds the folder, no sink that knows of it makes the folder anew: when it has
    been removed, moved or unmounted, every put fails.

    Parameters
    ----------
    root : Path or str

    Raises
    ------
    DestinationError
        By every method, when the operating system refuses; by the constructor, when
        ``root`` is there and is not a folder.
    """

    writers = 2

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root).absolute()
        if self._root.exists() and not self._root.is_dir():
            raise DestinationError(
                f"The output is to be a folder, but {self._root} is a file. Choose another one."
            )
        self._token = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._state = threading.Lock()
        self._syncing = threading.Lock()
        self._unsynced_files: set[Path] = set()
        self._unsynced_folders: set[Path] = set()
        self._lock = self._root / LOCK_KEY
        self._is_held = os.path.lexists(self._lock)

    def __str__(self) -> str:
        return self.location

    @property
    def location(self) -> str:
        """The folder's absolute path."""
        return str(self._root)

    def put(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Store a file whole; see `Sink.put`."""
        with self._replacing(key, durable=durable) as file:
            file.write(data)

    def open_writer(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Write a file piece by piece; see `Sink.open_writer`."""
        return self._replacing(key, durable=True)

    def flush(self) -> None:
        """Force files and folders to the disk; see `Sink.flush`."""
        # The lock is held to the end: another caller's files may be among these, and it must
        # not return before they are safe.
        with self._syncing:
            with self._state:
                files, self._unsynced_files = self._unsynced_files, set()
                folders, self._unsynced_folders = self._unsynced_folders, set()
            try:
                for file in files:
                    _sync(file)
                for folder in folders:
                    _sync_folder(folder)
            except OSError as error:
                with self._state:
                    self._unsynced_files |= files
                    self._unsynced_folders |= folders
                raise _explained(f"Forcing files in {self._root} to the disk", error) from error

    def get(self, key: str) -> bytes | None:
        """Content of a file, or None; see `Sink.get`."""
        path = self._path(key)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _explained(f"Reading {path}", error) from error

    def list(self, prefix: str = "", *, limit: int | None = None) -> builtins.list[str]:
        """Keys that begin with ``prefix``, our own aids left out; see `Sink.list`."""
        files = (path for path in self._walk(prefix) if not self._is_aid(path))
        keys = (path.relative_to(self._root).as_posix() for path in files)
        return sorted(itertools.islice((key for key in keys if key.startswith(prefix)), limit))

    def delete(self, key: str) -> None:
        """Remove a file, and its folders when they are empty then; see `Sink.delete`."""
        path = self._path(key)
        with self._syncing, self._state:
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            except OSError as error:
                raise _explained(f"Deleting {path}", error) from error
            self._unsynced_files.discard(path)
            folder = path.parent
            with suppress(OSError):
                while folder != self._root:
                    folder.rmdir()
                    folder = folder.parent
            self._unsynced_folders.add(folder)

    def sweep(self) -> None:
        """Remove temporary files of killed runs, in the folders a run writes to.

        Writers of the same folder, in this process or another, would lose what they are
        writing: call it before the work starts, or after it has ended.
        """
        top = self._root.glob(f"{TEMPORARY}*")
        for path in itertools.chain(top, *map(self._walk, (IMAGES, SEGMENTS, QUARANTINE, SHEETS))):
            if path.name.startswith(TEMPORARY):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise _explained(f"Deleting {path}", error) from error

    @contextmanager
    def hold(self, run: str) -> Iterator[Hold]:
        """Lock the folder for a run; see `Sink.hold`."""
        with ExitStack() as stack:
            changed = _folders_to_change(self._root)
            try:
                hold = stack.enter_context(hold_folder(self._root, run))
            except OSError as error:
                raise _explained(f"Locking {self._lock}", error) from error
            with self._state:
                self._unsynced_folders |= changed
            self._is_held = True
            try:
                yield hold
            finally:
                self._is_held = False

    def holder(self) -> Holder | None:
        """Who has locked the folder; see `Sink.holder`."""
        try:
            return folder_holder(self._root)
        except OSError as error:
            raise _explained(f"Reading {self._lock}", error) from error

    def _is_aid(self, path: Path) -> bool:
        return path.name.startswith(TEMPORARY) or path == self._lock

    def _check_folder(self) -> None:
        # Without the folder that it holds, a run would go on in a new one, where nothing is of
        # what it has made; under a mount point, in another place.
        if self._is_held and not os.path.lexists(self._lock):
            raise FileNotFoundError(errno.ENOENT, f"{self._lock} is no longer there")

    @contextmanager
    def _replacing(self, key: str, *, durable: bool) -> Iterator[BinaryIO]:
        path = self._path(key)
        # The process number is taken here: a forked child shares the token and the count.
        unique = f"{os.getpid()}-{self._token}-{next(self._numbers)}"
        temporary = path.with_name(TEMPORARY + unique)
        try:
            self._check_folder()
            with self._create(temporary) as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise _explained(f"Writing {path}", error) from error
        finally:
            with suppress(OSError):
                temporary.unlink()
        with self._state:
            self._unsynced_folders.add(path.parent)
            if not durable:
                self._unsynced_files.add(path)
        if durable:
            self.flush()

    def _create(self, path: Path) -> BinaryIO:
        # More than once, because `delete` in another thread may remove the empty folder.
        for _ in range(_CREATE_ATTEMPTS):
            with suppress(FileNotFoundError):
                return path.open("xb")
            self._make_folder(path.parent)
        return path.open("xb")

    def _make_folder(self, folder: Path) -> None:
        self._check_folder()
        changed = _folders_to_change(folder)
        # It may come and go meanwhile, by other threads; what is wrong for good, the next
        # attempt to make the file says.
        with suppress(FileExistsError, FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
        with self._state:
            self._unsynced_folders |= changed

    def _path(self, key: str) -> Path:
        check_key(key, self.location)
        return self._root / key

    def _walk(self, prefix: str) -> Iterator[Path]:
        top = self._root / prefix.rpartition("/")[0]
        try:
            for folder, _, names in os.walk(top, onerror=_raise_unless_absent):
                yield from (Path(folder, name) for name in names)
        except OSError as error:
            raise _explained(f"Listing {top}", error) from error


def open_sink(out: str | Path | Location, access: Access | None = None) -> Sink:
    """Sink for the place that a user names as OUT: a folder, or a prefix in an Azure container.

    Parameters
    ----------
    out : str, Path or Location
        See `das_gpu.locations.parse_location`.
    access : Access, optional
        Credential and patience, for a container.

    Raises
    ------
    UsageError
        When das-gpu cannot write to such a place, or the credential cannot be found; no secret
        is repeated.
    DestinationError
        When something else than a folder is there, or no such container.
    AccessDeniedError
        When the container's server refuses the credential.
    """
    location = out if isinstance(out, Location) else (access or Access()).locate(out)
    if location.is_local:
        return LocalSink(location.path)
    if location.scheme != "azure":
        raise UsageError(
            f"The output is {location}, but das-gpu only reads from such stores. It writes to "
            f"folders and to containers of Azure Blob Storage: give one of these, and copy it."
        )
    from das_gpu.blobsink import BlobSink

    return BlobSink(location, access)


def _folders_to_change(folder: Path) -> set[Path]:
    """Folders that something new will be in when a folder is made, and those above it."""
    return {path.parent for path in (folder, *folder.parents) if not path.exists()}


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    try:
        _sync(folder)
    except (FileNotFoundError, PermissionError):
        # Removed since, or writable without being readable: then it cannot be forced.
        return
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _explained(attempt: str, error: OSError) -> DestinationError:
    advice = _ADVICE.get(error.errno or 0, _ADVICE_ELSE)
    return DestinationError(f"{attempt} failed: {error.strerror or error}. {advice}")
