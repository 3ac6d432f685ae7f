"""The metadata of a Zarr group whose arrays are plain, parsed without the Zarr library.

Importing that library takes longer than reading the first chunks. What is understood here are
documents that say the usual in the usual way: regular chunks in C order of integers or floats,
one known compressor or none. Of everything else the library is left to judge: a document with
anything unusual in it is not half understood, and never called wrong here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np

ZarrFormat: TypeAlias = Literal[2, 3]
Settings: TypeAlias = Mapping[str, int | str | bool]
_Document: TypeAlias = dict[str, Any]
_Check: TypeAlias = Callable[[object], bool]

_V2_TYPE = re.compile(r"\|[iu]1|[<>](?:[iu][248]|f[48])")
_V3_TYPE = re.compile(r"u?int(?:8|16|32|64)|float(?:32|64)")
_NAMED_FLOATS = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
_INNER = ("zarray", "zattrs")

_V2_KEYS = frozenset(
    {"zarr_format", "shape", "chunks", "dtype", "fill_value", "order", "filters", "compressor"}
)
_V3_KEYS = frozenset(
    {"zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding"}
    | {"fill_value", "codecs"}
)
_BLOSC_NAMES = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")


class _UnusualError(Exception):
    """A document that is not plain, or no document at all."""


@dataclass(frozen=True, slots=True)
class ArrayMetadata:
    """What the document of a plain array says.

    Attributes
    ----------
    zarr_format : {2, 3}
    shape, chunks : tuple of int
        In stored order.
    stored : numpy.dtype
        Of stored samples, in their byte order.
    fill_value : numpy scalar or None
        None when the document says null.
    attributes : dict
    dimension_names : tuple of (str or None), or None
        Of format 3; format 2 has them among the attributes, if at all.
    prefix, separator : str
        What a chunk's key begins with, and what stands between the parts of it.
    steps : tuple of (str, dict)
        Name and settings of each step of the encoding, in the order of encoding; in format 2
        the compressor, if there is one.
    """

    zarr_format: ZarrFormat
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    stored: np.dtype[Any]
    fill_value: np.generic | None
    attributes: Mapping[str, Any]
    dimension_names: tuple[str | None, ...] | None
    prefix: str
    separator: str
    steps: tuple[tuple[str, Settings], ...]

    @property
    def compressor(self) -> str:
        """The compressor's name, or ``none``."""
        return next((name for name, _ in self.steps if name != "bytes"), "none")

    def encode_chunk_key(self, index: tuple[int, ...]) -> str:
        """Name of a chunk's object below the array."""
        parts = [self.prefix] if self.prefix else []
        return self.separator.join([*parts, *map(str, index)]) or "0"


@dataclass(frozen=True, slots=True)
class GroupMetadata:
    """Arrays by name, in the documents' order, and the attributes of a group."""

    arrays: Mapping[str, ArrayMetadata]
    attributes: Mapping[str, Any]


def parse_group(
    documents: Mapping[str, bytes], zarr_format: ZarrFormat, asked: Collection[str] = ()
) -> GroupMetadata | None:
    """Understand a group's documents, consolidated or not, if all of them are plain.

    Parameters
    ----------
    documents : mapping of str to bytes
        By key below the group.
    zarr_format : {2, 3}
    asked : collection of str
        Arrays that must be among the group's own.

    Returns
    -------
    GroupMetadata or None
        None where anything is not plain, missing or wrong: the Zarr library is to judge of it.
    """
    try:
        group = (_group_of_v2 if zarr_format == 2 else _group_of_v3)(documents)
    except (_UnusualError, ValueError, OverflowError, RecursionError):
        return None
    return group if group.arrays.keys() >= set(asked) else None


# --- groups -------------------------------------------------------------------------------


def _group_of_v2(documents: Mapping[str, bytes]) -> GroupMetadata:
    # Also where the metadata is consolidated: the library wants the group's own file.
    if _parsed(documents.get(".zgroup", b"")) != {"zarr_format": 2}:
        _refuse()
    attributes = _parsed(documents[".zattrs"]) if ".zattrs" in documents else {}
    if ".zmetadata" in documents:
        inner = _table(_parsed(documents[".zmetadata"]).get("metadata"))
        # Those of the group itself are taken from their own files.
        inner = {key: one for key, one in inner.items() if key not in (".zgroup", ".zattrs")}
    else:
        inner = {key: _parsed(one) for key, one in documents.items() if "/" in key}
    members: dict[str, dict[str, _Document]] = {}
    for key, one in inner.items():
        name, _, kind = key.rpartition("/.")
        if kind not in _INNER:
            _refuse()
        members.setdefault(_name(name), {})[kind] = _table(one)
    arrays = {
        name: _array_of_v2(kinds.get("zarray", {}), kinds.get("zattrs", {}))
        for name, kinds in members.items()
    }
    return GroupMetadata(arrays, attributes)


