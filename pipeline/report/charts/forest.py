"""Differences with their intervals, one below another around a line at 0. Values in, SVG out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from pipeline.report.charts import svg
from pipeline.report.charts.svg import Scale, add

_ROW, _HEAD = 36.0, 28.0


@dataclass(frozen=True)
class Gap:
    """One difference in points; `half` is half of its 95 % interval, None when unknown.

    Neighbours of one `group` stand below its name.
    """

    group: str
    name: str
    value: float
    half: float | None
    style: str
    text: str


def forest(gaps: Sequence[Gap], *, label: str, low_label: str, high_label: str) -> str:
    """Draw each difference as a dot with a whisker; "" when nothing is finite.

    Args:
        gaps: in the order of the rows.
        label: what a screen reader says.
        low_label: what a difference below 0 means, written at the left.
        high_label: what one above 0 means.
    """
    shown = [gap for gap in gaps if math.isfinite(gap.value)]
    if not shown:
        return ""
    reach = max(max(abs(gap.value) + (gap.half or 0.0) for gap in shown), 1.0)
    groups = [list(rows) for _, rows in itertools.groupby(shown, key=lambda gap: gap.group)]
    bottom = 26 + len(shown) * _ROW + len(groups) * _HEAD
    drawing = svg.canvas(bottom + 26, label)
    x = Scale(-1.06 * reach, 1.06 * reach, 10, svg.WIDTH - 10)
    for value in x.ticks(7):
        add(drawing, "path", d=f"M{x(value):.1f} 22V{bottom:.1f}", class_="grid")
        add(drawing, "text", svg.minus(f"{value:+g}") if value else "0", x=x(value), y=bottom + 18,
            text_anchor="middle")  # fmt: skip
    add(drawing, "path", d=f"M{x(0):.1f} 22V{bottom:.1f}", class_="base")
    add(drawing, "text", "← " + low_label, x=x(0) - 8, y=14, text_anchor="end", class_="axis")
    add(drawing, "text", high_label + " →", x=x(0) + 8, y=14, class_="axis")
    top = 26.0
    for rows in groups:
        add(drawing, "text", rows[0].group, x=10, y=top + 19, class_="name strong")
        top += _HEAD
        for gap in rows:
            _draw_row(drawing, gap, x, top)
            top += _ROW
    return svg.to_text(drawing)


def _draw_row(drawing: ET.Element, gap: Gap, x: Scale, top: float) -> None:
    add(drawing, "text", gap.name, x=10, y=top + 12, class_="name")
    add(drawing, "text", gap.text, x=svg.WIDTH - 10, y=top + 12, text_anchor="end", class_="value")
    middle = top + 25
    if gap.half is not None:
        ends = x(gap.value - gap.half), x(gap.value + gap.half)
        add(drawing, "path", d=f"M{ends[0]:.1f} {middle:.1f}H{ends[1]:.1f}",
            class_=f"whisker {gap.style}")  # fmt: skip
    dot = add(drawing, "circle", cx=x(gap.value), cy=middle, r=5.0, class_=f"dot {gap.style}")
    add(dot, "title", f"{gap.group}, {gap.name}: {gap.text}")
