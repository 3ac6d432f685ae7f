"""One stored array's chunks: every encoding gives the same samples, every flaw its error."""

from __future__ import annotations

import gzip
import pickle
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    TransposeCodec,
    ZstdCodec,
)

from das_gpu.chunks import Chunk, StoredArray
from das_gpu.codec import Codec
from das_gpu.errors import AccessDeniedError, ChunkCorruptError, ChunkMissingError, SourceError
from das_gpu.locations import parse_location
from das_gpu.series import Series
from das_gpu.store import Store
from tests.azurite import serve_blobs

CHUNKS = (4, 30)
SAMPLES = np.random.default_rng(1).integers(-30_000, 30_000, (10, 100)).cumsum(axis=1)
ZSTD_UNKNOWN = b"\x28\xb5\x2f\xfd\x00\x58"
"""A zstd frame header that does not declare its content's size."""

V2 = {
    "none": {"compressors": None},
    "blosc-lz4": {"compressors": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE)},
    "blosc-zstd": {"compressors": numcodecs.Blosc("zstd", 1, numcodecs.Blosc.BITSHUFFLE)},
    "zstd": {"compressors": numcodecs.Zstd(1)},
    "zlib": {"compressors": numcodecs.Zlib(1)},
    "gzip": {"compressors": numcodecs.GZip(1)},
    "lz4": {"compressors": numcodecs.LZ4()},
}
V2_ODD: dict[str, dict[str, Any]] = {
    "bz2": {"compressors": numcodecs.BZ2(1)},
    "fortran": {"compressors": numcodecs.Zstd(1), "order": "F"},
    "delta": {"compressors": numcodecs.Zstd(1), "filters": [numcodecs.Delta("<i4")]},
}
V3: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "blosc": {"compressors": BloscCodec(cname="lz4")},
    "zstd": {"compressors": ZstdCodec(level=1)},
    "gzip": {"compressors": GzipCodec(level=1)},
    "big-endian": {"serializer": BytesCodec(endian="big"), "compressors": ZstdCodec()},
}
V3_ODD: dict[str, dict[str, Any]] = {
    "transposed": {"filters": TransposeCodec(order=(1, 0))},
    "checksummed": {"compressors": (ZstdCodec(), Crc32cCodec())},
    "sharded": {"shards": (8, 60)},
}


def write(path: Path, values: NDArray[Any], zarr_format: int, **how: Any) -> StoredArray:
    """Store values as array ``a`` of the folder ``path``."""
    how = {"chunks": CHUNKS, "fill_value": 0, **how}
    array = zarr.create_array(
        str(path / "a"),
        shape=values.shape,
        dtype=how.pop("dtype", values.dtype),
        zarr_format=zarr_format,
        **how,
    )
    array[...] = values
    return opened(path)


def opened(path: Path) -> StoredArray:
    metadata = zarr.open_array(str(path / "a"), mode="r").metadata
    return StoredArray("a", metadata, Store(parse_location(path)))


def chunk(array: StoredArray, index: tuple[int, ...]) -> NDArray[Any]:
    out = np.empty(array.chunk_shape, array.dtype)
    array.read(index, out)
    return out


