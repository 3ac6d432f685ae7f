"""What is written about one segment: its tiles' lines, and why it is in quarantine.

A segment's file is read back with mistrust: what a power cut, a full disk or a person has
made of it counts as no file at all.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from itertools import product
from typing import Any

from das_gpu.keys import segment_key
from das_gpu.model import PLACE_FIELDS, Status, TileRecord
from das_gpu.redaction import redact

LOST = (Status.MISSING, Status.CORRUPT, Status.ERROR)
"""What a rerun tries again. A gap in the recording is a fact, and not among them."""

Row = dict[str, Any]
"""A tile's line, as it was read."""

_ALL_FIELDS = frozenset(field.name for field in fields(TileRecord))
_RECORD_SHAPES = tuple(
    _ALL_FIELDS.difference(other, *absent)
    for other in (("array_file",), ("file_name",))
    for absent in product(((), ("db_reference",)), ((), PLACE_FIELDS))
)
_STATUS = re.compile(rb'"status": "(\w+)", ')
_STATUSES = {status.value.encode(): status.value for status in Status}
_DELIVERED = {status.value: status.delivered for status in Status}


def segment_data(segment: int, records: Sequence[TileRecord]) -> tuple[bytes, list[Row]]:
    """Content of a segment's file, and its rows as they will be read back.

    Raises
    ------
    ValueError
        When the records could not be read back: none at all, another segment's, an unknown
        status, a file where none is delivered or the reverse, a level that is not finite.
    """
    data = b"".join(_line(record.as_json()) for record in records)
    rows = parse_segment(data, segment)
    if rows is None:
        raise ValueError(
            f"The {len(records)} records given for segment {segment} do not make a readable "
            f"{segment_key(segment)}: it takes at least one, all of that segment, each with a "
            f"known status, and with a file exactly when that status is delivered."
        )
    return data, rows


def parse_segment(data: bytes | None, segment: int) -> list[Row] | None:
    """Rows of a segment's file; None when it is absent, torn or otherwise unsound."""
    # A segment has at least one tile: an empty file is what a power cut leaves.
    if not data or not data.endswith(b"\n"):
        return None
    lines = data.splitlines()
    try:
        # As one array: twice as fast as line by line.
        rows: list[Row] = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        return None
    whole = len(rows) == len(lines) and all(_sound(row, segment) for row in rows)
    return rows if whole else None


def count_statuses(data: bytes | None) -> Counter[str] | None:
    """Tiles of each status in a segment's file, several times as fast as by its rows.

    None when it takes a closer look, which `parse_segment` has: the file is absent or torn, or
    nobody's own writing.
    """
    if not data or not data.endswith(b"\n"):
        return None
    # Inside of a text, a quote and a line's end would be escaped.
    counts = Counter(_STATUS.findall(data))
    lines = {data.count(b"\n"), data.count(b"}\n"), data.count(b"\n{") + 1, counts.total()}
    if len(lines) > 1 or not data.startswith(b"{") or not counts.keys() <= _STATUSES.keys():
        return None
    return Counter({_STATUSES[status]: n for status, n in counts.items()})


def file_of(row: Row) -> str | None:
    """File that the tile's row vouches for."""
    key: str | None = row["file_name"] if "file_name" in row else row["array_file"]
    return key


def place_of(row: Row) -> tuple[int, int]:
    """First sample and first channel, which tell a tile from all others of its run."""
    return row["sample_start"], row["channel_start"]


def record_of(row: Row) -> TileRecord:
    """The record that a row was written from."""
    return TileRecord(**{"file_name": None, **row})


def any_lost(rows: Sequence[Row]) -> bool:
    """Whether a rerun would try one of these tiles again."""
    return any(row["status"] in LOST for row in rows)


def manifest_lines(data: bytes, rows: Sequence[Row]) -> tuple[list[bytes], list[bytes]]:
    """Lines of a segment in ``metadata.jsonl`` and in ``undelivered.jsonl``, sorted by place.

    Segments are whole tile rows in order of time: sorting each sorts all.
    """
    lines = sorted(
        zip(rows, data.splitlines(keepends=True), strict=True), key=lambda pair: place_of(pair[0])
    )
    delivered = [_metadata_line(line) for row, line in lines if file_of(row)]
    return delivered, [line for row, line in lines if not file_of(row)]


def marker_data(segment: int, reason: str) -> bytes:
    """Content of the file that puts a segment in quarantine, from now on."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    marker = {"segment": segment, "reason": redact(reason), "failed_at": now}
    return json.dumps(marker, indent=2, ensure_ascii=False).encode() + b"\n"


def marker_reason(data: bytes | None) -> str:
    """Why a segment is in quarantine; a file that cannot be read keeps it there all the same."""
    try:
        return str(json.loads(data or b"")["reason"])
    except (KeyError, TypeError, ValueError):
        return "not known: the file that says so cannot be read"


def _line(row: Mapping[str, object]) -> bytes:
    # JSON has no NaN: readers of the manifest (Arrow, pandas) would fail on the file.
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _metadata_line(line: bytes) -> bytes:
    """Write an empty text for a missing reason.

    Arrow-based readers (Hugging Face `datasets` among them) infer each column's type from
    the first megabytes: a column of nulls with the first text far below them is an error.
    """
    # The line is our own writing, where no text can contain these bytes: its quotes would
    # be escaped. Writing the row anew would cost more than all the rest.
    return line.replace(b'"reason": null', b'"reason": ""')


def _sound(row: object, segment: int) -> bool:
    if not isinstance(row, dict) or row.keys() not in _RECORD_SHAPES:
        return False
    status = row["status"]
    return (
        row["segment"] == segment
        and isinstance(status, str)
        and isinstance(row["sample_start"], int)
        and isinstance(row["channel_start"], int)
        and isinstance(row["dead_channels"], int)
        and isinstance(row["quality"], int)
        and _DELIVERED.get(status) is isinstance(file_of(row), str)
    )
