"""Plain metadata is understood as Zarr understands it, and all other metadata is left to Zarr."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from das_gpu.chunks import StoredArray
from das_gpu.group import read_group
from das_gpu.locations import parse_location
from das_gpu.metadata import parse_group
from das_gpu.store import Store
from tests.layouts import write

Document = dict[str, Any]

LEVEL = st.integers(0, 9)
INTEGERS = [f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)]
FLOATS = ["f4", "f8"]
NAMED = st.sampled_from(["NaN", "Infinity", "-Infinity", 0, 1.5, -3, float("nan")])
EXAMPLES = 60
"""Of a search, as a unit: enough to come by every compressor, type and separator."""


def blosc(shuffle: st.SearchStrategy[Any]) -> dict[str, st.SearchStrategy[Any]]:
    names = st.sampled_from(["blosclz", "lz4", "lz4hc", "zlib", "zstd"])
    return {"cname": names, "clevel": LEVEL, "shuffle": shuffle, "blocksize": st.integers(0, 9999)}


def fills(dtype: str) -> st.SearchStrategy[Any]:
    if dtype in FLOATS:
        return NAMED | st.floats(width=32)
    limits = np.iinfo(dtype)
    return st.integers(int(limits.min), int(limits.max))


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    ndim = draw(st.integers(0, 3))
    shape = st.lists(st.integers(0, 1 << 33), min_size=ndim, max_size=ndim)
    chunks = st.lists(st.integers(1, 5000), min_size=ndim, max_size=ndim)
    return draw(shape), draw(chunks)


ATTRIBUTES = st.dictionaries(
    st.sampled_from(["units", "_ARRAY_DIMENSIONS", "é"]),
    st.none() | st.text(max_size=5) | st.lists(st.sampled_from(["time", "distance"]), max_size=3),
)
V2_COMPRESSORS = st.one_of(
    st.none(),
    st.fixed_dictionaries({"id": st.just("blosc"), **blosc(st.integers(-1, 2))}),
    st.fixed_dictionaries(
        {"id": st.just("zstd"), "level": st.integers(0, 22)}, optional={"checksum": st.booleans()}
    ),
    st.fixed_dictionaries({"id": st.sampled_from(["zlib", "gzip"]), "level": LEVEL}),
    st.fixed_dictionaries({"id": st.just("lz4"), "acceleration": st.integers(0, 9)}),
)


@st.composite
def arrays_of_v2(draw: st.DrawFn) -> tuple[Document, Document | None]:
    """``.zarray`` and ``.zattrs``."""
    dtype = draw(st.sampled_from([*INTEGERS, *FLOATS]))
    shape, chunks = draw(grids())
    order = "|" if dtype.endswith("1") else draw(st.sampled_from("<>"))
    fields = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunks,
        "dtype": order + dtype,
        "fill_value": draw(st.none() | fills(dtype)),
        "order": "C",
        "filters": None,
        "compressor": draw(V2_COMPRESSORS),
    }
    if draw(st.booleans()):
        fields["dimension_separator"] = draw(st.sampled_from("./"))
    return fields, draw(st.none() | ATTRIBUTES)


def named(name: str, **settings: st.SearchStrategy[Any]) -> st.SearchStrategy[Document]:
    configuration = st.fixed_dictionaries(settings)
    return st.fixed_dictionaries({"name": st.just(name), "configuration": configuration})


V3_COMPRESSORS = st.one_of(
    named(
        "blosc",
        typesize=st.integers(1, 16),
        **blosc(st.sampled_from(["noshuffle", "shuffle", "bitshuffle"])),
    ),
    named("zstd", level=st.integers(0, 22), checksum=st.booleans()),
    named("zstd", level=st.integers(0, 22)),
    named("gzip", level=LEVEL),
)
KEYS = st.one_of(
    st.sampled_from([{"name": "default"}, {"name": "v2"}]),
    *(named(name, separator=st.sampled_from("./")) for name in ("default", "v2")),
)


@st.composite
def arrays_of_v3(draw: st.DrawFn) -> tuple[Document, None]:
    """``zarr.json`` of an array."""
    dtype = draw(st.sampled_from([*INTEGERS, *FLOATS]))
    shape, chunks = draw(grids())
    endian = {"configuration": {"endian": draw(st.sampled_from(["little", "big"]))}}
    silent = dtype.endswith("1") and draw(st.booleans())
    codecs = [{"name": "bytes", **({} if silent else endian)}]
    fields = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": np.dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": draw(KEYS),
        "fill_value": draw(fills(dtype)),
        "codecs": codecs + draw(st.lists(V3_COMPRESSORS, max_size=1)),
    }
    if draw(st.booleans()):
        fields["attributes"] = draw(ATTRIBUTES)
    if draw(st.booleans()):
        names = st.sampled_from(["time", "distance", None])
        fields["dimension_names"] = [draw(names) for _ in shape]
    if draw(st.booleans()):
        fields["storage_transformers"] = []
    return fields, None


def documents_of(
    members: dict[str, tuple[Document, Document | None]],
    attributes: Document,
    *,
    consolidated: bool,
) -> tuple[dict[str, bytes], bool]:
    """The documents of a group, as they are stored, and whether its format is 3."""
    three = any(fields["zarr_format"] == 3 for fields, _ in members.values())
    inner: dict[str, Document] = {}
    for name, (fields, own) in members.items():
        if three:
            inner[name if consolidated else f"{name}/zarr.json"] = fields
        else:
            inner[f"{name}/.zarray"] = fields
            if own is not None:
                inner[f"{name}/.zattrs"] = own
    outer: dict[str, Document]
    if three:
        root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        if consolidated:
            table = {"kind": "inline", "must_understand": False, "metadata": inner}
            root["consolidated_metadata"] = table
        outer = {"zarr.json": root}
    else:
        outer = {".zgroup": {"zarr_format": 2}, ".zattrs": attributes}
        if consolidated:
            whole = {**outer, **inner}
            outer[".zmetadata"] = {"zarr_consolidated_format": 1, "metadata": whole}
    everything = outer if consolidated else {**outer, **inner}
    return {key: json.dumps(one).encode() for key, one in everything.items()}, three


def by_zarr(documents: dict[str, bytes], *, three: bool) -> tuple[dict[str, Any], Document]:
    """Zarr's metadata of the arrays of a group, and the group's attributes."""
    from zarr.core.buffer import default_buffer_prototype

    make = default_buffer_prototype().buffer.from_bytes
    store = MemoryStore({key: make(text) for key, text in documents.items()})
    group = zarr.open_group(
        store,
        mode="r",
        zarr_format=3 if three else 2,
        use_consolidated=None if three else ".zmetadata" in documents,
    )
    return {name: one.metadata for name, one in group.arrays()}, dict(group.attrs)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(parse_location(tmp_path_factory.mktemp("store")))


def facts(array: StoredArray) -> list[Any]:
    """All that the rest of das-gpu knows of an array; NaN is not equal to itself, its text is."""
    public = {name: value for name, value in vars(array).items() if not name.startswith("_")}
    encoding = array._codec
    corners = [(0,) * array.ndim, tuple(n - 1 for n in array.grid_shape)]
    return [
        repr(public),
        type(array.fill_value),
        (encoding.description, encoding._decoder, encoding._swapped),
        array._shard_shape,
        [array.key(corner) for corner in corners] if 0 not in array.shape else [],
    ]


def check_against_zarr(
    documents: dict[str, bytes], store: Store, *, three: bool
) -> dict[str, StoredArray] | None:
    """Understand a group; what is understood must be what Zarr says."""
    found = parse_group(documents, 3 if three else 2)
    if found is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, attributes = by_zarr(documents, three=three)
    assert repr(found.attributes) == repr(attributes)
    assert found.arrays.keys() == expected.keys()
    ours = {name: StoredArray(name, one, store) for name, one in found.arrays.items()}
    for name, array in ours.items():
        assert facts(array) == facts(StoredArray(name, expected[name], store))
    return ours


NAMES = st.sampled_from(["RawData", "a b", "Ü"])
MEMBERS = st.dictionaries(NAMES, arrays_of_v2(), max_size=3) | st.dictionaries(
    NAMES, arrays_of_v3(), max_size=3
)


@given(members=MEMBERS, attributes=ATTRIBUTES, consolidated=st.booleans())
@settings(max_examples=2 * EXAMPLES, deadline=None)
@pytest.mark.slow
def test_plain_metadata_is_understood_as_zarr_understands_it(
    store: Store,
    members: dict[str, tuple[Document, Document | None]],
    attributes: Document,
    consolidated: bool,
) -> None:
    documents, three = documents_of(members, attributes, consolidated=consolidated)
    found = check_against_zarr(documents, store, three=three)
    assert found is not None
    for array in found.values():
        assert array.plain
        again = pickle.loads(pickle.dumps(array))  # noqa: S301 - our own
        assert facts(again) == facts(array)


ODDITIES = [
    *(None, True, False, -1, 0, 1, 2, 3, 23, 1.0, 1.5, 1e300, 10**30, float("nan")),
    *("", "x", "F", "C", "NaN", "0x7fc00000", "7", "/", ".", "<i4", "|i4", ">f2", "<M8[us]"),
    *("int32", "float16", "bool", "r16", "zstd", "lz4", "bytes", "array", "group", "rectilinear"),
    *([], {}, [1], [None], [True], [[1, 2]], ["bytes"], {"name": "bytes"}, {"must_understand": 0}),
    *({"name": "crc32c"}, {"id": "zlib", "level": 1}, [{"id": "zlib", "level": 1}]),
    *([["a", "<i4"]], {"name": "v2", "separator": "/"}, [{"name": "vlen-utf8"}]),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a document something can be put in the place of what is there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, one in inner:
        found.append((*path, key))
        if isinstance(one, (dict, list)):
            found += places(one, (*path, key))
    return found


@given(
    fields=st.one_of(arrays_of_v2(), arrays_of_v3()),
    consolidated=st.booleans(),
    odd=st.sampled_from(ODDITIES),
    how=st.sampled_from(["replace", "delete", "add"]),
    draw=st.data(),
)
@settings(max_examples=4 * EXAMPLES, deadline=None)
@pytest.mark.slow
def test_of_changed_metadata_nothing_is_understood_that_zarr_does_not_understand_alike(
    store: Store,
    fields: tuple[Document, Document | None],
    consolidated: bool,
    odd: Any,
    how: str,
    draw: st.DataObject,
) -> None:
    documents, three = documents_of({"RawData": fields}, {}, consolidated=consolidated)
    key = draw.draw(st.sampled_from(sorted(documents)))
    document = json.loads(documents[key])
    *above, last = draw.draw(st.sampled_from(places(document) or [("added",)]))
    holder = document
    for part in above:
        holder = holder[part]
    if how == "delete" and last in holder:
        del holder[last]
    elif how == "add" and isinstance(holder, dict):
        holder[draw.draw(st.sampled_from(["name", "attributes", "shards", "configuration"]))] = odd
    elif how == "replace":
        holder[last] = odd
    check_against_zarr({**documents, key: json.dumps(document).encode()}, store, three=three)


V2: Document = {
    "zarr_format": 2,
    "shape": [4, 6],
    "chunks": [2, 3],
    "dtype": "<i4",
    "fill_value": 0,
    "order": "C",
    "filters": None,
    "compressor": None,
}
V3: Document = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [4, 6],
    "data_type": "int32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}},
    "chunk_key_encoding": {"name": "default"},
    "fill_value": 0,
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
}
SHARDS = {
    "name": "sharding_indexed",
    "configuration": {"chunk_shape": [1, 3], "codecs": V3["codecs"], "index_codecs": V3["codecs"]},
}


@pytest.mark.parametrize(
    "fields",
    [
        {**V2, "order": "F"},
        {**V2, "filters": [{"id": "delta", "dtype": "<i4"}]},
        {**V2, "filters": []},
        {**V2, "compressor": {"id": "bz2", "level": 1}},
        {**V2, "compressor": {"id": "zlib"}},
        {**V2, "dtype": "<M8[us]"},
        {**V2, "dtype": "|O"},
        {**V2, "dtype": [["a", "<i4"]]},
        {**V2, "fill_value": 1 << 40},
        {**V2, "chunks": [24]},
        {**V2, "more": 1},
        {name: value for name, value in V2.items() if name != "fill_value"},
        {**V3, "codecs": [SHARDS]},
        {**V3, "codecs": [*V3["codecs"], {"name": "zstd", "configuration": {}}]},
        {**V3, "codecs": [*V3["codecs"], {"name": "crc32c"}]},
        {**V3, "codecs": [{"name": "bytes"}]},
        {**V3, "chunk_grid": {"name": "rectilinear", "configuration": {}}},
        {**V3, "chunk_key_encoding": {"name": "hilbert"}},
        {**V3, "storage_transformers": [{"name": "x"}]},
        {**V3, "data_type": "string"},
        {**V3, "fill_value": None},
        {**V3, "more": {"must_understand": False}},
        {**V3, "node_type": "group"},
    ],
    ids=str,
)
@pytest.mark.parametrize("consolidated", [True, False])
def test_an_array_that_is_not_plain_leaves_its_group_to_zarr(
    fields: Document, consolidated: bool
) -> None:
    plain = V2 if fields["zarr_format"] == 2 else V3
    for odd, understood in ((plain, True), (fields, False)):
        members: dict[str, tuple[Document, Document | None]] = {"a": (plain, {}), "b": (odd, None)}
        documents, three = documents_of(members, {}, consolidated=consolidated)
        assert (parse_group(documents, 3 if three else 2) is not None) is understood


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.pop(".zgroup"),
        lambda one: one.update({".zgroup": b'{"zarr_format": 2, "more": 1}'}),
        lambda one: one.update({".zattrs": b"[]"}),
        lambda one: one.update({".zattrs": b"{"}),
        lambda one: one.update({".zattrs": b"\xff"}),
        lambda one: one.update({".zattrs": b"[" * 100_000}),
        lambda one: one.update({"b/.zgroup": b'{"zarr_format": 2}'}),
        lambda one: one.update({"b/.zattrs": b"{}"}),
        lambda one: one.update({"b/c/.zarray": one["a/.zarray"]}),
        lambda one: one.update({"../.zarray": one["a/.zarray"]}),
        lambda one: one.update({"b\\c/.zarray": one["a/.zarray"]}),
        lambda one: one.update({".zmetadata": b"{}"}),
        lambda one: one.update({".zmetadata": b'{"metadata": {"a": {}}}'}),
    ],
)
def test_a_group_that_is_not_plain_is_left_to_zarr(
    change: Callable[[dict[str, bytes]], object],
) -> None:
    documents, _ = documents_of({"a": (V2, {})}, {}, consolidated=False)
    assert parse_group(documents, 2) is not None
    change(documents)
    assert parse_group(documents, 2) is None


def test_an_array_asked_for_that_is_not_there_is_left_to_zarr() -> None:
    documents, _ = documents_of({"a": (V2, {})}, {}, consolidated=True)
    assert parse_group(documents, 2, ["a"]) is not None
    assert parse_group(documents, 2, ["a", "inner/b"]) is None


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_what_zarr_writes_is_plain_and_read_as_it_was_written(
    tmp_path: Path, zarr_format: int, consolidated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = parse_location(
        write(tmp_path / "a", zarr_format=zarr_format, consolidated=consolidated)
    )
    ours = read_group(location)
    monkeypatch.setattr("das_gpu.group.parse_group", lambda *_: None)
    theirs = read_group(location)
    assert ours.arrays.keys() == theirs.arrays.keys() == {"RawData", "RawDataTime"}
    assert ours.attributes == theirs.attributes
    for name, array in ours.arrays.items():
        assert facts(array) == facts(theirs.arrays[name])
        np.testing.assert_array_equal(array[:], theirs.arrays[name][:])
