"""The manifest as one table, for programs that read CSV or Parquet: ``manifest.*``.

Columns are a record's fields, in their order, one line for each delivered tile, as in
``metadata.jsonl``. Neither file is called ``metadata``: of several of that name Hugging Face's
loader would take none. Lines are written as segments come, so that a whole night's never are in
memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields
from importlib.util import find_spec
from typing import IO, Any, Literal, Protocol, get_args

import numpy as np

from das_gpu.errors import UsageError
from das_gpu.hashed import HashedFile
from das_gpu.keys import MANIFEST_KEYS
from das_gpu.model import OPTIONAL_FIELDS, TileRecord
from das_gpu.runfile import Store
from das_gpu.segmentfile import Row, file_of, place_of

Format = Literal["parquet", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)

_ROW_GROUP = 16_384
"""Lines that are in memory at a time, 10 MB of them."""
_DIGEST = "das_gpu.sha256"


class Table(Protocol):
    """A table that is being written."""

    def write(self, rows: Sequence[Row]) -> None:
        """Add a segment's delivered tiles, in any order."""

    def finish(self, sha256: str) -> None:
        """Write what is left, and of which ``metadata.jsonl`` (its hash) this is the table."""


def require(formats: Collection[str]) -> tuple[Format, ...]:
    """Formats that can be written here, each once.

    Raises
    ------
    UsageError
        For an unknown format, or one whose library is not installed.
    """
    for name in formats:
        if name not in FORMATS:
            raise UsageError(
                f"A manifest cannot be written as {name!r}: ask for {' or '.join(FORMATS)}."
            )
    if "parquet" in formats and find_spec("pyarrow") is None:
        raise UsageError(
            "manifest.parquet is written by pyarrow, which is not installed: "
            "pip install 'das-gpu[parquet]', or ask for a manifest as csv."
        )
    return tuple(name for name in FORMATS if name in formats)


def kept(sink: Store, asked: Collection[str] = ()) -> tuple[Format, ...]:
    """Formats that were asked for, and those that are there: a manifest is never left behind.

    Raises
    ------
    UsageError
        As by `require`.
    """
    there = {name for name in FORMATS if sink.get(MANIFEST_KEYS[name]) is not None}
    return require({*asked, *there})


@contextmanager
def tables(sink: Store, formats: Collection[Format]) -> Iterator[list[Table]]:
    """Write tables of these formats; they are there after the block, whole."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                _ROUTES[name](stack.enter_context(sink.open_writer(MANIFEST_KEYS[name])))
            )
            for name in formats
        ]


def columns(row: Mapping[str, object] | None) -> dict[str, str]:
    """Columns of the table that a row belongs to: name -> type, as `TileRecord` declares it.

    A run has images or arrays; without a row it has neither, and the column is the images'. What
    only some runs have is a column of theirs.
    """
    absent = {"array_file" if row is None or "file_name" in row else "file_name"}
    absent |= set(OPTIONAL_FIELDS) - set(row or ())
    return {each.name: str(each.type) for each in fields(TileRecord) if each.name not in absent}


def delivered(rows: Sequence[Row]) -> list[Row]:
    """Rows of delivered tiles, by time, then channel."""
    return sorted((row for row in rows if file_of(row)), key=place_of)


class CsvTable:
    """Lines of text: times as in the records, nothing where there is no value.

    Parameters
    ----------
    write : callable
        Takes the next bytes.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._put = write
        self._columns: list[str] | None = None

    def write(self, rows: Sequence[Row]) -> None:
        """Add a segment; see `Table.write`."""
        wanted = delivered(rows)
        if not wanted:
            return
        text = io.StringIO()
        if self._columns is None:
            self._begin(text, wanted[0])
        writer = csv.DictWriter(
            text, self._columns or (), extrasaction="ignore", lineterminator="\n"
        )
        writer.writerows(wanted)
        self._put(text.getvalue().encode())

    def finish(self, sha256: str) -> None:  # noqa: ARG002 - text has no place for it
        """Write the names of the columns, where there was no row; see `Table.finish`."""
        if self._columns is None:
            text = io.StringIO()
            self._begin(text, None)
            self._put(text.getvalue().encode())

    def _begin(self, text: io.StringIO, row: Row | None) -> None:
        self._columns = list(columns(row))
        csv.writer(text, lineterminator="\n").writerow(self._columns)


class ParquetTable:
    """Typed columns, by pyarrow: times are timestamps in UTC, and there are nulls.

    Parameters
    ----------
    file : binary file
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = HashedFile(file)
        self._waiting: list[Row] = []
        self._writer: Any = None

    def write(self, rows: Sequence[Row]) -> None:
        """Add a segment; see `Table.write`."""
        self._waiting += delivered(rows)
        if len(self._waiting) >= _ROW_GROUP:
            self._write_group()

    def finish(self, sha256: str) -> None:
        """Write the rest and the footer; see `Table.finish`."""
        self._write_group()
        self._writer.add_key_value_metadata({_DIGEST: f"{sha256}-{self._file.sha256}"})
        self._writer.close()

    def abandon(self) -> None:
        """Let the writer go; the file is nobody's."""
        if self._writer is not None and self._writer.is_open:
            self._writer.close()

    def _write_group(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows, self._waiting = self._waiting, []
        kinds = columns(rows[0] if rows else None)
        if self._writer is None:
            schema = pa.schema([(name, _arrow_type(name, kind)) for name, kind in kinds.items()])
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        elif not rows:
            return
        schema = self._writer.schema
        arrays = [
            pa.array(_values(name, rows), type=schema.field(name).type) for name in schema.names
        ]
        # Not `write_batch`, which keeps some of it back until the footer is written.
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


@contextmanager
def _csv(file: IO[bytes]) -> Iterator[CsvTable]:
    yield CsvTable(file.write)


@contextmanager
def _parquet(file: IO[bytes]) -> Iterator[ParquetTable]:
    table = ParquetTable(file)
    try:
        yield table
    finally:
        table.abandon()


_ROUTES: dict[Format, Callable[[IO[bytes]], AbstractContextManager[Table]]] = {
    "csv": _csv,
    "parquet": _parquet,
}


def parquet_is_of(data: bytes, sha256: str) -> bool:
    """Whether this is, undamaged, the Parquet table of the ``metadata.jsonl`` with that hash.

    Its footer tells, which holds the hashes of both. Pyarrow is not asked: whoever verifies a run
    need not have it.
    """
    # Rows, footer, the footer's length in four bytes, and "PAR1":
    # https://parquet.apache.org/docs/file-format/
    end = len(data) - 8
    footer = end - int.from_bytes(data[end : end + 4], "little")
    if not (data.endswith(b"PAR1") and 0 < footer < end):
        return False
    rows = hashlib.sha256(memoryview(data)[:footer]).hexdigest()
    return f"{sha256}-{rows}".encode() in data[footer:end]


def _arrow_type(name: str, kind: str) -> Any:
    import pyarrow as pa

    if name.endswith("_time"):
        return pa.timestamp("ns", tz="UTC")
    kinds = {"int": pa.int64(), "float": pa.float64()}
    return kinds.get(kind.partition(" ")[0], pa.string())


def _values(name: str, rows: Sequence[Row]) -> Any:
    values = [row.get(name) for row in rows]
    if name.endswith("_time"):
        return np.array([str(text).removesuffix("Z") for text in values], dtype="datetime64[ns]")
    return values
