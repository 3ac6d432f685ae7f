"""Compiles kernels for real GPUs, as CuPy would, and says what they need.

NVRTC and CuPy's compiler work without a driver; only loading the result would need one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import json
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

from tests.gpu.harness.build import CompileError, cache_folder, included, kernel_folder

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
"""Compute capabilities, from the first GPUs that CUDA 13 still compiles for."""


@dataclass(frozen=True)
class Resources:
    """What one kernel needs, as ``ptxas`` reports it.

    Attributes
    ----------
    registers : int
        Per thread.
    stack_bytes : int
        Local memory of a thread for arrays that are not in registers.
    spill_store_bytes, spill_load_bytes : int
        Local memory traffic for want of registers.
    shared_bytes : int
        Static shared memory of a block.
    """

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int


def available() -> bool:
    """Whether CuPy and NVRTC are installed."""
    if importlib.util.find_spec("cupy") is None:
        return False
    try:
        _version()
    except Exception:  # noqa: BLE001  whatever CuPy raises when it cannot load the library
        return False
    return True


@functools.cache
def _version() -> tuple[int, int]:
    from cupy.cuda import compiler

    major, minor = compiler.nvrtc.getVersion()
    return int(major), int(minor)


_PATCHING = threading.Lock()


class _CapturedError(Exception):
    """Carries out the options that CuPy has arrived at."""

    def __init__(self, options: tuple[str, ...]) -> None:
        self.options = options


def cupy_options(options: Sequence[str], arch: str) -> tuple[str, ...]:
    """The options with which ``cupy.RawModule(..., backend="nvrtc")`` calls NVRTC.

    The front end is run until it would look for a device; what it adds after that is the flush
    to zero, the architecture and the default execution space (``cupy/cuda/compiler.py``).
    """
    from cupy._core import core
    from cupy.cuda import compiler

    def stop(_source: str, given: tuple[str, ...], *_rest: Any, **_named: Any) -> None:
        raise _CapturedError(given)

    with _PATCHING, mock.patch.object(compiler, "_compile_with_cache_cuda", stop):
        try:
            core.compile_with_cache("", tuple(options), prepend_cupy_headers=False)
        except _CapturedError as captured:
            given = captured.options
    return (*given, "-ftz=true", f"-arch=sm_{arch}", "--device-as-default-execution-space")


def _parse(log: str) -> dict[str, Resources]:
    """Read what ``ptxas`` reports of each kernel.

    Functions that were not inlined report stack and spills of their own: they are added to the
    kernel before them.
    """
    found: dict[str, Resources] = {}
    entries = re.split(r"Compiling entry function '(\w+)' for '\w+'", log)
    for name, text in zip(entries[1::2], entries[2::2], strict=True):
        frames = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
        )
        registers = re.search(r"Used (\d+) registers", text)
        if not frames or registers is None:
            raise CompileError(f"ptxas reports nothing of {name}:\n{log}")
        shared = re.search(r"(\d+) bytes smem", text)
        stack, stores, loads = (sum(int(frame[i]) for frame in frames) for i in range(3))
        found[name] = Resources(
            int(registers[1]), stack, stores, loads, int(shared[1]) if shared else 0
        )
    return found


def resources(source: str, options: Sequence[str], arch: str) -> dict[str, Resources]:
    """Compile a kernel file for one architecture, and read what each kernel in it needs.

    Parameters
    ----------
    source : str
        Name in the kernels' folder, or an absolute path.
    options : sequence of str
        Compiler options, like those of a ``Launch``.
    arch : str
        Compute capability without its dot, like ``"80"``.

    Returns
    -------
    dict
        By name of the kernel.

    Raises
    ------
    CompileError
        With NVRTC's log.
    """
    from cupy.cuda import compiler

    folder = kernel_folder()
    path = folder / source
    text = path.read_text()
    given = tuple(dict.fromkeys((*options, "-std=c++17", f"-I{folder}", f"-I{path.parent}")))
    # Reporting does not change the code.
    complete = (*cupy_options(given, arch), "--ptxas-options=-v")
    headers = [part.decode() for part in included(text, (path.parent, folder))]
    named = [option for option in complete if not option.startswith("-I")]
    key = json.dumps([_version(), named, text, headers])
    kept = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if kept.exists():
        return {name: Resources(**entry) for name, entry in json.loads(kept.read_text()).items()}
    log = io.StringIO()
    program = compiler._NVRTCProgram(text, path.name, method="cubin")
    try:
        program.compile(complete, log)
    except compiler.CompileException as error:
        raise CompileError(f"{source} {' '.join(options)} for sm_{arch}:\n{error}") from error
    found = _parse(log.getvalue())
    if not found:
        raise CompileError(f"{source}: NVRTC found no kernel:\n{log.getvalue()}")
    scratch = kept.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    scratch.write_text(json.dumps({name: asdict(entry) for name, entry in found.items()}))
    scratch.replace(kept)
    return found
