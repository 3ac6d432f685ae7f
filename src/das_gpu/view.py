"""The recording as a lazy xarray Dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.chunks import StoredArray
from das_gpu.clock import Clock
from das_gpu.errors import UsageError
from das_gpu.model import Acquisition
from das_gpu.timescale import iso_time

if TYPE_CHECKING:
    import xarray as xr


def lazy_dataset(
    data: StoredArray, clock: Clock, acquisition: Acquisition, identity: Mapping[str, Any]
) -> xr.Dataset:
    """Make the Dataset; nothing is read.

    Parameters
    ----------
    data : StoredArray
        Two-dimensional; keeps its stored name, order and dtype.
    clock : Clock
        Gives the ``time`` coordinate and looks times up.
    acquisition : Acquisition
        Gives the dimensions and the ``distance`` coordinate.
    identity : mapping
        Tells this archive from others, ready for JSON; the dask arrays are named by it.
    """
    import xarray as xr

    distances = np.array([acquisition.distance_m(n) for n in range(acquisition.n_channels)])
    seal = json.dumps(identity)
    dataset = xr.Dataset(
        {data.name: (acquisition.dims, _lazy(data, seal), data.attributes)},
        coords={"distance": ("distance", distances, {"units": "m"})},
        attrs={
            "sampling_rate_hz": acquisition.sampling_rate_hz,
            "channel_spacing_m": acquisition.channel_spacing_m,
        },
    )
    index = _make_time_index(_Timestamps(clock, seal), 0, acquisition.n_samples)
    return dataset.assign_coords(xr.Coordinates.from_xindex(index))


def _lazy(source: StoredArray | _Timestamps, seal: str) -> Any:
    """Wrap an array for dask, one block per stored chunk, its name telling its content."""
    import dask.array as da

    identity = json.dumps([seal, source.name, str(source.dtype)])
    from_array: Any = da.from_array
    return from_array(
        source,
        chunks=source.chunk_shape,
        name=f"{source.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
        fancy=False,
        meta=np.empty((0,) * source.ndim, source.dtype),
    )


class _Timestamps:
    """The time axis as an array of datetime64[ns]."""

    dtype = np.dtype("datetime64[ns]")
    ndim = 1

    def __init__(self, clock: Clock, seal: str) -> None:
        self.clock, self._seal = clock, seal
        self._stored = clock.axis.variable
        self.name, self.shape = self._stored.name, self._stored.shape
        self.chunk_shape = self._stored.chunk_shape

    def __reduce__(self) -> tuple[Any, ...]:
        return _Timestamps, (self.clock, self._seal)

    def __getitem__(self, item: Any) -> NDArray[Any]:
        values = self._stored[item]
        times_ns = self.clock.axis.scale.to_ns(values.reshape(-1))
        return times_ns.view(self.dtype).reshape(values.shape)

    @cached_property
    def lazy(self) -> Any:
        """These times as a dask array."""
        return _lazy(self, self._seal)


@cache
def _time_index_class() -> Any:
    """Make the xarray index that looks times up by the clock.

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

        def __init__(self, times: _Timestamps, start: int, stop: int) -> None:
            self._times, self._start, self._stop = times, start, stop
            self._variable = Variable("time", times.lazy[start:stop])

        def __reduce__(self) -> tuple[Any, ...]:
            return _make_time_index, (self._times, self._start, self._stop)

        def __copy__(self) -> Any:
            return self

        def __deepcopy__(self, memo: Any = None) -> Any:
            return self

        def create_variables(self, variables: Any = None) -> Any:
            return dict.fromkeys(variables or ("time",), self._variable)

        def _place(self, time_ns: int) -> int:
            sample = self._times.clock.sample_at(time_ns)
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
            times_ns = self._times.clock.axis.times_ns(before, after + 1)
            best = int(np.argmin(np.abs(times_ns - wanted)))
            if method is None and times_ns[best] != wanted:
                raise KeyError(f"no sample at {iso_time(wanted)}; use method='nearest'")
            return IndexSelResult({name: before + best - self._start})

        def isel(self, indexers: Mapping[Any, Any]) -> Any:
            (part,) = indexers.values()
            if not isinstance(part, slice) or part.step not in (None, 1):
                return None
            low, high, _ = part.indices(self._stop - self._start)
            return TimeIndex(self._times, self._start + low, self._start + max(low, high))

        def equals(self, other: Any, **_: Any) -> bool:
            return isinstance(other, TimeIndex) and self.__reduce__() == other.__reduce__()

    return TimeIndex


def _make_time_index(times: _Timestamps, start: int, stop: int) -> Any:
    return _time_index_class()(times, start, stop)
