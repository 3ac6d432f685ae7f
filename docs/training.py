"""Train a network on tiles that never touch a disk: das-gpu as a PyTorch dataset.

Usage: ``python docs/training.py SOURCE [WORKERS]`` (needs PyTorch). It learns to compress tiles to
32 numbers and back, and prints how well; put your own network and loss in their place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import das_gpu


class Tiles(IterableDataset[tuple[torch.Tensor, dict[str, object]]]):
    """Tiles of an archive as ``(image, record)``: (1, height, width) from 0 to 1, and its facts.

    Every process of a distributed run, and every worker of its loader, makes a part of its own: a
    stretch of time. No tile comes twice, and none is left out; parts may differ by a row of tiles.

    Parameters
    ----------
    source, recipe, options
        As for `das_gpu.stream`, but for ``part``.
    """

    def __init__(self, source: str, recipe: das_gpu.Recipe | None = None, **options: Any) -> None:
        self._source, self._recipe, self._options = source, recipe, options

    def __iter__(self) -> Iterator[tuple[torch.Tensor, dict[str, object]]]:
        with das_gpu.stream(
            self._source, self._recipe, part=part_of_this_process(), **self._options
        ) as tiles:
            for tile in tiles:
                # The tensor is the tile's own memory, on its device; what is made of it is new.
                image = torch.from_dlpack(tile)
                highest = float(torch.iinfo(image.dtype).max)
                yield image.unsqueeze(0).to(torch.float32) / highest, tile.record.as_json()


def part_of_this_process() -> tuple[int, int]:
    """Number of this worker among all workers of all ranks, and how many these are."""
    rank, ranks = 0, 1
    if distributed.is_available() and distributed.is_initialized():
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
    info = get_worker_info()
    worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
    return rank * workers + worker, ranks * workers


def loader(dataset: Tiles, batch_size: int, workers: int) -> DataLoader[Any]:
    """Batches of (batch, 1, height, width), and the list of their records.

    Workers are spawned: a forked child would hang in the libraries that fetch.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        collate_fn=together,
    )


def together(
    samples: list[tuple[torch.Tensor, dict[str, object]]],
) -> tuple[torch.Tensor, list[dict[str, object]]]:
    """Stack the images of a batch."""
    return torch.stack([image for image, _ in samples]), [record for _, record in samples]


def main(source: str, workers: int) -> None:
    """One pass over an archive."""
    # Each worker has one compute thread of its own; a GPU backend wants no worker at all.
    options = {"backend": "cpu", "workers": 1} if workers else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = torch.nn.Sequential(
        torch.nn.AvgPool2d(8),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 32, 32),
        torch.nn.Linear(32, 32 * 32),
    ).to(device)
    optimiser = torch.optim.Adam(network.parameters())
    seen = 0
    for images, _ in loader(Tiles(source, **options), batch_size=16, workers=workers):
        wanted = torch.nn.functional.avg_pool2d(images.to(device), 8).flatten(1)
        loss = torch.nn.functional.mse_loss(network(images.to(device)), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen += len(images)
        print(f"{seen} tiles, mean squared error {loss.item():.4f}")  # noqa: T201 - what it is run for


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
