"""NT-Xent against a double loop written from the paper, closed forms, and extreme temperatures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdclr.loss import nt_xent


def slow_nt_xent(u: Tensor, v: Tensor, temperature: float) -> Tensor:
    z = [row / row.norm() for row in torch.cat([u, v])]
    n = len(u)
    total = torch.zeros((), dtype=u.dtype)
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        positive = torch.dot(z[i], z[partner]) / temperature
        others = [torch.dot(z[i], z[k]) / temperature for k in range(2 * n) if k != i]
        total = total + torch.logsumexp(torch.stack(others), 0) - positive
    return total / (2 * n)


def exponential_nt_xent(u: Tensor, v: Tensor, temperature: float) -> Tensor:
    """The textbook form without log-sum-exp: the negative control of the stability tests."""
    z = torch.nn.functional.normalize(torch.cat([u, v]), dim=1)
    e = torch.exp(z @ z.T / temperature)
    n = len(u)
    positive = torch.exp((z * z.roll(n, 0)).sum(1) / temperature)
    return -torch.log(positive / (e.sum(1) - e.diagonal())).mean()


def pair(
    n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, n, d, generator=g, dtype=dtype)
    return u.requires_grad_(), v.requires_grad_()


@pytest.mark.parametrize("n", [2, 3, 7, 16])
@pytest.mark.parametrize("temperature", [0.05, 0.2, 0.5, 1.0, 10.0])
def test_equals_double_loop_in_value_and_gradient(n: int, temperature: float) -> None:
    u, v = pair(n, 5, seed=n)
    fast, slow = nt_xent(u, v, temperature=temperature), slow_nt_xent(u, v, temperature)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    fast_grads, slow_grads = torch.autograd.grad(fast, (u, v)), torch.autograd.grad(slow, (u, v))
    torch.testing.assert_close(fast_grads, slow_grads, rtol=1e-10, atol=1e-12)


def test_the_comparison_can_fail() -> None:
    u, v = pair(4, 5)
    fast, slow = nt_xent(u, v, temperature=0.2), slow_nt_xent(u, v, 0.21)
    assert not torch.isclose(fast, slow, rtol=1e-4)
    shifted = slow_nt_xent(u, v.roll(1, 0), 0.2)
    assert not torch.isclose(fast, shifted, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 8, 100])
@pytest.mark.parametrize("temperature", [0.005, 0.2, 10.0])
def test_identical_embeddings_give_log_of_2n_minus_1(n: int, temperature: float) -> None:
    z = torch.ones(n, 3)
    expected = math.log(2 * n - 1)
    assert nt_xent(z, z, temperature=temperature).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.005, 0.01, 1.0, 10.0])
@pytest.mark.promise("R23")
def test_finite_at_extreme_temperatures(dtype: torch.dtype, temperature: float) -> None:
    u, v = pair(64, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = nt_xent(u.to(dtype), v.to(dtype), temperature=temperature)
    grads = torch.autograd.grad(loss, (u, v))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in grads)


@pytest.mark.promise("R23", control=True)
def test_the_textbook_form_is_not_finite_there() -> None:
    z = torch.ones(4, 3)
    assert not torch.isfinite(exponential_nt_xent(z, z, 0.005))


def test_symmetric_and_scale_free() -> None:
    u, v = pair(6, 4)
    loss = nt_xent(u, v, temperature=0.3)
    torch.testing.assert_close(loss, nt_xent(v, u, temperature=0.3))
    torch.testing.assert_close(loss, nt_xent(u * 7, v * 0.1, temperature=0.3))


@pytest.mark.promise("R22")
def test_nan_is_not_hidden() -> None:
    u, v = (x.detach() for x in pair(4, 3))
    u[2, 1] = torch.nan
    assert torch.isnan(nt_xent(u, v, temperature=0.2))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        nt_xent(torch.ones(2, 3), torch.ones(2, 3), temperature=0)
    with pytest.raises(ValueError, match=r"got \(2, 3\), \(3, 3\)"):
        nt_xent(torch.ones(2, 3), torch.ones(3, 3), temperature=1)
