"""The ``das-gpu`` command, also as ``python -m das_gpu``."""

from __future__ import annotations

import os
import sys

from das_gpu.cli import main
from das_gpu.workers import anybody_stuck


def command() -> None:
    """Run the command line of this process and end it."""
    code = main()
    if anybody_stuck():
        # Python would wait for that thread, as long as it hangs.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    command()
