"""The drawings of a sweep's page; trials are compared at the same number of epochs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from markupsafe import Markup

from pipeline.console import counted
from pipeline.record.sweep import MethodSearch, Searched, SearchedTrial
from pipeline.report.charts import plots, sweeps
from pipeline.report.charts.plots import Bar
from pipeline.report.charts.sweeps import Axis, Drawn
from pipeline.report.names import title
from pipeline.report.parts import Figure, Swatch

_KINDS = (("best", "best"), ("ran to the end", "complete"), ("stopped early", "pruned"))


def method_figures(
    part: MethodSearch, trials: Sequence[SearchedTrial], first: str, what: str, common: int | None
) -> Iterator[Figure]:
    """Yield the drawings of one method's search that have something to draw.

    Args:
        part: the method's part of sweep.json.
        trials: of this method.
        first: the objective that trials are judged by.
        what: the same in words.
        common: the last epoch that every trial reached; None when there is none.
    """
    name = title(part.method)
    kinds = {t.name: _kind(t, part.best) for t in trials}
    shown = [t for t in trials if kinds[t.name]]
    whole = [t for t in shown if kinds[t.name] != "pruned" and t.values.get(first) is not None]
    stopped = [t for t in shown if kinds[t.name] == "pruned"]
    axes = [_axis(p) for p in part.parameters]
    curves = [(t.name, kinds[t.name], t.course) for t in shown]
    yield from _figure(
        "Course of the trials",
        sweeps.objective_curves(curves, y_label=what, label=f"{name}: {what} over the epochs of "
                       f"{counted(len(curves), 'trial')}"),
        "Crosses mark where a trial was stopped. Compare lines at one epoch, not their ends.",
        _legend(kinds.values()),
    )  # fmt: skip
    ends = [(t, t.values.get(first)) for t in whole]
    yield from _parallel(
        f"Trials that ran to the end ({len(whole)} of {len(shown)})", part, ends, axes, kinds,
        what, "A line for each trial, from its parameters to its score at the end. Lines that end "
        "well should come from one place.",
    )  # fmt: skip
    if stopped and common is not None:
        early = [(t, t.at(common)) for t in shown]
        yield from _parallel(
            f"All trials after epoch {common:g}", part, early, axes, kinds, what,
            "The last epoch that every trial reached: the only fair comparison with those that "
            "were stopped.",
        )  # fmt: skip
    yield from _figure(
        "Where the good settings are",
        _landscape(part, whole, first, what, name),
        "Darker is better: a smooth mean of trials that ran to the end, in five shades. Empty "
        "cells have no trial nearby, so nothing is known there.",
    )
    bars = [
        Bar(key.partition(".")[2], 100 * share, "c1", f"{100 * share:.0f} %")
        for key, share in (part.importance or {}).items()
    ]
    yield from _figure(
        "Which parameter matters",
        plots.bars(bars, label=f"{name}: importance of parameters", x_label="parameters",
                   y_label="share, %"),
        "Share of each parameter in what sets good trials apart (PED-ANOVA). With few trials this "
        "is a hint.",
    )  # fmt: skip


def _figure(
    name: str, drawing: str, caption: str, legend: tuple[Swatch, ...] = ()
) -> Iterator[Figure]:
    if drawing:
        yield Figure(name, Markup(drawing), caption, legend)


def _parallel(
    name: str,
    part: MethodSearch,
    ends: Sequence[tuple[SearchedTrial, float | None]],
    axes: Sequence[Axis],
    kinds: dict[str, str],
    what: str,
    caption: str,
) -> Iterator[Figure]:
    known = [(t, value) for t, value in ends if value is not None]
    if not known:
        return
    values = [value for _, value in known]
    drawn = [
        Drawn(t.name, kinds[t.name], [*(t.params.get(p.key) for p in part.parameters), value])
        for t, value in known
    ]
    drawing = sweeps.parallel(
        [*axes, Axis("score", min(values), max(values))],
        drawn,
        label=f"{title(part.method)}: parameters of {counted(len(drawn), 'trial')} and their "
        f"{what}",
    )
    yield from _figure(name, drawing, caption, _legend([d.kind for d in drawn]))


def _legend(kinds: Iterable[str]) -> tuple[Swatch, ...]:
    """Return the kinds that are drawn, in the style of their lines."""
    drawn = set(kinds)
    return tuple(Swatch(n, sweeps.line_style(kind)) for n, kind in _KINDS if kind in drawn)


def _landscape(
    part: MethodSearch, whole: Sequence[SearchedTrial], first: str, what: str, name: str
) -> str:
    ranges = [p for p in part.parameters if not p.choices]
    if len(ranges) < 2:
        return ""
    x, y = ranges[:2]
    placed = [
        (t, float(a), float(b))
        for t in whole
        if (a := t.params.get(x.key)) is not None and (b := t.params.get(y.key)) is not None
    ]
    points = [(a, b, float(t.values[first] or 0.0)) for t, a, b in placed]
    best = next(((a, b) for t, a, b in placed if t.name == part.best), None)
    label = f"{name}: {what} over {x.key} and {y.key}, {counted(len(points), 'trial')}"
    return sweeps.landscape(_axis(x), _axis(y), points, best=best, label=label)


def _axis(parameter: Searched) -> Axis:
    name = parameter.key.partition(".")[2].replace("_", " ")
    if parameter.choices:
        return Axis(name, min(parameter.choices), max(parameter.choices))
    return Axis(name, parameter.low, parameter.high, parameter.log)


def _kind(trial: SearchedTrial, best: str | None) -> str:
    if trial.name == best:
        return "best"
    return trial.status if trial.status in ("complete", "pruned") else ""
