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

from das_gpu import bloscframe
from das_gpu.bloscframe import BloscFrame
from das_gpu.codec import Codec, Scratch

COMPRESSORS = st.sampled_from(["blosclz", "lz4", "lz4hc", "zlib", "zstd"])
SHUFFLES = st.sampled_from(
    [numcodecs.Blosc.NOSHUFFLE, numcodecs.Blosc.SHUFFLE, numcodecs.Blosc.BITSHUFFLE]
)
TYPES = st.sampled_from(["i1", "<i2", "<i4", "<f4", "<f8", "V12"])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are a few blocks of 1000 bytes, so that small frames have many."""
    monkeypatch.setattr(bloscframe, "PART_NBYTES", 2500)


def smooth(count: int, kind: str = "<i4") -> NDArray[Any]:
    """Samples that compress, of any type."""
    nbytes = count * np.dtype(kind).itemsize
    walk = np.random.default_rng(5).integers(-1, 2, nbytes // 4 + 1).cumsum()
    return np.frombuffer(walk.astype("<i4").tobytes()[:nbytes], kind)


def decoded(frame: BloscFrame) -> bytes:
    out = np.empty(frame.part_nbytes, np.uint8)
    parts = []
    for number in range(frame.count):
        size = frame.decode_part(number, out)
        parts.append(out[:size].tobytes())
    return b"".join(parts)


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
    out = np.empty(frame.part_nbytes, np.uint8)
    assert [frame.decode_part(number, out) for number in range(frame.count)] == parts
    assert frame.part_nbytes >= max(parts)


def test_blocks_that_stand_in_another_order_are_left_to_blosc() -> None:
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
    assert frame.count == 1
    assert decoded(frame) == samples.tobytes()


@pytest.mark.parametrize("start", [0, 55, 1 << 31])
def test_blocks_that_cannot_be_where_they_are_said_to_be_are_left_to_blosc(start: int) -> None:
    samples = smooth(2500)
    body = frame_of(samples)
    body[24:28] = start.to_bytes(4, "little")
    frame = BloscFrame.of(memoryview(body), samples.nbytes)
    assert frame.count == 1
    with pytest.raises(RuntimeError):
        decoded(frame)


def test_two_blocks_in_one_place_are_left_to_blosc() -> None:
    samples = smooth(2500)
    body = frame_of(samples)
    body[24:28] = body[20:24]
    assert BloscFrame.of(memoryview(body), samples.nbytes).count == 1


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
    assert (frame.count, frame.part_nbytes) == (1, samples.nbytes)
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
    blosc = numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE, blocksize=999)
    metadata = ArrayV2Metadata(
        shape=shape,
        chunks=shape,
        dtype=parse_dtype(samples.dtype, zarr_format=2),
        compressor=blosc if compressed else None,
        fill_value=0,
        order="C",
    )
    body = bytearray(blosc.encode(samples) if compressed else samples.tobytes())
    codec, scratch = Codec.of(metadata, samples.dtype), Scratch()
    parts, following = [], 0
    for first, rows in codec.runs(memoryview(body), shape, np.dtype("=i4"), scratch):
        assert first == following
        following += len(rows)
        parts.append(rows.copy())
    assert np.array_equal(np.concatenate(parts), samples)
