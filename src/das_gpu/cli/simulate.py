"""``das-gpu simulate``: write a synthetic archive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from das_gpu.cli import console
from das_gpu.cli.options import OutputOptions, option

CABLE = Group("Recording", sort_key=10)
FLAWS = Group("Flaws", help="None unless asked for.", sort_key=11)


def simulate(
    out: Annotated[str | Path, Parameter(help="Folder of the new Zarr archive.")],
    /,
    *,
    channels: Annotated[
        int, option(CABLE, "Channels along the cable. [default: 3000]", metavar="N")
    ] = 3000,
    minutes: Annotated[float, option(CABLE, "Length. [default: 2]", metavar="MINUTES")] = 2.0,
    seed: Annotated[
        int,
        option(CABLE, "The same seed gives the same archive. [default: 1]", metavar="N"),
    ] = 1,
    rate: Annotated[float, option(CABLE, "Sampling rate. [default: 200]", metavar="HZ")] = 200.0,
    spacing: Annotated[
        float,
        option(CABLE, "Between channels. [default: 2.0419]", metavar="METRES"),
    ] = 2.0419,
    gap: Annotated[
        float,
        option(FLAWS, "Jump of the clock halfway. [default: 0]", metavar="SECONDS"),
    ] = 0.0,
    dead: Annotated[int, option(FLAWS, "Constant channels. [default: 0]", metavar="N")] = 0,
    missing: Annotated[int, option(FLAWS, "Chunks left out. [default: 0]", metavar="N")] = 0,
    corrupt: Annotated[int, option(FLAWS, "Chunks cut short. [default: 0]", metavar="N")] = 0,
    output: OutputOptions | None = None,
) -> int:
    """Write a synthetic archive with whale calls, a ship and noise.

    For trials and tests: the same options give the same archive, bit by bit. No environment
    variable stands for an option here.
    """
    from das_gpu.simulate import Scene
    from das_gpu.simulate import simulate as record

    scene = Scene(
        channels=channels,
        seconds=minutes * 60,
        seed=seed,
        rate_hz=rate,
        spacing_m=spacing,
        gap_s=gap,
        dead=dead,
        missing=missing,
        corrupt=corrupt,
    )
    with console.progress_bar("simulating") as bar:
        path = record(out, scene, progress=lambda fraction: bar.update(fraction, 1.0, ""))
    console.say(f"Recorded {scene.channels} channels x {scene.samples} samples in {path}.")
    if (output or OutputOptions()).json:
        facts = {"archive": str(path), "shape": [scene.channels, scene.samples]}
        console.write_json({**facts, "exit_code": 0})
    return 0
