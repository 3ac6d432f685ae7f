"""Data that is not what it is said to be: which tiles are lost, with which word, and no other.

A chunk, the time axis or the metadata lies; the run goes on, says so, and ends with exit code
3. Everything that the lie does not touch is what it would be without, and a rerun after the
repair gives the folder of an undisturbed run. The archives are 40 channels x 20 s in chunks of
16 x 2.5 s; the tiles are 4 rows of 5 s by 2 bands. The harmed chunk, samples 1500 to 2000 of
channels 0 to 16, lies in tile (1, 0) and in the halo of tile (2, 0).
"""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
from numpy.typing import NDArray

from das_gpu import Recipe, extract
from das_gpu.errors import ChunkCorruptError, SourceError
from das_gpu.run import Summary
from tests.archives import clock_us, random_walk
from tests.outputs import files, lines, records, statuses

RECIPE = Recipe().with_settings({"selection.channel_step": 1, "tile.seconds": 5, "tile.bands": 2})
CHUNKS = (16, 500)
SOUND = ["edge", "edge", "ok", "ok", "ok", "ok", "edge", "edge"]
GIGABYTE = 1 << 30

Encoding = dict[str, Any]
BLOSC: Encoding = {"zarr_format": 2, "compressors": numcodecs.Blosc("lz4")}
ENCODINGS: dict[str, Encoding] = {
    "blosc": BLOSC,
    "zstd": {"zarr_format": 2, "compressors": numcodecs.Zstd(1)},
    "gzip": {"zarr_format": 2, "compressors": numcodecs.GZip(1)},
    "raw": {"zarr_format": 2, "compressors": None},
    "filtered": {
        "zarr_format": 2,
        "filters": [numcodecs.Delta("<i4")],
        "compressors": numcodecs.Zstd(1),
    },
    "format 3": {"zarr_format": 3, "compressors": zarr.codecs.ZstdCodec()},
    "sharded": {
        "zarr_format": 3,
        "compressors": zarr.codecs.ZstdCodec(),
        "shards": (16, 1000),
    },
}


@pytest.fixture(scope="module")
def samples() -> NDArray[np.int32]:
    return random_walk(40, 4000, seed=2)


