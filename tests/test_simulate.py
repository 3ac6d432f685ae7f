"""A synthetic archive looks, sounds and fails like a recorded one."""

from __future__ import annotations

import json
import struct
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from das_gpu import simulate as simulation
from das_gpu.errors import DestinationError, UsageError
from das_gpu.simulate import Note, Scene, demo_archive, notes, simulate

SMALL = Scene(channels=50, seconds=4.0, chunk_shape=(20, 300), seed=3)
RATE_HZ = 200.0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("small") / "a.zarr", SMALL)


def files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def read(path: Path, name: str = "RawData") -> NDArray[np.generic]:
    return np.asarray(zarr.open_consolidated(str(path), mode="r")[name][...])


# --- layout


def test_the_layout_is_that_of_the_published_archive(small: Path) -> None:
    group = zarr.open_consolidated(str(small), mode="r")
    assert dict(group.attrs) == {}
    raw = group["RawData"]
    assert (raw.shape, raw.chunks, raw.dtype) == ((50, 800), (20, 300), np.int32)
    for name, dtype in {"RawDataTime": "i8", "RawDataSampleCount": "i8", "GpsStatus": "u1"}.items():
        assert (group[name].shape, group[name].chunks) == ((800,), (300,))
        assert group[name].dtype == np.dtype(dtype)
    metadata = json.loads((small / ".zmetadata").read_text())["metadata"]
    assert metadata["RawData/.zarray"]["fill_value"] is None
    assert metadata["RawData/.zarray"]["compressor"] == {
        "id": "blosc",
        "cname": "lz4",
        "clevel": 5,
        "shuffle": 1,
        "blocksize": 0,
    }
    assert metadata["RawData/.zattrs"] == {"_ARRAY_DIMENSIONS": ["distance", "time"]}
    assert metadata["RawDataTime/.zattrs"] == {"_ARRAY_DIMENSIONS": ["time"]}
    for key, entry in metadata.items():
        assert json.loads((small / key).read_text()) == entry


def test_chunks_at_the_edges_are_stored_whole(small: Path) -> None:
    for name in ("0.0", "2.2"):
        header = (small / "RawData" / name).read_bytes()[:16]
        decoded, _, stored = struct.unpack("<III", header[4:])
        assert decoded == 20 * 300 * 4
        assert stored == (small / "RawData" / name).stat().st_size


def test_the_clock_starts_at_the_recordings_start_and_ticks_at_its_rate(small: Path) -> None:
    time_us = read(small, "RawDataTime")
    assert time_us[0] == np.datetime64("2021-11-01T23:11:14.834", "us").astype(np.int64)
    assert np.all(np.diff(time_us) == 5000)
    assert np.array_equal(read(small, "RawDataSampleCount"), np.arange(800))
    assert np.all(read(small, "GpsStatus") == 3)


def test_the_clock_does_not_depend_on_the_chunks(small: Path, tmp_path: Path) -> None:
    other = simulate(tmp_path / "b.zarr", replace(SMALL, chunk_shape=(50, 800)))
    assert np.array_equal(read(other, "RawDataTime"), read(small, "RawDataTime"))


def test_a_rate_that_is_no_whole_number_of_microseconds_does_not_drift(tmp_path: Path) -> None:
    scene = replace(SMALL, rate_hz=300.0)
    time_us = read(simulate(tmp_path / "a.zarr", scene), "RawDataTime")
    assert time_us[-1] - time_us[0] == round(1e6 * 1199 / 300)


def test_axes_without_samples(tmp_path: Path, small: Path) -> None:
    bare = files(simulate(tmp_path / "bare.zarr", SMALL, samples=False))
    whole = files(small)
    recorded = {key for key in whole if key.startswith("RawData/") and "/." not in key}
    assert len(recorded) == 9
    assert bare == {key: data for key, data in whole.items() if key not in recorded}


@pytest.mark.slow
def test_axes_of_the_published_archive(tmp_path: Path) -> None:
    scene = Scene(channels=47_500, seconds=39_168_000 / RATE_HZ)
    path = simulate(tmp_path / "full.zarr", scene, samples=False)
    time = zarr.open_consolidated(str(path), mode="r")["RawDataTime"]
    assert (time.shape, time.nchunks) == ((39_168_000,), 13_056)
    assert time[-1] - time[0] == 39_167_999 * 5000
    assert sum(len(data) for data in files(path).values()) < 100e6


