"""Every change that this process makes below a folder, as points at which it may die.

`install` wraps the functions of ``os`` and ``io.open`` through which files are made, written,
forced to the disk, renamed and removed. Each call is an operation with two points, *before* and
*after*; a write has a third, *half*, when half of its bytes have left the process. Operations
of several threads take place one after another, so that their order is that of the points.

An audit hook watches for what went past the wrappers; such operations are named ``missed``.
Standard library only: worker processes load this file before anything else.
"""

# pathlib calls what is wrapped here, so it is not used.
# ruff: noqa: PTH100, PTH110, PTH112, PTH115, PTH118
from __future__ import annotations

import builtins
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_AUDITED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
_AUDITED |= {"os.link", "os.symlink", "os.truncate"}


@dataclass(frozen=True)
class Point:
    """A moment in an operation.

    ``op`` is create, write, truncate, fsync, rename, unlink, mkdir, rmdir or missed; ``phase``
    before, half or after; ``path`` and, of a rename, ``target`` are relative to the folder.
    """

    op: str
    phase: str
    path: str
    target: str = ""

    def __str__(self) -> str:
        return f"{self.op} {self.phase} {self.path} -> {self.target}"


@dataclass(frozen=True)
class Change:
    """A finished operation, with the file's content where it is known then.

    Besides the operations of `Point` there is ``data``: what a closed file holds.
    """

    op: str
    path: str
    target: str = ""
    content: bytes = b""


def die() -> None:
    """End this process as SIGKILL does, at once and with all its threads."""
    os.kill(os.getpid(), signal.SIGKILL)
    while True:  # the signal may take a moment to arrive
        signal.pause()


def install(
    root: str,
    meet: Callable[[Point], None],
    note: Callable[[Change], None] | None = None,
) -> None:
    """Watch what happens below ``root``, for the rest of this process's life.

    Parameters
    ----------
    root : str
        Absolute, without symbolic links; need not be there yet.
    meet : callable
        Told each point; may `die`.
    note : callable, optional
        Told each finished operation.
    """
    _Watch(root, meet, note).install()


