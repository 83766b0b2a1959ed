from __future__ import annotations

import math

import numpy as np
import pytest

from sdclr.fewshot import fewshot_draws
from sdclr.groups import (
    Groups,
    GroupScores,
    group_scores,
    groups_by_tercile,
    groups_by_threshold,
    mean_scores,
    tied_with_few,
)
from sdclr.longtail import class_order, exponential_counts, long_tail_split, pareto_counts

CIFAR10_LT = [4500, 2697, 1617, 969, 581, 348, 208, 125, 75, 45]
SPLIT1_BY_LABEL = [348, 969, 125, 208, 1617, 75, 4500, 581, 2697, 45]


def test_exponential_counts_equal_the_published_cifar_lists() -> None:
    assert exponential_counts(4500, imbalance_ratio=100, num_classes=10) == CIFAR10_LT
    cifar100 = exponential_counts(450, imbalance_ratio=100, num_classes=100)
    assert (cifar100[0], cifar100[-1], sum(cifar100)) == (450, 4, 9754)


def test_exponential_counts_control_other_ratio_is_another_list() -> None:
    assert sum(exponential_counts(4500, imbalance_ratio=50, num_classes=10)) != 11165


def test_exponential_counts_survive_rounding_just_below_an_integer() -> None:
    # 1000^(1/3) is 10 in exact arithmetic; plain int() loses one image where pow() rounds down.
    assert exponential_counts(1000, imbalance_ratio=1000, num_classes=4) == [1000, 100, 10, 1]
    powers_of_three = [3**k for k in range(12, -1, -1)]
    assert exponential_counts(3**12, imbalance_ratio=3**12, num_classes=13) == powers_of_three
    plain = [int(3**12 * (3**12) ** (-rank / 12)) for rank in range(13)]
    assert plain != powers_of_three


def test_exponential_counts_control_a_true_fraction_is_not_rounded_up() -> None:
    assert exponential_counts(450, imbalance_ratio=100, num_classes=2) == [450, 4]


@pytest.mark.parametrize("profile", [exponential_counts, pareto_counts])
def test_profiles_at_the_limits(profile) -> None:
    assert profile(7, imbalance_ratio=1.0, num_classes=3) == [7, 7, 7]
    assert profile(7, imbalance_ratio=100.0, num_classes=1) == [7]
    counts = profile(1280, imbalance_ratio=256, num_classes=50)
    assert counts[0] == 1280 and counts[-1] == 5
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("profile", [exponential_counts, pareto_counts])
@pytest.mark.parametrize(
    ("num_max", "ratio", "num_classes"),
    [(0, 10, 3), (10, 0.5, 3), (10, math.inf, 3), (10, math.nan, 3), (10, 10, 0), (10, 11, 3)],
)
def test_profiles_refuse_bad_arguments(profile, num_max, ratio, num_classes) -> None:
    with pytest.raises(ValueError):
        profile(num_max, imbalance_ratio=ratio, num_classes=num_classes)


def test_pareto_counts_are_close_to_imagenet_lt() -> None:
    counts = pareto_counts(1280, imbalance_ratio=256, num_classes=1000)
    assert sum(counts) == pytest.approx(115_846, rel=0.06)
    groups = groups_by_threshold(counts)
    assert [len(groups.many), len(groups.medium), len(groups.few)] == [404, 456, 140]
    exponential = exponential_counts(1280, imbalance_ratio=256, num_classes=1000)
    assert sum(exponential) != pytest.approx(115_846, rel=0.5)


def test_pareto_counts_equal_the_quantile_formula() -> None:
    # Inverting the Lomax law at each count gives back evenly spaced tail probabilities.
    scale = (10**9 - 10**6) / (0.001 ** (-1 / 6) - 1)
    counts = np.array(pareto_counts(10**9, imbalance_ratio=1000, num_classes=11), dtype=float)
    tail = (1 + (counts - 10**6) / scale) ** -6.0
    np.testing.assert_allclose(tail, np.linspace(0.001, 1, 11), rtol=1e-6)
    with pytest.raises(ValueError, match="power"):
        pareto_counts(10, imbalance_ratio=2, num_classes=3, power=0.0)


def balanced_labels(num_classes: int = 10, per_class: int = 60) -> np.ndarray:
    return np.random.default_rng(5).permutation(np.repeat(np.arange(num_classes), per_class))


