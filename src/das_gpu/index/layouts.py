"""What a file of a recording holds: its samples, its times, how it was recorded.

The layout of OptaSense's interrogators (ProdML 2: ``/Acquisition/Raw[0]/RawData``) is read here,
with its times and status words. Of any other, DASCore says the times and distances, and the
samples are the one dataset of that shape.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from das_gpu.errors import SourceError, UsageError
from das_gpu.index.hdf5 import Piece, StoredFile, opened, piece_of
from das_gpu.timescale import jumps_of

COMPANIONS = ("RawDataSampleCount", "GpsStatus", "GpBits")
"""Variables along time that are taken along where a file has them."""

_scanning = threading.Lock()
"""PyTables, which DASCore uses, is not made for several threads."""
_DTYPES = ("int16", "int32", "float32", "float64")


class Jump(NamedTuple):
    """A step of a file's times that is not one sample period.

    Attributes
    ----------
    sample : int
        The first after it, counted in the file.
    expected_ns, found_ns : int
        Time that it should have, and the one it has.
    """

    sample: int
    expected_ns: int
    found_ns: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """One file's part of a recording.

    Attributes
    ----------
    name : str
        Of the file, as the index names it.
    data : Piece
        Two-dimensional.
    time_axis : {0, 1}
        Which stored axis is time.
    start_ns, last_ns : int
        Times of the first and last sample.
    step_ns : float
        Sample period.
    times : Piece or None
        Microseconds since 1970 of every sample, where the file holds them.
    jumps : tuple of Jump
        Where these times do not go on at once.
    companions : mapping of str to Piece
        Further variables along time.
    distances_m : (float, float) or None
        Distance of the first channel and channel spacing.
    attributes : mapping
        How it was recorded, in the file's own words.
    """

    name: str
    data: Piece
    time_axis: int
    start_ns: int
    last_ns: int
    step_ns: float
    times: Piece | None = None
    jumps: tuple[Jump, ...] = ()
    companions: Mapping[str, Piece] = field(default_factory=dict)
    distances_m: tuple[float, float] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples per channel."""
        return self.data.shape[self.time_axis]

    @property
    def channels(self) -> int:
        """Channels."""
        return self.data.shape[1 - self.time_axis]


def read_file(file: str | StoredFile, name: str) -> Recorded:
    """Find a recording's part in a file.

    Parameters
    ----------
    file : str or StoredFile
        A local path, or an object of a store.
    name : str
        What the index calls it.

    Raises
    ------
    SourceError
        It is not an HDF5 file, of no layout that is known, or its samples cannot be read in place.
    UsageError
        DASCore is needed for its layout, and is not installed.
    """
    with opened(file, name) as root:
        raw = _raw_group(root)
        if raw is not None:
            return _read_prodml(root, raw, name)
        return _read_by_dascore(root, file, name)


# --- OptaSense, ProdML --------------------------------------------------------------------


def _raw_group(root: Any) -> Any | None:
    acquisition = root.get("Acquisition")
    groups = [key for key in acquisition or () if key.startswith("Raw[")]
    if len(groups) != 1:
        return None
    raw = acquisition[groups[0]]
    times = raw.get("RawDataTime")
    kind = getattr(getattr(times, "dtype", None), "kind", "")
    return raw if "RawData" in raw and kind in ("i", "u") else None


