"""Measure what science.md says: every number in its tables, from the product's own arithmetic.

Usage: ``python docs/science.py`` prints the numbers as JSON; ``--write`` puts them into
``science.json``, the tables into ``science.md`` and, with matplotlib, the figures into ``figures``.
Everything is synthetic and seeded: nothing but das-gpu is needed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from science_page import FLOOR_DB, Numbers, phrases, with_tables

import das_gpu
from das_gpu import Recipe, filters, reference
from das_gpu.model import Acquisition, Optics
from das_gpu.plan import plan
from das_gpu.scene import Note, Scene
from das_gpu.simulate import simulate

HERE = Path(__file__).resolve().parent
RATE_HZ = 200.0
BAND = filters.BandPass(14.0, 35.0, 8, RATE_HZ)
GAUGE_M = 51.04762
FALLS_DB = (20, 40, 60, 120, 140)
HALOS_S = (0.0, 0.5, 1.0, 2.0)
SLOW = (0.0, 10.0, 100.0, 1000.0)
CHANNELS = (25, 60, 240, 600)
TONES_HZ = np.arange(2.0, 99.0, 0.5)
TILE_S = 15.0
WITHIN_DB = 60.0
"""Levels are compared where the truth is so near to its maximum."""

Real: TypeAlias = NDArray[np.float64]


def measure() -> Numbers:
    """All that the page quotes, by section: plain numbers, lists and dictionaries."""
    return {
        "units": units(),
        "grid": grid(),
        "filter": band_pass(),
        "aliasing": aliasing(),
        "edges": edges(),
        "median": median(),
        "aperture": aperture(),
        "agreement": agreement(),
    }


def units() -> Numbers:
    """Strain of a count, and the frequency that a gauge length cannot hear along the cable."""
    optics = Optics(gauge_length_m=GAUGE_M, refractive_index=1.4682, wavelength_m=1550.12e-9)
    return {
        "strain_per_count": optics.strain_per_count,
        "offset_db": optics.offset_db,
        "gauge_null_hz": 1500.0 / GAUGE_M,
    }


def grid() -> Numbers:
    """Tiles of 54.4 hours of a cable of 47,500 channels, from channel 10,000 on."""
    cable = Acquisition(
        shape=(47_500, 39_168_000),
        chunk_shape=(3000, 3000),
        dims=("distance", "time"),
        dtype="int32",
        sampling_rate_hz=RATE_HZ,
        channel_spacing_m=2.0419,
        start_ns=0,
        last_ns=39_167_999 * 5_000_000,
    )
    made = plan(cable, Recipe().with_settings({"selection.channel_start": 10_000}))
    return {
        "rows": made.rows,
        "bands": made.bands,
        "tiles": made.n_tiles,
        "segments": made.n_segments,
        "tile_samples": made.tile_samples,
        "band_channels": made.band_channels,
        "band_km": made.band_channels * made.channel_step * cable.channel_spacing_m / 1000,
        "pixel_ms": 1000 * TILE_S / 256,
        "pixel_m": made.band_channels * made.channel_step * cable.channel_spacing_m / 256,
        "halo_s": made.halo_before / RATE_HZ,
        "window_samples": made.window_span // made.time_step,
    }


def band_pass() -> Numbers:
    """The default filter: how fast it falls, in frequency and in time."""

    def down_db(hz: float) -> float:
        return float(-20 * np.log10(filters.squared_response(BAND, hz)))

    inside_hz = np.linspace(BAND.low_hz, BAND.high_hz, 2001)
    at_half_rate = filters.BandPass(BAND.low_hz, BAND.high_hz, BAND.order, RATE_HZ / 2)
    warped_db = 20 * np.log10(
        filters.squared_response(BAND, inside_hz)
        / filters.squared_response(at_half_rate, inside_hz)
    )
    seconds, level = impulse_response()
    return {
        "corner_db": down_db(BAND.low_hz),
        "down_50_hz_db": down_db(50.0),
        "down_65_hz_db": down_db(65.0),
        "warping_db": float(np.abs(warped_db).max()),
        "fall_s": {str(db): float(seconds[level > -db][-1]) for db in FALLS_DB},
        "rejection_db": filters.alias_rejection_db(BAND, 2, "iir"),
        "rejection_wide_db": filters.alias_rejection_db(
            filters.BandPass(14.0, 48.0, 8, RATE_HZ), 2, "iir"
        ),
    }


def impulse_response() -> tuple[Real, Real]:
    """Seconds from the impulse, and the envelope of the zero-phase response, dB under its peak."""
    n = 1 << 15
    hz = np.arange(n) * (RATE_HZ / 2 / n)
    envelope = np.abs(np.fft.ifft(filters.squared_response(BAND, hz), 8 * n))[: 4 * n]
    seconds = np.arange(envelope.size) / (8 * RATE_HZ / 2)
    shown = slice(0, int(2.5 * 8 * RATE_HZ / 2))
    return seconds[shown], 20 * np.log10(envelope[shown] / envelope[0])


def envelope_db(counts: NDArray[Any], settings: Mapping[str, Any], preset: str) -> Real:
    """Level of every kept sample, as the product computes it in float64."""
    recipe = Recipe.from_preset(preset).with_settings(
        {
            "archive.sampling_rate_hz": RATE_HZ,
            "selection.channel_step": 1,
            "median.kind": "none",
            "compute.dtype": "float64",
            **settings,
        }
    )
    return np.asarray(das_gpu.envelope(xr.DataArray(counts, dims=("distance", "time")), recipe))


def tone_levels_db() -> dict[str, Real]:
    """Level in the image of tones of one amplitude, by recipe, dB re 1 count."""
    seconds = np.arange(int(TILE_S * RATE_HZ)) / RATE_HZ
    tones = 1000 * np.sin(2 * np.pi * TONES_HZ[:, None] * seconds + 0.3)
    shown = {}
    for preset in ("continuous", "notebook"):
        level = envelope_db(tones, {"tile.seconds": TILE_S}, preset)
        n = level.shape[1]
        shown[preset] = np.median(level[:, n // 4 : 3 * n // 4], axis=1) - 120.0
    return shown


def aliasing() -> Numbers:
    """What a tone that folds into the band looks like in either recipe, against one inside it."""
    levels = tone_levels_db()

    def level(preset: str, hz: float) -> float:
        against = levels[preset] - levels[preset][np.argmin(np.abs(TONES_HZ - 25.0))]
        return max(FLOOR_DB, float(against[np.argmin(np.abs(TONES_HZ - hz))]))

    return {
        hz: {preset: level(preset, float(hz)) for preset in levels}
        for hz in ("25", "50", "65", "75", "85")
    }


def noise(channels: int, samples: int) -> Real:
    """Random walks under a swell a hundred times as strong as what they have in the band."""
    rng = np.random.default_rng(3)
    walk = rng.standard_normal((channels, samples)).cumsum(axis=1)
    in_band = np.sqrt(np.mean(np.abs(analytic(walk)) ** 2) / 2)
    seconds = np.arange(samples) / RATE_HZ
    return np.asarray(
        np.rint(1.8e6 + 100 * walk + 10_000 * in_band * swell(rng, channels, seconds))
    )


def swell(rng: np.random.Generator, channels: int, seconds: Real) -> Real:
    """Three waves of 2 to 20 s on each channel, root mean square 1."""
    cycles = rng.uniform(0.05, 0.5, (channels, 3, 1)) * seconds + rng.random((channels, 3, 1))
    return np.asarray(np.sqrt(2 / 3) * np.sin(2 * np.pi * cycles).sum(axis=1))


def edge_errors(halo_s: float, method: str, counts: Real, truth: Real) -> Real:
    """Error in dB of every sample of tiles of 15 s, (tile, channel, sample); NaN where faint."""
    settings = {"tile.seconds": TILE_S, "filter.halo_s": halo_s, "filter.method": method}
    found = envelope_db(counts, settings, "continuous")
    error = np.where(truth > truth.max() - WITHIN_DB, np.abs(found - truth), np.nan)
    tiles = error.reshape(counts.shape[0], -1, int(TILE_S * RATE_HZ / 2))
    # The record's own ends have no halo beyond them, in the truth as little as in the tiles.
    return tiles.transpose(1, 0, 2)[1:-1]


def recorded() -> tuple[Real, Real]:
    """A record of seven tiles, and its levels when it is filtered as a whole."""
    counts = noise(24, int(7 * TILE_S * RATE_HZ))
    return counts, envelope_db(counts, {"tile.seconds": 7 * TILE_S}, "continuous")


def edges() -> Numbers:
    """How wrong tiles are that are filtered with this much beside them."""
    counts, truth = recorded()
    found: Numbers = {}
    for halo_s in HALOS_S:
        each = found[f"{halo_s:g}"] = {}
        for method in ("spectral", "iir"):
            error = edge_errors(halo_s, method, counts, truth)
            each[f"{method} max_db"] = float(np.nanmax(error))
            each[f"{method} rms_db"] = float(np.sqrt(np.nanmean(error**2)))
    without, with_line = detrending(counts)
    return {"halo_s": found, "without line": without, "with line": with_line}


def detrending(counts: Real) -> tuple[float, float]:
    """Root mean square error in dB at a halo of 1 s, without and with the line taken off."""
    halo, core = int(RATE_HZ), int(TILE_S * RATE_HZ)
    first = 3 * core
    truth = level_db(analytic(counts))[:, first : first + core]
    window = counts[:, first - halo : first + core + halo]
    line = window[:, :1] + (window[:, -1:] - window[:, :1]) * np.linspace(0, 1, window.shape[1])
    near = truth > truth.max() - WITHIN_DB
    errors = [
        (level_db(analytic(each, line_off=False))[:, halo : halo + core] - truth)[near]
        for each in (window, window - line)
    ]
    without, with_line = (float(np.sqrt(np.mean(error**2))) for error in errors)
    return without, with_line


def analytic(samples: Real, *, line_off: bool = True) -> NDArray[np.complex128]:
    """Band-passed analytic signal of whole traces by the zero-phase response."""
    n = samples.shape[-1]
    if line_off:
        ends = samples[..., :1], samples[..., -1:]
        samples = samples - ends[0] - (ends[1] - ends[0]) * np.linspace(0, 1, n)
    weights = filters.spectral_weights(BAND, n, 1) * n
    spectrum = np.zeros(samples.shape, np.complex128)
    spectrum[..., : weights.size] = np.fft.rfft(samples)[..., : weights.size] * weights
    return np.asarray(np.fft.ifft(spectrum))


def level_db(signal: NDArray[np.complex128]) -> Real:
    """Of an analytic signal, dB re 1e-6 count."""
    return np.asarray(20 * np.log10(np.abs(signal) / 1e-6))


def median() -> Numbers:
    """What is left of common noise, in units of the channels' own in-band noise, by method.

    600 channels with offsets of a million counts and noise of their own, common noise three times
    as strong in the band, and a swell below it that differs from channel to channel.
    """
    rng = np.random.default_rng(5)
    n = 2400
    own, common = rng.standard_normal((600, n)), 3 * rng.standard_normal(n)
    offset = 1e6 * rng.standard_normal((600, 1))
    slowly = swell(rng, 600, np.arange(n) / RATE_HZ)
    middle = slice(n // 6, -n // 6)
    strength = np.sqrt(np.mean(np.abs(analytic(own)[:, middle]) ** 2))
    result: Numbers = {}
    for slow in SLOW:
        # What the swell itself leaves in the band is no remainder of the common noise.
        quiet = offset + own + slow * slowly
        counts, wanted = quiet + common, analytic(quiet)
        parts = analytic(counts)
        centred = counts - np.median(counts, axis=1, keepdims=True)
        ways = {
            "none": parts,
            "raw": analytic(counts - np.median(counts, axis=0)),
            "centred": analytic(centred - np.median(centred, axis=0)),
            "filtered": parts
            - (np.median(parts.real, axis=0) + 1j * np.median(parts.imag, axis=0)),
        }
        result[f"{slow:g}"] = {
            name: float(np.sqrt(np.mean(np.abs((found - wanted)[:, middle]) ** 2)) / strength)
            for name, found in ways.items()
        }
    return result


def common_mode(signals: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Median over channels, of the real and of the imaginary part."""
    return np.asarray(np.median(signals.real, axis=0) + 1j * np.median(signals.imag, axis=0))


