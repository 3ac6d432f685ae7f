"""What happens along a synthetic cable: the scene, and the notes that whales sing in it.

Fin-whale notes are hyperbolic down-sweeps, 28.8 to 17.8 Hz in 0.68 s and 21.8 to 14.7 Hz in
0.78 s in turn, every 20 to 21 s, with a pause about every twelve minutes. A note reaches a
channel after ``hypot(along, offset, depth) / c`` and weakens with the inverse of that distance.

Sources: the call templates of DAS4Whales (https://github.com/DAS4Whales/DAS4Whales); Wilcock
et al. 2023, whale calls on the cables recorded in November 2021, doi:10.1121/10.0017104.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from das_gpu.errors import UsageError

SOUND_SPEED_M_S = 1490.0
SOURCE_DEPTH_M = 30.0
BAND_HZ = (14.0, 35.0)

NOISE_RMS = 150.0
"""One channel's own noise between 14 and 35 Hz, counts; an envelope near 45 dB re 1 count."""


_MINIMUM_RATE_HZ = 80.0


class Stream(IntEnum):
    """First spawn key of each independent random stream."""

    CABLE = 0
    WHALES = 1
    SHIP = 2
    SHIP_NOISE = 3
    COMMON = 4
    CHANNELS = 5
    LOSSES = 6


