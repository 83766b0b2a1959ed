"""Many logistic regressions at once: the folds and penalties of probes on few labels.

Problem p minimises, on the rows of its own set and as `sdclr.logistic` does for one,

    sum_n w_pn cross_entropy(W x_n + b, y_n) / sum_n w_pn + l2_p / 2 * |W|^2    (b not penalised)

Its weights w_pn are 1 for the rows that it trains on and 0 for those that it holds out. A small fit
costs what its operations cost to start, so hundreds of them together take little longer than one.

L-BFGS (Liu and Nocedal 1989) with backtracking (Armijo 1966), on weights scaled by the diagonal of
the curvature as in `sdclr.logistic`. Problems that have ended leave the batch.

Shapes: G sets of N rows, P problems, p of them not ended, R axes, E = R + 1, C classes, V = C E
variables.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sdclr.logistic import as_float, check_training_rows, one_thread

_HISTORY = 10
_MAX_HALVINGS = 8
_ARMIJO = 1e-4
# Relative gain of the loss, in units of rounding, below which a problem has ended.
_LEAST_GAIN = 0.01

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def fit_together(
    features_GNR: Tensor,
    labels_GN: Tensor,
    set_P: Tensor,
    weights_PN: Tensor,
    l2_P: Tensor,
    *,
    num_classes: int,
    max_iter: int = 1000,
    grad_tolerance: float = 1e-6,
) -> Tensor:
    """Return the minimisers of the module's objectives (P, C, E); the last entry is the bias.

    Args:
        features_GNR: best standardised and on their principal axes, as in `fit_logistic`.
        labels_GN: classes 0..num_classes-1.
        set_P: which set each problem is fitted on, 0..G-1.
        weights_PN: >= 0, with a positive one in each problem.
        l2_P: penalty of the mean loss, > 0.
        num_classes: C.
        max_iter: iterations at most.
        grad_tolerance: largest absolute entry of the gradient by the scaled weights at the end.

    Raises:
        ValueError: shapes disagree, a label is out of range, or a number is not as above.
    """
    features_GNR = as_float(features_GNR)
    device = features_GNR.device
    labels_GN, set_P = labels_GN.to(device, torch.int64), set_P.to(device, torch.int64)
    for features_NR, labels_N in zip(features_GNR, labels_GN, strict=True):
        check_training_rows(features_NR, labels_N, num_classes)
    l2_P, weights_PN = l2_P.to(features_GNR), weights_PN.to(features_GNR)
    expected = (len(l2_P), features_GNR.shape[1])
    if len(set_P) != len(l2_P) or weights_PN.shape != expected or not bool((l2_P > 0).all()):
        raise ValueError(
            f"needs a set and a positive penalty for each of P problems, and (P, N) weights; got "
            f"{len(set_P)}, {tuple(l2_P.shape)} and {tuple(weights_PN.shape)}"
        )
    if not bool((weights_PN >= 0).all() and weights_PN.sum(dim=1).gt(0).all()):
        raise ValueError("each problem needs a row of positive weight, and none of a negative one")
    features_GNE = F.pad(features_GNR, (0, 1), value=1.0)
    share_PN = weights_PN / weights_PN.sum(dim=1, keepdim=True)
    l2_PE = l2_P[:, None].repeat(1, features_GNE.shape[2])
    l2_PE[:, -1] = 0
    # p (1 - p) at the start, where all classes are equally likely.
    curvature = (num_classes - 1) / num_classes**2 or 1.0
    square_PE = _times(share_PN[:, None], features_GNE.square(), set_P)[:, 0]
    scale_PE = (curvature * square_PE + l2_PE).rsqrt()
    one_hot_GCN = F.one_hot(labels_GN, num_classes).transpose(1, 2).to(features_GNE.dtype)

    def objective(scaled_pV: Tensor, which_p: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses (p,) float64 and gradients (p, V) by the scaled weights."""
        scale_p1E, l2_p1E = scale_PE[which_p][:, None], l2_PE[which_p][:, None]
        share_pN, set_p = share_PN[which_p], set_P[which_p]
        theta_pCE = scaled_pV.view(len(which_p), num_classes, -1) * scale_p1E
        logits_pCN = _times(theta_pCE, features_GNE.transpose(1, 2), set_p)
        log_p_pCN = F.log_softmax(logits_pCN, dim=1)
        picked_pN = log_p_pCN.gather(1, labels_GN[set_p][:, None])[:, 0]
        loss_p = -(picked_pN * share_pN).double().sum(dim=1)
        loss_p += 0.5 * (l2_p1E * theta_pCE.square()).double().sum(dim=(1, 2))
        residual_pCN = (log_p_pCN.exp_() - one_hot_GCN[set_p]) * share_pN[:, None]
        grad_pCE = _times(residual_pCN, features_GNE, set_p)
        return loss_p, ((grad_pCE + l2_p1E * theta_pCE) * scale_p1E).flatten(1)

    start_PV = features_GNE.new_zeros(len(l2_P), num_classes * features_GNE.shape[2])
    with torch.no_grad(), one_thread():
        found_PV = _minimise(objective, start_PV, max_iter, grad_tolerance)
    return found_PV.view(len(l2_P), num_classes, -1) * scale_PE[:, None]


