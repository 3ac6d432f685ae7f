"""From a pixel of a tile to time and cable, and back.

A kept sample is drawn where its share of the image is: of ``n`` samples on ``size`` pixels,
sample ``k`` covers pixels ``k * size / n`` to ``(k + 1) * size / n``, and so do channels. Points
are pixels as programs index them: a whole number is a pixel's centre. Boxes are edges: 0 is the
image's first edge, its width or height the last, so ``(0, 0, width, height)`` is the whole tile.

>>> record = {"sample_start": 0, "sample_stop": 3000, "sample_step": 2,
...     "start_time": "2021-11-01T23:11:14.834000Z", "end_time": "2021-11-01T23:11:29.834000Z",
...     "channel_start": 10000, "channel_stop": 13750, "channel_step": 5,
...     "distance_start_m": 20419.0, "distance_stop_m": 28076.125}
>>> place = locate(record, x=128, y=64)
>>> str(place.time), place.channel, round(place.distance_m, 1)
('2021-11-01T23:11:18.608296875', 11880, 24257.4)
>>> [round(at, 6) for at in pixel_at(record, place.time, place.distance_m)]
[128.0, 64.0]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from das_gpu.errors import DestinationError, UsageError
from das_gpu.model import TileRecord
from das_gpu.recipe import Recipe
from das_gpu.runfile import RUN_KEY, require_run
from das_gpu.sink import open_sink
from das_gpu.store import Access

Record = Mapping[str, Any] | TileRecord
"""A line of ``metadata.jsonl``, read as JSON, or what a run handed out."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How the images of a run lie: what a record does not say, for all tiles have it in common.

    Attributes
    ----------
    height, width : int or None
        Pixels; None for arrays, which have one for each kept channel and sample.
    orientation : {"time-down", "time-right"}
        time-down: rows are times, columns are channels. Arrays are time-right.
    highest : int
        Highest pixel value: 255, or 65535 of 16 bits.

    Examples
    --------
    >>> from das_gpu import Recipe
    >>> Frame.of_recipe(Recipe()) == Frame()
    True
    """

    height: int | None = 256
    width: int | None = 256
    orientation: Literal["time-down", "time-right"] = "time-down"
    highest: int = 255

    @classmethod
    def of(cls, out: str | Path, access: Access | None = None) -> Frame:
        """Frame of the run in a folder or container.

        Parameters
        ----------
        out : str or Path
            What was given to `extract`.
        access : Access, optional
            Credential and patience, for a container.

        Raises
        ------
        DestinationError
            When there is no run, or it does not tell its recipe.
        """
        sink = open_sink(out, access)
        run = require_run(sink)
        try:
            return cls.of_recipe(Recipe.model_validate(run.get("recipe")))
        except UsageError as error:
            raise DestinationError(
                f"{RUN_KEY} in {sink.location} does not tell its recipe: it was written by another "
                f"version of das-gpu, or changed by hand. Give a Frame with the images' size."
            ) from error

    @classmethod
    def of_recipe(cls, recipe: Recipe) -> Frame:
        """Frame of the images that a recipe makes."""
        image = recipe.image
        if image.format == "npy":
            return cls(None, None, "time-right")
        highest = 65535 if image.format == "png16" else 255
        return cls(image.height, image.width, image.orientation, highest)


@dataclass(frozen=True, slots=True)
class Place:
    """What a pixel of a tile shows.

    Attributes
    ----------
    time_ns : int
        Nanoseconds since 1970-01-01 UTC, of the pixel's centre.
    channel_at : float
        Archive channel, between two of them; of means of channels the first of the group.
    channel : int
        The nearest channel that the tile shows.
    distance_m : float
        Along the cable.
    """

    time_ns: int
    channel_at: float
    channel: int
    distance_m: float

    @property
    def time(self) -> np.datetime64:
        """`time_ns` as NumPy's datetime64[ns], UTC."""
        return np.datetime64(self.time_ns, "ns")


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a box on a tile holds: half-open, in whole kept samples and channels.

    Attributes
    ----------
    start_ns, stop_ns : int
        Times of the first sample and of one period after the last, since 1970-01-01 UTC.
    sample_start, sample_stop, channel_start, channel_stop : int
        In archive indices, as in a tile's record.
    distance_start_m, distance_stop_m : float
        Along the cable, of the first channel and of one kept channel after the last.
    """

    start_ns: int
    stop_ns: int
    sample_start: int
    sample_stop: int
    channel_start: int
    channel_stop: int
    distance_start_m: float
    distance_stop_m: float

    @property
    def start(self) -> np.datetime64:
        """`start_ns` as NumPy's datetime64[ns], UTC."""
        return np.datetime64(self.start_ns, "ns")

    @property
    def stop(self) -> np.datetime64:
        """`stop_ns` as NumPy's datetime64[ns], UTC."""
        return np.datetime64(self.stop_ns, "ns")