@pytest.mark.parametrize(
    ("zarr_format", "how", "plain"),
    [
        *(pytest.param(2, how, True, id=f"v2-{name}") for name, how in V2.items()),
        *(pytest.param(2, how, False, id=f"v2-{name}") for name, how in V2_ODD.items()),
        *(pytest.param(3, how, True, id=f"v3-{name}") for name, how in V3.items()),
        *(pytest.param(3, how, False, id=f"v3-{name}") for name, how in V3_ODD.items()),
    ],
)
def test_every_encoding_gives_the_same_samples(
    tmp_path: Path, zarr_format: int, how: dict[str, Any], plain: bool
) -> None:
    values = SAMPLES.astype(np.int32)
    array = write(tmp_path, values, zarr_format, **how)
    assert array.plain is plain
    assert array.codec
    for row in range(3):
        for column in range(4):
            expected = values[row * 4 : row * 4 + 4, column * 30 : column * 30 + 30]
            got = chunk(array, (row, column))[: expected.shape[0], : expected.shape[1]]
            np.testing.assert_array_equal(got, expected)
    assert array.dtype == np.int32
    assert array.dtype.isnative


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["i2", "i4", "f4", "f8", "i8", "u1"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_types_and_byte_orders(tmp_path: Path, zarr_format: int, dtype: str, order: str) -> None:
    values = SAMPLES.astype(dtype)
    how: dict[str, Any] = {"dtype": order + dtype}
    if zarr_format == 3:
        serializer = BytesCodec(endian="big" if order == ">" else "little")
        how = {"serializer": serializer} if dtype != "u1" else {}
    array = write(tmp_path, values, zarr_format, **how)
    assert array.plain
    np.testing.assert_array_equal(array[:], values)
    assert array[:].dtype == np.dtype(dtype)


def test_datetimes_are_read_as_such(tmp_path: Path) -> None:
    values = np.arange(100).astype("M8[us]")
    for order in "<>":
        array = write(tmp_path / order, values, 2, chunks=(30,), dtype=f"{order}M8[us]")
        np.testing.assert_array_equal(array[:], values)


@pytest.mark.parametrize(
    ("how", "key"),
    [
        ({"zarr_format": 2}, "a/2.3"),
        ({"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}}, "a/2/3"),
        ({"zarr_format": 3}, "a/c/2/3"),
        ({"zarr_format": 3, "shards": (8, 60)}, "a/c/1/1"),
    ],
)
def test_keys_name_the_stored_objects(tmp_path: Path, how: dict[str, Any], key: str) -> None:
    array = write(tmp_path, SAMPLES, **how)
    assert array.key((2, 3)) == key
    assert (tmp_path / key).is_file()
    for index in ((3, 0), (0, 4), (-1, 0), (0,)):
        with pytest.raises(IndexError, match="has no chunk"):
            array.key(index)


def test_an_encoding_that_is_not_plain_is_left_to_zarr(tmp_path: Path) -> None:
    write(tmp_path, SAMPLES.astype(np.int32), 2, **V2_ODD["delta"])
    stored = zarr.open_array(str(tmp_path / "a"), mode="r").metadata
    codec = Codec.of(stored, np.dtype("<i4"))
    assert codec.description == "delta(astype=<i4, dtype=<i4) zstd(checksum=False, level=1) <i4"
    with pytest.raises(ValueError, match="are not plain"):
        codec.decode(memoryview(b"x"), np.empty(CHUNKS, np.int32))


def test_reading_says_how_many_bytes_were_fetched(tmp_path: Path) -> None:
    array = write(tmp_path, SAMPLES, 2)
    out = np.empty(CHUNKS, np.int64)
    assert array.read((0, 0), out) == (tmp_path / "a/0.0").stat().st_size


def test_only_a_fitting_buffer_is_filled(tmp_path: Path) -> None:
    array = write(tmp_path, SAMPLES, 2)
    for out in (
        np.empty((4, 29), np.int64),
        np.empty(CHUNKS, np.int32),
        np.empty(CHUNKS[::-1], np.int64).T,
    ):
        with pytest.raises(ValueError, match="C-contiguous"):
            array.read((0, 0), out)


@pytest.mark.parametrize("how", [V2["blosc-lz4"], V2_ODD["delta"]], ids=["plain", "odd"])
def test_a_missing_chunk_is_missing_and_not_filled(tmp_path: Path, how: dict[str, Any]) -> None:
    array = write(tmp_path, SAMPLES.astype(np.int32), 2, **how)
    (tmp_path / "a/1.2").unlink()
    with pytest.raises(ChunkMissingError, match=r"holds no object a/1\.2"):
        chunk(array, (1, 2))


def garbage(body: bytes) -> bytes:
    return np.random.default_rng(2).bytes(len(body))


def damage(name: str) -> Callable[[bytes], bytes]:
    return {
        "truncated": lambda body: body[: len(body) // 2],
        "cut to a few bytes": lambda body: body[:3],
        "empty": lambda _: b"",
        "garbage": garbage,
        "garbage after the header": lambda body: body[:20] + garbage(body[20:]),
        "far too large": lambda body: body + bytes(5 << 20),
    }[name]


@pytest.mark.parametrize("encoding", [*V2, *V2_ODD])
@pytest.mark.parametrize("how", ["truncated", "cut to a few bytes", "empty", "far too large"])
def test_damaged_chunks_are_corrupt(tmp_path: Path, encoding: str, how: str) -> None:
    array = write(tmp_path, SAMPLES.astype(np.int32), 2, **{**V2, **V2_ODD}[encoding])
    file = tmp_path / "a/0.1"
    file.write_bytes(damage(how)(file.read_bytes()))
    with pytest.raises(ChunkCorruptError, match=r"a/0\.1 .* cannot be decoded to \(4, 30\) int32"):
        chunk(array, (0, 1))


@pytest.mark.parametrize(
    ("encoding", "how"),
    [
        *((one, "garbage") for one in ("blosc-lz4", "zstd", "zlib", "gzip", "lz4", "bz2")),
        # Not for LZ4 alone: without a checksum other literals are other samples.
        *((one, "garbage after the header") for one in ("blosc-lz4", "zlib", "gzip", "bz2")),
    ],
)
def test_garbage_is_corrupt(tmp_path: Path, encoding: str, how: str) -> None:
    array = write(tmp_path, SAMPLES.astype(np.int32), 2, **{**V2, **V2_ODD}[encoding])
    file = tmp_path / "a/0.1"
    file.write_bytes(damage(how)(file.read_bytes()))
    with pytest.raises(ChunkCorruptError):
        chunk(array, (0, 1))


@pytest.mark.parametrize("shards", [None, (8, 60)])
def test_damaged_chunks_of_format_3_are_corrupt(
    tmp_path: Path, shards: tuple[int, int] | None
) -> None:
    array = write(tmp_path, SAMPLES, 3, shards=shards)
    file = tmp_path / "a/c/0/0"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ChunkCorruptError):
        chunk(array, (0, 0))


BOMB = bytes(200 << 20)


@pytest.mark.parametrize(
    ("encoding", "body", "said"),
    [
        ("blosc-lz4", lambda: numcodecs.Blosc("zstd").encode(BOMB), "declares 209715200 bytes"),
        ("zstd", lambda: numcodecs.Zstd(1).encode(BOMB), "declares 209715200 bytes"),
        ("zlib", lambda: zlib.compress(BOMB, 1), "at least 481 bytes"),
        ("gzip", lambda: gzip.compress(BOMB, 1), "at least 481 bytes"),
        ("lz4", lambda: (200 << 20).to_bytes(4, "little") + b"x", "declares 209715200 bytes"),
        # 300 blocks of 128 KiB, each one repeated byte, in a frame that declares no size.
        ("zstd", lambda: ZSTD_UNKNOWN + b"\x02\x00\x10\x00" * 300 + b"\x03\x00\x10\x00", "small"),
    ],
)
def test_a_frame_that_would_swell_is_refused_before_it_is_decoded(
    tmp_path: Path, encoding: str, body: Callable[[], bytes], said: str
) -> None:
    array = write(tmp_path, SAMPLES.astype(np.int32), 2, **V2[encoding])
    (tmp_path / "a/0.0").write_bytes(body())
    with pytest.raises(ChunkCorruptError, match=said):
        chunk(array, (0, 0))


def test_a_zstd_frame_without_a_declared_size_is_read(tmp_path: Path) -> None:
    values = SAMPLES.astype(np.int32)
    array = write(tmp_path, values, 2, **V2["zstd"])
    raw = np.ascontiguousarray(values[:4, :30]).tobytes()
    block = (1 | len(raw) << 3).to_bytes(3, "little") + raw
    (tmp_path / "a/0.0").write_bytes(ZSTD_UNKNOWN + block)
    np.testing.assert_array_equal(chunk(array, (0, 0)), values[:4, :30])


@pytest.mark.parametrize("encoding", ["zlib", "gzip"])
def test_a_stream_cut_in_its_checksum_is_corrupt(tmp_path: Path, encoding: str) -> None:
    array = write(tmp_path, SAMPLES, 2, **V2[encoding])
    file = tmp_path / "a/0.0"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ChunkCorruptError, match="the stream ends too early"):
        chunk(array, (0, 0))


def test_blosc_starts_no_threads_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numcodecs.blosc, "use_threads", None)
    chunk(write(tmp_path, SAMPLES, 2, **V2["blosc-lz4"]), (0, 0))
    assert numcodecs.blosc.use_threads is False


def test_a_zstd_header_shorter_than_its_fields_is_corrupt(tmp_path: Path) -> None:
    array = write(tmp_path, SAMPLES, 2, **V2["zstd"])
    (tmp_path / "a/0.0").write_bytes(b"\x28\xb5\x2f\xfd\xe0\x00")
    with pytest.raises(ChunkCorruptError):
        chunk(array, (0, 0))


def test_failures_of_the_store_are_not_corruption(tmp_path: Path) -> None:
    array = write(tmp_path, SAMPLES, 2)
    metadata = zarr.open_array(str(tmp_path / "a"), mode="r").metadata
    for status, expected in (
        (403, AccessDeniedError),
        (400, SourceError),
        (404, ChunkMissingError),
    ):
        with serve_blobs(lambda _, status=status: status) as served:
            array = StoredArray("a", metadata, Store(parse_location(served.url)))
            with pytest.raises(expected) as caught:
                chunk(array, (0, 0))
            assert type(caught.value) is expected


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    values = SAMPLES.astype(np.int32)
    arrays = [
        write(tmp_path / "plain", values, 2, **V2["blosc-lz4"]),
        write(tmp_path / "odd", values, 3, **V3_ODD["sharded"]),
    ]
    wanted = [
        (one, (i, j)) for _ in range(10) for one in arrays for i in range(2) for j in range(3)
    ]
    with ThreadPoolExecutor(8) as pool:
        for (_, (i, j)), got in zip(wanted, pool.map(lambda w: chunk(*w), wanted), strict=True):
            np.testing.assert_array_equal(got, values[i * 4 : i * 4 + 4, j * 30 : j * 30 + 30])


@pytest.mark.parametrize("how", [V3["blosc"], V3_ODD["sharded"]], ids=["plain", "odd"])
def test_pickles_reopen_where_they_are_loaded(tmp_path: Path, how: dict[str, Any]) -> None:
    array = write(tmp_path, SAMPLES, 3, **how)
    again = pickle.loads(pickle.dumps(array))  # noqa: S301  # our own bytes
    np.testing.assert_array_equal(again[:], SAMPLES)


slices = st.builds(
    slice,
    st.none() | st.integers(-12, 12),
    st.none() | st.integers(-12, 12),
    st.none() | st.sampled_from([1, 2, 3, -1, -4]),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> StoredArray:
    values = np.arange(70).reshape(7, 10)
    return write(tmp_path_factory.mktemp("small"), values, 2, chunks=(3, 4))


@given(rows=slices | st.integers(-7, 6), columns=slices | st.integers(-10, 9))
def test_boxes_are_read_as_numpy_would(
    small: StoredArray, rows: slice | int, columns: slice | int
) -> None:
    values = np.arange(70).reshape(7, 10)
    np.testing.assert_array_equal(small[rows, columns], values[rows, columns])
    np.testing.assert_array_equal(small[rows], values[rows])


@given(st.tuples(st.integers(0, 25), st.integers(0, 25)).map(sorted))
def test_series_reads_ranges(series: Series, bounds: list[int]) -> None:
    np.testing.assert_array_equal(series.read(*bounds), np.arange(*bounds))


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    return Series(write(tmp_path_factory.mktemp("series"), np.arange(25), 2, chunks=(10,)))


def test_series_refuses_ranges_outside(series: Series) -> None:
    for t0, t1 in ((-1, 3), (3, 2), (0, 26)):
        with pytest.raises(IndexError, match="has no samples"):
            series.read(t0, t1)


def test_series_fetches_a_chunk_once(tmp_path: Path) -> None:
    series = Series(write(tmp_path, np.arange(25), 2, chunks=(10,)))
    assert series.read(5, 25)[-1] == 24
    for number in range(3):
        (tmp_path / f"a/{number}").unlink()
    assert series.read(0, 25)[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        series.chunk(0)[0] = 1


def test_series_keeps_only_a_few_chunks(tmp_path: Path) -> None:
    series = Series(write(tmp_path, np.arange(1, 41), 2, chunks=(1,)))
    series.read(0, 40)
    (tmp_path / "a/0").unlink()
    with pytest.raises(ChunkMissingError):
        series.read(0, 1)


@pytest.mark.parametrize(("fill_value", "filled"), [(7, True), (None, False)])
def test_a_missing_chunk_of_a_series_is_filled_where_the_metadata_says_so(
    tmp_path: Path, fill_value: int | None, filled: bool
) -> None:
    array = write(tmp_path, np.arange(25), 2, chunks=(10,), fill_value=fill_value)
    (tmp_path / "a/1").unlink()
    with pytest.raises(ChunkMissingError):
        Series(array).read(0, 25)
    if filled:
        got = Series(array, fill_missing=True).read(0, 25)
        np.testing.assert_array_equal(got, [*range(10), *[7] * 10, *range(20, 25)])
    else:
        with pytest.raises(ChunkMissingError):
            Series(array, fill_missing=True).read(0, 25)


def test_dimension_names_of_both_formats(tmp_path: Path) -> None:
    attributes = {"_ARRAY_DIMENSIONS": ["distance", "time"]}
    two = write(tmp_path / "2", SAMPLES, 2, attributes=attributes)
    three = write(tmp_path / "3", SAMPLES, 3, dimension_names=("distance", "time"))
    assert two.dims == three.dims == ("distance", "time")
    assert write(tmp_path / "none", SAMPLES, 3).dims == ()
    assert write(tmp_path / "null", SAMPLES, 2, fill_value=None).fill_value is None


def test_a_corrupt_chunk_is_fetched_once_more_and_holds_no_buffer_meanwhile(tmp_path: Path) -> None:
    """Others decode while it is fetched again, which may take minutes."""
    array = write(tmp_path, SAMPLES, 2, compressors=numcodecs.Zlib(1))
    path = tmp_path / array.key((0, 0))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    used: list[NDArray[Any]] = []
    using: list[bool] = []
    fetched: list[bool] = []

    def use(chunk: Chunk) -> None:
        using.append(True)
        try:
            used.append(chunk.decode(np.empty(array.chunk_shape, array.dtype)))
        finally:
            using.pop()

    get = array._store.get

    def repaired(*args: Any, **how: Any) -> Any:
        fetched.append(bool(using))
        if len(fetched) == 2:
            path.write_bytes(whole)
        return get(*args, **how)

    array._store.get = repaired  # type: ignore[method-assign]
    assert array.load((0, 0), use) == len(whole)
    assert fetched == [False, False]
    assert np.array_equal(used[0], SAMPLES[:4, :30])
