"""The report's section on the label-free measures that were taken during training."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from pipeline.record.scores import ABSENT
from pipeline.report.charts import plots
from pipeline.report.charts.plots import Curve
from pipeline.report.results import Record, style, title

# Measure -> name, unit factor, what to look for. In the order of the table; the first four are
# drawn as well.
_MEASURES: dict[str, tuple[str, float, str]] = {
    "view_retrieval": ("view retrieval, %", 100, "Should rise: an image is found by another view."),
    "rankme": ("RankMe", 1, "Should rise, or stay: a fall means that features collapse."),
    "balance_few": ("view retrieval in small clusters, %", 100,
                    "Small clusters stand in for rare classes: should rise with the rest."),
    "disagreement": ("disagreement of the branches", 1,
                     "Near 0 the pruned branch no longer differs, and SDCLR is SimCLR."),
    "balance_std": ("spread over cluster sizes, %", 100, ""),
    "alpha_req": ("alpha-ReQ", 1, ""),
    "alignment": ("alignment", 1, ""),
    "uniformity": ("uniformity", 1, ""),
    "dead_frac": ("dead dimensions, %", 100, ""),
}  # fmt: skip
_NUM_DRAWN = 4


def health_section(metrics: list[Record], command: str) -> Record:
    """Return the section of health: curves, last measures, and the alarms that still hold."""
    by_method: dict[str, list[Record]] = {}
    for row in metrics:
        if row["kind"] == "health":
            by_method.setdefault(row["method"], []).append(row)
    if not by_method:
        return {"missing": "The features have not been measured yet.", "command": command}
    drawn = []
    for name, (label, factor, caption) in list(_MEASURES.items())[:_NUM_DRAWN]:
        data = [
            Curve(title(method), style(method), [_epochs(row) for row in rows],
                  [_value(row, name, factor) for row in rows])
            for method, rows in by_method.items()
        ]  # fmt: skip
        drawing = plots.curves(
            data, label=f"{label} over epochs", x_label="epochs trained", y_label=label
        )
        if drawing:
            drawn.append({"name": label, "svg": Markup(drawing), "caption": caption})
    newest = {method: rows[-1] for method, rows in by_method.items()}
    return {
        "alarms": [
            (title(method), f"{alarm['level']}: {alarm['text']}; {alarm['change']}")
            for method, row in newest.items()
            for alarm in row["alarms"]
        ],
        "plots": drawn,
        "legend": [{"name": title(m), "style": style(m)} for m in by_method],
        "headers": ["Measure", *(title(method) for method in newest)],
        "rows": [
            [label, *(_text(_value(row, name, factor)) for row in newest.values())]
            for name, (label, factor, _) in _MEASURES.items()
        ],
        "num_images": next(iter(newest.values()))["num_images"],
    }


def _epochs(row: Record) -> float:
    return float(row["epoch"] + 1 if row["step"] else 0)


def _value(row: Record, name: str, factor: float) -> float | None:
    value: Any = row["measures"].get(name)
    known = isinstance(value, int | float) and math.isfinite(value)
    return factor * value if known else None


def _text(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g}"
