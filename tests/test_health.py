from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sdclr import health
from sdclr.health import (
    alignment,
    alpha_req,
    dead_frac,
    disagreement,
    rankme,
    tercile_balance,
    uniformity,
    view_retrieval,
)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- disagreement


def test_disagreement_closed_forms() -> None:
    dense = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    pruned = torch.tensor([[5.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    expected = torch.tensor([0.0, 1.0, 2.0, 1 - math.sqrt(0.5), 1.0])
    torch.testing.assert_close(disagreement(dense, pruned), expected)


def test_disagreement_equals_the_slow_loop_at_any_scale() -> None:
    dense, pruned = gaussian(7, 5), gaussian(7, 5, seed=1)
    slow = [
        1 - float(u @ v) / float(u.norm() * v.norm()) for u, v in zip(dense, pruned, strict=True)
    ]
    assert disagreement(dense * 3, pruned * 0.1).tolist() == pytest.approx(slow)
    assert disagreement(dense, pruned.flip(0)).tolist() != pytest.approx(slow)


def test_disagreement_stays_in_range_and_shows_nan() -> None:
    rows = gaussian(1000, 64).float()
    assert float(disagreement(rows, rows).min()) >= 0
    assert disagreement(rows[:1].bfloat16(), rows[:1]).dtype == torch.float32
    assert disagreement(torch.full((1, 2), math.nan), torch.ones(1, 2)).isnan().all()


# --- RankMe


def test_rankme_closed_forms() -> None:
    assert rankme(torch.eye(8).repeat(5, 1)) == pytest.approx(8, rel=1e-5)
    assert rankme(torch.ones(50, 1) @ gaussian(1, 9).float()) == pytest.approx(1, rel=1e-4)
    assert rankme(torch.zeros(4, 3)) == 0
    # Singular values 3 and 1: probabilities 3/4 and 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected)


def test_rankme_is_near_the_papers_formula_and_falls_under_collapse() -> None:
    rows = gaussian(400, 64)
    singular = np.linalg.svd(rows.numpy(), compute_uv=False)
    p = singular / singular.sum() + 1e-7
    assert rankme(rows) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-3)
    assert rankme(rows * torch.logspace(0, -4, 64)) < rankme(rows) / 3


def test_rankme_of_bad_input() -> None:
    assert math.isnan(rankme(torch.full((3, 3), math.nan)))
    with pytest.raises(ValueError, match="matrix"):
        rankme(torch.zeros(3))


# --- view retrieval


def test_view_retrieval_closed_forms() -> None:
    rows = gaussian(20, 30)
    assert view_retrieval(rows, rows * 4) == 1.0
    assert view_retrieval(rows, rows.roll(1, dims=0)) == 0.0
    half = rows.clone()
    half[:10] = rows[:10].roll(1, dims=0)
    assert view_retrieval(rows, half) == 0.5


def test_collapsed_features_score_chance(monkeypatch) -> None:
    monkeypatch.setattr(health, "_CHUNK_ROWS", 16)
    collapsed = torch.ones(50, 8)
    assert view_retrieval(collapsed, collapsed) == pytest.approx(1 / 50)


def test_view_retrieval_equals_the_slow_loop_in_any_chunks(monkeypatch) -> None:
    view1, view2 = gaussian(50, 4), gaussian(50, 4, seed=1) * 0.4 + gaussian(50, 4)
    hits = 0
    for i in range(50):
        similarity = [torch.cosine_similarity(view1[i], view2[j], dim=0) for j in range(50)]
        hits += int(max(range(50), key=lambda j: similarity[j]) == i)
    assert 0 < hits < 50
    assert view_retrieval(view1, view2) == pytest.approx(hits / 50)
    monkeypatch.setattr(health, "_CHUNK_ROWS", 7)
    assert view_retrieval(view1, view2) == pytest.approx(hits / 50)
    assert view_retrieval(view1, view2.flip(0)) != pytest.approx(hits / 50)
    assert math.isnan(view_retrieval(view1 * math.nan, view2))


# --- alignment and uniformity


def test_alignment_closed_forms() -> None:
    x, y = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert alignment(x, x * 3) == 0
    assert alignment(x, y) == pytest.approx(2)  # right angle: squared chord 2
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, y, power=1) == pytest.approx(math.sqrt(2))
    both = alignment(torch.cat([x, x]), torch.cat([x, y]))
    assert both == pytest.approx(1)


def test_uniformity_closed_forms() -> None:
    assert uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-5)
    assert uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8)  # -t * 4
    assert uniformity(torch.eye(6), t=3) == pytest.approx(-6)  # every squared distance is 2


def test_uniformity_equals_the_slow_loop_in_any_chunks(monkeypatch) -> None:
    rows = gaussian(23, 3)
    unit = rows / rows.norm(dim=1, keepdim=True)
    pairs = [
        math.exp(-2 * float((unit[i] - unit[j]).square().sum()))
        for i in range(23)
        for j in range(23)
        if i != j
    ]
    expected = math.log(sum(pairs) / len(pairs))
    assert uniformity(rows) == pytest.approx(expected)
    monkeypatch.setattr(health, "_CHUNK_ROWS", 5)
    assert uniformity(rows) == pytest.approx(expected)
    with_self = math.log((sum(pairs) + 23) / 23**2)
    assert uniformity(rows) != pytest.approx(with_self)


def test_uniformity_shows_nan_and_stays_finite_for_a_large_t() -> None:
    assert math.isnan(uniformity(torch.full((3, 2), math.nan)))
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite, t=1000.0) == pytest.approx(-4000)


