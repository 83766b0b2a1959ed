from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from sdclr.logistic import LinearProbe, fit_logistic, principal_axes


def blobs(
    num_rows: int, num_classes: int, num_features: int, seed: int, noise: float = 1.5
) -> tuple[Tensor, Tensor]:
    centres = torch.randn(num_classes, num_features, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % num_classes
    rows = centres[labels] + noise * torch.randn(num_rows, num_features, generator=generator)
    return rows, labels


def sklearn_probabilities(
    train: Tensor, labels: Tensor, test: Tensor, inverse_penalty: float
) -> np.ndarray:
    model = LogisticRegression(C=inverse_penalty, tol=1e-8, max_iter=5000)
    return model.fit(train.numpy(), labels.numpy()).predict_proba(test.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("l2", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_probabilities_equal_scikit_learns(dtype, l2, num_classes) -> None:
    train, labels = blobs(300, num_classes, 12, seed=0)
    test, _ = blobs(200, num_classes, 12, seed=1)
    is_double = dtype == torch.float64
    probe = fit_logistic(
        train.to(dtype), labels, num_classes=num_classes, l2=l2,
        grad_tolerance=1e-8 if is_double else 1e-6,
    )  # fmt: skip
    ours = probe.logits(test.to(dtype)).softmax(dim=1).numpy()
    assert probe.converged
    if num_classes == 2:
        # scikit-learn fits one vector w; softmax over two rows +-w/2 carries half its penalty.
        theirs = sklearn_probabilities(train.double(), labels, test.double(), 1 / (300 * l2 / 2))
    else:
        theirs = sklearn_probabilities(train.double(), labels, test.double(), 1 / (300 * l2))
    # How exact float32 gets depends on the order of its sums, and so on the number of threads.
    assert np.abs(ours - theirs).max() < (1e-5 if is_double else 5e-3)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > (0.999 if is_double else 0.98)


def test_probabilities_of_a_nearly_unpenalised_fit_equal_scikit_learns() -> None:
    train, labels = blobs(300, 5, 12, seed=0)
    test, _ = blobs(200, 5, 12, seed=1)
    train, test = train.double(), test.double()
    probe = fit_logistic(train, labels, num_classes=5, l2=1e-5, grad_tolerance=1e-8)
    theirs = sklearn_probabilities(train, labels, test, 1 / (300 * 1e-5))
    assert np.abs(probe.logits(test).softmax(dim=1).numpy() - theirs).max() < 1e-3


def test_probabilities_control_another_penalty_differs() -> None:
    train, labels = blobs(300, 5, 12, seed=0)
    test, _ = blobs(200, 5, 12, seed=1)
    ours = fit_logistic(train, labels, num_classes=5, l2=1e-2).logits(test).softmax(dim=1)
    theirs = sklearn_probabilities(train.double(), labels, test.double(), 1 / (300 * 2e-2))
    assert np.abs(ours.numpy() - theirs).max() > 1e-2


def test_autograd_of_the_written_objective_vanishes_at_the_fit() -> None:
    train, labels = blobs(120, 4, 6, seed=2)
    train, l2 = train.double(), 3e-3
    probe = fit_logistic(train, labels, num_classes=4, l2=l2, grad_tolerance=1e-8)

    def largest_gradient(weight: Tensor, bias: Tensor) -> float:
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        loss = F.cross_entropy(train @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        grads = torch.autograd.grad(loss, [weight, bias])
        return max(float(grad.abs().max()) for grad in grads)

    assert largest_gradient(probe.weight_CD, probe.bias_C) < 1e-7
    assert largest_gradient(probe.weight_CD * 1.01, probe.bias_C) > 1e-5


def test_bias_is_not_penalised() -> None:
    # Closed form: features without information leave W at 0 and the bias at the log frequencies.
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    probe = fit_logistic(torch.zeros(100, 3), labels, num_classes=3, l2=100.0)
    assert torch.equal(probe.weight_CD, torch.zeros(3, 3))
    probabilities = probe.logits(torch.zeros(1, 3)).softmax(dim=1)[0]
    torch.testing.assert_close(probabilities, torch.tensor([0.7, 0.2, 0.1]), atol=1e-4, rtol=0)


def test_warm_start_ends_at_the_same_fit() -> None:
    train, labels = blobs(300, 5, 12, seed=0)
    start = fit_logistic(train, labels, num_classes=5, l2=1.0)
    warm = fit_logistic(train, labels, num_classes=5, l2=1e-2, init=start)
    cold = fit_logistic(train, labels, num_classes=5, l2=1e-2)
    torch.testing.assert_close(warm.weight_CD, cold.weight_CD, atol=1e-3, rtol=0)
    assert not torch.allclose(start.weight_CD, cold.weight_CD, atol=1e-2)


def test_unfinished_fit_says_so() -> None:
    train, labels = blobs(300, 5, 12, seed=0)
    assert not fit_logistic(train, labels, num_classes=5, l2=1e-4, max_iter=2).converged


def test_absent_class_is_not_predicted() -> None:
    train, labels = blobs(90, 3, 8, seed=0, noise=0.5)
    probe = fit_logistic(train, labels, num_classes=5, l2=1e-3)
    assert probe.weight_CD.shape == (5, 8)
    assert set(probe.predict(train).tolist()) == {0, 1, 2}


def test_inference_mode_and_half_precision_features_are_accepted() -> None:
    train, labels = blobs(90, 3, 8, seed=0)
    with torch.inference_mode():
        frozen = train * 1
        inside = fit_logistic(frozen, labels, num_classes=3, l2=1e-2)
    outside = fit_logistic(frozen, labels, num_classes=3, l2=1e-2)
    assert torch.equal(inside.weight_CD, outside.weight_CD)
    half = fit_logistic(train.bfloat16(), labels, num_classes=3, l2=1e-2)
    assert half.weight_CD.dtype == torch.float32
    assert half.predict(train.bfloat16()).shape == (90,)


def test_logits_are_written_out() -> None:
    probe = LinearProbe(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0]), True)
    assert probe.logits(torch.tensor([[3.0, 1.0]])).tolist() == [[5.5, -1.0]]
    assert probe.predict(torch.tensor([[3.0, 1.0], [-3.0, 0.0]])).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rows", "labels", "l2", "match"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), 1.0, "needs"),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), 1.0, "needs"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 1.0, "needs"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), 1.0, "0..1, got 0..2"),
        (torch.zeros(2, 2), torch.tensor([-1, 1]), 1.0, "got -1..1"),
        (torch.full((2, 2), math.nan), torch.tensor([0, 1]), 1.0, "not finite"),
        (torch.zeros(2, 2), torch.tensor([0, 1]), 0.0, "l2"),
        (torch.zeros(2, 2), torch.tensor([0, 1]), math.nan, "l2"),
    ],
)
def test_bad_input_is_refused(rows, labels, l2, match) -> None:
    with pytest.raises(ValueError, match=match):
        fit_logistic(rows, labels, num_classes=2, l2=l2)


