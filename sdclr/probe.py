"""Frozen-feature evaluation: cross-validated linear probe, cosine kNN, per-class accuracy.

Features are extracted once; nothing here touches the network. Everything runs on the device of the
features, at the precision described in `sdclr.logistic`.

Shapes: N training images, M test images, B test images of one chunk, D features, C classes,
K neighbours, R principal axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sdclr.logistic import (
    LinearProbe,
    as_float,
    check_training_rows,
    fit_logistic,
    principal_axes,
)

__all__ = [
    "FALLBACK_L2",
    "L2_GRID",
    "LinearProbe",
    "ProbeResult",
    "cross_validated_l2",
    "fit_logistic",
    "knn_predict",
    "linear_probe",
    "per_class_accuracy",
    "standardise",
]

# The penalties tried by `linear_probe`, for standardised features and the mean loss.
L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Used where no class, or only one, has the two samples that cross-validation needs: one shot per
# class is linearly separable and its predictions hardly depend on the penalty.
FALLBACK_L2 = 1e-2
# Cross-validation looks at no more rows than this; the final fit always uses all.
MAX_CV_ROWS = 10_000
# Enough for fits that are only compared by accuracy.
_CV_GRAD_TOLERANCE = 1e-5
# Largest chunk of similarities held at once by `knn_predict`: 128 MiB in float32.
_MAX_CHUNK_ELEMENTS = 2**25


@dataclass(frozen=True)
class ProbeResult:
    """Test predictions (M,), the penalty chosen inside the training labels, and the fit's end."""

    predictions_M: Tensor
    l2: float
    converged: bool


