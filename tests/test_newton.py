"""Newton's method for many problems: quadratics in closed form, others against dense Newton."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from sdclr.newton import minimise


@dataclass(frozen=True)
class Softplus:
    """sum_k log(1 + exp(a_k . v)) + l2 / 2 |v|^2 - b . v of each problem; v is (1, E).

    With `slopes_pKE` of zeros a quadratic, whose minimum is b / l2.
    """

    slopes_pKE: Tensor
    wanted_pE: Tensor
    l2_p1: Tensor

    def __getitem__(self, rows: Tensor) -> Softplus:
        return replace(
            self,
            slopes_pKE=self.slopes_pKE[rows],
            wanted_pE=self.wanted_pE[rows],
            l2_p1=self.l2_p1[rows],
        )

    def losses(self, at_pCE: Tensor) -> tuple[Tensor, Tensor]:
        score_pK = torch.einsum("pke,pce->pk", self.slopes_pKE, at_pCE)
        loss_p = torch.nn.functional.softplus(score_pK).sum(1)
        loss_p = loss_p + (self.l2_p1[..., None] / 2 * at_pCE.square()).sum((1, 2))
        return (
            loss_p - (self.wanted_pE[:, None] * at_pCE).sum((1, 2))
        ).double(), score_pK.sigmoid()

    def gradients(self, at_pCE: Tensor, known_pR: Tensor) -> Tensor:
        grad_pE = torch.einsum("pk,pke->pe", known_pR, self.slopes_pKE) - self.wanted_pE
        return grad_pE[:, None] + self.l2_p1[..., None] * at_pCE

    def curvatures(self, known_pR: Tensor) -> Tensor:
        weight_pK = known_pR * (1 - known_pR)
        curved_pE = torch.einsum("pk,pke->pe", weight_pK, self.slopes_pKE.square())
        return (curved_pE + self.l2_p1)[:, None]

    def times_hessian(self, direction_pCE: Tensor, known_pR: Tensor) -> Tensor:
        turn_pK = torch.einsum("pke,pce->pk", self.slopes_pKE, direction_pCE)
        turn_pK = turn_pK * known_pR * (1 - known_pR)
        turned_pE = torch.einsum("pk,pke->pe", turn_pK, self.slopes_pKE)
        return turned_pE[:, None] + self.l2_p1[..., None] * direction_pCE


def problems(dtype: torch.dtype = torch.float64) -> Softplus:
    generator = torch.Generator().manual_seed(1)
    slopes_pKE = 3 * torch.randn(5, 6, 4, generator=generator, dtype=torch.float64)
    wanted_pE = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    penalties_p1 = torch.logspace(-3, 1, 5, dtype=torch.float64)[:, None]
    return Softplus(slopes_pKE.to(dtype), wanted_pE.to(dtype), penalties_p1.to(dtype))


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(5, 1, 4, dtype=dtype)


def by_dense_newton(one: Softplus, num_steps: int = 200) -> Tensor:
    """The obvious reference for one problem: damped steps by the whole Hessian."""
    at = torch.zeros(1, 1, 4, dtype=torch.float64)
    for _ in range(num_steps):
        loss, known = one.losses(at)
        units = torch.eye(4, dtype=torch.float64)
        hessian = torch.stack([one.times_hessian(unit[None, None], known)[0, 0] for unit in units])
        step = -torch.linalg.solve(hessian, one.gradients(at, known)[0, 0])
        size = 1.0
        while one.losses(at + size * step)[0] > loss and size > 1e-9:
            size /= 2
        at = at + size * step
    return at[0]


def test_a_quadratic_ends_at_its_closed_form() -> None:
    flat = replace(problems(), slopes_pKE=torch.zeros(5, 0, 4, dtype=torch.float64))
    found = minimise(flat, start(), max_iter=50, grad_tolerance=1e-12)
    torch.testing.assert_close(found.at_PCE[:, 0], flat.wanted_pE / flat.l2_p1)
    assert found.converged_P.all()


def test_each_problem_ends_where_dense_newton_ends() -> None:
    together = problems()
    found = minimise(together, start(), max_iter=100, grad_tolerance=1e-10)
    assert found.converged_P.all()
    for number, at_CE in enumerate(found.at_PCE):
        one = together[torch.tensor([number])]
        torch.testing.assert_close(at_CE, by_dense_newton(one), rtol=1e-6, atol=1e-8)
    # The control: another penalty ends elsewhere.
    other = minimise(
        replace(together, l2_p1=together.l2_p1 * 2), start(), max_iter=100, grad_tolerance=1e-10
    )
    assert (other.at_PCE - found.at_PCE).abs().amax(dim=(1, 2)).min() > 1e-3


def test_a_problem_does_not_depend_on_those_that_end_earlier() -> None:
    together = problems()
    found = minimise(together, start(), max_iter=100, grad_tolerance=1e-10).at_PCE
    for number in range(5):
        alone = minimise(
            together[torch.tensor([number])], start()[:1], max_iter=100, grad_tolerance=1e-10
        )
        torch.testing.assert_close(alone.at_PCE[0], found[number], rtol=1e-9, atol=1e-12)


def test_too_few_steps_are_said() -> None:
    found = minimise(problems(), start(), max_iter=1, grad_tolerance=1e-12)
    assert not found.converged_P.any()


def test_a_start_at_the_minimum_stays() -> None:
    flat = replace(problems(), wanted_pE=torch.zeros(5, 4, dtype=torch.float64))
    flat = replace(flat, slopes_pKE=torch.zeros(5, 0, 4, dtype=torch.float64))
    found = minimise(flat, start(), max_iter=5, grad_tolerance=1e-12)
    assert found.converged_P.all() and not found.at_PCE.any()


@pytest.mark.parametrize("grad_tolerance", [1e-12, 1e-30])
def test_single_precision_ends_at_its_rounding(grad_tolerance: float) -> None:
    """A tolerance that float32 cannot reach ends all the same, and close to the minimum."""
    together = problems(dtype=torch.float32)
    found = minimise(together, start(torch.float32), max_iter=60, grad_tolerance=grad_tolerance)
    assert found.converged_P.all()
    exact = minimise(problems(), start(), max_iter=100, grad_tolerance=1e-10)
    loss_P = problems().losses(found.at_PCE.double())[0]
    least_P = problems().losses(exact.at_PCE)[0]
    assert ((loss_P - least_P) / least_P.abs()).max() < 1e-5
