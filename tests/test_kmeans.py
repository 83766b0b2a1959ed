"""K-means against a slow loop, on clusters that are known, and where it has nothing to find."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sdclr.kmeans import kmeans


def blobs(*sizes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around far apart centres, and the number of the centre of each."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    centres = 10 * torch.eye(len(sizes), 4, dtype=torch.float64)
    return centres[labels] + 0.1 * torch.randn(len(labels), 4, generator=g).double(), labels


def test_separate_blobs_are_found_whole() -> None:
    points, labels = blobs(30, 5, 12)
    found = kmeans(points, 3)
    for label in range(3):
        assert len(found.labels_N[labels == label].unique()) == 1
    assert sorted(torch.bincount(found.labels_N).tolist()) == [5, 12, 30]
    merged = kmeans(points, 2)
    assert merged.inertia > 10 * found.inertia


def test_the_end_is_a_fixed_point_of_the_slow_iteration() -> None:
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = kmeans(points, 5)
    for i, j in itertools.product(range(60), range(5)):
        own = (points[i] - found.centres_KD[found.labels_N[i]]).norm()
        assert own <= (points[i] - found.centres_KD[j]).norm() + 1e-9
    for k in range(5):
        mean = points[found.labels_N == k].mean(dim=0)
        torch.testing.assert_close(found.centres_KD[k], mean)
    slow = sum(
        float((p - found.centres_KD[k]).norm() ** 2)
        for p, k in zip(points, found.labels_N, strict=True)
    )
    assert found.inertia == pytest.approx(slow)
    early = kmeans(points, 5, max_iterations=1)
    assert early.inertia > found.inertia


def test_equal_seeds_give_equal_clusters_and_the_process_generator_is_left_alone() -> None:
    points = torch.randn(80, 4, generator=torch.Generator().manual_seed(2))
    before = torch.random.get_rng_state()
    first, again = kmeans(points, 6, seed=3), kmeans(points, 6, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.labels_N, again.labels_N)
    others = [kmeans(points, 6, seed=seed).labels_N for seed in range(4, 9)]
    assert any(not torch.equal(first.labels_N, other) for other in others)


def test_equal_points_leave_clusters_empty() -> None:
    found = kmeans(torch.ones(7, 2), 3)
    assert found.inertia == 0 and found.labels_N.tolist() == [0] * 7


@pytest.mark.parametrize(
    ("points", "k"),
    [
        (torch.zeros(0, 2), 1), (torch.zeros(3), 1), (torch.full((3, 2), torch.nan), 1),
        (torch.zeros(3, 2), 4), (torch.zeros(3, 2), 0),
    ],
)  # fmt: skip
def test_bad_input_is_refused(points: Tensor, k: int) -> None:
    with pytest.raises(ValueError, match="finite|num_clusters"):
        kmeans(points, k)
