"""Accuracy of each class for each model as a dot plot. Values in, SVG out.

Up to 24 classes get a row each, with their name; more are drawn by rank, with the mean of each
frequency group as a line. Models differ in marker and colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from xml.etree import ElementTree as ET

from pipeline.report.charts import svg
from pipeline.report.charts.svg import MAX_ROWS, ROW, Scale, add

_MARKERS = ("disc", "diamond", "cross", "square")


@dataclass(frozen=True)
class Points:
    """One value per class, in percent, in the order of the classes; None: unknown.

    `intervals` are drawn where classes have rows; then models stand below each other.
    """

    name: str
    style: str
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Span:
    """A frequency group: the classes from rank `start` up to, not including, `stop`."""

    name: str
    style: str
    start: int
    stop: int


def points(
    names: Sequence[str],
    data: Sequence[Points],
    *,
    label: str,
    spans: Sequence[Span] = (),
) -> str:
    """Draw the accuracy of each class for each model.

    Args:
        names: class names, most frequent first.
        data: one entry per model; drawn in reverse order, so that the first is on top.
        label: what a screen reader says.
        spans: frequency groups in the same order, side by side; may be empty.
    """
    known = _known(names, data)
    if not known:
        return ""
    draw = _point_rows if len(names) <= MAX_ROWS else _point_ranks
    return svg.to_text(draw(names, data, known, label, spans))


def begins_above_zero(names: Sequence[str], data: Sequence[Points]) -> bool:
    """Return whether the axis of `points` leaves out 0, so that lengths do not compare."""
    known = _known(names, data)
    return bool(known) and svg.spanning(known, 0, 1, top=100.0).low > 0


def _known(names: Sequence[str], data: Sequence[Points]) -> list[float]:
    known = [v for series in data for v in series.values if v is not None]
    if len(names) <= MAX_ROWS:
        known += [v for series in data for pair in series.intervals if pair for v in pair]
    return known


def marker(kind: str, x: float, y: float, r: float = 5.0) -> str:
    """Return the path of a marker centred at (x, y): disc, diamond, cross or square."""
    if kind == "disc":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    if kind == "diamond":
        return f"M{x:.1f} {y - r:.1f}l{r} {r}l{-r} {r}l{-r} {-r}z"
    if kind == "cross":
        h = round(0.35 * r, 2)
        a = round(r - h, 2)
        return (
            f"M{x - h:.1f} {y - r:.1f}h{2 * h}v{a}h{a}v{2 * h}h{-a}v{a}h{-2 * h}v{-a}h{-a}"
            f"v{-2 * h}h{a}z"
        )
    s = round(0.85 * r, 2)
    return f"M{x - s:.1f} {y - s:.1f}h{2 * s}v{2 * s}h{-2 * s}z"


def marker_of(index: int) -> str:
    """Return the marker of the model at this place in the order of models."""
    return _MARKERS[index % len(_MARKERS)]


def _offset(index: int, data: Sequence[Points]) -> float:
    """Return how far below a row's middle a model is drawn, so that whiskers stay visible."""
    if not any(series.intervals for series in data):
        return 0.0
    return (index - (len(data) - 1) / 2) * min(6.0, 0.75 * ROW / len(data))


def _point_rows(
    names: Sequence[str],
    data: Sequence[Points],
    known: Sequence[float],
    label: str,
    spans: Sequence[Span],
) -> ET.Element:
    bottom = 8 + len(names) * ROW
    drawing = svg.canvas(bottom + 46, label)
    left = svg.name_width(names)
    x = svg.spanning(known, left + 18, svg.WIDTH - 16, top=100.0)
    for value in x.ticks():
        add(drawing, "path", d=f"M{x(value):.1f} 8V{bottom:.1f}", class_="grid")
        add(drawing, "text", svg.tick_text(value), x=x(value), y=bottom + 18, text_anchor="middle")
    add(drawing, "text", "accuracy, %", x=x.end, y=bottom + 38, text_anchor="end", class_="axis")
    for span in spans:
        add(drawing, "rect", x=left, y=8 + span.start * ROW + 1.5, width=4,
            height=(span.stop - span.start) * ROW - 3, class_=f"bar {span.style}")  # fmt: skip
    for span in spans[1:]:
        add(drawing, "path", d=f"M0 {8 + span.start * ROW:.1f}H{svg.WIDTH:.0f}", class_="divide")
    for i, name in enumerate(names):
        middle = 8 + (i + 0.5) * ROW
        svg.row_name(drawing, name, left, middle)
        here = [v for series in data if (v := series.values[i]) is not None]
        if here and not any(series.intervals for series in data):
            add(drawing, "path", d=f"M{x(min(here)):.1f} {middle:.1f}H{x(max(here)):.1f}",
                class_="link")  # fmt: skip
        for k, series in reversed(list(enumerate(data))):
            at = series.values[i]
            if at is not None:
                level = middle + _offset(k, data)
                ends = series.intervals[i] if series.intervals else None
                if ends is not None:
                    add(drawing, "path", d=f"M{x(ends[0]):.1f} {level:.1f}H{x(ends[1]):.1f}",
                        class_=f"whisker {series.style}")  # fmt: skip
                dot = add(drawing, "path", d=marker(marker_of(k), x(at), level),
                          class_=f"dot {series.style}")  # fmt: skip
                add(dot, "title", f"{name}, {series.name}: {at:.1f} %")
    return drawing


def _point_ranks(
    names: Sequence[str],
    data: Sequence[Points],
    known: Sequence[float],
    label: str,
    spans: Sequence[Span],
) -> ET.Element:
    drawing = svg.canvas(330, label)
    x = Scale(0, len(names), 56, svg.WIDTH - 12)
    y = svg.spanning(known, 282, 28, top=100.0)
    svg.axes(drawing, x, y, x_label="classes, most frequent first", y_label="accuracy, %",
             x_ticks=not spans)  # fmt: skip
    for span in spans:
        start, stop = x(span.start), x(span.stop)
        add(drawing, "rect", x=start + 1, y=286, width=stop - start - 2, height=4,
            class_=f"bar {span.style}")  # fmt: skip
        add(drawing, "text", span.name, x=(start + stop) / 2, y=306, text_anchor="middle")
    for span in spans[1:]:
        add(drawing, "path", d=f"M{x(span.start):.1f} 28V282", class_="divide")
    size = 3.5 if len(names) <= 200 else 2.0
    for k, series in reversed(list(enumerate(data))):
        values = series.values
        path = "".join(
            marker(marker_of(k), x(i + 0.5), y(v), size)
            for i, v in enumerate(values)
            if v is not None
        )
        add(drawing, "path", d=path, class_=f"dot faint {series.style}")
    for series in data:
        for span in spans:
            group = [v for v in series.values[span.start : span.stop] if v is not None]
            if group:
                ends = x(span.start) + 3, x(span.stop) - 3
                add(drawing, "path", d=f"M{ends[0]:.1f} {y(fmean(group)):.1f}H{ends[1]:.1f}",
                    class_=f"mean {series.style}")  # fmt: skip
    if len(names) <= 300:
        for i, name in enumerate(names):
            texts = [
                f"{series.name} {v:.1f} %" for series in data if (v := series.values[i]) is not None
            ]
            svg.hover(drawing, x=x(i), y=28, width=x(i + 1) - x(i), height=254,
                      text=f"{name}: {', '.join(texts)}")  # fmt: skip
    return drawing
