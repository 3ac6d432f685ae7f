"""A Zarr group's metadata: read once, and refused where it cannot be what it should be."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from das_gpu.chunks import StoredArray
from das_gpu.errors import AccessDeniedError, DasGpuError, SourceError, SourceNotFoundError
from das_gpu.locations import Location
from das_gpu.metadata import GroupMetadata, ZarrFormat, parse_group
from das_gpu.store import Access, Store
from das_gpu.virtual.document import Document

if TYPE_CHECKING:
    import zarr

_LOG = logging.getLogger(__name__)

# Tried one by one where a store lets nobody list it.
_USUAL_NAMES = (
    *("RawData", "RawDataTime", "RawDataSampleCount", "GpsStatus", "GpBits"),
    *("raw_data", "data", "time", "distance"),
)
_MAX_METADATA_BYTES = 64 << 20
_MEMBERS = 1000
_METADATA_PATIENCE_S = 75.0
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Group:
    """The arrays and attributes of the Zarr group at a location.

    ``index`` is the index file that the location is, when it is one.
    """

    location: Location
    zarr_format: ZarrFormat
    arrays: Mapping[str, StoredArray]
    attributes: Mapping[str, Any]
    index: Document | None = None

    def __str__(self) -> str:
        found = (f"{name} {one.shape} {one.dtype}" for name, one in sorted(self.arrays.items()))
        return "It holds " + (", ".join(islice(found, 20)) or "no arrays") + "."

    def matching(self, names: Iterable[str]) -> list[StoredArray]:
        """Arrays whose plain name is among ``names``, in the order of ``names``."""
        by_name = {plain_name(name): one for name, one in self.arrays.items()}
        return [by_name[name] for name in names if name in by_name]

    def named(self, names: Iterable[str], length: int, kinds: str = "iu") -> StoredArray | None:
        """Find an optional variable; one that does not fit is passed over, and said."""
        for one in self.matching(names):
            if one.shape == (length,) and one.dtype.kind in kinds:
                return one
            _LOG.warning(
                "%s is not used: it has shape %s and dtype %s where (%d,) is expected",
                one.name, one.shape, one.dtype, length,
            )  # fmt: skip
        return None


def plain_name(name: str) -> str:
    """Give a name in the form in which names are compared: no case, underscores or blanks."""
    return name.lower().replace("_", "").replace(" ", "")


def read_group(
    location: Location, asked: Iterable[str] = (), access: Access | None = None
) -> Group:
    """Read a group's metadata; what cannot be Zarr metadata is refused before it is parsed.

    Parameters
    ----------
    location : Location
        Of a Zarr group, format 2 or 3, consolidated or not.
    asked : iterable of str
        Arrays to look for besides the group's own: those of groups below it.
    access : Access, optional
        How the location is reached.

    Raises
    ------
    SourceNotFoundError, SourceError
        Nothing is there, or it is not a Zarr group that can be understood.
    AccessDeniedError
        The store refuses the credentials, or anonymous reading.
    """
    store = Store(location, access)
    documents = _Documents(store.within(_METADATA_PATIENCE_S))
    zarr_format = documents.collect(list(asked))
    if (plain := documents.plain(zarr_format)) is not None:
        stored = {name: StoredArray(name, one, store) for name, one in plain.arrays.items()}
        return Group(location, zarr_format, stored, dict(plain.attributes), store.index())
    try:
        group = documents.open(zarr_format)
        arrays = {
            name: StoredArray(name, one.metadata, store)
            for name, one in documents.arrays(group).items()
        }
        return Group(location, zarr_format, arrays, dict(group.attrs), store.index())
    except DasGpuError:
        raise
    except Exception as exc:  # Zarr raises many kinds on metadata that isn't what it seems
        raise SourceError(
            f"The Zarr metadata of {location} cannot be understood ({type(exc).__name__}: {exc}). "
            "Expected is a Zarr group of format 2 or 3."
        ) from exc


class _Documents:
    """The metadata documents of a group, fetched side by side, to be parsed from memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: dict[str, bytes] = {}
        self._asked: list[str] = []
        self._bytes = 0

    def collect(self, asked: list[str]) -> ZarrFormat:
        """Fetch all there is to fetch; give the group's format."""
        self._asked = asked
        self._fetch("zarr.json", ".zmetadata", ".zgroup", ".zattrs")
        if (root := self._found.get("zarr.json")) is not None:
            if not _is_consolidated(root):
                self._fetch(*(f"{name}/zarr.json" for name in self._members()))
            return 3
        if ".zmetadata" not in self._found:
            if ".zgroup" not in self._found:
                raise _not_a_group(self._store)
            ends = (".zarray", ".zattrs", ".zgroup")
            self._fetch(*(f"{name}/{end}" for name in self._members() for end in ends))
        return 2

    def plain(self, zarr_format: ZarrFormat) -> GroupMetadata | None:
        """What the documents say, where Zarr is not needed to understand them."""
        return parse_group(self._found, zarr_format, self._asked)

    def open(self, zarr_format: ZarrFormat) -> zarr.Group:
        """Let Zarr parse the documents."""
        import zarr
        from zarr.core.buffer import default_buffer_prototype

        make = default_buffer_prototype().buffer.from_bytes
        memory = zarr.storage.MemoryStore({key: make(text) for key, text in self._found.items()})
        consolidated = ".zmetadata" in self._found if zarr_format == 2 else None
        return zarr.open_group(
            memory, mode="r", zarr_format=zarr_format, use_consolidated=consolidated
        )

    def arrays(self, group: zarr.Group) -> dict[str, zarr.Array[Any]]:
        """The group's arrays, and those asked for that are deeper down."""
        import zarr

        names = list(group.array_keys())
        names += [one for one in self._asked if one not in names and one in group]
        found = ((name, group[name]) for name in names)
        return {name: one for name, one in found if isinstance(one, zarr.Array)}

    def _members(self) -> list[str]:
        """Names below the group; where listing is refused, the usual ones."""
        try:
            folders, _ = self._store.children()
        except AccessDeniedError:
            # A container may be public for reading and closed for listing.
            folders = list(_USUAL_NAMES)
        parts = [one.split("/") for one in self._asked]
        asked = ["/".join(names[: n + 1]) for names in parts for n in range(len(names))]
        return list(dict.fromkeys([*folders[:_MEMBERS], *asked]))

    def _fetch(self, *keys: str) -> None:
        if self._store.location.is_local:
            answers = [self._get(key) for key in keys]
        else:
            with ThreadPoolExecutor(_AT_ONCE, "das-gpu-metadata") as pool:
                answers = list(pool.map(self._get, keys))
        found = {key: one for key, one in zip(keys, answers, strict=True) if one is not None}
        self._found |= found

    def _get(self, key: str) -> bytes | None:
        def check(size: int) -> None:
            self._bytes += size
            if self._bytes > _MAX_METADATA_BYTES:
                raise SourceError(
                    f"{key} of {self._store.location} has {size} bytes; metadata beyond "
                    f"{_MAX_METADATA_BYTES} bytes is not read. Check that this is a Zarr group."
                )

        body = self._store.get(key, check=check)
        return None if body is None else bytes(body)


def _is_consolidated(root: bytes) -> bool:
    try:
        return bool(json.loads(root).get("consolidated_metadata"))
    except (ValueError, AttributeError, RecursionError):
        return True  # nothing more to fetch: Zarr will say what is wrong with it


def _not_a_group(store: Store) -> SourceError:
    """Say what is there instead, and which folder below may be meant."""
    location = store.location
    try:
        folders, files = store.children()
    except AccessDeniedError as error:
        return SourceError(f"{location} is not a Zarr group, or is private: {error}")
    if not folders and not files:
        what = "an empty folder" if location.is_local else "nothing"
        return SourceNotFoundError(
            f"There is {what} at {location}. Check the spelling; a Zarr archive has .zgroup or "
            "zarr.json in its folder."
        )
    if ".zarray" in files:
        advice = "It is a single Zarr array: give the group that holds it and its time axis."
    elif inner := [name for name in folders if name.endswith(".zarr")]:
        advice = f"Perhaps you mean {location.child(inner[0])}."
    else:
        advice = f"It holds {', '.join([*folders, *files][:5])}."
    return SourceError(f"{location} is not a Zarr group: no .zgroup and no zarr.json. {advice}")