def test_split_has_the_asked_counts_in_the_class_order() -> None:
    labels = balanced_labels()
    counts = exponential_counts(60, imbalance_ratio=20, num_classes=10)
    indices = long_tail_split(labels, counts_by_rank=counts, seed=3)
    assert indices.dtype == np.int64
    assert np.array_equal(indices, np.unique(indices))
    per_class = np.bincount(labels[indices], minlength=10)
    assert [per_class[label] for label in class_order(10, seed=3)] == counts


def test_split_is_a_function_of_the_seed() -> None:
    labels = balanced_labels()
    counts = exponential_counts(50, imbalance_ratio=10, num_classes=10)
    first = long_tail_split(labels, counts_by_rank=counts, seed=0)
    assert np.array_equal(first, long_tail_split(list(labels), counts_by_rank=counts, seed=0))
    other = long_tail_split(labels, counts_by_rank=counts, seed=1)
    assert not np.array_equal(first, other)
    assert len({class_order(10, seed=seed) for seed in range(5)}) == 5


def test_split_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    long_tail_split(balanced_labels(), counts_by_rank=[5] * 10, seed=0)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_stronger_imbalance_is_a_subset_of_a_weaker_one() -> None:
    labels = balanced_labels()
    weak, strong = (
        set(
            long_tail_split(
                labels,
                counts_by_rank=exponential_counts(60, imbalance_ratio=ratio, num_classes=10),
                seed=7,
            ).tolist()
        )
        for ratio in (5, 20)
    )
    assert strong < weak


def test_split_names_the_class_that_is_too_small() -> None:
    labels = np.array([0] * 5 + [1] * 5 + [2] * 2)
    with pytest.raises(ValueError, match="class 2 at rank . needs 3 images, has 2"):
        long_tail_split(labels, counts_by_rank=[3, 3, 3], seed=0)
    assert len(long_tail_split(labels, counts_by_rank=[2, 2, 2], seed=0)) == 6


@pytest.mark.parametrize("labels", [[0, 3], [0, -1], [0.5, 1.0], [[0], [1]]])
def test_split_refuses_bad_labels(labels) -> None:
    with pytest.raises(ValueError, match="labels"):
        long_tail_split(labels, counts_by_rank=[1, 1], seed=0)


def test_fewshot_draws_are_balanced_different_and_extendable() -> None:
    labels = balanced_labels(4, 30)
    draws = fewshot_draws(labels, shots_per_class=3, num_draws=5, seed=2)
    for draw in draws:
        assert np.bincount(labels[draw]).tolist() == [3, 3, 3, 3]
        assert np.array_equal(draw, np.unique(draw))
    assert len({tuple(draw) for draw in draws}) == 5
    shorter = fewshot_draws(labels, shots_per_class=3, num_draws=2, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(shorter, draws, strict=False))
    other = fewshot_draws(labels, shots_per_class=3, num_draws=2, seed=3)
    assert not np.array_equal(other[0], draws[0])


def test_fewshot_draws_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="class 1 needs 2 images, has 1"):
        fewshot_draws([0, 0, 1], shots_per_class=2, num_draws=1, seed=0)
    with pytest.raises(ValueError, match=">= 1"):
        fewshot_draws([0, 0, 1], shots_per_class=0, num_draws=1, seed=0)
    with pytest.raises(ValueError, match=">= 0"):
        fewshot_draws([0, -1], shots_per_class=1, num_draws=1, seed=0)


def test_terciles_of_the_published_split() -> None:
    groups = groups_by_tercile(SPLIT1_BY_LABEL)
    assert groups == Groups(many=(1, 4, 6, 8), medium=(0, 3, 7), few=(2, 5, 9))
    hundred = groups_by_tercile(exponential_counts(450, imbalance_ratio=100, num_classes=100))
    assert [len(hundred.many), len(hundred.medium), len(hundred.few)] == [34, 33, 33]


def test_terciles_break_ties_by_class_index() -> None:
    assert groups_by_tercile([5, 5, 5]) == Groups(many=(2,), medium=(1,), few=(0,))
    assert groups_by_tercile([9, 1]) == Groups(many=(0, 1), medium=(), few=())


