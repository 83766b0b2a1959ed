"""Curves over steps and bars by class or layer. Values in, SVG out.

Bars begin at 0 on a linear axis, so that lengths compare. Values show under the pointer.
Up to 24 classes or layers get a row each, with their name; more are drawn by rank, side by side.
Every function returns "" when there is nothing finite to draw.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from pipeline.report.charts import svg
from pipeline.report.charts.svg import CHAR, MAX_ROWS, ROW, Scale, add

MAX_POINTS = 400
# Fields that show values under the pointer, for each drawing.
MAX_HOVERS = 60


@dataclass(frozen=True)
class Curve:
    """One line: `style` is its CSS class, x rises, y may have gaps (None or not finite)."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class Bar:
    """One bar: value >= 0 (None: unknown), `text` is how the value is written beside it."""

    name: str
    value: float | None
    style: str
    text: str


def curves(data: Sequence[Curve], *, label: str, x_label: str, y_label: str) -> str:
    """Draw lines over a common x axis; the y axis need not begin at 0."""
    thinned = [(curve, *thin(curve.x, curve.y)) for curve in data]
    all_x = [v for curve in data for v in curve.x]
    all_y = [v for _, _, ys in thinned for v in ys if v is not None]
    if not all_y:
        return ""
    drawing = svg.canvas(270, label)
    x = Scale(min(all_x), max(all_x), 56, svg.WIDTH - 12)
    y = svg.spanning(all_y, 222, 28)
    svg.axes(drawing, x, y, x_label=x_label, y_label=y_label)
    for curve, xs, ys in thinned:
        _draw_curve(drawing, curve, xs, ys, x, y)
    _hover_values(drawing, data, x, x_label)
    return svg.to_text(drawing)


def _hover_values(drawing: ET.Element, data: Sequence[Curve], x: Scale, x_label: str) -> None:
    """Lay fields over the plot, each with the unsmoothed values of every curve at one x."""
    places = sorted({value for curve in data for value in curve.x})
    step = math.ceil(len(places) / MAX_HOVERS)
    chosen = places[::-1][::step][::-1] if step else []
    by_x = [dict(zip(curve.x, curve.y, strict=True)) for curve in data]
    middles = [(x(a) + x(b)) / 2 for a, b in itertools.pairwise(chosen)]
    for at, left, right in zip(chosen, [x.start, *middles], [*middles, x.end], strict=True):
        values = [
            f"{curve.name} {value:.4g}"
            for curve, known in zip(data, by_x, strict=True)
            if (value := known.get(at)) is not None and math.isfinite(value)
        ]
        if values:
            text = f"{x_label} {at:g}: {', '.join(values)}"
            svg.hover(drawing, x=left, y=28, width=right - left, height=194, text=text)


def thin(
    x: Sequence[float], y: Sequence[float | None], num_max: int = MAX_POINTS
) -> tuple[list[float], list[float | None]]:
    """Thin to at most `num_max` points: means of equally many neighbours, the last as it is.

    A group in which any y is missing or not finite becomes a gap (None).
    """
    clean = [v if v is not None and math.isfinite(v) else None for v in y]
    if len(x) <= num_max:
        return list(x), clean
    size = math.ceil((len(x) - 1) / (num_max - 1))
    xs: list[float] = []
    ys: list[float | None] = []
    for start in range(0, len(x) - 1, size):
        stop = min(start + size, len(x) - 1)
        group = [v for v in clean[start:stop] if v is not None]
        xs.append(sum(x[start:stop]) / (stop - start))
        ys.append(sum(group) / len(group) if len(group) == stop - start else None)
    return [*xs, x[-1]], [*ys, clean[-1]]


def bars(data: Sequence[Bar], *, label: str, x_label: str, y_label: str, suffix: str = "") -> str:
    """Draw bars in the given order from 0 on a linear scale.

    Args:
        data: the bars.
        label: what a screen reader says.
        x_label: what the order means, shown only when drawn by rank.
        y_label: what is counted.
        suffix: unit behind tick values.
    """
    values = [bar.value for bar in data if bar.value and math.isfinite(bar.value)]
    if not values:
        return ""
    as_rows = len(data) <= MAX_ROWS
    left = svg.name_width([bar.name for bar in data]) if as_rows else 56.0
    right = svg.WIDTH - (max(len(bar.text) for bar in data) * CHAR + 8 if as_rows else 12)
    start, end = (left, right) if as_rows else (222.0, 28.0)
    scale = Scale(0.0, max(values) * (1.0 if as_rows else 1.02), start, end)
    if as_rows:
        return _bar_rows(data, scale, label)
    return _bar_ranks(data, scale, label, x_label, y_label, suffix)


def _draw_curve(
    drawing: ET.Element,
    curve: Curve,
    xs: list[float],
    ys: list[float | None],
    x: Scale,
    y: Scale,
) -> None:
    path, pen_down, last = "", False, None
    for value_x, value_y in zip(xs, ys, strict=True):
        if value_y is None:
            pen_down = False
            continue
        last = x(value_x), y(value_y)
        path += f"{'L' if pen_down else 'M'}{last[0]:.1f} {last[1]:.1f}"
        pen_down = True
    if last is not None:
        add(drawing, "path", d=path, class_=f"curve {curve.style}")
        end = add(drawing, "circle", cx=last[0], cy=last[1], r=3.5, class_=f"dot {curve.style}")
        add(end, "title", f"{curve.name}: {next(v for v in reversed(ys) if v is not None):.4g}")


def _bar_rows(data: Sequence[Bar], x: Scale, label: str) -> str:
    drawing = svg.canvas(len(data) * ROW + 8, label)
    for i, bar in enumerate(data):
        top = 4 + i * ROW
        svg.row_name(drawing, bar.name, x.start, top + ROW / 2)
        end = x(bar.value) if bar.value else x.start
        drawn = add(drawing, "rect", x=x.start, y=top + 4, width=end - x.start, height=ROW - 8,
                    rx=1.5, class_=f"bar {bar.style}")  # fmt: skip
        add(drawn, "title", f"{bar.name}: {bar.text}")
        add(drawing, "text", bar.text, x=end + 6, y=top + ROW / 2 + 4.5, class_="value")
    add(drawing, "path", d=f"M{x.start:.1f} 4V{4 + len(data) * ROW:.1f}", class_="base")
    return svg.to_text(drawing)


def _bar_ranks(
    data: Sequence[Bar], y: Scale, label: str, x_label: str, y_label: str, suffix: str
) -> str:
    drawing = svg.canvas(270, label)
    x = Scale(0, len(data), 56, svg.WIDTH - 12)
    svg.axes(drawing, x, y, x_label=x_label, y_label=y_label, suffix=suffix)
    width = 0.8 * (x(1) - x(0))
    for style in dict.fromkeys(bar.style for bar in data):
        path = "".join(
            f"M{x(i + 0.5):.2f} {y.start:.0f}V{y(bar.value):.1f}"
            for i, bar in enumerate(data)
            if bar.style == style and bar.value
        )
        if path:
            add(drawing, "path", d=path, class_=f"stems {style}", stroke_width=width)
    if len(data) <= 5 * MAX_HOVERS:
        for i, bar in enumerate(data):
            svg.hover(drawing, x=x(i), y=y.end, width=x(i + 1) - x(i), height=y.start - y.end,
                      text=f"{bar.name}: {bar.text}")  # fmt: skip
    return svg.to_text(drawing)
