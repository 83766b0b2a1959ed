"""One score: what a protocol measured of a model, as evaluation.json keeps it.

Shapes: C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from sdclr.longtail import Groups, GroupScores, group_scores, mean_scores

FIELDS = ("many", "medium", "few", "std", "all")


def score_entry(
    protocol: str, accuracies: Sequence[NDArray[np.float64]], groups: Groups, note: str
) -> dict[str, Any]:
    """Return mean and spread over n draws, and the mean accuracy of each class.

    Args:
        protocol: its id, which stands beside every number.
        accuracies: per-class accuracy (C,) of each draw.
        groups: of the classes.
        note: what a reader must know: labels used, the epoch chosen.
    """
    summary = mean_scores([group_scores(accuracy_C, groups) for accuracy_C in accuracies])
    spread = summary.spread
    return {
        "protocol": protocol,
        "n": summary.n,
        **fields_of(summary.mean),
        "spread": None if spread is None else fields_of(spread),
        "per_class": np.mean(accuracies, axis=0).tolist(),
        "note": note,
    }


def fields_of(scores: GroupScores) -> dict[str, float]:
    """Return the five numbers by name."""
    return {name: float(getattr(scores, name)) for name in FIELDS}


def write_json(uri: str, content: dict[str, Any]) -> None:
    """Publish a record; NaN and infinities, which JSON lacks, become null."""
    storage.write_bytes(uri, json.dumps(_without_nan(content), indent=1, allow_nan=False).encode())


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(v) for v in value] if isinstance(value, list) else value
