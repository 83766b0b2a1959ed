"""Magnitude pruning: which weights the self-competitor keeps (Jiang et al. 2021, section 3.2).

With N weights, k = ceil(p N) and threshold = the min(k, N-1)-th smallest |w| counted from 0, a
weight is kept when |w| >= threshold. So equal magnitudes at the threshold are all kept, p = 0 keeps
everything, and p = 1 keeps the largest magnitude only. A mask is a function of the weights (and of
a generator for the random part), so ranks that hold equal weights hold equal masks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Scope = Literal["global", "layerwise"]

_NUM_SAMPLED = 2**16  # weights that bracket the threshold
_SLACK_STD = 5.0  # half width of the bracket, in standard deviations of a sample quantile
_PART = 2**16  # weights worked on together on a CPU


class StarvedLayerError(ValueError):
    """A layer would lose all of its weights, so that the pruned branch is a constant."""


@dataclass(frozen=True, kw_only=True)
class PruneRule:
    """Rule by which a mask is made.

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


def _largest(weights: Sequence[Tensor], prune_ratio: float) -> list[Tensor]:
    """Return masks of the weights that reach the threshold of the module's definition.

    Selection instead of a sort: a sample brackets the threshold, and one pass keeps what is above
    the bracket and collects the few weights inside it, of which the largest are kept as well. The
    result is exact; should the sample mislead, everything is sorted.
    """
    arrays = _Arrays(weights[0])
    masks = [torch.empty_like(weight, dtype=torch.bool) for weight in weights]
    parts = [part for weight in weights for part in arrays.parts(weight)]
    mask_parts = [part for mask in masks for part in arrays.parts(mask)]
    num = sum(weight.numel() for weight in weights)
    rank = min(math.ceil(prune_ratio * num), num - 1)
    stride = max(1, num // _NUM_SAMPLED)
    sample = arrays.sorted([abs(part.reshape(-1)[::stride]) for part in parts])
    place, share = rank * len(sample) // num, rank / num
    slack = 1 + math.ceil(_SLACK_STD * math.sqrt(len(sample) * share * (1 - share)))
    low, high = sample[max(0, place - slack)], sample[min(len(sample) - 1, place + slack)]
    num_above, inside = 0, []
    for part, mask in zip(parts, mask_parts, strict=True):
        magnitudes = abs(part)
        arrays.xp.greater(magnitudes, high, out=mask)
        num_above += arrays.xp.count_nonzero(mask)
        where = arrays.nonzero((magnitudes >= low) ^ mask)
        inside.append((where, magnitudes[where]))
    candidates = arrays.sorted([magnitudes for _, magnitudes in inside])
    place = rank - (num - len(candidates) - int(num_above))
    if 0 <= place < len(candidates):
        for mask, (where, magnitudes) in zip(mask_parts, inside, strict=True):
            mask[where] = magnitudes >= candidates[place]
    else:
        threshold = arrays.sorted([abs(part.reshape(-1)) for part in parts])[rank]
        for part, mask in zip(parts, mask_parts, strict=True):
            arrays.xp.greater_equal(abs(part), threshold, out=mask)
    return masks


class _Arrays:
    """Tensors as NumPy arrays on a CPU, where its comparisons take a seventh of torch's time."""

    def __init__(self, like: Tensor) -> None:
        is_numpy = like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)
        self.xp: Any = np if is_numpy else torch

    def parts(self, tensor: Tensor) -> list[Any]:
        """Cut a tensor into parts of cache size on a CPU, in memory order; one part elsewhere."""
        if self.xp is torch:
            return [tensor.detach()]
        flat = tensor.detach().numpy().ravel(order="K")
        return [flat[i : i + _PART] for i in range(0, len(flat), _PART)]

    def nonzero(self, mask: Any) -> Any:
        """Return where a mask is true, as an index."""
        return mask.nonzero() if self.xp is np else mask.nonzero(as_tuple=True)

    def sorted(self, arrays: list[Any]) -> Any:
        """Return all numbers in one array, ascending, NaN last."""
        together = self.xp.concatenate(arrays)
        return np.sort(together) if self.xp is np else together.sort().values


@torch.no_grad()
def magnitude_masks(
    weights: Mapping[str, Tensor], rule: PruneRule, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return boolean masks, True = kept, of the shapes and on the devices of `weights`.

    Args:
        weights: name -> weight, the stem first; only read.
        rule: what to prune.
        generator: CPU generator of the random part, the same on every rank; needed when
            random_ratio > 0.

    Raises:
        ValueError: no weights, or a random part without a generator.
    """
    if not weights:
        raise ValueError("nothing to prune: the network has no weights that a mask covers")
    names = list(weights)
    free = names[1:] if rule.exclude_stem else names
    magnitude_ratio = rule.prune_ratio - rule.random_ratio
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    groups = [free] if rule.scope == "global" else [[name] for name in free]
    for group in filter(None, groups):
        kept = _largest([weights[name] for name in group], magnitude_ratio)
        masks |= zip(group, kept, strict=True)
        if rule.random_ratio > 0:
            if generator is None:
                raise ValueError("random_ratio > 0 needs a generator")
            num = sum(weights[name].numel() for name in group)
            num_kept = num - math.ceil(magnitude_ratio * num)
            drop_prob = min(1.0, rule.random_ratio * num / num_kept) if num_kept else 1.0
            for name in group:
                # Drawn on the CPU in a fixed order: equal on all ranks and all devices.
                survives = torch.rand(weights[name].shape, generator=generator) >= drop_prob
                masks[name] &= survives.to(masks[name].device)
    return masks


def kept_fractions(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Map names to the fraction of weights kept, in [0, 1]."""
    counts = torch.stack([mask.sum() for mask in masks.values()]).tolist()
    return {
        name: count / mask.numel()
        for (name, mask), count in zip(masks.items(), counts, strict=True)
    }


def refuse_starved(kept_frac: Mapping[str, float]) -> None:
    """Raise StarvedLayerError when a layer keeps no weight at all."""
    starved = [name for name, kept in kept_frac.items() if kept == 0]
    if starved:
        raise StarvedLayerError(
            f"pruning leaves no weight in {', '.join(starved)}, the pruned branch would be "
            "constant: lower prune_ratio, set scope=layerwise, or set exclude_stem"
        )
