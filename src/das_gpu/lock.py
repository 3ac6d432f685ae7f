"""One run at a time writes to a place: who holds it, and how a folder is held.

A folder is held by a lock that the operating system keeps on the file ``run.lock`` in it. The
system drops the lock with the process, however that ends, so a killed run bars nobody. What
the file says is for people: who holds the lock, and since when.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from das_gpu.errors import DestinationError, DestinationInUseError

_log = logging.getLogger(__name__)

LOCK_KEY = "run.lock"
"""Where the lock is, in a run's folder or below its prefix."""

_ATTEMPTS = 10
_PAUSE_S = 0.02
"""A moment: what `folder_holder` takes of a lock, it gives back at once."""
_HOLDER_BYTES = 4096
_BEGINNING = b'{"run": "'
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a place.

    Attributes
    ----------
    run : str
        Tells this run from any other.
    host : str
        Name of its machine; empty when it has not said who it is.
    process : int
        Its number there.
    since : str
        When it began, ISO 8601, UTC, with a Z.
    """

    run: str
    host: str
    process: int
    since: str

    @classmethod
    def here(cls, run: str) -> Holder:
        """This process, from now on."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(run, socket.gethostname(), os.getpid(), now)

    @classmethod
    def from_json(cls, data: bytes) -> Holder | None:
        """Read what `to_json` wrote; None for anything else.

        What follows it is not looked at: the end of a longer, earlier one may still be there.
        """
        try:
            found, _ = json.JSONDecoder().raw_decode(data.decode())
            run, host, process, since = (found[name] for name in cls.__slots__)
        except (KeyError, TypeError, ValueError):
            return None
        texts = isinstance(run, str) and isinstance(host, str) and isinstance(since, str)
        return cls(run, host, process, since) if texts and isinstance(process, int) else None

    def to_json(self) -> bytes:
        """Write as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @property
    def is_dead(self) -> bool:
        """Whether it was a process of this machine that is no more."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            return False
        return False

    def __str__(self) -> str:
        if not self.host:
            return "a process that has not said which it is"
        return f"process {self.process} on {self.host}, since {self.since}"


SOMEBODY = Holder("", "", 0, "")
"""A holder that nothing is known of."""


class Hold:
    """The right to write to a place, while a ``hold`` of its sink lasts.

    Attributes
    ----------
    run : str
        The run that holds it.
    lost : threading.Event
        Set when the right has gone to another run or cannot be kept. A folder's never is.
    why : str
        Then, what happened; for a person.
    """

    def __init__(self, run: str) -> None:
        self.run = run
        self.lost = threading.Event()
        self.why = ""

    def lose(self, why: str) -> None:
        """Say that the right is lost."""
        self.why = why
        self.lost.set()


def in_use(place: str, holder: Holder) -> DestinationInUseError:
    """Make the error for somebody who comes second."""
    return DestinationInUseError(
        f"Another run is writing to {place}: {holder}. Wait until it has ended "
        f"(`das-gpu status {shlex.quote(place)}` shows how far it is), or choose another output."
    )


def refuse_foreign(place: str, content: bytes) -> None:
    """Raise DestinationError when a lock's content is a file that somebody else needs.

    A power cut may leave nothing, zeros or the beginning of a holder in it.
    """
    text = content.rstrip(b"\0")
    if text[: len(_BEGINNING)] != _BEGINNING[: len(text)]:
        raise DestinationError(
            f"There is a file {LOCK_KEY} in {place} that das-gpu has not written, where it marks "
            f"that a run is at work. Move that file, or choose another output."
        )


@contextmanager
def hold_folder(root: Path, run: str) -> Iterator[Hold]:
    """Keep other runs from writing to a folder.

    The folder is made when it is not there; what was made for this and is still empty at the
    end is taken away. Processes that are spawned meanwhile do not inherit the lock; forked ones
    would.

    Parameters
    ----------
    root : Path
        The folder, absolute.
    run : str
        Tells this run from any other.

    Raises
    ------
    DestinationInUseError
        Another run holds it; it is named.
    DestinationError
        A file of that name is there that das-gpu has not written.
    OSError
        The folder cannot be made, or the file not written.
    """
    made: list[Path] = []  # the deepest first
    path = root / LOCK_KEY
    descriptor = -1
    try:
        descriptor = _locked(path, made)
        refuse_foreign(str(root), os.pread(descriptor, _HOLDER_BYTES, 0))
    except BaseException:
        if descriptor >= 0:
            os.close(descriptor)
        _remove_empty(made)
        raise
    try:
        data = Holder.here(run).to_json()
        # In one piece, and shortened afterwards: whoever reads it meanwhile finds a holder.
        os.pwrite(descriptor, data, 0)
        os.ftruncate(descriptor, len(data))
        yield Hold(run)
    finally:
        # Before the lock goes: afterwards the file might be another run's.
        with suppress(OSError):
            if _is_at(descriptor, path):
                path.unlink()
        os.close(descriptor)
        _remove_empty(made)


def folder_holder(root: Path) -> Holder | None:
    """Who holds a folder now; None when nobody does. Changes nothing.

    Parameters
    ----------
    root : Path

    Raises
    ------
    OSError
        The lock's file is there and cannot be read.
    """
    try:
        descriptor = os.open(root / LOCK_KEY, os.O_RDONLY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        for _ in range(_ATTEMPTS):
            holder = Holder.from_json(os.pread(descriptor, _HOLDER_BYTES, 0))
            if (free := _try_lock(descriptor, shared=True)) is None:
                return None if holder is None or holder.is_dead else holder
            if free:
                return None
            if holder is not None:
                return holder
            time.sleep(_PAUSE_S)
        return SOMEBODY
    finally:
        os.close(descriptor)


def _locked(path: Path, made: list[Path]) -> int:
    """Open and lock the file, and see that it is still the one at its path."""
    for attempt in range(_ATTEMPTS):
        made += [each for each in (path.parent, *path.parent.parents) if not each.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except (FileExistsError, FileNotFoundError):
            # Another run has just taken away the folder that it had made.
            if attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(_PAUSE_S)
            continue
        try:
            free = _try_lock(descriptor)
            if free is None:
                _log.warning(
                    "The file system of %s has no locks: nothing keeps a second run from writing "
                    "there at the same time. See to it that none does.",
                    path.parent,
                )
                return descriptor
            if free and _is_at(descriptor, path):
                return descriptor
            holder = Holder.from_json(os.pread(descriptor, _HOLDER_BYTES, 0))
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not free:
            time.sleep(_PAUSE_S)
    raise in_use(str(path.parent), holder or SOMEBODY)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file; False when another has it, None when it cannot be locked at all."""
    import fcntl  # which is not everywhere where archives can be read

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in _TAKEN:
            return False
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that the path names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