class _Watch:
    def __init__(
        self, root: str, meet: Callable[[Point], None], note: Callable[[Change], None] | None
    ) -> None:
        self._root, self._meet, self._note = root, meet, note
        self._turn = threading.RLock()
        self._inside = threading.local()
        self._open = io.open

    def install(self) -> None:
        for name, op in (("unlink", "unlink"), ("remove", "unlink"), ("rmdir", "rmdir")):
            setattr(os, name, self._by_path(getattr(os, name), op))
        os.mkdir = self._by_path(os.mkdir, "mkdir")
        os.rename = self._renaming(os.rename)
        os.replace = self._renaming(os.replace)
        for name, op in (("fsync", "fsync"), ("fdatasync", "fsync"), ("ftruncate", "truncate")):
            setattr(os, name, self._by_descriptor(getattr(os, name), op))
        os.write = self._writing(os.write)
        os.pwrite = self._writing(os.pwrite)
        os.open = self._opening(os.open)
        io.open = builtins.open = self._opening_file
        sys.addaudithook(self._audit)

    def place(self, path: Any, folder: int | None = None) -> str | None:
        """Where a path or descriptor is below the folder; None when it is elsewhere."""
        if isinstance(path, int):
            try:
                full = os.readlink(f"/proc/self/fd/{path}").removesuffix(" (deleted)")
            except OSError:
                return None
        else:
            above = os.readlink(f"/proc/self/fd/{folder}") if folder is not None else ""
            full = os.path.abspath(os.path.join(above, os.fsdecode(path)))
        if full == self._root:
            return "."
        return full[len(self._root) + 1 :] if full.startswith(self._root + os.sep) else None

    @contextmanager
    def operation(
        self, op: str, path: str, target: str = "", holding: bool = False
    ) -> Iterator[Callable[[], None]]:
        """Meet the points around an operation; what is given is to be called in its middle."""
        with self._turn:
            self._meet(Point(op, "before", path, target))
            deep = getattr(self._inside, "deep", 0)
            self._inside.deep = deep + 1
            try:
                yield lambda: self._meet(Point(op, "half", path, target))
            finally:
                self._inside.deep = deep
            self.noted(op, path, target, holding)
            self._meet(Point(op, "after", path, target))

    def noted(self, op: str, path: str, target: str = "", holding: bool = False) -> None:
        if self._note is not None:
            self._note(Change(op, path, target, self._content(path) if holding else b""))

    def _content(self, path: str) -> bytes:
        full = os.path.join(self._root, path)
        if os.path.isdir(full):
            return b""
        try:
            with self._open(full, "rb") as file:
                return file.read()
        except OSError:
            return b""

    def _by_path(self, real: Callable[..., Any], op: str) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **named: Any) -> Any:
            place = self.place(path, named.get("dir_fd"))
            if place is None:
                return real(path, *args, **named)
            with self.operation(op, place):
                return real(path, *args, **named)

        return call

    def _renaming(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any, **named: Any) -> Any:
            old = self.place(source, named.get("src_dir_fd"))
            new = self.place(target, named.get("dst_dir_fd"))
            if old is None and new is None:
                return real(source, target, **named)
            with self.operation("rename", old or "", new or ""):
                return real(source, target, **named)

        return call

    def _by_descriptor(self, real: Callable[..., Any], op: str) -> Callable[..., Any]:
        def call(descriptor: Any, *args: Any) -> Any:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            place = self.place(number)
            if place is None:
                return real(descriptor, *args)
            with self.operation(op, place, holding=True):
                return real(descriptor, *args)

        return call

    def _writing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, data: Any, *args: int) -> int:
            place = self.place(descriptor)
            if place is None:
                return int(real(descriptor, data, *args))
            with self.operation("write", place, holding=True) as halfway:
                part = bytes(data)
                first = real(descriptor, part[: len(part) // 2], *args)
                halfway()
                rest = [at + first for at in args]
                return int(first + real(descriptor, part[first:], *rest))

        return call

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, flags: int, *args: Any, **named: Any) -> Any:
            place = self.place(path, named.get("dir_fd")) if flags & _WRITING else None
            if place is None:
                return real(path, flags, *args, **named)
            fresh = not os.path.exists(os.path.join(self._root, place))
            with self.operation("create" if fresh else "open", place):
                return real(path, flags, *args, **named)

        return call

    def _opening_file(self, file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        writing = not isinstance(file, int) and not set(mode).isdisjoint("wax+")
        place = self.place(file) if writing else None
        if place is None:
            return self._open(file, mode, *args, **named)
        fresh = not os.path.exists(os.path.join(self._root, place))
        with self.operation("create" if fresh else "open", place):
            return _File(self, place, self._open(file, mode, *args, **named))

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _AUDITED or getattr(self._inside, "deep", 0) > 0:
            return
        path = args[0]
        if event == "open" and (not args[2] & _WRITING or isinstance(path, int)):
            return
        if isinstance(path, str | bytes | os.PathLike) and (place := self.place(path)) is not None:
            self._meet(Point("missed", event, place))


class _File:
    """A file opened for writing, whose writes and end are operations."""

    def __init__(self, watch: _Watch, place: str, file: Any) -> None:
        self._watch, self._place, self._file = watch, place, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: Any) -> int:
        with self._watch.operation("write", self._place) as halfway:
            middle = len(data) // 2
            self._file.write(data[:middle])
            self._file.flush()
            halfway()
            self._file.write(data[middle:])
        return len(data)

    def writelines(self, lines: Any) -> None:
        lines = list(lines)
        if lines:
            self.write(type(lines[0])().join(lines))

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            self._watch.noted("data", self._place, holding=True)
