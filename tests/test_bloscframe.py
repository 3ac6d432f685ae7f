"""Blosc frames, decoded part by part: the same bytes, and all flaws found, or left to Blosc."""

from __future__ import annotations

import math
from typing import Any

import numcodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.core.metadata import ArrayV2Metadata
from zarr.dtype import parse_dtype

from das_gpu import codec
from das_gpu.backends import fast
from das_gpu.bloscframe import BloscFrame
from das_gpu.codec import Codec, Scratch

COMPRESSORS = st.sampled_from(["blosclz", "lz4", "lz4hc", "zlib", "zstd"])
SHUFFLES = st.sampled_from(
    [numcodecs.Blosc.NOSHUFFLE, numcodecs.Blosc.SHUFFLE, numcodecs.Blosc.BITSHUFFLE]
)
TYPES = st.sampled_from(["i1", "<i2", "<i4", "<f4", "<f8", "V12"])


BLOSC = Codec("blosc", codec._decode_blosc, False, "blosc")
PART_NBYTES = 2500
"""Parts are a few blocks of 1000 bytes, so that small frames have many."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "PART_NBYTES", PART_NBYTES)
    monkeypatch.setattr(codec, "PLANES_NBYTES", PART_NBYTES)


def smooth(count: int, kind: str = "<i4") -> NDArray[Any]:
    """Samples that compress, of any type."""
    nbytes = count * np.dtype(kind).itemsize
    walk = np.random.default_rng(5).integers(-1, 2, nbytes // 4 + 1).cumsum()
    return np.frombuffer(walk.astype("<i4").tobytes()[:nbytes], kind)


def decoded(frame: BloscFrame) -> bytes:
    """All of a frame, part by part where it has parts."""
    out = np.empty(frame.nbytes, np.uint8)
    parts = frame.parts(PART_NBYTES)
    if not parts:
        frame.decode(out)
        return out.tobytes()
    return b"".join(frame.decode_part(part, out).tobytes() for part in parts)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 3000),
    kind=TYPES,
    name=COMPRESSORS,
    level=st.integers(0, 9),
    shuffle=SHUFFLES,
    block=st.sampled_from([0, 128, 200, 512, 1000, 4096]),
)
def test_parts_are_the_frame(
    count: int, kind: str, name: str, level: int, shuffle: int, block: int
) -> None:
    """Whatever it was written with; and its bytes are afterwards what they were."""
    samples = smooth(count, kind)
    written = numcodecs.Blosc(name, level, shuffle, blocksize=block).encode(samples)
    body = bytearray(written)
    assert decoded(BloscFrame.of(memoryview(body), samples.nbytes)) == samples.tobytes()
    assert body == written


def frame_of(samples: NDArray[Any]) -> bytearray:
    """A frame with blocks of 1000 bytes."""
    return bytearray(numcodecs.Blosc("zstd", 5, numcodecs.Blosc.SHUFFLE, 1000).encode(samples))


@pytest.mark.parametrize(
    ("samples", "parts"),
    [(1400, [5600]), (1500, [3000, 3000]), (2100, [3000, 5400]), (2260, [3000, 3000, 3040])],
)
def test_a_part_is_some_blocks_and_the_last_takes_what_is_left(
    samples: int, parts: list[int]
) -> None:
    """A block shorter than the others never stands alone."""
    whole = smooth(samples)
    frame = BloscFrame.of(memoryview(frame_of(whole)), whole.nbytes)
    assert [frame.size(part) for part in frame.parts(PART_NBYTES)] == parts


def test_blocks_may_stand_in_any_order() -> None:
    """As several threads may leave them that compress."""
    samples = smooth(2500)
    body = frame_of(samples)
    starts = np.frombuffer(body, "<u4", 10, 16)
    ends = np.append(starts[1:], len(body))
    shuffled, places = bytearray(body[:56]), {}
    for number in np.random.default_rng(2).permutation(10):
        places[number] = len(shuffled)
        shuffled += body[starts[number] : ends[number]]
    shuffled[16:56] = np.array([places[n] for n in range(10)], "<u4").tobytes()
    frame = BloscFrame.of(memoryview(shuffled), samples.nbytes)
    assert len(frame.parts(PART_NBYTES)) == 3
    assert decoded(frame) == samples.tobytes()


@pytest.mark.parametrize("start", [0, 55, 1 << 31])
def test_blocks_that_cannot_be_where_they_are_said_to_be_are_left_to_blosc(start: int) -> None:
    samples = smooth(2500)
    body = frame_of(samples)
    body[24:28] = start.to_bytes(4, "little")
    frame = BloscFrame.of(memoryview(body), samples.nbytes)
    assert not frame.parts(PART_NBYTES)
    with pytest.raises(RuntimeError):
        decoded(frame)


def test_a_damaged_block_is_an_error_and_the_bytes_stay() -> None:
    samples = smooth(2500)
    body = frame_of(samples)
    start = int.from_bytes(body[28:32], "little")
    body[start : start + 4] = b"\xff\xff\xff\x7f"
    before = bytes(body)
    with pytest.raises(RuntimeError):
        decoded(BloscFrame.of(memoryview(body), samples.nbytes))
    assert body == before


def test_bytes_that_may_not_be_written_to_are_decoded_at_once() -> None:
    samples = smooth(2500)
    frame = BloscFrame.of(memoryview(bytes(frame_of(samples))), samples.nbytes)
    assert not frame.parts(PART_NBYTES)
    assert decoded(frame) == samples.tobytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda body: body[:15], "15 bytes are too few for a Blosc frame"),
        (lambda body: body[:-1], r"should have \d+ bytes and has \d+"),
        (lambda body: body + b"x", r"should have \d+ bytes and has \d+"),
        (lambda body: body[:4] + b"\0\0\1\0" + body[8:], "declares 65536 bytes"),
    ],
)
def test_sizes_that_are_not_the_chunks_are_refused_before_anything_is_decoded(
    spoil: Any, message: str
) -> None:
    samples = smooth(2500)
    body = spoil(frame_of(samples))
    with pytest.raises(ValueError, match=message):
        BloscFrame.of(memoryview(body), samples.nbytes)


@pytest.mark.parametrize("kind", ["<i4", ">i4"])
@pytest.mark.parametrize("compressed", [True, False])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.tuples(st.integers(1, 40), st.integers(1, 200)))
def test_runs_of_rows_are_the_chunk(kind: str, compressed: bool, shape: tuple[int, int]) -> None:
    """Parts end in the middle of a row, and of a sample; runs don't."""
    samples = smooth(math.prod(shape), "<i4").astype(kind).reshape(shape)
    blosc = numcodecs.Blosc("zstd", 5, numcodecs.Blosc.SHUFFLE, blocksize=999)
    metadata = ArrayV2Metadata(
        shape=shape,
        chunks=shape,
        dtype=parse_dtype(samples.dtype, zarr_format=2),
        compressor=blosc if compressed else None,
        fill_value=0,
        order="C",
    )
    body = bytearray(blosc.encode(samples) if compressed else samples.tobytes())
    scratch = Scratch()
    parts, following = [], 0
    for first, rows in Codec.of(metadata, samples.dtype).runs(
        memoryview(body), shape, np.dtype("=i4"), scratch
    ):
        assert first == following
        following += len(rows)
        parts.append(rows.copy())
    assert np.array_equal(np.concatenate(parts), samples)