# --- one seed


def test_the_same_scene_gives_the_same_bytes(small: Path, tmp_path: Path) -> None:
    assert files(simulate(tmp_path / "again.zarr", SMALL)) == files(small)


def test_another_seed_gives_another_recording(small: Path, tmp_path: Path) -> None:
    other = read(simulate(tmp_path / "other.zarr", replace(SMALL, seed=4)))
    assert np.mean(other == read(small)) < 0.01


def test_a_changed_simulator_must_count_up_its_version(small: Path) -> None:
    # Cached demonstration archives are named by SCENE_VERSION: when these samples change,
    # raise it. Two counts are left to other processors' rounding.
    assert simulation.SCENE_VERSION == 1
    assert read(small)[7::20, 399::200] == pytest.approx(FINGERPRINT, abs=2)


FINGERPRINT = np.array(
    [[1909435, 1905429, 1905579], [1700567, 1698322, 1699921], [1848150, 1849436, 1849302]]
)


def test_no_seam_shows_where_chunks_meet(small: Path) -> None:
    steps = np.diff(read(small).astype(np.int64), axis=1)
    own = np.abs(steps - np.median(steps, axis=0)).mean(axis=0)
    # Each chunk draws its own channels' noise anew: 1.4 times the usual step, and no more.
    assert own[[299, 599]].max() < 1.7 * np.median(own)


# --- what can be asked for


