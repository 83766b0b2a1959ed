"""Truncated Newton for many small convex problems at once.

Conjugate gradients solve for the step, preconditioned by the diagonal of the Hessian (Steihaug
1983; Lin, Weng and Keerthi 2008 for logistic regression), and backtracking (Armijo 1966) bounds it.
A small problem costs what its operations cost to start, so hundreds of them together take little
longer than one. Problems that have ended leave the batch.

Shapes: P problems, p of them not ended, C x E variables of each, R whatever an objective remembers
of a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.linalg import vector_norm

_MAX_HALVINGS = 8
_ARMIJO = 1e-4
_MAX_CONJUGATE = 200
# Part of the gradient's norm that a step may leave; less near the end (Dembo, Eisenstat and
# Steihaug 1982).
_MOST_LEFT = 0.1
# Gain that the Hessian promises, in units of the loss's rounding, below which a problem ends.
_LEAST_GAIN = 8
# Part of the problems that must have ended before the others are copied out.
_WORTH_COPY = 0.2


class Problems(Protocol):
    """Convex functions of (p, C, E) variables, each of its own C x E."""

    def __getitem__(self, rows: Tensor) -> Self:
        """Return some of them, by a mask (p,) or by numbers."""

    def losses(self, at_pCE: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses (p,) float64, and what the other methods need of this point, (p, R)."""

    def gradients(self, at_pCE: Tensor, known_pR: Tensor) -> Tensor:
        """Return (p, C, E)."""

    def curvatures(self, known_pR: Tensor) -> Tensor:
        """Return the diagonals of the Hessians (p, C, E), >= 0."""

    def times_hessian(self, direction_pCE: Tensor, known_pR: Tensor) -> Tensor:
        """Return the Hessians times directions (p, C, E)."""


@dataclass(frozen=True)
class Minima:
    """Arguments (P, C, E), and which problems ended before the last iteration (P,), bool."""

    at_PCE: Tensor
    converged_P: Tensor


def minimise(
    problems: Problems, start_PCE: Tensor, *, max_iter: int, grad_tolerance: float
) -> Minima:
    """Minimise independent functions at once.

    A problem ends at `grad_tolerance`, or where its loss no longer changes at working precision.

    Args:
        problems: the functions.
        start_PCE: where to start; no curvature is 0 there.
        max_iter: Newton steps at most.
        grad_tolerance: largest absolute entry of the gradient by variables that are scaled to
            curvature 1 at the start.
    """
    found_PCE, ended_P = start_PCE.clone(), start_PCE.new_zeros(len(start_PCE), dtype=torch.bool)
    which_p, goes_on_p = torch.arange(len(start_PCE), device=start_PCE.device), ~ended_P
    at_pCE = start_PCE
    loss_p, known_pR = problems.losses(at_pCE)
    scale_pCE = problems.curvatures(known_pR).rsqrt()
    start_norm_p = vector_norm(problems.gradients(at_pCE, known_pR), dim=(1, 2))
    least_gain = _LEAST_GAIN * torch.finfo(at_pCE.dtype).eps
    for _ in range(max_iter):
        grad_pCE = problems.gradients(at_pCE, known_pR)
        goes_on_p &= (grad_pCE * scale_pCE).abs().amax(dim=(1, 2)) > grad_tolerance
        if not goes_on_p.all():
            found_PCE[which_p], ended_P[which_p] = at_pCE, ~goes_on_p
            if not goes_on_p.any():
                return Minima(found_PCE, ended_P)
            problems, which_p = problems[goes_on_p], which_p[goes_on_p]
            at_pCE, loss_p, known_pR = at_pCE[goes_on_p], loss_p[goes_on_p], known_pR[goes_on_p]
            grad_pCE, scale_pCE = grad_pCE[goes_on_p], scale_pCE[goes_on_p]
            start_norm_p = start_norm_p[goes_on_p]
        left_p = (vector_norm(grad_pCE, dim=(1, 2)) / start_norm_p).sqrt().clamp(max=_MOST_LEFT)
        step_pCE = _newton_step(problems, grad_pCE, known_pR, left_p)
        slope_p = (grad_pCE * step_pCE).double().sum(dim=(1, 2))
        before_p = loss_p
        at_pCE, loss_p, known_pR = _line_search(problems, at_pCE, loss_p, step_pCE, slope_p)
        goes_on_p = (loss_p < before_p) & (-slope_p / 2 > least_gain * before_p.abs())
    found_PCE[which_p], ended_P[which_p] = at_pCE, ~goes_on_p
    return Minima(found_PCE, ended_P)