@dataclass(frozen=True, slots=True)
class _Axis:
    """``count`` kept samples or channels on ``pixels`` pixels."""

    count: int
    pixels: int

    def index(self, pixel: float, name: str) -> float:
        """Kept sample or channel, fractional, at a pixel; a whole pixel is its centre."""
        if not -0.5 <= pixel <= self.pixels - 0.5:
            raise UsageError(
                f"{name} = {pixel:g} is outside the image, whose {name} goes from 0 to "
                f"{self.pixels - 1}. Give the Frame of the run if its images have another size."
            )
        return (pixel + 0.5) * self.count / self.pixels - 0.5

    def pixel(self, index: float) -> float:
        """The inverse of `index`, beyond the image's edges too."""
        return (index + 0.5) * self.pixels / self.count - 0.5

    def whole(self, low: float, high: float, name: str) -> tuple[int, int]:
        """Kept samples or channels between two edges, those whose centre is there; at least one."""
        if not 0 <= low < high <= self.pixels:
            raise UsageError(
                f"The box's {name} goes from {low:g} to {high:g}: it must ascend, and lie between "
                f"the image's edges, 0 and {self.pixels}. Give the Frame of the run if its images "
                f"have another size."
            )
        first, last = (math.floor(edge * self.count / self.pixels + 0.5) for edge in (low, high))
        if last == first:
            first = min(int((low + high) / 2 * self.count / self.pixels), self.count - 1)
            last = first + 1
        return first, last


def locate(record: Record, x: float, y: float, frame: Frame | None = None) -> Place:
    """Time and place that a pixel of a tile shows.

    Parameters
    ----------
    record : mapping or TileRecord
        The tile's line of ``metadata.jsonl``.
    x, y : float
        Column and row; whole numbers are pixels' centres, from -0.5 to half a pixel beyond the
        last is on the image.
    frame : Frame, optional
        Size and orientation of the images: ``Frame.of(OUT)``. By default 256 x 256, time down.

    Returns
    -------
    Place
        Times are exact to the clock's own jitter inside the tile, and distances to its cable's:
        both run evenly from the record's start to its stop.

    Raises
    ------
    UsageError
        When the pixel is not on the image.

    Notes
    -----
    A tile's edge is not an edge of the sound: a call that reaches it goes on in the next tile.
    """
    frame = frame or Frame()
    time, cable = _axes(record, frame)
    down = frame.orientation == "time-down"
    sample = time.index(y if down else x, "y" if down else "x")
    kept = cable.index(x if down else y, "x" if down else "y")
    start, period = _clock(record)
    first, step = field_of(record, "channel_start"), field_of(record, "channel_step")
    zero, spacing = _cable(record)
    nearest = min(max(math.floor(kept + 0.5), 0), cable.count - 1)
    return Place(
        time_ns=start + round(sample * period),
        channel_at=first + kept * step,
        channel=first + nearest * step,
        distance_m=zero + kept * spacing,
    )


