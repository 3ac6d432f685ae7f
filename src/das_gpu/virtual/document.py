"""What an index file says: kerchunk's references, and what they cannot express.

An index is a JSON object as kerchunk's format 1 defines it: ``refs`` maps the keys of a Zarr
group (format 2) to text, to ``base64:`` and text, or to ``[file, first byte, bytes]``. Other
readers of such references can read it. ``das_gpu`` holds what they do not know:

files
    Each file with its size and version when it was indexed, its samples and times.
gaps
    Where samples do not go on at once, between two files or inside one.
joined
    Arrays whose chunks do not lie in the files as such; see `das_gpu.virtual.joined`.
refs
    Metadata of these arrays: whoever cannot read them is not to find them, and take them for empty.

A file's name is relative to the folder of the index, or absolute, or a URL. No secret is in it.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from das_gpu.errors import SourceError
from das_gpu.virtual.joined import JoinedArray

FORMAT = 1

Reference = str | tuple[str, int, int]
"""Text or ``base64:`` and text; or a file's name, its first byte, and a number of bytes."""


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """One file of an index.

    Attributes
    ----------
    name : str
        Relative to the index, absolute, or a URL.
    size : int
        Bytes.
    version : str
        Changes when the file is written.
    samples : int
        Per channel.
    start_ns, last_ns : int
        Times of its first and last sample.
    """

    name: str
    size: int
    version: str
    samples: int
    start_ns: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class FileGap:
    """A place where samples do not go on at once, between two files or inside one.

    Attributes
    ----------
    sample : int
        First sample after it.
    after, before : str
        Names of the files around it; twice the same for one inside a file.
    start_ns, stop_ns : int
        Time at which a sample is missing, and at which samples go on; earlier than that where a
        clock was set back.
    """

    sample: int
    after: str
    before: str
    start_ns: int
    stop_ns: int


@dataclass(frozen=True, slots=True)
class Document:
    """An index file's content.

    Attributes
    ----------
    digest : str
        SHA-256 of the file's bytes; empty for a document that was not read from a file.
    """

    refs: Mapping[str, Reference]
    files: tuple[IndexedFile, ...] = ()
    gaps: tuple[FileGap, ...] = ()
    joined: Mapping[str, JoinedArray] = field(default_factory=dict)
    digest: str = ""

    def to_bytes(self) -> bytes:
        """The content of the file."""
        own = {key: one for key, one in self.refs.items() if self._is_own(key)}
        content = {
            "version": 1,
            "refs": {key: one for key, one in self.refs.items() if key not in own},
            "das_gpu": {
                "format": FORMAT,
                "refs": own,
                "files": [asdict(one) for one in self.files],
                "gaps": [asdict(one) for one in self.gaps],
                "joined": {name: one.as_json() for name, one in self.joined.items()},
            },
        }
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()

    def _is_own(self, key: str) -> bool:
        """Whether a key tells of joined arrays."""
        return bool(self.joined) and (key == ".zmetadata" or key.rpartition("/")[0] in self.joined)


def parse_document(body: bytes, place: str) -> Document:
    """Understand an index file; ``place`` names it in errors.

    Raises
    ------
    SourceError
        It is not such a file, or uses what is not read here (kerchunk's templates).
    """
    try:
        content = json.loads(body)
        if content.get("templates") or content.get("gen"):
            raise SourceError(
                f"{place} uses kerchunk's templates, which are not read. Write it anew without "
                "them, or make it with das-gpu index."
            )
        own: dict[str, Any] = content.get("das_gpu") or {"format": FORMAT}
        if own["format"] != FORMAT:
            raise SourceError(
                f"{place} is an index of format {own['format']}; this das-gpu reads format "
                f"{FORMAT}. Make it anew with das-gpu index, or update das-gpu."
            )
        refs = content["refs"] | own.get("refs", {})
        return Document(
            refs={str(key): _reference(one) for key, one in refs.items()},
            files=tuple(IndexedFile(**one) for one in own.get("files", ())),
            gaps=tuple(FileGap(**one) for one in own.get("gaps", ())),
            joined={
                str(name): JoinedArray.from_json(one) for name, one in own.get("joined", {}).items()
            },
            digest=hashlib.sha256(body).hexdigest(),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{place} is not an index of recordings ({type(error).__name__}: {error}). Give a "
            "Zarr archive's folder, or a file that das-gpu index has written."
        ) from error


def inline(text: str) -> bytes:
    """The bytes that an inline reference stands for."""
    coded = text.removeprefix("base64:")
    return text.encode() if coded == text else b64decode(coded)


def _reference(value: Any) -> Reference:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):  # as some writers put metadata
        return json.dumps(value)
    name, offset, size = value
    if not isinstance(name, str) or min(int(offset), int(size)) < 0:
        raise ValueError(f"{value} is no reference")
    return name, int(offset), int(size)
