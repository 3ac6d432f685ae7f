"""What the labels of an xarray array say of a recording, and what is said of what becomes of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from das_gpu.clock import rate_of
from das_gpu.discover import Labelled, optics, quantity
from das_gpu.errors import UsageError
from das_gpu.group import plain_name
from das_gpu.model import Acquisition
from das_gpu.plan import Plan
from das_gpu.recipe import Recipe, SelectionSettings
from das_gpu.timescale import TimeScale, iso_time

if TYPE_CHECKING:
    import xarray as xr

_ASSUMED_SPACING_M = 2.0419
_LOOKED_AT = 2000
"""Times from which the sampling rate is measured."""
_RATE_TOLERANCE = 0.01


def dims_of(dataarray: Any) -> tuple[str, str]:
    """Names of the channels' and of the samples' dimension."""
    dims = [str(dim) for dim in getattr(dataarray, "dims", ())]
    times = [dim for dim in dims if plain_name(dim) == "time"]
    if len(dims) != 2 or len(times) != 1:
        raise UsageError(
            "das_gpu.envelope takes an xarray.DataArray of two dimensions, one of them called "
            f"'time'; this {type(dataarray).__name__} has {tuple(dims)}. Rename them with "
            "dataarray.rename(...), or select one of the others."
        )
    if dataarray.dtype.kind not in "iuf":
        raise UsageError(
            f"das_gpu.envelope takes integers or real numbers; the array is of {dataarray.dtype}."
        )
    if not dataarray.size:
        raise UsageError(f"The array of shape {dataarray.shape} holds no sample.")
    return next(dim for dim in dims if dim not in times), times[0]


@dataclass(frozen=True)
class SampleClock:
    """The time coordinate, read only where it is looked at.

    Attributes
    ----------
    variable : xarray.Variable or None
        The coordinate; None when there is none.
    scale : TimeScale or None
        How its values become nanoseconds.
    n_samples : int
        Of the array.
    dated : bool
        Whether it says when, and not only how long after a beginning.
    """

    variable: Any
    scale: TimeScale | None
    n_samples: int
    dated: bool

    @classmethod
    def of(cls, dataarray: xr.DataArray, along_time: str) -> SampleClock:
        """Look at an array's time coordinate; nothing is read of a lazy one.

        Raises
        ------
        UsageError, SourceError
            It holds no times.
        """
        n_samples = dataarray.sizes[along_time]
        if along_time not in dataarray.coords:
            return cls(None, None, n_samples, dated=False)
        variable = dataarray.coords[along_time].variable
        attributes: Mapping[str, Any] = {"units": "s", **variable.attrs}
        dtype = variable.dtype
        if dtype.kind == "m":
            dtype = np.dtype(f"M8[{np.datetime_data(dtype)[0]}]")
        if dtype.kind not in "Miuf":
            raise UsageError(
                f"The coordinate {along_time} holds {variable.dtype}: it must be datetime64, or "
                "numbers of seconds. Convert it, or drop it and give archive.sampling_rate_hz."
            )
        scale = TimeScale.of(along_time, dtype, attributes)
        dated = variable.dtype.kind == "M" or "since" in str(attributes["units"])
        return cls(variable, scale, n_samples, dated)

    @property
    def values(self) -> Any:
        """The coordinate's values, as they are: NumPy's or dask's; None when there are none."""
        return None if self.variable is None else self.variable.data

    def ns(self, start: int, stop: int) -> NDArray[np.int64]:
        """Times of samples."""
        if self.scale is None:
            raise UsageError("The array has no time coordinate.")
        return to_ns(np.asarray(self.variable[start:stop].values), self.scale)

    def sample_range(self, selection: SelectionSettings) -> tuple[int, int]:
        """Samples between the recipe's times."""
        start_ns, stop_ns = selection.start_ns, selection.stop_ns
        if start_ns is None and stop_ns is None:
            return 0, self.n_samples
        if not self.dated:
            raise UsageError(
                "The recipe has selection.start or selection.stop, and the array has no times "
                "that say when: leave them out, and select with dataarray.isel(time=slice(...))."
            )

        def place(time_ns: int) -> int:
            return bisect_left(
                range(self.n_samples), time_ns, key=lambda i: int(self.ns(i, i + 1)[0])
            )

        start = 0 if start_ns is None else place(start_ns)
        stop = self.n_samples if stop_ns is None else place(stop_ns)
        if start >= stop:
            first, last = (iso_time(int(self.ns(i, i + 1)[0])) for i in (0, self.n_samples - 1))
            raise UsageError(
                f"No sample lies from selection.start {selection.start} to selection.stop "
                f"{selection.stop}: the array runs from {first} to {last}."
            )
        return start, stop


def to_ns(values: NDArray[Any], scale: TimeScale) -> NDArray[np.int64]:
    """Nanoseconds of a coordinate's values, timedeltas too."""
    return scale.to_ns(values.view(np.int64) if values.dtype.kind in "Mm" else values)