def test_dead_channels_are_constant_and_the_others_are_not(tmp_path: Path) -> None:
    raw = read(simulate(tmp_path / "a.zarr", replace(SMALL, dead=5)))
    dead = np.flatnonzero(raw.max(axis=1) == raw.min(axis=1))
    assert dead.size == 5
    # One in each fifth of the cable: spread out, not in a row.
    assert np.array_equal(dead // 10, np.arange(5))


@pytest.mark.parametrize("gap_s", [7.5, -1.0])
def test_a_gap_moves_clock_and_counter_in_the_middle(tmp_path: Path, gap_s: float) -> None:
    path = simulate(tmp_path / "a.zarr", replace(SMALL, gap_s=gap_s))
    expected = np.full(799, 5000)
    expected[399] += round(gap_s * 1e6)
    assert np.array_equal(np.diff(read(path, "RawDataTime")), expected)
    assert np.array_equal(np.diff(read(path, "RawDataSampleCount")), expected // 5000)
    assert read(path).shape == (50, 800)


def test_lost_chunks_are_absent_or_cut_short(small: Path, tmp_path: Path) -> None:
    scene = replace(SMALL, missing=2, corrupt=1)
    whole, found = files(small), files(simulate(tmp_path / "a.zarr", scene))
    missing, corrupt = scene.lost_chunks()
    absent = {f"RawData/{row}.{column}" for row, column in missing}
    short = {f"RawData/{row}.{column}" for row, column in corrupt}
    assert (len(absent), len(short)) == (2, 1)
    assert whole.keys() - found.keys() == absent
    assert {key for key in found if found[key] != whole[key]} == short
    for key in short:
        assert len(found[key]) == len(whole[key]) // 2


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"channels": 0}, "channels"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": 0.001}, "less than one sample"),
        ({"rate_hz": 50.0}, "80 Hz"),
        ({"spacing_m": -2.0}, "spacing_m"),
        ({"chunk_shape": (0, 3000)}, "chunk_shape"),
        ({"start_ns": 1}, "microseconds"),
        ({"gap_s": 0.001}, "0.005 s"),
        ({"gap_s": -61.0}, "60 s at most"),
        ({"dead": 3001}, "3001"),
        ({"missing": 5, "corrupt": 4}, "8 that this scene has"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_scenes_are_refused_naming_value_and_limit(
    wrong: dict[str, object], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        Scene(**wrong)


# --- what is heard


CALLS = Scene(channels=3000, seconds=36.0, chunk_shape=(1100, 1300), seed=1)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("calls") / "a.zarr", CALLS)


def in_band(path: Path, *, common: bool = False) -> NDArray[np.complex128]:
    """Analytic signal between 14 and 35 Hz of every 5th channel; common mode removed or kept."""
    from scipy import signal

    raw = signal.detrend(read(path)[::5].astype(float), axis=1)
    sections = signal.butter(8, [14, 35], "bandpass", fs=RATE_HZ, output="sos")
    band = signal.sosfiltfilt(sections, raw, axis=1)
    if not common:
        band -= np.median(band, axis=0)
    return np.asarray(signal.hilbert(band, axis=1))


@pytest.fixture(scope="module")
def heard(calls: Path) -> NDArray[np.complex128]:
    return in_band(calls)


def excess_db(analytic: NDArray[np.complex128], note: Note, shift_s: float = 0.0) -> np.ndarray:
    """Mean power while a note is due over the usual power, dB, for each channel."""
    power = np.abs(analytic) ** 2
    distance_m = np.arange(0, 3000, 5) * 2.0419
    range_m = np.sqrt((distance_m - note.along_m) ** 2 + note.offset_m**2 + 30.0**2)
    first = np.round((note.start_s + range_m / 1490.0 + shift_s) * RATE_HZ).astype(int)
    column = first[:, None] + np.arange(round(note.duration_s * RATE_HZ))
    due = np.take_along_axis(power, column, axis=1).mean(axis=1)
    # The usual power of Rayleigh-distributed noise from its median, which notes hardly move.
    return 10 * np.log10(due / (np.median(power, axis=1) / np.log(2)))


def test_notes_are_where_the_moveout_says(heard: NDArray[np.complex128]) -> None:
    first, second = notes(CALLS)[:2]
    for note in (first, second):
        due = excess_db(heard, note)
        early = excess_db(heard, note, shift_s=-1.5)
        best = np.argsort(due)[-30:]
        assert 11 <= np.median(due[best]) <= 18.5
        assert np.abs(early[best]).max() < 5
        assert np.abs(best * 5 * 2.0419 - note.along_m).max() < 1500
    # Far from the whale the same note is late by the longer way, not at the apex's time.
    far = np.abs(np.arange(0, 3000, 5) * 2.0419 - first.along_m - 2000) < 200
    lag_s = (first.nearest_m - np.hypot(2000.0, first.nearest_m)) / 1490.0
    assert np.median(excess_db(heard, first)[far]) > 3
    assert np.median(excess_db(heard, first, shift_s=lag_s)[far]) < 2


def test_the_first_call_is_heard_within_fifteen_seconds_near_the_middle() -> None:
    for seed in range(20):
        scene = Scene(seed=seed)
        note = notes(scene)[0]
        assert note.start_s + note.nearest_m / 1490 + note.duration_s < 15
        assert abs(note.along_m / (3000 * 2.0419) - 0.5) <= 0.05


@pytest.mark.slow
def test_after_a_gap_the_whales_keep_to_the_clock(tmp_path: Path) -> None:
    second = notes(CALLS)[1]
    scene = replace(CALLS, seconds=22.0, gap_s=8.0)
    heard = in_band(simulate(tmp_path / "a.zarr", scene))
    assert second.start_s > 11.0 + 8.0
    due = excess_db(heard, second, shift_s=-8.0)
    assert np.median(np.sort(due)[-30:]) > 11


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 12))
def test_high_and_low_notes_alternate_with_pauses(seed: int, hours: float) -> None:
    sung = notes(Scene(channels=3000, seconds=3600 * hours + 60, seed=seed))
    step = np.diff([note.start_s for note in sung])
    assert all(a.high != b.high for a, b in pairwise(sung))
    within = step <= 21
    assert np.all(step[within] >= 20)
    assert np.all((step[~within] > 110) & (step[~within] < 201))
    if hours > 1:
        assert 3 <= np.count_nonzero(~within) / (hours + 1 / 60) <= 6


