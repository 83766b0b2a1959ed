"""Long-tailed data: imbalance profiles, seeded splits, Many/Medium/Few groups and balancedness.

    exponential   n_c = floor(n_max * ratio^(-c / (C - 1)))                 (Cui et al. 2019)
    Pareto        n_c = floor(n_min + (n_max - n_min) * q(u_c) / q(u_0)),   q(u) = u^(-1/a) - 1

A *rank* orders classes from the most (0) to the least frequent (C - 1). Which class holds which
rank is a seeded permutation, so that several splits separate "rare" from "hard".
Every random choice is a function of an explicit seed.

Shapes: N images, C classes. Accuracies are fractions in [0, 1] unless the caller uses percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

IndexArray = NDArray[np.int64]

# Rounding may put an exact integer just below itself, e.g. 1000 * 1000^(-1/3) = 99.999...; a count
# within this relative distance below an integer is that integer.
_FLOOR_TOLERANCE = 1e-9
# Tail probability of the most frequent class: 1 / 1000, the head of ImageNet-LT's 1,000 classes.
_PARETO_HEAD_PROBABILITY = 1e-3
# Separate random streams of one seed.
_ORDER_STREAM, _IMAGE_STREAM, _FEWSHOT_STREAM = 0, 1, 2


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
    labels, num_classes = _as_labels(labels_N), len(counts_by_rank)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels must be in 0..{num_classes - 1} for {num_classes} counts, "
            f"got {labels.min()}..{labels.max()}"
        )
    chosen = [
        _draw(labels, label, count, [seed, _IMAGE_STREAM, label], f" at rank {rank}")
        for rank, (label, count) in enumerate(
            zip(class_order(num_classes, seed=seed), counts_by_rank, strict=True)
        )
    ]
    return _sorted_indices(chosen)


def fewshot_draws(
    labels_N: Sequence[int] | NDArray[np.integer],
    *,
    shots_per_class: int,
    num_draws: int,
    seed: int,
) -> list[IndexArray]:
    """Draw balanced subsets independently, each sorted; every label that occurs counts.

    Draw d depends on (seed, d) only, so more draws extend fewer.

    Raises:
        ValueError: `shots_per_class` or `num_draws` below 1, or a class has too few images (named).
    """
    if shots_per_class < 1 or num_draws < 1:
        raise ValueError(
            f"shots_per_class and num_draws must be >= 1, got {shots_per_class}, {num_draws}"
        )
    labels = _as_labels(labels_N)
    classes = [int(label) for label in np.unique(labels)]
    if classes and classes[0] < 0:
        raise ValueError(f"labels must be >= 0, got {classes[0]}")
    return [
        _sorted_indices(
            [
                _draw(labels, label, shots_per_class, [seed, _FEWSHOT_STREAM, draw, label])
                for label in classes
            ]
        )
        for draw in range(num_draws)
    ]


@dataclass(frozen=True)
class Groups:
    """Class indices by pre-training frequency, each ascending; a group may be empty."""

    many: tuple[int, ...]
    medium: tuple[int, ...]
    few: tuple[int, ...]


def groups_by_tercile(counts: Sequence[int]) -> Groups:
    """Group classes by ascending count: the first C // 3 are Few, the next Medium, the rest Many.

    10 classes give 4/3/3 (Many/Medium/Few), 100 give 34/33/33. Of equal counts the lower class
    index comes first, that is, goes to the rarer group.
    """
    ascending = sorted(range(len(counts)), key=lambda label: (counts[label], label))
    third = len(counts) // 3
    few, medium, many = ascending[:third], ascending[third : 2 * third], ascending[2 * third :]
    return Groups(tuple(sorted(many)), tuple(sorted(medium)), tuple(sorted(few)))


def groups_by_threshold(
    counts: Sequence[int], many_above: int = 100, few_below: int = 20
) -> Groups:
    """Group classes by count (Liu et al. 2019): Many > `many_above`, Few < `few_below`.

    Raises:
        ValueError: `few_below` > `many_above` + 1, where a class could be in two groups.
    """
    if few_below > many_above + 1:
        raise ValueError(f"few_below {few_below} overlaps many_above {many_above}")
    many = tuple(label for label, count in enumerate(counts) if count > many_above)
    few = tuple(label for label, count in enumerate(counts) if count < few_below)
    medium = tuple(label for label, count in enumerate(counts) if few_below <= count <= many_above)
    return Groups(many, medium, few)


@dataclass(frozen=True)
class GroupScores:
    """Mean per-class accuracy of each group and of all classes; `std` is the balancedness.

    A small `std` alone says nothing: a uniformly bad model has 0. Show `all` and `few` beside it.
    """

    many: float
    medium: float
    few: float
    std: float
    all: float


@dataclass(frozen=True)
class ScoreSummary:
    """Mean over n splits or draws, and the sample standard deviation (ddof 1; None when n = 1)."""

    mean: GroupScores
    spread: GroupScores | None
    n: int


def group_scores(
    per_class_accuracy: Sequence[float] | NDArray[np.floating], groups: Groups
) -> GroupScores:
    """Score one split: group means, `all` = mean over classes, `std` = population std of 3.

    A class with accuracy nan (absent from the test set) is left out of its group and of `all`. A
    group without any measured class is nan, and then `std` is nan too: the spread of two groups
    must not be read beside the spread of three.

    Raises:
        ValueError: a class of `groups` has no entry in `per_class_accuracy`.
    """
    accuracy_C = np.asarray(per_class_accuracy, dtype=np.float64)
    members = groups.many + groups.medium + groups.few
    if members and not 0 <= min(members) <= max(members) < len(accuracy_C):
        raise ValueError(f"class {max(members)} has no entry among {len(accuracy_C)} accuracies")
    many, medium, few = (
        _mean_of_measured(accuracy_C[list(group)])
        for group in (groups.many, groups.medium, groups.few)
    )
    std = float(np.std([many, medium, few]))
    return GroupScores(many, medium, few, std, _mean_of_measured(accuracy_C))


def mean_scores(scores: Sequence[GroupScores]) -> ScoreSummary:
    """Average field by field over splits or draws; a nan in any makes the field nan.

    `std` is averaged over the splits. It is not the std of the averaged groups, which is smaller
    whenever the weak group changes from split to split.

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("no scores to average")
    table = np.array([astuple(score) for score in scores], dtype=np.float64)
    mean = GroupScores(*table.mean(axis=0).tolist())
    spread = GroupScores(*table.std(axis=0, ddof=1).tolist()) if len(scores) > 1 else None
    return ScoreSummary(mean, spread, len(scores))


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


def _as_labels(labels_N: Sequence[int] | NDArray[np.integer]) -> IndexArray:
    labels = np.asarray(labels_N)
    if labels.ndim != 1 or (labels.size and not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(f"labels must be a vector of integers, got {labels.dtype}{labels.shape}")
    return labels.astype(np.int64)


def _draw(
    labels: IndexArray, label: int, count: int, entropy: list[int], context: str = ""
) -> IndexArray:
    """Draw `count` indices of one class."""
    indices: IndexArray = np.flatnonzero(labels == label).astype(np.int64)
    if not 0 <= count <= len(indices):
        raise ValueError(f"class {label}{context} needs {count} images, has {len(indices)}")
    return np.random.default_rng(entropy).permutation(indices)[:count]


def _sorted_indices(parts: list[IndexArray]) -> IndexArray:
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *parts]))


def _mean_of_measured(accuracy: NDArray[np.float64]) -> float:
    measured = accuracy[~np.isnan(accuracy)]
    return float(measured.mean()) if measured.size else math.nan