def _rate_hz(recipe: Recipe, clock: SampleClock) -> float:
    """The recipe's sampling rate, or that of the times; they must not contradict each other."""
    asked_hz = recipe.archive.sampling_rate_hz
    measured_hz = (
        None if clock.variable is None else rate_of(clock.ns(0, min(_LOOKED_AT, clock.n_samples)))
    )
    if asked_hz is None and measured_hz is None:
        raise UsageError(
            "The array does not say its sampling rate: it has no time coordinate that advances. "
            "Assign one with dataarray.assign_coords(time=...), or give archive.sampling_rate_hz."
        )
    if (
        asked_hz is not None
        and measured_hz is not None
        and abs(asked_hz - measured_hz) > _RATE_TOLERANCE * measured_hz
    ):
        raise UsageError(
            f"archive.sampling_rate_hz of the recipe is {asked_hz:g} Hz, but the array's times "
            f"advance at {measured_hz:g} Hz. Leave it out to go by the times, or drop the "
            "coordinate."
        )
    return asked_hz or measured_hz or 0.0


def acquisition_of(
    dataarray: xr.DataArray,
    recipe: Recipe,
    along_channels: str,
    along_time: str,
    clock: SampleClock,
) -> Acquisition:
    """What a plan wants to know of the array."""
    shape = dataarray.sizes[along_channels], dataarray.sizes[along_time]
    spacing_m, origin, distances_m = recipe.archive.channel_spacing_m, "recipe", None
    if spacing_m is None:
        distances_m = _distances_m(dataarray, along_channels)
        spacing_m, origin = _ASSUMED_SPACING_M, "assumed"
        if distances_m is not None:
            spacing_m = abs(distances_m[-1] - distances_m[0]) / max(1, len(distances_m) - 1)
            origin = "the distance coordinate"
    times_ns = clock.ns(0, 1) if clock.variable is not None else np.zeros(1, np.int64)
    own = Labelled(str(dataarray.name or "the array"), dataarray.attrs)
    return Acquisition(
        shape=shape,
        chunk_shape=shape,
        dims=("distance", "time"),
        dtype=str(dataarray.dtype),
        sampling_rate_hz=_rate_hz(recipe, clock),
        channel_spacing_m=spacing_m,
        start_ns=int(times_ns[0]),
        last_ns=int(times_ns[0]),
        channel_spacing_origin=origin,
        distances_m=distances_m,
        optics=optics((own,), recipe.archive),
        quantity=quantity(own, (own,)),
    )


def _distances_m(dataarray: xr.DataArray, along_channels: str) -> tuple[float, ...] | None:
    """The distance coordinate of the channels, in metres; None when there is none."""
    found = dataarray.coords.get("distance")
    if found is None or found.dims != (along_channels,) or found.dtype.kind not in "iuf":
        return None
    factor = 1000.0 if str(found.attrs.get("units", "m")).lower() in ("km", "kilometres") else 1.0
    values = np.asarray(found.values, np.float64) * factor
    if not np.isfinite(values).all():
        raise UsageError(
            "The distance coordinate is not finite everywhere. Mend it, or give "
            "archive.channel_spacing_m to go without it."
        )
    return tuple(values.tolist())


def attributes_of(dataarray: xr.DataArray, plan: Plan, draft: Plan) -> dict[str, Any]:
    """What the result is, and what was done."""
    unit = str(dataarray.attrs.get("units", "count"))
    reference = f"1e-6 {'count' if unit == 'counts' else unit}"
    if draft.recipe.image.units != "counts":
        reference = draft.recipe.image.db_reference
    recipe, band = draft.recipe, draft.recipe.filter
    corners = f"{band.low_hz:g}-{band.high_hz:g} Hz"
    steps = [
        f"zero-phase band-pass {corners} ({band.method}, order {band.order})",
        "envelope in dB",
    ]
    if draft.time_step > 1:
        place = 1 if recipe.filter.decimate == "after" else 0
        steps.insert(place, f"every {draft.time_step}. sample kept")
    if plan.common_mode:
        steps.insert(-1, "median over channels subtracted at each sample")
    if recipe.median.kind == "time":
        place = 1 if recipe.filter.decimate == "before" and draft.time_step > 1 else 0
        steps.insert(place, "each channel's median over a window subtracted")
    if draft.channel_step > 1:
        kept = "mean of each" if recipe.selection.channel_reduce == "mean" else "first of every"
        steps.insert(0, f"{kept} {draft.channel_step} channels")
    return {
        "long_name": "envelope",
        "units": f"dB re {reference}",
        "processing": "; ".join(steps),
        "notes": " ".join(plan.notes),
        "sampling_rate_hz": draft.acquisition.sampling_rate_hz / draft.time_step,
        "recipe_digest": recipe.digest,
    }
