"""Runs of ``das-gpu`` as forks of a process that has imported everything already.

Starting Python and importing what a run needs takes longer than a small run itself. `Forks` asks
a server for runs: it has imported the packages but opened no store and started no thread, so
that a fork of it is as good as a new process. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tests.killing import hooks
from tests.killing.hooks import Change, Point

_REPOSITORY = Path(__file__).resolve().parents[2]
_LONGEST_S = 60.0


@dataclass(frozen=True)
class Request:
    """A run to make.

    ``watched`` is the folder whose changes are points; at the ``kill_at``-th, counted from 1, of
    those whose text contains the regular expression ``like``, the run dies. ``journal`` names a
    file for all points and changes of a run that ends by itself; ``died_at`` one, outside that
    folder, for the point at which it did not. ``after_s`` seconds after its start it is killed
    from outside.
    """

    arguments: list[str]
    said: str
    watched: str = ""
    kill_at: int = 0
    like: str = ""
    journal: str = ""
    died_at: str = ""
    after_s: float = _LONGEST_S


@dataclass(frozen=True)
class Ended:
    """``code`` as of a subprocess: minus the signal that ended it, or its exit code."""

    code: int
    seconds: float
    said: str


class Forks:
    """Servers of forks, as long as the context lasts; each makes one run at a time."""

    def __init__(self, folder: Path, servers: int = 2) -> None:
        self._folder, self._many = folder, servers
        self._free: queue.Queue[_Server] = queue.Queue()

    def __enter__(self) -> Self:
        servers = [_Server(self._folder / f"said-{each}.txt") for each in range(self._many)]
        for server in servers:
            assert server.read() == "ready\n", "the server of forks does not start"
            self._free.put(server)
        return self

    def __exit__(self, *_: object) -> None:
        for _server in range(self._many):
            self._free.get(timeout=_LONGEST_S).end()

    def run(self, arguments: list[str], **how: Any) -> Ended:
        """Make a run, to its end; ``how`` are the fields of `Request`. From any thread."""
        server = self._free.get()
        try:
            return server.run(arguments, **how)
        finally:
            self._free.put(server)


class _Server:
    def __init__(self, said: Path) -> None:
        self._said = said
        # Threads of BLAS and of Arrow's allocator would not survive the fork.
        quiet = {"OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.killing.server"],
            cwd=_REPOSITORY,
            env=os.environ | quiet,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str], **how: Any) -> Ended:
        assert self._process.stdin is not None
        request = Request(arguments, str(self._said), **how)
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        code, seconds = json.loads(self.read())
        return Ended(code, seconds, self._said.read_text())

    def read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def end(self) -> None:
        self._process.communicate(timeout=_LONGEST_S)


def read_journal(path: Path) -> tuple[list[Point], list[Change]]:
    """All points and changes of a run that was asked for its journal."""
    points, changes = pickle.loads(path.read_bytes())  # noqa: S301 - our own bytes
    return points, changes


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import_everything()
    assert threading.active_count() == 1
    gc.freeze()
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        request = Request(**json.loads(line))
        began_s = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(request)
        descriptor = os.pidfd_open(child)
        if not select.select([descriptor], [], [], request.after_s)[0]:
            os.kill(child, signal.SIGKILL)
        os.close(descriptor)
        _, status = os.waitpid(child, 0)
        answer = os.waitstatus_to_exitcode(status), time.monotonic() - began_s
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import_everything() -> None:
    """Everything that a run on files and processors imports."""
    import jinja2  # noqa: F401
    import numcodecs  # noqa: F401
    import obstore  # noqa: F401
    import PIL.Image
    import scipy.signal  # noqa: F401
    import threadpoolctl  # noqa: F401
    import tomlkit  # noqa: F401
    import xarray  # noqa: F401
    import zarr  # noqa: F401

    import das_gpu.backends.cpu
    import das_gpu.backends.cuda
    import das_gpu.report.page
    import das_gpu.run
    import das_gpu.transports.files  # noqa: F401
    from das_gpu.cli import application

    PIL.Image.init()
    # What the types of the options mean is found out once.
    application().parse_args(["extract", "source", "out"], exit_on_error=False, print_error=False)


def _run(request: Request) -> None:
    """Be the run; never returns."""
    code = 70
    try:
        said = os.open(request.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for here, there in ((nothing, 0), (said, 1), (said, 2)):
            os.dup2(here, there)
        code = _main(request)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main(request: Request) -> int:
    from das_gpu.cli import main

    points: list[Point] = []
    changes: list[Change] = []
    count, like = 0, re.compile(request.like)

    def meet(point: Point) -> None:
        nonlocal count
        count += like.search(str(point)) is not None
        if request.journal:
            points.append(point)
        if count == request.kill_at:
            if request.died_at:
                Path(request.died_at).write_text(str(point))
            hooks.die()

    if request.watched:
        hooks.install(request.watched, meet, changes.append if request.journal else None)
    code = main(request.arguments)
    if request.journal:
        Path(request.journal).write_bytes(pickle.dumps((points, changes)))
    return code


if __name__ == "__main__":
    _serve()