# --- principal axes


def ill_conditioned(num_rows: int, num_features: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features whose variances along some oblique directions go from 1 to 1e-4."""
    rows, labels = blobs(num_rows, 5, num_features, seed=seed)
    scales = torch.logspace(0, -2, num_features, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    turn = torch.linalg.qr(
        torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)
    ).Q
    return rows.double() * scales @ turn, labels


def test_axes_are_orthonormal_ascend_and_diagonalise_the_second_moments() -> None:
    rows, _ = ill_conditioned(300, 12, seed=0)
    axes = principal_axes(rows)
    moments = axes.T @ rows.T @ rows @ axes
    torch.testing.assert_close(axes.T @ axes, torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(moments, moments.diag().diag(), atol=1e-9, rtol=0)
    assert bool((moments.diag().diff() >= 0).all())
    plain = rows.T @ rows  # control: the features' own axes do not
    assert float((plain - plain.diag().diag()).abs().max()) > 1


def test_axes_of_few_rows_span_them() -> None:
    rows, _ = ill_conditioned(8, 12, seed=0)
    axes = principal_axes(rows)
    assert axes.shape == (12, 8)
    torch.testing.assert_close(rows @ axes @ axes.T, rows)
    assert not torch.allclose(rows @ axes[:, 1:] @ axes[:, 1:].T, rows)  # control


@pytest.mark.parametrize("num_rows", [300, 8])
def test_a_fit_on_the_axes_has_the_same_logits(num_rows: int) -> None:
    train, labels = ill_conditioned(num_rows, 12, seed=0)
    test, _ = ill_conditioned(50, 12, seed=1)
    plain = fit_logistic(train, labels, num_classes=5, l2=1e-3, grad_tolerance=1e-9).logits(test)

    def logits_on(axes: Tensor) -> Tensor:
        probe = fit_logistic(train @ axes, labels, num_classes=5, l2=1e-3, grad_tolerance=1e-9)
        return probe.logits(test @ axes)

    axes = principal_axes(train)
    torch.testing.assert_close(logits_on(axes), plain, atol=1e-5, rtol=0)
    assert float((logits_on(2 * axes) - plain).abs().max()) > 1e-2  # control: not orthonormal


def test_a_fit_on_the_axes_needs_fewer_iterations() -> None:
    train, labels = ill_conditioned(300, 12, seed=0)
    axes = principal_axes(train)
    enough = {"num_classes": 5, "l2": 1e-5, "max_iter": 40}
    assert fit_logistic(train @ axes, labels, **enough).converged
    assert not fit_logistic(train, labels, **enough).converged
