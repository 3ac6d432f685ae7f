"""An archive's clock: times found on its axis, and what finding them costs."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from das_gpu.archive import Archive, open_archive
from das_gpu.clock import Clock, Search, TimeAxis
from das_gpu.errors import AccessDeniedError, SourceError
from tests.layouts import (
    CHUNK,
    PUBLISHED,
    START_NS,
    START_US,
    TIMES_US,
    no_jumps,
    published,
    settings_of,
    write,
)

HOUR_NS = 3_600_000_000_000
N_SAMPLES = PUBLISHED[1]
N_CHUNKS = N_SAMPLES // CHUNK
RATE_HZ = 200.0
PERIOD_NS = 5_000_000

# Times of samples: int64 in, int64 nanoseconds out.
Axis = Callable[[NDArray[np.int64]], NDArray[np.int64]]


# -- what a search costs, counted without reading anything -----------------------------------


@dataclass(frozen=True)
class Lookup:
    """What a search found, and what it cost."""

    sample: int
    rounds: int
    requests: int


def ns(axis: Axis, sample: int) -> int:
    return int(axis(np.array([sample]))[0])


def look_up(
    axis: Axis,
    time_ns: int,
    *,
    n_samples: int = N_SAMPLES,
    chunk_size: int = CHUNK,
    lost: Collection[int] = (),
) -> Lookup:
    """Search an axis that is a function, of the published length unless told otherwise."""
    below, above = (0, ns(axis, 0)), (n_samples - 1, ns(axis, n_samples - 1))
    search = Search(time_ns, RATE_HZ, chunk_size, below, above)
    rounds = requests = 0
    while numbers := search.ask():
        assert numbers == sorted(set(numbers))
        rounds, requests = rounds + 1, requests + len(numbers)
        search.tell(
            {
                number: None
                if number in lost
                else axis(np.arange(number * chunk_size, min((number + 1) * chunk_size, n_samples)))
                for number in numbers
            }
        )
    return Lookup(search.sample, rounds, requests)


def even(samples: NDArray[np.int64]) -> NDArray[np.int64]:
    return START_NS + samples * PERIOD_NS


def with_jumps(places: NDArray[np.int64], sizes_ns: NDArray[np.int64]) -> Axis:
    """An even clock but for jumps: each before the sample that is its place."""
    order = np.argsort(places)
    sums = np.r_[0, np.cumsum(sizes_ns[order])]
    return lambda samples: even(samples) + sums[np.searchsorted(places[order], samples, "right")]


@st.composite
def jumping(draw: st.DrawFn) -> tuple[Axis, int]:
    """An axis of the published length with up to 3,000 jumps forward, and one of its samples."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    n_jumps = draw(st.sampled_from([1, 2, 3, 10, 100, 3000]))
    shortest, longest = sorted(draw(st.tuples(st.floats(4, 14), st.floats(4, 14))))
    places = random.integers(1, N_SAMPLES, n_jumps)
    sizes_ns = (10 ** random.uniform(shortest, longest, n_jumps)).astype(np.int64)
    sample = draw(st.integers(1, N_SAMPLES - 1) | st.sampled_from(places.tolist()))
    return with_jumps(places, sizes_ns), sample


@settings(max_examples=200)
@given(case=jumping(), before_ns=st.integers(0, 10_000))
@pytest.mark.slow
def test_any_time_takes_at_most_20_requests_in_9_rounds(
    case: tuple[Axis, int], before_ns: int
) -> None:
    axis, sample = case
    found = look_up(axis, ns(axis, sample) - before_ns)
    assert found.sample == sample
    assert found.requests <= 20
    assert found.rounds <= 9


@given(
    data=st.data(),
    n_chunks=st.integers(1, 15_551) | st.sampled_from([15_552, 200_000, 524_287, 524_288]),
    evil=st.booleans(),
)
@pytest.mark.slow
def test_whatever_the_chunks_say_20_requests_in_9_rounds_are_enough(
    data: st.DataObject, n_chunks: int, evil: bool
) -> None:
    """No axis at all: each round is told, at will, between which two of its chunks to go on.

    Longer axes than the published one may take more rounds, then more requests.
    """
    time_ns = 10**15
    search = Search(time_ns, RATE_HZ, CHUNK, (0, 0), (n_chunks * CHUNK - 1, 2 * time_ns))
    below, above, early_ns, late_ns = -1, n_chunks, 0, 2 * time_ns
    rounds = requests = 0
    while numbers := search.ask():
        rounds, requests = rounds + 1, requests + len(numbers)
        edges = [below, *numbers, above]
        parts = range(len(numbers) + 1)
        widest = max(parts, key=lambda part: edges[part + 1] - edges[part])
        part = widest if evil else data.draw(st.sampled_from(parts))
        below, above = edges[part], edges[part + 1]
        early_ns = data.draw(st.integers(early_ns, time_ns - 1))
        late_ns = data.draw(st.integers(time_ns, late_ns))
        said = {number: early_ns if number <= below else late_ns for number in numbers}
        search.tell({number: np.full(CHUNK, said[number]) for number in numbers})
    assert above - below == 1
    if above < n_chunks:
        assert search.sample == above * CHUNK
    assert requests <= max(20, n_chunks.bit_length() + 1)
    assert rounds <= (9 if n_chunks <= 15_551 else requests)