def _group_of_v3(documents: Mapping[str, bytes]) -> GroupMetadata:
    root = _parsed(documents["zarr.json"])
    optional = {"attributes", "consolidated_metadata"}
    if not _has_only(root, {"zarr_format", "node_type"}, optional):
        _refuse()
    if not _is_int(root["zarr_format"], 3, 3) or root["node_type"] != "group":
        _refuse()
    consolidated = root.get("consolidated_metadata")
    if consolidated is None:
        inner = {
            key.removesuffix("/zarr.json"): _parsed(one)
            for key, one in documents.items()
            if key.endswith("/zarr.json")
        }
    else:
        table = _table(consolidated)
        if not _has_only(table, {"kind", "must_understand", "metadata"}):
            _refuse()
        if table["kind"] != "inline" or table["must_understand"] is not False:
            _refuse()
        inner = _table(table["metadata"])
    arrays = {_name(name): _array_of_v3(_table(one)) for name, one in inner.items()}
    return GroupMetadata(arrays, _table(root.get("attributes", {})))


def _name(name: str) -> str:
    """Name of an array in the group itself, that means the same everywhere."""
    if not name or name in (".", "..") or set(name) & {"/", "\\"}:
        _refuse()
    return name


# --- arrays -------------------------------------------------------------------------------


def _array_of_v2(fields: _Document, attributes: _Document) -> ArrayMetadata:
    if not _has_only(fields, _V2_KEYS, {"dimension_separator"}):
        _refuse()
    usual = _is_int(fields["zarr_format"], 2, 2) and fields["order"] == "C"
    if not usual or fields["filters"] is not None:
        _refuse()
    stored = _dtype(fields["dtype"], _V2_TYPE)
    shape, chunks = _sizes(fields["shape"]), _sizes(fields["chunks"])
    compressor = fields["compressor"]
    return ArrayMetadata(
        zarr_format=2,
        shape=shape,
        chunks=_as_many(chunks, shape),
        stored=stored,
        fill_value=None if fields["fill_value"] is None else _fill(fields["fill_value"], stored),
        attributes=attributes,
        dimension_names=None,
        prefix="",
        separator=_separator(fields.get("dimension_separator", ".")),
        steps=() if compressor is None else (_step(*_identified(compressor), _V2_STEPS),),
    )


def _array_of_v3(fields: _Document) -> ArrayMetadata:
    optional = {"attributes", "dimension_names", "storage_transformers"}
    if not _has_only(fields, _V3_KEYS, optional):
        _refuse()
    usual = _is_int(fields["zarr_format"], 3, 3) and fields["node_type"] == "array"
    if not usual or fields.get("storage_transformers", []) != []:
        _refuse()
    native = _dtype(fields["data_type"], _V3_TYPE)
    shape = _sizes(fields["shape"])
    grid_name, grid = _named(fields["chunk_grid"])
    if grid_name != "regular" or grid.keys() != {"chunk_shape"}:
        _refuse()
    encoding, configuration = _named(fields["chunk_key_encoding"])
    if encoding not in ("default", "v2") or configuration.keys() - {"separator"}:
        _refuse()
    stored, steps = _steps_of_v3(fields["codecs"], native)
    return ArrayMetadata(
        zarr_format=3,
        shape=shape,
        chunks=_as_many(_sizes(grid["chunk_shape"]), shape),
        stored=stored,
        fill_value=_fill(fields["fill_value"], native),
        attributes=_table(fields.get("attributes", {})),
        dimension_names=_dimension_names(fields.get("dimension_names"), shape),
        prefix="c" if encoding == "default" else "",
        separator=_separator(configuration.get("separator", "/" if encoding == "default" else ".")),
        steps=steps,
    )


def _steps_of_v3(
    codecs: object, native: np.dtype[Any]
) -> tuple[np.dtype[Any], tuple[tuple[str, Settings], ...]]:
    """Dtype in its stored byte order, and the steps of the encoding."""
    if not isinstance(codecs, list) or not 1 <= len(codecs) <= 2:
        _refuse()
    name, settings = _named(codecs[0])
    endian = settings.get("endian")
    known = endian in ("little", "big") or (endian is None and native.itemsize == 1)
    if name != "bytes" or settings.keys() - {"endian"} or not known:
        _refuse()
    rest = tuple(_step(*_named(one), _V3_STEPS) for one in codecs[1:])
    if native.itemsize == 1:
        return native, (("bytes", {}), *rest)
    stored = native.newbyteorder("<" if endian == "little" else ">")
    return stored, (("bytes", {"endian": str(endian)}), *rest)


