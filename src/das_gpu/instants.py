"""Instants as people write them, in UTC: ISO 8601 text, dates and NumPy's times."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import numpy as np

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)


def utc_ns(text: str) -> int:
    """Nanoseconds since 1970 of an ISO 8601 text; without an offset it is UTC.

    Raises
    ------
    ValueError
        When the text is no such time, or it is out of range.
    """
    match = _ISO.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            "must be a date or a time such as '2021-11-02' or '2021-11-01T23:11:14.834Z', with "
            "at most 9 decimals; without an offset it is UTC"
        )
    day, clock, fraction, offset = match.groups()
    try:
        instant = datetime.fromisoformat(f"{day}T{clock or '00:00'}{(offset or 'Z').upper()}")
    except ValueError as error:
        raise ValueError("must be a date and a time of day that exist") from error
    seconds = (instant - _EPOCH) // timedelta(seconds=1)
    if abs(seconds) > 2**63 // 10**9 - 1:
        raise ValueError("must be between the years 1678 and 2261")
    return seconds * 10**9 + int((fraction or "0").ljust(9, "0"))


def utc_text(value: object) -> object:
    """One UTC text for one instant; what is no time goes on to the type check."""
    if isinstance(value, np.datetime64):
        coarse = np.datetime_data(value.dtype)[0] in ("Y", "M", "W")
        value = str(value.astype("datetime64[D]") if coarse else value)
    elif isinstance(value, datetime):
        value = (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
    elif isinstance(value, date):
        value = value.isoformat()
    if not isinstance(value, str):
        return value
    seconds, fraction = divmod(utc_ns(value), 10**9)
    decimals = f".{fraction:09d}".rstrip("0").rstrip(".")
    return f"{(_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()}{decimals}Z"
