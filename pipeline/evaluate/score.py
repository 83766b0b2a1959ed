"""One score: what a protocol measured of a model.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.record.evaluation import METRICS, GroupValues, Score
from sdclr.groups import Groups, GroupScores, group_scores, mean_scores


def score_of(
    protocol: str,
    accuracies: Sequence[NDArray[np.float64]],
    groups: Groups,
    note: str,
    *,
    group_confusion: NDArray[np.float64] | None = None,
) -> Score:
    """Return mean and spread over n draws, and the mean accuracy of each class.

    Args:
        protocol: its id, which stands beside every number.
        accuracies: per-class accuracy (C,) of each draw.
        groups: of the classes.
        note: what a reader must know: labels used, the epoch chosen.
        group_confusion: (3, 3) shares, mean over the draws; None = not measured.
    """
    summary = mean_scores([group_scores(accuracy_C, groups) for accuracy_C in accuracies])
    return Score(
        protocol=protocol,
        n=summary.n,
        **fields_of(summary.mean),
        spread=values_of(summary.spread),
        per_class=tuple(np.mean(accuracies, axis=0).tolist()),
        note=note,
        group_confusion=None
        if group_confusion is None
        else tuple(tuple(row) for row in group_confusion.tolist()),
    )


def fields_of(scores: GroupScores) -> dict[str, float]:
    """Return the five numbers by name."""
    return {name: float(getattr(scores, name)) for name in METRICS}


def values_of(scores: GroupScores | None) -> GroupValues | None:
    """Return the five numbers as a record holds them."""
    return None if scores is None else GroupValues(**fields_of(scores))