# --- fields -------------------------------------------------------------------------------


def _refuse() -> NoReturn:
    raise _UnusualError


def _parsed(text: bytes) -> _Document:
    return _table(json.loads(text))


def _table(value: object) -> _Document:
    return value if isinstance(value, dict) else _refuse()


def _has_only(fields: _Document, needed: Collection[str], optional: Collection[str] = ()) -> bool:
    return fields.keys() >= set(needed) and fields.keys() <= {*needed, *optional}


def _named(value: object) -> tuple[str, _Document]:
    """Name and configuration of an extension point of format 3."""
    fields = _table(value)
    name = fields.get("name")
    if not isinstance(name, str) or not _has_only(fields, {"name"}, {"configuration"}):
        _refuse()
    return name, _table(fields.get("configuration", {}))


def _identified(value: object) -> tuple[str, _Document]:
    """Name and settings of a compressor of format 2."""
    fields = dict(_table(value))
    name = fields.pop("id", None)
    return (name, fields) if isinstance(name, str) else _refuse()


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high  # True is an int, but no number


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(_is_int(one, 0, 1 << 62) for one in value):
        _refuse()
    return tuple(value)


def _as_many(chunks: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return chunks if len(chunks) == len(shape) else _refuse()


def _dtype(value: object, pattern: re.Pattern[str]) -> np.dtype[Any]:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        _refuse()
    return np.dtype(value)


def _fill(value: object, dtype: np.dtype[Any]) -> np.generic:
    scalar: Callable[[object], np.generic] = dtype.type
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        return scalar(value) if _is_int(value, int(limits.min), int(limits.max)) else _refuse()
    if isinstance(value, str) and value in _NAMED_FLOATS:
        return scalar(_NAMED_FLOATS[value])
    if type(value) not in (int, float):
        _refuse()
    with np.errstate(over="raise"):
        try:
            return scalar(value)
        except FloatingPointError:
            _refuse()


def _separator(value: object) -> str:
    return value if isinstance(value, str) and value in (".", "/") else _refuse()


def _dimension_names(value: object, shape: Sequence[int]) -> tuple[str | None, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != len(shape):
        _refuse()
    return tuple(value) if all(one is None or type(one) is str for one in value) else _refuse()


# --- compressors --------------------------------------------------------------------------


def _step(
    name: str, given: Settings, known: Mapping[str, tuple[Mapping[str, _Check], Settings]]
) -> tuple[str, Settings]:
    """A compressor whose settings are all known and usual."""
    if name not in known:
        _refuse()
    checks, defaults = known[name]
    settings = {**defaults, **given}
    if settings.keys() != checks.keys():
        _refuse()
    if not all(check(settings[one]) for one, check in checks.items()):
        _refuse()
    return name, settings


def _between(low: int, high: int) -> _Check:
    return lambda value: _is_int(value, low, high)


def _among(values: Sequence[str]) -> _Check:
    return lambda value: isinstance(value, str) and value in values


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


_ZSTD: tuple[Mapping[str, _Check], Settings] = (
    {"level": _between(0, 22), "checksum": _is_switch},
    {"checksum": False},
)
_LEVEL: tuple[Mapping[str, _Check], Settings] = ({"level": _between(0, 9)}, {})
_BLOSC = {
    "cname": _among(_BLOSC_NAMES),
    "clevel": _between(0, 9),
    "blocksize": _between(0, 1 << 31),
}
_V2_STEPS: Mapping[str, tuple[Mapping[str, _Check], Settings]] = {
    "blosc": ({**_BLOSC, "shuffle": _between(-1, 2)}, {}),
    "zstd": _ZSTD,
    "zlib": _LEVEL,
    "gzip": _LEVEL,
    "lz4": ({"acceleration": _between(0, 1 << 16)}, {}),
}
_V3_STEPS: Mapping[str, tuple[Mapping[str, _Check], Settings]] = {
    "blosc": (
        {
            **_BLOSC,
            "typesize": _between(1, 255),
            "shuffle": _among(("noshuffle", "shuffle", "bitshuffle")),
        },
        {},
    ),
    "zstd": _ZSTD,
    "gzip": _LEVEL,
}
"""For each compressor, what each of its settings must be, and those it may be silent about."""
