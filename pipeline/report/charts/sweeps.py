"""Drawings of a sweep: parallel coordinates, a map of two parameters, curves, a Pareto front.

Values in, SVG out; "" when there is nothing to draw. A trial is drawn by what became of it: `best`,
`complete` or `pruned`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from pipeline.report.charts import svg
from pipeline.report.charts.svg import Scale, add

_STYLE = {"best": "c2", "complete": "c1", "pruned": "c3"}
_LEVELS = ("m0", "m1", "m2", "m3", "m4")
_CELLS = 22
# A cell of the map that is farther from every trial than this share of its width stays empty.
_REACH = 0.22
_KERNEL = 0.09


@dataclass(frozen=True)
class Axis:
    """One parameter or objective."""

    name: str
    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Drawn:
    """One trial: `values` by axis (None: no value), `kind` is best, complete or pruned."""

    name: str
    kind: str
    values: Sequence[float | None]


def line_style(kind: str) -> str:
    """Return the CSS classes of a kind's line, beside `curve`."""
    return f"{_STYLE[kind]} thin {kind}"


def parallel(axes: Sequence[Axis], trials: Sequence[Drawn], *, label: str) -> str:
    """Draw a vertical axis for each parameter and objective, and a line for each trial."""
    drawn = [t for t in trials if all(v is not None for v in t.values)]
    if not drawn or len(axes) < 2:
        return ""
    top, bottom, drawing = 40.0, 230.0, svg.canvas(270, label)
    places = [30 + i * (svg.WIDTH - 60) / (len(axes) - 1) for i in range(len(axes))]
    scales = [Scale(a.low, a.high, bottom, top, log=a.log) for a in axes]
    order = {"pruned": 0, "complete": 1, "best": 2}
    for trial in sorted(drawn, key=lambda t: order[t.kind]):
        points = [
            f"{x:.1f} {scale(float(v or 0.0)):.1f}"
            for x, scale, v in zip(places, scales, trial.values, strict=True)
        ]
        path = add(drawing, "path", d="M" + "L".join(points),
                   class_=f"curve {line_style(trial.kind)}")  # fmt: skip
        shown = zip(axes, trial.values, strict=True)
        values = ", ".join(f"{axis.name} {v:.4g}" for axis, v in shown if v is not None)
        add(path, "title", f"{trial.name}: {values}")
    for i, (x, axis) in enumerate(zip(places, axes, strict=True)):
        anchor = "start" if i == 0 else "end" if i == len(axes) - 1 else "middle"
        at = {"start": x - 28, "end": x + 28, "middle": x}[anchor]
        add(drawing, "path", d=f"M{x:.1f} {top}V{bottom}", class_="base")
        add(drawing, "text", axis.name, x=at, y=14, text_anchor=anchor, class_="axis")
        for value, y in ((axis.high, top - 8), (axis.low, bottom + 18)):
            add(drawing, "text", svg.tick_text(value), x=at, y=y, text_anchor=anchor)
    return svg.to_text(drawing)


def landscape(
    x_axis: Axis,
    y_axis: Axis,
    points: Sequence[tuple[float, float, float]],
    *,
    best: tuple[float, float] | None,
    label: str,
) -> str:
    """Draw contours of a value over two parameters: a smooth mean of the trials nearby.

    Cells without a trial nearby are left empty: nothing is known there. Five shades, each a fifth
    of the range of the smoothed values.
    """
    if len(points) < 4:
        return ""
    drawing = svg.canvas(330, label)
    x = Scale(x_axis.low, x_axis.high, 56, svg.WIDTH - 12, log=x_axis.log)
    y = Scale(y_axis.low, y_axis.high, 282, 28, log=y_axis.log)
    width, height = (x.end - x.start) / _CELLS, (y.start - y.end) / _CELLS
    places = [
        ((x(a) - x.start) / (x.end - x.start), (y.start - y(b)) / (y.start - y.end), v)
        for a, b, v in points
    ]
    cells = {
        (i, j): _smoothed((i + 0.5) / _CELLS, (j + 0.5) / _CELLS, places)
        for i in range(_CELLS)
        for j in range(_CELLS)
    }
    known = [v for v in cells.values() if v is not None]
    low, span = min(known), max(max(known) - min(known), 1e-12)
    for level, css in enumerate(_LEVELS):
        path = "".join(
            f"M{x.start + i * width:.1f} {y.start - (j + 1) * height:.1f}h{width:.2f}v{height:.2f}"
            f"h{-width:.2f}z"
            for (i, j), v in cells.items()
            if v is not None and min(4, int(5 * (v - low) / span)) == level
        )
        if path:
            add(drawing, "path", d=path, class_=f"area {css}")
    svg.axes(drawing, x, y, x_label=x_axis.name, y_label=y_axis.name)
    for a, b, v in points:
        dot = add(drawing, "circle", cx=x(a), cy=y(b), r=3.0, class_="dot c1")
        add(dot, "title", f"{x_axis.name} {a:.3g}, {y_axis.name} {b:.3g}: {v:.4g}")
    if best is not None:
        add(drawing, "circle", cx=x(best[0]), cy=y(best[1]), r=6.0, class_="dot c2")
    return svg.to_text(drawing)


