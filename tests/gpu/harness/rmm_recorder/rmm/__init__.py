"""A stand-in for RMM that allocates nothing and remembers what it was asked for.

RMM needs a device to be imported. A folder with nothing else but this, to be put on PYTHONPATH.
"""

from __future__ import annotations

from typing import Any

from . import mr as mr

__version__ = "26.0.0"

asked: list[dict[str, Any]] = []
"""Arguments of every `reinitialize` in this process."""


def reinitialize(**arguments: Any) -> None:
    """Make the pool that a process allocates from."""
    asked.append(arguments)
