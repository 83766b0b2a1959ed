"""Magnitude pruning: which weights the self-competitor keeps (Jiang et al. 2021, section 3.2).

With N weights, k = ceil(p N) and threshold = the min(k, N-1)-th smallest |w| counted from 0, a
weight is kept when |w| >= threshold. So equal magnitudes at the threshold are all kept, p = 0 keeps
everything, and p = 1 keeps the largest magnitude only. A mask is a function of the weights (and of
a generator for the random part), so ranks that hold equal weights hold equal masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdclr.transfer import HostCopy, to_device

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
    """Return masks of the weights that reach the threshold of the module's definition."""
    num = sum(weight.numel() for weight in weights)
    rank = min(math.ceil(prune_ratio * num), num - 1)
    like = weights[0]
    if like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64):
        return _by_selection(weights, rank, num)
    # On a GPU a sort is one launch, and nothing in it has a size that the host must know.
    magnitudes = [weight.detach().abs() for weight in weights]
    threshold = torch.cat([m.flatten() for m in magnitudes]).sort().values[rank]
    return [m >= threshold for m in magnitudes]


def _by_selection(weights: Sequence[Tensor], rank: int, num: int) -> list[Tensor]:
    """Select instead of sorting, on a CPU.

    A sample brackets the threshold, and one pass keeps what is above the bracket and collects the
    few weights inside it, of which the largest are kept as well. The result is exact; should the
    sample mislead, everything is sorted. NumPy's comparisons take a seventh of torch's time.
    """
    masks = [torch.empty_like(weight, dtype=torch.bool) for weight in weights]
    parts = [part for weight in weights for part in _parts(weight)]
    mask_parts = [part for mask in masks for part in _parts(mask)]
    stride = max(1, num // _NUM_SAMPLED)
    sample = np.sort(np.concatenate([abs(part[::stride]) for part in parts]))
    place, share = rank * len(sample) // num, rank / num
    slack = 1 + math.ceil(_SLACK_STD * math.sqrt(len(sample) * share * (1 - share)))
    low, high = sample[max(0, place - slack)], sample[min(len(sample) - 1, place + slack)]
    num_above, inside = 0, []
    for part, mask in zip(parts, mask_parts, strict=True):
        magnitudes = abs(part)
        np.greater(magnitudes, high, out=mask)
        num_above += int(np.count_nonzero(mask))
        where = ((magnitudes >= low) ^ mask).nonzero()
        inside.append((where, magnitudes[where]))
    candidates = np.sort(np.concatenate([magnitudes for _, magnitudes in inside]))
    place = rank - (num - len(candidates) - num_above)
    if 0 <= place < len(candidates):
        for mask, (where, magnitudes) in zip(mask_parts, inside, strict=True):
            mask[where] = magnitudes >= candidates[place]
    else:
        threshold = np.sort(np.concatenate([abs(part) for part in parts]))[rank]
        for part, mask in zip(parts, mask_parts, strict=True):
            np.greater_equal(abs(part), threshold, out=mask)
    return masks


def _parts(tensor: Tensor) -> list[NDArray[Any]]:
    """Cut a tensor into parts of cache size, in memory order."""
    flat = tensor.detach().numpy().ravel(order="K")
    return [flat[i : i + _PART] for i in range(0, len(flat), _PART)]


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
                masks[name] &= to_device(survives, masks[name].device)
    return masks


class KeptFractions(Mapping[str, float]):
    """Names mapped to the fraction of weights kept, in [0, 1]; those of a GPU are read late.

    Attributes:
        counts_L: weights kept in each layer, on the device of the masks.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.counts_L = torch.stack([mask.sum() for mask in masks.values()])
        self._copy = HostCopy(self.counts_L)
        self._sizes = {name: mask.numel() for name, mask in masks.items()}

    @cached_property
    def _fractions(self) -> dict[str, float]:
        counts = zip(self._sizes.items(), self._copy.read().tolist(), strict=True)
        return {name: count / size for (name, size), count in counts}

    def __getitem__(self, name: str) -> float:
        return self._fractions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)


def kept_fractions(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Map names to the fraction of weights kept, in [0, 1]."""
    return dict(KeptFractions(masks))


def refuse_starved(kept_frac: Mapping[str, float]) -> None:
    """Raise StarvedLayerError when a layer keeps no weight at all."""
    starved = [name for name, kept in kept_frac.items() if kept == 0]
    if starved:
        raise StarvedLayerError(
            f"pruning leaves no weight in {', '.join(starved)}, the pruned branch would be "
            "constant: lower prune_ratio, set scope=layerwise, or set exclude_stem"
        )
