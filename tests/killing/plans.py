"""Deaths of a command's processes, planned from outside and carried out by themselves.

A `Deaths` is written to a file; `environment` makes Python processes read it as they start, the
worker processes of a cluster and those started in place of the dead included. Standard library
only.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tests.killing import hooks
from tests.killing.hooks import Point

_KILLING = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Deaths:
    """Who dies at which points below a folder.

    Attributes
    ----------
    watched : str
        The folder.
    who : {"driver", "worker"}
        The process of the command, or those that it spawns.
    counts : tuple of int
        Death at the points with these numbers, counted over all these processes together.
    at : str
        Death at points whose text, ``op phase path -> target``, contains this regular expression.
    most : int
        So many deaths at such points, and no more.
    """

    watched: str
    who: Literal["driver", "worker"]
    counts: tuple[int, ...] = ()
    at: str = ""
    most: int = 1

    def environment(self, folder: Path) -> dict[str, str]:
        """Environment in which these deaths happen; `died` finds them in the same folder."""
        plan = folder / "deaths.json"
        plan.write_text(json.dumps(asdict(self)))
        path = os.pathsep.join(filter(None, (str(_KILLING / "site"), os.environ.get("PYTHONPATH"))))
        return {
            **os.environ,
            "PYTHONPATH": path,
            "DAS_GPU_TEST_REPOSITORY": str(_KILLING.parents[1]),
            "DAS_GPU_TEST_DEATHS": str(plan),
        }


def died(folder: Path) -> list[str]:
    """The points at which processes have died so far, as text."""
    log = folder / "deaths.json.log"
    return log.read_text().splitlines() if log.exists() else []


def obey(plan: str) -> None:
    """Install this process's part of a plan."""
    deaths = Deaths(**json.loads(Path(plan).read_text()))
    spawned = "multiprocessing.spawn" in " ".join(sys.orig_argv)
    helper = "multiprocessing.resource_tracker" in " ".join(sys.orig_argv)
    if helper or spawned != (deaths.who == "worker"):
        return
    ways = os.O_RDWR | os.O_CREAT | os.O_APPEND
    counter, log = (os.open(f"{plan}.{name}", ways, 0o600) for name in ("count", "log"))
    write = os.write  # as it is now, before the hooks

    def meet(point: Point) -> None:
        text = str(point)
        write(counter, b".")
        # The position behind one's own byte is a number that no other process gets.
        count = os.lseek(counter, 0, os.SEEK_CUR)
        due = count in deaths.counts
        if not due and deaths.at and re.search(deaths.at, text):
            earlier = os.pread(log, 1 << 16, 0).decode().splitlines()
            due = sum(1 for each in earlier if re.search(deaths.at, each)) < deaths.most
        if due:
            write(log, f"{text}\n".encode())
            hooks.die()

    hooks.install(deaths.watched, meet)
