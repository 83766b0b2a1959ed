"""L2-regularised multinomial logistic regression on frozen features, by L-BFGS.

    objective(W, b) = mean_n cross_entropy(W x_n + b, y_n) + l2 / 2 * |W|^2      (b not penalised)

This is scikit-learn's `LogisticRegression(C=1 / (N * l2))`. It runs on the device of the features,
in float64 for float64 features and in float32 for all others, and needs no gradient mode:
features made under `torch.inference_mode()` are fine.

Shapes: N training images, M test images, D features, C classes, E = D + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear classifier; `converged` is False when `max_iter` ended the fit."""

    weight_CD: Tensor
    bias_C: Tensor
    converged: bool

    def logits(self, features_MD: Tensor) -> Tensor:
        """Scores (M, C); softmax over C gives probabilities."""
        return as_float(features_MD) @ self.weight_CD.T + self.bias_C

    def predict(self, features_MD: Tensor) -> Tensor:
        """Classes (M,), int64."""
        return self.logits(features_MD).argmax(dim=1)


def fit_logistic(
    features_ND: Tensor,
    labels_N: Tensor,
    *,
    num_classes: int,
    l2: float,
    max_iter: int = 1000,
    grad_tolerance: float = 1e-6,
    init: LinearProbe | None = None,
) -> LinearProbe:
    """Minimise the module's objective by L-BFGS with a strong-Wolfe line search.

    Ends when the largest absolute entry of the gradient is at most `grad_tolerance`, when the
    loss or the step no longer changes at working precision (both count as converged), or after
    `max_iter` iterations. With l2 > 0 the objective is strictly convex in W, so the start only
    affects the time. A class without training samples is legal and is hardly ever predicted.

    Args:
        features_ND: N >= 1 rows, best standardised.
        labels_N: classes 0..num_classes-1.
        num_classes: C.
        l2: penalty of the mean loss, > 0.
        max_iter: L-BFGS iterations.
        grad_tolerance: see above; float32 seldom gets below 1e-5 on ill-conditioned features. Use
            float64 and a smaller value where exact probabilities at a tiny l2 matter.
        init: where to start (a neighbour on a penalty path); zeros when None.

    Raises:
        ValueError: shapes disagree, a label is out of range, l2 <= 0, or a feature is not finite.
    """
    features_ND = as_float(features_ND)
    labels_N = labels_N.to(features_ND.device, torch.int64)
    check_training_rows(features_ND, labels_N, num_classes)
    if not (0 < l2 < math.inf):
        raise ValueError(f"l2 must be positive and finite, got {l2}")
    num_rows, num_features = features_ND.shape
    rows_N = torch.arange(num_rows, device=features_ND.device)
    # Column D of the parameter is the bias.
    theta_CE = features_ND.new_zeros(num_classes, num_features + 1)
    if init is not None:
        theta_CE.copy_(torch.cat([init.weight_CD, init.bias_C[:, None]], dim=1))
    theta_CE.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta_CE],
        max_iter=max_iter,
        max_eval=25 * max_iter,
        tolerance_grad=grad_tolerance,
        tolerance_change=torch.finfo(features_ND.dtype).eps * 0.01,
        line_search_fn="strong_wolfe",
    )

    # The gradient is written out: cheaper than autograd, and legal on inference-mode features. The
    # loss is summed in float64, or its rounding would stop the line search early.
    @torch.no_grad()
    def closure() -> Tensor:
        weight_CD, bias_C = theta_CE[:, :-1], theta_CE[:, -1]
        log_p_NC = F.log_softmax(features_ND @ weight_CD.T + bias_C, dim=1)
        loss = -log_p_NC[rows_N, labels_N].double().mean()
        loss += 0.5 * l2 * weight_CD.double().square().sum()
        residual_NC = log_p_NC.exp()
        residual_NC[rows_N, labels_N] -= 1
        residual_NC /= num_rows
        theta_CE.grad = torch.cat(
            [residual_NC.T @ features_ND + l2 * weight_CD, residual_NC.sum(dim=0)[:, None]], dim=1
        )
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    num_iter = int(optimizer.state[theta_CE]["n_iter"])
    theta_CE = theta_CE.detach()
    return LinearProbe(theta_CE[:, :-1].clone(), theta_CE[:, -1].clone(), num_iter < max_iter)


def as_float(features: Tensor) -> Tensor:
    """Features at working precision: float64 stays, everything else becomes float32."""
    return features if features.dtype == torch.float64 else features.to(torch.float32)


def check_training_rows(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> None:
    """Raise ValueError unless shapes agree, N >= 1, labels are in range, features are finite."""
    if features_ND.ndim != 2 or labels_N.shape != features_ND.shape[:1] or not len(labels_N):
        raise ValueError(
            f"needs (N, D) features and (N,) labels with N >= 1, "
            f"got {tuple(features_ND.shape)} and {tuple(labels_N.shape)}"
        )
    low, high = int(labels_N.min()), int(labels_N.max())
    if not 0 <= low <= high < num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {low}..{high}")
    if not bool(features_ND.isfinite().all()):
        raise ValueError("a training feature is not finite")
