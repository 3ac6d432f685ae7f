"""What the installed CuPy really offers: names, signatures and exceptions.

CuPy imports without a driver. Cython's functions have no signature to inspect, but the first line
of their docstring shows it; the module `cupy.cuda.cufft` cannot be imported without the cuFFT
library, but its source is in the wheel.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

EMPTY = inspect.Parameter.empty
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
VAR_POSITIONAL = inspect.Parameter.VAR_POSITIONAL
VAR_KEYWORD = inspect.Parameter.VAR_KEYWORD


@functools.cache
def real() -> ModuleType:
    """The real CuPy.

    Raises
    ------
    RuntimeError
        When a double is installed and the real one was not imported before.
    """
    if "cupy" in sys.modules and not hasattr(sys.modules["cupy"], "__file__"):
        raise RuntimeError("import the real CuPy before installing the double")
    return importlib.import_module("cupy")


@functools.cache
def _cufft() -> tuple[str, str]:
    """Declarations and source of `cupy.cuda.cufft`."""
    folder = Path(str(real().__file__)).parent / "cuda"
    return (folder / "cufft.pxd").read_text(), (folder / "cufft.pyx").read_text()


def error(path: str) -> Callable[..., Exception]:
    """An exception class of the real CuPy, like ``cuda.memory.OutOfMemoryError``."""
    found: Any = real()
    for part in path.split("."):
        found = getattr(found, part)
    kind: Callable[..., Exception] = found
    return kind


def cufft_constants() -> dict[str, int]:
    """The transform types and directions, like ``CUFFT_R2C``."""
    found = re.findall(r"^\s+(CUFFT_(?!CB_)\w+) = (-?\w+)", _cufft()[0], re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


def exists(path: str) -> bool:
    """Whether the real CuPy has a name, like ``cuda.Stream.record`` (``cupy.`` left out)."""
    parts = path.split(".")
    if parts[:2] == ["cuda", "cufft"]:
        return all(
            re.search(rf"(?:class|def|readonly \w+) {part}\b|\b{part} =", "\n".join(_cufft()))
            for part in parts[2:]
        )
    try:
        functools.reduce(getattr, parts, real())
    except AttributeError:
        return False
    return True


def parameters(path: str) -> list[inspect.Parameter]:
    """The parameters of a real function or method, ``self`` left out.

    Raises
    ------
    LookupError
        When neither signature nor docstring nor source shows them.
    """
    parts = path.split(".")
    if parts[:2] == ["cuda", "cufft"]:
        inside = _cufft()[1].split(f"cdef class {parts[2]}:")[1]
        return _parsed(inside.split(f"def {parts[3]}")[1])
    target: Any = functools.reduce(getattr, parts, real())
    doc = inspect.getdoc(target) or ""
    if parts[-1] == "__init__":
        owner = functools.reduce(getattr, parts[:-1], real())
        doc = inspect.getdoc(owner) or doc
    name = parts[-2] if parts[-1] == "__init__" else parts[-1]
    if parts == ["ndarray", "__init__"]:
        name = "__init__"
    shown = re.search(rf"(?:^|\.){name}\(", doc, re.MULTILINE)
    try:
        found = [p for p in inspect.signature(target).parameters.values() if p.name != "self"]
    except (TypeError, ValueError):
        found = [inspect.Parameter("args", VAR_POSITIONAL)]
    # Wrappers take anything; then the docstring tells more.
    if any(p.kind is VAR_POSITIONAL for p in found) and shown:
        return _parsed(doc[shown.end() - 1 :])
    if [p.name for p in found] == ["args"]:
        raise LookupError(f"the parameters of cupy.{path} are nowhere to be seen")
    return [p.replace(annotation=EMPTY) for p in found]


def _parsed(text: str) -> list[inspect.Parameter]:
    """Parameters from text that starts with their opening bracket."""
    depths = np.cumsum([(letter in "([{") - (letter in ")]}") for letter in text])
    inside = text[1 : int(np.flatnonzero(depths == 0)[0])]
    kind: inspect._ParameterKind = POSITIONAL
    found = []
    for item in re.split(r",\s*(?![^(]*\))", inside):
        declared, _, default = item.strip().replace("\\", "").partition("=")
        name = declared.split()[-1] if declared.strip() else ""
        if name in ("", "self", "cls"):
            continue
        if name.startswith("**"):
            found.append(inspect.Parameter(name[2:], VAR_KEYWORD))
        elif name == "*":
            kind = KEYWORD_ONLY
        elif name.startswith("*"):
            found.append(inspect.Parameter(name[1:], VAR_POSITIONAL))
            kind = KEYWORD_ONLY
        else:
            value = _value(default.strip()) if default else EMPTY
            found.append(inspect.Parameter(name, kind, default=value))
    return found


def _value(text: str) -> Any:
    known = {"None": None, "True": True, "False": False, "float": float, "()": ()}
    if text in known:
        return known[text]
    return text.strip("'\"") if text[0] in "'\"" else int(text)


def differences(path: str, double: Callable[..., Any]) -> list[str]:
    """What a double's function takes that the real one does not, or takes otherwise.

    The double may leave out what has a default: using it then is an error in itself.
    """
    theirs = parameters(path)
    by_name = {p.name: p for p in theirs}
    order = [p.name for p in theirs if p.kind is POSITIONAL]
    anything = any(p.kind is VAR_KEYWORD for p in theirs)
    ours = [p for p in inspect.signature(double).parameters.values() if p.name != "self"]
    found = []
    for place, mine in enumerate(ours):
        their = by_name.get(mine.name)
        if their is None:
            if not (anything and mine.kind is KEYWORD_ONLY):
                found.append(f"cupy.{path} has no parameter {mine.name!r}")
        elif mine.kind is POSITIONAL and order[place : place + 1] != [mine.name]:
            found.append(f"cupy.{path} does not take {mine.name!r} in place {place}")
        elif mine.default != their.default:
            found.append(f"cupy.{path}: {mine.name!r} defaults to {their.default!r}")
    mine_names = {p.name for p in ours}
    found += [
        f"cupy.{path} needs {p.name!r}"
        for p in theirs
        if p.default is EMPTY and p.kind in (POSITIONAL, KEYWORD_ONLY) and p.name not in mine_names
    ]
    return found
