"""Measures of a representation that need no labels.

Take them on a fixed subset with fixed views, with the dense network in evaluation mode. They are
comparable across temperatures and prune ratios, which the training loss is not.

Shapes: B or N images, D features. Features need not be normalised unless a docstring says so;
half-precision inputs are computed in float32. Inputs that are not finite give nan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows of a similarity matrix held at once.
_CHUNK_ROWS = 1024


def disagreement(dense_BD: Tensor, pruned_BD: Tensor) -> Tensor:
    """Return 1 - cosine of the dense and the pruned view of each image: (B,), in [0, 2].

    This is SDCLR's own signal for easily forgotten, typically rare images (Jiang et al. 2021):
    feed both networks the same view. Equal directions give 0, opposite ones 2; a zero row gives 1.
    """
    dense_BD, pruned_BD = _same_shape(dense_BD, pruned_BD)
    cosine_B = (F.normalize(dense_BD, dim=1) * F.normalize(pruned_BD, dim=1)).sum(dim=1)
    return (1 - cosine_B).clamp(0, 2)


def rankme(features_ND: Tensor) -> float:
    """Return the effective rank: exp of the entropy of the singular values scaled to sum 1.

    Garrido et al. 2023, eq. 1-2, without the paper's 1e-7 inside the logarithm (0 log 0 is 0),
    which moves the value by less than 0.1 % for D <= 512. Features are not centred. Between 1
    (all rows on one line) and min(N, D); 0 for all-zero features. Use N well above D.

    Raises:
        ValueError: not a matrix, or an empty one.
    """
    if features_ND.ndim != 2 or features_ND.numel() == 0:
        raise ValueError(f"needs a non-empty (N, D) matrix, got {tuple(features_ND.shape)}")
    features_ND = _as_float(features_ND)
    if not bool(features_ND.isfinite().all()):
        return math.nan
    singular = torch.linalg.svdvals(features_ND)
    total = singular.sum()
    if total == 0:
        return 0.0
    p = singular / total
    return float(torch.exp(-torch.xlogy(p, p).sum()))


def alpha_req(features_ND: Tensor) -> float:
    """Return the decay alpha of the covariance spectrum (Agrawal et al. 2022).

    The slope, with the sign turned, of the least-squares line through (log j, log eigenvalue_j)
    over all eigenvalues above rounding. About 1 is healthy; much more means that few directions
    carry everything, near 0 that all carry the same. nan with fewer than two such eigenvalues.

    Raises:
        ValueError: not a matrix, or fewer than 2 rows.
    """
    if features_ND.ndim != 2 or len(features_ND) < 2:
        raise ValueError(f"needs a matrix of 2 rows or more, got {tuple(features_ND.shape)}")
    x_ND = _as_float(features_ND).double()
    if not bool(x_ND.isfinite().all()):
        return math.nan
    precision = torch.finfo(_as_float(features_ND).dtype).eps * max(x_ND.shape)
    largest = torch.linalg.matrix_norm(x_ND, ord=2)  # of the data before centring: what was rounded
    singular = torch.linalg.svdvals(x_ND - x_ND.mean(dim=0))
    singular = singular[singular > precision * largest]
    if len(singular) < 2:
        return math.nan
    log_rank = torch.arange(1, len(singular) + 1, dtype=torch.float64).to(singular.device).log()
    log_value = 2 * singular.log()
    centred = log_rank - log_rank.mean()
    return -float((centred * log_value).sum() / centred.square().sum())


def dead_frac(features_ND: Tensor, *, tolerance: float = 1e-3) -> float:
    """Return the fraction of dimensions with a std below `tolerance` times the rms of all stds.

    In [0, 1]; a set of equal rows gives 1.

    Raises:
        ValueError: not a matrix, or an empty one.
    """
    if features_ND.ndim != 2 or features_ND.numel() == 0:
        raise ValueError(f"needs a non-empty (N, D) matrix, got {tuple(features_ND.shape)}")
    x_ND = _as_float(features_ND).double()
    if not bool(x_ND.isfinite().all()):
        return math.nan
    std_D = x_ND.std(dim=0, correction=0)
    return float((std_D <= tolerance * std_D.square().mean().sqrt()).double().mean())


def view_retrieval(view1_ND: Tensor, view2_ND: Tensor) -> float:
    """Return the fraction of images whose view 1 is nearest (cosine) to their own view 2.

    The mean of `retrieval_hits`: in [0, 1], 1/N for collapsed features.
    """
    return float(retrieval_hits(view1_ND, view2_ND).mean())


def retrieval_hits(view1_ND: Tensor, view2_ND: Tensor) -> Tensor:
    """Return 1 for each image whose view 1 is nearest (cosine) to its own view 2, else 0.

    All N view-2 features compete. A tie of t features for the first place counts 1/t, so collapsed
    features score chance, 1/N. Returns (N,) float64 on the CPU.

    Raises:
        ValueError: the shapes differ or N = 0.
    """
    view1_ND, view2_ND = _same_shape(view1_ND, view2_ND)
    if not bool((view1_ND.isfinite() & view2_ND.isfinite()).all()):
        return torch.full((len(view1_ND),), math.nan, dtype=torch.float64)
    queries_ND, keys_ND = F.normalize(view1_ND, dim=1), F.normalize(view2_ND, dim=1)
    hits = []
    for start in range(0, len(queries_ND), _CHUNK_ROWS):
        similarity_BN = queries_ND[start : start + _CHUNK_ROWS] @ keys_ND.T
        own_B1 = similarity_BN.diagonal(offset=start)[:, None]
        num_better_B = (similarity_BN > own_B1).sum(dim=1)
        num_equal_B = (similarity_BN == own_B1).sum(dim=1)  # itself included
        hits.append(((num_better_B == 0) / num_equal_B).double().cpu())
    return torch.cat(hits)


@dataclass(frozen=True)
class TercileBalance:
    """View retrieval by size of cluster: fractions in [0, 1], nan where there is no cluster.

    Args:
        few, medium, many: mean over the clusters of the smallest, middle and largest third.
        std: population standard deviation of the three; 0 is even. It can be gamed by features that
            are bad everywhere, so look at `few` as well.
    """

    few: float
    medium: float
    many: float
    std: float


def tercile_balance(hits_N: Tensor, clusters_N: Tensor) -> TercileBalance:
    """Compute Many, Medium and Few without labels, with clusters in place of classes.

    Clusters are ranked by size (equal sizes by number). With K clusters that have images, the K//3
    smallest are few, the next K//3 medium, the rest many: the rule of the labelled groups.

    Args:
        hits_N: of `retrieval_hits`.
        clusters_N: int64 >= 0, the cluster of each image; see `sdclr.kmeans.kmeans`.

    Raises:
        ValueError: the lengths differ or N = 0.
    """
    if hits_N.shape != clusters_N.shape or hits_N.ndim != 1 or len(hits_N) == 0:
        raise ValueError(f"needs one cluster a row, got {hits_N.shape}, {clusters_N.shape}")
    sizes_K = torch.bincount(clusters_N)
    totals_K = torch.zeros(len(sizes_K), dtype=torch.float64)
    totals_K.index_add_(0, clusters_N, hits_N.double())
    order_K = torch.argsort(sizes_K, stable=True)
    order_K = order_K[sizes_K[order_K] > 0]
    accuracy_K = totals_K[order_K] / sizes_K[order_K]
    third = len(accuracy_K) // 3
    parts = accuracy_K[:third], accuracy_K[third : 2 * third], accuracy_K[2 * third :]
    few, medium, many = (float(part.mean()) if len(part) else math.nan for part in parts)
    std = float(torch.tensor([few, medium, many], dtype=torch.float64).std(correction=0))
    return TercileBalance(few, medium, many, std)


def mean_cosine(features_ND: Tensor) -> float:
    """Return the mean cosine of two different rows over all pairs, in [-1, 1].

    1 for collapsed features. Features are not centred, so those behind a ReLU are above 0 in any
    network. A zero row has cosine 0 with every other.

    Raises:
        ValueError: not a matrix, or fewer than 2 rows.
    """
    if features_ND.ndim != 2 or len(features_ND) < 2:
        raise ValueError(f"needs a matrix of 2 rows or more, got {tuple(features_ND.shape)}")
    unit_ND = F.normalize(_as_float(features_ND).double(), dim=1)
    num_rows = len(unit_ND)
    total = unit_ND.sum(dim=0).square().sum() - unit_ND.square().sum()
    return float(total / (num_rows * (num_rows - 1)))


def alignment(view1_ND: Tensor, view2_ND: Tensor, *, power: float = 2.0) -> float:
    """Return the mean distance^power of the two views on the unit sphere; low is invariant.

    Wang and Isola 2020, section 4.1.2 (alpha = `power`). In [0, 2^power]; 0 for equal views.

    Raises:
        ValueError: the shapes differ, N = 0, or power <= 0.
    """
    if not power > 0:
        raise ValueError(f"power must be > 0, got {power}")
    view1_ND, view2_ND = _same_shape(view1_ND, view2_ND)
    difference_ND = F.normalize(view1_ND, dim=1) - F.normalize(view2_ND, dim=1)
    return float(difference_ND.norm(dim=1).pow(power).mean())


def uniformity(features_ND: Tensor, *, t: float = 2.0) -> float:
    """Return the log of the mean of exp(-t * squared distance) over all pairs on the sphere.

    Wang and Isola 2020, section 4.1.2. In [-4t, 0]: 0 for collapsed features, the lower the more
    evenly they cover the sphere (t = 2 and many random directions in high D: close to -4).

    Raises:
        ValueError: not a matrix, fewer than 2 rows, or t <= 0.
    """
    if features_ND.ndim != 2 or len(features_ND) < 2 or not t > 0:
        raise ValueError(f"needs (N >= 2, D) and t > 0, got {tuple(features_ND.shape)}, {t}")
    unit_ND = F.normalize(_as_float(features_ND), dim=1)
    num_rows = len(unit_ND)
    parts = []
    for start in range(0, num_rows, _CHUNK_ROWS):
        squared_BN = (2 - 2 * unit_ND[start : start + _CHUNK_ROWS] @ unit_ND.T).clamp_min(0)
        squared_BN.diagonal(offset=start).fill_(math.inf)  # a row is no pair with itself
        parts.append(torch.logsumexp(-t * squared_BN.double().flatten(), dim=0))
    return float(torch.logsumexp(torch.stack(parts), dim=0)) - math.log(num_rows * (num_rows - 1))


def _as_float(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.to(torch.float32)


def _same_shape(first_ND: Tensor, second_ND: Tensor) -> tuple[Tensor, Tensor]:
    if first_ND.shape != second_ND.shape or first_ND.ndim != 2 or len(first_ND) == 0:
        raise ValueError(
            f"needs two (N, D) matrices of one shape with N >= 1, "
            f"got {tuple(first_ND.shape)} and {tuple(second_ND.shape)}"
        )
    return _as_float(first_ND), _as_float(second_ND)
