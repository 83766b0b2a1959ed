"""Rarity of images without labels, and the choice of images to label first.

Two signals: how far an image is from its nearest neighbours (`knn_distance`), and how much of its
embedding pruning changes (`sdclr.health.disagreement`). `stratified_batch` picks a diverse batch.

Shapes: N images, M reference images, F features, V distinct scores,
B rows of one chunk.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sdclr.kmeans import kmeans

CANDIDATES_PER_ROW, ROWS_PER_CLUSTER = 2, 10
"""Of `stratified_batch`; fixed on the first split of the digits (docs/mining.md)."""
_CHUNK_ROWS = 1024


def knn_distance(
    features_NF: Tensor, reference_MF: Tensor, *, k: int, own_N: Tensor | None = None
) -> Tensor:
    """Return the mean cosine distance to the k nearest reference images, (N,), in [0, 2].

    High where the reference is thin: the inverse of a density (Loftsgaarden and Quesenberry 1965),
    averaged over k so that one near-duplicate does not hide a rare image.

    Args:
        features_NF: need not be normalised.
        reference_MF: a sample of the collection, or all of it.
        k: neighbours, >= 1; fewer where the reference has no more.
        own_N: int64, the row of each image in the reference, -1 for none; an image is not its own
            neighbour.

    Raises:
        ValueError: no reference but the image itself, or k < 1.
    """
    num_own = 0 if own_N is None else int((own_N >= 0).any())
    if k < 1 or len(reference_MF) - num_own < 1:
        raise ValueError(f"needs k >= 1 and another image, got k={k}, M={len(reference_MF)}")
    reference_MF = F.normalize(reference_MF.float(), dim=1)
    k = min(k, len(reference_MF) - num_own)
    distances = []
    for start in range(0, len(features_NF), _CHUNK_ROWS):
        chunk_BF = F.normalize(features_NF[start : start + _CHUNK_ROWS].float(), dim=1)
        similarity_BM = chunk_BF @ reference_MF.T
        if own_N is not None:
            own_B = own_N[start : start + _CHUNK_ROWS]
            known_B = own_B >= 0
            similarity_BM[known_B.nonzero()[:, 0], own_B[known_B]] = -torch.inf
        distances.append(1 - similarity_BM.topk(k, dim=1).values.mean(dim=1))
    return torch.cat(distances).clamp(0, 2)


def rank_share(scores_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return each score's place among all, from 0 (lowest) to 1 (highest); ties share the mean.

    Scores of different scales can be averaged after this. nan counts as the lowest score.
    """
    scores_N = np.where(np.isnan(scores_N), -np.inf, scores_N)
    _, inverse_N, counts_V = np.unique(scores_N, return_inverse=True, return_counts=True)
    place_V = np.cumsum(counts_V) - (counts_V + 1) / 2  # mean of the places that equal scores share
    shares_N: NDArray[np.float64] = place_V[inverse_N] / max(len(scores_N) - 1, 1)
    return shares_N


def stratified_batch(features_NF: Tensor, num: int) -> list[int]:
    """Choose rows that are rare and differ: in turns from clusters of the first 2 x `num` rows.

    Their unit vectors are put into num / 10 clusters. The first row of each cluster comes first,
    then the second ones, and so on, each round in the order of the rows. So a group of alike odd
    images cannot fill the batch, and every image of it is among the rarest.

    Args:
        features_NF: rarest first; need not be normalised.
        num: how many rows; all of them when there are fewer.

    Returns:
        Distinct rows in the order of choice.
    """
    candidates_NF = F.normalize(features_NF[: CANDIDATES_PER_ROW * num].float(), dim=1)
    if not len(candidates_NF):
        return []
    num_clusters = max(1, min(num // ROWS_PER_CLUSTER, len(candidates_NF)))
    num_taken = [0] * num_clusters
    turns = []
    for row, cluster in enumerate(kmeans(candidates_NF, num_clusters).labels_N.tolist()):
        num_taken[cluster] += 1
        turns.append((num_taken[cluster], row))
    return [row for _, row in sorted(turns)[:num]]


def pca_2d(features_NF: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Project on the two directions of largest variance: coordinates (N, 2) and their shares.

    Each axis is turned so that its largest coordinate in magnitude is positive; with fewer than two
    directions the missing coordinates are 0. Shares are of the total variance, in [0, 1].

    Raises:
        ValueError: not a matrix, or fewer than 2 rows.
    """
    if features_NF.ndim != 2 or len(features_NF) < 2:
        raise ValueError(f"needs a matrix of 2 rows or more, got {tuple(features_NF.shape)}")
    x_NF = features_NF.double()
    x_NF = x_NF - x_NF.mean(dim=0)
    left_NR, singular_R, _ = torch.linalg.svd(x_NF, full_matrices=False)
    points_N2 = torch.zeros(len(x_NF), 2, dtype=torch.float64)
    num = min(2, len(singular_R))
    points_N2[:, :num] = left_NR[:, :num] * singular_R[:num]
    peaks_2 = points_N2.gather(0, points_N2.abs().argmax(dim=0, keepdim=True))[0]
    points_N2 *= torch.where(peaks_2 < 0, -1.0, 1.0)
    total = float(singular_R.square().sum())
    shares = [float(s) ** 2 / total if total > 0 else 0.0 for s in singular_R[:num]]
    return points_N2, (shares[0], shares[1] if num == 2 else 0.0)