@pytest.mark.slow
def test_levels_are_those_of_a_real_cable(calls: Path, heard: NDArray[np.complex128]) -> None:
    raw = read(calls)[::5].astype(float)
    assert abs(np.median(raw) - 1.8e6) < 2e4
    # Swell and drift are far above the noise in the band, as on the sea floor.
    assert 10 < np.median(raw.std(axis=1)) / 150 < 100
    quiet = np.percentile(20 * np.log10(np.abs(heard)), [50, 99.9])
    assert 40 < quiet[0] < 50
    assert 60 < quiet[1] < 70
    kept = in_band(calls, common=True)
    ratio = np.median(np.abs(kept)) / np.median(np.abs(heard))
    assert 2 < ratio < 4


def test_a_ship_is_heard_by_neighbours_alike_and_swamps_nothing(
    heard: NDArray[np.complex128],
) -> None:
    # Before the first note only a ship sounds alike on channels 10 m apart.
    before = heard[:, 100 : int(notes(CALLS)[0].start_s * RATE_HZ)]
    left, right = before[:-1], before[1:]
    power = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    coherence = np.abs(np.sum(left * right.conj(), axis=1)) / power
    assert np.sort(coherence[:150])[-30] > 0.6
    assert np.median(coherence[450:]) < 0.3
    apex = round(notes(CALLS)[0].along_m / (5 * 2.0419))
    call_db = 20 * np.log10(np.abs(heard[apex - 15 : apex + 15]).max())
    assert 20 * np.log10(np.median(np.abs(heard), axis=1).max()) < call_db - 6


# --- writing


@pytest.mark.slow
def test_memory_does_not_grow_with_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One worker: with two, the peak depends on how their temporaries happen to coincide.
    monkeypatch.setattr(simulation, "_WORKERS", 1)

    def peak(seconds: float) -> int:
        scene = Scene(channels=100, seconds=seconds, chunk_shape=(100, 1000))
        tracemalloc.start()
        try:
            simulate(tmp_path / f"{seconds}.zarr", scene)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(5.0)
    assert peak(320.0) < 1.05 * peak(40.0)


@pytest.mark.parametrize("after", [0.0, 0.3, 0.9])
def test_an_interrupted_simulation_leaves_nothing(tmp_path: Path, after: float) -> None:
    def interrupt(fraction: float) -> None:
        if fraction >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "a.zarr", SMALL, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_runs_from_zero_to_one(tmp_path: Path) -> None:
    seen: list[float] = []
    simulate(tmp_path / "a.zarr", SMALL, progress=seen.append)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    assert len(seen) > 9


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_is_overwritten(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a.zarr"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DestinationError, match="something is there already"):
        simulate(target, SMALL)
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match=r"file/a\.zarr: Not a directory"):
        simulate(tmp_path / "file" / "a.zarr", SMALL)


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=r"GB free"):
        simulate(tmp_path / "a.zarr", Scene(channels=10_000_000, seconds=1e7))
    assert list(tmp_path.iterdir()) == []


# --- demo


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(simulation, "DEMO_SCENE", SMALL)
    return tmp_path / "das-gpu"


def test_the_demonstration_archive_is_made_once(cache: Path) -> None:
    made = demo_archive()
    first = files(made)
    assert made.parent == cache
    assert demo_archive(progress=lambda _: pytest.fail("made again")) == made
    assert files(made) == first


def test_another_version_of_the_scene_makes_another(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = demo_archive()
    monkeypatch.setattr(simulation, "SCENE_VERSION", simulation.SCENE_VERSION + 1)
    second = demo_archive()
    monkeypatch.setattr(simulation, "DEMO_SCENE", replace(SMALL, seed=9))
    assert len({first, second, demo_archive()}) == 3


def test_two_may_ask_for_it_at_once(cache: Path) -> None:
    together = threading.Barrier(2, timeout=20)
    # Both have found nothing in the cache when either goes on.
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(demo_archive, lambda f: together.wait() and None if f == 1.0 else None)
            for _ in range(2)
        ]
        first, second = (future.result() for future in asked)
    assert first == second
    assert list(cache.iterdir()) == [first]


def test_a_cache_that_cannot_be_written_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DestinationError, match="Set XDG_CACHE_HOME"):
        demo_archive()


def test_a_relative_cache_folder_is_ignored(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo_archive().parent == tmp_path / ".cache" / "das-gpu"
