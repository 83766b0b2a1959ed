"""Magnitude pruning: which weights the self-competitor keeps (Jiang et al. 2021, section 3.2).

With N weights, k = ceil(p N) and threshold = the min(k, N-1)-th smallest |w| counted from 0, a
weight is kept when |w| >= threshold. So equal magnitudes at the threshold are all kept, p = 0 keeps
everything, and p = 1 keeps the largest magnitude only. A mask is a function of the weights (and of
a generator for the random part), so ranks that hold equal weights hold equal masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Scope = Literal["global", "layerwise"]


class StarvedLayerError(ValueError):
    """A convolution would lose all of its weights, so that the pruned branch is a constant."""


@dataclass(frozen=True, kw_only=True)
class PruneRule:
    """How the mask is made.

    Args:
        prune_ratio: fraction of weights removed, p in [0, 1].
        scope: one threshold for all layers, or one for each.
        exclude_stem: leave the first convolution whole and out of N.
        random_ratio: r in [0, p]; the magnitude part removes p - r, and what it keeps loses r N /
            (N - k) more at random.
    """

    prune_ratio: float
    scope: Scope = "global"
    exclude_stem: bool = False
    random_ratio: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.prune_ratio <= 1:
            raise ValueError(f"prune_ratio must be in [0, 1], got {self.prune_ratio}")
        if not 0 <= self.random_ratio <= self.prune_ratio:
            raise ValueError(f"random_ratio must be in [0, prune_ratio], got {self.random_ratio}")
        if self.scope not in ("global", "layerwise"):
            raise ValueError(f"scope must be global or layerwise, got {self.scope!r}")


def prunable_weights(network: nn.Module) -> dict[str, Tensor]:
    """Name -> weight of every Conv2d in order of registration; stem and downsample included."""
    return {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def magnitude_threshold(weights: Tensor, prune_ratio: float) -> Tensor:
    """The smallest |w| that is kept, a scalar tensor.

    Selection instead of a sort: linear time, on the device that holds the weights.
    """
    magnitudes = weights.detach().abs().flatten()
    k = math.ceil(prune_ratio * magnitudes.numel())
    return magnitudes.kthvalue(min(k, magnitudes.numel() - 1) + 1).values


@torch.no_grad()
def magnitude_masks(
    weights: Mapping[str, Tensor], rule: PruneRule, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Boolean masks, True = kept, of the shapes and on the devices of `weights`.

    Args:
        weights: name -> weight, the stem first; only read.
        rule: what to prune.
        generator: CPU generator of the random part, the same on every rank; needed when
            random_ratio > 0.

    Raises:
        ValueError: no weights, or a random part without a generator.
    """
    if not weights:
        raise ValueError("nothing to prune: the network has no Conv2d")
    names = list(weights)
    free = names[1:] if rule.exclude_stem else names
    magnitude_ratio = rule.prune_ratio - rule.random_ratio
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    groups = [free] if rule.scope == "global" else [[name] for name in free]
    for group in filter(None, groups):
        everything = torch.cat([weights[name].detach().flatten() for name in group])
        threshold = magnitude_threshold(everything, magnitude_ratio)
        for name in group:
            masks[name] = weights[name].abs() >= threshold
        if rule.random_ratio > 0:
            if generator is None:
                raise ValueError("random_ratio > 0 needs a generator")
            num = everything.numel()
            num_kept = num - math.ceil(magnitude_ratio * num)
            drop_prob = min(1.0, rule.random_ratio * num / num_kept) if num_kept else 1.0
            for name in group:
                # Drawn on the CPU in a fixed order: equal on all ranks and all devices.
                survives = torch.rand(weights[name].shape, generator=generator) >= drop_prob
                masks[name] &= survives.to(masks[name].device)
    return masks


def kept_fractions(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Name -> fraction of weights kept, in [0, 1]."""
    counts = torch.stack([mask.sum() for mask in masks.values()]).tolist()
    return {
        name: count / mask.numel()
        for (name, mask), count in zip(masks.items(), counts, strict=True)
    }


def refuse_starved(kept_frac: Mapping[str, float]) -> None:
    """Raise StarvedLayerError when a convolution keeps no weight at all."""
    starved = [name for name, kept in kept_frac.items() if kept == 0]
    if starved:
        raise StarvedLayerError(
            f"pruning leaves no weight in {', '.join(starved)}, the pruned branch would be "
            "constant: lower prune_ratio, set scope=layerwise, or set exclude_stem"
        )
