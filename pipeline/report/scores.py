"""The report's sections on accuracy: scores, confusion of groups, classes, and the checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.record.evaluation import Evaluation, Score
from pipeline.record.intervals import wilson
from pipeline.record.scores import ABSENT, percent
from pipeline.report.charts import dotplot, plots
from pipeline.report.charts.dotplot import Points, Span
from pipeline.report.charts.plots import Curve
from pipeline.report.charts.svg import MAX_ROWS
from pipeline.report.names import GROUPS, frequency_order, group_of, style, title
from pipeline.report.parts import Figure, Swatch, Table
from pipeline.report.views import Manifest

# What a reader came for stands first: at the width of a phone the rest is off screen.
_COLUMNS = (("few", "Few"), ("std", "STD"), ("all", "All"), ("many", "Many"), ("medium", "Medium"))


@dataclass(frozen=True)
class Cell:
    """A score and its spread, which a narrow page shows below it."""

    value: str
    spread: str


@dataclass(frozen=True)
class ProtocolScores:
    """The rows of one protocol: (model, cells in the order of the headers)."""

    protocol: str
    n: str
    note: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Matrix:
    """Of the images of a group, how many percent are taken for a class of which group."""

    model: str
    rows: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]


@dataclass(frozen=True)
class ScoresSection:
    """All scores, and where one protocol sends the images of each group."""

    headers: tuple[str, ...]
    protocols: tuple[ProtocolScores, ...]
    sets: str
    confused_by: str
    matrices: tuple[Matrix, ...]


def scores_section(evaluation: Evaluation) -> ScoresSection:
    """Return scores by protocol and model."""
    protocols = []
    for protocol in evaluation.protocols:
        found = list(evaluation.scores_by(protocol))
        rows = tuple(
            (title(model.name), tuple(_cell(score, key) for key, _ in _COLUMNS))
            for model, score in found
        )
        notes = list(dict.fromkeys(score.note for _, score in found if score.note))
        draws = sorted({score.n for _, score in found})
        n = "one draw" if draws == [1] else f"n = {', '.join(map(str, draws))} draws of labels"
        protocols.append(ProtocolScores(protocol, n, "; ".join(notes), rows))
    sets = ", ".join(f"{rows} {name}" for name, rows in evaluation.sets.items())
    headers = tuple(name for _, name in _COLUMNS)
    return ScoresSection(headers, tuple(protocols), sets, *_confusions(evaluation))


def _cell(score: Score, key: str) -> Cell:
    spread = score.spread.metric(key) if score.spread is not None else None
    value = percent(score.metric(key))
    shown = spread is not None and score.n > 1 and value != ABSENT
    return Cell(value, f"± {percent(spread)}" if shown else "")


def _confusions(evaluation: Evaluation) -> tuple[str, tuple[Matrix, ...]]:
    """Return the first protocol that has confusions, and those of each model."""
    for protocol in evaluation.protocols:
        matrices = tuple(
            Matrix(
                title(model.name),
                tuple(
                    (name, tuple((percent(share), _shade(share)) for share in row))
                    for (_, name, _), row in zip(GROUPS, score.group_confusion, strict=True)
                ),
            )
            for model, score in evaluation.scores_by(protocol)
            if score.group_confusion
        )
        if matrices:
            return protocol, matrices
    return "", ()


def _shade(share: float | None) -> int:
    """Return the level of a cell's background, 0 to 4."""
    return 0 if share is None or not math.isfinite(share) else min(4, int(5 * share))


@dataclass(frozen=True)
class ClassesSection:
    """A dot plot of accuracy by class for each protocol, and the same numbers as a table."""

    figures: tuple[Figure, ...]
    table: Table
    groups: tuple[Swatch, ...]
    whiskers: bool