@pytest.fixture(scope="module")
def undisturbed(samples: NDArray[np.int32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a sound archive gives, however its chunks are encoded."""
    folder = tmp_path_factory.mktemp("undisturbed")
    store = write(folder / "a.zarr", samples, BLOSC)
    assert extract(store, folder / "out", RECIPE).exit_code == 0
    assert statuses(folder / "out") == SOUND
    return folder / "out"


def write(path: Path, samples: NDArray[np.int32], encoding: Encoding) -> Path:
    """An archive whose metadata is not consolidated, so that it is said in one place only."""
    how = dict(encoding)
    group = zarr.open_group(path, mode="w", zarr_format=how.pop("zarr_format"))
    data = group.create_array(
        "RawData", shape=samples.shape, chunks=CHUNKS, dtype="<i4", fill_value=0, **how
    )
    data[...] = samples
    how.pop("shards", None)
    how.pop("filters", None)
    axis = group.create_array(
        "RawDataTime", shape=(4000,), chunks=(500,), dtype="<i8", fill_value=0, **how
    )
    axis[...] = clock_us(4000, 200.0)
    return path


def untouched(out: Path, *touched: tuple[int, int]) -> dict[tuple[int, int], dict[str, Any]]:
    """Records by tile row and band, without the touched tiles."""
    found = {(r["sample_start"] // 1000, r["channel_start"] // 20): r for r in records(out)}
    return {tile: found[tile] for tile in found.keys() - set(touched)}


@contextmanager
def little_memory(most_bytes: int = 100 << 20) -> Iterator[None]:
    """The process grows by no more than this inside the block (Linux tells)."""
    status = Path("/proc/self/status")

    def kilobytes(name: str) -> int:
        (line,) = [one for one in status.read_text().splitlines() if one.startswith(name)]
        return int(line.split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = kilobytes("VmRSS")
    yield
    assert (kilobytes("VmHWM") - before) * 1024 < most_bytes


# --- one chunk of the samples -----------------------------------------------------------------


def encoded(array: NDArray[Any]) -> bytes:
    return bytes(numcodecs.Blosc("lz4").encode(array))


def zstd_bomb(*, declared: bool) -> bytes:
    """A gigabyte of zeros in 32 kB: blocks of one byte repeated 131,072 times (RFC 8878, 3.1)."""
    n_blocks = GIGABYTE >> 17
    blocks = b"\x02\x00\x10\x00" * (n_blocks - 1) + b"\x03\x00\x10\x00"
    if declared:
        return b"\x28\xb5\x2f\xfd\xa0" + GIGABYTE.to_bytes(4, "little") + blocks
    return b"\x28\xb5\x2f\xfd\x00\x38" + blocks


def gzip_bomb() -> bytes:
    """200 MB of zeros in 0.9 MB, as much as an object of such a chunk may have."""
    return zlib.compress(bytes(200 << 20), 1, zlib.MAX_WBITS | 16)


def blosc_bomb() -> bytes:
    """A header that promises a gigabyte, as c-blosc would write it for zeros."""
    body = bytes(numcodecs.Blosc("lz4").encode(np.zeros(1 << 16, np.int32)))
    return body[:4] + GIGABYTE.to_bytes(4, "little") + body[8:]


def shard_of(*inner: bytes | None) -> bytes:
    """A shard: its chunks, then where each begins and how long it is, and a checksum of that."""
    index, begin = b"", 0
    for one in inner:
        place = (begin, len(one)) if one is not None else (2**64 - 1, 2**64 - 1)
        index += b"".join(number.to_bytes(8, "little") for number in place)
        begin += len(one or b"")
    body = b"".join(one or b"" for one in inner)
    checksum: int = google_crc32c.value(index)
    return body + index + checksum.to_bytes(4, "little")


def inner_chunks(shard: bytes) -> list[bytes]:
    """The two chunks of a shard."""
    numbers = np.frombuffer(shard[-36:-4], "<u8").reshape(2, 2)
    return [shard[int(begin) : int(begin + size)] for begin, size in numbers]


PAGE = b"<html><body>502 Bad Gateway</body></html>"


@dataclass(frozen=True)
class Harm:
    """What is done to the stored object, and what is said of it."""

    encoding: str
    change: Callable[[bytes], bytes] | None
    status: str
    said: str


CORRUPT = "cannot be decoded to (16, 500) int32"

HARMS = {
    "not there": Harm("zstd", None, "missing", "holds no object"),
    "empty": Harm("zstd", lambda _: b"", "corrupt", "empty"),
    "a web page": Harm("blosc", lambda _: PAGE, "corrupt", CORRUPT),
    "of half the samples": Harm(
        "blosc", lambda _: encoded(np.ones((16, 250), "i4")), "corrupt", "16000 bytes where"
    ),
    "of another shape": Harm(
        "blosc", lambda _: encoded(np.ones((17, 500), "i4")), "corrupt", "34000 bytes where"
    ),
    "of int16": Harm(
        "blosc", lambda _: encoded(np.ones((16, 500), "i2")), "corrupt", "16000 bytes where"
    ),
    "of int64": Harm(
        "blosc", lambda _: encoded(np.ones((16, 500), "i8")), "corrupt", "64000 bytes where"
    ),
    "of another codec": Harm("zstd", lambda _: zlib.compress(bytes(32000)), "corrupt", CORRUPT),
    "raw and a byte short": Harm("raw", lambda body: body[:-1], "corrupt", "31999 bytes where"),
    "raw and twice as long": Harm("raw", lambda body: body * 2, "corrupt", "64000 bytes where"),
    "a blosc bomb": Harm("blosc", lambda _: blosc_bomb(), "corrupt", "declares 1073741824 bytes"),
    "a zstd bomb": Harm(
        "zstd", lambda _: zstd_bomb(declared=True), "corrupt", "declares 1073741824 bytes"
    ),
    "a silent zstd bomb": Harm("zstd", lambda _: zstd_bomb(declared=False), "corrupt", CORRUPT),
    "a gzip bomb": Harm("gzip", lambda _: gzip_bomb(), "corrupt", "at least 32001 bytes"),
    "filtered, cut": Harm("filtered", lambda body: body[:-9], "corrupt", CORRUPT),
    "filtered, a bomb": Harm("filtered", lambda _: zstd_bomb(declared=True), "corrupt", CORRUPT),
    "format 3, not there": Harm("format 3", None, "missing", "holds no object"),
    "format 3, cut": Harm("format 3", lambda body: body[:-9], "corrupt", CORRUPT),
    "format 3, a bomb": Harm("format 3", lambda _: zstd_bomb(declared=True), "corrupt", CORRUPT),
    "shard, index cut": Harm("sharded", lambda body: body[:-9], "corrupt", CORRUPT),
    "shard, index flipped": Harm(
        "sharded",
        lambda body: body[:-20] + bytes(b ^ 255 for b in body[-20:]),
        "corrupt",
        CORRUPT,
    ),
    "shard, not there": Harm("sharded", None, "missing", "holds no object"),
    "shard, chunk not there": Harm(
        "sharded", lambda body: shard_of(inner_chunks(body)[0], None), "missing", "holds no"
    ),
    "shard, chunk a page": Harm(
        "sharded", lambda body: shard_of(inner_chunks(body)[0], PAGE), "corrupt", CORRUPT
    ),
    "shard, chunk outside": Harm(
        "sharded",
        lambda body: shard_of(inner_chunks(body)[0], inner_chunks(body)[1] + bytes(99))[99:],
        "corrupt",
        CORRUPT,
    ),
    "shard, chunk a bomb": Harm(
        "sharded",
        lambda body: shard_of(inner_chunks(body)[0], zstd_bomb(declared=True)),
        "corrupt",
        CORRUPT,
    ),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
@pytest.mark.slow
def test_a_chunk_that_is_not_what_it_should_be_loses_its_tile_until_it_is_repaired(
    harm: Harm, samples: NDArray[np.int32], undisturbed: Path, tmp_path: Path
) -> None:
    encoding = ENCODINGS[harm.encoding]
    store, out = write(tmp_path / "a.zarr", samples, encoding), tmp_path / "out"
    key = {"format 3": "c/0/3", "sharded": "c/0/1"}.get(harm.encoding, "0.3")
    chunk = store / "RawData" / key
    whole = chunk.read_bytes()
    if harm.change is None:
        chunk.unlink()
    else:
        chunk.write_bytes(harm.change(whole))

    with little_memory():
        assert extract(store, out, RECIPE).exit_code == 3
    expected = SOUND.copy()
    expected[2], expected[4] = harm.status, "edge"
    assert statuses(out) == expected
    (lost,) = lines(out / "undelivered.jsonl")
    assert f"RawData/{key}" in lost["reason"]
    assert harm.said in lost["reason"]
    # A shard lost as a whole takes the chunk before along, which the first tile's halo needs.
    touched = [(1, 0), (2, 0), *([(0, 0)] if harm.encoding == "sharded" else [])]
    assert untouched(out, *touched) == untouched(undisturbed, *touched)

    chunk.write_bytes(whole)
    assert extract(store, out, RECIPE).exit_code == 0
    assert files(out) == files(undisturbed)


# --- the time axis ----------------------------------------------------------------------------


AXIS_HARMS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda body: body[:-5], "corrupt"),
    "of half the samples": (lambda _: encoded(np.ones(250, "i8")), "corrupt"),
    "of int32": (lambda _: encoded(np.ones(500, "i4")), "corrupt"),
    "a bomb": (lambda _: blosc_bomb(), "corrupt"),
    "zeros": (lambda _: encoded(np.zeros(500, "i8")), "gap"),
    "no times at all": (lambda _: encoded(np.full(500, 2**62)), "corrupt"),
    "not a number": (lambda _: encoded(np.full(500, -(2**63))), "corrupt"),
}


@pytest.mark.parametrize(("change", "status"), AXIS_HARMS.values(), ids=AXIS_HARMS.keys())
def test_a_chunk_of_the_time_axis_that_lies_loses_the_rows_it_touches(
    change: Callable[[bytes], bytes],
    status: str,
    samples: NDArray[np.int32],
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    store, out = write(tmp_path / "a.zarr", samples, BLOSC), tmp_path / "out"
    chunk = store / "RawDataTime" / "3"
    whole = chunk.read_bytes()
    chunk.write_bytes(change(whole))
    with little_memory():
        summary = extract(store, out, RECIPE)
    assert statuses(out) == ["edge"] * 2 + [status] * 2 + ["edge"] * 4
    assert summary.exit_code == (0 if status == "gap" else 3)
    # Row 1 holds the chunk, and row 2 has it in its halo.
    touched = [(row, band) for row in (1, 2) for band in (0, 1)]
    assert untouched(out, *touched) == untouched(undisturbed, *touched)

    if status != "gap":
        chunk.write_bytes(whole)
        assert extract(store, out, RECIPE).exit_code == 0
        assert files(out) == files(undisturbed)


# --- metadata ---------------------------------------------------------------------------------


def lie(store: Path, array: str, **said: object) -> None:
    path = store / array / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def made(store: Path, out: Path, **settings: Any) -> Summary:
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    return extract(store, out, RECIPE.with_settings(changed))


def test_a_record_said_to_be_longer_than_it_is_misses_its_end(
    samples: NDArray[np.int32], undisturbed: Path, tmp_path: Path
) -> None:
    store = write(tmp_path / "a.zarr", samples, BLOSC)
    lie(store, "RawData", shape=[40, 6000])
    lie(store, "RawDataTime", shape=[6000])
    assert made(store, tmp_path / "out").exit_code == 3
    assert statuses(tmp_path / "out") == [*SOUND, *["missing"] * 4]
    last = [(3, 0), (3, 1)]  # their halo is cut by what is missing, no longer by the record's end
    none = [(row, band) for row in (4, 5) for band in (0, 1)]
    assert untouched(tmp_path / "out", *last, *none) == untouched(undisturbed, *last)


def test_channels_that_are_not_stored_are_missing_and_the_others_are_not_touched(
    samples: NDArray[np.int32], undisturbed: Path, tmp_path: Path
) -> None:
    store = write(tmp_path / "a.zarr", samples, BLOSC)
    lie(store, "RawData", shape=[60, 4000])
    assert made(store, tmp_path / "sound", selection__channel_stop=40).exit_code == 0
    assert files(tmp_path / "sound") == files(undisturbed)
    # Bands of 20 channels; the chunks of 32 to 48 are stored, those of 48 to 64 are not.
    assert made(store, tmp_path / "all", tile__bands=3).exit_code == 3
    assert statuses(tmp_path / "all") == [
        "edge", "edge", "missing",
        "ok", "ok", "missing",
        "ok", "ok", "missing",
        "edge", "edge", "missing",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"chunks": [16, 1000]}, ["corrupt"] * 8),
        # Twice as many chunks, of which only the first half are stored.
        ({"chunks": [16, 250]}, ["corrupt"] * 4 + ["missing"] * 4),
        ({"chunks": [8, 500]}, ["corrupt"] * 8),
        ({"dtype": "<i2"}, ["corrupt"] * 8),
        ({"dtype": "<f8"}, ["corrupt"] * 8),
        ({"compressor": None}, ["corrupt"] * 8),
        ({"compressor": {"id": "zstd", "level": 1}}, ["corrupt"] * 8),
        ({"dimension_separator": "/"}, ["missing"] * 8),
    ],
    ids=str,
)
def test_metadata_that_describes_other_chunks_loses_every_tile_and_delivers_none(
    said: dict[str, object], expected: list[str], samples: NDArray[np.int32], tmp_path: Path
) -> None:
    store = write(tmp_path / "a.zarr", samples, BLOSC)
    lie(store, "RawData", **said)
    assert made(store, tmp_path / "out").exit_code == 3
    assert statuses(tmp_path / "out") == expected
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_record_of_absurd_length_is_refused_at_once(
    samples: NDArray[np.int32], tmp_path: Path
) -> None:
    store = write(tmp_path / "a.zarr", samples, BLOSC)
    lie(store, "RawData", shape=[40, 10**15])
    lie(store, "RawDataTime", shape=[10**15])
    with little_memory(), pytest.raises(SourceError, match="cannot be read at its ends"):
        made(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


NESTED = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
BY_FORMAT = {2: (".zattrs", "RawData/.zattrs"), 3: ("zarr.json", "RawData/zarr.json")}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("where", [0, 1], ids=["the group's", "an array's"])
@pytest.mark.parametrize("how", ["100 MB", "nested"])
def test_hostile_attributes_are_refused_unread(
    how: str, where: int, zarr_format: int, samples: NDArray[np.int32], tmp_path: Path
) -> None:
    encoding = {2: BLOSC, 3: ENCODINGS["format 3"]}[zarr_format]
    store = write(tmp_path / "a.zarr", samples, encoding)
    path = store / BY_FORMAT[zarr_format][where]
    if how == "nested":
        path.write_bytes(NESTED)
    else:
        with path.open("wb") as file:
            file.truncate(100 << 20)
    said = "cannot be understood" if how == "nested" else "is not read"
    with little_memory(), pytest.raises(SourceError, match=said) as caught:
        made(store, tmp_path / "out")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


# --- what is asked for instead ----------------------------------------------------------------


def test_corrupt_chunks_stop_a_run_that_must_be_whole_and_can_count_as_dead_channels(
    samples: NDArray[np.int32], tmp_path: Path
) -> None:
    store = write(tmp_path / "a.zarr", samples, BLOSC)
    (store / "RawData" / "0.3").write_bytes(blosc_bomb())
    with pytest.raises(ChunkCorruptError, match=r"RawData/0\.3") as caught:
        extract(store, tmp_path / "whole", RECIPE, on_missing="error")
    assert caught.value.exit_code == 4
    assert extract(store, tmp_path / "filled", RECIPE, on_missing="fill").exit_code == 0
    assert statuses(tmp_path / "filled") == ["edge", "edge", "ok", "ok", "edge", "ok", *SOUND[6:]]
    assert [r["dead_channels"] for r in records(tmp_path / "filled")] == [0, 0, 16, 0, 0, 0, 0, 0]


@pytest.mark.slow
def test_a_file_that_is_cut_and_written_again_while_it_is_read_is_waited_for(
    samples: NDArray[np.int32], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write(tmp_path / "a.zarr", samples, BLOSC)
    chunk = store / "RawData" / "0.3"
    whole = chunk.read_bytes()
    begun = threading.Event()

    def scratch(size: int) -> memoryview:
        if size == len(whole) and not begun.is_set():
            begun.set()
            chunk.write_bytes(whole[:1000])
            threading.Timer(0.3, chunk.write_bytes, (whole,)).start()
        return memoryview(bytearray(size))

    monkeypatch.setattr("das_gpu.transports.files.scratch", scratch)
    assert extract(store, tmp_path / "out", RECIPE).exit_code == 0
    assert begun.is_set()
    assert files(tmp_path / "out") == files(undisturbed)
