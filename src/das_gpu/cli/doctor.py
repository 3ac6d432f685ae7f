"""``das-gpu doctor``: what this machine has of what a run on a GPU needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from das_gpu.cli import console
from das_gpu.cli.options import OutputOptions

if TYPE_CHECKING:
    from das_gpu.backends.cuda import Finding

_WIDTH = 15


def doctor(*, output: OutputOptions | None = None) -> int:
    """Show what a run on a GPU needs, what is here, and what to do.

    One line for each thing, from the driver to the kernels, up to the first that is missing; then
    what --cluster cuda needs besides.
    """
    as_json = (output or OutputOptions()).json
    machine = _machine()
    if not as_json:
        for name, value in machine.items():
            _show(name, str(value))
    needs, ready = _backend(as_json)
    extras = _cluster(as_json, load=ready)
    if as_json:
        console.write_json(
            {
                "machine": machine,
                "gpu": ready,
                "backend": [_facts(one) for one in needs],
                "cluster": [_facts(one) for one in extras],
                "exit_code": 0 if ready else 1,
            }
        )
    elif ready:
        _show("verdict", "--backend gpu runs here.")
    else:
        _show("verdict", "--backend gpu cannot run here; --backend cpu can.")
    return 0 if ready else 1


def _machine() -> dict[str, Any]:
    from das_gpu import host

    facts = host.description()
    return {
        "system": facts["system"],
        "processors": f"{facts['cores']} ({facts['processor']})",
        "Python": host.versions()["python"],
    }


def _backend(quiet: bool) -> tuple[list[Finding], bool]:
    """What the GPU backend needs up to what is missing, and whether nothing is."""
    from das_gpu.backends import cuda

    found = []
    for one in cuda.findings():
        found.append(one)
        if not quiet:
            _show_finding(one)
    return found, all(one.ok for one in found)


def _cluster(quiet: bool, *, load: bool) -> list[Finding]:
    from das_gpu import cluster

    found = list(cluster.findings(load=load))
    if not quiet:
        for one in found:
            _show_finding(one)
    return found


def _show_finding(one: Finding) -> None:
    """One line, at once: the next look may take a while."""
    _show(one.name, one.found if one.ok else f"MISSING: {one.found} {one.remedy}")


def _show(name: str, value: str) -> None:
    console.write_report(f"{name:<{_WIDTH}}  {value}")


def _facts(one: Finding) -> dict[str, Any]:
    return {**asdict(one), "ok": one.ok}