def classes_section(evaluation: Evaluation, manifest: Manifest | None) -> ClassesSection:
    """Return accuracy by class, most frequent class first."""
    counts, names = evaluation.pretrain_counts, evaluation.class_names
    order, group = frequency_order(counts), group_of(evaluation)
    num_scored = manifest.counts(evaluation.scored_on) if manifest is not None else ()
    if len(num_scored) != len(names):
        num_scored = ()
    figures, columns = [], []
    for protocol in evaluation.protocols:
        data = [
            Points(
                title(model.name),
                style(model.name),
                [_percent_or_none(score.per_class[i]) for i in order],
                [_interval(score.per_class[i], num_scored[i]) for i in order] if num_scored else (),
            )
            for model, score in evaluation.scores_by(protocol)
        ]
        drawing = dotplot.points(
            [names[i] for i in order],
            data,
            label=f"Accuracy by class, most frequent first, {protocol}, for "
            + ", ".join(series.name for series in data),
            spans=_spans(order, group),
        )
        cut = dotplot.begins_above_zero([names[i] for i in order], data)
        caption = "The axis does not begin at 0." if cut else ""
        figures.append(Figure(protocol, Markup(drawing), caption, _legend(data)))
        columns += [(f"{series.name}, {protocol}", series.values) for series in data]
    rows = tuple(
        (
            names[i],
            str(counts[i]),
            group.get(i, (ABSENT, ""))[0],
            *(ABSENT if (v := values[rank]) is None else f"{v:.1f}" for _, values in columns),
        )
        for rank, i in enumerate(order)
    )
    return ClassesSection(
        figures=tuple(figures),
        table=Table(
            "Accuracy by class in percent, mean over the draws",
            ("Class", "Images", "Group", *(name for name, _ in columns)),
            rows,
        ),
        groups=tuple(Swatch(name, css) for _, name, css in GROUPS) if group else (),
        whiskers=bool(num_scored) and len(order) <= MAX_ROWS,
    )


def _interval(share: float | None, num: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a share of `num` images, in percent."""
    if share is None or not num:
        return None
    interval = wilson(share, num)
    return 100 * interval.low, 100 * interval.high


def _percent_or_none(fraction: float | None) -> float | None:
    return 100 * fraction if fraction is not None and math.isfinite(fraction) else None


def _legend(data: Sequence[Points]) -> tuple[Swatch, ...]:
    return tuple(
        Swatch(s.name, s.style, dotplot.marker(dotplot.marker_of(k), 8, 8))
        for k, s in enumerate(data)
    )


def _spans(order: Sequence[int], group: dict[int, tuple[str, str]]) -> list[Span]:
    """Return the groups as runs in the order by frequency; none when they are not contiguous."""
    ranked = [group.get(i, ("", "")) for i in order]
    found = []
    for pair in dict.fromkeys(ranked):
        start = ranked.index(pair)
        stop = start + ranked.count(pair)
        if not pair[0] or set(ranked[start:stop]) != {pair}:
            return []
        found.append(Span(*pair, start, stop))
    return found


def curve_figures(evaluation: Evaluation) -> tuple[Figure, ...]:
    """Return Few and All over the epochs of every scored checkpoint, for each protocol.

    Empty when the evaluation scored the newest checkpoints only.
    """
    points = evaluation.curve
    methods = list(dict.fromkeys(point.name for point in points))
    protocols = list(dict.fromkeys(s.protocol for point in points for s in point.scores))
    drawn = []
    for protocol in protocols:
        for key, name in (("few", "Few"), ("all", "All")):
            data = []
            for method in methods:
                mine = [
                    (float(point.epochs or 0), _percent_or_none(score.metric(key)))
                    for point in points
                    if point.name == method
                    for score in point.scores
                    if score.protocol == protocol
                ]
                data.append(
                    Curve(title(method), style(method), [x for x, _ in mine], [y for _, y in mine])
                )
            drawing = plots.curves(
                data,
                label=f"{name}, {protocol}, over epochs",
                x_label="epochs trained",
                y_label="accuracy, %",
            )
            if drawing:
                legend = tuple(Swatch(curve.name, curve.style) for curve in data)
                drawn.append(Figure(f"{name}, {protocol}", Markup(drawing), "", legend))
    return tuple(drawn)
