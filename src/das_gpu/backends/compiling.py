"""Loops compiled by numba to code that needs nothing but itself.

numba wraps a loop as a function of C, whose code still knows how to raise Python's errors and
how to count references. The loops do neither: they allocate nothing and raise nothing. So these
ways are declared unreachable, LLVM takes them out, and what is left refers to nothing of Python.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from das_gpu.backends.loops import Argument

_UNREACHED = re.compile(
    r"^declare (.*@(?:numba_gil_ensure|numba_gil_release|numba_unpickle|numba_do_raise"
    r"|numba_runtime_build_excinfo_struct|NRT_Free|NRT_MemInfo_call_dtor|Py\w+)\(.*\))[^)\n]*$",
    re.MULTILINE,
)
"""Functions called where an error is raised, or the last reference to an array dropped."""


def compile_loop(name: str, arguments: tuple[Argument, ...], symbol: str) -> bytes:
    """Compile a loop to an object file.

    Parameters
    ----------
    name : str
        Module and function.
    arguments : tuple of Argument
    symbol : str
        Name of the function of C.

    Raises
    ------
    ImportError
        numba cannot be imported.
    RuntimeError
        The loop needs what is not in its own code: it allocates, or reshapes.
    """
    _import_numba()
    import llvmlite.binding as llvm
    from numba import cfunc, types
    from numba.np.numpy_support import carray, from_dtype

    module_name, _, function = name.partition(".")
    compiled = getattr(import_module(f"das_gpu.backends.{module_name}"), function)
    pointer: Callable[[Any], Any] = types.CPointer
    kinds: list[Any] = []
    for one in arguments:
        kind = from_dtype(one.dtype)
        kinds += [pointer(kind), *[types.intp] * one.ndim] if one.ndim else [kind]
    entry = _entry(compiled, arguments, carray)
    wrapped = cfunc(types.void(*kinds), error_model="numpy")(entry)
    text = _UNREACHED.sub(r"define \1 {\n  unreachable\n}", wrapped.inspect_llvm())
    code = llvm.parse_assembly(text)
    code.get_function(wrapped.native_name).name = symbol
    for one in code.functions:
        if not one.is_declaration and one.name != symbol:
            one.linkage = "internal"
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(code, passes)
    strange = [one.name for one in code.functions if re.match("numba_|NRT_|Py", one.name)]
    if strange:
        raise RuntimeError(f"{name} needs {', '.join(strange)}")
    return bytes(machine.emit_object(code))


def _entry(compiled: Any, arguments: tuple[Argument, ...], carray: Any) -> Any:
    """A function of addresses, sizes and numbers that calls a loop with arrays and numbers."""
    names: list[str] = []
    passed: list[str] = []
    for number, one in enumerate(arguments):
        sizes = [f"size_{number}_{axis}" for axis in range(one.ndim)]
        names += [f"value_{number}", *sizes]
        array = f"carray(value_{number}, ({', '.join(sizes)},))"
        passed.append(array if one.ndim else f"value_{number}")
    source = f"def entry({', '.join(names)}):\n    compiled({', '.join(passed)})\n"
    scope = {"compiled": compiled, "carray": carray}
    exec(source, scope)  # noqa: S102 - numba compiles no functions of any number of arguments
    return scope["entry"]


def _import_numba() -> None:
    """Import what numba needs, but not SciPy's BLAS.

    It would look whether that is there: a quarter of a second for products of matrices, which no
    loop here has. It is there, and a program's own loops that want it still get it.
    """
    from numba.np import linalg

    look = getattr(linalg, "ensure_blas", None)
    if look is None or "numba.np.arraymath" in sys.modules:
        return
    linalg.ensure_blas = lambda: None
    try:
        import numba.np.arraymath  # noqa: F401 - it looks as it is imported
    finally:
        linalg.ensure_blas = look
