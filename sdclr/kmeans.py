"""K-means, deterministic: equal inputs and seeds give equal clusters.

k-means++ seeding (Arthur and Vassilvitskii 2007), then Lloyd's iterations until nothing changes.

Shapes: N points, D dimensions, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdclr.seeds import torch_generator


@dataclass(frozen=True)
class Clusters:
    """Result of k-means.

    Args:
        labels_N: int64 on the CPU; a tie goes to the lower number. A cluster may be empty.
        centres_KD: float64 on the CPU.
        inertia: sum of the squared distances to the own centre.
    """

    labels_N: Tensor
    centres_KD: Tensor
    inertia: float


def kmeans(
    points_ND: Tensor, num_clusters: int, *, seed: int = 0, max_iterations: int = 50
) -> Clusters:
    """Find at most `num_clusters` clusters by Euclidean distance, in float64 on the CPU.

    An empty cluster keeps its centre. Fewer distinct points than clusters leave some empty.

    Raises:
        ValueError: not a finite, non-empty matrix, or num_clusters outside 1..N.
    """
    if points_ND.ndim != 2 or points_ND.numel() == 0 or not bool(points_ND.isfinite().all()):
        raise ValueError(f"needs a finite, non-empty (N, D) matrix, got {tuple(points_ND.shape)}")
    if not 1 <= num_clusters <= len(points_ND):
        raise ValueError(f"num_clusters must be in 1..{len(points_ND)}, got {num_clusters}")
    points_ND = points_ND.detach().double().cpu()
    centres_KD = _seeds(points_ND, num_clusters, torch_generator(seed, "kmeans"))
    labels_N = _nearest(points_ND, centres_KD)
    for _ in range(max_iterations):
        sizes_K = torch.bincount(labels_N, minlength=num_clusters)
        totals_KD = torch.zeros_like(centres_KD).index_add_(0, labels_N, points_ND)
        filled_K1 = (sizes_K > 0)[:, None]
        centres_KD = torch.where(filled_K1, totals_KD / sizes_K[:, None].clamp_min(1), centres_KD)
        before_N, labels_N = labels_N, _nearest(points_ND, centres_KD)
        if torch.equal(before_N, labels_N):
            break
    return Clusters(labels_N, centres_KD, float((points_ND - centres_KD[labels_N]).square().sum()))


def _seeds(points_ND: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Choose first centres by k-means++: each is a point drawn by its squared distance."""
    first = int(torch.randint(len(points_ND), (1,), generator=generator))
    chosen = [first]
    squared_N = (points_ND - points_ND[first]).square().sum(dim=1)
    for _ in range(num_clusters - 1):
        if not bool((squared_N > 0).any()):  # every point is a centre already
            chosen.append(first)
            continue
        chosen.append(int(torch.multinomial(squared_N, 1, generator=generator)))
        distance_N = (points_ND - points_ND[chosen[-1]]).square().sum(dim=1)
        squared_N = torch.minimum(squared_N, distance_N)
    return points_ND[chosen]


def _nearest(points_ND: Tensor, centres_KD: Tensor) -> Tensor:
    # |x|^2 is the same for every centre, so it is left out; argmin takes the first of equals.
    distance_NK = centres_KD.square().sum(dim=1) - 2 * points_ND @ centres_KD.T
    return distance_NK.argmin(dim=1)
