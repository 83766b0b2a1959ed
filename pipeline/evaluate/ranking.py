"""Quality of a ranking: AUROC, precision at k, intervals.

Shapes: N images. `positive_N` says which of them are looked for; a higher score should mean them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.record.intervals import Interval
from sdclr.rarity import rank_share
from sdclr.seeds import numpy_generator

Scores = NDArray[np.floating]
Mask = NDArray[np.bool_]


def auroc(scores_N: Scores, positive_N: Mask) -> float:
    """Return the probability that a positive image scores above a negative one; ties 1/2.

    Mann and Whitney 1947, in [0, 1]; 0.5 for a score that knows nothing. nan when there are only
    positives or only negatives.
    """
    num_positive, num_all = int(positive_N.sum()), len(positive_N)
    num_negative = num_all - num_positive
    if num_positive == 0 or num_negative == 0:
        return float("nan")
    ranks_N = rank_share(scores_N) * (num_all - 1)  # from 0
    total = float(ranks_N[positive_N].sum()) - num_positive * (num_positive - 1) / 2
    return total / (num_positive * num_negative)


def precision_at(scores_N: Scores, positive_N: Mask, k: int) -> float:
    """Return the share of positives among the k highest scores, in [0, 1].

    Of images that tie at the border an equal share counts. A score that knows nothing has the share
    of positives in the whole set.

    Raises:
        ValueError: k outside 1..N.
    """
    if not 1 <= k <= len(scores_N):
        raise ValueError(f"k must be in 1..{len(scores_N)}, got {k}")
    border = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
    above_N, at_N = scores_N > border, scores_N == border
    found = float(positive_N[above_N].sum())
    found += float(positive_N[at_N].mean()) * (k - int(above_N.sum()))
    return found / k


def bootstrap(
    measure: Callable[[Scores, Mask], float],
    scores_N: Scores,
    positive_N: Mask,
    *,
    seed: int,
    num_resamples: int = 500,
) -> Interval:
    """Return a measure and its bootstrap interval; positives and negatives are resampled apart.

    The interval says what another draw of images would change; the network stays the same, so it
    leaves out what another training run would change.
    """
    generator = numpy_generator(seed, "bootstrap")
    positives, negatives = np.flatnonzero(positive_N), np.flatnonzero(~positive_N)
    values = []
    for _ in range(num_resamples):
        rows = np.concatenate(
            [generator.choice(part, len(part)) for part in (positives, negatives) if len(part)]
        )
        values.append(measure(scores_N[rows], positive_N[rows]))
    finite = np.array([value for value in values if np.isfinite(value)])
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return Interval(measure(scores_N, positive_N), float(low), float(high))
