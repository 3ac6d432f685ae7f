"""What a group's arrays are: the recording, its axes, its rate and spacing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from das_gpu.chunks import StoredArray
from das_gpu.errors import SourceError, UsageError
from das_gpu.group import Group, plain_name
from das_gpu.model import Optics
from das_gpu.settings import ArchiveSettings

# Names are compared as `plain_name` makes them; earlier ones win.
_DATA = ("rawdata", "data", "das", "dasdata", "strainrate", "strain", "phase", "velocity")
_TIME = ("rawdatatime", "time", "times", "timestamps", "timestamp", "datetime", "t")
_COUNT = ("rawdatasamplecount", "samplecount")
_QUALITY = (("gpsstatus", 1), ("gpbits", 256))
_DISTANCE = ("distance", "distances")
_TIME_DIMS = ("time", "t", "sample", "samples", "rawdatatime")
_DISTANCE_DIMS = ("distance", "channel", "channels", "x", "space", "locus", "loci")
_RATE = (
    *("samplingratehz", "samplingrate", "samplingfrequencyhz", "samplingfrequency"),
    *("samplerate", "outputdatarate", "fs", "pulserate"),
)
_SPACING = ("channelspacingm", "channelspacing", "spatialsamplinginterval", "dx")
_GAUGE_LENGTH = ("gaugelengthm", "gaugelength")
_REFRACTIVE_INDEX = (
    *("fibrerefractiveindex", "fiberrefractiveindex", "refractiveindex"),
    *("groupindex", "grouprefractiveindex"),
)
_WAVELENGTH = (
    *("laserwavelength(nm)", "laserwavelengthnm", "laserwavelengthm", "laserwavelength"),
    *("wavelengthnm", "wavelengthm", "wavelength"),
)

_QUANTITY = ("units", "unit", "dataunits", "dataunit", "rawdataunits", "rawdataunit", "datatype")
_PHYSICAL = re.compile(
    r"strain|velocity|displacement|radians?\b|\brad\b|\bm(et(er|re)s?)?\s*(/|per)\s*\w"
    r"|\bm\s*s\^?-1|^(1\s*/\s*s|m(et(er|re)s?)?)$"
)
_COUNTS = re.compile(r"count|2\s*(\^|\*\*)\s*16|65536|digit")  # "rad * 2PI/2^16" is a count
_DTYPES = ("int16", "int32", "float32", "float64")
_ASSUMED_SPACING_M = 2.0419  # the OOI RAPID 2021 cable, the archive this tool was made for
_ASSUMED_INDEX, _ASSUMED_WAVELENGTH_M = 1.4682, 1550.12e-9  # its fibre, and its interrogator
_MAX_CHUNK_BYTES = 1 << 31  # Blosc's own limit
_RATE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Labelled:
    """What has attributes, and the name by which it is spoken of."""

    name: str
    attributes: Mapping[str, Any]


_Holder: TypeAlias = StoredArray | Group | Labelled


@dataclass(frozen=True, slots=True)
class Recording:
    """The arrays of a group that make up a recording.

    Attributes
    ----------
    data, time : StoredArray
    time_axis : {0, 1}
        Which stored axis of the data is time.
    count : StoredArray or None
        The interrogator's running sample counter.
    quality : tuple of (StoredArray, int)
        Status words and the factor to weigh them with: GpsStatus (1), GpBits (256).
    """

    data: StoredArray
    time: StoredArray
    time_axis: int
    count: StoredArray | None
    quality: tuple[tuple[StoredArray, int], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(channel, sample), whatever the stored order."""
        return self.data.shape[1 - self.time_axis], self.data.shape[self.time_axis]

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """One stored chunk, (channel, sample)."""
        return self.data.chunk_shape[1 - self.time_axis], self.data.chunk_shape[self.time_axis]

    @property
    def dims(self) -> tuple[str, str]:
        """The stored order."""
        return ("distance", "time") if self.time_axis == 1 else ("time", "distance")


def find_recording(group: Group, data: str | None = None, time: str | None = None) -> Recording:
    """Find the recording's arrays by the names asked for, else by known names and shapes.

    Raises
    ------
    UsageError
        A name that was asked for does not exist.
    SourceError
        There is no recording, no time axis that fits it, or more than one choice.
    """
    samples = _find_data(group, data)
    times, axis = _find_time(group, time, samples)
    n_samples = samples.shape[axis]
    status = [(group.named((name,), n_samples), factor) for name, factor in _QUALITY]
    return Recording(
        data=samples,
        time=times,
        time_axis=axis,
        count=group.named(_COUNT, n_samples),
        quality=tuple((found, factor) for found, factor in status if found is not None),
    )