def _newton_step(problems: Problems, grad_pCE: Tensor, known_pR: Tensor, left_p: Tensor) -> Tensor:
    """Return steps (p, C, E) that leave a part of the gradient's norm in the quadratic model."""
    curvature_pCE = problems.curvatures(known_pR)
    least_p11 = curvature_pCE.amax(dim=(1, 2), keepdim=True) * torch.finfo(grad_pCE.dtype).eps
    inverse_pCE = 1 / curvature_pCE.maximum(least_p11)
    found_pCE = torch.zeros_like(grad_pCE)
    which_p = torch.arange(len(grad_pCE), device=grad_pCE.device)
    step_pCE, rest_pCE = found_pCE, -grad_pCE
    along_pCE = inverse_pCE * rest_pCE
    square_p11 = _dots(rest_pCE, along_pCE)
    target_p11 = left_p[:, None, None].square() * square_p11
    for _ in range(_MAX_CONJUGATE):
        turned_pCE = problems.times_hessian(along_pCE, known_pR)
        size_p11 = square_p11 / _dots(along_pCE, turned_pCE)
        # Where all that is left is rounding, the step stays as it is.
        size_p11 = size_p11.where(size_p11.isfinite() & (size_p11 > 0), 0.0)
        step_pCE = step_pCE + size_p11 * along_pCE
        rest_pCE = rest_pCE - size_p11 * turned_pCE
        scaled_pCE = inverse_pCE * rest_pCE
        last_p11, square_p11 = square_p11, _dots(rest_pCE, scaled_pCE)
        along_pCE = scaled_pCE + (square_p11 / last_p11).where(last_p11 > 0, 0.0) * along_pCE
        goes_on_p = ((square_p11 > target_p11) & (size_p11 > 0)).flatten()
        num_open = int(goes_on_p.sum())
        if num_open == 0:
            break
        if num_open <= (1 - _WORTH_COPY) * len(goes_on_p):
            found_pCE[which_p] = step_pCE
            problems, which_p = problems[goes_on_p], which_p[goes_on_p]
            known_pR, inverse_pCE = known_pR[goes_on_p], inverse_pCE[goes_on_p]
            step_pCE, rest_pCE = step_pCE[goes_on_p], rest_pCE[goes_on_p]
            along_pCE = along_pCE[goes_on_p]
            square_p11, target_p11 = square_p11[goes_on_p], target_p11[goes_on_p]
    found_pCE[which_p] = step_pCE
    return found_pCE


def _line_search(
    problems: Problems, start_pCE: Tensor, start_loss_p: Tensor, step_pCE: Tensor, slope_p: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return arguments, losses and what is known there; a problem without a gain stays."""
    at_pCE = start_pCE + step_pCE
    loss_p, known_pR = problems.losses(at_pCE)
    for halvings in range(_MAX_HALVINGS + 1):
        is_good_p = loss_p <= start_loss_p + _ARMIJO * 0.5**halvings * slope_p
        rows = (~is_good_p).nonzero()[:, 0]
        if not len(rows):
            break
        size = 0.5 ** (halvings + 1) if halvings < _MAX_HALVINGS else 0.0
        at_pCE[rows] = start_pCE[rows] + size * step_pCE[rows]
        loss_p[rows], known_pR[rows] = problems[rows].losses(at_pCE[rows])
    return at_pCE, loss_p, known_pR


def _dots(left_pCE: Tensor, right_pCE: Tensor) -> Tensor:
    """Return inner products (p, 1, 1)."""
    return (left_pCE * right_pCE).sum(dim=(1, 2), keepdim=True)
