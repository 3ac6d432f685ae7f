"""``python -m das_gpu`` is the ``das-gpu`` command."""

from das_gpu.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