def _find_data(group: Group, wanted: str | None) -> StoredArray:
    """Find the samples' variable: asked for, known by name, or the only one possible."""
    numeric = [one for one in group.arrays.values() if one.dtype.name in _DTYPES]
    if wanted is not None:
        data = _wanted(group, "data", wanted)
    elif known := group.matching(_DATA):
        data = next((one for one in known if one.ndim == 2), known[0])
    else:
        possible = [one for one in numeric if one.ndim == 2]
        if len(possible) != 1:
            found = "no" if not possible else "more than one"
            raise SourceError(
                f"{group.location} has {found} array that could be the recording. {group} Name "
                "the right one with archive.data."
            )
        data = possible[0]
    if data.ndim != 2:
        raise SourceError(
            f"{data.name} of {group.location} has {data.ndim} dimension(s), shape {data.shape}; "
            "a recording has two, distance and time. Name another array with archive.data."
        )
    if data.dtype.name not in _DTYPES:
        raise SourceError(
            f"{data.name} of {group.location} has dtype {data.dtype}; samples must be "
            f"{', '.join(_DTYPES)}. Name another array with archive.data, or convert it."
        )
    if 0 in data.shape:
        raise SourceError(
            f"{data.name} of {group.location} is empty: its shape is {data.shape}. "
            "Name another array with archive.data."
        )
    if data.chunk_nbytes > _MAX_CHUNK_BYTES:
        raise SourceError(
            f"One chunk of {data.name} of {group.location}, {data.chunk_shape}, takes "
            f"{data.chunk_nbytes} bytes; at most {_MAX_CHUNK_BYTES} are read at once. "
            "Write the archive with smaller chunks."
        )
    return data


def _wanted(group: Group, setting: str, name: str) -> StoredArray:
    if name not in group.arrays:
        raise UsageError(
            f"archive.{setting} names {name}, which {group.location} does not have. {group}"
        )
    return group.arrays[name]


def _find_time(group: Group, wanted: str | None, data: StoredArray) -> tuple[StoredArray, int]:
    """Find the time variable, and which axis of the data is time."""
    if wanted is not None:
        possible = [_wanted(group, "time", wanted)]
    else:
        possible = [one for one in group.matching(_TIME) if one.ndim == 1]
    fitting = [one for one in possible if one.ndim == 1 and one.shape[0] in data.shape]
    if not possible:
        raise SourceError(
            f"{group.location} has no time variable for {data.name}. {group} Name the "
            "one-dimensional array of sample times with archive.time."
        )
    time = (fitting or possible)[0]
    axis = _time_axis(data, time)
    if time.shape != (data.shape[axis],):
        raise SourceError(
            f"{time.name} of {group.location} has shape {time.shape}, but {data.name} {data.shape} "
            f"has {data.shape[axis]} samples. Name the right time variable with archive.time."
        )
    return time, axis


def _time_axis(data: StoredArray, time: StoredArray) -> int:
    """Which axis is time: by name, else by length, else the second."""
    own = {*_TIME_DIMS, plain_name(time.name), *map(plain_name, time.dims)}
    is_time = [plain_name(dim) in own for dim in data.dims]
    if sum(is_time) == 1:
        return is_time.index(True)
    is_distance = [plain_name(dim) in _DISTANCE_DIMS for dim in data.dims]
    if sum(is_distance) == 1:
        return 1 - is_distance.index(True)
    return 0 if time.shape == data.shape[:1] != data.shape[1:] else 1


def sampling_rate(
    group: Group, recording: Recording, asked_hz: float | None, measured_hz: float | None
) -> tuple[float, str]:
    """Give the sampling rate in Hz and its origin.

    Parameters
    ----------
    group, recording
        Their attributes are looked through.
    asked_hz : float or None
        The recipe's; it wins over attributes, and these over what was measured.
    measured_hz : float or None
        At which the time axis advances; None when it does not.

    Raises
    ------
    UsageError, SourceError
        The recipe's rate, or the attributes', differs from the measured one by more than 1 %;
        or there is none of the three.
    """
    time = recording.time
    holders = (recording.data, group, time)
    found = _attribute(_RATE, holders)
    if asked_hz is not None:
        rate_hz, origin = asked_hz, "recipe"
    elif found:
        rate_hz, origin = found
    elif step := _attribute(("timestep",), holders):
        rate_hz, origin = 1 / step[0], step[1]
    elif measured_hz is not None:
        return measured_hz, f"measured from {time.name}"
    else:
        raise SourceError(
            f"{group.location} does not say its sampling rate and {time.name} does not advance "
            "in its first chunk. Give archive.sampling_rate_hz."
        )
    if measured_hz is not None and abs(rate_hz - measured_hz) > _RATE_TOLERANCE * measured_hz:
        by_recipe = origin == "recipe"
        said = "archive.sampling_rate_hz of the recipe is" if by_recipe else f"The {origin} says"
        advice = "Leave it out" if by_recipe else f"Give archive.sampling_rate_hz = {measured_hz:g}"
        message = (
            f"{said} {rate_hz:g} Hz, but {time.name} of {group.location} advances at "
            f"{measured_hz:g} Hz. {advice} to go by the time axis; if that is wrong, name another "
            "one with archive.time."
        )
        raise UsageError(message) if by_recipe else SourceError(message)
    return rate_hz, origin


