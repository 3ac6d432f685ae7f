"""Where a cable's channels lie: a table of listed channels, and what is between them.

The table is CSV with the columns ``channel``, ``longitude``, ``latitude`` (degrees, WGS 84) and,
if it is to say that too, ``distance_m`` along the cable. Other columns are left alone. Channels
are the archive's indices; they ascend, and not each of them need be listed.
"""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from das_gpu.errors import RecipeError, UsageError

MOST_BYTES = 8 << 20
MOST_ROWS = 200_000
_COLUMNS = ("channel", "longitude", "latitude", "distance_m")
_REQUIRED = _COLUMNS[:3]
_LIMITS = {"longitude": (-180.0, 360.0), "latitude": (-90.0, 90.0)}
_HALF_TURN, _TURN = 180.0, 360.0


@dataclass(frozen=True)
class Positions:
    """Positions of some channels; of those between them by linear interpolation.

    Attributes
    ----------
    channels : tuple of int
        At least two, ascending.
    longitudes, latitudes : tuple of float
        Degrees; longitudes as they were given, across the 180th meridian too.
    distances_m : tuple of float or None
        Along the cable, ascending or descending; None when the table does not say.
    """

    channels: tuple[int, ...]
    longitudes: tuple[float, ...]
    latitudes: tuple[float, ...]
    distances_m: tuple[float, ...] | None = None

    @property
    def spacing_m(self) -> float | None:
        """Distance between neighbouring channels, on average; None when not known."""
        if self.distances_m is None:
            return None
        span_m = abs(self.distances_m[-1] - self.distances_m[0])
        return span_m / (self.channels[-1] - self.channels[0])

    def refuse_outside(self, first: int, last: int) -> None:
        """Raise UsageError when a channel from ``first`` to ``last`` lies beyond the table."""
        low, high = self.channels[0], self.channels[-1]
        below = f"{first} to {min(last, low - 1)}" if first < low else ""
        above = f"{max(first, high + 1)} to {last}" if last > high else ""
        if below or above:
            raise UsageError(
                f"The positions are known of channels {low} to {high}, and channels "
                f"{' and '.join(filter(None, (below, above)))} are selected besides. List them "
                f"too, or select others with --channels."
            )

    def distance_m(self, channel: float) -> float | None:
        """Distance of a channel along the cable; None when the table does not say."""
        return None if self.distances_m is None else self._between(self.distances_m, channel)

    def longitude(self, channel: float) -> float:
        """Longitude of a channel, -180 to 180 degrees."""
        degrees = self._between(self._unwound, channel)
        return (degrees + _HALF_TURN) % _TURN - _HALF_TURN if abs(degrees) > _HALF_TURN else degrees

    def latitude(self, channel: float) -> float:
        """Latitude of a channel, degrees."""
        return self._between(self.latitudes, channel)

    def text(self) -> str:
        """The table as CSV, one text for one table."""
        columns = [self.channels, self.longitudes, self.latitudes]
        if self.distances_m is not None:
            columns.append(self.distances_m)
        rows = (",".join(map(repr, row)) for row in zip(*columns, strict=True))
        return "\n".join([",".join(_COLUMNS[: len(columns)]), *rows])

    @cached_property
    def _unwound(self) -> tuple[float, ...]:
        """Longitudes without a jump at the 180th meridian."""
        found = [self.longitudes[0]]
        for degrees in self.longitudes[1:]:
            found.append(degrees - _TURN * round((degrees - found[-1]) / _TURN))
        return tuple(found)

    def _between(self, values: tuple[float, ...], channel: float) -> float:
        """Value at a channel; the line through the last two goes on beyond them."""
        last = len(self.channels) - 2
        n = min(max(bisect_right(self.channels, channel) - 1, 0), last)
        first, second = self.channels[n], self.channels[n + 1]
        part = (channel - first) / (second - first)
        return values[n] * (1 - part) + values[n + 1] * part


