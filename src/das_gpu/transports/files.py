"""Reading from a folder of this machine."""

from __future__ import annotations

import errno
import os

from das_gpu.answers import Errand
from das_gpu.errors import AccessDeniedError, SourceError, SourceNotFoundError
from das_gpu.patience import Transient, Watch
from das_gpu.transports import Absent, Changed, CheckSize, Part, Stamp, scratch

_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)
"""What a network drive answers when the server or the line is away for a while."""


class Files:
    """A folder, as a `das_gpu.transports.Transport`.

    Raises
    ------
    SourceNotFoundError
        There is no such folder.
    SourceError
        It is a file.
    """

    def __init__(self, errand: Errand) -> None:
        self._errand = errand
        self._root = errand.location.path
        if self._root.is_dir():
            return
        if self._root.exists():
            raise SourceError(
                f"{self._root} is a file, not a folder. A Zarr archive is a folder: unpack it, or "
                "give the folder that holds .zgroup or zarr.json. A recording in HDF5 files can be "
                "read where it is after das-gpu index."
            )
        raise SourceNotFoundError(
            f"There is no folder {self._root}. Check the spelling and that the disk is mounted."
        )

    def get(
        self,
        key: str,
        check: CheckSize,
        watch: Watch,  # noqa: ARG002 - the operating system ends what takes too long
        part: Part | None = None,
        version: str | None = None,
    ) -> memoryview:
        """Read a file into this thread's memory."""
        try:
            with (self._root / key).open("rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                if version is not None and version != _version(found):
                    raise Changed
                first, last, _ = slice(*part or (0, None)).indices(found.st_size)
                size = max(0, last - first)
                check(size)
                body = scratch(size)
                file.seek(first)
                filled = 0
                while filled < size and (count := file.readinto(body[filled:])):
                    filled += count
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Absent from error
        except OSError as error:
            raise self._failed(key, error) from error
        if filled != size:
            said = f"it shrank from {size} to {filled} bytes while it was read"
            failed = self._errand.failed(key, SourceError, "the file is not whole", said)
            raise Transient(failed, answered=True)
        return body

    def stamp(self, key: str) -> Stamp:
        """Size and version of a file."""
        try:
            found = (self._root / key).stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Absent from error
        except OSError as error:
            raise self._failed(key, error) from error
        return Stamp(found.st_size, _version(found))

    def children(self) -> tuple[list[str], list[str]]:
        """Names of folders and files in the folder."""
        try:
            with os.scandir(self._root) as entries:
                found = sorted((entry.name, entry.is_dir()) for entry in entries)
        except OSError as error:
            raise self._failed("", error) from error
        return [name for name, folder in found if folder], [n for n, folder in found if not folder]

    def _failed(self, key: str, error: OSError) -> Exception:
        said = error.strerror or str(error)
        if isinstance(error, PermissionError):
            return self._errand.failed(key, AccessDeniedError, "access is denied", said)
        failed = self._errand.failed(key, SourceError, "the file cannot be read", said)
        return Transient(failed) if error.errno in _PASSING else failed


def _version(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_mtime_ns}"
