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
    """Points of one colour: `style` is the CSS class."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]


def scatter(clouds: Sequence[Cloud], *, label: str) -> str:
    """Draw all points on one square map of equal scales; later clouds on top.

    Points that are not finite are left out; "" when nothing is left.
    """
    pairs = [
        [(x, y) for x, y in zip(c.x, c.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        for c in clouds
    ]
    everything = [pair for points in pairs for pair in points]
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
        path = "".join(
            f"M{x(px) - size:.1f} {y(py):.1f}a{size} {size} 0 1 0 {2 * size} 0"
            f"a{size} {size} 0 1 0 {-2 * size} 0z"
            for px, py in points
        )
        if path:
            add(drawing, "path", d=path, class_=f"dot cloud {cloud.style}")
    return svg.to_text(drawing)
