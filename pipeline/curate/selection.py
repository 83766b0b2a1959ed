"""Near-duplicates within cells, and a balanced choice from a tree of clusters; no labels.

SemDeDup (Abbas et al. 2023) looks for pairs inside the cells of a k-means only; here an image goes
only for one that stays. The tree is the hierarchical k-means of Vo et al. 2024, without their
resampling steps: clusters of images, clusters of their centres, and so on; at each node the images
wanted are shared out evenly.

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
_CELL_ITERATIONS = 20
_SEED = 0
RULE = (SAMPLE_IMAGES, _SMALLEST_LEVEL, _MAX_LEVELS, _CHUNK_ROWS, _CELL_ITERATIONS, _SEED)
"""The numbers that the tree depends on beside the vectors."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Near:
    """An image that is nearly another one: rows, and their cosine similarity."""

    row: int
    other: int
    similarity: float


@dataclass(frozen=True)
class Selection:
    """Images of a set by their rows: near-duplicates to leave out, and the balanced part."""

    duplicates: list[Near]
    kept_n: Ints


@dataclass(frozen=True)
class Cells:
    """Cells of a k-means: the cell of each image, and the centres."""

    labels_N: Ints
    centres_KF: Tensor


def unit_vectors(features_NF: NDArray[np.float32], mean_F: NDArray[np.float32]) -> Tensor:
    """Return vectors of length 1 from the mean, float32 (N, F).

    Features after a rectifier all point one way: from the origin any two would be alike. A vector
    that equals the mean becomes 0, which is like no other.

    Raises:
        ValueError: the length of a vector overflows, or is lost in rounding.
    """
    from_mean_NF = torch.from_numpy(features_NF - mean_F)
    unit_NF = F.normalize(from_mean_NF, dim=1)
    has_length_N = (torch.linalg.vector_norm(unit_NF, dim=1) - 1).abs() < 1e-3
    if bool((from_mean_NF.any(dim=1) & ~has_length_N).any()):
        raise ValueError("a number is too large or too small")
    return unit_NF


def num_cells(num_images: int) -> int:
    """Return how many cells a set has: about the square root of its images."""
    return max(1, min(round(math.sqrt(num_images)), SAMPLE_IMAGES))


def multiply_adds(num_images: int, dim: int) -> float:
    """Return the work of cells and near-duplicates: of a sample, of all, in cells of even size."""
    cells = num_cells(num_images)
    of_sample = min(num_images, SAMPLE_IMAGES) * cells * (_CELL_ITERATIONS + 2)
    return float(dim) * (of_sample + num_images * cells + num_images * num_images / cells)


def sample_rows(num_images: int) -> Ints:
    """Return the sorted rows of the images that make the cells."""
    found: Ints = np.sort(numpy_generator(_SEED, "cells").permutation(num_images)[:SAMPLE_IMAGES])
    return found


def cell_centres(sample_MF: Tensor, num: int) -> Tensor:
    """Return the centres of `num` cells of unit vectors, float32 (num, F)."""
    return kmeans(sample_MF, num, seed=_SEED, max_iterations=_CELL_ITERATIONS).centres_KD.float()


def nearest(unit_NF: Tensor, centres_KF: Tensor) -> Ints:
    """Return the nearest centre of each image; a tie goes to the lower number."""
    parts = [
        torch.cdist(part, centres_KF).argmin(dim=1) for part in torch.split(unit_NF, _CHUNK_ROWS)
    ]
    found: Ints = torch.cat(parts).numpy()
    return found


def near_duplicates(unit_NF: Tensor, cells: Cells, similarity: float) -> list[Near]:
    """Return the images to leave out, each with the one that stays and is nearest, by row.

    In each cell the images are taken from the outside in, as SemDeDup takes them. One goes when an
    image before it that stays is at least as alike as `similarity`. SemDeDup compares with images
    that go as well: over a chain of them an image may go for one that it is not like.
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
        kept_m = np.zeros(0, np.int64)  # places in `rows`
        for start in range(0, len(rows), _CHUNK_ROWS):
            chunk_BF = own_nF[start : start + _CHUNK_ROWS]
            # Places of the images that may stay: those before this chunk that do, then its own.
            places = np.append(kept_m, np.arange(start, start + len(chunk_BF)))
            alike_BM = chunk_BF @ (own_nF[places] if start else chunk_BF).T
            stays_M = _stays(alike_BM.numpy() >= similarity, len(kept_m))
            alike_BM[:, torch.from_numpy(~stays_M)] = -torch.inf
            own = alike_BM[:, len(kept_m) :]
            own[torch.ones_like(own, dtype=torch.bool).triu()] = -torch.inf
            most_B, which_B = alike_BM.max(dim=1)
            for i in np.flatnonzero(~stays_M[len(kept_m) :]).tolist():
                row, other = int(rows[start + i]), int(rows[places[int(which_B[i])]])
                found.append(Near(row, other, round(float(most_B[i]), 6)))
            kept_m = places[stays_M]
    return sorted(found, key=lambda near: near.row)


def _stays(near_BM: NDArray[np.bool_], num_kept: int) -> NDArray[np.bool_]:
    """Return which of M images stay: the first `num_kept`, and of the other B each in its turn."""
    before_BM = np.tril(near_BM, k=num_kept - 1)
    stays_M = np.ones(near_BM.shape[1], bool)
    # Only images that are near an earlier one wait for what becomes of it.
    for i in np.flatnonzero(before_BM.any(axis=1)).tolist():
        stays_M[num_kept + i] = not bool((before_BM[i] & stays_M).any())
    return stays_M


def select(
    unit_NF: Tensor, cells: Cells, levels: Sequence[Ints], *, keep: int | None, similarity: float
) -> Selection:
    """Return the near-duplicates, and `keep` of the other images; None = half of them.

    Args:
        unit_NF: all vectors, of length 1.
        cells: of all images.
        levels: as `balanced` takes them.
        keep: at least 1; fewer are kept where fewer are no near-duplicates.
        similarity: cosine from which on two images are near-duplicates.
    """
    duplicates = near_duplicates(unit_NF, cells, similarity)
    free_n = np.setdiff1d(np.arange(len(unit_NF)), [near.row for near in duplicates])
    wanted = min(keep, len(free_n)) if keep is not None else max(1, len(free_n) // 2)
    kept_n: Ints = free_n[balanced(cells.labels_N[free_n], levels, wanted)]
    return Selection(duplicates, kept_n)


def across_sets(held_AF: Tensor, unit_NF: Tensor, cells: Cells, similarity: float) -> list[Near]:
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


def has_level_above(points_KF: Tensor, num_levels: int) -> bool:
    """Return whether clusters are clustered again, with `num_levels` above the cells so far."""
    return len(points_KF) > _SMALLEST_LEVEL and num_levels < _MAX_LEVELS - 1


def num_above(num_points: int) -> int:
    """Return how many clusters the level above so many centres has."""
    return max(2, round(math.sqrt(num_points)))


def level_above(points_KF: Tensor) -> tuple[Ints, Tensor]:
    """Return the cluster of each centre of a level, and the centres of these clusters."""
    found = kmeans(points_KF, num_above(len(points_KF)), seed=_SEED)
    return found.labels_N.numpy(), found.centres_KD.float()


def balanced(leaf_N: Ints, levels: Sequence[Ints], num: int) -> Ints:
    """Choose `num` images, sorted rows, evenly over each level of the tree, from the top down.

    Args:
        leaf_N: the leaf of each image that may be chosen.
        levels: for each cluster of one level its cluster in the next, from the leaves up.
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
