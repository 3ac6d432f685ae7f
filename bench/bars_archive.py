"""Archives for `bars.py`: one is simulated, others are made of links to its chunks."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from das_gpu.simulate import Scene, simulate


@dataclass(frozen=True)
class Sizes:
    """What is recorded, and how much is read.

    Attributes
    ----------
    scene : Scene
        The simulated archive; whole chunks only.
    steady_s : float
        Length of the record whose rows are timed.
    edge_rows : int
        Rows at either end of it that are not.
    wide_channels : int
        Of the archive whose reading memory is measured at.
    short_s, long_s : float
        Its two lengths.
    """

    scene: Scene
    steady_s: float
    edge_rows: int
    wide_channels: int
    short_s: float
    long_s: float


FULL = Sizes(Scene(channels=12_000, seconds=240.0), 720.0, 8, 37_500, 120.0, 960.0)
TINY = Sizes(
    Scene(channels=1200, seconds=30.0, chunk_shape=(300, 3000)), 120.0, 2, 1950, 30.0, 90.0
)


def recorded(folder: Path, scene: Scene) -> Path:
    """Simulate an archive and see it safe on the disk, so that no run waits for that."""
    store = simulate(folder / "archive.zarr", scene)
    os.sync()
    return store


def linked(path: Path, store: Path, scene: Scene, *, channels: int, seconds: float) -> Path:
    """Make an archive of another size whose chunks are a simulated one's, over and over.

    It takes no room and is read from the same page cache. Its time axis has no jump; its samples
    have one wherever the chunks begin anew, which costs no more and no less.

    Parameters
    ----------
    path : Path
        Folder of the new archive.
    store : Path
        What ``scene`` was simulated into, on the same file system.
    scene : Scene
        Of whole chunks.
    channels, seconds : int, float
        Size of the new one.

    Raises
    ------
    ValueError
        When the scene ends within a chunk, whose rest would be read as samples.
    """
    height, width = scene.chunk_shape
    if scene.channels % height or scene.samples % width:
        raise ValueError(
            f"{scene.channels} channels x {scene.samples} samples are no whole chunks of "
            f"{height} x {width}; simulate a scene that ends with a chunk."
        )
    larger = replace(scene, channels=channels, seconds=seconds)
    simulate(path, larger, samples=False)
    rows, columns = scene.chunk_grid
    for row in range(larger.chunk_grid[0]):
        for column in range(larger.chunk_grid[1]):
            chunk = store / "RawData" / f"{row % rows}.{column % columns}"
            os.link(chunk, path / "RawData" / f"{row}.{column}")
    return path


def compression(store: Path) -> float:
    """Give stored over decoded size of an archive's samples, whole chunks counted."""
    files = [file for file in (store / "RawData").iterdir() if not file.name.startswith(".")]
    about = json.loads((store / "RawData" / ".zarray").read_text())
    height, width = about["chunks"]
    stored: int = sum(file.stat().st_size for file in files)
    return stored / (4 * int(height) * int(width) * len(files))
