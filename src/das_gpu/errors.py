"""Everything das-gpu raises on purpose, and the exit code that goes with it.

::

    DasGpuError                  1   base; catch this one to catch all
    ├── UsageError               2   the request itself cannot be met
    │   ├── RecipeError          2   a recipe that is impossible or has unknown keys
    │   └── IdentityError        2   a rerun whose recipe or source differs from the folder's
    ├── SourceError              4   the archive is absent, unreadable or not an archive
    │   ├── SourceNotFoundError  4   nothing is there
    │   └── ChunkError           4   one stored chunk; becomes a tile's status
    │       ├── ChunkMissingError    the store has no such object
    │       ├── ChunkCorruptError    the object is there and cannot be decoded
    │       └── ChunkUnreadableError the store answers, but never with the whole object
    ├── AccessDeniedError        5   the store refuses these credentials
    ├── DeviceError              1   the GPU failed, or ran out of memory
    ├── WorkerError              1   a segment's worker hung, or failed unforeseen
    │   └── WorkersDiedError     1   one worker after the other died of it
    ├── ClusterError             1   no workers can be had, or the scheduler is gone
    ├── DestinationError         6   the destination cannot be written or is not ours
    │   └── DestinationInUseError 11 another run is writing there
    └── InterruptedRunError    130   stopped by the user; a rerun continues

A vendor's exception is translated where it is met, with ``raise ... from``, into one of
these. Each message names what was tried, what was found and what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class DasGpuError(Exception):
    """Base of every error that das-gpu raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(DasGpuError):
    """The request cannot be met as it was put."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is impossible, or names a setting that does not exist."""


class IdentityError(UsageError):
    """The output folder belongs to a run with another recipe or source."""


class SourceError(DasGpuError):
    """The archive cannot be read, or what is there is not an archive."""

    exit_code = 4


class SourceNotFoundError(SourceError):
    """Nothing is stored under the given location."""


class ChunkError(SourceError):
    """One stored chunk cannot be had; the tiles it touches say so, the run goes on."""


class ChunkMissingError(ChunkError):
    """The store holds no object for this chunk."""


class ChunkCorruptError(ChunkError):
    """The chunk's bytes cannot be decoded to the shape the metadata promises."""


class ChunkUnreadableError(ChunkError):
    """The store answers, but this object cannot be had, however often it is asked for."""


class AccessDeniedError(DasGpuError):
    """The store refuses the credentials, or refuses anonymous reading."""

    exit_code = 5


class DeviceError(DasGpuError):
    """The GPU failed; the segment it worked on is tried again."""


class WorkerError(DasGpuError):
    """What worked on a segment died, hung, or failed in a way that nobody foresaw."""


class WorkersDiedError(WorkerError):
    """One worker process after the other died while it worked on a segment."""


class ClusterError(DasGpuError):
    """Worker processes cannot be had, or the connection to them is gone."""


class DestinationError(DasGpuError):
    """The destination cannot be written, or holds something that is not a run."""

    exit_code = 6


class DestinationInUseError(DestinationError):
    """Another run is writing to the same destination."""

    exit_code = 11


class InterruptedRunError(DasGpuError):
    """The user stopped the run; everything finished is saved."""

    exit_code = 130
