"""The stream: what a row finds in the ring is what a slice of the whole array would hold."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from das_gpu import Recipe, codec, open_archive
from das_gpu.backends import fast
from das_gpu.backends.window import HostRing
from das_gpu.errors import InterruptedRunError, SourceError
from das_gpu.model import Status
from das_gpu.plan import Plan, plan
from das_gpu.spans import ring_layout
from das_gpu.stream import SegmentStream
from tests.archives import write_archive

N_CHANNELS, N_SAMPLES, RATE_HZ = 23, 900, 50.0


def counts() -> np.ndarray:
    """Every sample a different number."""
    return np.arange(N_CHANNELS * N_SAMPLES, dtype=np.int32).reshape(N_CHANNELS, N_SAMPLES)


def small_plan(archive, *, minutes: float = 0.11, **changed) -> Plan:
    values = {
        "tile.seconds": 3, "tile.bands": 1, "filter.low_hz": 5, "filter.high_hz": 8,
        "filter.order": 1, "filter.halo_s": 1.1, "selection.time_step": 1,
        "selection.channel_step": 1,
    } | changed  # fmt: skip
    recipe = Recipe().with_settings(values)
    return plan(archive.acquisition, recipe, segment_minutes=minutes)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 30), st.integers(40, 1000)),
    st.booleans(),
    st.integers(1, 9),
    st.integers(0, 6),
    st.sampled_from(["stride", "mean"]),
    st.sampled_from([("after", 1), ("after", 2), ("before", 1), ("before", 2)]),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([0, 500, 1001]),
    st.booleans(),
)
def test_the_ring_holds_what_a_slice_would(
    chunks,
    time_first,
    channel_step,
    channel_start,
    reduce,
    decimate,
    loaders,
    ahead,
    blocksize,
    compiled,
):
    x, how = counts(), {"time_first": time_first, "blocksize": blocksize}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "PART_NBYTES", 800)
        patch.setattr(codec, "PLANES_NBYTES", 800)
        path = write_archive(Path(folder) / "a.zarr", x, RATE_HZ, chunks, **how)
        archive = open_archive(path)
        found = small_plan(
            archive,
            **{
                "selection.channel_step": channel_step,
                "selection.channel_start": channel_start,
                "selection.channel_reduce": reduce,
                "filter.decimate": decimate[0],
                "selection.time_step": decimate[1],
            },
        )
        hold = found.hold_step
        if reduce == "mean":
            last = channel_start + found.kept_channels * channel_step
            expected = x[channel_start:last].reshape(-1, channel_step, N_SAMPLES).mean(axis=1)
        else:
            expected = x[channel_start::channel_step][: found.kept_channels]
        rows = 0
        for segment in found.segments():
            layout = ring_layout(found, segment, ahead=ahead)
            ring = HostRing(layout)
            ring.pick = fast.pick() if compiled and fast.installed() else None
            with SegmentStream(archive, found, segment, ring, layout, loaders=loaders) as stream:
                for row in stream:
                    rows += 1
                    assert [s.k0 for s in row.spans][1:] == [s.k1 for s in row.spans][:-1]
                    assert (row.spans[0].k0, row.spans[-1].k1) == (0, found.kept_channels)
                    for span in row.spans:
                        pieces = ring.pieces(
                            span.k0, span.k1, row.held0 + span.v0, row.held0 + span.v1
                        )
                        first = found.sample_start + (row.held0 + span.v0) * hold
                        stop = first + (span.v1 - span.v0) * hold
                        assert first >= 0
                        np.testing.assert_array_equal(
                            np.concatenate(pieces, axis=1),
                            expected[span.k0 : span.k1, first:stop:hold],
                        )
                        whole = span.v0 == 0 and span.v1 == row.length
                        assert span.status == (Status.OK if whole else Status.EDGE)
        assert rows == found.rows


def test_of_a_column_that_only_a_halo_is_wanted_of_no_more_is_held(tmp_path):
    """Tiles as long as chunks: of three columns that a window touches two have a slot."""
    path = write_archive(tmp_path / "a.zarr", counts(), RATE_HZ, (10, 150))
    archive = open_archive(path)
    found = small_plan(archive, minutes=60)
    assert found.tile_span == 150
    spare, ample = (ring_layout(found, found.segment(0), ahead=ahead) for ahead in (False, True))
    assert (spare.slots, spare.aside) == (2, found.halo_before // found.hold_step)
    assert (ample.slots, ample.aside) == (4, 0)


@pytest.fixture
def archive(tmp_path):
    return open_archive(write_archive(tmp_path / "a.zarr", counts(), RATE_HZ, (10, 100)))


def open_stream(archive, **options):
    found = small_plan(archive, minutes=60)
    layout = ring_layout(found, found.segment(0))
    ring = HostRing(layout)
    return SegmentStream(archive, found, found.segment(0), ring, layout, loaders=2, **options)


def test_each_chunk_is_read_once_and_counted(archive):
    with open_stream(archive) as stream:
        assert len(list(stream)) == 6
    assert stream.traffic.chunks == 3 * 9
    assert stream.traffic.stored_bytes > 0


def test_closing_ends_the_loaders_and_a_waiting_reader(archive):
    """A reader that waits for what never comes is let go, and no thread stays behind."""
    stream = open_stream(archive)
    release = threading.Event()
    load = archive.data.load
    archive.data.load = lambda index, use: release.wait() and load(index, use)
    with stream:
        threading.Timer(0.2, stream.close).start()
        threading.Timer(0.4, release.set).start()
        with pytest.raises(InterruptedRunError):
            next(iter(stream))
    assert not any(thread.is_alive() for thread in stream._threads)


def test_a_store_that_fails_fails_the_reader(archive):
    def fail(index, use):
        raise SourceError("the store is gone")

    archive.data.load = fail
    with open_stream(archive) as stream, pytest.raises(SourceError, match="gone"):
        list(stream)


def test_a_group_of_channels_with_one_lost_chunk_is_lost(tmp_path):
    """Groups of 4 channels over chunk rows of 10: the third group needs both rows."""
    path = write_archive(tmp_path / "a.zarr", counts(), RATE_HZ, (10, 100))
    (path / "RawData" / "1.4").unlink()
    archive = open_archive(path)
    mean = {"selection.channel_reduce": "mean", "selection.channel_step": 4}
    found = small_plan(archive, minutes=60, **mean)
    layout = ring_layout(found, found.segment(0))
    ring = HostRing(layout)
    with SegmentStream(archive, found, found.segment(0), ring, layout, loaders=2) as stream:
        row = list(stream)[2]  # samples 300 to 450; the lost chunk holds 400 to 500
    lost = [(span.k0, span.k1) for span in row.spans if span.status is Status.MISSING]
    assert lost == [(2, 3), (3, 5)]
