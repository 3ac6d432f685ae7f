"""One process of a distributed training, as a launcher starts it: what a rank makes of an archive.

``python -m tests.rank RANK RANKS MEETING SOURCE RECIPE.toml`` joins the process group that meets
in a file, and prints ``[sample_start, channel_start]`` of each tile, rank by rank, of all ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from torch import distributed

from das_gpu import Recipe
from tests import pages


def main(rank: int, ranks: int, meeting: str, source: str, recipe: Path) -> None:
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=ranks)
    try:
        training = pages.module("docs/training.py")
        wanted = Recipe.from_toml(recipe.read_text())
        tiles = training.Tiles(source, wanted, backend="cpu", workers=1, fast=False)
        places = [[record["sample_start"], record["channel_start"]] for _, record in tiles]
        everyones: list[list[list[int]] | None] = [None] * ranks
        distributed.all_gather_object(everyones, places)
        print(json.dumps(everyones))  # noqa: T201 - the test reads it
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], Path(sys.argv[5]))
