"""Random numbers of an ingest by name: each draw is a function of the seed and its stream.

`sdclr.seeds` does the same by hashing; it needs torch, which the tasks of an ingest do not import.
The numbers are part of published splits: none is changed, and none is used twice.
"""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np


@unique
class Stream(IntEnum):
    """The streams of an ingest; `sdclr.longtail` has numbers of its own below 100."""

    HOLD_OUT_TEST = 101
    ROWS_OF_SET = 102
    HOLD_OUT_VAL = 103
    ROWS_OF_SHARD = 104
    DRY_RUN = 105
    REDUCED_SIZE = 106
    LISTED_SIZE = 107


def generator(seed: int, stream: Stream, *path: int) -> np.random.Generator:
    """Return a fresh generator at the start of a stream, or of one of its branches."""
    return np.random.default_rng([seed, stream, *path])
