"""Ways to reach a store: files, obstore, and Azure's own client library.

A transport makes one attempt at one request; trying again is `das_gpu.store`'s part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from das_gpu.patience import Watch

CheckSize = Callable[[int], None]
"""Told an object's size before its body is read; raises to refuse it."""

Part = tuple[int, int | None]
"""First and last-but-one byte wanted: a negative start counts from the end, None is the end."""

_held = threading.local()


class Absent(Exception):  # noqa: N818 - an answer of a store, seen by no user
    """The store has no such object."""


class Changed(Exception):  # noqa: N818 - an answer of a store, seen by no user
    """The object is no longer the version that was asked for."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an object is now: its size in bytes, and a text that changes when it is written."""

    size: int
    version: str


class Transport(Protocol):
    """One way to reach one store. Safe to call from several threads.

    Every method raises :class:`Absent`, :class:`das_gpu.patience.Transient`, or an error of
    `das_gpu.errors` that trying again would not cure.
    """

    def get(
        self,
        key: str,
        check: CheckSize,
        watch: Watch,
        part: Part | None = None,
        version: str | None = None,
    ) -> memoryview:
        """Bytes of an object, in memory that this thread's next `get` may use again.

        Raises :class:`Changed` when it is not of the ``version`` that was asked for.
        """

    def stamp(self, key: str) -> Stamp:
        """Size and version of an object."""

    def children(self) -> tuple[list[str], list[str]]:
        """Names of folders and of objects directly below the location."""


def scratch(size: int) -> memoryview:
    """Memory of ``size`` bytes that belongs to this thread until it asks again.

    Fresh memory for every object would cost more, in page faults, than the copy itself.
    """
    if len(getattr(_held, "memory", b"")) < size:
        _held.memory = None  # freed before its successor is made
        _held.memory = bytearray(size + size // 32)
    return memoryview(_held.memory)[:size]
