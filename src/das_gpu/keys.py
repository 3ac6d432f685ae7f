"""What a run calls its files. Everything else in its folder is somebody else's."""

from __future__ import annotations

import re
from typing import Literal

from das_gpu.runfile import RUN_KEY
from das_gpu.state import STATE_KEY

METADATA_KEY = "metadata.jsonl"
"""The delivered tiles: the manifest."""
UNDELIVERED_KEY = "undelivered.jsonl"
"""The other tiles, with their reasons."""
MANIFEST_KEYS = {"parquet": "manifest.parquet", "csv": "manifest.csv"}
"""The delivered tiles as one table, where it was asked for."""
PRODUCTS = (METADATA_KEY, *MANIFEST_KEYS.values(), UNDELIVERED_KEY, "report.html")
"""What is made of the segments' files, and can be made again."""
IMAGES = "images/"
SEGMENTS = "segments/"
QUARANTINE = "quarantine/"
LOGS = "logs/"
SHEETS = "report/sprites/"
TEMPORARY = ".~das-gpu-"
"""How the names of files begin, inside their folders, that are being written."""

Kind = Literal["image", "segment", "marker", "log", "sheet", "single"]
"""Kinds of a run's files; ``single`` are those of which there is one."""

_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (
        "image",
        re.compile(
            r"images/(\d{4}-\d\d-\d\d/\d\d/\d{8}T\d{9}Z_ch\d+"
            r"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+_start[\d.e+-]+)\.(png|npy)"
        ),
    ),
    ("segment", re.compile(r"segments/\d{5,}\.jsonl")),
    ("marker", re.compile(r"quarantine/\d{5,}\.json")),
    ("log", re.compile(r"logs/[^/]+\.jsonl")),
    ("sheet", re.compile(re.escape(SHEETS) + r"\d{5,}-[0-9a-f]{16}\.jpg")),
    ("single", re.compile("|".join(map(re.escape, (*PRODUCTS, RUN_KEY, STATE_KEY))))),
)


def kind_of(key: str) -> Kind | None:
    """What a file is to a run, by its name; None for a file that no run makes.

    Examples
    --------
    >>> kind_of("images/2021-11-01/23/20211101T231114834Z_ch10000.png")
    'image'
    >>> kind_of("images/cat.png") is None
    True
    """
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(key)), None)


def segment_key(segment: int) -> str:
    """Name of a finished segment's file.

    Examples
    --------
    >>> segment_key(42)
    'segments/00042.jsonl'
    """
    return f"{SEGMENTS}{segment:05d}.jsonl"


def marker_key(segment: int) -> str:
    """Name of the file that puts a segment in quarantine.

    Examples
    --------
    >>> marker_key(42)
    'quarantine/00042.json'
    """
    return f"{QUARANTINE}{segment:05d}.json"