def picked(planes: Any, first: int, block: int, row_items: int, *more: Any) -> None:
    """What `das_gpu.backends.unshuffle.pick` does, without compiling."""
    row0, row_step, item0, item_step, out = more
    rows = range(row0, row0 + row_step * len(out), row_step)
    for begin in range(0, planes.size // 4, block):
        count = min(block, planes.size // 4 - begin)
        items = planes[4 * begin : 4 * (begin + count)].reshape(4, count).T
        items = np.ascontiguousarray(items).view(np.uint32).ravel()
        for place, item in enumerate(items, first + begin):
            row, column = divmod(place, row_items)
            if row in rows and column in range(item0, row_items, item_step):
                out[(row - row0) // row_step, (column - item0) // item_step] = item


@pytest.mark.parametrize("way", ["python", "compiled"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 300)),
    starts=st.tuples(st.integers(0, 11), st.integers(0, 299)),
    steps=st.tuples(st.integers(1, 5), st.integers(1, 3)),
)
def test_what_is_picked_are_the_wanted_samples(
    way: str, shape: tuple[int, int], starts: tuple[int, int], steps: tuple[int, int]
) -> None:
    """Blocks end in the middle of rows; some have the beginnings of no row, some of several."""
    if way == "compiled":
        pytest.importorskip("numba", reason="the extra `fast` is not installed")
    pick = fast.pick() if way == "compiled" else picked
    samples = smooth(math.prod(shape)).reshape(shape)
    body = frame_of(samples)
    rows, columns = (range(i, n, s) for i, n, s in zip(starts, shape, steps, strict=True))
    out = np.full((len(rows), len(columns)), -1, np.int32)
    divisible = bool(BloscFrame.of(memoryview(body), samples.nbytes).parts(1))
    taken = BLOSC.pick(
        memoryview(body), shape, samples.dtype, (rows, columns), pick, out, Scratch()
    )
    assert taken == divisible
    assert taken or samples.nbytes < 1100
    wanted = samples[rows.start :: rows.step, columns.start :: columns.step]
    assert np.array_equal(out, wanted if taken else np.full_like(out, -1))


@pytest.mark.parametrize(
    ("kind", "shuffle"),
    [("<i4", numcodecs.Blosc.BITSHUFFLE), ("<i4", numcodecs.Blosc.NOSHUFFLE), ("<i2", 1)],
)
def test_samples_that_stand_otherwise_are_not_picked(kind: str, shuffle: int) -> None:
    samples = smooth(2500, kind).reshape(10, 250)
    body = bytearray(numcodecs.Blosc("zstd", 5, shuffle, blocksize=1000).encode(samples))
    assert BloscFrame.of(memoryview(body), samples.nbytes).parts(1)
    out = np.empty((10, 250), samples.dtype)
    every = range(10), range(250)
    arguments = memoryview(body), out.shape, out.dtype, every, picked, out, Scratch()
    assert not BLOSC.pick(*arguments)


def test_damage_is_found_while_samples_are_picked() -> None:
    samples = smooth(2500).reshape(10, 250)
    body = frame_of(samples)
    start = int.from_bytes(body[28:32], "little")
    body[start : start + 4] = b"\xff\xff\xff\x7f"
    out = np.empty_like(samples)
    every = range(10), range(250)
    with pytest.raises(ValueError, match="decompression"):
        BLOSC.pick(memoryview(body), out.shape, out.dtype, every, picked, out, Scratch())
