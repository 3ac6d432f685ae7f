"""Whether loops are compiled, before anything is measured under that name.

The CPU backend does with NumPy what numba cannot compile, with a warning; a benchmark that did the
same would print NumPy's times as those of compiled loops.
"""

from __future__ import annotations

import numpy as np

from das_gpu.backends import fast


def compiled() -> bool:
    """Whether compiled loops can take part; where numba is not installed they cannot.

    Raises
    ------
    SystemExit
        When it is installed and its loops fall back to NumPy's.
    """
    if not fast.installed():
        return False
    missing = fast.first_missing(np.dtype(np.float32), np.dtype(np.int32))
    if missing is not None:
        raise SystemExit(f"Nothing is measured, since loops are not compiled: {missing}")
    return True


def insist() -> None:
    """Refuse to go on, by SystemExit, where loops are not compiled."""
    if not compiled():
        raise SystemExit(f"Nothing is measured: numba is not installed. {fast.REMEDY}")
