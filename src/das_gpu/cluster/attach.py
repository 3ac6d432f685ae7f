"""Workers of a dask cluster that is there already: of a batch system, of Kubernetes, of anybody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from das_gpu.cluster.executor import DaskWorkers
from das_gpu.cluster.local import close, silence, untyped
from das_gpu.errors import ClusterError, UsageError

ANSWER_S = 30.0
"""Longest wait for the scheduler to answer."""


@contextmanager
def attach(address: str | None, file: Path | None) -> Iterator[DaskWorkers]:
    """Hand work to the workers of a cluster, which goes on without us afterwards.

    Parameters
    ----------
    address : str or None
        Of the scheduler, as ``tcp://host:8786`` or, with the certificates that dask's own
        configuration names, ``tls://host:8786``.
    file : Path or None
        Where the scheduler has written its address (``dask scheduler --scheduler-file``).

    Raises
    ------
    UsageError
        There is no such file, or no address in it, or no such kind of address.
    ClusterError
        No scheduler answers there.
    """
    if file is not None and not file.is_file():
        raise UsageError(
            f"--scheduler-file {file}: there is no such file. The scheduler writes it when it "
            f"starts: dask scheduler --scheduler-file {file}"
        )
    where = f"--scheduler-file {file}" if file is not None else f"--scheduler {address}"
    with ExitStack() as stack:
        stack.enter_context(silence())
        client = _client(address, file, where)
        stack.callback(close, client)
        yield DaskWorkers(client)


def _client(address: str | None, file: Path | None, where: str) -> Any:
    import distributed

    options = {"scheduler_file": str(file)} if file is not None else {"address": address}
    try:
        return untyped(distributed.Client)(**options, timeout=ANSWER_S, set_as_default=False)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{where} does not name a dask scheduler: {error}. Give an address such as "
            "tcp://host:8786."
        ) from error
    except Exception as error:
        said = str(error).strip() or type(error).__name__
        raise ClusterError(
            f"{where}: no dask scheduler answers ({said}). See that it runs and that this "
            "machine may reach it."
        ) from error
