"""Chains and workspaces of the smallest kind: what one step needs and no more."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from das_gpu.backends import Chain, cpu
from das_gpu.model import RingLayout
from das_gpu.recipe import Scale


def chain(bands: int, width: int, samples: int, **changed) -> Chain:
    plain = Chain(
        dtype=np.dtype("float32"), length=samples, core0=0, step=1, tile_samples=samples,
        weights=None, sections=None, padding=0, median_first=False,
        bands=bands, band_channels=width, scale=Scale("tile", 0, 0), picture=None,
        distance_m=np.arange(bands * width) * 10.0, aperture_m=0.0,
    )  # fmt: skip
    return replace(plain, **changed)


@contextmanager
def workspace(made: Chain, threads: int = 1):
    """One column of chunks holds the whole window."""
    channels = made.bands * made.band_channels
    layout = RingLayout(0, (0, made.length), 1, channels, "int32", (0, channels), False)
    with cpu.CpuBackend(threads).workspace(layout, made) as work:
        yield work


def envelope(values: np.ndarray, live: np.ndarray, bands: int = 1) -> cpu.Envelope:
    """Levels (channel, sample), with each channel's range as the backend has taken it."""
    by_band = values.reshape(bands, -1, values.shape[1])
    return cpu.Envelope(by_band, live, values.min(axis=1), values.max(axis=1))
