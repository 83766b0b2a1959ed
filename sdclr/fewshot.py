"""Balanced few-shot draws: the same number of labelled images of every class, drawn by a seed.

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
    classes = [int(label) for label in np.unique(labels)]
    if classes and classes[0] < 0:
        raise ValueError(f"labels must be >= 0, got {classes[0]}")
    return [
        sorted_indices(
            [
                draw_of_class(labels, label, shots_per_class, [seed, _FEWSHOT_STREAM, draw, label])
                for label in classes
            ]
        )
        for draw in range(num_draws)
    ]
