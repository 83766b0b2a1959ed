"""The penalty of a linear probe, chosen by stratified cross-validation inside the training labels.

The folds are independent of each other, so a caller may fit them wherever it likes; those of a
small problem are fitted together, which takes a fraction of the time:

    validation = CrossValidation.of(labels_N, num_classes=C, num_folds=5, seed=0)
    parts = validation.predict_all(features_ND, labels_N)
    l2 = validation.choose(labels_N, parts)

Small problems of several probes, such as those of few-shot draws, are fitted together by
`predict_together`.

Shapes: N training images, n of them looked at, D features, C classes, L penalties, h images of one
fold, G probes, P problems: all folds of all probes with all penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdclr.accuracy import per_class_accuracy
from sdclr.logistic import as_float, fit_logistic
from sdclr.logistic_batch import fit_together

# The penalties that are tried, for standardised features and the mean loss.
L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Used where no class, or only one, has the two samples that cross-validation needs: one shot per
# class is linearly separable and its predictions hardly depend on the penalty.
FALLBACK_L2 = 1e-2
# Cross-validation looks at no more rows than this; the final fit always uses all.
MAX_CV_ROWS = 10_000
# Products of problems, classes and rows up to which all problems are fitted together: above it, a
# fit starts from that of its neighbour on the path, and needs fewer iterations.
MOST_TOGETHER = 2**19
# Enough for fits that are only compared by accuracy.
_CV_GRAD_TOLERANCE = 1e-5


@dataclass(frozen=True)
class CrossValidation:
    """Held-out rows of each fold, and the penalties that are compared on them.

    Out-of-fold predictions of all folds are pooled, and the score of a penalty is the mean of the
    per-class accuracies over them; of equal scores the larger penalty wins. A penalty is given for
    a fit on all N rows: on n of them it is used as l2 * N / n, which keeps its weight against the
    *summed* loss (scikit-learn's C).

    Classes with fewer samples than folds are held out in as many folds as they have samples. A
    class with one sample always trains and is never scored. With fewer than two classes to score,
    or a grid of one, nothing is fitted: the answer is `FALLBACK_L2`, or the one entry.

    Args:
        rows_n: ascending rows that are looked at.
        fold_n: the fold that holds each of them out; -1 = none.
        path: penalties from strong to weak.
        num_rows: N.
        num_classes: C.
        num_folds: folds to fit; 0 when nothing is to be fitted.
    """

    rows_n: Tensor
    fold_n: Tensor
    path: tuple[float, ...]
    num_rows: int
    num_classes: int
    num_folds: int

    @classmethod
    def of(
        cls,
        labels_N: Tensor,
        *,
        num_classes: int,
        l2_grid: Sequence[float] = L2_GRID,
        num_folds: int,
        seed: int,
        max_rows: int = MAX_CV_ROWS,
    ) -> CrossValidation:
        """Return the folds of some labels.

        Args:
            labels_N: classes 0..num_classes-1 of the training rows; no test data in here.
            num_classes: C.
            l2_grid: penalties > 0, any order.
            num_folds: >= 2.
            seed: of fold membership and thinning.
            max_rows: rows used at most, thinned per class (each keeps two where it has them).

        Raises:
            ValueError: empty grid, or fewer than 2 folds.
        """
        if not l2_grid or num_folds < 2:
            raise ValueError(f"needs a grid and >= 2 folds, got {len(l2_grid)} and {num_folds}")
        labels_N = labels_N.cpu().to(torch.int64)
        path = tuple(sorted({float(l2) for l2 in l2_grid}, reverse=True))
        rows_n, fold_n = _stratified_folds(labels_N, num_folds, max_rows, seed)
        can_score = len(torch.unique(labels_N[rows_n[fold_n >= 0]])) >= 2
        if not can_score and len(l2_grid) > 1:
            path = (FALLBACK_L2,)
        folds = int(fold_n.max()) + 1 if can_score and len(l2_grid) > 1 else 0
        return cls(rows_n, fold_n, path, len(labels_N), num_classes, folds)

    def predict(self, features_ND: Tensor, labels_N: Tensor, held_out: int) -> Tensor:
        """Return the classes (L, h) that each penalty of the path predicts for one fold.

        Args:
            features_ND: standardised training features; fits run on their device.
            labels_N: their classes.
            held_out: the fold, 0..num_folds-1.
        """
        features_ND = as_float(features_ND)
        device = features_ND.device
        rows_n, is_train_n = self.rows_n.to(device), (self.fold_n != held_out).to(device)
        features_nD, labels_n = features_ND[rows_n], labels_N.to(device, torch.int64)[rows_n]
        x, y, x_held = features_nD[is_train_n], labels_n[is_train_n], features_nD[~is_train_n]
        probe, predictions = None, []
        for l2 in self.path:  # from strong to weak, each fit starting from its neighbour
            probe = fit_logistic(
                x,
                y,
                num_classes=self.num_classes,
                l2=l2 * self.num_rows / len(x),
                grad_tolerance=_CV_GRAD_TOLERANCE,
                init=probe,
            )
            predictions.append(probe.predict(x_held))
        return torch.stack(predictions)

    @property
    def is_small(self) -> bool:
        """Whether `predict_all` fits all folds together."""
        return self.work <= MOST_TOGETHER

    @property
    def work(self) -> int:
        """Products of problems, classes and rows."""
        return self.num_folds * len(self.path) * self.num_classes * len(self.rows_n)

    def predict_all(self, features_ND: Tensor, labels_N: Tensor) -> list[Tensor]:
        """Return what `predict` returns for every fold in its order; takes its arguments."""
        if not self.is_small or not self.num_folds:
            return [self.predict(features_ND, labels_N, k) for k in range(self.num_folds)]
        return predict_together([self], [features_ND], [labels_N])[0]

    def choose(self, labels_N: Tensor, predictions: Sequence[Tensor]) -> float:
        """Return the best penalty, from what `predict` returned for every fold in its order."""
        if not self.num_folds:
            return self.path[0]
        labels_n = labels_N.cpu().to(torch.int64)[self.rows_n]
        pooled_Ln = torch.full((len(self.path), len(labels_n)), -1)
        for held_out, predictions_Lh in enumerate(predictions):
            pooled_Ln[:, self.fold_n == held_out] = predictions_Lh.cpu()
        scored_n = self.fold_n >= 0
        scores = [
            float(
                np.nanmean(per_class_accuracy(p_n[scored_n], labels_n[scored_n], self.num_classes))
            )
            for p_n in pooled_Ln
        ]
        return max(zip(scores, self.path, strict=True))[1]


def predict_together(
    validations: Sequence[CrossValidation], features: Sequence[Tensor], labels: Sequence[Tensor]
) -> list[list[Tensor]]:
    """Return for each of G probes what its `predict` returns for every fold in its order.

    All are fitted at once, so they should be small.

    Args:
        validations: with folds; of equally many rows, classes, penalties.
        features: standardised training features (N, D) of each; fits run on their device.
        labels: their classes (N,).

    Raises:
        ValueError: the shapes differ.
    """
    first, device = validations[0], features[0].device
    if len({(*x.shape, len(v.rows_n)) for x, v in zip(features, validations, strict=True)}) > 1:
        raise ValueError("probes that are fitted together have features of one shape")
    rows = [v.rows_n.to(device) for v in validations]
    features_GnD = torch.stack([as_float(f_ND)[n] for f_ND, n in zip(features, rows, strict=True)])
    labels_Gn = torch.stack(
        [y_N.to(device, torch.int64)[n] for y_N, n in zip(labels, rows, strict=True)]
    )
    num_penalties, folds = len(first.path), [v.fold_n.to(device) for v in validations]
    set_P, weights, penalties = [], [], []
    for number, (validation, fold_n) in enumerate(zip(validations, folds, strict=True)):
        is_train_Kn = torch.stack([fold_n != k for k in range(validation.num_folds)])
        path_L = torch.tensor(validation.path, device=device, dtype=torch.float64)
        scale_K1 = (validation.num_rows / is_train_Kn.sum(dim=1))[:, None]
        weights.append(is_train_Kn.repeat_interleave(num_penalties, dim=0))
        penalties.append((path_L * scale_K1).flatten())
        set_P += [number] * (validation.num_folds * num_penalties)
    minima = fit_together(
        features_GnD,
        labels_Gn,
        torch.tensor(set_P),
        torch.cat(weights),
        torch.cat(penalties),
        num_classes=first.num_classes,
        grad_tolerance=_CV_GRAD_TOLERANCE,
    )
    found, start = [], 0
    for validation, x_nD, fold_n in zip(validations, features_GnD, folds, strict=True):
        end = start + validation.num_folds * num_penalties
        own_PCE, start = minima.at_PCE[start:end], end
        classes_Pn = (own_PCE[..., :-1] @ x_nD.T + own_PCE[..., -1:]).argmax(dim=1)
        classes_KLn = classes_Pn.view(validation.num_folds, num_penalties, -1)
        found.append([classes_Ln[:, fold_n == k] for k, classes_Ln in enumerate(classes_KLn)])
    return found


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
