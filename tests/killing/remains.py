"""What a run left in its folder: whole or torn, vouched for or not, its own or nobody's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import outputs

TEMPORARY = ".~das-gpu-"
_DELIVERED = ("images/", "segments/", "metadata.jsonl", "undelivered.jsonl")
_TO_DO = re.compile(rb'"status": "(missing|corrupt|error)"')
_KEPT = ("run.json", "report.html", "logs/")


def delivered(out: Path) -> dict[str, str]:
    """SHA-256 of every file that must be the same whatever happened to the run."""
    return {name: sha for name, sha in outputs.files(out).items() if name.startswith(_DELIVERED)}


def strays(out: Path) -> list[str]:
    """Files of a finished run's folder that should not be there any more."""
    names = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return sorted(
        name for name in names if TEMPORARY in name or not name.startswith(_DELIVERED + _KEPT)
    )


def torn(out: Path, whole: Path) -> list[str]:
    """Files under their own names that are not as a finished run has them.

    A manifest may be there in an earlier state: with some of the lines.
    """
    expected = delivered(whole)
    found = [
        name
        for name, sha in delivered(out).items()
        if TEMPORARY not in name and name.startswith(("images/", "segments/"))
        if expected.get(name) != sha
    ]
    for name in ("metadata.jsonl", "undelivered.jsonl"):
        if (out / name).exists():
            lines = (out / name).read_bytes().splitlines(keepends=True)
            if not set(lines) <= set((whole / name).read_bytes().splitlines(keepends=True)):
                found.append(name)
    if (out / "run.json").exists() and "identity" not in json.loads(
        (out / "run.json").read_bytes() or "{}"
    ):
        found.append("run.json")
    return found


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each finished segment's file and of its images."""
    found = {}
    for segment in out.glob("segments/*.jsonl"):
        images = (out / name for name in _files_of(segment.read_bytes()))
        for path in (segment, *images):
            state = path.stat()
            found[path.relative_to(out).as_posix()] = state.st_ino, state.st_mtime_ns
    return found


def broken_vows(tree: Mapping[str, bytes | None]) -> list[str]:
    """Files that a segment's file or the manifest vouches for, and that are not as it says.

    Of a tree, content by path; also named are vouching files that are torn themselves. A segment
    that is to be tried again vouches for nothing: new images may stand in the place of its own.
    """
    found = []
    for name, content in tree.items():
        if content is None or not name.startswith(("segments/", "metadata.jsonl")):
            continue
        if TEMPORARY in name:
            continue
        try:
            vows = _files_of(content)
        except ValueError:
            vows = {}
        if not vows:
            found.append(name)
        if name.startswith("segments/") and _TO_DO.search(content):
            continue
        found += [image for image, sha in vows.items() if _sha(tree.get(image)) != sha]
    if tree.get("run.json") == b"":
        found.append("run.json")
    return found


def tree_of(out: Path) -> dict[str, bytes | None]:
    """Content of every file of a folder by path."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }


def _files_of(segment: bytes) -> dict[str, str]:
    rows: list[dict[str, Any]] = [json.loads(line) for line in segment.splitlines()]
    return {row["file_name"]: row["sha256"] for row in rows if row["file_name"]}


def _sha(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()
