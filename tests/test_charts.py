from __future__ import annotations

import math
import re
from typing import get_args
from xml.etree import ElementTree as ET

import pytest

from pipeline.report.charts import plots, svg
from pipeline.report.charts.forest import Gap, forest
from pipeline.report.template import source
from pipeline.report.verdict import Tone


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


@pytest.mark.parametrize("values", [[200, 100, 10], [1000, 100, 1], [94, 3]])
def test_the_length_of_a_bar_is_its_value(values: list[float]) -> None:
    widths = bar_widths(values)
    for width, value in zip(widths, values, strict=True):
        assert width == pytest.approx(widths[0] * value / values[0], abs=0.02)
    assert bar_widths([1000, 0, 10])[1] == 0


def titles(drawing: str) -> list[str]:
    return [str(title.text) for title in ET.fromstring(drawing).iter("title")]


def test_curves_show_values_of_all_lines_under_the_pointer() -> None:
    lines = [
        plots.Curve("A", "c1", [0, 1, 2], [1.0, None, 3.0]),
        plots.Curve("B", "c2", [0, 2], [5.0, 6.0]),
    ]
    found = titles(plots.curves(lines, label="x", x_label="step", y_label="y"))
    assert found[-2:] == ["step 0: A 1, B 5", "step 2: A 3, B 6"]


def test_many_steps_have_few_fields_and_the_last_is_among_them() -> None:
    xs = [float(v) for v in range(5000)]
    found = titles(plots.curves([plots.Curve("A", "c1", xs, xs)], label="x", x_label="step",
                                y_label="y"))  # fmt: skip
    assert len(found) <= plots.MAX_HOVERS + 2 and "step 4999: A 4999" in found


def test_a_difference_is_drawn_around_0_with_its_interval() -> None:
    gaps = [Gap("g", "a", 5.0, 2.0, "c1", "+5"), Gap("g", "b", -5.0, None, "c2", "-5")]
    drawing = ET.fromstring(forest(gaps, label="x", low_label="worse", high_label="better"))
    low, high = sorted(float(c.attrib["cx"]) for c in drawing.iter("circle"))
    assert (low + high) / 2 == pytest.approx(svg.WIDTH / 2)
    whiskers = [p for p in drawing.iter("path") if "whisker" in p.attrib["class"]]
    assert len(whiskers) == 1
    assert forest([], label="x", low_label="", high_label="") == ""


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


def _rules_of_a_tone(css: str) -> list[str]:
    """Return what rules on a bare tone set, such as `.good { color: red }`, besides the colour."""
    found = re.findall(rf"^\.(?:{'|'.join(get_args(Tone))})\s*\{{([^}}]*)\}}", css, re.MULTILINE)
    return [rule for body in found for rule in body.split(";") if rule.split(":")[0].strip()
            not in ("", "color")]  # fmt: skip


def test_the_tone_of_an_answer_sets_a_colour_and_no_layout() -> None:
    assert _rules_of_a_tone(source("report.css.j2")) == []
    assert _rules_of_a_tone(".open { display: block; border: 0 }\n")