@pytest.mark.parametrize(
    ("counts", "tied"), [([5, 5, 5], (1, 2)), ([9, 4, 4], (2,)), ([9, 5, 4], ()), ([9, 1], ())]
)
def test_classes_that_the_order_alone_keeps_out_of_few(
    counts: list[int], tied: tuple[int, ...]
) -> None:
    groups = groups_by_tercile(counts)
    assert tied_with_few(counts, groups) == tied
    ordered = groups.few + groups.medium + groups.many
    slow = {b for a in groups.few for b in ordered if counts[a] == counts[b]} - {*groups.few}
    assert set(tied) == slow
    assert tied_with_few(counts, groups_by_threshold(counts)) == ()


def test_threshold_bounds_are_medium() -> None:
    groups = groups_by_threshold([101, 100, 20, 19])
    assert groups == Groups(many=(0,), medium=(1, 2), few=(3,))
    with pytest.raises(ValueError, match="overlaps"):
        groups_by_threshold([1], many_above=5, few_below=7)


def test_group_scores_by_hand() -> None:
    groups = groups_by_tercile(SPLIT1_BY_LABEL)
    accuracy = [0.70, 0.90, 0.50, 0.70, 0.90, 0.50, 0.90, 0.70, 0.90, 0.50]
    scores = group_scores(accuracy, groups)
    assert (scores.many, scores.medium, scores.few) == pytest.approx((0.9, 0.7, 0.5))
    # All is over classes (0.72), not over groups (0.70); std divides by 3, not by 2.
    assert scores.all == pytest.approx(0.72)
    assert scores.std == pytest.approx(math.sqrt(0.08 / 3))
    assert scores.std != pytest.approx(np.std([0.9, 0.7, 0.5], ddof=1))


def test_uniformly_bad_model_is_perfectly_balanced() -> None:
    assert group_scores([0.1] * 10, groups_by_tercile(SPLIT1_BY_LABEL)).std == pytest.approx(0)


def test_empty_group_is_nan_and_so_is_std() -> None:
    scores = group_scores([0.8, 0.6], Groups(many=(0,), medium=(), few=(1,)))
    assert (scores.many, scores.few, scores.all) == pytest.approx((0.8, 0.6, 0.7))
    assert math.isnan(scores.medium) and math.isnan(scores.std)


def test_unmeasured_class_is_left_out() -> None:
    groups = Groups(many=(0, 1), medium=(2,), few=(3,))
    scores = group_scores([0.8, math.nan, 0.6, 0.4], groups)
    assert (scores.many, scores.all) == pytest.approx((0.8, 0.6))
    assert scores.std == pytest.approx(np.std([0.8, 0.6, 0.4]))
    with pytest.raises(ValueError, match="class 3"):
        group_scores([0.8, 0.5, 0.6], groups)


def test_std_is_averaged_over_splits() -> None:
    # Two splits whose weak group differs: the averaged columns look balanced, the splits are not.
    splits = [
        GroupScores(many=80.0, medium=76.0, few=66.0, std=0.0, all=75.0),
        GroupScores(many=76.0, medium=66.0, few=80.0, std=0.0, all=74.0),
    ]
    splits = [
        GroupScores(s.many, s.medium, s.few, float(np.std([s.many, s.medium, s.few])), s.all)
        for s in splits
    ]
    summary = mean_scores(splits)
    assert summary.n == 2
    assert (summary.mean.many, summary.mean.medium, summary.mean.few) == (78.0, 71.0, 73.0)
    assert summary.mean.std == pytest.approx(math.sqrt(104 / 3))  # both splits have this std
    averaged_columns = np.std([summary.mean.many, summary.mean.medium, summary.mean.few])
    assert averaged_columns == pytest.approx(math.sqrt(26 / 3))
    assert summary.mean.std > 1.9 * averaged_columns
    assert summary.spread is not None
    assert summary.spread.many == pytest.approx(math.sqrt(8))  # ddof 1 of 80, 76
    assert summary.spread.std == pytest.approx(0.0)


def test_mean_scores_of_one_and_of_none() -> None:
    one = GroupScores(0.9, 0.8, 0.7, 0.1, 0.8)
    summary = mean_scores([one])
    assert (summary.mean, summary.spread, summary.n) == (one, None, 1)
    with pytest.raises(ValueError, match="no scores"):
        mean_scores([])