def parse(text: str) -> Positions:
    """Read a table.

    Raises
    ------
    ValueError
        When it is none; the text goes on from "it", and names the line.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"must have at most {MOST_BYTES} characters")
    lines = _lines(text)
    number, header = next(lines, (1, []))
    names = [name.strip().lower() for name in header]
    missing = [name for name in _REQUIRED if name not in names]
    odd = [name for name in names if name.startswith("dist") and name not in _COLUMNS]
    if missing or odd or len(set(names)) < len(names):
        raise ValueError(
            f"must begin with a line of column names, separated by commas and each there once: "
            f"{', '.join(_REQUIRED)} and, if distances are given, {_COLUMNS[3]}; line {number} "
            f"is {','.join(header)[:80]!r}"
        )
    columns = [name for name in _COLUMNS if name in names]
    places = [names.index(name) for name in columns]
    rows: list[tuple[float, ...]] = []
    for number, fields in lines:
        if len(fields) != len(names):
            raise ValueError(
                f"must have {len(names)} values in each line, as its first line has names; "
                f"line {number} has {len(fields)}"
            )
        if len(rows) == MOST_ROWS:
            raise ValueError(f"must list at most {MOST_ROWS} channels; line {number} is one more")
        pairs = zip(columns, places, strict=True)
        rows.append(tuple(_value(name, fields[place], number) for name, place in pairs))
        _refuse_disorder(rows, number)
    if len(rows) < 2:
        raise ValueError(f"must list at least two channels, and lists {len(rows)}")
    channels, longitudes, latitudes, *distances = zip(*rows, strict=True)
    return Positions(
        tuple(map(int, channels)), longitudes, latitudes, distances[0] if distances else None
    )


def _refuse_disorder(rows: Sequence[tuple[float, ...]], line: int) -> None:
    """Refuse a last row that does not go on as the rows before it."""
    if len(rows) < 2:
        return
    last, new = rows[-2], rows[-1]
    if new[0] <= last[0]:
        raise ValueError(
            f"must list channels in ascending order; line {line} has {new[0]:.0f} after "
            f"{last[0]:.0f}"
        )
    if new[3:] and (rows[1][3] - rows[0][3]) * (new[3] - last[3]) <= 0:
        raise ValueError(
            f"must have distances that go on in one direction; on line {line}, {new[3]:g} m comes "
            f"after {last[3]:g} m"
        )


def canonical(value: object) -> object:
    """One text for one table; what is no text goes on to the type check.

    Raises
    ------
    ValueError
        As `parse`.
    """
    return parse(value).text() if isinstance(value, str) else value


def read(path: Path) -> str:
    """Text of a file of positions, in the form of `Positions.text`.

    Raises
    ------
    RecipeError
        When the file cannot be read or is no such table; the line is named.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        return parse(data.decode("utf-8-sig")).text()
    except OSError as error:
        why = error.strerror or str(error)
        raise RecipeError(
            f"The positions file {path} cannot be read: {why}. Give the path of a CSV file."
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"The positions file {path} is not text in UTF-8: {error}. Save it as CSV in UTF-8."
        ) from error
    except ValueError as error:
        raise RecipeError(f"The positions file {path} cannot be used: it {error}.") from error


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line that is neither empty nor a remark."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"must be CSV; line {reader.line_num} is not: {error}") from error
        if any(field.strip() for field in fields) and not fields[0].startswith("#"):
            yield reader.line_num, fields


def _value(name: str, text: str, line: int) -> float:
    """Value of a column: a whole number for ``channel``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    low, high = _LIMITS.get(name, (-math.inf, math.inf))
    if name == "channel":
        if not (0 <= value < 2**53 and value.is_integer()):
            raise ValueError(
                f"must have whole numbers as channels; line {line} has {text.strip()[:40]!r}"
            )
    elif not (math.isfinite(value) and low <= value <= high):
        limits = f" from {low:g} to {high:g}" if name in _LIMITS else ""
        raise ValueError(
            f"must have numbers{limits} as {name}; line {line} has {text.strip()[:40]!r}"
        )
    return value