@pytest.mark.parametrize("measure", [disagreement, view_retrieval, alignment])
@pytest.mark.parametrize(("first", "second"), [((3, 2), (3, 1)), ((0, 2), (0, 2)), ((3,), (3,))])
def test_paired_measures_refuse_unequal_or_empty_input(measure, first, second) -> None:
    with pytest.raises(ValueError, match="one shape"):
        measure(torch.zeros(first), torch.zeros(second))


def test_other_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="power"):
        alignment(torch.ones(1, 2), torch.ones(1, 2), power=0)
    with pytest.raises(ValueError, match="N >= 2"):
        uniformity(torch.ones(1, 2))


# --- alpha-ReQ


def with_spectrum(values: Tensor, num_rows: int = 60) -> Tensor:
    """Rows whose covariance has exactly these eigenvalues, up to one common factor."""
    centred = gaussian(num_rows, len(values))
    left, _, _ = torch.linalg.svd(centred - centred.mean(dim=0), full_matrices=False)
    turn, _ = torch.linalg.qr(gaussian(len(values), len(values), seed=5))
    return left * values.sqrt() @ turn + 3.0


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 2.5])
def test_alpha_req_of_a_power_law_is_its_exponent(alpha: float) -> None:
    rank = torch.arange(1, 21, dtype=torch.float64)
    rows = with_spectrum(rank**-alpha)
    assert alpha_req(rows) == pytest.approx(alpha, abs=1e-6)
    assert alpha_req(100 * rows + 7) == pytest.approx(alpha, abs=1e-6)


def test_alpha_req_equals_a_line_fitted_to_the_covariance_and_centring_matters() -> None:
    rows = gaussian(200, 12) * torch.linspace(3, 0.2, 12, dtype=torch.float64) + 5
    value = np.sort(np.linalg.eigvalsh(np.cov(rows.numpy().T)))[::-1]
    slope = np.polyfit(np.log(np.arange(1, 13)), np.log(value), 1)[0]
    assert alpha_req(rows) == pytest.approx(-slope, rel=1e-9)
    moment = np.sort(np.linalg.eigvalsh(rows.numpy().T @ rows.numpy()))[::-1]
    uncentred = np.polyfit(np.log(np.arange(1, 13)), np.log(moment), 1)[0]
    assert alpha_req(rows) != pytest.approx(-uncentred, rel=1e-2)


def test_alpha_req_without_a_spectrum_is_nan() -> None:
    assert math.isnan(alpha_req(torch.ones(9, 4)))
    assert math.isnan(alpha_req(torch.rand(9, 1) @ torch.ones(1, 4)))  # one direction
    assert math.isnan(alpha_req(torch.full((3, 3), math.nan)))
    with pytest.raises(ValueError, match="2 rows"):
        alpha_req(torch.ones(1, 4))


# --- dead dimensions


def test_dead_dimensions_are_counted_at_any_scale() -> None:
    rows = gaussian(50, 8)
    assert dead_frac(rows) == 0
    rows[:, :3] = torch.tensor([0.0, 4.0, -1.0])  # constant, zero or not
    assert dead_frac(rows) == 3 / 8
    assert dead_frac(1e-6 * rows) == dead_frac(1e6 * rows) == 3 / 8
    assert dead_frac(torch.ones(5, 4)) == 1
    assert math.isnan(dead_frac(torch.full((2, 2), math.nan)))


def test_dead_dimensions_equal_the_slow_loop() -> None:
    rows = gaussian(40, 9) * torch.logspace(0, -5, 9, dtype=torch.float64)
    stds = [math.sqrt(sum((x - c.mean()) ** 2 for x in c) / 40) for c in rows.T.numpy()]
    limit = 0.01 * math.sqrt(sum(s * s for s in stds) / 9)
    slow = sum(s <= limit for s in stds) / 9
    assert 0 < slow < 1 and dead_frac(rows, tolerance=0.01) == pytest.approx(slow)
    assert dead_frac(rows, tolerance=0.1) > slow


# --- balance over clusters


def test_tercile_balance_closed_form() -> None:
    # Clusters 0..6 of sizes 7, 1, 2, 6, 3, 5, 4: few = sizes 1 and 2, medium = 3 and 4.
    sizes, accuracy = (7, 1, 2, 6, 3, 5, 4), (1.0, 0.0, 0.5, 1.0, 1 / 3, 0.8, 0.75)
    clusters = torch.arange(7).repeat_interleave(torch.tensor(sizes))
    hits = torch.cat(
        [(torch.arange(n) < round(n * a)).double() for n, a in zip(sizes, accuracy, strict=True)]
    )
    found = tercile_balance(hits, clusters)
    few, medium, many = 0.25, (1 / 3 + 0.75) / 2, (1.0 + 1.0 + 0.8) / 3
    assert (found.few, found.medium, found.many) == pytest.approx((few, medium, many))
    assert found.std == pytest.approx(float(np.std([few, medium, many])))
    order = torch.randperm(len(hits), generator=torch.Generator().manual_seed(0))
    assert tercile_balance(hits[order], clusters[order]) == found
    assert tercile_balance(hits[order], clusters) != found


def test_tercile_balance_ignores_empty_clusters_and_needs_three() -> None:
    hits = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5])
    gaps = tercile_balance(hits, torch.tensor([9, 4, 4, 0, 0]))
    assert gaps == tercile_balance(hits, torch.tensor([2, 1, 1, 0, 0]))
    assert gaps != tercile_balance(hits, torch.tensor([0, 1, 1, 2, 2]))  # a tie goes by number
    assert math.isnan(tercile_balance(hits, torch.tensor([0, 0, 0, 1, 1])).std)
    with pytest.raises(ValueError, match="one cluster a row"):
        tercile_balance(hits, torch.zeros(4, dtype=torch.long))
