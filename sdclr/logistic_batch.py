"""Many logistic regressions at once: the folds and penalties of probes on few labels.

Problem p minimises, on the rows of its own set and as `sdclr.logistic` does for one,

    sum_n w_pn cross_entropy(W x_n + b, y_n) / sum_n w_pn + l2_p / 2 * |W|^2    (b not penalised)

Its weights w_pn are 1 for the rows that it trains on and 0 for those that it holds out. Newton's
method (`sdclr.newton`) takes a quarter to a half of the time of L-BFGS here; one large problem is
quicker by `sdclr.logistic`.

Shapes: G sets of N rows, P problems, p of them not ended, R axes, E = R + 1, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sdclr.logistic import LinearProbe, as_float, check_training_rows, one_thread
from sdclr.newton import Minima, minimise


def fit_together(
    features_GNR: Tensor,
    labels_GN: Tensor,
    set_P: Tensor,
    weights_PN: Tensor,
    l2_P: Tensor,
    *,
    num_classes: int,
    max_iter: int = 100,
    grad_tolerance: float = 1e-6,
) -> Minima:
    """Return the minimisers of the module's objectives (P, C, E); the last entry is the bias.

    Args:
        features_GNR: best standardised and on their principal axes, as in `fit_logistic`.
        labels_GN: classes 0..num_classes-1.
        set_P: which set each problem is fitted on, 0..G-1.
        weights_PN: >= 0, with a positive one in each problem.
        l2_P: penalty of the mean loss, > 0.
        num_classes: C.
        max_iter: Newton steps at most.
        grad_tolerance: of `minimise`.

    Raises:
        ValueError: shapes disagree, a label is out of range, or a number is not as above.
    """
    features_GNR = as_float(features_GNR)
    device = features_GNR.device
    labels_GN, set_P = labels_GN.to(device, torch.int64), set_P.to(device, torch.int64)
    for features_NR, labels_N in zip(features_GNR, labels_GN, strict=True):
        check_training_rows(features_NR, labels_N, num_classes)
    l2_P, weights_PN = (x.to(device, features_GNR.dtype) for x in (l2_P, weights_PN))
    expected = (len(l2_P), features_GNR.shape[1])
    if len(set_P) != len(l2_P) or weights_PN.shape != expected or not bool((l2_P > 0).all()):
        raise ValueError(
            f"needs a set and a positive penalty for each of P problems, and (P, N) weights; got "
            f"{len(set_P)}, {tuple(l2_P.shape)} and {tuple(weights_PN.shape)}"
        )
    if not bool((weights_PN >= 0).all() and weights_PN.sum(dim=1).gt(0).all()):
        raise ValueError("each problem needs a row of positive weight, and none of a negative one")
    features_GNE = F.pad(features_GNR, (0, 1), value=1.0)
    l2_P1E = l2_P[:, None, None].repeat(1, 1, features_GNE.shape[2])
    l2_P1E[..., -1] = 0
    problems = _Regressions(
        features_GNE,
        features_GNE.transpose(1, 2).contiguous(),
        features_GNE.square(),
        set_P,
        labels_GN[set_P][:, None],
        (weights_PN / weights_PN.sum(dim=1, keepdim=True))[:, None],
        l2_P1E,
    )
    start_PCE = features_GNE.new_zeros(len(l2_P), num_classes, features_GNE.shape[2])
    with torch.no_grad(), one_thread():
        return minimise(problems, start_PCE, max_iter=max_iter, grad_tolerance=grad_tolerance)


def fit_small(features_NR: Tensor, labels_N: Tensor, *, num_classes: int, l2: float) -> LinearProbe:
    """Return the classifier of one small problem; takes the arguments of `fit_logistic`."""
    found = fit_together(
        features_NR[None],
        labels_N[None],
        torch.zeros(1, dtype=torch.int64),
        torch.ones(1, len(labels_N)),
        torch.tensor([l2], dtype=torch.float64),
        num_classes=num_classes,
    )
    theta_CE = found.at_PCE[0]
    return LinearProbe(theta_CE[:, :-1], theta_CE[:, -1], bool(found.converged_P[0]))


@dataclass(frozen=True)
class _Regressions:
    """Objectives that have not ended, as `sdclr.newton.Problems`.

    What is known of a point are the probabilities of the rows (p, C, N).

    Args:
        features_GNE, features_GEN, squares_GNE: rows of the sets and their bias, the transpose, and
            the squares of the entries.
        set_p: set of each problem.
        labels_p1N: classes of its rows.
        share_p1N: weights of its rows, of sum 1.
        l2_p1E: penalties; 0 for the bias.
    """

    features_GNE: Tensor
    features_GEN: Tensor
    squares_GNE: Tensor
    set_p: Tensor
    labels_p1N: Tensor
    share_p1N: Tensor
    l2_p1E: Tensor

    def __getitem__(self, rows: Tensor) -> _Regressions:
        return replace(
            self,
            set_p=self.set_p[rows],
            labels_p1N=self.labels_p1N[rows],
            share_p1N=self.share_p1N[rows],
            l2_p1E=self.l2_p1E[rows],
        )

    def losses(self, at_pCE: Tensor) -> tuple[Tensor, Tensor]:
        log_p_pCN = F.log_softmax(_times(at_pCE, self.features_GEN, self.set_p), dim=1)
        picked_p1N = log_p_pCN.gather(1, self.labels_p1N) * self.share_p1N
        penalty_p = (self.l2_p1E * at_pCE.square()).double().sum(dim=(1, 2)) / 2
        return penalty_p - picked_p1N.double().sum(dim=(1, 2)), log_p_pCN.exp_()

    def gradients(self, at_pCE: Tensor, known_pR: Tensor) -> Tensor:
        minus_one = known_pR.new_full((), -1.0).expand(self.labels_p1N.shape)
        residual_pCN = known_pR.scatter_add(1, self.labels_p1N, minus_one) * self.share_p1N
        return _times(residual_pCN, self.features_GNE, self.set_p) + self.l2_p1E * at_pCE

    def curvatures(self, known_pR: Tensor) -> Tensor:
        weight_pCN = known_pR * (1 - known_pR) * self.share_p1N
        return _times(weight_pCN, self.squares_GNE, self.set_p) + self.l2_p1E

    def times_hessian(self, direction_pCE: Tensor, known_pR: Tensor) -> Tensor:
        turn_pCN = _times(direction_pCE, self.features_GEN, self.set_p)
        turn_pCN *= known_pR * self.share_p1N
        turn_pCN -= known_pR * turn_pCN.sum(dim=1, keepdim=True)
        return _times(turn_pCN, self.features_GNE, self.set_p) + self.l2_p1E * direction_pCE


def _times(left_pCX: Tensor, right_GXY: Tensor, set_p: Tensor) -> Tensor:
    """Return the products (p, C, Y) with the matrix of each problem's set."""
    if len(right_GXY) == 1:  # one large product
        return (left_pCX.flatten(0, 1) @ right_GXY[0]).view(*left_pCX.shape[:2], -1)
    return left_pCX @ right_GXY[set_p]
