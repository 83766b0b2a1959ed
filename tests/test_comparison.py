"""Aggregation over splits, the STD rule on the published table, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluate.comparison import (
    method_differences,
    paired_difference,
    student_t975,
    welch_half_width,
)
from pipeline.record.aggregate import MeanDifference
from sdclr.groups import Groups, GroupScores, group_scores, mean_scores

GROUPS = Groups(many=(0,), medium=(1,), few=(2,))


def scores(many: float, medium: float, few: float) -> GroupScores:
    return group_scores([many, medium, few], GROUPS)


def test_the_std_of_the_published_table_is_that_of_the_splits_and_not_of_its_columns() -> None:
    # SimCLR on CIFAR-10-LT (table 4 of the paper): the means over five splits are 78.18, 76.23 and
    # 71.37. Whatever the splits are that give these columns, their own STDs are what is averaged.
    published = np.array([78.18, 76.23, 71.37])
    turns = np.array([[6, -3, -8], [-5, 7, 2], [3, -6, 5], [-7, 1, 4], [3, 1, -3]], np.float64)
    assert not turns.sum(axis=0).any()
    splits = [scores(*(published + turn)) for turn in turns]
    summary = mean_scores(splits)
    assert astuple(summary.mean)[:3] == pytest.approx(published)
    by_hand = [np.sqrt(np.mean((row - row.mean()) ** 2)) for row in published + turns]
    assert summary.mean.std == pytest.approx(np.mean(by_hand))
    # The mistake to avoid: the STD of the three published columns is 2.86.
    assert np.std(published) == pytest.approx(2.8635, abs=1e-3)
    assert summary.mean.std > 1.7 * np.std(published)
    # By that mistake SDCLR's row would look less even than SimCLR's.
    assert np.std([86.44, 81.84, 76.23]) > np.std(published)


@pytest.mark.parametrize(
    ("columns", "told"), [((78.18, 76.23, 71.37), 75.6), ((86.44, 81.84, 76.23), 82.0)]
)
def test_all_of_the_published_table_is_the_mean_over_classes_and_not_over_groups(
    columns: tuple[float, ...], told: float
) -> None:
    # CIFAR-10-LT has 4, 3 and 3 classes in its groups; SimCLR's row, and SDCLR's.
    groups = Groups(many=(0, 1, 2, 3), medium=(4, 5, 6), few=(7, 8, 9))
    found = group_scores(np.repeat(columns, (4, 3, 3)).tolist(), groups)
    assert astuple(found)[:3] == pytest.approx(columns)
    assert found.all == pytest.approx(told, abs=0.05)
    assert np.mean(columns) != pytest.approx(told, abs=0.3)


def difference_of(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> MeanDifference:
    table = {
        ("knn", name): dict(enumerate(scores(*row) for row in rows))
        for name, rows in (("a", a), ("b", b))
    }
    (found,) = method_differences(table)
    return found


def test_paired_differences_equal_scipys_paired_t() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(60, 10, size=(6, 1))  # how hard a split is, for both methods
    a = hard + generator.normal(2, 0.5, size=(6, 3))
    b = hard + generator.normal(0, 0.5, size=(6, 3))
    found = paired_difference([scores(*row) for row in a], [scores(*row) for row in b])
    for i, field in enumerate(("many", "medium", "few")):
        test = stats.ttest_rel(a[:, i], b[:, i])
        low, high = test.confidence_interval(0.95)
        mean, half = getattr(found.mean, field), getattr(found.half_width, field)
        assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-3)
        assert (abs(mean) > half) == (test.pvalue < 0.05)
    assert found.n == 6 and difference_of(a.tolist(), b.tolist()).sign("few") == 1
    # Control: unpaired, the same numbers say nothing, for the splits differ more than the methods.
    assert stats.ttest_ind(a[:, 2], b[:, 2]).pvalue > 0.3


def test_the_difference_of_std_is_taken_per_split() -> None:
    a, b = [scores(80, 70, 60), scores(60, 70, 80)], [scores(70, 70, 70), scores(70, 70, 70)]
    found = paired_difference(a, b)
    assert found.mean.std == pytest.approx(np.std([80, 70, 60]))
    assert (found.mean.many, found.mean.few) == (0, 0)


def test_one_pair_has_no_interval() -> None:
    found = paired_difference([scores(3, 2, 1)], [scores(1, 1, 1)])
    assert (found.mean.many, found.spread, found.half_width, found.n) == (2, None, None, 1)
    one = difference_of([(3, 2, 1)], [(1, 1, 1)])
    assert (one.many, one.half("many"), one.sign("many")) == (2, None, 0)


def test_equal_methods_differ_by_nothing_and_nan_stays() -> None:
    same = [scores(3, 2, 1), scores(5, 5, 5)]
    found = paired_difference(same, same)
    assert set(astuple(found.mean)) == {0}
    empty = group_scores([0.5, 0.5], Groups((0,), (1,), ()))
    assert np.isnan(paired_difference([empty], [empty]).mean.few)


def test_what_is_not_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([scores(1, 1, 1)], [])
    with pytest.raises(ValueError, match="no scores"):
        paired_difference([], [])


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 30, 31, 60, 500, 10_000])
def test_quantiles_of_students_t_equal_scipys(degrees: int) -> None:
    assert student_t975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-3)
    with pytest.raises(ValueError):
        student_t975(0)


@pytest.mark.parametrize(("n_a", "n_b", "ratio"), [(2, 2, 1.0), (3, 3, 4.0), (5, 9, 0.2)])
def test_welch_interval_is_that_of_scipy_or_wider(n_a: int, n_b: int, ratio: float) -> None:
    rng = np.random.default_rng(n_a)
    a_N, b_N = rng.normal(0, 1, n_a), rng.normal(0, ratio, n_b)
    found = stats.ttest_ind(a_N, b_N, equal_var=False)
    half = welch_half_width(a_N.std(ddof=1), n_a, b_N.std(ddof=1), n_b)
    low, high = found.confidence_interval(0.95)
    assert half >= (high - low) / 2 - 1e-3
    error = (a_N.var(ddof=1) / n_a + b_N.var(ddof=1) / n_b) ** 0.5
    assert half == pytest.approx(stats.t.ppf(0.975, int(found.df)) * error, abs=1e-2)


def test_welch_interval_of_equal_spreads_has_all_degrees_and_of_one_spread_its_own() -> None:
    assert welch_half_width(1.0, 4, 1.0, 4) == pytest.approx(2.447 * (2 / 4) ** 0.5, abs=1e-3)
    assert welch_half_width(1.0, 4, 0.0, 4) == pytest.approx(3.182 / 4**0.5, abs=1e-3)
    assert welch_half_width(0.0, 2, 0.0, 2) == 0
