"""``run.json``: what a run is, and whether another command is the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any, Protocol

from das_gpu.errors import DestinationError, IdentityError

RUN_KEY = "run.json"
# Parts of run.json that may change between two runs that continue each other.
_ENVIRONMENT = ("das_gpu", "versions", "machine")

_Json = Mapping[str, Any]


class Store(Protocol):
    """What the ledger asks of the place it writes to; `das_gpu.sink.Sink` says what each does."""

    @property
    def location(self) -> str:
        """Where it is, for a person."""

    @property
    def writers(self) -> int:
        """How many requests are useful at once."""

    def put(self, key: str, data: bytes) -> None:
        """Store a file whole and durably."""

    def flush(self) -> None:
        """Make what was put and deleted before durable."""

    def open_writer(self, key: str) -> AbstractContextManager[IO[bytes]]:
        """Store a file piece by piece, whole or not at all."""

    def get(self, key: str) -> bytes | None:
        """Content of a file, or None."""

    def list(self, prefix: str = "", *, limit: int | None = None) -> Sequence[str]:
        """Keys that begin with ``prefix``."""

    def delete(self, key: str) -> None:
        """Remove a file if it is there."""

    def sweep(self) -> None:
        """Remove leftovers of killed writers."""


def check_key(key: str, place: str) -> None:
    """Raise DestinationError when a key could lead out of the run's own place."""
    parts = key.split("/")
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise DestinationError(
            f"{key!r} does not name a file inside the output folder {place}. If it stands in a "
            f"file of this folder, that file was changed by hand: restore it, or choose another "
            f"output folder."
        )


def as_json(value: _Json) -> dict[str, Any]:
    """Give the value as it will be read back: tuples are lists, for comparison."""
    plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    return plain


def write_run(sink: Store, run: _Json) -> None:
    """Write ``run.json`` for people and programs."""
    sink.put(RUN_KEY, json.dumps(run, indent=2, ensure_ascii=False).encode() + b"\n")


def read_run(sink: Store) -> dict[str, Any] | None:
    """Read ``run.json``; None when there is none, DestinationError when it is not a run's."""
    data = sink.get(RUN_KEY)
    if data is None:
        return None
    try:
        run: dict[str, Any] = dict(json.loads(data))
        run["identity"] = dict(run["identity"])
    except (KeyError, TypeError, ValueError) as error:
        raise DestinationError(
            f"{RUN_KEY} in {sink.location} is not a das-gpu run's, or is damaged: {error!r}. "
            f"Choose another output folder, or remove this one yourself if nobody needs it."
        ) from error
    return run


def require_run(sink: Store) -> dict[str, Any]:
    """Read ``run.json`` of a folder that is to hold a run.

    Raises
    ------
    DestinationError
        When there is none, or it cannot be understood.
    """
    run = read_run(sink)
    if run is None:
        raise DestinationError(
            f"There is no run in {sink.location}: it has no {RUN_KEY}. Give the folder, or the "
            f"container and prefix, that `das-gpu extract` was given as OUT."
        )
    return run


def number_in(sink: Store, part: object, name: str) -> int:
    """Whole number of this name in a part of ``run.json``.

    Raises
    ------
    DestinationError
        When there is none.
    """
    value = part.get(name) if isinstance(part, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DestinationError(
            f"{RUN_KEY} in {sink.location} does not say what its {name} is: it was written by "
            f"another version of das-gpu, or changed by hand. Run the command again that began "
            f"this run, with --overwrite to start over if it is refused."
        )
    return value


def read_identity(sink: Store) -> dict[str, Any] | None:
    """Identity of the run that the folder holds, or None when it holds none.

    A rerun takes from it what its command leaves open, before it plans.

    Raises
    ------
    DestinationError
        When ``run.json`` is there and cannot be understood.
    """
    run = read_run(sink)
    return None if run is None else run["identity"]


def refuse_differences(sink: Store, earlier: _Json, current: _Json) -> None:
    """Raise IdentityError, naming every difference, when the identities are not equal."""
    changes = _differences(earlier, current)
    if changes:
        named = "; ".join(f"{key}: was {was}, is {now}" for key, was, now in changes)
        raise IdentityError(
            f"{sink.location} holds a run that this one cannot continue, because their images "
            f"would not belong together: {named}. Give --overwrite to delete that run and "
            f"start over, or choose another output folder."
        )


def note_environment(sink: Store, earlier: dict[str, Any], current: _Json) -> list[str]:
    """Append to ``continued`` what has changed since the last note; say it."""
    notes: list[dict[str, Any]] = earlier.get("continued", [])
    latest = {part: earlier.get(part) for part in _ENVIRONMENT}
    for note in notes:
        latest |= note
    now = {part: current.get(part) for part in _ENVIRONMENT}
    changes = _differences(latest, now)
    if changes:
        note = {part: now[part] for part in _ENVIRONMENT if now[part] != latest[part]}
        write_run(sink, earlier | {"continued": [*notes, note]})
    return [
        f"This run was begun with {key} {was} and continues with {new}; small differences "
        f"between tiles are possible."
        for key, was, new in changes
    ]


def _differences(earlier: _Json, current: _Json) -> list[tuple[str, str, str]]:
    """Dotted key, earlier and current value of each leaf that differs, in order."""
    was, now = dict(_leaves(earlier)), dict(_leaves(current))
    return [
        (key, _shown(was, key), _shown(now, key))
        for key in was | now
        if key not in was or key not in now or was[key] != now[key]
    ]


def _shown(leaves: _Json, key: str) -> str:
    return json.dumps(leaves[key], ensure_ascii=False) if key in leaves else "absent"


def _leaves(value: _Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        if isinstance(part, Mapping) and part:
            yield from _leaves(part, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", part
