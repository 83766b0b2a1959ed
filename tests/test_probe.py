from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from sdclr import crossval, probe
from sdclr.accuracy import group_confusion, per_class_accuracy
from sdclr.crossval import FALLBACK_L2, CrossValidation
from sdclr.logistic import fit_logistic, suitable_threads
from sdclr.probe import knn_predict, linear_probe, standardise


def blobs(
    num_rows: int, num_classes: int, num_features: int, seed: int, noise: float = 2.0
) -> tuple[Tensor, Tensor]:
    centres = torch.randn(num_classes, num_features, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % num_classes
    rows = centres[labels] + noise * torch.randn(num_rows, num_features, generator=generator)
    return rows, labels


def cross_validated_l2(rows: Tensor, labels: Tensor, **settings) -> float:
    validation = CrossValidation.of(labels, **settings)
    folds = range(validation.num_folds)
    return validation.choose(labels, [validation.predict(rows, labels, k) for k in folds])


# --- standardise


def test_standardise_uses_the_training_rows_only() -> None:
    train = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    scaled, other = standardise(train, torch.tensor([[4.0, 20.0]]))
    assert scaled.tolist() == [[-1.0, -1.0], [1.0, 1.0]]
    assert other.tolist() == [[3.0, 0.0]]
    assert standardise(torch.cat([train, train + 5]))[0][:2].tolist() != scaled.tolist()


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6, -1e-20])
def test_constant_feature_becomes_zero_everywhere(constant) -> None:
    train = torch.randn(999, 3, generator=torch.Generator().manual_seed(0))
    train[:, 1] = constant
    scaled, other = standardise(train, torch.ones(2, 3))
    assert scaled.isfinite().all() and not scaled[:, 1].any() and not other[:, 1].any()
    torch.testing.assert_close(scaled[:, ::2].std(dim=0, correction=0), torch.ones(2))


# --- choice of the penalty


def test_chosen_penalty_equals_scikit_learns_on_the_same_folds() -> None:
    # Faint features that tell the classes apart, beside loud ones that do not: a strong penalty
    # misses the former, a weak one fits the latter.
    faint, labels = blobs(180, 3, 8, seed=0)
    rows = torch.cat([faint * 0.1, blobs(180, 1, 40, seed=1, noise=0.5)[0]], dim=1)
    grid = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
    chosen = cross_validated_l2(rows, labels, num_classes=3, l2_grid=grid, num_folds=4, seed=1)
    kept, fold = crossval._stratified_folds(labels, 4, 10_000, 1)
    assert torch.equal(kept, torch.arange(180))
    assert all(np.bincount(labels[fold == k]).tolist() == [15, 15, 15] for k in range(4))
    splits = [((fold != k).nonzero()[:, 0], (fold == k).nonzero()[:, 0]) for k in range(4)]
    scores = {}
    for l2 in grid:
        model = LogisticRegression(C=1 / (180 * l2), tol=1e-7, max_iter=5000)
        predicted = cross_val_predict(
            model,
            rows.double().numpy(),
            labels.numpy(),
            cv=[(a.numpy(), b.numpy()) for a, b in splits],
        )
        scores[l2] = balanced_accuracy_score(labels.numpy(), predicted)
    assert len(set(scores.values())) > 2  # the choice is not by accident
    assert chosen == max(grid, key=lambda l2: (scores[l2], l2))
    assert chosen not in (grid[0], grid[-1])


def test_ties_go_to_the_larger_penalty_in_any_grid_order() -> None:
    rows, labels = blobs(60, 3, 10, seed=0, noise=0.01)  # every penalty is perfect
    for grid in ([1e-4, 1e-2, 1e-3], [1e-2, 1e-3, 1e-4]):
        chosen = cross_validated_l2(rows, labels, num_classes=3, l2_grid=grid, num_folds=3, seed=0)
        assert chosen == 1e-2


def test_score_is_balanced_over_classes(monkeypatch) -> None:
    # 2:1 rows of classes 0 and 1, told apart only by a faint feature: a huge penalty predicts the
    # frequent class and has the plain accuracy 2/3 but the balanced accuracy 1/2.
    labels = torch.tensor([0, 0, 1] * 20)
    rows = torch.where(labels == 0, -1.0, 1.0)[:, None].clone()
    rows[::4] *= -1  # a quarter of the rows is mislabelled
    seen: list[np.ndarray] = []
    original = per_class_accuracy

    def spy(predictions: Tensor, truth: Tensor, num_classes: int) -> np.ndarray:
        seen.append(original(predictions, truth, num_classes))
        return seen[-1]

    monkeypatch.setattr(crossval, "per_class_accuracy", spy)
    chosen = cross_validated_l2(
        rows, labels, num_classes=2, l2_grid=[1e-3, 1e4], num_folds=3, seed=0
    )
    assert chosen == 1e-3
    assert seen[0].tolist() == [1.0, 0.0]  # the huge penalty, tried first


