"""Where the tiles of a run lie: in samples and channels, in time and along the cable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from das_gpu.errors import DestinationError
from das_gpu.runfile import RUN_KEY, number_in
from das_gpu.segmentfile import Row
from das_gpu.sink import Sink

_Json: TypeAlias = Mapping[str, Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_BEYOND = 1e12


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tiles of a run lie.

    Attributes
    ----------
    sample_start, tile_span, row_stride : int
        First sample, the samples of a tile, and from one tile to the next, in archive samples.
    rows, bands : int
        Tiles in time and along the cable.
    channel_start, band_span, band_stride, channel_step : int
        First channel, the channels that a tile spans, and from one band to the next, and each how
        many of them are kept.
    rows_per_segment, segments : int
    sampling_rate_hz, channel_spacing_m : float
    """

    sample_start: int
    tile_span: int
    row_stride: int
    rows: int
    bands: int
    channel_start: int
    band_span: int
    band_stride: int
    channel_step: int
    rows_per_segment: int
    segments: int
    sampling_rate_hz: float
    channel_spacing_m: float

    @classmethod
    def of(cls, sink: Sink, run: _Json) -> Layout:
        """The layout that ``run.json`` tells.

        Raises
        ------
        DestinationError
            When it does not tell it.
        """
        selection, plan = run["identity"].get("selection"), run.get("plan")

        def count(name: str) -> int:
            return max(1, number_in(sink, selection, name))

        def stride(name: str, length: str) -> int:
            return count(name if name in (selection or {}) else length)

        return cls(
            sample_start=number_in(sink, selection, "sample_start"),
            tile_span=count("tile_samples") * count("sample_step"),
            row_stride=stride("tile_stride", "tile_samples") * count("sample_step"),
            rows=number_in(sink, selection, "rows"),
            bands=count("bands"),
            channel_start=number_in(sink, selection, "channel_start"),
            band_span=count("band_channels") * count("channel_step"),
            band_stride=stride("band_stride", "band_channels") * count("channel_step"),
            channel_step=count("channel_step"),
            rows_per_segment=max(1, number_in(sink, plan, "rows_per_segment")),
            segments=number_in(sink, plan, "segments"),
            sampling_rate_hz=_quantity(sink, selection, "sampling_rate_hz"),
            channel_spacing_m=_quantity(sink, selection, "channel_spacing_m"),
        )

    @property
    def tiles(self) -> int:
        """Tiles of the whole run."""
        return self.rows * self.bands

    @property
    def tile_ms(self) -> float:
        """Duration of a tile, in ms."""
        return 1000 * self.tile_span / self.sampling_rate_hz

    @property
    def row_ms(self) -> float:
        """Time from one tile's start to the next one's, in ms."""
        return 1000 * self.row_stride / self.sampling_rate_hz

    @property
    def band_channels(self) -> int:
        """Channels of a tile that are kept."""
        return self.band_span // self.channel_step

    def index(self, row: Row) -> int | None:
        """Number of the tile that a record speaks of, or None when the run has no such tile."""
        in_time, off_time = divmod(row["sample_start"] - self.sample_start, self.row_stride)
        band, off_band = divmod(row["channel_start"] - self.channel_start, self.band_stride)
        on_grid = not off_time and not off_band
        if on_grid and 0 <= in_time < self.rows and 0 <= band < self.bands:
            return int(in_time * self.bands + band)
        return None


def time_ms(text: object) -> int | None:
    """Milliseconds since 1970 of an ISO 8601 text with an offset; None for anything else."""
    try:
        return round((datetime.fromisoformat(str(text)) - _EPOCH) / _MS)
    except (TypeError, ValueError):
        return None


def number(value: object) -> float:
    """A number as float, or NaN for anything else and for what no level or length can be."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _BEYOND:
        return math.nan
    return float(value)


def _quantity(sink: Sink, part: object, name: str) -> float:
    value = number(part.get(name)) if isinstance(part, Mapping) else math.nan
    if value > 0:
        return value
    raise DestinationError(
        f"{RUN_KEY} in {sink.location} does not say what its {name} is: it was written by another "
        f"version of das-gpu, or changed by hand. Run the command again that began this run, with "
        f"--overwrite to start over if it is refused."
    )


def first_time_ms(sink: Sink, run: _Json) -> int:
    """Time of the archive's first sample."""
    source = run["identity"].get("source")
    found = time_ms(source.get("first_time")) if isinstance(source, Mapping) else None
    if found is None:
        raise DestinationError(
            f"{RUN_KEY} in {sink.location} does not say when its recording begins: it was written "
            f"by another version of das-gpu, or changed by hand. Run the command again that began "
            f"this run, with --overwrite to start over if it is refused."
        )
    return found


def row_starts(layout: Layout, known: Mapping[int, int], first_ms: int) -> NDArray[np.int64]:
    """Start of every row; of rows without a record, as far behind the last known as they are."""
    since = np.arange(layout.rows) * layout.row_ms
    if not known:
        first_ms += round(1000 * layout.sample_start / layout.sampling_rate_hz)
        return np.round(first_ms + since).astype(np.int64)
    rows = np.array(sorted(known))
    starts = np.array([known[row] for row in rows.tolist()])
    nearest = np.maximum(np.searchsorted(rows, np.arange(layout.rows), side="right") - 1, 0)
    lead = since - since[rows[nearest]]
    found: NDArray[np.int64] = np.round(starts[nearest] + lead).astype(np.int64)
    return found


def band_bounds(layout: Layout, known: Mapping[int, tuple[float, float]]) -> NDArray[np.float64]:
    """Start of every band and end of the last, by the records or by the channel spacing."""
    channels = layout.channel_start + np.arange(layout.bands + 1) * layout.band_stride
    channels[-1] += layout.band_span - layout.band_stride
    bounds: NDArray[np.float64] = (channels * layout.channel_spacing_m).astype(np.float64)
    for band, (start, stop) in sorted(known.items()):
        bounds[band] = start
        # Where bands overlap, one begins before the other ends.
        if band + 1 == layout.bands or layout.band_stride == layout.band_span:
            bounds[band + 1] = stop
    return bounds
