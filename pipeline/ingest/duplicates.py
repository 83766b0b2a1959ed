"""Exact duplicates: images of different names whose stored bytes are the same, by their hash.

Of each group one image wins, whatever order the images come in: one of test before one of val
before the others, then the least name. An image that two sets share under one name is no duplicate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.dataset.manifest import Duplicates
from pipeline.ingest.sources.index import ImageIndex
from pipeline.ingest.sources.splits import Indices

_NUM_EXAMPLES = 100
Shard = TypeVar("Shard")
_RANK = {"test": 0, "val": 1}


def find_duplicates(
    index: ImageIndex, hashes_N2: npt.NDArray[np.uint64], kept_N: npt.NDArray[np.bool_]
) -> tuple[Duplicates, Indices]:
    """Find duplicates: the manifest's entry, and the sorted index rows to drop.

    Args:
        index: names and sets of the images.
        hashes_N2: hash of each image; rows that were rejected are not looked at.
        kept_N: which were not.
    """
    rank_N = np.full(len(kept_N), 2, np.int8)
    for name in ("val", "test"):
        if name in index.sets:
            rank_N[index.sets[name]] = _RANK[name]
    rows = np.flatnonzero(kept_N)
    order = rows[np.lexsort((hashes_N2[rows, 1], hashes_N2[rows, 0]))]
    same = (hashes_N2[order[1:]] == hashes_N2[order[:-1]]).all(axis=1)
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    groups = [g for g in np.split(order, starts[1:]) if len(g) > 1] if same.any() else []
    losers, num_across, examples = [], 0, []
    for group in groups:
        names = index.ids_of(group)
        ranked = sorted(zip(rank_N[group].tolist(), names, group.tolist(), strict=True))
        losers += [row for _, _, row in ranked[1:]]
        num_across += len({rank for rank, _, _ in ranked}) > 1
        examples.append(tuple(name for _, name, _ in ranked))
    found = Duplicates(
        num_groups=len(groups),
        num_images=len(losers),
        num_across_sets=num_across,
        dropped=False,
        examples=tuple(sorted(examples)[:_NUM_EXAMPLES]),
    )
    return found, np.array(sorted(losers), np.int64)


def losers_by_shard(kept_rows: Mapping[Shard, Indices], losers: Indices) -> dict[Shard, list[int]]:
    """Return the rows to drop within each shard; shards without any are left out."""
    found = {key: np.flatnonzero(np.isin(rows, losers)) for key, rows in kept_rows.items()}
    return {key: rows.tolist() for key, rows in found.items() if len(rows)}
