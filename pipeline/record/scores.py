"""The scores of an evaluation as one table, for the console and a spreadsheet.

Many, Medium and Few are mean accuracies over the classes of each frequency group, All is the mean
over all classes, STD is the population standard deviation of [Many, Medium, Few] (balancedness;
lower is more even). STD alone can be gamed by a model that is bad everywhere, so it never stands
without All and Few; and no number stands without the id of the protocol that made it.
"""

from __future__ import annotations

import math

from pipeline.console import Console
from pipeline.record.aggregate import Aggregate, MeanDifference, MeanScore
from pipeline.record.evaluation import METRICS, Evaluation, Score

HEADERS = ["Protocol", "Model", "Many", "Medium", "Few", "STD", "All", "n", "Seed"]
ABSENT = "–"

Table = tuple[list[str], list[list[str]]]


def scores_table(evaluation: Evaluation) -> Table:
    """Return headers and rows, one row per protocol and model, all cells text.

    Rows are ordered by protocol (as first met), then by model (as recorded). Numbers are percent
    with one decimal, followed by the sample standard deviation over the n draws where n > 1. An
    accuracy that was not measured (an empty group) is shown as a dash.
    """
    rows = [
        [protocol, model.name, *percents(score, METRICS), str(score.n), str(evaluation.seed)]
        for protocol in evaluation.protocols
        for model, score in evaluation.scores_by(protocol)
    ]
    return list(HEADERS), rows


def curve_table(evaluation: Evaluation) -> Table:
    """Return headers and rows of every scored checkpoint, one per protocol and checkpoint."""
    rows = []
    for protocol in evaluation.protocols:
        for point in evaluation.curve:
            score = next(s for s in point.scores if s.protocol == protocol)
            cells = percents(score, ("few", "std", "all"))
            rows.append([protocol, point.name, str(point.epochs), str(point.step), *cells])
    return ["Protocol", "Model", "Epoch", "Step", "Few", "STD", "All"], rows


def aggregate_tables(averaged: Aggregate) -> list[Table]:
    """Return two tables: means, and paired differences, marked * where 0 is excluded."""
    means = [[s.protocol, s.model, *percents(s, METRICS), str(s.n)] for s in averaged.scores]
    differences = [
        [d.protocol, f"{d.a} - {d.b}", *(_difference(d, m) for m in METRICS), str(d.n)]
        for d in averaged.differences
    ]
    titles = ["Many", "Medium", "Few", "STD", "All", "n"]
    return [
        (["Protocol", "Model", *titles], means),
        (["Protocol", "Difference", *titles], differences),
    ]


def show_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Show notes, the table, the curve if there is one, and the time of each protocol."""
    for note in evaluation.notes:
        console.stage("evaluate", note)
    console.line()
    console.table(*scores_table(evaluation))
    if evaluation.curve:
        console.line()
        console.table(*curve_table(evaluation))
    console.line("accuracy in %; STD: spread of Many, Medium, Few, lower is more even")
    console.line(timings_line(evaluation))
    console.line()


def show_aggregate(console: Console, averaged: Aggregate) -> None:
    """Show notes, means and paired differences of several runs."""
    for note in averaged.notes:
        console.stage("evaluate", note)
    for headers, rows in aggregate_tables(averaged):
        console.line()
        console.table(headers, rows)
    console.line(
        "accuracy in %, mean ± standard deviation over n pairs of split and seed; differences: "
        "± half of the 95 % interval of the paired t, * excludes 0"
    )
    console.line()


def timings_line(evaluation: Evaluation) -> str:
    """Return the time of each protocol for all models; `features` serves the cached ones."""
    timings = evaluation.timings_s
    return "time: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timings.items())


def percent(fraction: float | None) -> str:
    """Format a fraction as percent with one decimal and no sign; a dash for null or NaN."""
    return ABSENT if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.1f}"


def difference_text(mean: float | None, half_width: float | None) -> str:
    """Return a difference in points, its interval, and an asterisk when that excludes 0."""
    if mean is None:
        return ABSENT
    if half_width is None:
        return f"{100 * mean:+.1f}"
    star = " *" if abs(mean) > half_width else ""
    return f"{100 * mean:+.1f} ± {100 * half_width:.1f}{star}"


def percents(score: Score | MeanScore, metrics: tuple[str, ...]) -> list[str]:
    """Return each metric with its spread over the draws, where there are several."""
    cells = []
    for metric in metrics:
        value = score.metric(metric)
        spread = score.spread.metric(metric) if score.spread is not None else None
        is_spread = value is not None and spread is not None and score.n > 1
        cells.append(percent(value) + (f" ± {percent(spread)}" if is_spread else ""))
    return cells


def _difference(difference: MeanDifference, metric: str) -> str:
    return difference_text(difference.metric(metric), difference.half(metric))
