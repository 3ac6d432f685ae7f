"""An archive of one recording, opened: what it holds, its samples' times, its lazy view.

Opening reads the metadata and one or two chunks of the time axis, never a sample. Values are
taken as they are stored: no CF decoding, so that a fill value of 0 does not turn counts and
times into floats with holes.
"""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.chunks import StoredArray
from das_gpu.clock import Clock, TimeAxis
from das_gpu.discover import (
    channel_spacing,
    find_recording,
    optics,
    quantity,
    sampling_rate,
    stored_distances_m,
)
from das_gpu.errors import UsageError
from das_gpu.group import Group, read_group
from das_gpu.locations import Location
from das_gpu.model import Acquisition
from das_gpu.positions import parse
from das_gpu.recipe import ArchiveSettings
from das_gpu.series import Series
from das_gpu.store import Access
from das_gpu.timescale import iso_time
from das_gpu.view import lazy_dataset

if TYPE_CHECKING:
    import xarray as xr

_EDGE_TOLERANCE_NS = 1_000_000_000


class Archive:
    """An opened archive. Made by :func:`open_archive`; pickles as its location and settings.

    Attributes
    ----------
    location : Location
    access : Access
        How it is read.
    zarr_format : {2, 3}
    index : Document or None
        The index of files that the location is, when it is one.
    acquisition : Acquisition
        Shape, rate, spacing and times; axes are (channel, sample) whatever the stored order.
    data, time : StoredArray
    count : StoredArray or None
        The interrogator's running sample counter.
    quality : tuple of (StoredArray, int)
        Status words and the factor to weigh them with: GpsStatus (1), GpBits (256).

    Examples
    --------
    >>> dataset = open_archive(recording).dataset
    >>> second = dataset.sel(time=slice("2021-11-01T23:11:20", "2021-11-01T23:11:21"))
    >>> second.RawData.shape, second.RawData.values.dtype
    ((1200, 200), dtype('int32'))
    """

    def __init__(
        self, group: Group, settings: ArchiveSettings, access: Access | None = None
    ) -> None:
        self.location = group.location
        self.access = access or Access()
        self.zarr_format = group.zarr_format
        self.index = group.index
        self._settings = settings
        recording = find_recording(group, settings.data, settings.time)
        self.data, self.time = recording.data, recording.time
        self.count, self.quality = recording.count, recording.quality
        self._series: dict[str, Series] = {}
        self._lock = threading.Lock()

        axis = TimeAxis(self.time)
        ends = axis.ends()
        rate_hz, rate_origin = sampling_rate(
            group, recording, settings.sampling_rate_hz, ends.rate_hz
        )
        asked_m = settings.channel_spacing_m
        distances_m = stored_distances_m(group, recording) if asked_m is None else None
        spacing_m, spacing_origin = channel_spacing(group, recording, asked_m, distances_m)
        positions = None if settings.positions is None else parse(settings.positions)
        if positions is not None and positions.spacing_m is not None:
            spacing_m, spacing_origin = positions.spacing_m, "the table of positions"
        self._clock = Clock.of(axis, ends, rate_hz)
        self.acquisition = Acquisition(
            shape=recording.shape,
            chunk_shape=recording.chunk_shape,
            dims=recording.dims,
            dtype=self.data.dtype.name,
            sampling_rate_hz=rate_hz,
            channel_spacing_m=spacing_m,
            start_ns=self._clock.start_ns,
            last_ns=self._clock.last_ns,
            sampling_rate_origin=rate_origin,
            channel_spacing_origin=spacing_origin,
            distances_m=distances_m,
            codec=self.data.codec,
            optics=optics((self.data, group), settings),
            quantity=quantity(self.data, (self.data, group)),
            positions=positions,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return open_archive, (self.location, self._settings, self.access)

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
        return self._clock.axis.times_ns(t0, t1)

    def aux(self, variable: StoredArray, t0: int, t1: int) -> NDArray[Any]:
        """Read samples ``[t0, t1)`` of a one-dimensional variable, in its own dtype.

        A chunk that was never written is the variable's fill value when it has one, as Zarr
        means it. The time axis is read by :meth:`times_ns`, which fills nothing in.

        Raises
        ------
        ChunkMissingError, ChunkCorruptError
            A chunk cannot be had.
        """
        with self._lock:
            if variable.name not in self._series:
                self._series[variable.name] = Series(variable, fill_missing=True)
            series = self._series[variable.name]
        return series.read(t0, t1)

    def sample_at(self, time_ns: int) -> int:
        """Give the first sample at or after a time; ``n_samples`` when there is none.

        One or two chunks of the time axis are read where the clock runs evenly, at most 20 in 9
        rounds otherwise. Where the axis runs backwards, several samples may answer; one of them
        is given.

        Examples
        --------
        >>> archive = open_archive(recording)
        >>> archive.sample_at(archive.acquisition.start_ns + 1_000_000_000)
        200
        """
        return self._clock.sample_at(time_ns)

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
        record = (
            f"The record runs from {iso_time(first)} to {iso_time(last)}: choose --start and "
            "--stop inside of it."
        )
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
            **({} if self.index is None else {"index": self.index.digest}),
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
        return lazy_dataset(self.data, self._clock, self.acquisition, self.fingerprint())


def open_archive(
    source: str | Path | Location,
    settings: ArchiveSettings | None = None,
    access: Access | None = None,
) -> Archive:
    """Open a Zarr archive (format 2 or 3, consolidated or not).

    Parameters
    ----------
    source : str, Path or Location
        A folder or URL; see :func:`das_gpu.locations.parse_location`.
    settings : ArchiveSettings, optional
        Names, rate and spacing where the archive does not say them or says them wrong.
    access : Access, optional
        Credential, transport and patience with which the archive is read.

    Raises
    ------
    SourceNotFoundError, SourceError
        Nothing is there, or it is not such an archive.
    AccessDeniedError
        The store refuses the credentials, or anonymous reading.
    UsageError
        The source or the settings cannot be meant.

    Examples
    --------
    >>> acquisition = open_archive(recording).acquisition
    >>> acquisition.shape, acquisition.sampling_rate_hz
    ((1200, 6000), 200.0)
    """
    location = source if isinstance(source, Location) else (access or Access()).locate(source)
    if settings is None:
        settings = ArchiveSettings.model_validate({})
    asked = [name for name in (settings.data, settings.time) if name]
    return Archive(read_group(location, asked, access), settings, access)
