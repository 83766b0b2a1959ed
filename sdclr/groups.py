"""Many, Medium and Few: classes by their pre-training frequency, and the scores of each group.

Shapes: C classes. Accuracies are fractions in [0, 1] unless the caller uses percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray


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


def tied_with_few(counts: Sequence[int], groups: Groups) -> tuple[int, ...]:
    """Return the classes outside Few that are no more frequent than its most frequent class.

    Their index alone keeps them out: see `groups_by_tercile`.
    """
    most = max((counts[label] for label in groups.few), default=-1)
    others = sorted((*groups.medium, *groups.many))
    return tuple(label for label in others if counts[label] <= most)


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


def _mean_of_measured(accuracy: NDArray[np.float64]) -> float:
    measured = accuracy[~np.isnan(accuracy)]
    return float(measured.mean()) if measured.size else math.nan
