"""Where dots and lines of the charts stand: read back from the drawing, not counted."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from pipeline.report.charts import dotplot, scatter, sweeps

NAMES = ["cat", "dog", "eel"]


def dots(drawing: str) -> dict[str, tuple[float, float]]:
    """Title of each dot and where its path starts."""
    found = {}
    for path in ET.fromstring(drawing).iter("path"):
        title = path.find("title")
        if title is not None and title.text:
            x, y = re.findall(r"-?[\d.]+", path.attrib["d"])[:2]
            found[title.text] = (float(x), float(y))
    return found


def test_a_better_class_stands_further_right_in_its_row() -> None:
    models = [
        dotplot.Points("SDCLR", "c1", [90.0, 40.0, None]),
        dotplot.Points("SimCLR", "c2", [80.0, 60.0, 5.0]),
    ]
    found = dots(dotplot.points(NAMES, models, label="accuracy"))
    assert found.keys() == {
        "cat, SDCLR: 90.0 %", "dog, SDCLR: 40.0 %",
        "cat, SimCLR: 80.0 %", "dog, SimCLR: 60.0 %", "eel, SimCLR: 5.0 %",
    }  # fmt: skip
    mine = [found[f"{name}, SimCLR: {value} %"] for name, value in
            (("cat", "80.0"), ("dog", "60.0"), ("eel", "5.0"))]  # fmt: skip
    assert mine[0][0] > mine[1][0] > mine[2][0] and mine[0][1] < mine[1][1] < mine[2][1]


def test_models_stand_below_each_other_where_intervals_are_drawn() -> None:
    with_ends = [dotplot.Points(name, "c1", [50.0], [(40.0, 60.0)]) for name in ("SDCLR", "SimCLR")]
    without = [dotplot.Points(p.name, p.style, p.values) for p in with_ends]
    whiskers = [
        path.attrib["d"]
        for path in ET.fromstring(dotplot.points(["cat"], with_ends, label="x")).iter("path")
        if "whisker" in path.attrib.get("class", "")
    ]
    assert len(set(whiskers)) == 2
    assert "whisker" not in dotplot.points(["cat"], without, label="x")


def test_nothing_known_draws_nothing() -> None:
    assert dotplot.points(NAMES, [dotplot.Points("a", "c1", [None] * 3)], label="x") == ""
    assert scatter.scatter([scatter.Cloud("a", "c1", [float("nan")], [0.0])], label="x") == ""
    assert sweeps.objective_curves([("a", "best", [(1.0, None)])], y_label="y", label="x") == ""
    assert sweeps.front([], x_label="x", y_label="y", label="z") == ""


def test_a_trial_without_a_value_has_no_line_and_the_best_is_drawn_last() -> None:
    axes = [sweeps.Axis("lr", 0.0, 1.0), sweeps.Axis("accuracy", 0.0, 1.0)]
    trials = [
        sweeps.Drawn("winner", "best", [0.5, 0.9]),
        sweeps.Drawn("other", "complete", [0.2, 0.1]),
        sweeps.Drawn("failed", "complete", [0.2, None]),
    ]
    drawn = dots(sweeps.parallel(axes, trials, label="x"))
    found = {title.partition(":")[0]: dot for title, dot in drawn.items()}
    assert list(found) == ["other", "winner"]
    assert found["winner"][1] < found["other"][1]  # a larger value stands higher


def test_the_front_joins_its_members_from_left_to_right() -> None:
    points = [("b", 2.0, 2.0, True), ("a", 1.0, 3.0, True), ("c", 1.0, 1.0, False)]
    drawing = ET.fromstring(sweeps.front(points, x_label="x", y_label="y", label="z"))
    (line,) = (p for p in drawing.iter("path") if "curve" in p.attrib.get("class", ""))
    xs = [float(x) for x in re.findall(r"[ML](-?[\d.]+) ", line.attrib["d"])]
    assert len(xs) == 2 and xs == sorted(xs)
    titles = [c.findtext("title") for c in drawing.iter("circle")]
    assert titles == ["b: 2, 2", "a: 1, 3", "c: 1, 1"]
