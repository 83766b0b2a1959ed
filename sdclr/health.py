"""Measures of a representation that need no labels.

Take them on a fixed subset with fixed views, with the dense network in evaluation mode. They are
comparable across temperatures and prune ratios, which the training loss is not.

Shapes: B or N images, D features. Features need not be normalised unless a docstring says so;
half-precision inputs are computed in float32. Inputs that are not finite give nan.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows of a similarity matrix held at once.
_CHUNK_ROWS = 1024


def disagreement(dense_BD: Tensor, pruned_BD: Tensor) -> Tensor:
    """How differently the pruned network sees each image: 1 - cosine, (B,), in [0, 2].

    This is SDCLR's own signal for easily forgotten, typically rare images (Jiang et al. 2021):
    feed both networks the same view. Equal directions give 0, opposite ones 2; a zero row gives 1.
    """
    dense_BD, pruned_BD = _same_shape(dense_BD, pruned_BD)
    cosine_B = (F.normalize(dense_BD, dim=1) * F.normalize(pruned_BD, dim=1)).sum(dim=1)
    return (1 - cosine_B).clamp(0, 2)


def rankme(features_ND: Tensor) -> float:
    """Effective rank: exp of the entropy of the singular values that are scaled to sum 1.

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


def view_retrieval(view1_ND: Tensor, view2_ND: Tensor) -> float:
    """Fraction of images whose view-1 feature is nearest (cosine) to its own view-2 feature.

    All N view-2 features compete. A tie of t features for the first place counts 1/t, so collapsed
    features score chance, 1/N. In [0, 1].

    Raises:
        ValueError: the shapes differ or N = 0.
    """
    view1_ND, view2_ND = _same_shape(view1_ND, view2_ND)
    if not bool((view1_ND.isfinite() & view2_ND.isfinite()).all()):
        return math.nan
    queries_ND, keys_ND = F.normalize(view1_ND, dim=1), F.normalize(view2_ND, dim=1)
    hits = 0.0
    for start in range(0, len(queries_ND), _CHUNK_ROWS):
        similarity_BN = queries_ND[start : start + _CHUNK_ROWS] @ keys_ND.T
        own_B1 = similarity_BN.diagonal(offset=start)[:, None]
        num_better_B = (similarity_BN > own_B1).sum(dim=1)
        num_equal_B = (similarity_BN == own_B1).sum(dim=1)  # itself included
        hits += float(((num_better_B == 0) / num_equal_B).double().sum())
    return hits / len(queries_ND)


def alignment(view1_ND: Tensor, view2_ND: Tensor, *, power: float = 2.0) -> float:
    """Mean distance^power of the two views on the unit sphere; the lower, the more invariant.

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
    """Log of the mean of exp(-t * squared distance) over all pairs i != j on the unit sphere.

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