def _times(left_pCX: Tensor, right_GXY: Tensor, set_p: Tensor) -> Tensor:
    """Return the products (p, C, Y) with the matrix of each problem's set."""
    if len(right_GXY) == 1:  # one large product
        return (left_pCX.flatten(0, 1) @ right_GXY[0]).view(*left_pCX.shape[:2], -1)
    return left_pCX @ right_GXY[set_p]


def _minimise(
    objective: Objective, start_PV: Tensor, max_iter: int, grad_tolerance: float
) -> Tensor:
    """Minimise P independent functions at once; return their arguments (P, V)."""
    found_PV, least_gain = start_PV.clone(), _LEAST_GAIN * torch.finfo(start_PV.dtype).eps
    which_p = torch.arange(len(start_PV), device=start_PV.device)
    at_pV = start_PV
    loss_p, grad_pV = objective(at_pV, which_p)
    history: list[tuple[Tensor, Tensor]] = []  # steps and changes of the gradient, each (p, V)
    is_open_p = grad_pV.abs().amax(dim=1) > grad_tolerance
    for _ in range(max_iter):
        if not is_open_p.all():
            found_PV[which_p] = at_pV
            which_p, at_pV = which_p[is_open_p], at_pV[is_open_p]
            loss_p, grad_pV = loss_p[is_open_p], grad_pV[is_open_p]
            history = [(step_pV[is_open_p], turn_pV[is_open_p]) for step_pV, turn_pV in history]
        if not len(which_p):
            return found_PV
        direction_pV = _direction(grad_pV, history)
        size_p = torch.ones_like(at_pV[:, 0])
        if not history:  # nothing is known yet of the curvature
            size_p = (1 / grad_pV.abs().sum(dim=1)).clamp(max=1)
        before_pV, before_loss_p, before_grad_pV = at_pV, loss_p, grad_pV
        at_pV, loss_p, grad_pV = _line_search(
            objective, which_p, at_pV, loss_p, grad_pV, direction_pV, size_p
        )
        history = [*history[1 - _HISTORY :], (at_pV - before_pV, grad_pV - before_grad_pV)]
        has_gained_p = before_loss_p - loss_p > least_gain * before_loss_p.abs()
        is_open_p = has_gained_p & (grad_pV.abs().amax(dim=1) > grad_tolerance)
    found_PV[which_p] = at_pV
    return found_PV


def _direction(grad_pV: Tensor, history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return minus the inverse Hessian times the gradient, by the two loops of L-BFGS."""
    q_pV, passed = grad_pV.clone(), []
    for step_pV, turn_pV in reversed(history):
        inverse_p1 = 1 / (step_pV * turn_pV).sum(dim=1, keepdim=True)
        # A problem that did not move, or not along any curvature, says nothing.
        inverse_p1 = inverse_p1.where(inverse_p1.isfinite() & (inverse_p1 > 0), 0.0)
        share_p1 = inverse_p1 * (step_pV * q_pV).sum(dim=1, keepdim=True)
        q_pV -= share_p1 * turn_pV
        passed.append((step_pV, turn_pV, inverse_p1, share_p1))
    if history:
        step_pV, turn_pV = history[-1]
        size_p1 = (step_pV * turn_pV).sum(1, True) / turn_pV.square().sum(1, True)
        q_pV *= size_p1.where(size_p1.isfinite() & (size_p1 > 0), 1.0)
    for step_pV, turn_pV, inverse_p1, share_p1 in reversed(passed):
        again_p1 = inverse_p1 * (turn_pV * q_pV).sum(dim=1, keepdim=True)
        q_pV += (share_p1 - again_p1) * step_pV
    return -q_pV


def _line_search(
    objective: Objective,
    which_p: Tensor,
    at_pV: Tensor,
    loss_p: Tensor,
    grad_pV: Tensor,
    direction_pV: Tensor,
    size_p: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return arguments, losses and gradients after a step; a problem without a gain stays."""
    at_pV, loss_p, grad_pV, start_pV = at_pV.clone(), loss_p.clone(), grad_pV.clone(), at_pV
    start_loss_p = loss_p.clone()
    slope_p = (grad_pV * direction_pV).sum(dim=1).double()
    size_p = size_p.clone()
    rows = torch.arange(len(which_p), device=which_p.device)
    for _ in range(_MAX_HALVINGS):
        tried = start_pV[rows] + size_p[rows, None] * direction_pV[rows]
        tried_loss, tried_grad = objective(tried, which_p[rows])
        is_good = tried_loss <= start_loss_p[rows] + _ARMIJO * size_p[rows] * slope_p[rows]
        good, rows = rows[is_good], rows[~is_good]
        at_pV[good], loss_p[good] = tried[is_good], tried_loss[is_good]
        grad_pV[good] = tried_grad[is_good]
        if not len(rows):
            break
        size_p[rows] *= 0.5
    return at_pV, loss_p, grad_pV
