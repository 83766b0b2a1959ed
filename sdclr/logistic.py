"""L2-regularised multinomial logistic regression on frozen features, by L-BFGS.

    objective(W, b) = mean_n cross_entropy(W x_n + b, y_n) + l2 / 2 * |W|^2      (b not penalised)

This is scikit-learn's `LogisticRegression(C=1 / (N * l2))`. It runs on the device of the features,
in float64 for float64 features and in float32 for all others, and needs no gradient mode:
features made under `torch.inference_mode()` are fine.

L-BFGS needs few iterations where the curvature is alike in all directions. That of W is at most
E[x x^T] + l2 times a factor between 0 and 1/4 for each class, so the search runs on weights
scaled by its diagonal, and features on their principal axes (`principal_axes`) make the diagonal
all there is. Neither changes the objective.

Shapes: N training images, M test images, D features, R = min(N, D) axes, C classes, E = D + 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Multiplications of one product of features and weights above which a second thread pays: about
# 10 ms of one. Below, threads that wait for each other by spinning take far longer than one alone
# on a machine that has other work (427 x 64 features, 17 classes: 36 s with two, 1.5 s with one).
_WORTH_THREADS = 2**28


@contextmanager
def suitable_threads(features_ND: Tensor, num_classes: int) -> Iterator[None]:
    """Fit small problems on a CPU with one thread; the setting is restored afterwards."""
    if features_ND.device.type != "cpu" or is_large(features_ND.numel(), num_classes):
        yield
        return
    with one_thread():
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread; the setting is restored afterwards."""
    with kept_threads():
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        yield


@contextmanager
def kept_threads() -> Iterator[None]:
    """Restore the number of threads afterwards."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def is_large(num_values: int, num_classes: int) -> bool:
    """Return whether a fit on so many feature values is worth more than one thread, or a GPU."""
    return num_values * num_classes >= _WORTH_THREADS


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear classifier; `converged` is False when `max_iter` ended the fit."""

    weight_CD: Tensor
    bias_C: Tensor
    converged: bool

    def logits(self, features_MD: Tensor) -> Tensor:
        """Return scores (M, C); their softmax gives probabilities."""
        return as_float(features_MD) @ self.weight_CD.T + self.bias_C

    def predict(self, features_MD: Tensor) -> Tensor:
        """Return classes (M,), int64."""
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

    Ends when the largest absolute entry of the gradient by the scaled weights is at most
    `grad_tolerance`, when the loss or the step no longer changes at working precision (both count
    as converged), or after `max_iter` iterations. With l2 > 0 the objective is strictly convex in
    W, so the start only affects the time. A class without training samples is legal and is hardly
    ever predicted.

    Args:
        features_ND: N >= 1 rows, best standardised and on their principal axes.
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
    features_DN = features_ND.T
    # p (1 - p) at the start, where all classes are equally likely.
    curvature = (num_classes - 1) / num_classes**2 or 1.0
    curvature_E = features_ND.new_full((num_features + 1,), curvature)  # entry D is the bias
    curvature_E[:-1] *= features_ND.square().mean(dim=0)
    curvature_E[:-1] += l2
    scale_E = curvature_E.rsqrt()
    scaled_CE = features_ND.new_zeros(num_classes, num_features + 1)
    if init is not None:
        scaled_CE.copy_(torch.cat([init.weight_CD, init.bias_C[:, None]], dim=1) / scale_E)
    scaled_CE.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled_CE],
        max_iter=max_iter,
        max_eval=25 * max_iter,
        tolerance_grad=grad_tolerance,
        tolerance_change=torch.finfo(features_ND.dtype).eps * 0.01,
        line_search_fn="strong_wolfe",
    )

    # The gradient is written out: cheaper than autograd, and legal on inference-mode features. The
    # loss is summed in float64, or its rounding would stop the line search early. Classes come
    # first, so that the softmax goes over long rows.
    @torch.no_grad()
    def closure() -> Tensor:
        theta_CE = scaled_CE * scale_E
        weight_CD, bias_C = theta_CE[:, :-1], theta_CE[:, -1]
        log_p_CN = F.log_softmax(torch.addmm(bias_C[:, None], weight_CD, features_DN), dim=0)
        loss = -log_p_CN[labels_N, rows_N].double().mean()
        loss += 0.5 * l2 * weight_CD.double().square().sum()
        residual_CN = log_p_CN.exp_()
        residual_CN[labels_N, rows_N] -= 1
        residual_CN /= num_rows
        by_weight_CD = torch.addmm(weight_CD, residual_CN, features_ND, beta=l2)
        by_bias_C1 = residual_CN.sum(dim=1, keepdim=True)
        scaled_CE.grad = torch.cat([by_weight_CD, by_bias_C1], dim=1) * scale_E
        return loss

    with suitable_threads(features_ND, num_classes):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    num_iter = int(optimizer.state[scaled_CE]["n_iter"])
    theta_CE = scaled_CE.detach() * scale_E
    return LinearProbe(theta_CE[:, :-1].clone(), theta_CE[:, -1].clone(), num_iter < max_iter)


def principal_axes(features_ND: Tensor) -> Tensor:
    """Return orthonormal directions (D, R) of the features' second moments, ascending.

    With N < D they span the rows, and a fit with l2 > 0 has its weights in that span: the
    objective on `features_ND @ axes_DR` has the same minimum, and the same predictions.
    """
    wide_ND = features_ND.double()
    if len(wide_ND) < wide_ND.shape[1]:
        axes_DR: Tensor = torch.linalg.svd(wide_ND, full_matrices=False).Vh.flip(0).T
    else:
        axes_DR = torch.linalg.eigh(wide_ND.T @ wide_ND).eigenvectors
    return axes_DR.to(features_ND.dtype)


def as_float(features: Tensor) -> Tensor:
    """Return features at working precision: float64 stays, everything else becomes float32."""
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
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {low}..{high}")
    if not bool(features_ND.isfinite().all()):
        raise ValueError("a training feature is not finite")
