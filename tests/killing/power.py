"""What a disk may hold after a power cut, by the least that POSIX promises.

A file's bytes are safe when the file was forced to the disk, and only those it held then. A
name (made, renamed, removed) is safe when its folder was forced; of the changes of a folder's
names since then, any number of the first ones may have reached the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from tests.killing.hooks import Change

Fate = Literal["lost", "torn", "kept", "chance"]
Tree = dict[str, bytes | None]
"""Content by path; None for a folder."""


@dataclass
class _File:
    now: bytes = b""
    safe: bytes | None = None


@dataclass
class _Folder:
    safe: dict[str, _File | _Folder] = field(default_factory=dict)
    since: list[Callable[[dict[str, _File | _Folder]], None]] = field(default_factory=list)

    def entries(self, kept: int | None = None) -> dict[str, _File | _Folder]:
        """Names after so many of the changes since the folder was forced; by default all."""
        made = dict(self.safe)
        for change in self.since[:kept]:
            change(made)
        return made


class Disk:
    """An empty folder on a disk, and what the changes of `tests.killing.hooks` make of it."""

    def __init__(self, changes: Iterable[Change] = ()) -> None:
        self._root = _Folder()
        for change in changes:
            self.apply(change)

    def apply(self, change: Change) -> None:
        """Let one more change happen."""
        path = PurePosixPath(change.path)
        match change.op:
            case "create" | "mkdir":
                made = _File() if change.op == "create" else _Folder()
                self._change(path.parent, lambda names: names.update({path.name: made}))
            case "unlink" | "rmdir":
                self._change(path.parent, lambda names: _discard(names, path.name))
            case "rename":
                target = PurePosixPath(change.target)
                assert path.parent == target.parent, "a rename from folder to folder"

                def rename(names: dict[str, _File | _Folder]) -> None:
                    if path.name in names:
                        names[target.name] = names.pop(path.name)

                self._change(path.parent, rename)
            case "data" | "write" | "truncate" | "fsync":
                found = self._find(path)
                if isinstance(found, _Folder):
                    found.safe, found.since = found.entries(), []
                elif found is not None and (change.op != "write" or change.content):
                    found.now = change.content
                    if change.op == "fsync":
                        found.safe = change.content

    def cut(self, names: Fate, data: Fate, luck: np.random.Generator) -> Tree:
        """One of the trees that may be found after a power cut at this moment.

        ``names`` says what became of the changes of names that were not forced, ``data`` of the
        bytes. A torn name is a lost one.
        """
        tree: Tree = {}
        self._gather(self._root, "", names, data, luck, tree)
        return tree

    def _gather(
        self,
        folder: _Folder,
        path: str,
        names: Fate,
        data: Fate,
        luck: np.random.Generator,
        tree: Tree,
    ) -> None:
        every = len(folder.since)
        kept = {"kept": every, "chance": int(luck.integers(every + 1))}.get(names, 0)
        for name, entry in folder.entries(kept).items():
            if isinstance(entry, _Folder):
                tree[path + name] = None
                self._gather(entry, f"{path}{name}/", names, data, luck, tree)
            else:
                tree[path + name] = _remains(entry, data, luck)

    def _change(
        self, folder: PurePosixPath, change: Callable[[dict[str, _File | _Folder]], None]
    ) -> None:
        found = self._find(folder)
        assert isinstance(found, _Folder), f"{folder} was made unseen"
        found.since.append(change)

    def _find(self, path: PurePosixPath) -> _File | _Folder | None:
        found: _File | _Folder | None = self._root
        for part in path.parts:
            found = found.entries().get(part) if isinstance(found, _Folder) else None
        return found


def _discard(names: dict[str, _File | _Folder], name: str) -> None:
    names.pop(name, None)


def _remains(file: _File, fate: Fate, luck: np.random.Generator) -> bytes:
    if fate == "chance":
        fate = ("lost", "torn", "kept")[luck.integers(3)]
    if fate == "kept":
        return file.now
    if fate == "torn" and file.safe is None:
        return file.now[: len(file.now) // 2]
    return file.safe or b""


def write_tree(tree: Tree, folder: Path) -> None:
    """Make a tree's folders and files."""
    folder.mkdir(parents=True)
    for path, content in tree.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
