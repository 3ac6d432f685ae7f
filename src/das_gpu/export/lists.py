"""Lists of a run's images for annotation: COCO's, and tasks for Label Studio.

Both are written image by image. An image's number is its tile's in the whole run, so it stays
the same when a later export has more of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from das_gpu.frame import Frame
from das_gpu.hashed import HashedFile
from das_gpu.segmentfile import Row

COCO_KEY = "coco.json"
TASKS_KEY = "label-studio.json"
LABELS_KEY = "label-studio.xml"
FILES = (COCO_KEY, TASKS_KEY, LABELS_KEY)

_SHOWN = ("start_time", "end_time", "distance_start_m", "distance_stop_m", "status", "split_key")
"""What Label Studio shows of a tile in its list."""


def write_coco(
    file: HashedFile,
    rows: Iterable[tuple[int, Row]],
    frame: Frame,
    labels: Sequence[str],
    created: str,
) -> None:
    """Write images, categories and no annotations, in COCO's format.

    ``file_name`` is relative to the run's folder. Besides COCO's own fields an image has those
    of its record. Format: https://cocodataset.org/#format-data.

    Parameters
    ----------
    file : binary file
    rows : iterable of (int, row)
        Delivered tiles with their numbers.
    frame : Frame
        Size of the images.
    labels : sequence of str
        Names of the categories.
    created : str
        When the run was begun.
    """
    categories = [
        {"id": number, "name": name, "supercategory": ""} for number, name in enumerate(labels, 1)
    ]
    head = {
        "info": {"description": "Tiles made by das-gpu", "date_created": created},
        "licenses": [],
        "categories": categories,
        "annotations": [],
    }
    images = (
        {
            "id": number,
            "file_name": row["file_name"],
            "width": frame.width,
            "height": frame.height,
            "date_captured": row["start_time"],
            **row,
        }
        for number, row in rows
    )
    file.write(json.dumps(head).removesuffix("}").encode() + b', "images": ')
    _write_list(file, images)
    file.write(b"}\n")


def write_tasks(file: HashedFile, rows: Iterable[tuple[int, Row]], image_url: str) -> None:
    """Write tasks as Label Studio imports them; see `labels_xml` for the labels.

    Parameters
    ----------
    file : binary file
    rows : iterable of (int, row)
        Delivered tiles with their numbers.
    image_url : str
        What stands before an image's name in its address.
    """
    tasks = (
        {
            "id": number,
            "data": {"image": image_url + quote(row["file_name"])}
            | {name: row[name] for name in _SHOWN},
            "meta": row,
        }
        for number, row in rows
    )
    _write_list(file, tasks)
    file.write(b"\n")


def labels_xml(labels: Sequence[str]) -> bytes:
    """Give the labelling interface of a Label Studio project: boxes with these labels."""
    values = "".join(f"    <Label value={quoteattr(label)}/>\n" for label in labels)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <RectangleLabels name="label" toName="image">\n{values}  </RectangleLabels>\n</View>\n'
    ).encode()


def _write_list(file: HashedFile, things: Iterable[object]) -> None:
    """Write a JSON array, a line for each of its elements."""
    before = b"[\n"
    for thing in things:
        file.write(before + json.dumps(thing, allow_nan=False).encode())
        before = b",\n"
    file.write(b"\n]" if before == b",\n" else b"[]")
