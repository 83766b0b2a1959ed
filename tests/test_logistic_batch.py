"""Many logistic regressions at once: each is the one that `fit_logistic` finds alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sdclr.crossval import CrossValidation, predict_together
from sdclr.logistic import fit_logistic
from sdclr.logistic_batch import fit_together
from sdclr.probe import on_axes

L2 = torch.tensor([1e-3, 1e-1, 1.0], dtype=torch.float64)


def problem(
    num_rows: int = 60, num_features: int = 12, num_classes: int = 4
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.arange(num_rows) % num_classes
    centres_CD = torch.randn(num_classes, num_features, generator=generator)
    noise_ND = torch.randn(num_rows, num_features, generator=generator)
    features_ND = centres_CD[labels_N] + 2 * noise_ND * torch.logspace(0, -2, num_features)
    return on_axes(features_ND.double(), features_ND[:1])[0], labels_N


def halves(num_rows: int) -> Tensor:
    """Weights (3, N): all rows, and one half or the other."""
    is_even_N = torch.arange(num_rows) // 4 % 2 == 0
    return torch.stack([torch.ones(num_rows, dtype=torch.bool), is_even_N, ~is_even_N])


def on_one_set(
    features_NR: Tensor, labels_N: Tensor, weights_PN: Tensor, l2_P: Tensor, *,
    num_classes: int, **more: float,
) -> Tensor:  # fmt: skip
    """Problems that are all fitted on the same rows."""
    sets_P = torch.zeros(len(l2_P), dtype=torch.int64)
    found = fit_together(
        features_NR[None], labels_N[None], sets_P, weights_PN, l2_P, num_classes=num_classes, **more
    )  # type: ignore[arg-type]
    assert found.converged_P.all()
    return found.at_PCE


def test_each_problem_ends_where_it_ends_alone() -> None:
    features_NR, labels_N = problem()
    weights_PN = halves(60)
    found_PCE = on_one_set(
        features_NR, labels_N, weights_PN, L2, num_classes=4, grad_tolerance=1e-10
    )
    for theta_CE, rows, l2 in zip(found_PCE, weights_PN, L2.tolist(), strict=True):
        alone = fit_logistic(
            features_NR[rows], labels_N[rows], num_classes=4, l2=l2, grad_tolerance=1e-12
        )
        torch.testing.assert_close(theta_CE[:, :-1], alone.weight_CD, rtol=1e-3, atol=1e-4)
    # The control: another penalty ends elsewhere.
    other = fit_logistic(features_NR, labels_N, num_classes=4, l2=1e-2)
    assert (found_PCE[0, :, :-1] - other.weight_CD).abs().max() > 0.05


def test_features_that_say_nothing_leave_the_frequencies() -> None:
    """Closed form: with x = 0 the bias is the log of the weighted frequencies, up to a constant."""
    labels_N = torch.tensor([0, 0, 0, 1, 1, 2])
    weights_PN = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    found_PCE = on_one_set(
        torch.zeros(6, 2, dtype=torch.float64), labels_N, weights_PN, L2[:2], num_classes=3,
        grad_tolerance=1e-10,
    )  # fmt: skip
    shares = found_PCE[..., -1].softmax(dim=1)
    expected = torch.tensor([[3 / 6, 2 / 6, 1 / 6], [1 / 4, 2 / 4, 1 / 4]], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, rtol=1e-5, atol=1e-6)
    assert found_PCE[..., :-1].abs().max() == 0


def test_a_problem_does_not_depend_on_its_neighbours() -> None:
    features_NR, labels_N = problem()
    weights_PN = halves(60)
    together = on_one_set(features_NR, labels_N, weights_PN, L2, num_classes=4)
    alone = on_one_set(features_NR, labels_N, weights_PN[1:2], L2[1:2], num_classes=4)
    torch.testing.assert_close(together[1], alone[0], rtol=1e-6, atol=1e-8)


def test_rows_without_weight_are_not_seen() -> None:
    features_NR, labels_N = problem()
    weights_PN = halves(60)[1:2]
    found = on_one_set(features_NR, labels_N, weights_PN, L2[:1], num_classes=4)
    moved_NR = features_NR.where(weights_PN[0, :, None], 100.0)
    again = on_one_set(moved_NR, labels_N, weights_PN, L2[:1], num_classes=4)
    torch.testing.assert_close(found, again)
    seen = on_one_set(moved_NR, labels_N, ~weights_PN, L2[:1], num_classes=4)
    assert (seen - found).abs().max() > 0.01


def test_float32_predicts_what_float64_does() -> None:
    features_NR, labels_N = problem(50, 40, 10)
    validation = CrossValidation.of(labels_N, num_classes=10, num_folds=5, seed=0)
    assert validation.is_small
    wide = validation.predict_all(features_NR, labels_N)
    narrow = validation.predict_all(features_NR.float(), labels_N)
    pairs = list(zip(wide, narrow, strict=True))
    differ = sum(int((a != b).sum()) for a, b in pairs)
    assert differ <= 0.02 * sum(a.numel() for a, _ in pairs)


def test_all_folds_together_predict_what_each_predicts_alone() -> None:
    features_NR, labels_N = problem()
    validation = CrossValidation.of(labels_N, num_classes=4, num_folds=3, seed=0)
    together = validation.predict_all(features_NR, labels_N)
    apart = [validation.predict(features_NR, labels_N, fold) for fold in range(3)]
    assert [part.shape for part in together] == [part.shape for part in apart]
    differ = sum(int((a != b).sum()) for a, b in zip(together, apart, strict=True))
    assert differ <= 0.02 * sum(part.numel() for part in apart)
    shifted = [*apart[1:], apart[0]]
    assert sum(int((a != b).sum()) for a, b in zip(together, shifted, strict=True)) > differ


def test_problems_of_several_sets_end_where_they_end_alone() -> None:
    """Predictions of every fold of three probes; the control: another probe's."""
    sets = [problem(num_features=6), problem(num_features=6), problem(num_features=6)]
    sets = [
        (x_NR + k * torch.linspace(-1, 1, 6), y_N.roll(k)) for k, (x_NR, y_N) in enumerate(sets)
    ]
    validations = [
        CrossValidation.of(y_N, num_classes=4, num_folds=3, seed=k)
        for k, (_, y_N) in enumerate(sets)
    ]
    together = predict_together(validations, [x for x, _ in sets], [y for _, y in sets])
    for k, (validation, one, parts) in enumerate(zip(validations, sets, together, strict=True)):
        alone = validation.predict_all(*one)
        assert all(map(torch.equal, parts, alone))
        assert not all(map(torch.equal, parts, together[k - 1]))


