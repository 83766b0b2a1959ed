"""Density, ranks, the batch, the map: slow references, closed forms, negative controls."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from sdclr import rarity
from sdclr.kmeans import kmeans
from sdclr.rarity import knn_distance, pca_2d, rank_share, stratified_batch


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- kNN distance


def test_knn_distance_equals_the_slow_loop_in_any_chunks(monkeypatch) -> None:
    features, k = gaussian(40, 6), 3
    slow = []
    for i in range(40):
        distances = sorted(
            1 - float(torch.cosine_similarity(features[i], features[j], dim=0))
            for j in range(40)
            if j != i
        )
        slow.append(sum(distances[:k]) / k)
    own = torch.arange(40)
    assert knn_distance(features, features, k=k, own_N=own).tolist() == pytest.approx(
        slow, abs=1e-5
    )
    monkeypatch.setattr(rarity, "_CHUNK_ROWS", 7)
    found = knn_distance(features * 3, features * 0.2, k=k, own_N=own)
    assert found.tolist() == pytest.approx(slow, abs=1e-5)
    with_self = knn_distance(features, features, k=k)
    assert with_self.tolist() != pytest.approx(slow, abs=1e-5)


def test_knn_distance_closed_forms_and_rare_images() -> None:
    axes = torch.eye(3)
    assert knn_distance(axes[:1], axes, k=1).tolist() == [0]
    assert knn_distance(axes[:1], axes, k=3).tolist() == pytest.approx([2 / 3])
    assert knn_distance(axes[:1], -axes[:1], k=9).tolist() == [2]
    crowd = torch.cat([axes[:1] + 0.01 * gaussian(50, 3), axes[1:2]])
    found = knn_distance(crowd, crowd, k=5, own_N=torch.arange(51))
    assert int(found.argmax()) == 50
    some = torch.tensor([-1, 0])  # the first image is not part of the reference
    assert knn_distance(axes[:2], axes[1:2], k=1, own_N=some[:1].repeat(2)).tolist() == [1, 0]


@pytest.mark.parametrize(("num", "k", "own"), [(0, 1, None), (1, 1, [0]), (3, 0, None)])
def test_knn_distance_needs_another_image(num: int, k: int, own: list[int] | None) -> None:
    own_N = None if own is None else torch.tensor(own)
    with pytest.raises(ValueError, match="another image"):
        knn_distance(torch.ones(1, 2), torch.ones(num, 2), k=k, own_N=own_N)


# --- ranks


def test_rank_share_equals_scipys_ranks() -> None:
    scores = np.random.default_rng(0).normal(size=70).round(1)
    expected = (rankdata(scores) - 1) / 69
    np.testing.assert_allclose(rank_share(scores), expected)
    assert not np.allclose(rank_share(-scores), expected)


def test_rank_share_closed_forms() -> None:
    assert rank_share(np.array([3.0, 1, 2])).tolist() == [1, 0, 0.5]
    assert rank_share(np.array([5.0, 5, 5])).tolist() == [0.5, 0.5, 0.5]
    assert rank_share(np.array([7.0])).tolist() == [0]
    assert rank_share(np.array([])).tolist() == []
    assert rank_share(np.array([1.0, math.nan])).tolist() == [1, 0]


# --- the batch to label first


def test_a_batch_equals_the_slow_turns_of_clusters() -> None:
    features = gaussian(90, 5)
    unit = torch.nn.functional.normalize(features[:60], dim=1)
    clusters = kmeans(unit, 3).labels_N.tolist()
    queues = [[row for row in range(60) if clusters[row] == cluster] for cluster in range(3)]
    chosen: list[int] = []
    while len(chosen) < 30:
        turn = sorted(queue.pop(0) for queue in queues if queue)
        chosen += turn[: 30 - len(chosen)]
    assert stratified_batch(features, 30) == chosen
    assert chosen != list(range(30))


def test_a_crowd_of_alike_images_does_not_fill_the_batch() -> None:
    directions = torch.eye(3).repeat_interleave(torch.tensor([25, 10, 10]), dim=0)
    features = torch.cat([directions + 0.02 * gaussian(45, 3), gaussian(80, 3)])
    clusters = directions.argmax(dim=1).tolist()
    chosen = stratified_batch(features, 20)
    assert [row for row in chosen if row >= 40] == []  # only the first 2 x 20 are looked at
    in_order = [clusters[row] for row in range(20)]
    assert set(in_order) == {0} and {clusters[row] for row in chosen[:4]} == {0, 1}
    assert sum(clusters[row] == 0 for row in chosen) == 10


def test_a_batch_holds_nobody_twice() -> None:
    assert sorted(stratified_batch(torch.ones(5, 3), 9)) == [0, 1, 2, 3, 4]
    assert stratified_batch(torch.ones(5, 3), 0) == []
    assert stratified_batch(gaussian(9, 3), 4) == [0, 1, 2, 3]  # one cluster: the plain order


# --- the map


def test_pca_equals_the_eigenvectors_of_the_covariance() -> None:
    features = gaussian(80, 5).double() * torch.tensor([5.0, 3, 1, 1, 0.5]).double() + 7
    found, shares = pca_2d(features)
    points = found.numpy()
    value, vector = np.linalg.eigh(np.cov(features.numpy().T))
    centred = features.numpy() - features.numpy().mean(axis=0)
    for axis in (0, 1):
        expected = centred @ vector[:, -1 - axis]
        np.testing.assert_allclose(np.abs(points[:, axis]), np.abs(expected), atol=1e-9)
        assert shares[axis] == pytest.approx(value[-1 - axis] / value.sum())
        assert points[:, axis].max() >= -points[:, axis].min()
    assert not np.allclose(np.abs(points[:, 0]), np.abs(centred @ vector[:, 0]))


def test_pca_of_a_line_and_of_one_point() -> None:
    line = torch.arange(4.0)[:, None] * torch.tensor([[3.0, 4.0]])
    points, shares = pca_2d(line)
    assert points[:, 0].abs().tolist() == pytest.approx([7.5, 2.5, 2.5, 7.5])
    assert shares == pytest.approx((1, 0)) and points[:, 1].abs().max() < 1e-6
    same, none = pca_2d(torch.ones(3, 1))
    assert same.abs().max() == 0 and none == (0, 0)
    with pytest.raises(ValueError, match="2 rows"):
        pca_2d(torch.ones(1, 2))