@given(sample=st.integers(1, N_SAMPLES - 1), before_ns=st.integers(0, PERIOD_NS - 1001))
def test_an_even_clock_takes_one_request_or_two(sample: int, before_ns: int) -> None:
    def jittering(samples: NDArray[np.int64]) -> NDArray[np.int64]:
        return even(samples) + (samples * 7919 % 1001)

    for axis in (even, jittering):
        found = look_up(axis, ns(axis, sample) - before_ns)
        assert found.sample == sample
        assert found.requests <= 2


@given(
    place=st.integers(1, N_SAMPLES - 1),
    sample=st.integers(1, N_SAMPLES - 1),
    size_ns=st.integers(HOUR_NS // 10, 100 * HOUR_NS),
)
def test_beside_one_gap_a_time_takes_one_round_or_two(
    place: int, sample: int, size_ns: int
) -> None:
    axis = with_jumps(np.array([place]), np.array([size_ns]))
    found = look_up(axis, ns(axis, sample))
    assert found.sample == sample
    assert found.rounds <= 2
    assert found.requests <= 6


@given(case=jumping(), nth=st.integers(0, 19))
def test_a_lost_chunk_on_the_way_leads_nowhere_else(case: tuple[Axis, int], nth: int) -> None:
    axis, sample = case
    asked: list[int] = []

    def listening(samples: NDArray[np.int64]) -> NDArray[np.int64]:
        asked.append(int(samples[0]) // CHUNK)
        return axis(samples)

    look_up(listening, ns(axis, sample))
    on_the_way = [number for number in asked[2:] if number != sample // CHUNK]
    found = look_up(axis, ns(axis, sample), lost=on_the_way[nth : nth + 1])
    assert found.sample == sample
    assert found.requests <= 20
    assert found.rounds <= 9


@given(case=jumping(), seed=st.integers(0, 1 << 32), part=st.floats(0.01, 1))
def test_however_many_chunks_are_lost_the_search_costs_no_more(
    case: tuple[Axis, int], seed: int, part: float
) -> None:
    axis, sample = case
    lost = np.flatnonzero(np.random.default_rng(seed).random(N_CHUNKS) < part).tolist()
    found = look_up(axis, ns(axis, sample), lost=set(lost))
    assert 0 < found.sample < N_SAMPLES
    assert found.requests <= 20
    assert found.rounds <= 9


@pytest.mark.parametrize("gap_s", [0, 1, 1000])
def test_nor_does_it_when_all_are_lost(gap_s: int) -> None:
    for n_chunks in range(1, 200):
        n_samples = 10 * n_chunks
        axis = with_jumps(np.array([n_samples // 2]), np.array([gap_s * 10**9]))
        middle_ns = (ns(axis, 0) + ns(axis, n_samples - 1)) // 2
        found = look_up(axis, middle_ns, n_samples=n_samples, chunk_size=10, lost=range(200))
        assert abs(found.sample - n_samples / 2) <= 1
        assert found.requests <= min(20, n_chunks)
        assert found.rounds <= 9


@given(first=st.integers(1, N_CHUNKS - 101), n_lost=st.integers(1, 100), data=st.data())
def test_the_times_of_lost_chunks_are_interpolated(
    first: int, n_lost: int, data: st.DataObject
) -> None:
    lost = range(first, first + n_lost)
    sample = data.draw(st.integers((first - 2) * CHUNK + 1, (first + n_lost + 2) * CHUNK))
    sample = max(sample, 1)
    found = look_up(even, ns(even, sample), lost=lost)
    assert found.sample == sample
    assert found.requests <= 20
    assert found.rounds <= 9


@given(seed=st.integers(0, 1 << 32), back=st.floats(0, 1), at=st.floats(0.001, 1))
def test_a_clock_that_runs_backwards_costs_no_more(seed: int, back: float, at: float) -> None:
    random = np.random.default_rng(seed)
    places = random.integers(1, N_SAMPLES, 30)
    sizes_ns = random.integers(-HOUR_NS, HOUR_NS, 30)
    sizes_ns = np.where(random.uniform(size=30) < back, -abs(sizes_ns), abs(sizes_ns))
    axis = with_jumps(places, sizes_ns)
    start_ns, last_ns = ns(axis, 0), ns(axis, N_SAMPLES - 1)
    found = look_up(axis, start_ns + 1 + int(at * (last_ns - start_ns - 1)))
    assert 0 < found.sample < N_SAMPLES
    assert found.requests <= 20
    assert found.rounds <= 9


# -- reading for it --------------------------------------------------------------------------


def clock_of(archive: Archive) -> Clock:
    """The archive's clock, with nothing read yet."""
    found = archive.acquisition
    return Clock(TimeAxis(archive.time), found.sampling_rate_hz, found.start_ns, found.last_ns)


def threads_left() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("time-axis")]


def meeting(*keys: str) -> tuple[threading.Barrier, Callable[[str], None]]:
    """Hold each of these keys' answers until all of them are asked for."""
    barrier = threading.Barrier(len(keys))

    def wait(key: str) -> None:
        if key in keys:
            with suppress(threading.BrokenBarrierError):
                barrier.wait(5)

    return barrier, wait


def test_both_ends_of_a_remote_axis_are_read_at_once() -> None:
    barrier, wait = meeting("RawDataTime/0", f"RawDataTime/{N_CHUNKS - 1}")
    with published(no_jumps, wait) as served:
        open_archive(served.url)
    assert not barrier.broken
    assert not threads_left()


def test_several_chunks_of_a_remote_axis_are_read_at_once() -> None:
    barrier, wait = meeting("RawDataTime/100", "RawDataTime/200", "RawDataTime/300")
    with published(no_jumps, wait) as served:
        times_ns = TimeAxis(open_archive(served.url).time).chunks_ns([100, 200, 300])
    assert not barrier.broken
    assert not threads_left()
    assert [None if one is None else one[0] for one in times_ns.values()] == [
        START_NS + number * CHUNK * PERIOD_NS for number in (100, 200, 300)
    ]


def test_a_local_axis_is_read_without_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = TIMES_US + np.where(np.arange(250) < 130, 0, 86_400_000_000)
    path = write(tmp_path / "a", times=times)
    monkeypatch.setattr("das_gpu.clock.ThreadPoolExecutor", None)
    assert open_archive(path).sample_at(int(times[200]) * 1000) == 200


def test_a_refusal_ends_the_search_at_once() -> None:
    opened = threading.Event()

    def instead(key: str) -> bytes | int | None:
        return 403 if opened.is_set() else None

    def one_gap(samples: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(samples < N_SAMPLES // 3, 0, 10**10)

    with published(one_gap, instead) as served:
        archive = open_archive(served.url)
        opened.set()
        before = len(served.requests)
        with pytest.raises(AccessDeniedError):
            archive.sample_at(archive.acquisition.start_ns + 20 * HOUR_NS)
        assert len(served.requests) - before <= 3
        assert not threads_left()


@pytest.mark.parametrize("number", [0, 4])
def test_the_record_has_ends_though_a_chunk_of_its_time_axis_is_lost(
    tmp_path: Path, number: int
) -> None:
    path = write(tmp_path / "a")
    (path / f"RawDataTime/{number}").unlink()
    found = open_archive(path).acquisition
    assert (found.start_ns, found.last_ns) == (START_NS, START_NS + 249 * 5_000_000)


def test_a_time_is_found_though_its_chunk_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    (path / "RawDataTime/2").unlink()
    archive = open_archive(path)
    for sample in (119, 120, 150, 179, 180):
        assert archive.sample_at(int(TIMES_US[sample]) * 1000) == sample


def test_without_any_time_the_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    for number in range(5):
        (path / f"RawDataTime/{number}").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"time axis of .* cannot be read at its ends"):
        open_archive(path)


# -- finding times on disk -------------------------------------------------------------------


@st.composite
def clocks(draw: st.DrawFn) -> NDArray[np.int64]:
    """Time axes in microseconds that never run backwards: jumps, stops, jitter."""
    steps = draw(
        st.lists(
            st.sampled_from([5000, 5000, 5000, 4999, 5001, 0, 900_000, 60_000_000]),
            min_size=30,
            max_size=79,
        )
    )
    return START_US + np.cumsum([0, *steps])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clocks")


def with_clock(folder: Path, times: NDArray[np.int64]) -> Archive:
    shutil.rmtree(folder / "a", ignore_errors=True)
    group = zarr.open_group(str(folder / "a"), mode="w", zarr_format=2)
    shape = (2, len(times))
    group.create_array("RawData", shape=shape, chunks=shape, dtype="i4")
    stored = group.create_array("RawDataTime", shape=times.shape, chunks=(7,), dtype="i8")
    stored[...] = times
    return open_archive(folder / "a", settings_of(sampling_rate_hz=200))


@settings(max_examples=25)
@given(times=clocks(), data=st.data())
@pytest.mark.slow
def test_a_time_is_found_as_searchsorted_finds_it(
    folder: Path, times: NDArray[np.int64], data: st.DataObject
) -> None:
    # A first chunk with jumps may advance at any median rate; the check is not the subject.
    times[:7] = times[7] - 5000 * np.arange(7, 0, -1)
    archive = with_clock(folder, times)
    near = st.sampled_from(times.tolist()).flatmap(lambda t: st.integers(t - 2, t + 2))
    anywhere = st.integers(int(times[0]) - 10, int(times[-1]) + 10)
    for wanted in data.draw(st.lists(near | anywhere, min_size=5, max_size=20)):
        assert archive.sample_at(wanted * 1000) == np.searchsorted(times, wanted)


@settings(max_examples=25)
@given(st.lists(st.integers(-20_000, 20_000), min_size=30, max_size=60), st.integers(-9, 10**6))
@pytest.mark.slow
def test_a_clock_that_runs_backwards_ends_the_search_all_the_same(
    folder: Path, steps: list[int], offset: int
) -> None:
    times = START_US + np.cumsum([*[5000] * 8, *steps])
    archive = with_clock(folder, times)
    assert 0 <= archive.sample_at((START_US + offset) * 1000) <= len(times)


def test_where_a_clock_steps_back_the_first_sample_at_or_after_is_given(folder: Path) -> None:
    times = START_US + 5000 * np.array([0, 1, 2, 3, 4, 5, 6, 7, 12, 8, 9, 10, 11, 13, 14, 15])
    assert with_clock(folder, times).sample_at((START_US + 5000 * 10) * 1000) == 8


# -- the published axis, served ---------------------------------------------------------------


def test_a_time_in_an_even_clock_takes_one_request() -> None:
    with published(no_jumps) as served:
        archive = open_archive(served.url)
        before = len(served.requests)
        assert archive.sample_at(START_NS + 20_000_000 * PERIOD_NS - 1) == 20_000_000
        assert len(served.requests) - before == 1


def extra_of(n_jumps: int, seed: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """Microseconds that jumps of 10 ms to 28 h add to a sample's time."""
    random = np.random.default_rng(seed)
    places = np.sort(random.integers(0, N_SAMPLES, n_jumps))
    sizes_us = np.r_[0, np.cumsum(10 ** random.uniform(4, 11, n_jumps))].astype(np.int64)
    return lambda samples: sizes_us[np.searchsorted(places, samples, side="right")]


@pytest.mark.parametrize("n_jumps", [1, 3, 30, 3000])
@pytest.mark.slow
def test_a_time_in_a_clock_with_jumps_takes_at_most_20_requests(n_jumps: int) -> None:
    extra_us = extra_of(n_jumps, seed=n_jumps)
    with published(extra_us) as served:
        archive = open_archive(served.url)
        used = []
        for sample in np.random.default_rng(0).integers(1, N_SAMPLES, 12):
            wanted_us = START_US + sample * 5000 + int(extra_us(np.array([sample]))[0])
            for offset_us in (-1, 0):
                before = len(served.requests)
                assert clock_of(archive).sample_at((wanted_us + offset_us) * 1000) == sample
                used.append(len(served.requests) - before)
    assert max(used) <= 20
    if n_jumps <= 3:
        assert np.mean(used) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("n_jumps", [1, 3000])
def test_over_50_ms_of_latency_a_time_takes_under_half_a_second(n_jumps: int) -> None:
    extra_us = extra_of(n_jumps, seed=7)

    def late(_: str) -> None:
        time.sleep(0.05)

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    with published(extra_us, late) as served:
        assert any(seconds(lambda: open_archive(served.url)) < 1 for _ in range(5))
        archive = open_archive(served.url)
        for sample in np.random.default_rng(1).integers(1, N_SAMPLES, 6):
            wanted_ns = 1000 * (START_US + sample * 5000 + int(extra_us(np.array([sample]))[0]))
            before = len(served.requests)
            assert clock_of(archive).sample_at(wanted_ns) == sample
            assert len(served.requests) - before <= 20

            def in_time(wanted_ns: int = wanted_ns) -> bool:
                # Server and client share this machine: when it is busy, a round takes longer.
                round_s = seconds(partial(TimeAxis(archive.time).chunks_ns, [1, 2, 3]))
                took_s = seconds(partial(clock_of(archive).sample_at, wanted_ns))
                return took_s < max(0.5, 9 * round_s)

            assert any(in_time() for _ in range(5))