def test_sets_of_unlike_shapes_are_refused() -> None:
    one, other = problem(), problem(num_rows=40)
    validations = [
        CrossValidation.of(y_N, num_classes=4, num_folds=3, seed=0) for _, y_N in (one, other)
    ]
    with pytest.raises(ValueError, match="one shape"):
        predict_together(validations, [one[0], other[0]], [one[1], other[1]])


def test_a_large_problem_is_fitted_fold_by_fold() -> None:
    labels_N = torch.arange(5000) % 4
    validation = CrossValidation.of(labels_N, num_classes=4, num_folds=5, seed=0)
    assert not validation.is_small


@pytest.mark.parametrize(
    ("weights_PN", "l2_P"),
    [
        (torch.ones(1, 59), torch.tensor([0.1])),
        (torch.ones(2, 60), torch.tensor([0.1])),
        (torch.zeros(1, 60), torch.tensor([0.1])),
        (-torch.ones(1, 60), torch.tensor([0.1])),
        (torch.ones(1, 60), torch.tensor([0.0])),
        (torch.ones(1, 60), torch.tensor([math.nan])),
    ],
)
def test_what_is_no_problem_is_refused(weights_PN: Tensor, l2_P: Tensor) -> None:
    features_NR, labels_N = problem()
    with pytest.raises(ValueError, match="needs"):
        on_one_set(features_NR, labels_N, weights_PN, l2_P, num_classes=4)
