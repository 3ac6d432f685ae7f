"""Looks for races between the threads of a block, with ThreadSanitizer."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from das_gpu.backends.launch import Launch
from tests.gpu.harness.abi import Request, Schedule, check_arguments, make_request, signature
from tests.gpu.harness.build import KernelError, build
from tests.gpu.harness.counts import Counts

_RACE_EXIT = 66
_LIMIT_S = 240


def _write(launch: Launch, request: Request, file: Path) -> dict[int, int]:
    """Write the launch as the program reads it; where each array lies in the file."""
    data: dict[int, bytes] = {}
    kinds: list[int] = []
    for i, (value, parameter) in enumerate(zip(launch.args, signature(launch), strict=True)):
        kinds.append(2 if value is None else int(parameter.pointer))
        data[i] = b"" if value is None else value.tobytes()
    places: dict[int, int] = {}
    seen: dict[tuple[int, int], int] = {}
    end = _up(ctypes.sizeof(Request) + 8 + 24 * len(kinds))
    for i, contents in data.items():
        value = launch.args[i]
        key = (value.ctypes.data, value.nbytes) if kinds[i] == 1 else (-1, i)
        places[i] = seen.setdefault(key, end)
        if places[i] == end:
            end += _up(max(len(contents), 1))
    table = [len(kinds)]
    for i, kind in enumerate(kinds):
        table += [kind, len(data[i]), places[i]]
    with file.open("wb") as out:
        out.write(bytes(request))
        out.write(np.array(table, np.int64).tobytes())
        for i, contents in data.items():
            out.seek(places[i])
            out.write(contents)
        out.truncate(end)
    return places


def _up(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _summary(report: str) -> str:
    """The sanitizer's report in short: what was done, and the kernel's lines that did it."""
    lines = []
    for line in report.splitlines():
        text = line.strip()
        access = re.match(r"(Previous )?(atomic )?(read|write) of size \d+", text, re.IGNORECASE)
        frame = re.search(r"#0 .*?([\w.]+\.cuh?:\d+|cuda_host\w*\.h:\d+)", text)
        if access:
            lines.append(access[0])
        elif frame or re.search(r"#[1-9] .*\.cuh?:\d+", text):
            lines.append("at " + (frame[1] if frame else text))
    return "; ".join(lines[:8]) or report[-2000:]


def tsan_check(launch: Launch, *, schedule: Schedule = "forward", seed: int = 0) -> Counts:
    """Execute a launch under ThreadSanitizer; arrays receive the results.

    Every CUDA thread is a thread to the sanitizer, ordered with others by barriers alone.
    Races are found within a block, not between blocks (``flavour="counted"`` looks for those).

    Raises
    ------
    KernelError
        Naming the first race's accesses, or another fault.
    """
    check_arguments(launch, signature(launch))
    program = build(launch, "tsan")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "launch"
        request = make_request(launch, schedule, seed)
        places = _write(launch, request, file)
        # There is no thread besides the one that executes all, whose races at the end would have
        # to be waited for: a second, unless it is asked not to.
        options = f"exitcode={_RACE_EXIT} halt_on_error=1 report_signal_unsafe=0 atexit_sleep_ms=0"
        done = subprocess.run(
            [str(program), str(file)],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            env={**os.environ, "TSAN_OPTIONS": options},
        )
        if done.returncode == _RACE_EXIT:
            raise KernelError(f"{launch.kernel}: data race: {_summary(done.stderr)}")
        if done.returncode:
            raise KernelError(f"{launch.kernel}: under ThreadSanitizer: {done.stderr[-2000:]}")
        contents = file.read_bytes()
    for i, (value, parameter) in enumerate(zip(launch.args, signature(launch), strict=True)):
        if value is not None and parameter.pointer and not parameter.constant:
            flat = np.frombuffer(contents, value.dtype, value.size, places[i])
            value[...] = flat.reshape(value.shape)
    answer = Request.from_buffer_copy(contents)
    return Counts(
        launches=1,
        threads=int(np.prod(launch.grid) * np.prod(launch.block)),
        barriers=answer.barriers,
        collectives=answer.collectives,
    )
