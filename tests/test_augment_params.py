"""What `sample_view` draws, against the recipe; and what a recipe refuses."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from sdclr.augment import ViewParams, apply_view, sample_view
from tests.test_augment import NOTHING, RECIPE, STRONG, draws, noise, random_sizes


def test_a_seed_names_a_view() -> None:
    sizes = random_sizes(50, 20, 32)
    first, again, other = (sample_view(RECIPE, sizes, draws(s)) for s in (1, 1, 2))
    for field in fields(ViewParams):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
        assert not torch.equal(getattr(first, field.name), getattr(other, field.name))
    before = torch.random.get_rng_state()
    apply_view(noise(50, 32, 32), first, RECIPE)
    sample_view(RECIPE, sizes, draws())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_to_switch_operations_off_leaves_the_other_parameters() -> None:
    sizes = random_sizes(50, 20, 32)
    on, off = (sample_view(recipe, sizes, draws()) for recipe in (RECIPE, NOTHING))
    for name in ("top", "left", "height", "width", "order", "brightness", "hue", "blur_sigma"):
        assert torch.equal(getattr(on, name), getattr(off, name))
    assert bool(on.flip.any() and on.jitter.any() and on.gray.any() and on.blur.any())
    assert not bool((off.flip | off.jitter | off.gray | off.blur).any())


def test_parameters_follow_the_recipe() -> None:
    """20,000 draws: probabilities by binomial test, factors by KS, the 24 orders by chi-square."""
    num = 20_000
    p = sample_view(RECIPE, torch.tensor([32, 32]).expand(num, 2), draws(11))
    probabilities = {"flip": 0.5, "jitter": 0.8, "gray": 0.2, "blur": 0.5}
    for name, probability in probabilities.items():
        count = int(getattr(p, name).sum())
        assert stats.binomtest(count, num, probability).pvalue > 0.001, name
        assert stats.binomtest(count, num, probability + 0.03).pvalue < 1e-6, name
    ranges = {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.6, 1.4),
        "hue": (-0.1, 0.1),
        "blur_sigma": (0.1, 2.0),
    }
    for name, (low, high) in ranges.items():
        values = getattr(p, name)
        assert values.dtype == torch.float32
        assert stats.kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 0.001, name
        assert stats.kstest(values.numpy(), "uniform", (low, 1.1 * (high - low))).pvalue < 1e-6
    code = (p.order * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = code.bincount()
    counts = counts[counts > 0]
    assert len(counts) == math.factorial(4)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001
    assert torch.equal(p.order.sort(dim=1).values, torch.arange(4).expand(num, 4))


def test_strong_factors_stop_at_zero() -> None:
    p = sample_view(STRONG, torch.tensor([32, 32]).expand(5000, 2), draws())
    assert 0 <= float(p.brightness.min()) < 0.01
    assert 2.49 < float(p.brightness.max()) <= 2.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_px", 0),
        ("crop_scale_min", 0.0),
        ("crop_scale_max", 0.05),
        ("crop_scale_max", 1.1),
        ("crop_ratio_min", -1.0),
        ("crop_ratio_max", 0.5),
        ("crop_ratio_max", math.inf),
        ("hflip_prob", -0.1),
        ("jitter_prob", 1.1),
        ("brightness", -0.1),
        ("contrast", math.nan),
        ("saturation", math.inf),
        ("hue", 0.6),
        ("gray_prob", math.nan),
        ("blur_prob", 2.0),
        ("blur_sigma_min", 0.0),
        ("blur_sigma_max", 0.01),
    ],
)
def test_recipe_names_what_is_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value}$"):
        changes: dict[str, Any] = {name: value}
        replace(RECIPE, **changes)
