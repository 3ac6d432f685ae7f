"""A run's images as other tools want them: WebDataset shards, COCO and Label Studio lists.

What is exported is what the run's records vouch for. An export is a folder or a container of its
own: ``export.json`` there says what it is of, and, once all is there, which files it has. So the
same command again does nothing, and continues what was stopped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args
from uuid import uuid4

from das_gpu.errors import DestinationError, UsageError
from das_gpu.export import lists, webdataset
from das_gpu.frame import Frame
from das_gpu.hashed import HashedFile
from das_gpu.outcome import delete, each, finished
from das_gpu.recipe import Recipe
from das_gpu.runfile import number_in, require_run
from das_gpu.segmentfile import Row, file_of, manifest_lines, place_of
from das_gpu.sink import Sink, open_sink
from das_gpu.store import Access, refuse_shared_secret

__all__ = ["EXPORT_KEY", "KINDS", "Exported", "Kind", "export"]

Kind = Literal["webdataset", "coco", "label-studio"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EXPORT_KEY = "export.json"
SHARD_BYTES = 1_000_000_000

_OURS = re.compile("|".join((webdataset.NAME.pattern, *map(re.escape, (EXPORT_KEY, *lists.FILES)))))


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes
    ----------
    dest : str
        Where it is, without any secret.
    images : int
        Images that it is of.
    files : mapping of str to str
        Its files, with their SHA-256 in hex.
    to_do : int
        Segments of the run that were not finished: their images are not in it.
    finished_before : bool
        It was there already.
    """

    dest: str
    images: int
    files: Mapping[str, str]
    to_do: int
    finished_before: bool


