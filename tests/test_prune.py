"""Masks against a NumPy sort: ratios, ties, extremes, scopes, and the random part."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sdclr.backbone import build_backbone
from sdclr.prunable import prunable_weights
from sdclr.prune import (
    PruneRule,
    StarvedLayerError,
    kept_fractions,
    magnitude_masks,
    refuse_starved,
)


def sorted_masks(weights: dict[str, Tensor], ratio: float) -> dict[str, np.ndarray]:
    flat = np.sort(np.abs(np.concatenate([w.numpy().ravel() for w in weights.values()])))
    threshold = flat[min(math.ceil(ratio * flat.size), flat.size - 1)]
    return {name: np.abs(w.numpy()) >= threshold for name, w in weights.items()}


def some_weights(seed: int = 0, *, ties: bool = False) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"stem": (4, 3, 3, 3), "body": (8, 4, 3, 3), "tail": (5, 8, 1, 1)}
    weights = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {n: (w * 2).round() / 2 for n, w in weights.items()} if ties else weights


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.promise("R5")
def test_equals_a_sort(ratio: float, ties: bool) -> None:
    weights = some_weights(1, ties=ties)
    masks = magnitude_masks(weights, PruneRule(prune_ratio=ratio))
    for name, expected in sorted_masks(weights, ratio).items():
        assert np.array_equal(masks[name].numpy(), expected), name


def large_weights(kind: str) -> dict[str, Tensor]:
    """More weights than are sampled, in layouts and distributions that could mislead a sample."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(512, 64, 3, 3, generator=g), torch.randn(128, 512, 1, 1, generator=g)
    if kind == "ties":
        a, b = (a * 4).round(), (b * 4).round()
    elif kind == "periodic":  # of period 8, where every fifth weight is sampled from each part
        a.flatten()[::5] = 100 + torch.rand(a.numel() // 5 + 1, generator=g)
        b.flatten()[::5] = 100 + torch.rand(b.numel() // 5 + 1, generator=g)
    elif kind == "channels last":
        a = a.to(memory_format=torch.channels_last)
    elif kind == "double":
        a, b = a.double(), b.double()
    return {"a": a, "b": b * 0.1}


@pytest.mark.parametrize("kind", ["plain", "ties", "periodic", "channels last", "double"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9, 0.9999, 1.0])
def test_selection_equals_a_sort_where_a_sample_brackets_it(ratio: float, kind: str) -> None:
    weights = large_weights(kind)
    masks = magnitude_masks(weights, PruneRule(prune_ratio=ratio))
    for name, expected in sorted_masks(weights, ratio).items():
        assert np.array_equal(masks[name].numpy(), expected), name


@pytest.mark.parametrize("kind", ["plain", "ties", "periodic"])
def test_selection_by_torch_equals_selection_by_numpy(kind: str) -> None:
    weights = {name: w.bfloat16() for name, w in large_weights(kind).items()}
    wide = {name: w.float() for name, w in weights.items()}
    rule = PruneRule(prune_ratio=0.9)
    low, high = magnitude_masks(weights, rule), magnitude_masks(wide, rule)
    assert all(torch.equal(low[name], high[name]) for name in weights)


@pytest.mark.promise("R5", control=True)
def test_the_comparison_can_fail() -> None:
    weights = some_weights(1)
    masks = magnitude_masks(weights, PruneRule(prune_ratio=0.5))
    wrong = sorted_masks(weights, 0.51)
    assert any(not np.array_equal(masks[n].numpy(), wrong[n]) for n in weights)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_without_ties_exactly_ceil_pn_weights_go(ratio: float) -> None:
    weights = some_weights(2)
    masks = magnitude_masks(weights, PruneRule(prune_ratio=ratio))
    total = sum(w.numel() for w in weights.values())
    assert sum(int((~m).sum()) for m in masks.values()) == math.ceil(ratio * total)


@pytest.mark.promise("R5")
def test_all_equal_magnitudes_are_all_kept() -> None:
    weights = {"a": torch.full((3, 3), -0.5), "b": torch.full((2, 2), 0.5)}
    masks = magnitude_masks(weights, PruneRule(prune_ratio=0.9))
    assert all(m.all() for m in masks.values())


def test_extremes() -> None:
    weights = some_weights(3)
    everything = magnitude_masks(weights, PruneRule(prune_ratio=0.0))
    assert all(m.all() for m in everything.values())
    one = magnitude_masks(weights, PruneRule(prune_ratio=1.0))
    assert sum(int(m.sum()) for m in one.values()) == 1


def test_layerwise_prunes_each_layer_alike_and_global_does_not() -> None:
    weights = some_weights(4)
    weights["body"] = weights["body"] * 10
    layerwise = kept_fractions(
        magnitude_masks(weights, PruneRule(prune_ratio=0.5, scope="layerwise"))
    )
    assert all(frac == pytest.approx(0.5, abs=0.02) for frac in layerwise.values())
    together = kept_fractions(magnitude_masks(weights, PruneRule(prune_ratio=0.5)))
    assert together["body"] > 0.7 > 0.1 > together["stem"]


def test_excluded_stem_stays_whole_and_out_of_the_count() -> None:
    weights = some_weights(5)
    masks = magnitude_masks(weights, PruneRule(prune_ratio=0.9, exclude_stem=True))
    assert masks["stem"].all()
    rest = {n: w for n, w in weights.items() if n != "stem"}
    for name, expected in sorted_masks(rest, 0.9).items():
        assert np.array_equal(masks[name].numpy(), expected)


def test_random_part_is_a_function_of_the_generator_and_keeps_the_total_ratio() -> None:
    weights = {"a": torch.randn(200, 500, generator=torch.Generator().manual_seed(0))}
    rule = PruneRule(prune_ratio=0.5, random_ratio=0.3)
    first, again, other = (
        magnitude_masks(weights, rule, torch.Generator().manual_seed(seed))["a"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.float().mean().item() == pytest.approx(0.5, abs=0.01)
    magnitude_only = magnitude_masks(weights, PruneRule(prune_ratio=0.2))["a"]
    assert not (first & ~magnitude_only).any()
    with pytest.raises(ValueError, match="needs a generator"):
        magnitude_masks(weights, rule)


def test_every_convolution_is_prunable_and_nothing_else() -> None:
    network, _ = build_backbone("resnet18", stem="cifar", seed=0)
    names = set(prunable_weights(network))
    assert len(names) == 20
    assert {"conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.conv2.weight"} <= names
    assert not any("bn" in name or "fc" in name for name in names)


def test_a_starved_layer_is_refused_by_name() -> None:
    refuse_starved({"conv1.weight": 0.001})
    with pytest.raises(StarvedLayerError, match=r"no weight in conv1\.weight.*layerwise"):
        refuse_starved({"conv1.weight": 0.0, "conv2.weight": 0.4})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prune_ratio": 1.5}, "prune_ratio must be"),
        ({"prune_ratio": 0.2, "random_ratio": 0.3}, "random_ratio must be"),
        ({"prune_ratio": 0.2, "scope": "local"}, "scope must be"),
    ],
)
def test_bad_rules_are_named(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneRule(**kwargs)  # type: ignore[arg-type]
