"""Frozen-feature evaluation: cross-validated linear probe and cosine kNN.

Features are extracted once; nothing here touches the network. Everything runs on the device of the
features, at the precision described in `sdclr.logistic`.

Shapes: N training images, M test images, B test images of one chunk, D features, C classes,
K neighbours, R principal axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sdclr.crossval import L2_GRID, CrossValidation
from sdclr.logistic import (
    as_float,
    check_training_rows,
    fit_logistic,
    principal_axes,
    suitable_threads,
)
from sdclr.logistic_batch import fit_small

# Largest chunk of similarities held at once by `knn_predict`: 128 MiB in float32.
_MAX_CHUNK_ELEMENTS = 2**25


@dataclass(frozen=True)
class ProbeResult:
    """Test predictions (M,), the penalty chosen inside the training labels, and the fit's end."""

    predictions_M: Tensor
    l2: float
    converged: bool


def standardise(train_ND: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Return all inputs, shifted and scaled by mean and population std of the training features.

    A feature that is constant over the training rows, up to rounding, becomes 0 in every output.
    """
    train_ND = as_float(train_ND)
    std_D, mean_D = torch.std_mean(train_ND, dim=0, correction=0)
    rounding_D = 8 * torch.finfo(train_ND.dtype).eps * train_ND.abs().amax(dim=0)
    constant_D = std_D <= rounding_D
    scale_D = torch.where(constant_D, 0.0, 1 / std_D.masked_fill(constant_D, 1.0))
    return tuple((x.to(train_ND.dtype) - mean_D) * scale_D for x in (train_ND, *others))


def on_axes(train_ND: Tensor, test_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets standardised and on the principal axes of the training features (N, R).

    There fits are quick and end at the same classifier. The test features are only shifted, scaled
    and turned.
    """
    train_ND, test_MD = standardise(train_ND, test_MD)
    axes_DR = principal_axes(train_ND)
    return train_ND @ axes_DR, test_MD @ axes_DR


def final_probe(
    train_NR: Tensor,
    train_labels_N: Tensor,
    test_MR: Tensor,
    validation: CrossValidation,
    fold_predictions: Sequence[Tensor],
) -> ProbeResult:
    """Return what the penalty that the folds chose predicts, fitted on all training rows.

    Args:
        train_NR: of `on_axes`.
        test_MR: of `on_axes`.
        train_labels_N: classes of the training rows.
        validation: of these labels.
        fold_predictions: of every fold in its order.
    """
    l2 = validation.choose(train_labels_N, fold_predictions)
    fit = fit_small if validation.num_folds and validation.is_small else fit_logistic
    probe = fit(train_NR, train_labels_N, num_classes=validation.num_classes, l2=l2)
    return ProbeResult(probe.predict(test_MR), l2, probe.converged)


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

    `on_axes`, `CrossValidation.predict` and `final_probe` are its parts, for callers that fit the
    folds in several processes. See them for details and errors.
    """
    validation = CrossValidation.of(
        train_labels_N, num_classes=num_classes, l2_grid=l2_grid, num_folds=num_folds, seed=seed
    )
    with suitable_threads(train_ND, num_classes):
        train_NR, test_MR = on_axes(train_ND, test_MD)
        check_training_rows(train_NR, train_labels_N, num_classes)
        folds = validation.predict_all(train_NR, train_labels_N)
        return final_probe(train_NR, train_labels_N, test_MR, validation, folds)


def knn_predict(
    train_ND: Tensor, train_labels_N: Tensor, test_MD: Tensor, *, num_classes: int, k: int = 20
) -> Tensor:
    """Return classes (M,) by majority vote of the k training rows of largest cosine similarity.

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


def _vote(similarity_BN: Tensor, labels_N: Tensor, num_classes: int, k: int) -> Tensor:
    nearest = similarity_BN.topk(k, dim=1)
    labels_BK = labels_N[nearest.indices]
    shape = (len(similarity_BN), num_classes)
    zeros_BC = similarity_BN.new_zeros(shape)
    votes_BC = zeros_BC.scatter_add(1, labels_BK, torch.ones_like(nearest.values))
    closeness_BC = zeros_BC.scatter_add(1, labels_BK, nearest.values)
    leads_BC = votes_BC == votes_BC.amax(dim=1, keepdim=True)
    return closeness_BC.masked_fill(~leads_BC, float("-inf")).argmax(dim=1)
