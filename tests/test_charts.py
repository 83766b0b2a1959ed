from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest

from pipeline.report.charts import plots, svg


def test_thin_keeps_short_curves_and_averages_long_ones() -> None:
    assert plots.thin([1, 2], [3.0, None]) == ([1, 2], [3.0, None])
    x = list(range(10_001))
    xs, ys = plots.thin(x, [2.0 * v for v in x])
    assert len(xs) <= 400 and xs[-1] == 10_000 and ys[-1] == 20_000
    assert all(b == 2 * a for a, b in zip(xs, ys, strict=True) if b is not None)
    size = math.ceil(10_000 / 399)
    assert xs[0] == (size - 1) / 2  # the mean of 0 .. size - 1
    _, gaps = plots.thin(x, [math.nan, *[1.0] * 10_000])
    assert gaps[0] is None and gaps[1] == 1.0


@pytest.mark.parametrize("num", range(1, 900, 37))
def test_thin_never_exceeds_its_limit(num: int) -> None:
    xs, _ = plots.thin(list(range(num)), [0.0] * num, 100)
    assert len(xs) == min(num, len(xs)) <= 100


def bar_widths(values: list[float]) -> list[float]:
    bars = [plots.Bar(str(v), v, "c1", str(v)) for v in values]
    drawing = ET.fromstring(plots.bars(bars, label="x", x_label="", y_label=""))
    return [float(rect.attrib["width"]) for rect in drawing.iter("rect")]


def test_bars_are_proportional_until_the_ratio_exceeds_twenty() -> None:
    linear = bar_widths([200, 100, 10])
    assert linear[0] == pytest.approx(2 * linear[1], abs=0.05)
    log = bar_widths([1000, 100, 10])
    assert log[0] - log[1] == pytest.approx(log[1] - log[2], abs=0.05)
    assert bar_widths([1000, 0, 10])[1] == 0


def test_nothing_finite_draws_nothing() -> None:
    curve = plots.Curve("a", "c1", [1.0], [None])
    assert plots.curves([curve], label="x", x_label="", y_label="") == ""
    assert plots.bars([], label="x", x_label="", y_label="") == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (0.001, 0.0012), (1e-9, 1e6), (5, 5)])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_lie_inside_and_are_few(low: float, high: float, log: bool) -> None:
    if log and low <= 0:
        return
    scale = svg.Scale(low, high, 0, 100, log)
    ticks = scale.ticks()
    assert len(ticks) <= 6 and ticks == sorted(set(ticks))
    assert all(low * (1 - 1e-6) - 1e-9 <= t <= high * (1 + 1e-6) + 1e-9 for t in ticks)
    assert all(-1e-6 <= scale(t) <= 100 + 1e-6 for t in ticks)


def test_a_scale_runs_from_start_to_end() -> None:
    assert svg.Scale(0, 10, 100, 0)(2.5) == 75
    assert svg.Scale(1, 100, 0, 10, log=True)(10) == 5
    assert svg.Scale(0, 10, 0, 1)(99) == 1  # moved to the nearer end
