"""The nouns of das-gpu: frozen dataclasses, nothing else.

Indices are half-open and count the archive's own samples and channels. Times are
nanoseconds since 1970-01-01 UTC in a Python ``int``; frequencies are in Hz, lengths in
metres, levels in dB re 1e-6 count unless a run's units are others.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from enum import StrEnum

from das_gpu.positions import Positions


class Status(StrEnum):
    """What became of a tile; of several reasons the first in this order counts."""

    ERROR = "error"
    CORRUPT = "corrupt"
    MISSING = "missing"
    GAP = "gap"
    EDGE = "edge"
    OK = "ok"

    @property
    def delivered(self) -> bool:
        """True when an image was made."""
        return self in (Status.OK, Status.EDGE)

    @property
    def rank(self) -> int:
        """0 for the gravest; ``min`` of several ranks is the tile's status."""
        return list(Status).index(self)


@dataclass(frozen=True, slots=True)
class Window:
    """Samples ``[t0, t1)`` of channels ``[c0, c1)``, in archive indices."""

    t0: int
    t1: int
    c0: int
    c1: int


@dataclass(frozen=True, slots=True)
class Optics:
    """What makes strain of an interrogator's counts of optical phase.

    A count is 2 pi / 2**16 rad; 0.78 is the photoelastic scaling factor of fibre glass.

    Attributes
    ----------
    gauge_length_m, refractive_index, wavelength_m : float
        Gauge length along the cable; of the fibre; of the light in vacuum.
    gauge_length_origin, refractive_index_origin, wavelength_origin : str
        Where each comes from.

    Examples
    --------
    >>> f"{Optics(51.04762, 1.4682, 1550.12e-9).strain_per_count:.4e}"
    '2.0230e-13'
    """

    gauge_length_m: float
    refractive_index: float
    wavelength_m: float
    gauge_length_origin: str = "recipe"
    refractive_index_origin: str = "recipe"
    wavelength_origin: str = "recipe"

    @property
    def strain_per_count(self) -> float:
        """Strain of one count."""
        phase = 2 * math.pi / 2**16
        path_m = 0.78 * 4 * math.pi * self.refractive_index * self.gauge_length_m
        return phase * self.wavelength_m / path_m

    @property
    def offset_db(self) -> float:
        """What a level in dB re 1e-6 count is less than the same in dB re 1 strain; negative."""
        return 20 * math.log10(self.strain_per_count * 1e-6)


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What the archive says of the recording, before any sample is read.

    Attributes
    ----------
    shape : (int, int)
        (channel, sample), whatever the order in the store.
    chunk_shape : (int, int)
        One stored chunk, (channel, sample).
    dims : (str, str)
        ``("distance", "time")`` or ``("time", "distance")``: the order in the store.
    dtype : str
        NumPy's name of the sample type: int16, int32, float32 or float64.
    sampling_rate_hz, channel_spacing_m : float
        Resolved values; the ``*_origin`` fields say where each comes from.
    start_ns, last_ns : int
        Times of the first and of the last sample.
    distances_m : tuple of float or None
        The source's own distance coordinate, one value per channel, when it has one.
    codec : str
        Secret-free description of the chunk encoding, part of the run's identity.
    optics : Optics or None
        None when neither archive nor recipe says the gauge length.
    quantity : str
        What the archive says that its samples are, when that is not counts, and where it says so.
    positions : Positions or None
        Of the channels, where a table of them was given.
    """

    shape: tuple[int, int]
    chunk_shape: tuple[int, int]
    dims: tuple[str, str]
    dtype: str
    sampling_rate_hz: float
    channel_spacing_m: float
    start_ns: int
    last_ns: int
    sampling_rate_origin: str = "recipe"
    channel_spacing_origin: str = "recipe"
    distances_m: tuple[float, ...] | None = None
    codec: str = ""
    optics: Optics | None = None
    quantity: str = ""
    positions: Positions | None = None

    @property
    def n_channels(self) -> int:
        """Channels in the archive."""
        return self.shape[0]

    @property
    def n_samples(self) -> int:
        """Samples per channel in the archive."""
        return self.shape[1]

    def distance_m(self, channel: float) -> float:
        """Distance along the cable of a channel index (fractional for a group's centre)."""
        listed_m = None if self.positions is None else self.positions.distance_m(channel)
        if listed_m is not None:
            return listed_m
        if self.distances_m is None:
            return self.channel_spacing_m * channel
        low = min(int(channel), self.n_channels - 1)
        high = min(low + 1, self.n_channels - 1)
        part = channel - low
        return self.distances_m[low] * (1 - part) + self.distances_m[high] * part


@dataclass(frozen=True, slots=True)
class Tile:
    """One image to be: ``core`` is what it shows, without halos."""

    id: int
    row: int
    band: int
    core: Window


@dataclass(frozen=True, slots=True)
class Segment:
    """The unit of scheduling, retry and resume: whole tile rows ``[row0, row1)``.

    ``read`` is all that is read for it, halos included, clipped to the record.
    """

    id: int
    row0: int
    row1: int
    read: Window


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring kept channels ``[k0, k1)`` of one tile row with the same usable samples.

    ``[v0, v1)`` counts held samples from the window's start: the longest run around the
    tile's core without a jump, a lost chunk or the record's end. It is empty when nothing
    of these channels can be used. ``status`` is what the span makes of a tile.
    """

    k0: int
    k1: int
    v0: int
    v1: int
    status: Status
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RowWindow:
    """One row of tiles (all bands, one tile duration), ready to be processed.

    ``held0`` is the ring's index of the window's first sample and ``length`` the window's
    length in held samples. ``spans`` cover every kept channel once, in order. ``quality``
    is the OR of the quality bits over the tile's core.
    """

    row: int
    held0: int
    length: int
    spans: tuple[Span, ...]
    start_ns: int
    end_ns: int
    quality: int


@dataclass(frozen=True, slots=True)
class RingLayout:
    """How a segment's held samples lie in a ring: a slot for each column of stored chunks.

    A slot holds one column's samples of every kept channel, channel after channel; slots are
    used in turn.

    Attributes
    ----------
    first : int
        Number of the first column.
    bounds : tuple of int
        Held sample at which each column begins, and at which the last one ends.
    slots : int
        Columns held at once.
    channels : int
        Kept channels.
    dtype : str
        NumPy's name of the samples' type.
    blocks : tuple of int
        Kept channel at which each row of stored chunks begins, and at which the last one ends.
    time_major : bool
        The archive stores time before channels, so that a backend may keep each block of a slot
        sample after sample.
    aside : int
        Samples of a channel for which there is room besides the slots: what is still wanted of
        the oldest column may be kept there, so that its slot is free.
    """

    first: int
    bounds: tuple[int, ...]
    slots: int
    channels: int
    dtype: str
    blocks: tuple[int, ...]
    time_major: bool
    aside: int = 0

    @property
    def width(self) -> int:
        """Held samples of the widest column."""
        return max(b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False))

    @property
    def capacity(self) -> int:
        """Samples that fit in all slots, and beside them."""
        return self.channels * (self.slots * self.width + self.aside)

    def oldest(self, held0: int) -> tuple[int, int]:
        """The column that holds a sample, and how many of it are left from that sample on."""
        n = min(max(bisect_right(self.bounds, held0) - 1, 0), len(self.bounds) - 2)
        return self.first + n, self.bounds[n + 1] - max(held0, self.bounds[n])

    def first_slot(self, held0: int) -> int:
        """The first column that needs its slot while samples from ``held0`` on are wanted."""
        column, left = self.oldest(held0)
        return column + (left <= self.aside)

    def samples(self, column: int) -> tuple[int, int]:
        """Held samples of a column, half-open."""
        return self.bounds[column - self.first], self.bounds[column - self.first + 1]

    def pieces(self, held0: int, held1: int) -> list[tuple[int, int, int]]:
        """Columns that hold samples ``[held0, held1)``: (column, its first and last part + 1).

        The parts count from the column's own first sample.
        """
        found = []
        for n in range(max(bisect_right(self.bounds, held0) - 1, 0), len(self.bounds) - 1):
            start, stop = self.bounds[n], self.bounds[n + 1]
            low, high = max(start, held0), min(stop, held1)
            if low < high:
                found.append((self.first + n, low - start, high - start))
            if stop >= held1:
                break
        return found


PLACE_FIELDS = ("longitude_start", "latitude_start", "longitude_stop", "latitude_stop")
OPTIONAL_FIELDS = ("db_reference", *PLACE_FIELDS)
"""Of a `TileRecord`: left out of its line where they are None."""


@dataclass(frozen=True, slots=True)
class TileRecord:
    """One line of the manifest. Field names are part of the format; see README.

    The last fields are in it where the run has them: ``db_reference`` when levels are not in
    dB re 1e-6 count, and the degrees when the channels' positions are known.
    """

    file_name: str | None
    status: str
    segment: int
    start_time: str
    end_time: str
    channel_start: int
    channel_stop: int
    channel_step: int
    sample_start: int
    sample_stop: int
    sample_step: int
    distance_start_m: float
    distance_stop_m: float
    db_low: float | None
    db_high: float | None
    dead_channels: int
    quality: int
    sha256: str | None
    split_key: str
    reason: str | None = None
    array_file: str | None = None
    db_reference: str | None = None
    longitude_start: float | None = None
    latitude_start: float | None = None
    longitude_stop: float | None = None
    latitude_stop: float | None = None

    def as_json(self) -> dict[str, object]:
        """Fields as they stand in the manifest: ``array_file`` only for arrays."""
        # `asdict` copies every value, at ten times the cost.
        fields: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        for name in OPTIONAL_FIELDS:
            if fields[name] is None:
                del fields[name]
        if self.array_file is None:
            del fields["array_file"]
        else:
            del fields["file_name"]
        return fields
