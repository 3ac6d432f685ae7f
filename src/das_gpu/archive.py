"""A Zarr archive of one recording: what it holds, its time axis, a lazy view of it.

Opening reads the metadata and one or two chunks of the time axis, never a sample. Values are
taken as they are stored: no CF decoding, so that a fill value of 0 does not turn counts and
times into floats with holes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.chunks import Series, StoredArray
from das_gpu.errors import ChunkError, DasGpuError, SourceError, SourceNotFoundError, UsageError
from das_gpu.locations import Location, open_store, parse_location, translate
from das_gpu.model import Acquisition
from das_gpu.recipe import ArchiveSettings

if TYPE_CHECKING:
    import xarray as xr
    import zarr
    from obstore.store import ObjectStore

_LOG = logging.getLogger(__name__)

# Names are compared in lower case without underscores and blanks; earlier ones win.
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

# Tried one by one where a store lets nobody list it.
_USUAL_NAMES = (
    *("RawData", "RawDataTime", "RawDataSampleCount", "GpsStatus", "GpBits"),
    *("raw_data", "data", "time", "distance"),
)
_DTYPES = ("int16", "int32", "float32", "float64")
_ASSUMED_SPACING_M = 2.0419  # the OOI RAPID 2021 cable, the archive this tool was made for
_MAX_METADATA_BYTES = 64 << 20
_MAX_CHUNK_BYTES = 1 << 31  # Blosc's own limit
_METADATA_PATIENCE_S = 75.0
_RATE_TOLERANCE = 0.01
_EDGE_TOLERANCE_NS = 1_000_000_000
_NEIGHBOURS = 8

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

    def to_ns(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Convert stored values.

        Raises
        ------
        SourceError
            A value is not a time (NaN, NaT) or lies beyond the years 1678 to 2261.
        """
        if values.dtype.kind == "M":
            values = values.view(np.int64)
        if values.size == 0:
            return np.empty(0, np.int64)
        low, high = values.min(), values.max()
        for value in (low, high):
            ns = value * float(self.unit_ns) + self.epoch_ns
            # The strict bound also catches NaT, which is stored as the lowest integer.
            if not abs(ns) < 2.0**63 - 1024 or value == np.iinfo(np.int64).min:
                raise SourceError(
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


def _time_scale(time: StoredArray) -> TimeScale:
    """Read the scale from the dtype or the CF ``units`` attribute.

    Units and reference times as in the CF conventions, section 4.4.
    """
    kind = time.dtype.kind
    if kind == "M":
        unit, count = np.datetime_data(time.dtype)
        if unit in _NS:
            return TimeScale(time.name, _NS[unit] * count, 0)
    text = str(time.attributes.get("units") or ("microseconds" if kind in "iu" else "")).strip()
    match = _SINCE.fullmatch(text)
    calendar = str(time.attributes.get("calendar", "standard")).lower()
    known = calendar in ("standard", "gregorian", "proleptic_gregorian")
    if kind not in "iuf" or not match or match["unit"].lower() not in _UNIT_NS or not known:
        raise SourceError(
            f"The times in {time.name} cannot be understood: dtype {time.dtype}, units {text!r}, "
            f"calendar {calendar!r}. Expected are integers (microseconds since 1970), datetime64, "
            "or numbers with a 'units' attribute such as 'seconds since 2021-11-01T00:00:00'."
        )
    return TimeScale(time.name, _UNIT_NS[match["unit"].lower()], _epoch_ns(match, time.name))


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


class Archive:
    """An opened archive. Made by :func:`open_archive`; pickles as its location and settings.

    Attributes
    ----------
    location : Location
    acquisition : Acquisition
        Shape, rate, spacing and times; axes are (channel, sample) whatever the stored order.
    data, time : StoredArray
    count : StoredArray or None
        The interrogator's running sample counter.
    quality : tuple of (StoredArray, int)
        Status words and the factor to weigh them with: GpsStatus (1), GpBits (256).
    """

    def __init__(self, group: _Group, settings: ArchiveSettings) -> None:
        self.location = group.location
        self._settings = settings
        self.data = _find_data(group, settings.data)
        self.time, axis = _find_time(group, settings.time, self.data)
        n_samples, n_channels = self.data.shape[axis], self.data.shape[1 - axis]
        self.count: StoredArray | None = group.named(_COUNT, n_samples)
        status = [(group.named((name,), n_samples), factor) for name, factor in _QUALITY]
        self.quality: tuple[tuple[StoredArray, int], ...] = tuple(
            (found, factor) for found, factor in status if found is not None
        )
        self._scale = _time_scale(self.time)
        self._series: dict[str, Series] = {}
        self._lock = threading.Lock()

        chunks = range(self.time.grid_shape[0])
        first, head = self._known_times(chunks)
        last, tail = self._known_times(reversed(chunks))
        rate_hz, rate_origin = _sampling_rate(group, settings, self.data, self.time, head)
        distances_m = None
        if settings.channel_spacing_m is None:
            distances_m = _distances_m(group.named(_DISTANCE, n_channels, "iuf"))
        spacing_m, spacing_origin = _channel_spacing(group, settings, self.data, distances_m)
        after = n_samples - last - len(tail)
        self.acquisition = Acquisition(
            shape=(n_channels, n_samples),
            chunk_shape=(self.data.chunk_shape[1 - axis], self.data.chunk_shape[axis]),
            dims=("distance", "time") if axis == 1 else ("time", "distance"),
            dtype=self.data.dtype.name,
            sampling_rate_hz=rate_hz,
            channel_spacing_m=spacing_m,
            start_ns=int(head[0]) - round(first * 1e9 / rate_hz),
            last_ns=int(tail[-1]) + round(after * 1e9 / rate_hz),
            sampling_rate_origin=rate_origin,
            channel_spacing_origin=spacing_origin,
            distances_m=distances_m,
            codec=self.data.codec,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return open_archive, (self.location, self._settings)

    def __repr__(self) -> str:
        return f"<Archive {self.location}: {self.data.name} {self.acquisition.shape}>"

    def times_ns(self, t0: int, t1: int) -> NDArray[np.int64]:
        """Give the times of samples ``[t0, t1)`` in nanoseconds since 1970-01-01 UTC.

        Raises
        ------
        ChunkMissingError, ChunkCorruptError
            A chunk of the time axis cannot be had.
        SourceError
            A stored value is not a time.
        """
        return self._scale.to_ns(self._one(self.time).read(t0, t1))

    def aux(self, variable: StoredArray, t0: int, t1: int) -> NDArray[Any]:
        """Read samples ``[t0, t1)`` of a one-dimensional variable, in its own dtype.

        A chunk that was never written is the variable's fill value when it has one, as Zarr
        means it; for the time axis it is an error.

        Raises
        ------
        ChunkMissingError, ChunkCorruptError
            A chunk cannot be had.
        """
        return self._one(variable).read(t0, t1)

    def sample_at(self, time_ns: int) -> int:
        """Give the first sample at or after a time; ``n_samples`` when there is none.

        Found over the chunks of the time axis, by interpolation, then bisection: one chunk is
        read where the clock runs evenly, at most 5 + log2(chunks) otherwise. Where a chunk is
        lost, its times are interpolated. Where the axis runs backwards, several samples may
        answer; one of them is given.
        """
        acquisition = self.acquisition
        if time_ns <= acquisition.start_ns:
            return 0
        if time_ns > acquisition.last_ns:
            return acquisition.n_samples
        size = self.time.chunk_shape[0]
        low, high = 0, self.time.grid_shape[0] - 1
        below = (0, acquisition.start_ns)
        above = (acquisition.n_samples - 1, acquisition.last_ns)
        attempt = 0
        while low <= high:
            guess = self._guess(attempt, time_ns, below, above)
            number = (low + high) // 2 if guess is None else min(max(guess // size, low), high)
            times = self._chunk_times(number, below, above)
            if time_ns <= times[0]:
                above, high = (number * size, int(times[0])), number - 1
            elif time_ns > times[-1]:
                below, low = (number * size + len(times) - 1, int(times[-1])), number + 1
            else:
                return number * size + int(np.searchsorted(times, time_ns))
            attempt += 1
        return min(low * size, acquisition.n_samples)

    def sample_range(self, start_ns: int | None, stop_ns: int | None) -> tuple[int, int]:
        """Find the samples from the first at or after ``start_ns`` to the last before ``stop_ns``.

        Times up to a second outside the record are taken for its ends; None means an end.

        Raises
        ------
        UsageError
            The range is descending, lies outside the record or holds no sample.
        """
        acquisition = self.acquisition
        first, last = acquisition.start_ns, acquisition.last_ns
        start, stop = first if start_ns is None else start_ns, stop_ns
        asked = f"{iso_time(start)} to {'the end' if stop is None else iso_time(stop)}"
        record = f"The record runs from {iso_time(first)} to {iso_time(last)}."
        if stop is not None and stop <= start:
            raise UsageError(f"The range {asked} is empty: stop must come after start. {record}")
        slack = _EDGE_TOLERANCE_NS
        if not first - slack <= start <= last or (stop is not None and stop > last + slack):
            raise UsageError(f"The range {asked} is not inside the record. {record}")
        s0 = self.sample_at(start)
        s1 = acquisition.n_samples if stop is None else self.sample_at(stop)
        if s0 >= s1:
            raise UsageError(f"There is no sample in the range {asked}. {record}")
        return s0, s1

    def fingerprint(self) -> dict[str, Any]:
        """Tell this archive from another, without secrets, ready for JSON."""
        acquisition = self.acquisition
        return {
            "location": str(self.location),
            "data": self.data.name,
            "dims": list(acquisition.dims),
            "shape": list(acquisition.shape),
            "dtype": acquisition.dtype,
            "chunks": list(acquisition.chunk_shape),
            "codec": acquisition.codec,
            "first_time": iso_time(acquisition.start_ns),
            "last_time": iso_time(acquisition.last_ns),
        }

    @cached_property
    def dataset(self) -> xr.Dataset:
        """The recording as a lazy xarray Dataset; making it reads nothing.

        The data variable keeps its stored name, order and dtype and is backed by dask, one block
        per stored chunk. ``time`` (datetime64[ns]) is lazy too: ``sel(time=...)`` looks times up
        through :meth:`sample_at`. ``distance`` is in metres. A chunk that is missing or corrupt
        raises when it is computed; it is never filled in.
        """
        import xarray as xr

        acquisition = self.acquisition
        if acquisition.distances_m is None:
            distances = np.arange(acquisition.n_channels) * acquisition.channel_spacing_m
        else:
            distances = np.asarray(acquisition.distances_m)
        samples = self._lazy(self.data)
        dataset = xr.Dataset(
            {self.data.name: (acquisition.dims, samples, self.data.attributes)},
            coords={"distance": ("distance", distances, {"units": "m"})},
            attrs={
                "sampling_rate_hz": acquisition.sampling_rate_hz,
                "channel_spacing_m": acquisition.channel_spacing_m,
            },
        )
        index = _make_time_index(self, 0, acquisition.n_samples)
        return dataset.assign_coords(xr.Coordinates.from_xindex(index))

    @cached_property
    def lazy_times(self) -> Any:
        """The time axis as a lazy dask array of datetime64[ns]."""
        return self._lazy(_StoredTimes(self.time, self._scale))

    def _lazy(self, source: StoredArray | _StoredTimes) -> Any:
        """Wrap an array for dask, one block per stored chunk, its name telling its content."""
        import dask.array as da

        identity = json.dumps([self.fingerprint(), source.name, str(source.dtype)])
        from_array: Any = da.from_array
        return from_array(
            source,
            chunks=source.chunk_shape,
            name=f"{source.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            fancy=False,
            meta=np.empty((0,) * source.ndim, source.dtype),
        )

    def _one(self, variable: StoredArray) -> Series:
        with self._lock:
            if variable.name not in self._series:
                fill = variable.name != self.time.name
                self._series[variable.name] = Series(variable, fill_missing=fill)
            return self._series[variable.name]

    def _known_times(self, numbers: Iterable[int]) -> tuple[int, NDArray[np.int64]]:
        """First sample and times of the first readable one of a few time chunks."""
        lost: ChunkError | None = None
        size = self.time.chunk_shape[0]
        for number in islice(numbers, _NEIGHBOURS):
            start, stop = number * size, min((number + 1) * size, len(self._one(self.time)))
            try:
                return start, self.times_ns(start, stop)
            except ChunkError as exc:
                lost = lost or exc
        raise SourceError(
            f"The time axis of {self.location} cannot be read at its ends: {lost}"
        ) from lost

    def _chunk_times(
        self, number: int, below: tuple[int, int], above: tuple[int, int]
    ) -> NDArray[np.int64]:
        """Give the times of a chunk, made ascending; interpolated when the chunk is lost."""
        size = self.time.chunk_shape[0]
        start, stop = number * size, min((number + 1) * size, self.acquisition.n_samples)
        try:
            times = self.times_ns(start, stop)
        except ChunkError:
            period = (above[1] - below[1]) / max(above[0] - below[0], 1)
            samples = np.arange(start, stop) - below[0]
            times = below[1] + np.rint(samples * period).astype(np.int64)
        return np.maximum.accumulate(times)

    def _guess(
        self, attempt: int, time_ns: int, below: tuple[int, int], above: tuple[int, int]
    ) -> int | None:
        """Guess a sample: between both known ends, or from one of them at the nominal rate.

        The latter is exact when the jump lies towards the other end. None: bisect.
        """
        rate_hz = self.acquisition.sampling_rate_hz
        from_below = below[0] + (time_ns - below[1]) * rate_hz / 1e9
        from_above = above[0] - (above[1] - time_ns) * rate_hz / 1e9
        nearer_below = time_ns - below[1] <= above[1] - time_ns
        match attempt:
            case 0 | 3:
                part = (time_ns - below[1]) / max(above[1] - below[1], 1)
                return int(below[0] + part * (above[0] - below[0]))
            case 1 | 4:
                return int(from_below if nearer_below else from_above)
            case 2:
                return int(from_above if nearer_below else from_below)
        return None


def open_archive(source: str | Path | Location, settings: ArchiveSettings | None = None) -> Archive:
    """Open a Zarr archive (format 2 or 3, consolidated or not).

    Parameters
    ----------
    source : str, Path or Location
        A folder or URL; see :func:`das_gpu.locations.parse_location`.
    settings : ArchiveSettings, optional
        Names, rate and spacing where the archive does not say them or says them wrong.

    Raises
    ------
    SourceNotFoundError, SourceError
        Nothing is there, or it is not such an archive.
    AccessDeniedError
        The store refuses the credentials, or anonymous reading.
    UsageError
        The source or the settings cannot be meant.
    """
    location = source if isinstance(source, Location) else parse_location(source)
    if settings is None:
        settings = ArchiveSettings.model_validate({})
    return Archive(_read_group(location, settings), settings)


def iso_time(time_ns: int) -> str:
    """Write a time as ISO 8601 UTC, without trailing zeros: ``2021-11-01T23:11:14.834Z``."""
    text = str(np.datetime64(time_ns, "ns"))
    return text.rstrip("0").rstrip(".") + "Z"


class _StoredTimes:
    """The time axis as a lazy array of datetime64[ns]."""

    dtype = np.dtype("datetime64[ns]")
    ndim = 1

    def __init__(self, time: StoredArray, scale: TimeScale) -> None:
        self._time, self._scale, self.name = time, scale, time.name
        self.shape, self.chunk_shape = time.shape, time.chunk_shape

    def __getitem__(self, item: Any) -> NDArray[Any]:
        values = self._time[item]
        return self._scale.to_ns(values.reshape(-1)).view(self.dtype).reshape(values.shape)


@cache
def _time_index_class() -> Any:
    """Make the xarray index that looks times up in the archive.

    The class is made on demand because xarray takes most of a second to import.
    """
    import pandas as pd  # type: ignore[import-untyped]  # ships no annotations
    from xarray import Index, Variable
    from xarray.core.indexing import IndexSelResult

    def ns(label: Any) -> int:
        stamp = pd.Timestamp(label)
        return int((stamp.tz_convert(None) if stamp.tz else stamp).as_unit("ns").value)

    class TimeIndex(Index):
        """Index over samples ``[start, stop)``."""

        def __init__(self, archive: Archive, start: int, stop: int) -> None:
            self._archive, self._start, self._stop = archive, start, stop
            self._variable = Variable("time", archive.lazy_times[start:stop])

        def __reduce__(self) -> tuple[Any, ...]:
            return _make_time_index, (self._archive, self._start, self._stop)

        def __copy__(self) -> Any:
            return self

        def __deepcopy__(self, memo: Any = None) -> Any:
            return self

        def create_variables(self, variables: Any = None) -> Any:
            return dict.fromkeys(variables or ("time",), self._variable)

        def _place(self, time_ns: int) -> int:
            sample = self._archive.sample_at(time_ns)
            return min(max(sample, self._start), self._stop) - self._start

        def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> Any:
            ((name, label),) = labels.items()
            if isinstance(label, slice):
                low = 0 if label.start is None else self._place(ns(label.start))
                # As everywhere in xarray, the stop of a label slice belongs to it.
                high = None if label.stop is None else self._place(ns(label.stop) + 1)
                return IndexSelResult({name: slice(low, high, label.step)})
            if np.ndim(label) or method not in (None, "nearest") or tolerance is not None:
                raise UsageError("Select times by a slice, or one time with method='nearest'.")
            wanted = ns(label)
            after = self._start + min(self._place(wanted), self._stop - self._start - 1)
            before = max(after - 1, self._start)
            times = self._archive.times_ns(before, after + 1)
            best = int(np.argmin(np.abs(times - wanted)))
            if method is None and times[best] != wanted:
                raise KeyError(f"no sample at {iso_time(wanted)}; use method='nearest'")
            return IndexSelResult({name: before + best - self._start})

        def isel(self, indexers: Mapping[Any, Any]) -> Any:
            (part,) = indexers.values()
            if not isinstance(part, slice) or part.step not in (None, 1):
                return None
            low, high, _ = part.indices(self._stop - self._start)
            return TimeIndex(self._archive, self._start + low, self._start + max(low, high))

        def equals(self, other: Any, **_: Any) -> bool:
            return isinstance(other, TimeIndex) and self.__reduce__() == other.__reduce__()

    return TimeIndex


def _make_time_index(archive: Archive, start: int, stop: int) -> Any:
    return _time_index_class()(archive, start, stop)


@dataclass(frozen=True, slots=True)
class _Group:
    """The arrays and attributes of the Zarr group at a location."""

    location: Location
    arrays: Mapping[str, StoredArray]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        found = (f"{name} {one.shape} {one.dtype}" for name, one in sorted(self.arrays.items()))
        return "It holds " + (", ".join(islice(found, 20)) or "no arrays") + "."

    def matching(self, names: Iterable[str]) -> list[StoredArray]:
        """Arrays whose plain name is among ``names``, in the order of ``names``."""
        by_name = {_plain(name): one for name, one in self.arrays.items()}
        return [by_name[name] for name in names if name in by_name]

    def named(self, names: Iterable[str], length: int, kinds: str = "iu") -> StoredArray | None:
        """Find an optional variable; one that does not fit is passed over, and said."""
        for one in self.matching(names):
            if one.shape == (length,) and one.dtype.kind in kinds:
                return one
            _LOG.warning(
                "%s is not used: it has shape %s and dtype %s where (%d,) is expected",
                one.name, one.shape, one.dtype, length,
            )  # fmt: skip
        return None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "")


def _read_group(location: Location, settings: ArchiveSettings) -> _Group:
    """Read a group's metadata; what cannot be Zarr metadata is refused before it is parsed."""
    import zarr
    from obstore.exceptions import BaseError
    from zarr.storage import ObjectStore as ZarrStore

    store = open_store(location, patience_s=_METADATA_PATIENCE_S)
    format_3 = _has(store, location, "zarr.json")
    consolidated = not format_3 and _has(store, location, ".zmetadata")
    if not (format_3 or consolidated or _has(store, location, ".zgroup")):
        raise _not_a_group(store, location)
    reader = open_store(location)
    try:
        group = zarr.open_group(
            ZarrStore(store, read_only=True),
            mode="r",
            zarr_format=3 if format_3 else 2,
            use_consolidated=None if format_3 else consolidated,
        )
        arrays = {
            name: StoredArray(name, one.metadata, location, reader)
            for name, one in _members(group, location, settings).items()
        }
        return _Group(location, arrays, dict(group.attrs))
    except DasGpuError:
        raise
    except (BaseError, OSError) as exc:
        raise translate(exc, location) from exc
    except Exception as exc:  # Zarr raises many kinds on metadata that isn't what it seems
        raise SourceError(
            f"The Zarr metadata of {location} cannot be understood ({type(exc).__name__}: {exc}). "
            "Expected is a Zarr group of format 2 or 3."
        ) from exc


def _members(
    group: zarr.Group, location: Location, settings: ArchiveSettings
) -> dict[str, zarr.Array[Any]]:
    """Arrays of a group; where listing is refused, those among the usual names."""
    import zarr
    from obstore.exceptions import BaseError

    asked = [name for name in (settings.data, settings.time) if name]
    try:
        names = list(group.array_keys())
    except BaseError as exc:
        # A container may be public for reading and closed for listing.
        names = [name for name in _USUAL_NAMES if name in group]
        if not names and not asked:
            raise translate(exc, location) from exc
    nested = [name for name in asked if name not in names and name in group]
    found = ((name, group[name]) for name in (*names, *nested))
    return {name: one for name, one in found if isinstance(one, zarr.Array)}


def _has(store: ObjectStore, location: Location, key: str) -> bool:
    import obstore
    from obstore.exceptions import BaseError

    try:
        size = obstore.head(store, key)["size"]
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (BaseError, OSError) as exc:
        raise translate(exc, location) from exc
    if size > _MAX_METADATA_BYTES:
        raise SourceError(
            f"{key} of {location} has {size} bytes; metadata beyond {_MAX_METADATA_BYTES} bytes "
            "is not read. Check that this is a Zarr group."
        )
    return True


def _not_a_group(store: ObjectStore, location: Location) -> SourceError:
    """Say what is there instead, and which folder below may be meant."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        listing = obstore.list_with_delimiter(store)
    except (BaseError, OSError) as exc:
        found = translate(exc, location)
        if isinstance(found, SourceError):
            return found
        return SourceError(f"{location} is not a Zarr group, or is private: {found}")
    folders = [prefix.rstrip("/").rpartition("/")[2] for prefix in listing["common_prefixes"]]
    files = [item["path"].rpartition("/")[2] for item in listing["objects"]]
    if not folders and not files:
        what = "an empty folder" if location.is_local else "nothing"
        return SourceNotFoundError(
            f"There is {what} at {location}. Check the spelling; a Zarr archive has .zgroup or "
            "zarr.json in its folder."
        )
    if ".zarray" in files:
        advice = "It is a single Zarr array: give the group that holds it and its time axis."
    elif inner := [name for name in folders if name.endswith(".zarr")]:
        advice = f"Perhaps you mean {location.child(inner[0])}."
    else:
        advice = f"It holds {', '.join([*folders, *files][:5])}."
    return SourceError(f"{location} is not a Zarr group: no .zgroup and no zarr.json. {advice}")


def _find_data(group: _Group, wanted: str | None) -> StoredArray:
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
        raise SourceError(f"{data.name} of {group.location} is empty: its shape is {data.shape}.")
    if data.chunk_nbytes > _MAX_CHUNK_BYTES:
        raise SourceError(
            f"One chunk of {data.name} of {group.location}, {data.chunk_shape}, takes "
            f"{data.chunk_nbytes} bytes; at most {_MAX_CHUNK_BYTES} are read at once. "
            "Write the archive with smaller chunks."
        )
    return data


def _wanted(group: _Group, setting: str, name: str) -> StoredArray:
    if name not in group.arrays:
        raise UsageError(
            f"archive.{setting} names {name}, which {group.location} does not have. {group}"
        )
    return group.arrays[name]


def _find_time(group: _Group, wanted: str | None, data: StoredArray) -> tuple[StoredArray, int]:
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
    own = {*_TIME_DIMS, _plain(time.name), *map(_plain, time.dims)}
    is_time = [_plain(dim) in own for dim in data.dims]
    if sum(is_time) == 1:
        return is_time.index(True)
    is_distance = [_plain(dim) in _DISTANCE_DIMS for dim in data.dims]
    if sum(is_distance) == 1:
        return 1 - is_distance.index(True)
    return 0 if time.shape == data.shape[:1] != data.shape[1:] else 1


def _sampling_rate(
    group: _Group,
    settings: ArchiveSettings,
    data: StoredArray,
    time: StoredArray,
    times: NDArray[np.int64],
) -> tuple[float, str]:
    """Give the sampling rate in Hz and its origin, checked against the first times."""
    measured = _measured_rate_hz(times)
    found = _attribute(_RATE, (data, group, time)) or _inverse(
        _attribute(("timestep",), (data, group, time))
    )
    if settings.sampling_rate_hz is not None:
        rate_hz, origin = settings.sampling_rate_hz, "recipe"
    elif found:
        rate_hz, origin = found
    elif measured is not None:
        return measured, f"measured from {time.name}"
    else:
        raise SourceError(
            f"{group.location} does not say its sampling rate and {time.name} does not advance "
            "in its first chunk. Give archive.sampling_rate_hz."
        )
    if measured is not None and abs(rate_hz - measured) > _RATE_TOLERANCE * measured:
        by_recipe = origin == "recipe"
        said = "archive.sampling_rate_hz of the recipe is" if by_recipe else f"The {origin} says"
        advice = "Leave it out" if by_recipe else f"Give archive.sampling_rate_hz = {measured:g}"
        message = (
            f"{said} {rate_hz:g} Hz, but {time.name} of {group.location} advances at "
            f"{measured:g} Hz. {advice} to go by the time axis; if that is wrong, name another "
            "one with archive.time."
        )
        raise UsageError(message) if by_recipe else SourceError(message)
    return rate_hz, origin


def _measured_rate_hz(times: NDArray[np.int64]) -> float | None:
    """Measure the rate at which times advance, from the differences near their median.

    The mean of those, not the median itself: a clock in whole microseconds would round the
    period. A rate within 0.01 % of a whole number is that number.
    """
    steps = np.diff(times)
    if not steps.size:
        return None
    median = float(np.median(steps))
    if median <= 0:
        return None
    rate_hz = 1e9 / float(np.mean(steps[np.abs(steps - median) < 0.5 * median]))
    whole = round(rate_hz)
    return float(whole) if whole and abs(rate_hz - whole) <= 1e-4 * whole else rate_hz


def _channel_spacing(
    group: _Group,
    settings: ArchiveSettings,
    data: StoredArray,
    distances_m: tuple[float, ...] | None,
) -> tuple[float, str]:
    """Give the channel spacing in metres and its origin."""
    if settings.channel_spacing_m is not None:
        return settings.channel_spacing_m, "recipe"
    if found := _attribute(_SPACING, (data, group)):
        return found
    if distances_m and distances_m[0] != distances_m[-1]:
        spacing_m = abs(distances_m[-1] - distances_m[0]) / (len(distances_m) - 1)
        return spacing_m, "the distance coordinate"
    return _ASSUMED_SPACING_M, "assumed"


def _distances_m(variable: StoredArray | None) -> tuple[float, ...] | None:
    """Read the source's own distances along the cable."""
    if variable is None:
        return None
    values = variable[:].astype(np.float64)
    unit = _plain(str(variable.attributes.get("units", "m")))
    factors = dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1.0) | {"km": 1000.0}
    if unit not in factors or not np.isfinite(values).all():
        raise SourceError(
            f"The coordinate {variable.name} of {variable.location} is not a distance in metres: "
            f"its units are {unit!r}, its values {values.min()} to {values.max()}. Give "
            "archive.channel_spacing_m to go without it."
        )
    return tuple((values * factors[unit]).tolist())


def _attribute(
    names: Iterable[str], holders: Iterable[StoredArray | _Group]
) -> tuple[float, str] | None:
    """Find the first positive number among attributes, and say where it stands."""
    for holder in holders:
        where = holder.name if isinstance(holder, StoredArray) else "the group"
        plain = {_plain(key): (key, value) for key, value in holder.attributes.items()}
        for key, value in (plain[name] for name in names if name in plain):
            number = _positive(value)
            if number is not None:
                return number, f"attribute {key} of {where}"
    return None


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


def _inverse(found: tuple[float, str] | None) -> tuple[float, str] | None:
    return (1 / found[0], found[1]) if found else None