def _read_prodml(root: Any, raw: Any, name: str) -> Recorded:
    data, times = raw["RawData"], raw["RawDataTime"]
    _check_data(data, name)
    axis = _prodml_time_axis(data, raw, int(times.size), name)
    samples = int(data.shape[axis])
    times_us = times[:].astype(np.int64)
    start_us, last_us = int(times_us[0]), int(times_us[-1])
    rate_hz = _number(raw.attrs.get("OutputDataRate"))
    if samples > 1 and last_us <= start_us:
        raise SourceError(
            f"The times of {name} run from {start_us} to {last_us} microseconds since 1970: they "
            "do not advance. Leave the file out, or ask who recorded it."
        )
    if rate_hz is None and samples < 2:
        raise SourceError(f"{name} says no OutputDataRate and holds one sample. Leave it out.")
    step_ns = _measured_ns(times_us) if rate_hz is None else 1e9 / rate_hz
    custom = root["Acquisition"].get("Custom")
    custom = custom if hasattr(custom, "keys") else {}
    found = {key: raw.get(key, custom.get(key)) for key in COMPANIONS}
    return Recorded(
        name=name,
        data=piece_of(data, name),
        time_axis=axis,
        start_ns=start_us * 1000,
        last_ns=last_us * 1000,
        step_ns=step_ns,
        times=piece_of(times, name),
        jumps=tuple(_jumps(times_us, step_ns)),
        companions={
            key: piece_of(one, name)
            for key, one in found.items()
            if getattr(one, "shape", None) == (samples,) and one.dtype.kind in "iu"
        },
        attributes=_attributes(root["Acquisition"]) | _attributes(raw),
    )


def _measured_ns(times_us: NDArray[np.int64]) -> float:
    """Sample period that times show where they do not jump."""
    steps = np.diff(times_us)
    even = np.delete(steps, jumps_of(times_us, float(np.median(steps))) - 1)
    return float(even.mean()) * 1000


def _jumps(times_us: NDArray[np.int64], step_ns: float) -> Iterator[Jump]:
    """Where times do not go on at once."""
    for sample in jumps_of(times_us, step_ns / 1000).tolist():
        before_ns, found_ns = (int(times_us[n]) * 1000 for n in (sample - 1, sample))
        yield Jump(sample, before_ns + round(step_ns), found_ns)


def _prodml_time_axis(data: Any, raw: Any, samples: int, name: str) -> int:
    """Which axis is time: the one as long as the times, else by the names of the dimensions."""
    fitting = [axis for axis in (0, 1) if data.shape[axis] == samples]
    if len(fitting) == 2:
        words = _plain(data.attrs.get("Dimensions", raw.attrs.get("Dimensions", "time")))
        text = words if isinstance(words, str) else " ".join(map(str, words))
        return 0 if text.lower().lstrip().startswith("time") else 1
    if not fitting:
        raise SourceError(
            f"{name} has {samples} times for samples of shape {tuple(data.shape)}; one axis must "
            "be as long. The file may have been cut short: copy it again."
        )
    return fitting[0]


# --- any other ----------------------------------------------------------------------------


def _read_by_dascore(root: Any, file: str | StoredFile, name: str) -> Recorded:
    if not isinstance(file, str):
        raise SourceError(
            f"{name} is not of the layout that OptaSense writes (/Acquisition/Raw[0]), and other "
            "layouts are understood on a local disk only. Copy the files, and index the copies."
        )
    summary = _scan(file, name)
    dims = [part.strip() for part in str(summary.dims).split(",")]
    time, distance = summary.coords.get("time"), summary.coords.get("distance")
    if sorted(dims) != ["distance", "time"] or time is None or distance is None:
        raise SourceError(
            f"{name} has the dimensions {summary.dims}; a recording has time and distance."
        )
    step_ns = _ns(time.step)
    if step_ns is None or step_ns <= 0:
        raise SourceError(
            f"The samples of {name} are not evenly spaced in time, as DASCore understands it, and "
            "are not indexed. Convert the file to Zarr with its times."
        )
    start_ns, last_ns = _ns(time.min) or 0, _ns(time.max) or 0
    samples = round((last_ns - start_ns) / step_ns) + 1
    axis = dims.index("time")
    data = _find_data(root, samples, axis, distance, name)
    return Recorded(
        name=name,
        data=piece_of(data, name),
        time_axis=axis,
        start_ns=start_ns,
        last_ns=last_ns,
        step_ns=(last_ns - start_ns) / (samples - 1) if samples > 1 else float(step_ns),
        distances_m=_distances_m(distance),
        attributes={
            "layout": f"{summary.file_format} {summary.file_version}".strip(),
            **_setup(summary),
        },
    )