def aperture() -> Numbers:
    """What the common-mode median takes of a fin whale's note at its apex, dB, least and most.

    Channels are 10 m apart and centred on the apex; the note is 15 dB above their noise.
    """
    rng = np.random.default_rng(9)
    result: Numbers = {}
    for channels in CHANNELS:
        distance_m = 10.0 * (np.arange(channels) - channels / 2)
        losses = []
        for high in (True, False):
            for offset_m in (300.0, 1000.0, 2400.0):
                note = Note(1.0, 0.0, offset_m, 1.0, high)
                clean = analytic(sung(note, distance_m))
                own = analytic(rng.standard_normal(clean.shape))
                own /= np.sqrt(np.mean(np.abs(own) ** 2))
                own *= np.abs(clean[channels // 2]).max() / 10 ** (15 / 20)
                heard = clean + own
                heard -= common_mode(heard)
                # How much of the clean note is in what is left, averaged over 100 m at the apex.
                apex = slice(channels // 2 - 5, channels // 2 + 5)
                share = np.vdot(clean[apex], heard[apex]) / np.vdot(clean[apex], clean[apex])
                losses.append(-20 * math.log10(abs(share)))
        result[str(channels)] = {"least_db": min(losses), "most_db": max(losses)}
    return result


def sung(note: Note, distance_m: Real) -> Real:
    """A note as channels hear it: a hyperbolic down-sweep, later and weaker with distance."""
    seconds = np.arange(1000) / RATE_HZ - note.arrival_s(distance_m)[:, None]
    first_hz, last_hz = note.sweep_hz
    product, fall = first_hz * last_hz * note.duration_s, first_hz - last_hz
    inside = (seconds > 0) & (seconds < note.duration_s)
    since = np.where(inside, seconds, 0.0)
    cycles = product / fall * np.log1p(fall * since / (last_hz * note.duration_s))
    hann = np.sin(np.pi * since / note.duration_s) ** 2
    weaker = (note.nearest_m / note.range_m(distance_m))[:, None]
    return np.asarray(np.where(inside, weaker * hann * np.sin(2 * np.pi * cycles), 0.0))


def agreement() -> Numbers:
    """Both recipes on a minute of a synthetic cable, against plain SciPy and the whole record."""
    scene = Scene(channels=240, seconds=60.0, spacing_m=50.0, seed=4, chunk_shape=(240, 3000))
    with tempfile.TemporaryDirectory() as folder:
        archive = das_gpu.open_archive(simulate(Path(folder) / "cable.zarr", scene))
        counts = archive.dataset.RawData.values
        one = {"tile.bands": 1, "selection.channel_step": 1}
        notebook = Recipe.from_preset("notebook").with_settings(one)
        in_float32 = {**one, "compute.dtype": "float32"}
        single = Recipe.from_preset("notebook").with_settings(in_float32)
        images, rounded = (
            [np.asarray(tile.pixels) for tile in das_gpu.stream(archive.location.prefix, recipe)]
            for recipe in (notebook, single)
        )
    sos = reference.sections(BAND.low_hz, BAND.high_hz, BAND.order, RATE_HZ / 2)
    expected = []
    for tile in range(4):
        core = counts[:, ::2][:, tile * 1500 : (tile + 1) * 1500]
        level = reference.envelope_db(reference.analytic(core, sos))
        expected.append(reference.picture(level, *reference.levels(level), 256, 256))
    apart = np.abs(np.subtract(images, expected, dtype=int))
    by_rounding = np.abs(np.subtract(images, rounded, dtype=int))

    settings = {"median.kind": "channel"}
    truth = envelope_db(counts, {**settings, "tile.seconds": 60.0}, "continuous")
    tiles = envelope_db(
        counts, {**settings, "tile.seconds": TILE_S, "compute.dtype": "float32"}, "continuous"
    )
    whole = {"tile.seconds": 60.0, "median.kind": "channel", "filter.method": "iir"}
    near = truth > truth.max() - WITHIN_DB
    inner = slice(1500, 4500)
    error = np.abs(tiles - truth)[:, inner][near[:, inner]]
    methods = np.abs(envelope_db(counts, whole, "continuous") - truth)[:, inner][near[:, inner]]
    return {
        "notebook_pixels_that_differ": int((apart > 0).sum()),
        "notebook_float32_levels": int(by_rounding.max()),
        "notebook_float32_share": float((by_rounding > 0).mean()),
        "continuous_rms_db": float(np.sqrt(np.mean(error**2))),
        "continuous_999_db": float(np.quantile(error, 0.999)),
        "continuous_max_db": float(error.max()),
        "iir_rms_db": float(np.sqrt(np.mean(methods**2))),
    }


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--write", action="store_true", help="science.json, science.md, figures")
    write = parser.parse_args().write
    found = measure()
    text = json.dumps(found, indent=1) + "\n"
    if not write:
        sys.stdout.write(text)
        return
    # It draws what this module measures, so it can only be imported when this one is there.
    from science_figures import draw

    (HERE / "science.json").write_text(text)
    page = with_tables((HERE / "science.md").read_text(), found)
    (HERE / "science.md").write_text(page)
    draw(HERE / "figures", found)
    if wrong := [phrase for phrase in phrases(found) if phrase not in page]:
        sys.exit("The text of science.md has to say: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