def standardise(train_ND: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Standardise all inputs by the mean and population std of the training features.

    A feature that is constant over the training rows, up to rounding, becomes 0 in every output.
    """
    train_ND = as_float(train_ND)
    std_D, mean_D = torch.std_mean(train_ND, dim=0, correction=0)
    rounding_D = 8 * torch.finfo(train_ND.dtype).eps * train_ND.abs().amax(dim=0)
    constant_D = std_D <= rounding_D
    scale_D = torch.where(constant_D, 0.0, 1 / std_D.masked_fill(constant_D, 1.0))
    return tuple((x.to(train_ND.dtype) - mean_D) * scale_D for x in (train_ND, *others))


def cross_validated_l2(
    features_ND: Tensor,
    labels_N: Tensor,
    *,
    num_classes: int,
    l2_grid: Sequence[float] = L2_GRID,
    num_folds: int,
    seed: int,
    max_rows: int = MAX_CV_ROWS,
) -> float:
    """Return the penalty with the best stratified cross-validated balanced accuracy.

    Out-of-fold predictions of all folds are pooled, and the score is the mean of the per-class
    accuracies over them; of equal scores the larger penalty wins. More than `max_rows` rows are
    thinned per class (seeded) first. A penalty is given for a fit on all N rows: on n of them it is
    used as l2 * N / n, which keeps its weight against the *summed* loss (scikit-learn's C).

    Classes with fewer samples than folds are held out in as many folds as they have samples. A
    class with one sample always trains and is never scored. With fewer than two classes to
    score, or a grid of one, nothing is fitted: the answer is `FALLBACK_L2`, or the one entry.

    Args:
        features_ND: standardised training features. Only training rows: no test data in here.
        labels_N: classes 0..num_classes-1.
        num_classes: C.
        l2_grid: penalties > 0, any order.
        num_folds: >= 2.
        seed: of fold membership and thinning.
        max_rows: rows used at most (each class keeps two where it has them).

    Raises:
        ValueError: empty grid, fewer than 2 folds, or input that `fit_logistic` refuses.
    """
    if not l2_grid or num_folds < 2:
        raise ValueError(f"needs a grid and >= 2 folds, got {len(l2_grid)} and {num_folds}")
    features_ND = as_float(features_ND)
    labels_N = labels_N.to(features_ND.device, torch.int64)
    check_training_rows(features_ND, labels_N, num_classes)
    if len(l2_grid) == 1:
        return float(l2_grid[0])
    rows, fold = _stratified_folds(labels_N.cpu(), num_folds, max_rows, seed)
    scored = fold >= 0
    if len(torch.unique(labels_N.cpu()[rows[scored]])) < 2:
        return FALLBACK_L2
    num_all = len(labels_N)
    rows, fold = rows.to(labels_N.device), fold.to(labels_N.device)
    features, labels = features_ND[rows], labels_N[rows]
    path = sorted({float(l2) for l2 in l2_grid}, reverse=True)
    predictions = {l2: torch.full_like(labels, -1) for l2 in path}
    for held_out in range(int(fold.max()) + 1):
        is_train, probe = fold != held_out, None
        x, y, x_held = features[is_train], labels[is_train], features[~is_train]
        for l2 in path:  # from strong to weak, each fit starting from its neighbour
            probe = fit_logistic(
                x,
                y,
                num_classes=num_classes,
                l2=l2 * num_all / len(x),
                grad_tolerance=_CV_GRAD_TOLERANCE,
                init=probe,
            )
            predictions[l2][~is_train] = probe.predict(x_held)
    scored = fold >= 0
    scores = {
        l2: float(np.nanmean(per_class_accuracy(p[scored], labels[scored], num_classes)))
        for l2, p in predictions.items()
    }
    return max(path, key=lambda l2: (scores[l2], l2))


def linear_probe(
    train_ND: Tensor,
    train_labels_N: Tensor,
    test_MD: Tensor,
    *,
    num_classes: int,
    num_folds: int = 5,
    seed: int,
    l2_grid: Sequence[float] = L2_GRID,
) -> ProbeResult:
    """Standardise, choose the penalty by cross-validation, fit on all training rows, predict.

    All of it on the principal axes of the training features, where fits are quick and the same.

    The test features are only shifted, scaled and classified. See the functions above for details
    and errors.
    """
    train_ND, test_MD = standardise(train_ND, test_MD)
    axes_DR = principal_axes(train_ND)
    train_NR, test_MR = train_ND @ axes_DR, test_MD @ axes_DR
    l2 = cross_validated_l2(
        train_NR,
        train_labels_N,
        num_classes=num_classes,
        l2_grid=l2_grid,
        num_folds=num_folds,
        seed=seed,
    )
    probe = fit_logistic(train_NR, train_labels_N, num_classes=num_classes, l2=l2)
    return ProbeResult(probe.predict(test_MR), l2, probe.converged)


def knn_predict(
    train_ND: Tensor, train_labels_N: Tensor, test_MD: Tensor, *, num_classes: int, k: int = 20
) -> Tensor:
    """Predict classes (M,) by majority vote of the k most similar (cosine) training rows.

    Equal votes go to the larger summed similarity, then to the lower class index. k above N uses
    all N rows. A zero row has similarity 0 to everything. Memory is bounded by chunking over M.

    Raises:
        ValueError: shapes disagree, a label is out of range, k < 1, or a feature is not finite.
    """
    train_ND = as_float(train_ND)
    labels_N = train_labels_N.to(train_ND.device, torch.int64)
    check_training_rows(train_ND, labels_N, num_classes)
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    if not bool(test_MD.isfinite().all()):
        raise ValueError("a test feature is not finite")
    keys_ND = F.normalize(train_ND, dim=1)
    queries_MD = F.normalize(test_MD.to(keys_ND.dtype), dim=1)
    chunk_rows = max(1, _MAX_CHUNK_ELEMENTS // len(keys_ND))
    votes = [
        _vote(queries @ keys_ND.T, labels_N, num_classes, min(k, len(keys_ND)))
        for queries in torch.split(queries_MD, chunk_rows)
    ]
    return torch.cat(votes)


def per_class_accuracy(
    predictions_M: Tensor, labels_M: Tensor, num_classes: int
) -> NDArray[np.float64]:
    """Return the fraction of correct predictions per class (C,); nan without test rows.

    Raises:
        ValueError: shapes disagree, or a label is outside 0..num_classes-1.
    """
    predictions, labels = predictions_M.cpu().numpy(), labels_M.cpu().numpy()
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(f"shapes disagree: {predictions.shape} and {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}")
    total_C = np.bincount(labels, minlength=num_classes).astype(np.float64)
    correct_C = np.bincount(labels[predictions == labels], minlength=num_classes)
    total_C[total_C == 0] = np.nan
    return correct_C / total_C


def _stratified_folds(
    labels_N: Tensor, num_folds: int, max_rows: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the kept rows, ascending, and the fold of each; -1 for the only sample of a class."""
    generator = torch.Generator().manual_seed(seed)
    keep_frac = min(1.0, max_rows / len(labels_N))
    fold_N = torch.full_like(labels_N, -2)
    for label in torch.unique(labels_N):
        rows = (labels_N == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        rows = rows[: max(2, int(len(rows) * keep_frac))]
        fold_N[rows] = torch.arange(len(rows)) % num_folds if len(rows) > 1 else -1
    kept = (fold_N > -2).nonzero()[:, 0]
    return kept, fold_N[kept]


def _vote(similarity_BN: Tensor, labels_N: Tensor, num_classes: int, k: int) -> Tensor:
    nearest = similarity_BN.topk(k, dim=1)
    labels_BK = labels_N[nearest.indices]
    shape = (len(similarity_BN), num_classes)
    zeros_BC = similarity_BN.new_zeros(shape)
    votes_BC = zeros_BC.scatter_add(1, labels_BK, torch.ones_like(nearest.values))
    closeness_BC = zeros_BC.scatter_add(1, labels_BK, nearest.values)
    leads_BC = votes_BC == votes_BC.amax(dim=1, keepdim=True)
    return closeness_BC.masked_fill(~leads_BC, float("-inf")).argmax(dim=1)


def group_confusion(
    predictions_M: Tensor, labels_M: Tensor, groups: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Return the shares of each group's images predicted as each group: (G, G), rows sum to 1.

    Entry (g, h) is the share of the images of group g that are taken for a class of group h, mean
    over the classes of g; the diagonal counts every class of the own group, not only the right one.
    A class without images is left out; a group without any is nan.

    Args:
        predictions_M: class index that each test image is taken for.
        labels_M: its own.
        groups: disjoint; together they hold every class that is predicted.
    """
    labels, predictions = labels_M.cpu().numpy(), predictions_M.cpu().numpy()
    to_group = np.stack([np.isin(predictions, list(group)) for group in groups], axis=1)
    rows = []
    for group in groups:
        members = [to_group[labels == c].mean(axis=0) for c in group if (labels == c).any()]
        rows.append(np.mean(members, axis=0) if members else np.full(len(groups), np.nan))
    return np.array(rows)
