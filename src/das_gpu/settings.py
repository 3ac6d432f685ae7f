"""The tables of a recipe: every setting with its unit, its default and its limits.

The defaults written here are those of the ``continuous`` preset. A wrong value or an unknown
setting is a `RecipeError` with one line per problem, naming the setting, the value and the
limit.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationError,
    model_validator,
)

from das_gpu.errors import RecipeError

STRICT = ConfigDict(
    frozen=True,
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    defer_build=True,  # a third of this module's import time, which `--help` need not pay
)
"""Nothing is guessed: 2.0 is no count, True is no number, text is no number."""

_LIMITS = {
    "extra_forbidden": "is not a setting",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "model_type": "must be a table of settings",
    "string_too_short": "must not be empty; leave the setting out instead",
    "string_type": "must be text",
    "value_error": "{error}",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True)
class Scale:
    """Where the grey scale of an image begins and ends.

    Attributes
    ----------
    kind : {"percentile", "tile", "fixed"}
        Percentiles of the tile's live samples, their minimum and maximum, or given levels.
    low, high : float
        Percentiles from 0 to 100 (0 and 100 for ``tile``); for ``fixed`` dB re 1e-6 count.
    """

    kind: Literal["percentile", "tile", "fixed"]
    low: float
    high: float

    @classmethod
    def parse(cls, text: object) -> Scale:
        """Read ``percentile:P``, ``tile`` or ``fixed:LOW:HIGH``.

        Raises
        ------
        ValueError
            When the text is none of these or its numbers are out of range.
        """
        kind, *numbers = text.split(":") if isinstance(text, str) else [""]
        try:
            values = [float(number) for number in numbers]
        except ValueError:
            values = [math.nan]
        if kind == "tile" and not values:
            return cls("tile", 0.0, 100.0)
        if kind == "percentile" and len(values) == 1 and 0 <= values[0] < 50:
            # The 0th and the 100th percentile are the minimum and the maximum.
            return cls("percentile" if values[0] else "tile", abs(values[0]), 100.0 - values[0])
        if kind == "fixed" and len(values) == 2 and -math.inf < values[0] < values[1] < math.inf:
            return cls("fixed", values[0] + 0.0, values[1] + 0.0)
        raise ValueError(
            "must be 'percentile:P' with P at least 0 and less than 50, 'tile', or "
            "'fixed:LOW:HIGH' in dB with LOW less than HIGH"
        )

    def __str__(self) -> str:
        """Write the text that `parse` reads back, one text for one scale."""
        if self.kind == "tile":
            return "tile"
        levels = (self.low,) if self.kind == "percentile" else (self.low, self.high)
        return ":".join([self.kind, *(repr(level).removesuffix(".0") for level in levels)])


def _utc_ns(text: str) -> int:
    """Nanoseconds since 1970 of an ISO 8601 text; without an offset it is UTC."""
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


def _utc_text(value: object) -> object:
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
    seconds, fraction = divmod(_utc_ns(value), 10**9)
    decimals = f".{fraction:09d}".rstrip("0").rstrip(".")
    return f"{(_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()}{decimals}Z"


def _halo(value: object) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= sys.float_info.max:
        raise ValueError("must be 'auto' or a finite number of seconds, at least 0")
    return abs(float(number))  # one zero, not two


class Settings(BaseModel):
    """One table of a recipe. Making one raises `RecipeError`, never pydantic's own error."""

    model_config = STRICT
    table: ClassVar[str]

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, Mapping):
            data = {
                key: value.item() if isinstance(value, np.number | np.bool_ | np.str_) else value
                for key, value in data.items()
            }
        try:
            settings = handler(data)
        except ValidationError as error:
            raise RecipeError("\n".join(problems(error, cls.table))) from error
        conflicts = settings.conflicts()
        if conflicts:
            raise RecipeError("\n".join(conflicts))
        return settings

    def conflicts(self) -> list[str]:
        """Say, a line each, which of the values exclude each other."""
        return []


