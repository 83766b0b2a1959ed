"""Check of a label-free ranking by labels, where there are some.

Shapes: N images, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.ranking import auroc, bootstrap, precision_at
from pipeline.record.mining import Batch, ClassPlace, Findings, ScoreFound
from sdclr.groups import Groups, tied_with_few
from sdclr.rarity import rank_share

Scores = NDArray[np.float32] | NDArray[np.float64]


def findings(
    scores: dict[tuple[str, str], Scores],
    labels_N: NDArray[np.int64],
    groups: Groups,
    class_names: tuple[str, ...],
    class_counts: tuple[int, ...],
    batch_rows: list[int],
    *,
    used: tuple[str, str],
) -> Findings | None:
    """Measure how well each score finds images of rare classes; None without any.

    Args:
        scores: (model, score) -> (N,), higher is rarer.
        labels_N: all known.
        groups: by pre-training counts; the classes of `few` are looked for.
        class_names: C names.
        class_counts: the pre-training images of each, which the groups follow.
        batch_rows: the images that were suggested for annotation.
        used: the score that the ranking is made of.
    """
    few_N = np.isin(labels_N, groups.few)
    num_few = int(few_N.sum())
    if num_few in (0, len(few_N)):
        return None
    ks = sorted({k for k in (50, 100, num_few, 1000) if k <= len(few_N)})
    tables = []
    for (model, name), scores_N in scores.items():
        area = bootstrap(auroc, scores_N, few_N, seed=0)
        tables.append(
            ScoreFound(
                model=model,
                score=name,
                auroc=area.value,
                auroc_low=area.low,
                auroc_high=area.high,
                precision={str(k): precision_at(scores_N, few_N, k) for k in ks},
            )
        )
    place_N = rank_share(scores[used])
    return Findings(
        few_classes=tuple(class_names[c] for c in groups.few),
        tied_classes=tuple(class_names[c] for c in tied_with_few(class_counts, groups)),
        num_few=num_few,
        base_rate=num_few / len(few_N),
        scores=tuple(tables),
        classes=tuple(
            ClassPlace(
                name=class_names[c],
                count=int((labels_N == c).sum()),
                mean_rank_share=float(place_N[labels_N == c].mean()),
            )
            for c in range(len(class_names))
            if (labels_N == c).any()
        ),
        batch=Batch(
            images=len(batch_rows),
            few=int(few_N[batch_rows].sum()),
            few_expected_by_chance=len(batch_rows) * num_few / len(few_N),
            classes=len(np.unique(labels_N[batch_rows])),
        ),
    )
