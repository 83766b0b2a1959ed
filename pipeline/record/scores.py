"""The scores of an evaluation as one table, for the console, the report and a spreadsheet.

Many, Medium and Few are mean accuracies over the classes of each frequency group, All is the mean
over all classes, STD is the population standard deviation of [Many, Medium, Few] (balancedness;
lower is more even). STD alone can be gamed by a model that is bad everywhere, so it never stands
without All and Few; and no number stands without the id of the protocol that made it.
"""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from pipeline.console import Console

METRICS = ("many", "medium", "few", "std", "all")
HEADERS = ["Protocol", "Model", "Many", "Medium", "Few", "STD", "All", "n", "Seed"]
ABSENT = "–"


def scores_table(evaluation: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows, one row per protocol and model, all cells text.

    Rows are ordered by protocol (as first met), then by model (as recorded). Numbers are percent
    with one decimal, followed by the sample standard deviation over the n draws where n > 1. An
    accuracy that was not measured (null or NaN: an empty group) is shown as a dash.

    Args:
        evaluation: the content of evaluation.json.
    """
    seed = str(evaluation.get("seed", ABSENT))
    rows = []
    for protocol in protocols_of(evaluation):
        for model, score in scores_of(evaluation, protocol):
            cells = [_percent_with_spread(score, metric) for metric in METRICS]
            rows.append([protocol, str(model["name"]), *cells, str(score["n"]), seed])
    return list(HEADERS), rows


def curve_table(evaluation: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headers and rows of every scored checkpoint, one per protocol and checkpoint."""
    rows = []
    for protocol in protocols_of(evaluation):
        for point in evaluation["curve"]:
            score = next(s for s in point["scores"] if s["protocol"] == protocol)
            cells = [_percent_with_spread(score, metric) for metric in ("few", "std", "all")]
            rows.append([protocol, point["name"], str(point["epochs"]), str(point["step"]), *cells])
    return ["Protocol", "Model", "Epoch", "Step", "Few", "STD", "All"], rows


def aggregate_tables(averaged: dict[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
    """Return two tables: means, and paired differences, marked * where 0 is excluded."""
    means = [
        [s["protocol"], s["model"], *(_percent_with_spread(s, m) for m in METRICS), str(s["n"])]
        for s in averaged["scores"]
    ]
    differences = [
        [d["protocol"], f"{d['a']} - {d['b']}", *(_difference(d, m) for m in METRICS), str(d["n"])]
        for d in averaged["differences"]
    ]
    titles = ["Many", "Medium", "Few", "STD", "All", "n"]
    return [
        (["Protocol", "Model", *titles], means),
        (["Protocol", "Difference", *titles], differences),
    ]


def show_evaluation(console: Console, evaluation: dict[str, Any]) -> None:
    """Show notes, the table, the curve if there is one, and the time of each protocol."""
    for note in evaluation["notes"]:
        console.stage("evaluate", note)
    console.line()
    console.table(*scores_table(evaluation))
    if evaluation["curve"]:
        console.line()
        console.table(*curve_table(evaluation))
    console.line("accuracy in %; STD: spread of Many, Medium, Few, lower is more even")
    console.line(timings_line(evaluation))
    console.line()


def show_aggregate(console: Console, averaged: dict[str, Any]) -> None:
    """Show notes, means and paired differences of several runs."""
    for note in averaged["notes"]:
        console.stage("evaluate", note)
    for headers, rows in aggregate_tables(averaged):
        console.line()
        console.table(headers, rows)
    console.line(
        "accuracy in %, mean ± standard deviation over n pairs of split and seed; differences: "
        "± half of the 95 % interval of the paired t, * excludes 0"
    )
    console.line()


def timings_line(evaluation: dict[str, Any]) -> str:
    """Return the time of each protocol for all models; `features` serves the cached ones."""
    timings = evaluation.get("timings_s", {})
    return "time: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timings.items())


def scores_csv(evaluation: dict[str, Any]) -> str:
    """Write the same rows as CSV with a header line: fractions in [0, 1] at full precision.

    Spread columns are empty where n = 1; a value that was not measured is empty.
    """
    columns = ["protocol", "model", "epochs", "step", "seed", "n"]
    columns += [name for metric in METRICS for name in (metric, f"{metric}_spread")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*columns, "note"])
    for protocol in protocols_of(evaluation):
        for model, score in scores_of(evaluation, protocol):
            spread = score.get("spread") or {}
            cells: list[Any] = [protocol, model["name"], model.get("epochs"), model.get("step")]
            cells += [evaluation.get("seed"), score["n"]]
            for metric in METRICS:
                cells += [_finite(score.get(metric)), _finite(spread.get(metric))]
            writer.writerow([*cells, score.get("note", "")])
    return stream.getvalue()


def protocols_of(evaluation: dict[str, Any]) -> list[str]:
    """Return protocol ids in order of first appearance."""
    found = [s["protocol"] for model in evaluation["models"] for s in model["scores"]]
    return list(dict.fromkeys(found))


def scores_of(
    evaluation: dict[str, Any], protocol: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return pairs (model, score) of one protocol, in the order of the record."""
    return [
        (model, score)
        for model in evaluation["models"]
        for score in model["scores"]
        if score["protocol"] == protocol
    ]


def percent(fraction: float | None) -> str:
    """Format a fraction as percent with one decimal and no sign; a dash for null or NaN."""
    value = _finite(fraction)
    return ABSENT if value is None else f"{100 * value:.1f}"


def _percent_with_spread(score: dict[str, Any], metric: str) -> str:
    spread = _finite((score.get("spread") or {}).get(metric))
    text = percent(score.get(metric))
    if spread is None or text == ABSENT or score["n"] <= 1:
        return text
    return f"{text} ± {percent(spread)}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _difference(difference: dict[str, Any], metric: str) -> str:
    mean = _finite(difference.get(metric))
    half_width = _finite((difference.get("half_width") or {}).get(metric))
    if mean is None:
        return ABSENT
    if half_width is None:
        return f"{100 * mean:+.1f}"
    star = " *" if abs(mean) > half_width else ""
    return f"{100 * mean:+.1f} ± {100 * half_width:.1f}{star}"
