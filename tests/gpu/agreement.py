"""How far a run on the GPU may be from the same run on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.outputs import envelopes, images, records

LOUD_DB = 60.0
"""Envelopes are compared where they are within this of their tile's maximum."""


@dataclass(frozen=True)
class Bar:
    """Greatest differences: in dB, and in grey levels on a share of the pixels."""

    envelope_db: float
    levels: int
    share: float


BARS = {"float32": Bar(0.02, 2, 0.05), "float64": Bar(1e-6, 1, 0.001)}
_ARRAY_STEP_DB = 2e-5
"""Between two neighbouring float32 numbers near 170 dB, in which arrays are delivered."""


def loud_difference_db(ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> float:
    """Greatest difference of two envelopes in dB, where they are loud."""
    loud = theirs > theirs.max() - LOUD_DB
    return float(np.abs(ours - theirs)[loud].max())


def assert_runs_agree(ours: Path, theirs: Path, dtype: str) -> None:
    """Same records and files; pixels, arrays and levels within the bar of the precision."""
    bar = BARS[dtype]
    for mine, other in zip(records(ours), records(theirs), strict=True):
        assert {k: v for k, v in mine.items() if k not in ("db_low", "db_high", "sha256")} == {
            k: v for k, v in other.items() if k not in ("db_low", "db_high", "sha256")
        }
        for name in ("db_low", "db_high"):
            if other[name] is None:
                assert mine[name] is None
            else:
                assert abs(mine[name] - other[name]) <= bar.envelope_db
    if records(theirs)[0].get("array_file") is not None:
        found = envelopes(theirs)
        for key, array in envelopes(ours).items():
            assert loud_difference_db(array, found[key]) <= bar.envelope_db + _ARRAY_STEP_DB
        return
    pictures = images(theirs)
    assert images(ours).keys() == pictures.keys()
    for key, picture in images(ours).items():
        scale = 257 if picture.dtype != np.uint8 else 1
        apart = np.abs(picture.astype(int) - pictures[key].astype(int))
        assert apart.max() <= bar.levels * scale
        assert np.mean(apart > 0) <= bar.share or scale > 1
