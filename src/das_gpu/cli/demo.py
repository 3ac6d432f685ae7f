"""The demonstration archive, made when a command is the first to read it."""

from __future__ import annotations

from pathlib import Path

from das_gpu.cli import console


def resolve_demo(source: str | Path) -> None:
    """Make the demonstration archive when it is the source and is not there yet; say so."""
    if source != "demo:":
        return
    from das_gpu.simulate import demo_archive

    said = False
    with console.progress_bar("simulating") as bar:

        def show(fraction: float) -> None:
            nonlocal said
            if not said:
                console.say("Making the demonstration archive, once; it is kept for later.")
                said = True
            bar.update(fraction, 1.0, "")

        demo_archive(show)
