"""Machine code kept on disk from one process to the next, and loaded by LLVM.

What is kept is good for one processor, one version of the compiler and one wording of the loops;
it is found by a digest of all of these, and anything else is as if it were not there.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
SOURCES = (
    "centre",
    "compiled",
    "compiledimage",
    "compiling",
    "eightbit",
    "lanes",
    "loops",
    "recursive",
    "spectrum",
    "unshuffle",
)
"""Modules whose wording says what the code does."""
_ENGINES: list[Any] = []  # the memory that loaded code is in lasts as long as these


def kept(symbol: str) -> bytes | None:
    """The code of a function, if it was kept here and is whole."""
    for folder in _folders():
        try:
            digest, code = _parted((folder / _name(symbol)).read_bytes())
        except OSError:
            continue
        if hashlib.sha256(code).digest() == digest:
            return code
    return None


def keep(symbol: str, code: bytes) -> None:
    """Keep a function's code in the first folder that can be written to, if there is one."""
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number, path = tempfile.mkstemp(prefix=".", dir=folder)
            with os.fdopen(number, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            Path(path).replace(folder / _name(symbol))
        except OSError:
            continue
        return


def load(code: bytes, symbol: str) -> int:
    """Put code where it can be called; the address of one of its functions."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    return int(engine.get_function_address(symbol))


def _parted(stored: bytes) -> tuple[bytes, bytes]:
    size = hashlib.sha256().digest_size
    return stored[:size], stored[size:]


def _name(symbol: str) -> str:
    return f"{symbol}.{_circumstances()}.o"


@cache
def _circumstances() -> str:
    """Digest of all that the code depends on."""
    import llvmlite.binding as llvm

    found = [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
    found.append(llvm.get_default_triple())
    for package in ("numba", "llvmlite", "numpy"):
        try:
            found.append(version(package))
        except PackageNotFoundError:  # it lies there without having been installed
            found.append("")
    digest = hashlib.sha256("\n".join(found).encode())
    for name in SOURCES:
        digest.update((_HERE / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def _folders() -> Iterator[Path]:
    """Where code may be kept: where numba is told to, beside this file, or with the user."""
    if told := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(told) / "das-gpu"
        return
    yield _HERE / "__pycache__"
    yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "das-gpu"