def channel_spacing(
    group: Group,
    recording: Recording,
    asked_m: float | None,
    distances_m: tuple[float, ...] | None,
) -> tuple[float, str]:
    """Give the channel spacing in metres and its origin: recipe, attribute, coordinate, guess."""
    if asked_m is not None:
        return asked_m, "recipe"
    if found := _attribute(_SPACING, (recording.data, group)):
        return found
    if distances_m and distances_m[0] != distances_m[-1]:
        spacing_m = abs(distances_m[-1] - distances_m[0]) / (len(distances_m) - 1)
        return spacing_m, "the distance coordinate"
    return _ASSUMED_SPACING_M, "assumed"


def optics(holders: Sequence[_Holder], settings: ArchiveSettings) -> Optics | None:
    """Give what makes strain of counts; None when nobody says the gauge length.

    Each value is the recipe's, else an attribute's under a name that OptaSense or ProdML use,
    else, but for the gauge length, that of the OOI RAPID 2021 recording.
    """

    def told(
        asked: float | None, names: Iterable[str], assumed: float | None
    ) -> tuple[float, str] | None:
        if asked is not None:
            return asked, "recipe"
        found = _attribute(names, holders)
        return found or (None if assumed is None else (assumed, "assumed"))

    gauge = told(settings.gauge_length_m, _GAUGE_LENGTH, None)
    index = told(settings.refractive_index, _REFRACTIVE_INDEX, _ASSUMED_INDEX)
    wavelength = told(settings.wavelength_m, _WAVELENGTH, _ASSUMED_WAVELENGTH_M)
    if gauge is None or index is None or wavelength is None:
        return None
    length = wavelength[0]
    # Light has between 100 nm and 10 um: the number tells its unit.
    length_m = length if length < 1e-4 else length * (1e-6 if length < 100 else 1e-9)
    return Optics(gauge[0], index[0], length_m, gauge[1], index[1], wavelength[1])


def quantity(data: StoredArray | Labelled, holders: Sequence[_Holder]) -> str:
    """Say what samples are by attributes or by their name, and by which; empty for counts.

    Examples
    --------
    >>> data = Labelled("RawData", {"units": "strain/s"})
    >>> quantity(data, [data])
    "'strain/s', by attribute units of RawData"
    >>> quantity(data, [Labelled("Raw[0]", {"RawDataUnit": "rad * 2PI/2^16"})])
    ''
    """
    for holder in holders:
        by_name = {plain_name(key): (key, value) for key, value in holder.attributes.items()}
        for key, value in (by_name[name] for name in _QUANTITY if name in by_name):
            text = str(value).strip()
            if _COUNTS.search(text.lower()):
                return ""
            if _PHYSICAL.search(text.lower()):
                return f"{text[:40]!r}, by attribute {key} of {_name(holder)}"
    named = plain_name(data.name) in ("strain", "strainrate", "velocity")
    return f"{data.name}, by their name" if named else ""


def stored_distances_m(group: Group, recording: Recording) -> tuple[float, ...] | None:
    """Read the source's own distances along the cable; None when it has none.

    Raises
    ------
    SourceError
        The coordinate is not in metres or kilometres, or has holes.
    """
    variable = group.named(_DISTANCE, recording.shape[0], "iuf")
    if variable is None:
        return None
    values = variable[:].astype(np.float64)
    unit = plain_name(str(variable.attributes.get("units", "m")))
    factors = dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1.0) | {"km": 1000.0}
    if unit not in factors or not np.isfinite(values).all():
        raise SourceError(
            f"The coordinate {variable.name} of {variable.location} is not a distance in metres: "
            f"its units are {unit!r}, its values {values.min()} to {values.max()}. Give "
            "archive.channel_spacing_m to go without it."
        )
    return tuple((values * factors[unit]).tolist())


def _attribute(names: Iterable[str], holders: Iterable[_Holder]) -> tuple[float, str] | None:
    """Find the first positive number among attributes, and say where it stands."""
    for holder in holders:
        by_name = {plain_name(key): (key, value) for key, value in holder.attributes.items()}
        for key, value in (by_name[name] for name in names if name in by_name):
            number = _positive(value)
            if number is not None:
                return number, f"attribute {key} of {_name(holder)}"
    return None


def _name(holder: _Holder) -> str:
    return "the group" if isinstance(holder, Group) else holder.name


def _positive(value: Any) -> float | None:
    """Take a positive number from a number, a list of one, or text such as ``"200 Hz"``."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*[a-zA-Z]*\s*", value)
        value = match[1] if match else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None
