"""Compiles a kernel file for the processor, unchanged, and keeps the objects on disk.

Objects are named by a digest of everything that goes into them, and appear under their name
only when they are whole, so that processes may share the folder.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from das_gpu.backends.launch import Launch

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]

Flavour = Literal["plain", "fma", "ubsan", "counted", "tsan"]

_COMMON = (
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-unused",
)
_UNCONTRACTED = "-ffp-contract=off"
_FLAGS: dict[Flavour, tuple[str, ...]] = {
    "plain": (_UNCONTRACTED,),
    "fma": ("-mfma", "-ffp-contract=fast"),
    # Wrapping of pointers and division of floats by zero are defined on a GPU.
    "ubsan": (_UNCONTRACTED, "-fsanitize=undefined,float-cast-overflow", "-fno-sanitize=vptr"),
    # One access in the text stays one access: no vectors, no joined stores, structures whole.
    "counted": (
        _UNCONTRACTED,
        "-DCUDA_HOST_COUNTED",
        "-fsanitize=thread",
        "--param=tsan-instrument-func-entry-exit=0",
        "-fno-tree-vectorize",
        "-fno-store-merging",
        "-fno-tree-sra",
    ),
    "tsan": (_UNCONTRACTED, "-DCUDA_HOST_TSAN", "-fsanitize=thread"),
}
_RUNTIME: dict[Flavour, tuple[str, ...]] = {
    "plain": ("cuda_host_runtime.cpp",),
    "fma": ("cuda_host_runtime.cpp",),
    "ubsan": ("cuda_host_runtime.cpp", "cuda_host_ubsan.cpp"),
    "counted": ("cuda_host_runtime.cpp", "cuda_host_count.cpp"),
    "tsan": ("cuda_host_runtime.cpp", "cuda_host_tsan_main.cpp"),
}

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:__align__\s*\(\s*\d+\s*\)\s*)?([^;\[\]]*?)\s*\b(\w+)\s*\[\s*\]\s*;"
)


class KernelError(AssertionError):
    """A kernel, or the way it is launched, is wrong."""


class CompileError(KernelError):
    """g++ refuses the kernel."""


def compiler() -> str | None:
    """Where g++ is, or None."""
    return shutil.which("g++")


def kernel_folder() -> Path:
    """Where the kernels are: ``$DAS_GPU_KERNEL_SOURCES``, or the repository's ``kernels``."""
    return Path(os.environ.get("DAS_GPU_KERNEL_SOURCES") or REPOSITORY / "kernels")


# The tests give every run a cache folder of its own. Objects are worth keeping longer: they are
# named by their content, and compiling them anew takes minutes. Named here, when this module is
# imported, and in the environment, for the processes that tests start.
os.environ.setdefault(
    "DAS_GPU_KERNEL_CACHE",
    str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "das-gpu" / "kernels"),
)


def cache_folder() -> Path:
    """Where compiled objects are: ``$DAS_GPU_KERNEL_CACHE``, or the user's cache folder."""
    folder = Path(os.environ["DAS_GPU_KERNEL_CACHE"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.lru_cache(maxsize=1)
def _version() -> bytes:
    return subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout


@functools.lru_cache(maxsize=1)
def _harness_text() -> bytes:
    return b"".join(path.read_bytes() for path in sorted(HERE.glob("cuda_host*")))


def included(text: str, folders: Sequence[Path]) -> list[bytes]:
    """The files that a text includes by name, and those they include, in order of appearance."""
    found: dict[Path, bytes] = {}
    texts = [text]
    while texts:
        for name in _INCLUDE.findall(texts.pop()):
            path = next((folder / name for folder in folders if (folder / name).exists()), None)
            if path is not None and path not in found:
                found[path] = path.read_bytes()
                texts.append(found[path].decode())
    return list(found.values())


def _compile(arguments: list[str], out: Path) -> None:
    """Run g++, and move what it makes to ``out`` when it is whole."""
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        made = Path(scratch) / out.name
        done = subprocess.run(["g++", *arguments, "-o", str(made)], capture_output=True, text=True)
        if done.returncode:
            raise CompileError(done.stderr)
        made.replace(out)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in (_version(), _harness_text(), *parts):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _runtime_objects(flavour: Flavour) -> list[str]:
    """Objects of the runtime, without instrumentation."""
    defines = ["-DCUDA_HOST_TSAN"] if flavour == "tsan" else []
    objects = []
    for name in _RUNTIME[flavour]:
        out = cache_folder() / f"{_digest(name.encode(), *map(str.encode, defines))}.o"
        if not out.exists():
            _compile([*_COMMON, "-Wextra", *defines, "-c", str(HERE / name)], out)
        objects.append(str(out))
    return objects


def _host_text(text: str, name: str, kernel: str) -> str:
    """The translation unit: host header, the kernel file's lines under their numbers, entry."""
    body = _DYNAMIC.sub(
        lambda found: (
            f"{found[1]} *const {found[2]} = "
            f"reinterpret_cast<{found[1]} *>(cuda_host::dynamic_shared);"
            + "\n"
            * found[0].count("\n")
        ),
        text,
    )
    return (
        f'#include "cuda_host.h"\n#line 1 "{name}"\n{body}\n'
        f'#line 1 "cuda_host_entry"\nCUDA_HOST_EXPORT({kernel})\n'
    )


def build(launch: Launch, flavour: Flavour) -> Path:
    """Compile the launch's kernel, unless that has been done.

    Parameters
    ----------
    launch : Launch
        Its ``source`` is a name in the kernels' folder, or an absolute path.
    flavour : {"plain", "fma", "ubsan", "counted", "tsan"}
        How to compile it; ``tsan`` makes a program, the others a shared object.

    Raises
    ------
    CompileError
        With what g++ says.
    """
    folder = kernel_folder()
    source = folder / launch.source
    text = source.read_text()
    include_folders = list(dict.fromkeys((source.parent, folder)))
    headers = included(text, include_folders)
    options = [option for option in launch.options if option.startswith(("-D", "-I"))]
    key = (flavour, launch.kernel, source.name, *options, *_FLAGS[flavour])
    name = _digest(text.encode(), *headers, *map(str.encode, key))
    out = cache_folder() / (f"{name}.exe" if flavour == "tsan" else f"{name}.so")
    if out.exists():
        return out
    includes = [f"-I{place}" for place in (HERE, *include_folders)]
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        unit = Path(scratch) / "kernel.cpp"
        unit.write_text(_host_text(text, source.name, launch.kernel))
        compiled = Path(scratch) / "kernel.o"
        _compile([*_COMMON, *_FLAGS[flavour], *includes, *options, "-c", str(unit)], compiled)
        link = ["-fsanitize=thread"] if flavour == "tsan" else ["-shared", "-Wl,-Bsymbolic"]
        _compile([*link, str(compiled), *_runtime_objects(flavour)], out)
    return out