def _scan(file: str, name: str) -> Any:
    try:
        import dascore
    except ImportError as error:
        raise UsageError(
            f"{name} is not of the layout that OptaSense writes; other layouts need the package "
            "dascore: install das-gpu[hdf5]."
        ) from error
    try:
        with _scanning, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = dascore.scan(file)
    except Exception as error:
        raise SourceError(
            f"DASCore cannot read {name} ({type(error).__name__}: {error}). Check that the file is "
            "whole."
        ) from error
    if len(found) != 1:
        what = "no layout that is known" if not found else f"{len(found)} recordings at once"
        raise SourceError(
            f"{name} holds {what}: neither /Acquisition/Raw[0]/RawData with RawDataTime, nor one "
            "recording that DASCore understands. Convert it to Zarr, or leave it out."
        )
    return found[0]


def _find_data(root: Any, samples: int, axis: int, distance: Any, name: str) -> Any:
    """The dataset of the shape that DASCore says."""
    step = _number(distance.step)
    channels = None
    if step is not None:
        channels = round((float(distance.max) - float(distance.min)) / step) + 1
    found: list[Any] = []
    shapes: list[str] = []

    def look(_: str, one: Any) -> None:
        shape = getattr(one, "shape", None)
        if shape is None or len(shape) < 2:
            return
        shapes.append(f"{one.name} {tuple(shape)}")
        fits = len(shape) == 2 and shape[axis] == samples
        if fits and channels in (None, shape[1 - axis]) and one.dtype.name in _DTYPES:
            found.append(one)

    root.visititems(look)
    if len(found) != 1:
        raise SourceError(
            f"DASCore says that {name} has {samples} samples of {channels or 'some'} channels; "
            f"{'no' if not found else 'more than one'} dataset has that shape among "
            f"{', '.join(shapes) or 'none'}. Convert the file to Zarr."
        )
    return found[0]


def _setup(summary: Any) -> dict[str, float | str]:
    """Gauge length, pulse width, what samples are: mostly under the names that ProdML has."""
    named = {"GaugeLength": "gauge_length", "PulseWidth": "pulse_width"}
    numbers = {key: _number(getattr(summary, name, None)) for key, name in named.items()}
    unit = getattr(getattr(summary, "data_units", None), "units", None)
    # In full: how a unit is written otherwise is a setting of the whole process.
    told = "" if unit is None else f"{unit:D}"
    texts = {"RawDataUnit": told, "DataType": str(summary.data_type or "")}
    return {
        **{key: number for key, number in numbers.items() if number is not None},
        **{key: text for key, text in texts.items() if text},
    }


def _distances_m(distance: Any) -> tuple[float, float] | None:
    step = _number(distance.step)
    unit = str(getattr(distance.units, "units", None) or "meter")
    known = unit in ("meter", "m", "metre")
    return (float(distance.min), step) if step is not None and known else None


def _check_data(data: Any, name: str) -> None:
    if data.ndim != 2 or data.dtype.newbyteorder("=").name not in _DTYPES or not data.size:
        raise SourceError(
            f"{data.name} of {name} has shape {tuple(data.shape)} and dtype {data.dtype}; samples "
            f"have two dimensions and are {', '.join(_DTYPES)}."
        )


def _attributes(group: Any) -> dict[str, Any]:
    """Attributes as JSON has them; what it has not is left out."""
    plain = {str(key): _plain(value) for key, value in group.attrs.items()}
    return {key: value for key, value in plain.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        items = [_plain(one) for one in value.reshape(-1)[:100].tolist()]
        return items[0] if len(items) == 1 else items
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) else None


def _number(value: Any) -> float | None:
    """A positive number, of an attribute or a coordinate's step; None for anything else."""
    try:
        number = float(np.asarray(value).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if 0 < number < math.inf else None


def _ns(value: Any) -> int | None:
    """Nanoseconds of a datetime64 or timedelta64."""
    if not isinstance(value, (np.datetime64, np.timedelta64)) or np.isnat(value):
        return None
    kind = "M8[ns]" if isinstance(value, np.datetime64) else "m8[ns]"
    return int(np.asarray(value).astype(kind).astype(np.int64))
