"""The ``das-gpu`` command, also as ``python -m das_gpu``."""

from __future__ import annotations

import gc
import os
import sys

from das_gpu.cli import main
from das_gpu.workers import anybody_stuck


def command() -> None:
    """Run the command line of this process and end it."""
    # Pydantic would read the entry points of every installed distribution to find none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if sys.argv[1:2] == ["extract"]:
        # Computing lets BLAS have one thread; those it would start as it is loaded, one for each
        # processor, spin for tens of milliseconds before they sleep.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code = main()
    if anybody_stuck():
        # Python would wait for that thread, as long as it hangs.
        sys.stdout.flush()
        os._exit(code)
    # The libraries' objects end with the process; looking for cycles among them takes longer
    # than several tiles do.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    command()
