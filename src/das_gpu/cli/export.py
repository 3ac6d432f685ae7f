"""``das-gpu export``: a run's images as other tools want them."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from das_gpu.cli import console
from das_gpu.cli.access import ACCESS, AccessOptions
from das_gpu.cli.options import OUTPUT, OutputOptions, option
from das_gpu.cli.places import Run
from das_gpu.cli.status import out_access
from das_gpu.errors import UsageError

if TYPE_CHECKING:
    from das_gpu.export import Exported, Kind

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def export(
    out: Run,
    dest: Annotated[
        str | Path,
        Parameter(help="Folder or address for the export, beside OUT."),
    ],
    /,
    *,
    webdataset: Annotated[
        bool,
        option(OUTPUT, "Tar files of images and records, each of one UTC hour."),
    ] = False,
    coco: Annotated[
        bool, option(OUTPUT, "coco.json: the images, a category, no annotations yet.")
    ] = False,
    label_studio: Annotated[
        bool, option(OUTPUT, "label-studio.json: tasks to import; label-studio.xml: the labels.")
    ] = False,
    shard_size: Annotated[
        str,
        option(OUTPUT, "Of a tar file, at most: 500MB, 1GiB. [default: 1GB]", metavar="SIZE"),
    ] = "1GB",
    label: Annotated[
        tuple[str, ...],
        option(OUTPUT, "What can be annotated; may be repeated. [default: call]", metavar="NAME"),
    ] = (),
    image_url: Annotated[
        str | None,
        option(
            OUTPUT,
            "What Label Studio puts before an image's name. [default: the container, or of a "
            "folder NAME /data/local-files/?d=NAME/]",
            metavar="URL",
        ),
    ] = None,
    overwrite: Annotated[
        bool, option(OUTPUT, "Delete the export that DEST holds and start over.")
    ] = False,
    reading: AccessOptions | None = None,
    out_credential: Annotated[
        str, option(ACCESS, "The same as --credential, as extract has it for OUT.", metavar="FORM")
    ] = "auto",
    dest_credential: Annotated[
        str, option(ACCESS, "As --credential, for DEST. [default: auto]", metavar="FORM")
    ] = "auto",
    output: OutputOptions | None = None,
) -> int:
    """Hand a run's images to other tools: WebDataset, COCO, Label Studio.

    One or more of them at once. Every image is checked against its sha256 on its way into a tar
    file. The same command again changes nothing, or continues what was stopped. --credential is
    OUT's.
    """
    asked: dict[Kind, bool] = {
        "webdataset": webdataset,
        "coco": coco,
        "label-studio": label_studio,
    }
    kinds = [kind for kind, wanted in asked.items() if wanted]
    if not kinds:
        raise UsageError("Say what to export: --webdataset, --coco or --label-studio.")
    from das_gpu.export import export as make

    reading = reading or AccessOptions()
    with console.progress_bar("exporting") as bar:
        made = make(
            out,
            dest,
            kinds,
            shard_bytes=_bytes(shard_size),
            labels=label or ("call",),
            image_url=image_url,
            overwrite=overwrite,
            access=out_access(reading, out_credential),
            dest_access=reading.access(dest_credential),
            on_progress=lambda done, total: bar.update(done, total, f"{done}/{total} images"),
        )
    if made.to_do:
        console.note(
            f"{made.to_do} segments of the run are not finished; their images are left out. Give "
            "the extract command again, then this one."
        )
    if (output or OutputOptions()).json:
        console.write_json({**asdict(made), "exit_code": 0})
    else:
        console.write_table(_rows(made))
    return 0


def _bytes(text: str) -> int:
    """Bytes of a size such as 500MB."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?)b?\s*", text, re.IGNORECASE)
    unit = None if match is None else _UNITS.get(match[2].lower())
    if match is None or unit is None:
        raise UsageError(
            f"--shard-size {text} is not understood: write a size such as 500MB or 1GiB."
        )
    return int(float(match[1]) * unit)


def _rows(made: Exported) -> list[tuple[str, str]]:
    names = sorted(made.files)
    shown = names if len(names) <= 4 else [*names[:2], f"... {len(names) - 3} more", names[-1]]
    return [
        ("export", made.dest),
        ("images", f"{made.images:,}"),
        *(("file", name) for name in shown),
        ("verdict", "It was there already." if made.finished_before else "Written."),
    ]
