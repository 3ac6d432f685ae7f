"""Stored time values -> nanoseconds since 1970-01-01 UTC, their text, and where they jump.

Units and reference times are those of the CF conventions, section 4.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.errors import ChunkCorruptError, SourceError

_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_NS |= {"D": 86400 * 10**9}
_UNITS = {
    "D": ("d", "day", "days"),
    "h": ("h", "hr", "hour", "hours"),
    "m": ("min", "minute", "minutes"),
    "s": ("s", "sec", "secs", "second", "seconds"),
    "ms": ("ms", "msec", "millisecond", "milliseconds"),
    "us": ("us", "µs", "usec", "microsecond", "microseconds"),
    "ns": ("ns", "nsec", "nanosecond", "nanoseconds"),
}
_UNIT_NS = {word: _NS[unit] for unit, words in _UNITS.items() for word in words}
_SINCE = re.compile(
    r"(?P<unit>\S+)(?:\s+since\s+(?P<y>\d{1,4})-(?P<mo>\d{1,2})-(?P<d>\d{1,2})"
    r"(?:[T\s]+(?P<h>\d{1,2}):(?P<mi>\d{1,2})(?::(?P<s>\d{1,2})(?:\.(?P<f>\d{1,9}))?)?)?"
    r"\s*(?P<zone>Z|UTC|GMT|[+-]\d{1,2}:?(?:\d{2})?)?)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class TimeScale:
    """How stored time values become nanoseconds since 1970-01-01 UTC.

    ``ns = value * unit_ns + epoch_ns``, exactly for integers.
    """

    name: str
    unit_ns: int
    epoch_ns: int

    @classmethod
    def of(cls, name: str, dtype: np.dtype[Any], attributes: Mapping[str, Any]) -> TimeScale:
        """Read the scale of a variable from its dtype or its ``units`` attribute.

        Raises
        ------
        SourceError
            Neither says one, or the calendar is not the usual one.

        Examples
        --------
        >>> TimeScale.of("t", np.dtype("f8"), {"units": "seconds since 1970-01-02"}).epoch_ns
        86400000000000
        """
        if dtype.kind == "M":
            unit, count = np.datetime_data(dtype)
            if unit in _NS:
                return cls(name, _NS[unit] * count, 0)
        text = str(attributes.get("units") or ("microseconds" if dtype.kind in "iu" else ""))
        match = _SINCE.fullmatch(text.strip())
        calendar = str(attributes.get("calendar", "standard")).lower()
        known = calendar in ("standard", "gregorian", "proleptic_gregorian")
        unit_ns = _UNIT_NS.get(match["unit"].lower()) if match else None
        if dtype.kind not in "iuf" or match is None or unit_ns is None or not known:
            raise SourceError(
                f"The times in {name} cannot be understood: dtype {dtype}, units "
                f"{text.strip()!r}, calendar {calendar!r}. Expected are integers (microseconds "
                "since 1970), datetime64, or numbers with a 'units' attribute such as 'seconds "
                "since 2021-11-01T00:00:00'."
            )
        return cls(name, unit_ns, _epoch_ns(match, name))

    def to_ns(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Convert stored values.

        Raises
        ------
        ChunkCorruptError
            A value is not a time (NaN, NaT) or lies beyond the years 1678 to 2261.
        """
        if values.dtype.kind == "M":
            values = values.view(np.int64)
        if values.size == 0:
            return np.empty(0, np.int64)
        for value in (values.min(), values.max()):
            ns = value * float(self.unit_ns) + self.epoch_ns
            # The strict bound also catches NaT, which is stored as the lowest integer.
            if not abs(ns) < 2.0**63 - 1024 or value == np.iinfo(np.int64).min:
                raise ChunkCorruptError(
                    f"{self.name} holds {value}, which is no time in units of {self.unit_ns} ns. "
                    "Integer times are taken for microseconds since 1970 unless the variable's "
                    "'units' attribute says otherwise, as 'nanoseconds since 1970-01-01' does."
                )
        if values.dtype.kind != "f":
            exact: NDArray[np.int64] = values.astype(np.int64) * self.unit_ns + self.epoch_ns
            return exact
        whole = np.floor(values.astype(np.float64))
        part = np.rint((values - whole) * self.unit_ns).astype(np.int64)
        nearest: NDArray[np.int64] = whole.astype(np.int64) * self.unit_ns + part + self.epoch_ns
        return nearest


def iso_time(time_ns: int) -> str:
    """Write a time as ISO 8601 UTC, without trailing zeros.

    Examples
    --------
    >>> iso_time(1635808274834000000)
    '2021-11-01T23:11:14.834Z'
    """
    text = str(np.datetime64(time_ns, "ns"))
    return text.rstrip("0").rstrip(".") + "Z"


def _epoch_ns(match: re.Match[str], name: str) -> int:
    """Nanoseconds from 1970 to the reference time of a ``units`` attribute."""
    if match["y"] is None:
        return 0
    date = f"{match['y']:>04}-{match['mo']:>02}-{match['d']:>02}"
    try:
        midnight = int(np.datetime64(date, "D").astype(np.int64)) * _NS["D"]
    except ValueError as exc:
        raise SourceError(f"The units of {name} name a date that isn't one, {date}.") from exc
    hours, minutes, seconds = (int(match[part] or 0) for part in ("h", "mi", "s"))
    fraction = int((match["f"] or "").ljust(9, "0"))
    zone = re.fullmatch(r"([+-])(\d{1,2}):?(\d{2})?", match["zone"] or "")
    offset = int(zone[1] + "1") * (int(zone[2]) * 60 + int(zone[3] or 0)) if zone else 0
    return midnight + ((hours * 60 + minutes - offset) * 60 + seconds) * _NS["s"] + fraction


def jumps_of(values: NDArray[np.int64], period: float) -> NDArray[np.intp]:
    """Places of the values before which there is a step that is not about one period.

    Off by more than half of it, or backwards.
    """
    found: NDArray[np.intp] = 1 + np.flatnonzero(np.abs(np.diff(values) - period) > period / 2)
    return found
