"""The report's curve over checkpoints, its confusion of groups, and all its numbers as CSV.

Same conventions as pipeline.report.results.
"""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from markupsafe import Markup

from pipeline.record.scores import percent, protocols_of, scores_csv, scores_of
from pipeline.report.charts import plots
from pipeline.report.charts.plots import Curve
from pipeline.report.results import GROUPS, Record, frequency_order, group_of, style, title


def curve_section(evaluation: Record | None) -> list[Record]:
    """Draw Few and All over the epochs of every scored checkpoint, for each protocol.

    Empty when the evaluation scored the newest checkpoints only.
    """
    points: list[Record] = (evaluation or {}).get("curve") or []
    methods = list(dict.fromkeys(point["name"] for point in points))
    protocols = list(dict.fromkeys(s["protocol"] for point in points for s in point["scores"]))
    drawn = []
    for protocol in protocols:
        for key, name in (("few", "Few"), ("all", "All")):
            data = []
            for method in methods:
                mine = [
                    (point["epochs"], score[key])
                    for point in points
                    if point["name"] == method
                    for score in point["scores"]
                    if score["protocol"] == protocol
                ]
                xs, ys = [float(x) for x, _ in mine], [_percent(y) for _, y in mine]
                data.append(Curve(title(method), style(method), xs, ys))
            label = f"{name}, {protocol}"
            drawing = plots.curves(
                data, label=f"{label} over epochs", x_label="epochs trained", y_label="accuracy, %"
            )
            if drawing:
                legend = [{"name": curve.name, "style": curve.style} for curve in data]
                drawn.append({"name": label, "svg": Markup(drawing), "legend": legend})
    return drawn


def confusion_section(evaluation: Record | None) -> list[Record]:
    """Show where the images of each group are sent, for each protocol and model."""
    found = []
    for protocol in protocols_of(evaluation) if evaluation else []:
        rows = [
            [title(model["name"]), name, *(percent(share) for share in row)]
            for model, score in scores_of(evaluation or {}, protocol)
            if score.get("group_confusion")
            for (_, name, _), row in zip(GROUPS, score["group_confusion"], strict=True)
        ]
        if rows:
            found.append({"protocol": protocol, "rows": rows})
    return found


def csv_files(evaluation: Record | None, metrics: list[Record]) -> dict[str, str]:
    """Return file contents by name: scores, accuracy by class, measures of health."""
    files = {}
    if evaluation is not None:
        files["scores.csv"] = scores_csv(evaluation)
        files["classes.csv"] = _classes_csv(evaluation)
    health = [row for row in metrics if row["kind"] == "health"]
    if health:
        names = list(health[0]["measures"])
        rows = [
            [row["method"], row["epoch"], row["step"], *(row["measures"].get(n) for n in names)]
            for row in health
        ]
        files["health.csv"] = _csv(["method", "epoch", "step", *names], rows)
    return files


def _classes_csv(evaluation: Record) -> str:
    group, counts = group_of(evaluation), evaluation["pretrain_counts"]
    rows = [
        [protocol, model["name"], evaluation["class_names"][i], counts[i],
         group.get(i, ("",))[0], score["per_class"][i]]
        for protocol in protocols_of(evaluation)
        for model, score in scores_of(evaluation, protocol)
        for i in frequency_order(counts)
    ]  # fmt: skip
    return _csv(["protocol", "model", "class", "pretrain_images", "group", "accuracy"], rows)


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


def _percent(share: float | None) -> float | None:
    return None if share is None or not math.isfinite(share) else 100 * share