@dataclass(frozen=True, slots=True)
class Scene:
    """What to simulate; the same scene gives the same archive.

    Attributes
    ----------
    channels : int
        Channels along the cable.
    seconds : float
        Length of the record, gap not counted.
    seed : int
        Everything random follows from it.
    rate_hz, spacing_m : float
        Sampling rate and channel spacing.
    chunk_shape : (int, int)
        One stored chunk, (channel, sample).
    start_ns : int
        Time of the first sample, nanoseconds since 1970-01-01 UTC, whole microseconds.
    gap_s : float
        Jump of the clock and of the sample counter in the middle of the record; rounded to
        whole samples, negative to run backwards.
    dead : int
        Channels that record a constant.
    missing, corrupt : int
        Chunks of the recording that are left out, and that are stored cut short.

    Raises
    ------
    UsageError
        When a value makes no recording, naming it and the limit.
    """

    channels: int = 3000
    seconds: float = 120.0
    seed: int = 1
    rate_hz: float = 200.0
    spacing_m: float = 2.0419
    chunk_shape: tuple[int, int] = (3000, 3000)
    start_ns: int = 1_635_808_274_834_000_000
    gap_s: float = 0.0
    dead: int = 0
    missing: int = 0
    corrupt: int = 0

    def __post_init__(self) -> None:
        for name in ("channels", "seed", "start_ns", "dead", "missing", "corrupt"):
            _require_least(name, getattr(self, name), 1 if name == "channels" else 0)
        for length in self.chunk_shape:
            _require_least("chunk_shape", length, 1)
        for name in ("seconds", "rate_hz", "spacing_m"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"A scene needs {name} above 0; it is {value}.")
        if self.rate_hz < _MINIMUM_RATE_HZ:
            raise UsageError(
                f"A scene sampled at {self.rate_hz:g} Hz cannot hold fin-whale notes, which "
                f"reach 28.8 Hz; ask for {_MINIMUM_RATE_HZ:g} Hz or more."
            )
        if self.samples < 1:
            raise UsageError(
                f"{self.seconds:g} s at {self.rate_hz:g} Hz is less than one sample; "
                "ask for a longer record."
            )
        if self.start_ns % 1000:
            raise UsageError(
                f"The archive's clock counts microseconds; start_ns={self.start_ns} is not a "
                "whole number of them."
            )
        if not math.isfinite(self.gap_s) or (self.gap_s != 0 and self.gap_samples == 0):
            raise UsageError(
                f"A gap of {self.gap_s} s is no jump at {self.rate_hz:g} Hz; ask for 0 or for at "
                f"least one sample, {1 / self.rate_hz:g} s."
            )
        if self.samples // 2 + self.gap_samples < 0:
            raise UsageError(
                f"A gap of {self.gap_s:g} s sets the clock back to before the record's start; "
                f"with {self.seconds:g} s it can go back {self.seconds / 2:g} s at most."
            )
        if self.dead > self.channels:
            raise UsageError(
                f"{self.dead} channels cannot be dead out of {self.channels}: ask for fewer."
            )
        rows, columns = self.chunk_grid
        if self.missing + self.corrupt > rows * columns:
            raise UsageError(
                f"{self.missing} missing and {self.corrupt} corrupt chunks are more than the "
                f"{rows * columns} that this scene has: ask for fewer."
            )

    @property
    def samples(self) -> int:
        """Samples of each channel."""
        return round(self.seconds * self.rate_hz)

    @property
    def gap_samples(self) -> int:
        """Samples that the clock leaves out in the middle of the record."""
        return round(self.gap_s * self.rate_hz)

    @property
    def chunk_grid(self) -> tuple[int, int]:
        """Numbers of chunks along (channel, sample)."""
        return -(-self.channels // self.chunk_shape[0]), -(-self.samples // self.chunk_shape[1])

    def counter(self, t0: int, t1: int) -> NDArray[np.int64]:
        """Sample intervals since the first sample, for samples ``[t0, t1)``; it jumps at a gap."""
        index = np.arange(t0, t1, dtype=np.int64)
        index[max(self.samples // 2 - t0, 0) :] += self.gap_samples
        return index

    def lost_chunks(self) -> tuple[frozenset[tuple[int, int]], frozenset[tuple[int, int]]]:
        """Chunk indices (channel, sample) that are missing, and those that are corrupt."""
        rows, columns = self.chunk_grid
        number = self.missing + self.corrupt
        chosen = generator(self, Stream.LOSSES).choice(rows * columns, number, replace=False)
        keys = [divmod(int(k), columns) for k in chosen]
        return frozenset(keys[: self.missing]), frozenset(keys[self.missing :])


@dataclass(frozen=True, slots=True)
class Note:
    """One note of one whale.

    ``amplitude`` is the note's own peak in counts at the nearest point of the cable, before
    the band-pass; ``start_s`` counts from the record's first sample.
    """

    start_s: float
    along_m: float
    offset_m: float
    amplitude: float
    high: bool

    @property
    def duration_s(self) -> float:
        """Length of the note at its source."""
        return 0.68 if self.high else 0.78

    @property
    def sweep_hz(self) -> tuple[float, float]:
        """Frequency at the note's start and at its end."""
        return (28.8, 17.8) if self.high else (21.8, 14.7)

    @property
    def nearest_m(self) -> float:
        """Distance from the whale to the nearest point of the cable."""
        return math.hypot(self.offset_m, SOURCE_DEPTH_M)

    def range_m(self, distance_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance from the whale to points of the cable."""
        ranges: NDArray[np.float64] = np.hypot(distance_m - self.along_m, self.nearest_m)
        return ranges

    def arrival_s(self, distance_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """When the note begins at points of the cable, seconds since the first sample."""
        return self.start_s + self.range_m(distance_m) / SOUND_SPEED_M_S


def notes(scene: Scene) -> tuple[Note, ...]:
    """Every note sung during the record, by start.

    One whale sings near the middle of the cable from the first seconds on; longer cables hear
    one more for each 16 km.

    Parameters
    ----------
    scene : Scene

    Returns
    -------
    tuple of Note
    """
    rng = generator(scene, Stream.WHALES)
    cable_m = scene.channels * scene.spacing_m
    end_s = (scene.samples + max(scene.gap_samples, 0)) / scene.rate_hz
    singers = 1 + int(cable_m // 16_000)
    sung: list[Note] = []
    for singer in range(singers):
        if singer == 0:
            along_m = cable_m * rng.uniform(0.45, 0.55)
            offset_m = rng.uniform(600.0, 1500.0)
            start_s = min(scene.seconds, 15.0) * rng.uniform(0.2, 0.4)
            bout_end_s = start_s + rng.uniform(660.0, 780.0)
        else:
            along_m = cable_m * (singer - rng.uniform(0.0, 1.0)) / (singers - 1)
            offset_m = rng.uniform(300.0, 2400.0)
            start_s = rng.uniform(0.0, 20.0)
            bout_end_s = start_s + rng.uniform(0.0, 780.0)
        snr_db = rng.uniform(14.5, 16.5)
        high = True
        while start_s < end_s:
            # 3/16 is the mean square of a sine of amplitude 1 under a Hann window.
            level_db = snr_db + rng.uniform(-0.5, 0.5)
            amplitude = NOISE_RMS * 10 ** (level_db / 20) / math.sqrt(3 / 16)
            sung.append(Note(start_s, along_m, offset_m, amplitude, high))
            high = not high
            start_s += rng.uniform(20.0, 21.0)
            if start_s > bout_end_s:
                start_s += rng.uniform(90.0, 180.0)
                bout_end_s = start_s + rng.uniform(660.0, 780.0)
    return tuple(sorted(sung, key=lambda note: note.start_s))


def generator(scene: Scene, stream: Stream, *key: int) -> np.random.Generator:
    """Make the random generator of one part of the scene; ``key`` are integers of 0 or more."""
    sequence = np.random.SeedSequence(scene.seed, spawn_key=(int(stream), *key))
    return np.random.Generator(np.random.SFC64(sequence))


def _require_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"A scene needs {name} of at least {least}; it is {value}.")
