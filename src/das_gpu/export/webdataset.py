"""Tar files of images and their records, as the ``webdataset`` package reads them.

A sample is two members of the same name, ``.png`` (or ``.npy``) and ``.json``. The bytes are a
function of the run alone: no dates, no owners.
Format: https://github.com/webdataset/webdataset, and POSIX ustar.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import PurePosixPath

from das_gpu.hashed import HashedFile
from das_gpu.segmentfile import Row, file_of

NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d{5,}\.tar")
"""Names of shards: the UTC hour that all of its tiles begin in, and a number within it."""

_BLOCK = 512
_END = 2 * _BLOCK


def write(
    opened: Callable[[str], AbstractContextManager[HashedFile]],
    samples: Iterable[tuple[Row, bytes]],
    shard_bytes: int,
) -> None:
    """Write samples to shards, in order; a new one is begun with each hour.

    Parameters
    ----------
    opened : callable
        Opens a file by its name; it is there, whole, after the block.
    samples : iterable of (row, bytes)
        Records of delivered tiles, and their files' content.
    shard_bytes : int
        Size that a shard does not exceed, unless one sample does.
    """
    hour, number, size = "", -1, 0
    with ExitStack() as stack:
        for row, data in samples:
            key, suffix = sample_key(file_of(row) or "")
            record = json.dumps(row, allow_nan=False).encode()
            more = sum(_BLOCK + -(-len(part) // _BLOCK) * _BLOCK for part in (data, record))
            full = size + more + _END > shard_bytes
            if row["split_key"] != hour or full:
                stack.close()
                number = 0 if row["split_key"] != hour else number + 1
                hour, size = row["split_key"], 0
                file = stack.enter_context(opened(f"{hour}-{number:05d}.tar"))
                # A stream's only difference from a file: nobody asks where it stands.
                tar = stack.enter_context(
                    tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT)
                )
            _add(tar, f"{key}.{suffix}", data)
            _add(tar, f"{key}.json", record)
            size += more


def sample_key(file_name: str) -> tuple[str, str]:
    """Name that a sample's members share, and its image's suffix.

    `webdataset` takes all behind the first dot for the suffix, and colons are no file names
    everywhere.

    Examples
    --------
    >>> sample_key("images/2021-11-01/23/20211101T231114834Z_ch10000.png")
    ('20211101T231114834Z_ch10000', 'png')
    >>> sample_key("images/2021-11-01T23:11:14.834000000_start20419.0.png")
    ('2021-11-01T231114-834000000_start20419-0', 'png')
    """
    path = PurePosixPath(file_name)
    return path.stem.replace(":", "").replace(".", "-"), path.suffix.removeprefix(".")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))