def export(
    out: str | Path,
    dest: str | Path,
    kinds: Collection[Kind],
    *,
    shard_bytes: int = SHARD_BYTES,
    labels: Sequence[str] = ("call",),
    image_url: str | None = None,
    overwrite: bool = False,
    access: Access | None = None,
    dest_access: Access | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Hand a run's images to other tools.

    Parameters
    ----------
    out : str or Path
        The run: what was given to `extract`.
    dest : str or Path
        The folder, or the URL of an Azure container and prefix, to write; not in ``out``.
    kinds : collection of {"webdataset", "coco", "label-studio"}
        webdataset: tar files of images and records, each of one UTC hour (`split_key`). coco:
        ``coco.json``, images without annotations. label-studio: tasks to import, and the labels
        that can be given.
    shard_bytes : int
        Size that a tar file does not exceed, unless one image does.
    labels : sequence of str
        What can be annotated: COCO's categories, Label Studio's labels.
    image_url : str, optional
        What Label Studio is to put before an image's name. By default the run's own address in a
        container, and for a folder Label Studio's local files, by the folder's name.
    overwrite : bool
        Delete the export that is in ``dest`` and start over.
    access, dest_access : Access, optional
        Credential and patience, for containers.
    on_progress : callable, optional
        Told the images done and all there are.

    Raises
    ------
    UsageError
        When nothing is asked for, or what cannot be made of this run.
    DestinationError
        When there is no run, an image is not what its record says, or ``dest`` holds something
        else, another export, or cannot be written.
    """
    access, dest_access = access or Access(), dest_access or Access()
    refuse_shared_secret((out, access), (dest, dest_access))
    run = _Run(open_sink(out, access))
    _refuse(run, kinds, labels, shard_bytes)
    sink = open_sink(dest, dest_access)
    if f"{sink.location}/".startswith(f"{run.sink.location}/"):
        raise UsageError(
            f"The export {sink.location} is to be inside of the run {run.sink.location}, where it "
            f"would be taken for a part of it. Choose a folder or prefix beside it."
        )
    prefix = (image_url or _address(run.sink)) if "label-studio" in kinds else None
    identity = {
        "kinds": sorted(kinds),
        "images": run.images,
        "metadata_sha256": run.sha256,
        "labels": list(labels) if {"coco", "label-studio"} & set(kinds) else None,
        "shard_bytes": shard_bytes if "webdataset" in kinds else None,
        "image_url": prefix,
    }
    with sink.hold(uuid4().hex):
        earlier = _marker(sink)
        files = earlier.get("files") if earlier.get("of") == identity and not overwrite else None
        if not _all_there(sink, files):
            _make_way(sink, earlier.get("of"), identity, overwrite=overwrite)
            _mark(sink, identity, None)
            files = _written(run, sink, identity, on_progress)
            _mark(sink, identity, files)
            return Exported(sink.location, run.images, files, run.to_do, finished_before=False)
    return Exported(sink.location, run.images, files or {}, run.to_do, finished_before=True)


class _Run:
    """The run that is exported, read segment by segment."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        run = require_run(sink)
        self.created = str(run.get("created", ""))
        self.recipe = Recipe.model_validate(run.get("recipe"))
        self.frame = Frame.of_recipe(self.recipe)
        self._segments = number_in(sink, run.get("plan"), "segments")
        self._per_segment = number_in(sink, run.get("plan"), "rows_per_segment") * number_in(
            sink, run["identity"].get("selection"), "bands"
        )
        digest, self.images, done = hashlib.sha256(), 0, 0
        for _, data, rows in finished(sink, self._segments):
            lines, _ = manifest_lines(data, rows)
            digest.update(b"".join(lines))
            self.images += len(lines)
            done += 1
        self.sha256, self.to_do = digest.hexdigest(), self._segments - done

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Delivered tiles in order, each with its number in the whole run, from 1."""
        for segment, _, rows in finished(self.sink, self._segments):
            for number, row in enumerate(sorted(rows, key=place_of), 1):
                if file_of(row):
                    yield segment * self._per_segment + number, row

    def samples(self) -> Iterator[tuple[Row, bytes]]:
        """Delivered tiles in order, each with its file's content."""
        yield from each(self.sink, self._sample, (row for _, row in self.rows()))

    def _sample(self, row: Row) -> tuple[Row, bytes]:
        key = file_of(row) or ""
        data = self.sink.get(key)
        if data is None or hashlib.sha256(data).hexdigest() != row["sha256"]:
            found = "is not there" if data is None else "is not what its record says"
            raise DestinationError(
                f"{key} in {self.sink.location} {found}. `das-gpu verify {self.sink.location} "
                f"--repair` puts it back to do; then give the extract command again, and this one."
            )
        return row, data


def _refuse(run: _Run, kinds: Collection[Kind], labels: Sequence[str], shard_bytes: int) -> None:
    """Refuse what cannot be made of a run."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        asked = f"{unknown[0]!r} is none" if unknown else "none is asked for"
        raise UsageError(f"An export is one or more of {', '.join(KINDS)}; {asked}.")
    wanted = [kind for kind in kinds if kind != "webdataset"]
    if wanted and run.recipe.image.format == "npy":
        raise UsageError(
            f"The run {run.sink.location} has arrays, and {wanted[0]} shows images: export "
            f"it as webdataset, or extract it with --format png."
        )
    if wanted and (not labels or len(set(labels)) < len(labels) or not all(labels)):
        raise UsageError("An image list needs labels, at least one, each once and not empty.")
    if shard_bytes < 1:
        raise UsageError(f"A shard of {shard_bytes} bytes holds nothing: give at least 1.")
    if not run.images:
        raise DestinationError(
            f"The run {run.sink.location} has no image yet that is "
            "finished. Give the extract command again, and this one when a segment is done."
        )


def _address(sink: Sink) -> str:
    """Where Label Studio finds the images of a run."""
    if "://" in sink.location:
        return f"{sink.location}/"
    return f"/data/local-files/?d={Path(sink.location).name}/"


def _marker(sink: Sink) -> dict[str, Any]:
    """What ``export.json`` says; empty when there is none, or none that is understood."""
    try:
        found = json.loads(sink.get(EXPORT_KEY) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _mark(sink: Sink, identity: Mapping[str, Any], files: Mapping[str, str] | None) -> None:
    marker = {"of": identity, "files": files}
    sink.put(EXPORT_KEY, json.dumps(marker, indent=2, ensure_ascii=False).encode() + b"\n")


def _all_there(sink: Sink, files: object) -> bool:
    return isinstance(files, Mapping) and set(files) <= set(sink.list())


def _make_way(sink: Sink, earlier: object, identity: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse a place that holds something else, and clear it of what is to be overwritten."""
    present = sink.list()
    foreign = [key for key in present if not _OURS.fullmatch(key)]
    if foreign or (present and not isinstance(earlier, Mapping)):
        raise DestinationError(
            f"{sink.location} holds something else than an export of das-gpu: there is "
            f"{', '.join((foreign or present)[:3])}. Choose an empty or a new place."
        )
    if isinstance(earlier, Mapping) and earlier != identity and not overwrite:
        changed = [key for key, value in identity.items() if earlier.get(key) != value]
        named = "; ".join(f"{key}: was {earlier.get(key)}, is {identity[key]}" for key in changed)
        raise DestinationError(
            f"{sink.location} holds another export: {named}. Give --overwrite to delete it and "
            f"start over, or choose another place."
        )
    sink.sweep()
    if overwrite:
        # What tells that all is there goes first.
        sink.delete(EXPORT_KEY)
        delete(sink, (key for key in present if key != EXPORT_KEY))


def _written(
    run: _Run,
    sink: Sink,
    identity: Mapping[str, Any],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, str]:
    """Write all files, and give their hashes."""
    files: dict[str, str] = {}

    def opened(key: str) -> AbstractContextManager[HashedFile]:
        return _hashed(sink, key, files)

    if "coco" in identity["kinds"]:
        with opened(lists.COCO_KEY) as file:
            lists.write_coco(file, run.rows(), run.frame, identity["labels"], run.created)
    if "label-studio" in identity["kinds"]:
        with opened(lists.TASKS_KEY) as file:
            lists.write_tasks(file, run.rows(), identity["image_url"])
        with opened(lists.LABELS_KEY) as file:
            file.write(lists.labels_xml(identity["labels"]))
    if "webdataset" in identity["kinds"]:
        webdataset.write(opened, _counted(run, on_progress), identity["shard_bytes"])
    return files


@contextmanager
def _hashed(sink: Sink, key: str, files: dict[str, str]) -> Iterator[HashedFile]:
    """Open a file of the sink, and note its hash once it is there."""
    writer: AbstractContextManager[IO[bytes]] = sink.open_writer(key)
    with writer as plain:
        file = HashedFile(plain)
        yield file
    files[key] = file.sha256


def _counted(
    run: _Run, on_progress: Callable[[int, int], None] | None
) -> Iterator[tuple[Row, bytes]]:
    for done, sample in enumerate(run.samples(), 1):
        yield sample
        if on_progress is not None:
            on_progress(done, run.images)
