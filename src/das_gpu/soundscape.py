"""How a scene sounds on the cable: whales, a ship, the sea and the instrument, in counts.

The recording is a sum of parts. Everything but the noise of the single channels is a
function of the seed, the place and the time alone, so it runs on across the borders of
stored chunks and is the same for every chunk shape:

- the whales' notes, see `das_gpu.scene`;
- the gauge length, which averages strain along 51 m of cable. For a plane wave under the
  angle ``theta`` to the cable that is a moving average in time over
  ``gauge * cos(theta) / c``: the factor ``sinc(gauge * f * cos(theta) / c)``;
- a ship that runs along the cable and back: lines of its propeller over broadband noise;
- ocean swell (deep-water dispersion), slow drift of every channel, noise common to all
  channels (the laser's) and noise of each channel's own, falling towards high frequencies.

Sources: gauge length: Dean et al. 2017, doi:10.1111/1365-2478.12419; spherical spreading:
Urick, Principles of Underwater Sound.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from das_gpu.model import Window
from das_gpu.scene import BAND_HZ, NOISE_RMS, SOUND_SPEED_M_S, Note, Scene, Stream, generator, notes

GAUGE_M = 51.04762

COMMON_RATIO = 3.0
"""Common-mode noise over a channel's own noise, in the same band."""

_NOTE_REACH_M = 25_000.0
_SHIP_REACH_M = 6_000.0
_SHIP_OFFSET_M = 700.0
_SHIP_SPEED_M_S = 6.0
_SHIP_RMS = 300.0
_SHIP_LINES = ((7.3, 0.6), (14.6, 0.7), (21.9, 1.0), (29.2, 0.5))
_SHIP_INTERVAL_S = 5.0
_GRAVITY_M_S2 = 9.81
# One earlier sample added to each: noise that falls towards high frequencies, at the cost of
# one multiplication, and without a state to carry from chunk to chunk.
_COLOUR = np.float32(0.7)
_ROWS = 64
_FINE = 8