def _smoothed(x: float, y: float, places: Sequence[tuple[float, float, float]]) -> float | None:
    """Return the Nadaraya-Watson mean with a Gaussian kernel; None out of reach of trials."""
    distances = [math.hypot(x - a, y - b) for a, b, _ in places]
    if min(distances) > _REACH:
        return None
    weights = [math.exp(-0.5 * (d / _KERNEL) ** 2) for d in distances]
    total = sum(weights)
    return sum(w * v for w, (_, _, v) in zip(weights, places, strict=True)) / total


def objective_curves(
    trials: Sequence[tuple[str, str, Sequence[tuple[float, float | None]]]],
    *,
    y_label: str,
    label: str,
) -> str:
    """Draw the objective over the epochs, a line for each trial (name, kind, points)."""
    known = [(e, v) for _, _, points in trials for e, v in points if v is not None]
    if not known:
        return ""
    drawing = svg.canvas(270, label)
    x = Scale(0, max(e for e, _ in known), 56, svg.WIDTH - 12)
    y = svg.spanning([v for _, v in known], 222, 28)
    svg.axes(drawing, x, y, x_label="epochs trained", y_label=y_label)
    order = {"pruned": 0, "complete": 1, "best": 2}
    for name, kind, points in sorted(trials, key=lambda t: order[t[1]]):
        here = [(x(e), y(v)) for e, v in points if v is not None]
        if not here:
            continue
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in here)
        line = add(drawing, "path", d=path, class_=f"curve {line_style(kind)}")
        last = [(e, v) for e, v in points if v is not None][-1]
        add(line, "title", f"{name}: {last[1]:.4g} after {last[0]:g} epochs")
        for a, b in here:
            add(drawing, "circle", cx=a, cy=b, r=2.0, class_=f"dot {_STYLE[kind]}")
        if kind == "pruned":
            _cross(drawing, *here[-1])
    return svg.to_text(drawing)


def front(
    points: Sequence[tuple[str, float, float, bool]], *, x_label: str, y_label: str, label: str
) -> str:
    """Draw two objectives (name, x, y, is on the front) and join the front."""
    if not points:
        return ""
    drawing = svg.canvas(290, label)
    x = svg.spanning([p[1] for p in points], 64, svg.WIDTH - 16)
    y = svg.spanning([p[2] for p in points], 242, 28)
    svg.axes(drawing, x, y, x_label=x_label, y_label=y_label)
    members = sorted((p for p in points if p[3]), key=lambda p: p[1])
    path = "M" + "L".join(f"{x(p[1]):.1f} {y(p[2]):.1f}" for p in members)
    if len(members) > 1:
        add(drawing, "path", d=path, class_="curve c2 thin")
    for name, a, b, member in points:
        dot = add(drawing, "circle", cx=x(a), cy=y(b), r=5.0 if member else 3.5,
                  class_=f"dot {'c2' if member else 'c3'}")  # fmt: skip
        add(dot, "title", f"{name}: {a:.4g}, {b:.4g}")
    return svg.to_text(drawing)


def _cross(drawing: ET.Element, x: float, y: float) -> None:
    d = f"M{x - 3:.1f} {y - 3:.1f}l6 6M{x - 3:.1f} {y + 3:.1f}l6 -6"
    add(drawing, "path", d=d, class_="curve c3")