def pixel_at(
    record: Record,
    time: np.datetime64 | int,
    distance_m: float,
    frame: Frame | None = None,
) -> tuple[float, float]:
    """Pixel (x, y) of a time and a place on the cable: the inverse of `locate`.

    Parameters
    ----------
    record, frame
        As to `locate`.
    time : datetime64 or int
        UTC; an int counts nanoseconds since 1970.
    distance_m : float

    Returns
    -------
    (float, float)
        A whole number is a pixel's centre. What the tile does not show has a place too: below
        -0.5, or beyond the width or height less 0.5.
    """
    frame = frame or Frame()
    on_time, on_cable = _axes(record, frame)
    start, period = _clock(record)
    zero, spacing = _cable(record)
    at = time if isinstance(time, int) else int(time.astype("datetime64[ns]").astype(np.int64))
    along = on_time.pixel((at - start) / period)
    across = on_cable.pixel((distance_m - zero) / spacing)
    return (across, along) if frame.orientation == "time-down" else (along, across)


def locate_box(
    record: Record, box: tuple[float, float, float, float], frame: Frame | None = None
) -> Stretch:
    """Time span and stretch of cable that a box on a tile holds.

    Parameters
    ----------
    record, frame
        As to `locate`.
    box : (x0, y0, x1, y1)
        Edges, in pixels from the image's upper left corner, as annotation tools give them (COCO's
        ``bbox`` is (x, y, width, height)); ``(0, 0, width, height)`` is the whole tile.

    Returns
    -------
    Stretch
        The samples and channels whose centres lie in the box; at least one of each.

    Raises
    ------
    UsageError
        When the box is empty, descends or leaves the image.
    """
    frame = frame or Frame()
    time, cable = _axes(record, frame)
    x, y = (box[0], box[2]), (box[1], box[3])
    down = frame.orientation == "time-down"
    t0, t1 = time.whole(*(y if down else x), "y" if down else "x")
    k0, k1 = cable.whole(*(x if down else y), "x" if down else "y")
    start, period = _clock(record)
    zero, spacing = _cable(record)
    sample, sample_step = field_of(record, "sample_start"), field_of(record, "sample_step")
    channel, channel_step = field_of(record, "channel_start"), field_of(record, "channel_step")
    return Stretch(
        start_ns=start + round(t0 * period),
        stop_ns=start + round(t1 * period),
        sample_start=sample + t0 * sample_step,
        sample_stop=sample + t1 * sample_step,
        channel_start=channel + k0 * channel_step,
        channel_stop=channel + k1 * channel_step,
        distance_start_m=zero + k0 * spacing,
        distance_stop_m=zero + k1 * spacing,
    )


def _axes(record: Record, frame: Frame) -> tuple[_Axis, _Axis]:
    """A tile's time and its cable, as axes of the image."""
    n_samples, n_channels = _counts(record)
    down = frame.orientation == "time-down"
    along, across = (frame.height, frame.width) if down else (frame.width, frame.height)
    return _Axis(n_samples, along or n_samples), _Axis(n_channels, across or n_channels)


def field_of(record: Record, name: str) -> Any:
    """Give a field of a record.

    Raises
    ------
    UsageError
        When it has none of that name.
    """
    try:
        return getattr(record, name) if isinstance(record, TileRecord) else record[name]
    except KeyError as error:
        raise UsageError(
            f"The record has no {name}: give a line of metadata.jsonl, read as JSON."
        ) from error


def _counts(record: Record) -> tuple[int, int]:
    """Kept samples and kept channels of a tile."""
    samples, channels = (
        (field_of(record, f"{what}_stop") - field_of(record, f"{what}_start"))
        // field_of(record, f"{what}_step")
        for what in ("sample", "channel")
    )
    return samples, channels


def _clock(record: Record) -> tuple[int, float]:
    """Time of a tile's first sample, and how long a kept sample takes; in ns."""
    start, end = (
        int(np.datetime64(field_of(record, name).removesuffix("Z"), "ns").astype(np.int64))
        for name in ("start_time", "end_time")
    )
    return start, (end - start) / _counts(record)[0]


def _cable(record: Record) -> tuple[float, float]:
    """Distance of a tile's first channel, and from one kept channel to the next; in m."""
    start, stop = field_of(record, "distance_start_m"), field_of(record, "distance_stop_m")
    return start, (stop - start) / _counts(record)[1]