class Soundscape:
    """The recording of a scene, made a window at a time.

    Parameters
    ----------
    scene : Scene

    Notes
    -----
    Safe to call from several threads: nothing changes after construction.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        rng = generator(scene, Stream.CABLE)
        n = scene.channels
        self._distance_m: NDArray[np.float64] = np.arange(n, dtype=np.float64) * scene.spacing_m
        self._offset = np.rint(1.8e6 + 1e5 * rng.standard_normal(n)).astype(np.int32)
        self.dead_channels = _spread(rng, n, scene.dead)
        self._white_rms = NOISE_RMS / _band_gain(scene.rate_hz)
        spread_db = 2.0 * _undulation(rng, self._distance_m) + rng.standard_normal(n)
        self._noise_rms = (self._white_rms * 10 ** (spread_db / 20)).astype(np.float32)
        self._slow_hz, self._slow_weights = _slow_fields(rng, self._distance_m)
        self._notes = notes(scene)
        self._note_start_s = np.array([note.start_s for note in self._notes])
        self._ship = _Ship(scene)

    def counts(self, window: Window, key: tuple[int, int]) -> NDArray[np.int32]:
        """Record a window.

        Parameters
        ----------
        window : Window
            Channels and samples of the scene.
        key : (int, int)
            Names the window's own random stream: the chunk's indices (channel, sample).

        Returns
        -------
        ndarray of int32, (channel, sample)
            Counts; a dead channel holds its offset.
        """
        scene = self.scene
        rng = generator(scene, Stream.CHANNELS, *key)
        counter = scene.counter(window.t0, window.t1)
        # A clock that jumps inside the window splits it into runs of consecutive samples.
        cut = int(np.clip(scene.samples // 2 - window.t0, 0, counter.size))
        runs = [run for run in (slice(0, cut), slice(cut, counter.size)) if run.stop > run.start]
        phase = 2 * np.pi * self._slow_hz[:, None] * (counter / scene.rate_hz)
        common = [_noise(scene, Stream.COMMON, *_bounds(counter[run])) for run in runs]
        basis = np.concatenate(
            [np.cos(phase), np.sin(phase), [np.concatenate(common)]], dtype=np.float32
        )
        ship = [self._ship.sound(*_bounds(counter[run])) for run in runs]
        heard = [self._heard(*_bounds(counter[run])) for run in runs]

        out = np.empty((window.c1 - window.c0, counter.size), np.int32)
        for c0 in range(window.c0, window.c1, _ROWS):
            rows = slice(c0, min(c0 + _ROWS, window.c1))
            distance_m = self._distance_m[rows]
            field = self._slow_weights[rows] @ basis[:-1]
            field += basis[-1] * np.float32(COMMON_RATIO * self._white_rms)
            white = rng.standard_normal((distance_m.size, counter.size + 1), dtype=np.float32)
            white *= self._noise_rms[rows, None]
            field += white[:, 1:]
            white *= _COLOUR
            field += white[:, :-1]
            for run, sound, sung in zip(runs, ship, heard, strict=True):
                first = int(counter[run.start])
                self._ship.add(field[:, run], first, distance_m, sound)
                for note in sung:
                    _add_note(field[:, run], first / scene.rate_hz, scene.rate_hz, note, distance_m)
            part = out[rows.start - window.c0 : rows.stop - window.c0]
            np.rint(field, out=part, casting="unsafe")
            part += self._offset[rows, None]
        dead = self.dead_channels
        dead = dead[(dead >= window.c0) & (dead < window.c1)]
        out[dead - window.c0] = self._offset[dead, None]
        return out

    def _heard(self, first: int, last: int) -> list[Note]:
        """List the notes that may sound anywhere on the cable during samples ``[first, last)``."""
        rate_hz = self.scene.rate_hz
        earliest_s = first / rate_hz - _NOTE_REACH_M / SOUND_SPEED_M_S - 1.0
        low, high = np.searchsorted(self._note_start_s, [earliest_s, last / rate_hz])
        return list(self._notes[low:high])


class _Ship:
    """A ship that runs along the cable and back again, parallel to it."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        rng = generator(scene, Stream.SHIP)
        self._cable_m = scene.channels * scene.spacing_m
        self._start_m = self._cable_m * rng.uniform(0.12, 0.2)
        self._lag = math.ceil(_SHIP_REACH_M / SOUND_SPEED_M_S * scene.rate_hz) + 2
        gain = _band_gain(scene.rate_hz)
        self._broadband = np.float32(_SHIP_RMS / math.sqrt(2) / gain)
        self._lines = [
            (hz, _SHIP_RMS * weight * 0.75, phase)
            for (hz, weight), phase in zip(
                _SHIP_LINES, rng.uniform(0, 2 * np.pi, len(_SHIP_LINES)), strict=True
            )
        ]

    def along_m(self, time_s: float) -> float:
        """Position along the cable: up to the end, back to the start, and again."""
        way = (self._start_m + _SHIP_SPEED_M_S * time_s) % (2 * self._cable_m)
        return min(way, 2 * self._cable_m - way)

    def sound(self, first: int, last: int) -> NDArray[np.float32]:
        """Give what the ship radiates from ``first - lag`` to ``last``, finely sampled."""
        begin = first - self._lag
        noise = _noise(self._scene, Stream.SHIP_NOISE, begin, last + 1) * self._broadband
        coarse = np.arange(begin, last + 1)
        fine = begin + np.arange((last - begin) * _FINE) / _FINE
        sound = np.interp(fine, coarse, noise)
        for hz, amplitude, phase in self._lines:
            sound += amplitude * np.cos(2 * np.pi * hz * fine / self._scene.rate_hz + phase)
        radiated: NDArray[np.float32] = sound.astype(np.float32)
        return radiated

    def add(
        self,
        field: NDArray[np.float32],
        first: int,
        distance_m: NDArray[np.float64],
        sound: NDArray[np.float32],
    ) -> None:
        """Add the ship to consecutive samples from ``first`` on, at these points."""
        rate_hz = self._scene.rate_hz
        # Delay and strength run linearly inside intervals that are counted from the record's
        # start, so that no chunk border shows.
        step = round(_SHIP_INTERVAL_S * rate_hz)
        last = first + field.shape[1]
        for knot in range(first // step * step, last, step):
            range0_m, gain0 = self._paths(knot / rate_hz, distance_m)
            range1_m, gain1 = self._paths((knot + step) / rate_hz, distance_m)
            near = np.flatnonzero(np.maximum(range0_m, range1_m) < _SHIP_REACH_M)
            if not near.size:
                continue
            a, b = max(knot, first), min(knot + step, last)
            part = (np.arange(a - knot, b - knot) / step).astype(np.float32)
            fine_per_m = _FINE * rate_hz / SOUND_SPEED_M_S
            at = _ramp(range0_m[near] * fine_per_m, range1_m[near] * fine_per_m, part)
            # Positions count from the interval's own start: float32 is exact enough there.
            np.subtract((np.arange(b - a, dtype=np.float32) + self._lag) * _FINE, at, out=at)
            heard = sound[(a - first) * _FINE :].take(at.astype(np.int32))
            heard *= _ramp(gain0[near], gain1[near], part)
            field[near, a - first : b - first] += heard

    def _paths(
        self, time_s: float, distance_m: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        along = distance_m - self.along_m(time_s)
        range_m = np.hypot(along, _SHIP_OFFSET_M)
        middle_hz = math.sqrt(BAND_HZ[0] * BAND_HZ[1])
        gauge = np.sinc(GAUGE_M * middle_hz * np.abs(along) / range_m / SOUND_SPEED_M_S)
        # Spreading, faded out where the ship's sound would end abruptly.
        fade = np.clip(2 - 2 * range_m / _SHIP_REACH_M, 0, 1)
        return range_m, gauge * fade * _SHIP_OFFSET_M / range_m


def _add_note(
    field: NDArray[np.float32],
    begin_s: float,
    rate_hz: float,
    note: Note,
    distance_m: NDArray[np.float64],
) -> None:
    """Add a note to consecutive samples that begin at ``begin_s``, at these points."""
    range_m = note.range_m(distance_m)
    arrival_s = note.arrival_s(distance_m)
    cosine = np.abs(distance_m - note.along_m) / range_m
    average_s = np.maximum(GAUGE_M * cosine / SOUND_SPEED_M_S, 2e-3)
    begin = np.floor((arrival_s - average_s / 2 - begin_s) * rate_hz).astype(np.int64)
    width = math.ceil((note.duration_s + GAUGE_M / SOUND_SPEED_M_S) * rate_hz) + 2
    touched = (begin < field.shape[1]) & (begin + width > 0) & (range_m < _NOTE_REACH_M)
    rows = np.flatnonzero(touched)
    if not rows.size:
        return
    column = begin[rows, None] + np.arange(width)
    time_s = begin_s + column / rate_hz - arrival_s[rows, None]
    half_s = average_s[rows, None] / 2
    integral, fine_hz = _note_integral(note)
    value = _lookup(integral, (time_s + half_s) * fine_hz)
    value -= _lookup(integral, (time_s - half_s) * fine_hz)
    value *= (note.amplitude * note.nearest_m / range_m / average_s)[rows, None]
    inside = (column >= 0) & (column < field.shape[1])
    row = np.broadcast_to(rows[:, None], column.shape)
    field[row[inside], column[inside]] += value[inside]


def _note_integral(note: Note) -> tuple[NDArray[np.float64], float]:
    """Integrate a note of amplitude 1; give also the rate the integral is sampled at.

    The difference of two of its values over their distance in time is the note averaged over
    that time, which is what the gauge length does to it.
    """
    fine_hz = 3200.0
    start_hz, stop_hz = note.sweep_hz
    n = round(note.duration_s * fine_hz)
    time_s = np.arange(n + 1) / fine_hz
    span = start_hz - stop_hz
    growth = 1 + span * time_s / (stop_hz * note.duration_s)
    phase = 2 * np.pi * start_hz * stop_hz * note.duration_s / span * np.log(growth)
    wave = np.sin(phase) * np.hanning(n + 1)
    return np.concatenate([[0.0], np.cumsum((wave[1:] + wave[:-1]) / 2)]) / fine_hz, fine_hz


def _lookup(table: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear interpolation in an evenly sampled table, its end values beyond its ends."""
    at = np.clip(at, 0, table.size - 1)
    index = np.minimum(at.astype(np.intp), table.size - 2)
    low = table.take(index)
    low += (at - index) * (table.take(index + 1) - low)
    return low


def _ramp(
    left: NDArray[np.float64], right: NDArray[np.float64], part: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Lines from ``left`` to ``right``, (channel, sample)."""
    slope = (right - left).astype(np.float32)
    line: NDArray[np.float32] = left.astype(np.float32)[:, None] + slope[:, None] * part
    return line


def _slow_fields(
    rng: np.random.Generator, distance_m: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Swell and drift as frequencies and each channel's weights of their cosines and sines."""
    swell_hz = np.array([0.07, 0.085, 0.1, 0.12, 0.15, 0.21, 0.43, 0.8])
    swell_hz *= rng.uniform(0.97, 1.03, swell_hz.size)
    wavenumber = (2 * np.pi * swell_hz) ** 2 / _GRAVITY_M_S2
    height = 2600.0 * np.array([0.3, 0.7, 1.0, 0.8, 0.5, 0.3, 0.15, 0.07])
    # Swell presses on the sea floor near the shore and hardly in deep water.
    shore = (0.25 + 0.75 * np.exp(-distance_m / 15_000.0))[:, None] * height
    angle = wavenumber * distance_m[:, None] + rng.uniform(0, 2 * np.pi, swell_hz.size)

    drift_hz = np.array([1 / 1900, 1 / 610, 1 / 190, 1 / 61, 1 / 23, 0.13, 0.37, 0.9, 1.7, 3.1])
    shape = (2, distance_m.size, drift_hz.size)
    drift = rng.standard_normal(shape) * 140.0 * drift_hz**-0.6
    weights = np.concatenate(
        [shore * np.cos(angle), drift[0], shore * np.sin(angle), drift[1]], axis=1
    )
    return np.concatenate([swell_hz, drift_hz]), weights.astype(np.float32)


def _undulation(rng: np.random.Generator, distance_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth random curve along the cable, mean square near 1."""
    length_m = np.geomspace(120.0, 6000.0, 12)
    phase = rng.uniform(0, 2 * np.pi, length_m.size)
    curve = np.zeros_like(distance_m)
    for wavelength, start in zip(length_m, phase, strict=True):
        curve += np.cos(2 * np.pi * distance_m / wavelength + start)
    return curve * math.sqrt(2 / length_m.size)


def _spread(rng: np.random.Generator, n: int, number: int) -> NDArray[np.intp]:
    """Pick ``number`` different indices below ``n``, one in each of as many equal stretches."""
    edges = np.linspace(0, n, number + 1).astype(np.intp)
    return rng.integers(edges[:-1], edges[1:]).astype(np.intp)


def _noise(scene: Scene, stream: Stream, first: int, last: int) -> NDArray[np.float32]:
    """Coloured noise of white variance 1 at counter values ``[first, last)``.

    Drawn in blocks that are counted from the record's start, whatever is asked for.
    """
    block = 4096
    # Spawn keys cannot be negative; a wave heard at the start was radiated before it.
    shift = 1 << 20
    parts = [
        generator(scene, stream, k + shift).standard_normal(block, dtype=np.float32)
        for k in range((first - 1) // block, (last - 1) // block + 1)
    ]
    begin = first - 1 - (first - 1) // block * block
    white = np.concatenate(parts)[begin : begin + last - first + 1]
    coloured: NDArray[np.float32] = white[1:] + _COLOUR * white[:-1]
    return coloured


def _band_gain(rate_hz: float) -> float:
    """Rms between 14 and 35 Hz of coloured noise made from white noise of rms 1."""
    hz = np.linspace(*BAND_HZ, 200)
    power = 1 + _COLOUR**2 + 2 * _COLOUR * np.cos(2 * np.pi * hz / rate_hz)
    return math.sqrt(float(np.mean(power)) * 2 * (BAND_HZ[1] - BAND_HZ[0]) / rate_hz)


def _bounds(counter: NDArray[np.int64]) -> tuple[int, int]:
    return int(counter[0]), int(counter[-1]) + 1
