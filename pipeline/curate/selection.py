"""Near-duplicates within cells, and a balanced choice from a tree of clusters; no labels.

SemDeDup (Abbas et al. 2023) looks for pairs inside the cells of a k-means only. The tree is the
hierarchical k-means of Vo et al. 2024, without their resampling steps: clusters of images, clusters
of their centres, and so on; at each node the images wanted are shared out evenly.

Shapes: N images, A held-out images, F features, K cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sdclr.kmeans import kmeans
from sdclr.seeds import numpy_generator

SAMPLE_IMAGES = 20_000
"""At most so many images make the cells; the others go to the nearest one."""
_SMALLEST_LEVEL, _MAX_LEVELS = 10, 4
_CHUNK_ROWS = 1024
_SEED = 0

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Near:
    """An image that is nearly another one: rows, and their cosine similarity."""

    row: int
    other: int
    similarity: float


@dataclass(frozen=True)
class Cells:
    """Cells of a k-means: the cell of each image, and the centres."""

    labels_N: Ints
    centres_KF: Tensor


def unit_vectors(features_NF: NDArray[np.float32], mean_F: NDArray[np.float32]) -> Tensor:
    """Return vectors of length 1 from the mean, float32 (N, F).

    Features after a rectifier all point one way: from the origin any two would be alike.
    """
    return F.normalize(torch.from_numpy(features_NF - mean_F), dim=1)


def cells_of(unit_NF: Tensor) -> Cells:
    """Return about sqrt(N) cells of unit vectors."""
    num = len(unit_NF)
    chosen = np.sort(numpy_generator(_SEED, "cells").permutation(num)[:SAMPLE_IMAGES])
    num_cells = max(1, round(math.sqrt(num)))
    found = kmeans(unit_NF[chosen], min(num_cells, len(chosen)), seed=_SEED, max_iterations=20)
    return Cells(nearest(unit_NF, found.centres_KD.float()), found.centres_KD.float())


def nearest(unit_NF: Tensor, centres_KF: Tensor) -> Ints:
    """Return the nearest centre of each image; a tie goes to the lower number."""
    parts = [
        torch.cdist(part, centres_KF).argmin(dim=1) for part in torch.split(unit_NF, _CHUNK_ROWS)
    ]
    found: Ints = torch.cat(parts).numpy()
    return found


def near_duplicates(unit_NF: Tensor, cells: Cells, similarity: float) -> list[Near]:
    """Return the images that SemDeDup drops, each with the image that it is nearest to, by row.

    In each cell the images are taken from the outside in; one goes when an image before it is at
    least as alike as `similarity`.
    """
    found = []
    for cell in range(len(cells.centres_KF)):
        rows = np.flatnonzero(cells.labels_N == cell)
        if len(rows) < 2:
            continue
        own_nF = unit_NF[rows]
        distance_n = (own_nF - cells.centres_KF[cell]).square().sum(dim=1)
        order = torch.argsort(-distance_n, stable=True)
        rows, own_nF = rows[order.numpy()], own_nF[order]
        for start in range(0, len(rows), _CHUNK_ROWS):
            chunk_BF = own_nF[start : start + _CHUNK_ROWS]
            alike_BM = chunk_BF @ own_nF[: start + len(chunk_BF)].T
            before = torch.arange(alike_BM.shape[1])[None] < start + torch.arange(len(chunk_BF))[
                :, None
            ]  # fmt: skip
            alike_BM[~before] = -torch.inf
            most_B, which_B = alike_BM.max(dim=1)
            for i in torch.nonzero(most_B >= similarity)[:, 0].tolist():
                row, other = int(rows[start + i]), int(rows[int(which_B[i])])
                found.append(Near(row, other, round(float(most_B[i]), 6)))
    return sorted(found, key=lambda near: near.row)


def leaks(held_AF: Tensor, unit_NF: Tensor, cells: Cells, similarity: float) -> list[Near]:
    """Return held-out images that are nearly an image of their cell; `other` is its row."""
    found = []
    cell_A = nearest(held_AF, cells.centres_KF)
    for cell in np.unique(cell_A).tolist():
        rows, held = np.flatnonzero(cells.labels_N == cell), np.flatnonzero(cell_A == cell)
        if not len(rows):
            continue
        for part in np.split(held, range(_CHUNK_ROWS, len(held), _CHUNK_ROWS)):
            most_B, which_B = (held_AF[part] @ unit_NF[rows].T).max(dim=1)
            for i in torch.nonzero(most_B >= similarity)[:, 0].tolist():
                other = int(rows[int(which_B[i])])
                found.append(Near(int(part[i]), other, round(float(most_B[i]), 6)))
    return sorted(found, key=lambda near: near.row)


def tree_of(cells: Cells) -> list[Ints]:
    """Return the levels above the cells: for each cluster of one level its cluster in the next."""
    levels: list[Ints] = []
    points_KF = cells.centres_KF
    while len(points_KF) > _SMALLEST_LEVEL and len(levels) < _MAX_LEVELS - 1:
        found = kmeans(points_KF, max(2, round(math.sqrt(len(points_KF)))), seed=_SEED)
        levels.append(found.labels_N.numpy())
        points_KF = found.centres_KD.float()
    return levels


def balanced(leaf_N: Ints, levels: Sequence[Ints], num: int) -> Ints:
    """Choose `num` images, sorted rows, evenly over each level of the tree, from the top down.

    Args:
        leaf_N: the leaf of each image that may be chosen.
        levels: of `tree_of`.
        num: how many, in 1..N.
    """
    order = numpy_generator(_SEED, "balanced").permutation(len(leaf_N))
    # For each level from the top, the node of every image; a node's images are shared out below.
    paths = [leaf_N]
    for level in levels:
        paths.append(level[paths[-1]])
    chosen = _choose(order, paths[::-1], num)
    return np.sort(chosen)


def _choose(rows: Ints, paths: Sequence[Ints], num: int) -> Ints:
    if not paths:
        return rows[:num]
    node = paths[0][rows]
    groups = [rows[node == value] for value in np.unique(node)]
    wanted = even_shares(num, [len(group) for group in groups])
    return np.concatenate(
        [_choose(group, paths[1:], n) for group, n in zip(groups, wanted, strict=True)]
    )


def even_shares(num: int, sizes: Sequence[int]) -> list[int]:
    """Share `num` out evenly: no part gets more than its size, what it cannot take goes to others.

    One left over goes to the first of the larger parts.
    """
    shares, left = [0] * len(sizes), num
    open_parts = [i for i, size in enumerate(sizes) if size]
    while left and open_parts:
        each = max(1, left // len(open_parts))
        for i in open_parts:
            given = min(each, sizes[i] - shares[i], left)
            shares[i] += given
            left -= given
        open_parts = [i for i in open_parts if shares[i] < sizes[i]]
    return shares
