"""Few-shot draws by a seed: the same number of labelled images of every class, or the same part.

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdclr.longtail import IndexArray, as_labels, draw_of_class, sorted_indices

# A random stream beside those of `sdclr.longtail`.
_FEWSHOT_STREAM = 2


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
    labels = as_labels(labels_N)
    shots = {int(label): shots_per_class for label in np.unique(labels)}
    return _draws(labels, shots, num_draws, seed)


def fraction_draws(
    labels_N: Sequence[int] | NDArray[np.integer],
    *,
    fraction: float,
    num_draws: int,
    seed: int,
) -> list[IndexArray]:
    """Draw a part of every class independently, each draw sorted; at least one image of a class.

    A class of n images gives `fraction` n, rounded to even halves. Draw d of a class contains that
    of `fewshot_draws` with the same seed, where it is not smaller.

    Raises:
        ValueError: `fraction` outside (0, 1], or `num_draws` below 1.
    """
    if not 0 < fraction <= 1 or num_draws < 1:
        raise ValueError(
            f"fraction must be in (0, 1] and num_draws >= 1, got {fraction}, {num_draws}"
        )
    labels = as_labels(labels_N)
    classes, counts = np.unique(labels, return_counts=True)
    shots = {
        int(label): max(1, round(fraction * int(count)))
        for label, count in zip(classes, counts, strict=True)
    }
    return _draws(labels, shots, num_draws, seed)


def _draws(
    labels: IndexArray, shots: dict[int, int], num_draws: int, seed: int
) -> list[IndexArray]:
    if shots and min(shots) < 0:
        raise ValueError(f"labels must be >= 0, got {min(shots)}")
    return [
        sorted_indices(
            [
                draw_of_class(labels, label, count, [seed, _FEWSHOT_STREAM, draw, label])
                for label, count in shots.items()
            ]
        )
        for draw in range(num_draws)
    ]
