"""A map of points, two coordinates each, coloured by group. Values in, SVG out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.charts import svg
from pipeline.report.charts.svg import Scale, add

_SIDE = 440.0


@dataclass(frozen=True)
class Cloud:
    """Points of one colour: `style` is the CSS class, `texts` show under the pointer."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]
    texts: Sequence[str] = ()


def scatter(clouds: Sequence[Cloud], *, label: str) -> str:
    """Draw all points on one square map of equal scales; later clouds on top.

    Points that are not finite are left out; "" when nothing is left.
    """
    pairs = [
        [
            (x, y, text)
            for x, y, text in zip(c.x, c.y, c.texts or [""] * len(c.x), strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]
        for c in clouds
    ]
    everything = [(x, y) for points in pairs for x, y, _ in points]
    if not everything:
        return ""
    lows, highs = (tuple(f(p[axis] for p in everything) for axis in (0, 1)) for f in (min, max))
    half = max(high - low for low, high in zip(lows, highs, strict=True)) / 2 or 1.0
    middle = [(low + high) / 2 for low, high in zip(lows, highs, strict=True)]
    left = (svg.WIDTH - _SIDE) / 2
    x = Scale(middle[0] - half, middle[0] + half, left + 8, left + _SIDE - 8)
    y = Scale(middle[1] - half, middle[1] + half, _SIDE - 8, 8)
    drawing = svg.canvas(_SIDE, label)
    add(drawing, "rect", x=left, y=0, width=_SIDE, height=_SIDE, rx=4, class_="frame")
    size = 3.2 if len(everything) <= 400 else 2.2
    for cloud, points in zip(clouds, pairs, strict=True):
        for px, py, text in points:
            dot = add(
                drawing, "circle", cx=x(px), cy=y(py), r=size, class_=f"dot cloud {cloud.style}"
            )
            if text:
                add(dot, "title", text)
    return svg.to_text(drawing)