class ArchiveSettings(Settings):
    """How to read the archive: variable names, and what its metadata does not say."""

    table = "archive"

    data: Annotated[
        str | None, Field(min_length=1, description="variable of the samples; found when not set")
    ] = None
    time: Annotated[
        str | None, Field(min_length=1, description="variable of the times; found when not set")
    ] = None
    sampling_rate_hz: Annotated[
        float | None,
        Field(gt=0, description="Hz; from attributes or the time axis when not set"),
    ] = None
    channel_spacing_m: Annotated[
        float | None, Field(gt=0, description="m; from attributes when not set, else 2.0419")
    ] = None


class SelectionSettings(Settings):
    """Which channels and samples, in archive indices and UTC; ranges are half-open."""

    table = "selection"

    channel_start: Annotated[int, Field(ge=0, description="first channel")] = 0
    channel_stop: Annotated[
        int | None, Field(ge=1, description="channel to stop before; the end when not set")
    ] = None
    channel_step: Annotated[int, Field(ge=1, description="one channel in so many is kept")] = 5
    channel_reduce: Annotated[
        Literal["stride", "mean"],
        Field(description="stride: the first channel of each group; mean: the group's mean"),
    ] = "stride"
    start: Annotated[
        str | None,
        BeforeValidator(_utc_text),
        Field(description="UTC, first sample at or after it; the record's start when not set"),
    ] = None
    stop: Annotated[
        str | None,
        BeforeValidator(_utc_text),
        Field(description="UTC, samples before it; the record's end when not set"),
    ] = None
    time_step: Annotated[int, Field(ge=1, description="one sample in so many is kept")] = 2

    def conflicts(self) -> list[str]:
        """Refuse ranges that are empty or descend."""
        found = []
        if self.channel_stop is not None and self.channel_stop <= self.channel_start:
            found.append(
                f"selection.channel_stop is {self.channel_stop}: it must be more than "
                f"selection.channel_start, {self.channel_start}."
            )
        if self.start_ns is not None and self.stop_ns is not None and self.stop_ns <= self.start_ns:
            found.append(
                f"selection.stop is {self.stop}: it must be later than selection.start, "
                f"{self.start}."
            )
        return found

    @property
    def start_ns(self) -> int | None:
        """`start` in nanoseconds since 1970-01-01 UTC."""
        return None if self.start is None else _utc_ns(self.start)

    @property
    def stop_ns(self) -> int | None:
        """`stop` in nanoseconds since 1970-01-01 UTC."""
        return None if self.stop is None else _utc_ns(self.stop)


class FilterSettings(Settings):
    """The Butterworth band-pass, how it is applied and where samples are dropped."""

    table = "filter"

    low_hz: Annotated[float, Field(gt=0, description="Hz, lower corner")] = 14.0
    high_hz: Annotated[float, Field(gt=0, description="Hz, upper corner")] = 35.0
    order: Annotated[int, Field(ge=1, le=16, description="of the Butterworth design, 1-16")] = 8
    method: Annotated[
        Literal["spectral", "iir"],
        Field(description="spectral: by FFT; iir: second-order sections, forwards and back"),
    ] = "spectral"
    decimate: Annotated[
        Literal["after", "before"],
        Field(description="samples are dropped after filtering, or before it (which aliases)"),
    ] = "after"
    halo_s: Annotated[
        float | Literal["auto"],
        PlainValidator(_halo),
        Field(description="s read on either side of a tile; auto: until the filter is silent"),
    ] = "auto"

    def conflicts(self) -> list[str]:
        """Refuse a band that is empty or descends."""
        if self.low_hz < self.high_hz:
            return []
        limit = f"it must be less than filter.high_hz, {self.high_hz:g}."
        return [f"filter.low_hz is {self.low_hz:g}: {limit}"]


