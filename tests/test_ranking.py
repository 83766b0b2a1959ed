"""AUROC and precision among the first k against slow loops, closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipeline.evaluate.ranking import auroc, bootstrap, precision_at
from pipeline.record.intervals import wilson


def some_scores(num: int = 200, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    positive = generator.random(num) < 0.2
    scores = generator.normal(size=num) + positive
    return (scores.round(0) if ties else scores), positive


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_equals_the_loop_over_all_pairs_and_scikit_learn(ties: bool) -> None:
    scores, positive = some_scores(ties=ties)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(float(np.mean(pairs)))
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    assert auroc(scores, positive) != pytest.approx(auroc(scores, positive[::-1]))


def test_auroc_closed_forms() -> None:
    positive = np.array([True, True, False, False])
    assert auroc(np.array([4.0, 3, 2, 1]), positive) == 1
    assert auroc(np.array([1.0, 2, 3, 4]), positive) == 0
    assert auroc(np.zeros(4), positive) == 0.5
    assert auroc(np.array([4.0, 1, 3, 2]), positive) == 0.5
    assert math.isnan(auroc(np.zeros(3), np.ones(3, bool)))


def test_precision_equals_the_mean_over_all_orders_of_ties() -> None:
    scores, positive = some_scores(60, ties=True)
    generator = np.random.default_rng(1)
    for k in (1, 7, 30, 60):
        slow = []
        for _ in range(4000):
            order = generator.permutation(60)
            first = order[np.argsort(-scores[order], kind="stable")[:k]]
            slow.append(positive[first].mean())
        assert precision_at(scores, positive, k) == pytest.approx(np.mean(slow), abs=0.02)
    assert precision_at(scores, positive, 60) == pytest.approx(positive.mean())


def test_precision_closed_forms() -> None:
    positive = np.array([True, False, True, False])
    assert precision_at(np.array([4.0, 3, 2, 1]), positive, 1) == 1
    assert precision_at(np.array([4.0, 3, 2, 1]), positive, 2) == 0.5
    assert precision_at(np.zeros(4), positive, 3) == 0.5  # knows nothing: the share of positives
    for k in (0, 5):
        with pytest.raises(ValueError, match="k must be"):
            precision_at(np.zeros(4), positive, k)


def test_the_interval_covers_as_often_as_it_says() -> None:
    truth = 0.7602  # of normal scores whose means differ by 1: Phi(1 / sqrt 2)
    covered = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        positive = np.arange(240) < 80
        found = bootstrap(
            auroc, generator.normal(size=240) + positive, positive, seed=0, num_resamples=200
        )
        assert found.low < found.value < found.high
        covered += found.low <= truth <= found.high
    assert 51 <= covered <= 60


def test_equal_seeds_give_equal_intervals_and_more_images_narrower_ones() -> None:
    scores, positive = some_scores()
    first, again = (bootstrap(auroc, scores, positive, seed=3) for _ in range(2))
    assert first == again != bootstrap(auroc, scores, positive, seed=4)
    wide = first.high - first.low
    many = bootstrap(auroc, np.tile(scores, 16), np.tile(positive, 16), seed=3)
    assert many.high - many.low < wide / 2
    nothing = bootstrap(auroc, scores, np.zeros(len(scores), bool), seed=0, num_resamples=5)
    assert math.isnan(nothing.value) and math.isnan(nothing.low)


# --- Wilson's interval


def test_wilson_closed_forms() -> None:
    z2 = 1.959964**2
    none, half = wilson(0.0, 10), wilson(0.5, 10)
    assert none.low == 0 and none.high == pytest.approx(z2 / (10 + z2))
    assert half.low + half.high == pytest.approx(1)
    assert half.high - half.low == pytest.approx(2 * 1.959964 / (2 * math.sqrt(10 + z2)))
    assert wilson(1.0, 10).high == pytest.approx(1)
    assert wilson(1.0, 10).low == pytest.approx(1 - none.high)
    for share, num in ((0.5, 0), (math.nan, 5)):
        assert math.isnan(wilson(share, num).low)


def test_wilson_covers_as_often_as_it_says() -> None:
    counts = np.random.default_rng(0).binomial(40, 0.85, size=4000)
    covered = [wilson(c / 40, 40).low <= 0.85 <= wilson(c / 40, 40).high for c in counts]
    assert 0.93 < np.mean(covered) < 0.97
    naive = [abs(c / 40 - 0.85) <= 1.96 * math.sqrt(c / 40 * (1 - c / 40) / 40) for c in counts]
    assert np.mean(naive) < np.mean(covered)
