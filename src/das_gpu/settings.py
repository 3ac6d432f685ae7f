"""The tables of a recipe: every setting with its unit, its default and its limits.

The defaults written here are those of the ``continuous`` preset. A wrong value or an unknown
setting is a `RecipeError` with one line per problem, naming the setting, the value and the
limit.
"""

from __future__ import annotations

import difflib
import math
import reprlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from das_gpu.instants import utc_ns, utc_text
from das_gpu.positions import canonical

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


@dataclass(frozen=True)
class Scale:
    """Where the grey scale of an image begins and ends.

    Attributes
    ----------
    kind : {"percentile", "tile", "fixed"}
        Percentiles of the tile's live samples, their minimum and maximum, or given levels.
    low, high : float
        Percentiles from 0 to 100 (0 and 100 for ``tile``); for ``fixed`` dB in the recipe's units.
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
    gauge_length_m: Annotated[
        float | None, Field(gt=0, description="m, for strain; from attributes when not set")
    ] = None
    refractive_index: Annotated[
        float | None,
        Field(ge=1, le=2, description="for strain; from attributes when not set, else 1.4682"),
    ] = None
    wavelength_m: Annotated[
        float | None,
        Field(
            ge=1e-7,
            le=1e-5,
            description="m, light's, for strain; from attributes when not set, else 1.55012e-6",
        ),
    ] = None
    positions: Annotated[
        str | None,
        BeforeValidator(canonical),
        Field(description="text of a CSV: channel, longitude, latitude and perhaps distance_m"),
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
        BeforeValidator(utc_text),
        Field(description="UTC, first sample at or after it; the record's start when not set"),
    ] = None
    stop: Annotated[
        str | None,
        BeforeValidator(utc_text),
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
        return None if self.start is None else utc_ns(self.start)

    @property
    def stop_ns(self) -> int | None:
        """`stop` in nanoseconds since 1970-01-01 UTC."""
        return None if self.stop is None else utc_ns(self.stop)


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
        Field(description="percentile:P, tile (min-max) or fixed:LOW:HIGH in dB"),
    ] = "percentile:0.5"
    units: Annotated[
        Literal["counts", "strain"],
        Field(description="counts: levels are dB re 1e-6 count; strain: dB re 1 strain"),
    ] = "counts"
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
    def db_reference(self) -> str:
        """What 0 dB is."""
        return {"counts": "1e-6 count", "strain": "1 strain"}[self.units]

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


STRAIN_KEYS = (
    ("archive", "gauge_length_m"),
    ("archive", "refractive_index"),
    ("archive", "wavelength_m"),
    ("image", "units"),
)
"""Settings without a say in counts."""


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
