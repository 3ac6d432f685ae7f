"""A Zarr group's metadata: read once, and refused where it cannot be what it should be."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from das_gpu.chunks import StoredArray
from das_gpu.errors import DasGpuError, SourceError, SourceNotFoundError
from das_gpu.locations import Location
from das_gpu.store import open_store, translate

if TYPE_CHECKING:
    import zarr
    from obstore.store import ObjectStore

_LOG = logging.getLogger(__name__)

# Tried one by one where a store lets nobody list it.
_USUAL_NAMES = (
    *("RawData", "RawDataTime", "RawDataSampleCount", "GpsStatus", "GpBits"),
    *("raw_data", "data", "time", "distance"),
)
_MAX_METADATA_BYTES = 64 << 20
_METADATA_PATIENCE_S = 75.0


@dataclass(frozen=True, slots=True)
class Group:
    """The arrays and attributes of the Zarr group at a location."""

    location: Location
    zarr_format: int
    arrays: Mapping[str, StoredArray]
    attributes: Mapping[str, Any]

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


def read_group(location: Location, asked: Iterable[str] = ()) -> Group:
    """Read a group's metadata; what cannot be Zarr metadata is refused before it is parsed.

    Parameters
    ----------
    location : Location
        Of a Zarr group, format 2 or 3, consolidated or not.
    asked : iterable of str
        Arrays to look for besides the group's own: those of groups below it.

    Raises
    ------
    SourceNotFoundError, SourceError
        Nothing is there, or it is not a Zarr group that can be understood.
    AccessDeniedError
        The store refuses the credentials, or anonymous reading.
    """
    import zarr
    from obstore.exceptions import BaseError
    from zarr.storage import ObjectStore as ZarrStore

    store = open_store(location, patience_s=_METADATA_PATIENCE_S)
    format_3 = _has(store, location, "zarr.json")
    consolidated = not format_3 and _has(store, location, ".zmetadata")
    if not (format_3 or consolidated or _has(store, location, ".zgroup")):
        raise _not_a_group(store, location)
    reader = open_store(location)
    try:
        group = zarr.open_group(
            ZarrStore(store, read_only=True),
            mode="r",
            zarr_format=3 if format_3 else 2,
            use_consolidated=None if format_3 else consolidated,
        )
        arrays = {
            name: StoredArray(name, one.metadata, location, reader)
            for name, one in _members(group, location, list(asked)).items()
        }
        return Group(location, 3 if format_3 else 2, arrays, dict(group.attrs))
    except DasGpuError:
        raise
    except (BaseError, OSError) as exc:
        raise translate(exc, location) from exc
    except Exception as exc:  # Zarr raises many kinds on metadata that isn't what it seems
        raise SourceError(
            f"The Zarr metadata of {location} cannot be understood ({type(exc).__name__}: {exc}). "
            "Expected is a Zarr group of format 2 or 3."
        ) from exc


def _members(group: zarr.Group, location: Location, asked: list[str]) -> dict[str, zarr.Array[Any]]:
    """Arrays of a group; where listing is refused, those among the usual names."""
    import zarr
    from obstore.exceptions import BaseError

    try:
        names = list(group.array_keys())
    except BaseError as exc:
        # A container may be public for reading and closed for listing.
        names = [name for name in _USUAL_NAMES if name in group]
        if not names and not asked:
            raise translate(exc, location) from exc
    nested = [name for name in asked if name not in names and name in group]
    found = ((name, group[name]) for name in (*names, *nested))
    return {name: one for name, one in found if isinstance(one, zarr.Array)}


def _has(store: ObjectStore, location: Location, key: str) -> bool:
    import obstore
    from obstore.exceptions import BaseError

    try:
        size = obstore.head(store, key)["size"]
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (BaseError, OSError) as exc:
        raise translate(exc, location) from exc
    if size > _MAX_METADATA_BYTES:
        raise SourceError(
            f"{key} of {location} has {size} bytes; metadata beyond {_MAX_METADATA_BYTES} bytes "
            "is not read. Check that this is a Zarr group."
        )
    return True


def _not_a_group(store: ObjectStore, location: Location) -> SourceError:
    """Say what is there instead, and which folder below may be meant."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        listing = obstore.list_with_delimiter(store)
    except (BaseError, OSError) as exc:
        found = translate(exc, location)
        if isinstance(found, SourceError):
            return found
        return SourceError(f"{location} is not a Zarr group, or is private: {found}")
    folders = [prefix.rstrip("/").rpartition("/")[2] for prefix in listing["common_prefixes"]]
    files = [item["path"].rpartition("/")[2] for item in listing["objects"]]
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
