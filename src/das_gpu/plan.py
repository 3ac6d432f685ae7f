"""Acquisition + Recipe -> Plan of segments and tiles. Pure integers, no I/O.

Every index is the archive's own. A tile row is one tile duration of all bands, a segment a
run of tile rows. Rows, and bands, may overlap: the next begins before one ends. A row's window
is its core with halos; it may reach beyond the record.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from das_gpu import filters, units
from das_gpu.errors import RecipeError
from das_gpu.halo import check_window, halo
from das_gpu.model import Acquisition, Segment, Tile, Window
from das_gpu.recipe import Recipe

ALIAS_LIMIT_DB = 60.0
APERTURE_M = 5000.0
"""Shortest cable over which a common-mode median cannot erase a whale call."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be read and made, down to the last sample.

    Attributes
    ----------
    sample_start, sample_stop : int
        The requested range of archive samples.
    channel_start, channel_stop : int
        The requested range of archive channels.
    selected_channels : int
        Channels (or whole groups of channels) that the step leaves of that range.
    rows, bands : int
        Tile rows (time) and bands (distance); every pair is a tile.
    tile_samples, band_channels : int
        Kept samples and kept channels of a tile.
    halo_before, halo_after : int
        Archive samples read before and after a tile's core.
    common_mode : bool
        Whether the median over the live channels is subtracted.
    rows_per_segment : int
        Tile rows in a segment (the last may have fewer).
    """

    acquisition: Acquisition
    recipe: Recipe
    sample_start: int
    sample_stop: int
    channel_start: int
    channel_stop: int
    selected_channels: int
    rows: int
    bands: int
    tile_samples: int
    band_channels: int
    halo_before: int
    halo_after: int
    common_mode: bool
    rows_per_segment: int
    notes: tuple[str, ...]

    @property
    def time_step(self) -> int:
        """Archive samples per kept sample."""
        return self.recipe.selection.time_step

    @property
    def channel_step(self) -> int:
        """Archive channels per kept channel."""
        return self.recipe.selection.channel_step

    @property
    def hold_step(self) -> int:
        """Archive samples per sample held for processing: 1 unless striding comes first."""
        return self.time_step if self.recipe.filter.decimate == "before" else 1

    @property
    def tile_span(self) -> int:
        """Archive samples a tile's core covers."""
        return self.tile_samples * self.time_step

    @property
    def tile_stride(self) -> int:
        """Kept samples from the start of a tile to that of the next, less where tiles overlap."""
        return _stride(self.tile_samples, self.recipe.tile.overlap_time)

    @property
    def row_stride(self) -> int:
        """`tile_stride` in archive samples."""
        return self.tile_stride * self.time_step

    @property
    def band_stride(self) -> int:
        """Kept channels from the start of a band to that of the next, less where they overlap."""
        return _stride(self.band_channels, self.recipe.tile.overlap_channels)

    @property
    def covered_span(self) -> int:
        """Archive samples from the start of the first tile to the end of the last."""
        return (self.rows - 1) * self.row_stride + self.tile_span

    @property
    def window_span(self) -> int:
        """Archive samples a tile's core covers with its halos."""
        return self.halo_before + self.tile_span + self.halo_after

    @property
    def kept_channels(self) -> int:
        """Channels (or groups of channels) that are processed: those of whole bands."""
        return (self.bands - 1) * self.band_stride + self.band_channels

    @property
    def read_channels(self) -> tuple[int, int]:
        """Archive channels ``[c0, c1)`` that hold every kept channel."""
        last = self.channel_start + (self.kept_channels - 1) * self.channel_step
        tail = self.channel_step if self.recipe.selection.channel_reduce == "mean" else 1
        return self.channel_start, last + tail

    @property
    def unused_channels(self) -> int:
        """Kept channels (or groups) beyond the last whole band, which make no image."""
        return self.selected_channels - self.kept_channels

    @property
    def unused_samples(self) -> int:
        """Selected archive samples after the last whole tile."""
        return max(0, self.sample_stop - self.sample_start - self.covered_span)

    @property
    def n_tiles(self) -> int:
        """Tiles in the plan."""
        return self.rows * self.bands

    @property
    def n_segments(self) -> int:
        """Segments in the plan."""
        return -(-self.rows // self.rows_per_segment)

    def segment(self, number: int) -> Segment:
        """The segment of this number, with everything it reads."""
        row0 = number * self.rows_per_segment
        row1 = min(self.rows, row0 + self.rows_per_segment)
        t0 = self.sample_start + row0 * self.row_stride - self.halo_before
        t1 = t0 + (row1 - row0 - 1) * self.row_stride + self.window_span
        c0, c1 = self.read_channels
        return Segment(
            id=number,
            row0=row0,
            row1=row1,
            read=Window(max(0, t0), min(self.acquisition.n_samples, t1), c0, c1),
        )

    def segments(self) -> Iterator[Segment]:
        """Every segment, in order."""
        return map(self.segment, range(self.n_segments))

    def tile(self, row: int, band: int) -> Tile:
        """The tile of this row and band."""
        t0 = self.sample_start + row * self.row_stride
        width = self.band_channels * self.channel_step
        c0 = self.channel_start + band * self.band_stride * self.channel_step
        return Tile(
            id=row * self.bands + band,
            row=row,
            band=band,
            core=Window(t0, t0 + self.tile_span, c0, c0 + width),
        )

    def tiles(self, segment: Segment) -> Iterator[Tile]:
        """The segment's tiles, row by row."""
        for row in range(segment.row0, segment.row1):
            for band in range(self.bands):
                yield self.tile(row, band)

    def kept_channel(self, kept: int) -> float:
        """Archive channel of a kept channel: a group's centre for ``mean``."""
        step, mean = self.channel_step, self.recipe.selection.channel_reduce == "mean"
        return self.channel_start + kept * step + (step - 1) / 2 * mean

    def kept_distance_m(self, kept: int) -> float:
        """Distance along the cable of a kept channel."""
        return self.acquisition.distance_m(self.kept_channel(kept))

    def chunk_grid(self, segment: Segment) -> tuple[range, range]:
        """Stored chunks a segment reads: (chunk rows along channels, columns along time)."""
        channels, samples = self.acquisition.chunk_shape
        read = segment.read
        return (
            range(read.c0 // channels, -(-read.c1 // channels)),
            range(read.t0 // samples, -(-read.t1 // samples)),
        )

    @property
    def chunk_reads(self) -> int:
        """Stored chunks fetched over the whole run; one request each."""
        return sum(
            len(rows) * len(columns) for rows, columns in map(self.chunk_grid, self.segments())
        )

    @property
    def read_amplification(self) -> float:
        """Samples decoded for each sample inside the tiles' own range of channels and time.

        Above 1 because chunks are read whole, and twice when halos make two segments need one.
        """
        channels, samples = self.acquisition.chunk_shape
        c0, c1 = self.read_channels
        return self.chunk_reads * channels * samples / ((c1 - c0) * self.covered_span)

    def resolved(self) -> dict[str, int | float | bool]:
        """The selection in plain numbers: part of a run's identity."""
        tile = self.recipe.tile
        overlap = {"tile_stride": self.tile_stride, "band_stride": self.band_stride}
        return {
            "sampling_rate_hz": self.acquisition.sampling_rate_hz,
            "channel_spacing_m": self.acquisition.channel_spacing_m,
            "channel_start": self.channel_start,
            "channel_step": self.channel_step,
            "bands": self.bands,
            "band_channels": self.band_channels,
            "sample_start": self.sample_start,
            "sample_step": self.time_step,
            "rows": self.rows,
            "tile_samples": self.tile_samples,
            "halo_before": self.halo_before,
            "halo_after": self.halo_after,
            "common_mode": self.common_mode,
            **(overlap if tile.overlap_time or tile.overlap_channels else {}),
        }


def plan(
    acquisition: Acquisition,
    recipe: Recipe,
    sample_range: tuple[int, int] | None = None,
    *,
    segment_minutes: float = 15.0,
) -> Plan:
    """Lay a recipe's tiles and segments over a recording.

    Parameters
    ----------
    acquisition : Acquisition
        The recording.
    recipe : Recipe
        What to compute; its start and stop times are not looked at here.
    sample_range : (int, int), optional
        Archive samples ``[start, stop)`` that the start and stop times came to; the whole
        record by default.
    segment_minutes : float
        Length of a segment; it changes no pixel.

    Raises
    ------
    RecipeError
        When the recipe cannot be carried out on this recording, naming value and limit.
    """
    rate_hz = acquisition.sampling_rate_hz
    step = recipe.selection.time_step
    s0, s1 = sample_range or (0, acquisition.n_samples)
    if not 0 <= s0 < s1 <= acquisition.n_samples:
        raise RecipeError(
            f"The sample range {s0}:{s1} is empty or outside the record, "
            f"which holds samples 0:{acquisition.n_samples}."
        )
    band = _band(recipe, rate_hz)
    c0, c1, kept_channels = _channels(acquisition, recipe)
    bands = recipe.tile.bands
    band_channels = kept_channels // bands
    if band_channels == 0:
        raise RecipeError(
            f"{bands} bands cannot be made of {kept_channels} kept channels; "
            f"select more channels, a smaller channel step, or at most {kept_channels} bands."
        )
    # Overlapping bands are as wide as others would be, and more.
    bands = 1 + (bands - 1) * band_channels // _stride(band_channels, recipe.tile.overlap_channels)
    tile_samples = math.floor(recipe.tile.seconds * rate_hz / step + 0.5)
    kept_samples = -(-(s1 - s0) // step)
    before, after = halo(recipe, band, tile_samples, acquisition)
    check_window(recipe, band, tile_samples, before + after)
    stride = _stride(tile_samples, recipe.tile.overlap_time)
    rows = max(0, (kept_samples - tile_samples) // stride + 1)
    if rows == 0:
        raise RecipeError(
            f"The selected time range holds {(s1 - s0) / rate_hz:.3f} s, less than one tile of "
            f"{recipe.tile.seconds:g} s; select a longer range or shorter tiles."
        )
    if segment_minutes <= 0:
        raise RecipeError(f"A segment of {segment_minutes:g} minutes is empty; give more than 0.")
    whole_rows = int(segment_minutes * 60 * rate_hz / (stride * step) + 1e-9)
    draft = Plan(
        acquisition=acquisition,
        recipe=recipe,
        sample_start=s0,
        sample_stop=s1,
        channel_start=c0,
        channel_stop=c1,
        selected_channels=kept_channels,
        rows=rows,
        bands=bands,
        tile_samples=tile_samples,
        band_channels=band_channels,
        halo_before=before,
        halo_after=after,
        common_mode=False,
        rows_per_segment=min(rows, max(1, whole_rows)),
        notes=(),
    )
    common_mode, median_note = _common_mode(draft)
    return replace(draft, common_mode=common_mode, notes=(*_notes(draft), *median_note))


def _stride(length: int, overlap: float) -> int:
    """Samples or channels from one tile to the next, of tiles that share a part; at least 1."""
    return max(1, length - math.floor(length * overlap + 0.5))


def _band(recipe: Recipe, rate_hz: float) -> filters.BandPass:
    """The band-pass at the rate it is applied at, or a refusal."""
    step = recipe.selection.time_step
    before = recipe.filter.decimate == "before"
    filter_rate_hz = rate_hz / step if before else rate_hz
    low, high = recipe.filter.low_hz, recipe.filter.high_hz
    if high >= filter_rate_hz / 2:
        raise RecipeError(
            f"The band {low:g}-{high:g} Hz reaches the Nyquist frequency of "
            f"{filter_rate_hz / 2:g} Hz, half the rate it is filtered at; "
            f"filter.high_hz must be below it."
        )
    band = filters.BandPass(low, high, recipe.filter.order, filter_rate_hz)
    if not before:
        method = recipe.filter.method
        rejection_db = filters.alias_rejection_db(band, step, method)
        if rejection_db < ALIAS_LIMIT_DB:
            largest = filters.largest_step(band, method, ALIAS_LIMIT_DB)
            raise RecipeError(
                f"Keeping every {step}. sample of {rate_hz:g} Hz would fold frequencies into the "
                f"band {low:g}-{high:g} Hz that the {method} filter rejects by only "
                f"{rejection_db:.0f} dB; {ALIAS_LIMIT_DB:.0f} dB are required. "
                f"The largest selection.time_step that would do is {largest}."
            )
    return band


def _channels(acquisition: Acquisition, recipe: Recipe) -> tuple[int, int, int]:
    """The selected channels [c0, c1) and how many of them (or groups of them) are kept."""
    selection, n = recipe.selection, acquisition.n_channels
    c0 = selection.channel_start
    c1 = n if selection.channel_stop is None else selection.channel_stop
    if c0 >= n or c1 > n:
        asked = "" if selection.channel_stop is None else c1
        raise RecipeError(
            f"The channels {c0}:{asked} are outside the archive, which holds channels 0:{n}. "
            "Select others with --channels."
        )
    length, step = c1 - c0, selection.channel_step
    kept = length // step if selection.channel_reduce == "mean" else -(-length // step)
    if acquisition.positions is not None:
        acquisition.positions.refuse_outside(c0, c0 + (kept - 1) * step)
    return c0, c1, kept


def _common_mode(draft: Plan) -> tuple[bool, tuple[str, ...]]:
    """Whether to subtract the median over channels, and what to say about it."""
    kind = draft.recipe.median.kind
    if kind != "auto":
        return kind == "channel", ()
    span_m = abs(draft.kept_distance_m(draft.kept_channels - 1) - draft.kept_distance_m(0))
    if span_m >= APERTURE_M:
        return True, ()
    what = f"No common-mode median: the selected channels span {span_m / 1000:.2f} km, and below"
    why = f"{APERTURE_M / 1000:g} km it would erase calls. Ask for it with --median channel."
    return False, (f"{what} {why}",)


def _notes(draft: Plan) -> Iterator[str]:
    """What a user should know before the run."""
    acquisition = draft.acquisition
    yield from units.notes(acquisition, draft.recipe)
    if acquisition.channel_spacing_origin == "assumed":
        yield (
            f"The archive does not state its channel spacing: assuming "
            f"{acquisition.channel_spacing_m:g} m. Give --channel-spacing if it is another."
        )
    if draft.unused_channels:
        yield (
            f"{draft.unused_channels} kept channels beyond the last whole band "
            f"({draft.bands} bands of {draft.band_channels}) make no image."
        )
    if draft.unused_samples:
        length = f"{draft.unused_samples / acquisition.sampling_rate_hz:.3f} s"
        yield f"{draft.unused_samples} samples ({length}) beyond the last tile make no image."
