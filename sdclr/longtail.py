"""Long-tailed data: imbalance profiles and seeded splits.

    exponential   n_c = floor(n_max * ratio^(-c / (C - 1)))                 (Cui et al. 2019)
    Pareto        n_c = floor(n_min + (n_max - n_min) * q(u_c) / q(u_0)),   q(u) = u^(-1/a) - 1

A *rank* orders classes from the most (0) to the least frequent (C - 1). Which class holds which
rank is a seeded permutation, so that several splits separate "rare" from "hard".
Every random choice is a function of an explicit seed.

Shapes: N images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IndexArray = NDArray[np.int64]

# Rounding may put an exact integer just below itself, e.g. 1000 * 1000^(-1/3) = 99.999...; a count
# within this relative distance below an integer is that integer.
_FLOOR_TOLERANCE = 1e-9
# Tail probability of the most frequent class: 1 / 1000, the head of ImageNet-LT's 1,000 classes.
_PARETO_HEAD_PROBABILITY = 1e-3
# Separate random streams of one seed; 2 is that of `sdclr.fewshot`.
_ORDER_STREAM, _IMAGE_STREAM = 0, 1


def exponential_counts(num_max: int, *, imbalance_ratio: float, num_classes: int) -> list[int]:
    """Return images per class by rank, falling exponentially from `num_max` by `ratio`.

    Ratio 100 gives the published CIFAR-10-LT (4500..45, in all 11,165) and CIFAR-100-LT (450..4,
    in all 9,754). One class gets `num_max`.

    Args:
        num_max: images of the most frequent class, >= 1.
        imbalance_ratio: most over least frequent, finite, >= 1; 1 is balanced.
        num_classes: C >= 1.

    Raises:
        ValueError: an argument is out of range, or the rarest class would have no image.
    """
    _check_profile(num_max, imbalance_ratio, num_classes)
    steps = max(num_classes - 1, 1)
    return [_floor(num_max * imbalance_ratio ** (-rank / steps)) for rank in range(num_classes)]


def pareto_counts(
    num_max: int, *, imbalance_ratio: float, num_classes: int, power: float = 6.0
) -> list[int]:
    """Return images per class by rank: quantiles of a Pareto (Lomax) law, scaled to both ends.

    u_c runs evenly from 1e-3 to 1, n_min is `num_max / imbalance_ratio`; the formula is in the
    module's head. It follows the shape of ImageNet-LT (Liu et al. 2019: Pareto, power 6, 1280..5)
    without its sampling noise: 121,449 images where the published list has 115,846, and 12,853
    where ImageNet-100-LT (1280..6) has 12,205. To reproduce those data sets use their own lists.

    Args:
        num_max: images of the most frequent class, >= 1.
        imbalance_ratio: most over least frequent, finite, >= 1.
        num_classes: C >= 1.
        power: a > 0; the smaller, the faster the counts fall behind the head.

    Raises:
        ValueError: an argument is out of range, or the rarest class would have no image.
    """
    _check_profile(num_max, imbalance_ratio, num_classes)
    if not (math.isfinite(power) and power > 0):
        raise ValueError(f"power must be positive and finite, got {power}")
    head, steps, num_min = (
        _PARETO_HEAD_PROBABILITY,
        max(num_classes - 1, 1),
        num_max / imbalance_ratio,
    )

    def quantile(u: float) -> float:
        return float(u ** (-1 / power) - 1)

    fractions = (
        quantile(head + (1 - head) * rank / steps) / quantile(head) for rank in range(num_classes)
    )
    return [_floor(num_min + (num_max - num_min) * fraction) for fraction in fractions]


def class_order(num_classes: int, *, seed: int) -> tuple[int, ...]:
    """Return the class that holds each rank: entry 0 is the head class. A seeded permutation."""
    generator = np.random.default_rng([seed, _ORDER_STREAM])
    return tuple(int(label) for label in generator.permutation(num_classes))


def long_tail_split(
    labels_N: Sequence[int] | NDArray[np.integer], *, counts_by_rank: Sequence[int], seed: int
) -> IndexArray:
    """Return sorted indices of a long-tailed subset; rank r is `class_order(C, seed=seed)[r]`.

    The images of a class are the first ones of a permutation that depends on (seed, class) only:
    a stronger imbalance of the same seed is a subset of a weaker one.

    Args:
        labels_N: class of every image, 0..C-1.
        counts_by_rank: images to keep per rank, C entries; see `exponential_counts`.
        seed: >= 0.

    Raises:
        ValueError: a label is outside 0..C-1, or a class has fewer images than its rank needs
            (the message names the class).
    """
    labels, num_classes = as_labels(labels_N), len(counts_by_rank)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels must be in 0..{num_classes - 1} for {num_classes} counts, "
            f"got {labels.min()}..{labels.max()}"
        )
    chosen = [
        draw_of_class(labels, label, count, [seed, _IMAGE_STREAM, label], f" at rank {rank}")
        for rank, (label, count) in enumerate(
            zip(class_order(num_classes, seed=seed), counts_by_rank, strict=True)
        )
    ]
    return sorted_indices(chosen)


def _check_profile(num_max: int, imbalance_ratio: float, num_classes: int) -> None:
    if num_max < 1 or num_classes < 1:
        raise ValueError(f"num_max and num_classes must be >= 1, got {num_max}, {num_classes}")
    if not (math.isfinite(imbalance_ratio) and imbalance_ratio >= 1):
        raise ValueError(f"imbalance_ratio must be finite and >= 1, got {imbalance_ratio}")
    if num_classes > 1 and _floor(num_max / imbalance_ratio) < 1:
        raise ValueError(
            f"num_max {num_max} at imbalance_ratio {imbalance_ratio} leaves the rarest class empty"
        )


def _floor(count: float) -> int:
    return math.floor(count * (1 + _FLOOR_TOLERANCE))


def as_labels(labels_N: Sequence[int] | NDArray[np.integer]) -> IndexArray:
    """Return labels as int64.

    Raises:
        ValueError: they are no vector of integers.
    """
    labels = np.asarray(labels_N)
    if labels.ndim != 1 or (labels.size and not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(f"labels must be a vector of integers, got {labels.dtype}{labels.shape}")
    return labels.astype(np.int64)


def draw_of_class(
    labels: IndexArray, label: int, count: int, entropy: list[int], context: str = ""
) -> IndexArray:
    """Draw `count` indices of one class by a generator of its own.

    Raises:
        ValueError: the class has too few images (named).
    """
    indices: IndexArray = np.flatnonzero(labels == label).astype(np.int64)
    if not 0 <= count <= len(indices):
        raise ValueError(f"class {label}{context} needs {count} images, has {len(indices)}")
    return np.random.default_rng(entropy).permutation(indices)[:count]


def sorted_indices(parts: list[IndexArray]) -> IndexArray:
    """Return all indices of the parts, ascending."""
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *parts]))