def test_penalty_keeps_its_weight_against_the_summed_loss(monkeypatch) -> None:
    rows, labels = blobs(100, 2, 4, seed=0)
    calls: list[tuple[int, float]] = []

    def spy(x: Tensor, y: Tensor, *, num_classes: int, l2: float, **kwargs):
        calls.append((len(x), l2))
        return fit_logistic(x, y, num_classes=num_classes, l2=l2, **kwargs)

    monkeypatch.setattr(crossval, "fit_logistic", spy)
    cross_validated_l2(rows, labels, num_classes=2, l2_grid=[0.1, 0.2], num_folds=5, seed=0)
    assert {(n, round(l2 * n, 9)) for n, l2 in calls} == {(80, 10.0), (80, 20.0)}


def test_thinning_is_stratified_and_seeded() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 9 + [3])
    kept, fold = crossval._stratified_folds(labels, 5, 100, seed=0)
    assert np.bincount(labels[kept]).tolist() == [90, 9, 2, 1]
    assert fold[labels[kept] == 3].tolist() == [-1]
    again, _ = crossval._stratified_folds(labels, 5, 100, seed=0)
    other, _ = crossval._stratified_folds(labels, 5, 100, seed=1)
    assert torch.equal(kept, again) and not torch.equal(kept, other)


def test_choice_is_a_function_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    rows, labels = blobs(90, 3, 20, seed=0)
    before = torch.get_rng_state()
    first, second = (
        linear_probe(rows, labels, rows, num_classes=3, num_folds=3, seed=4) for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert first.l2 == second.l2 and torch.equal(first.predictions_M, second.predictions_M)
    folds = [crossval._stratified_folds(labels, 3, 10_000, seed)[1] for seed in (4, 5)]
    assert not torch.equal(*folds)


def test_few_shots() -> None:
    rows, labels = blobs(12, 4, 10, seed=0)
    kwargs = {"num_classes": 4, "num_folds": 5, "seed": 0}
    # One shot of each class: nothing to hold out, not even for an unusual grid.
    for grid in ([1e-3, 1e-1], [5.0, 7.0]):
        assert cross_validated_l2(rows[:4], labels[:4], l2_grid=grid, **kwargs) == FALLBACK_L2
    # Three shots and five folds: three folds, of one row a class each.
    assert crossval._stratified_folds(labels, 5, 10_000, 0)[1].unique().tolist() == [0, 1, 2]
    assert cross_validated_l2(rows, labels, l2_grid=[1e-3, 1e-1], **kwargs) in (1e-3, 1e-1)
    # Classes with one sample always train; the others are held out.
    assert cross_validated_l2(rows[:11], labels[:11], l2_grid=[1e-3, 1e-1], **kwargs) in (
        1e-3,
        1e-1,
    )


def test_grid_of_one_needs_no_fit_and_bad_settings_are_refused() -> None:
    rows, labels = blobs(12, 4, 10, seed=0)
    assert cross_validated_l2(rows, labels, num_classes=4, l2_grid=[3.0], num_folds=2, seed=0) == 3
    with pytest.raises(ValueError, match="grid"):
        cross_validated_l2(rows, labels, num_classes=4, l2_grid=[], num_folds=2, seed=0)
    with pytest.raises(ValueError, match="folds"):
        cross_validated_l2(rows, labels, num_classes=4, num_folds=1, seed=0)


def test_a_fold_elsewhere_is_the_fold_here() -> None:
    rows, labels = blobs(90, 3, 20, seed=0)
    validation = CrossValidation.of(labels, num_classes=3, num_folds=3, seed=4)
    train, test = probe.on_axes(rows, rows[:7])
    parts = {fold: validation.predict(train, labels, fold) for fold in (2, 0, 1)}
    apart = probe.final_probe(train, labels, test, validation, [parts[k] for k in range(3)])
    whole = linear_probe(rows, labels, rows[:7], num_classes=3, num_folds=3, seed=4)
    assert apart.l2 == whole.l2 and torch.equal(apart.predictions_M, whole.predictions_M)
    reversed_path = [parts[k].flip(0) for k in range(3)]  # predictions of other penalties
    assert validation.choose(labels, reversed_path) != whole.l2


# --- threads


@pytest.mark.parametrize(("num_rows", "inside"), [(10, 1), (2**25, 3)])
def test_small_fits_take_one_thread_and_give_the_others_back(num_rows: int, inside: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        features = torch.empty(1).expand(num_rows, 4)  # takes no memory
        with pytest.raises(KeyError), suitable_threads(features, 2):
            assert torch.get_num_threads() == inside
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# --- linear probe


def test_linear_probe_learns_what_is_there_and_nothing_else() -> None:
    train, labels = blobs(400, 4, 16, seed=0, noise=1.0)
    test, truth = blobs(200, 4, 16, seed=1, noise=1.0)
    result = linear_probe(train * 1000 + 7, labels, test * 1000 + 7, num_classes=4, seed=0)
    assert result.converged and result.l2 in crossval.L2_GRID
    assert (result.predictions_M == truth).double().mean() > 0.95
    shuffled = labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    chance = linear_probe(train, shuffled, test, num_classes=4, seed=0)
    assert (chance.predictions_M == truth).double().mean() < 0.5


# --- kNN


def test_knn_equals_scikit_learns_on_tie_free_data() -> None:
    train, labels = blobs(300, 2, 8, seed=0)
    test, _ = blobs(150, 2, 8, seed=1)
    for k in (1, 5, 21):  # odd, two classes: no ties
        model = KNeighborsClassifier(n_neighbors=k, metric="cosine").fit(train.numpy(), labels)
        expected = model.predict(test.numpy())
        ours = knn_predict(train, labels, test, num_classes=2, k=k)
        assert np.array_equal(ours.numpy(), expected)
    euclidean = KNeighborsClassifier(n_neighbors=21).fit(train.numpy(), labels)
    assert not np.array_equal(euclidean.predict(test.numpy()), expected)


def slow_knn(train: Tensor, labels: Tensor, test: Tensor, num_classes: int, k: int) -> list[int]:
    predictions = []
    for query in test:
        similarity = [float(query @ row / (query.norm() * row.norm())) for row in train]
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[:k]
        votes = [
            (
                sum(int(labels[i]) == label for i in nearest),
                sum(similarity[i] for i in nearest if int(labels[i]) == label),
                -label,
            )
            for label in range(num_classes)
        ]
        predictions.append(-max(votes)[2])
    return predictions


def test_knn_equals_the_slow_loop_with_tied_votes() -> None:
    train, labels = blobs(60, 5, 6, seed=0)
    test, _ = blobs(40, 5, 6, seed=1)
    train, test = train.double(), test.double()
    for k in (2, 4, 20):  # 2 neighbours of 5 classes tie often
        ours = knn_predict(train, labels, test, num_classes=5, k=k)
        assert ours.tolist() == slow_knn(train, labels, test, 5, k)
    assert ours.tolist() != slow_knn(train, labels, test, 5, 1)


def test_knn_tie_goes_to_the_larger_summed_similarity() -> None:
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.95, -0.312], [0.9, -0.436]])
    labels = torch.tensor([0, 0, 1, 1])
    # Sums 1.8 against 1.85: the nearest row belongs to the class that loses.
    assert knn_predict(train, labels, train[:1], num_classes=2, k=4).tolist() == [1]
    assert knn_predict(train, labels, train[:1], num_classes=2, k=1).tolist() == [0]


