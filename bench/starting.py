"""How long ``das-gpu`` takes to start, each time in a new process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DEADLINE_S = 300.0

BEGINNINGS = {
    "first_byte": "first byte of the archive asked for",
    "first_sample": "first sample asked for",
    "help": "`--help`",
}
WATCHED = """
import json, os, sys, time
begun_s, store = float(sys.argv[1]), sys.argv[2]
found = {}
def note(name):
    found.setdefault(name + "_s", time.monotonic() - begun_s)
    found.setdefault(name + "_processor_s", time.process_time())
def look(event, arguments):
    if event != "open" or not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return
    path = os.fsdecode(arguments[0])
    if path.startswith(store):
        note("first_byte")
        if "/RawData/" in path and not path.endswith((".zarray", ".zattrs", "zarr.json")):
            note("first_sample")
            sys.stdout.write(json.dumps(found) + "\\n")
            sys.stdout.flush()
            os._exit(0)
sys.addaudithook(look)
from das_gpu.__main__ import command
sys.argv = ["das-gpu", "extract", *sys.argv[2:]]
command()
"""
"""Runs the command until it opens the first chunk of samples; says when it opened what."""


def started(store: Path, folder: Path, options: list[str], *flags: str) -> tuple[Any, str]:
    """Start an extraction up to its first sample: when it asked for what, and stderr."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, *flags, "-c", WATCHED, repr(time.monotonic()), str(store)]
        done = subprocess.run(
            [*command, str(Path(out) / "out"), *options],
            check=False,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
    if done.returncode != 0 or not done.stdout:
        raise SystemExit(f"The extraction did not come to a sample:\n{done.stderr}")
    # Two loaders may both be quick enough to say it.
    return json.loads(done.stdout.splitlines()[0]), done.stderr


def helped() -> dict[str, float]:
    """Seconds, and processor seconds, from the start of a process to the end of ``--help``."""
    begun_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "das_gpu", "--help"]
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"help_s": time.monotonic() - begun_s, "help_processor_s": cpu_s}
