"""A sentence for each method of a run on what bounds its speed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pipeline.record.rows import PARTS, StepRow
from pipeline.report.names import title

_NAMES = {
    "wait": "waiting for data",
    "views": "making views",
    "compute": "forward, backward and optimizer",
    "exchange": "waiting for other workers",
    "checkpoint": "checkpoints and reports",
    "health": "measures of health",
    "rest": "all else",
}
_TODO = {
    "wait": "docs/feed.md says what makes the feed faster",
    "views": "more CPU threads for each worker, or a GPU, make them faster",
    "compute": "try train.precision=auto, train.compile=true on a GPU, or a faster device",
    "exchange": "the panel of own time by rank shows a slow worker; a larger batch exchanges less",
    "checkpoint": "raise train.checkpoint_every_s or train.checkpoint_every_epochs",
    "health": "raise health.every_epochs",
    "rest": "a batch with more images makes it a smaller part",
}
_LEAST_SHOWN = 0.01


def bounds(steps: Sequence[StepRow]) -> str:
    """Return what a step of each method spends its time on; empty where it was not measured."""
    by_method: dict[str, list[StepRow]] = {}
    for row in steps:
        if row.parts_s:
            by_method.setdefault(row.method, []).append(row)
    return " ".join(_sentence(method, rows) for method, rows in by_method.items())


def _sentence(method: str, rows: Sequence[StepRow]) -> str:
    mean_s = {part: fmean(row.parts_s.get(part, 0.0) for row in rows) for part in PARTS}
    total_s = sum(mean_s.values())
    if total_s <= 0:
        return ""
    share = {p: s / total_s for p, s in sorted(mean_s.items(), key=lambda item: -item[1])}
    first, *others = (p for p, s in share.items() if s >= _LEAST_SHOWN)
    text = f"What bounds {title(method)}: {_NAMES[first]}, {100 * share[first]:.0f} % of a step"
    if others:
        text += "; then " + ", ".join(f"{_NAMES[p]} {100 * share[p]:.0f} %" for p in others)
    reached = [row.roofline_frac for row in rows if row.roofline_frac is not None]
    if reached:
        text += f"; {100 * fmean(reached):.0f} % of what the devices could do"
    return f"{text}. What to do: {_TODO[first]}."