def test_knn_majority_beats_similarity() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    labels = torch.tensor([0, 1, 1])
    assert knn_predict(train, labels, train[:1], num_classes=2, k=20).tolist() == [1]  # k > N


def test_knn_chunks_do_not_change_the_answer(monkeypatch) -> None:
    train, labels = blobs(100, 5, 6, seed=0)
    test, _ = blobs(33, 5, 6, seed=1)
    whole = knn_predict(train, labels, test, num_classes=5)
    monkeypatch.setattr(probe, "_MAX_CHUNK_ELEMENTS", 700)
    assert torch.equal(knn_predict(train, labels, test, num_classes=5), whole)


def test_knn_refuses_bad_input() -> None:
    train, labels = blobs(10, 2, 3, seed=0)
    with pytest.raises(ValueError, match="k must"):
        knn_predict(train, labels, train, num_classes=2, k=0)
    with pytest.raises(ValueError, match="labels"):
        knn_predict(train, labels, train, num_classes=1)
    with pytest.raises(ValueError, match="test feature"):
        knn_predict(train, labels, train * math.nan, num_classes=2)


# --- accuracy


def test_per_class_accuracy_by_hand() -> None:
    accuracy = per_class_accuracy(
        torch.tensor([0, 0, 1, 2, 2, 7]), torch.tensor([0, 1, 1, 2, 2, 2]), 4
    )
    np.testing.assert_allclose(accuracy, [1.0, 0.5, 2 / 3, math.nan])


def test_per_class_accuracy_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="shapes"):
        per_class_accuracy(torch.zeros(2), torch.zeros(3, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="labels"):
        per_class_accuracy(torch.zeros(1), torch.ones(1, dtype=torch.int64), 1)


# --- confusion of groups


def test_group_confusion_equals_the_slow_loop() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (300,), generator=g)
    predictions = torch.randint(0, 6, (300,), generator=g)
    groups = ((4, 1), (0, 2, 3), (5,))
    slow = np.zeros((3, 3))
    for row, group in enumerate(groups):
        for c in group:
            own = [int(p) for p, y in zip(predictions, labels, strict=True) if y == c]
            for column, other in enumerate(groups):
                slow[row, column] += sum(p in other for p in own) / len(own) / len(group)
    found = group_confusion(predictions, labels, groups)
    np.testing.assert_allclose(found, slow)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert not np.allclose(group_confusion(labels, predictions, groups), slow)


def test_group_confusion_closed_forms() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2])
    groups = ((0,), (1,), (2,))
    np.testing.assert_array_equal(group_confusion(labels, labels, groups), np.eye(3))
    head = group_confusion(torch.zeros(5, dtype=torch.long), labels, groups)
    np.testing.assert_array_equal(head, [[1, 0, 0]] * 3)
    unseen = group_confusion(labels, labels, ((0, 1), (2,), (3,)))
    assert np.isnan(unseen[2]).all() and unseen[0].tolist() == [1, 0, 0]