class MedianSettings(Settings):
    """Which median is subtracted."""

    table = "median"

    kind: Annotated[
        Literal["auto", "channel", "time", "none"],
        Field(description="channel: common mode; time: per channel; auto: channel from 5 km on"),
    ] = "auto"


class TileSettings(Settings):
    """The grid of tiles, one image each."""

    table = "tile"

    seconds: Annotated[float, Field(gt=0, description="s, duration of a tile")] = 15.0
    bands: Annotated[int, Field(ge=1, description="tiles side by side along the cable")] = 10
    overlap_time: Annotated[
        float, Field(ge=0, le=0.9, description="share that the next tile repeats, 0-0.9")
    ] = 0.0
    overlap_channels: Annotated[
        float, Field(ge=0, le=0.9, description="the same along the cable, by more bands")
    ] = 0.0


class ImageSettings(Settings):
    """How a tile becomes a file."""

    table = "image"

    format: Annotated[
        Literal["png", "png16", "npy"],
        Field(description="8 bits, 16 bits, or float32 dB before grey scale and resizing"),
    ] = "png"
    scale: Annotated[
        str,
        BeforeValidator(lambda text: str(Scale.parse(text))),
        Field(description="percentile:P, tile (min-max) or fixed:LOW:HIGH in dB re 1e-6 count"),
    ] = "percentile:0.5"
    resize: Annotated[
        Literal["float", "pillow"],
        Field(description="pillow: cut to 8 bits first, then resized by the installed Pillow"),
    ] = "float"
    height: Annotated[int, Field(ge=1, le=8192, description="pixels, 1-8192")] = 256
    width: Annotated[int, Field(ge=1, le=8192, description="pixels, 1-8192")] = 256
    orientation: Annotated[
        Literal["time-down", "time-right"],
        Field(description="time-down: rows are times, columns are channels"),
    ] = "time-down"
    names: Annotated[
        Literal["plain", "notebook"], Field(description="notebook: with colons and inner dots")
    ] = "plain"

    @property
    def parsed_scale(self) -> Scale:
        """`scale` as numbers."""
        return Scale.parse(self.scale)


class ComputeSettings(Settings):
    """The arithmetic."""

    table = "compute"

    dtype: Annotated[
        Literal["float32", "float64"], Field(description="precision of the samples")
    ] = "float32"


TABLES: dict[str, type[Settings]] = {
    kind.table: kind
    for kind in (
        ArchiveSettings,
        SelectionSettings,
        FilterSettings,
        MedianSettings,
        TileSettings,
        ImageSettings,
        ComputeSettings,
    )
}

KEYS = tuple(f"{name}.{key}" for name, kind in TABLES.items() for key in kind.model_fields)
"""Every setting, as ``table.key``."""


def problems(error: ValidationError, table: str = "") -> Iterator[str]:
    """Put each of pydantic's findings as a line that names setting, value and limit."""
    for found in error.errors(include_url=False):
        name = ".".join(part for part in (table, *map(str, found["loc"])) if part)
        value, kind = found["input"], found["type"]
        limit = _LIMITS.get(kind, "must be another value").format(**found.get("ctx", {}))
        if kind != "extra_forbidden":
            yield f"{name} is {reprlib.repr(value)}: it {limit}."
        elif isinstance(value, Mapping) and value:
            yield from (_unknown(f"{name}.{key}", limit) for key in value)
        else:
            yield _unknown(name, limit)


def _unknown(name: str, limit: str) -> str:
    """Name the known setting that a wrong one most likely means."""

    def closeness(known: str) -> tuple[float, bool]:
        pairs = ((name, known), (name.rpartition(".")[2], known.rpartition(".")[2]))
        ratios = [difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs]
        return max(ratios), known.startswith(name)

    return f"{name} {limit}; the nearest is {max((*KEYS, *TABLES, 'preset'), key=closeness)}."
