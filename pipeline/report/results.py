"""The report's sections on results: scores, accuracy by class, forgotten images.

Each function turns record files into what the template shows; `missing` and `command` hold a
sentence and what to type where a part has no record yet. Drawings are markup made by the chart
modules, everything else is text that the template escapes.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

from markupsafe import Markup

from pipeline.record.scores import ABSENT, percent, protocols_of, scores_of, scores_table
from pipeline.report.charts import dotplot, plots
from pipeline.report.charts.dotplot import Points, Span
from pipeline.report.charts.plots import Bar
from pipeline.report.charts.svg import MAX_ROWS

TITLES = {"sdclr": "SDCLR", "simclr": "SimCLR", "untrained": "untrained"}
STYLES = {"sdclr": "c1", "simclr": "c2", "untrained": "c3"}
GROUPS = (("many", "Many", "g1"), ("medium", "Medium", "g2"), ("few", "Few", "g3"))
MAX_IMAGES = 24
_PNG = b"\x89PNG\r\n\x1a\n"

Record = dict[str, Any]


def title(method: str) -> str:
    """Return a method's or model's name as a reader knows it."""
    return TITLES.get(method, method)


def style(method: str) -> str:
    """Return the CSS class of a method's colour, the same in every chart."""
    return STYLES.get(method, "c4")


def scores_section(evaluation: Record | None, manifest: Record | None, command: str) -> Record:
    """Return the scores table, its notable rows, and how much of that chance explains."""
    if evaluation is None:
        if manifest is not None and manifest.get("class_names") is None:
            return {"missing": "The data set has no labels, so no accuracy can be measured."}
        return {"missing": "The models have not been evaluated yet.", "command": command}
    headers, rows = scores_table(evaluation)
    notes = [
        (score["protocol"], score["note"])
        for model in evaluation["models"]
        for score in model["scores"]
        if score.get("note")
    ]
    return {
        "headers": headers,
        "rows": [[row[0], title(row[1]), *row[2:]] for row in rows],
        "findings": _findings(evaluation),
        "notes": list(dict.fromkeys(notes)),
        "sets": evaluation["sets"],
    }


def _findings(evaluation: Record) -> list[str]:
    """Return a sentence for each protocol that scored both methods, then the reach of chance."""
    found = []
    for protocol in protocols_of(evaluation):
        by_model = {model["name"]: score for model, score in scores_of(evaluation, protocol)}
        if not {"sdclr", "simclr"} <= by_model.keys():
            continue
        gains = [
            f"{100 * (a - b):+.1f} points on {name}"
            for key, name in (("few", "Few"), ("all", "All"))
            if (a := by_model["sdclr"].get(key)) is not None
            and (b := by_model["simclr"].get(key)) is not None
        ]
        spread = [by_model[name].get("std") for name in ("sdclr", "simclr")]
        text = f"{protocol}: SDCLR minus SimCLR is {' and '.join(gains)}"
        if None not in spread:
            text += f"; STD {percent(spread[0])} against {percent(spread[1])} (lower is more even)"
        found.append(text + ".")
    num_test = evaluation["sets"].get("test")
    shares = [
        score["all"]
        for model in evaluation["models"]
        for score in model["scores"]
        if score.get("all") is not None
    ]
    if found and num_test and shares:
        p = min(max(max(shares), 0.0), 1.0)
        error = 100 * math.sqrt(p * (1 - p) / num_test)
        found.append(
            f"Chance: with {num_test} test images one standard error of All is about {error:.1f} "
            "points (Few: more, as it rests on fewer images), and this is one training run each."
        )
    return found


def frequency_order(counts: list[int]) -> list[int]:
    """Return class indices, most frequent first; equal counts keep their order."""
    return sorted(range(len(counts)), key=lambda i: -counts[i])


def group_of(evaluation: Record | None) -> dict[int, tuple[str, str]]:
    """Return (group title, CSS class) by class; empty before the evaluation sets groups."""
    groups = (evaluation or {}).get("groups") or {}
    return {i: (name, css) for key, name, css in GROUPS for i in groups.get(key, [])}


def classes_section(evaluation: Record | None, manifest: Record | None) -> Record:
    """Draw accuracy by class for each protocol, and return the numbers as a table."""
    if evaluation is None or not evaluation.get("class_names"):
        return {"missing": "Accuracy by class appears here after the evaluation."}
    counts, names = evaluation["pretrain_counts"], evaluation["class_names"]
    order, group = frequency_order(counts), group_of(evaluation)
    num_scored = _num_scored(evaluation, manifest)
    plots, columns = [], []
    for protocol in protocols_of(evaluation):
        found = scores_of(evaluation, protocol)
        data = [
            Points(
                title(model["name"]),
                style(model["name"]),
                [_percent_or_none(score["per_class"][i]) for i in order],
                [_interval(score["per_class"][i], num_scored[i]) for i in order]
                if num_scored
                else (),
            )
            for model, score in found
        ]
        drawing = dotplot.points(
            [names[i] for i in order],
            data,
            label=f"Accuracy by class, most frequent first, {protocol}, for "
            + ", ".join(series.name for series in data),
            spans=_spans(order, group),
        )
        plots.append({"protocol": protocol, "svg": Markup(drawing), "legend": _legend(data)})
        columns += [(protocol, series.name, series.values) for series in data]
    rows = [
        [names[i], str(counts[i]), group.get(i, (ABSENT, ""))[0]]
        + [ABSENT if c[2][rank] is None else f"{c[2][rank]:.1f}" for c in columns]
        for rank, i in enumerate(order)
    ]
    heads = ["Class", "Images", "Group", *(f"{model}, {name}" for name, model, _ in columns)]
    side = "to the right of" if len(order) <= MAX_ROWS else "above"
    return {
        "plots": plots,
        "headers": heads,
        "rows": rows,
        "groups": [{"name": name, "style": css} for _, name, css in GROUPS] if group else [],
        "whiskers": bool(num_scored) and len(order) <= MAX_ROWS,
        "caption": f"Look at the rare classes: does SDCLR lie {side} SimCLR there, without losing "
        "the frequent ones?",
    }


def _num_scored(evaluation: Record, manifest: Record | None) -> list[int]:
    """Return the images of each class in the scored set; empty when not recorded."""
    name = evaluation.get("scored_on", "test")
    counts = ((manifest or {}).get("sets", {}).get(name) or {}).get("class_counts") or []
    return list(counts) if len(counts) == len(evaluation["class_names"]) else []


def _interval(share: float | None, num: int) -> tuple[float, float] | None:
    from pipeline.evaluate.ranking import (
        wilson,  # brings torch, which a page of a record should not wait for
    )

    found = wilson(math.nan if share is None else share, num)
    return (100 * found.low, 100 * found.high) if math.isfinite(found.low) else None


def _percent_or_none(fraction: float | None) -> float | None:
    return 100 * fraction if fraction is not None and math.isfinite(fraction) else None


def _legend(data: list[Points]) -> list[Record]:
    return [
        {"name": s.name, "style": s.style, "path": dotplot.marker(dotplot.marker_of(k), 8, 8)}
        for k, s in enumerate(data)
    ]


def _spans(order: list[int], group: dict[int, tuple[str, str]]) -> list[Span]:
    """Return the groups as runs in order of frequency; empty if they are not contiguous."""
    ranked = [group.get(i, ("", "")) for i in order]
    found = []
    for pair in dict.fromkeys(ranked):
        start = ranked.index(pair)
        stop = start + ranked.count(pair)
        if not pair[0] or set(ranked[start:stop]) != {pair}:
            return []
        found.append(Span(*pair, start, stop))
    return found


def forgotten_section(
    forgotten: Record | None, class_names: list[str] | None, command: str
) -> Record:
    """Return the images that pruning changes most and least, and each group's mean."""
    if forgotten is None:
        text = "The images that pruning forgets have not been looked for yet."
        return {"missing": text, "command": command}
    means = forgotten.get("group_mean") or {}
    bars = [
        Bar(name, means[key], css, f"{means[key]:.3f}")
        for key, name, css in GROUPS
        if means.get(key) is not None
    ]
    drawing = plots.bars(
        bars,
        label="Mean disagreement of dense and pruned embeddings: "
        + ", ".join(f"{bar.name} {bar.text}" for bar in bars),
        x_label="",
        y_label="mean disagreement",
    )
    return {
        "method": title(forgotten["method"]),
        "prune_percent": f"{100 * forgotten['prune_ratio']:g}",
        "scored": forgotten["scored"],
        "lists": [
            (
                "Forgotten most",
                [image_entry(i, class_names) for i in forgotten["most"][:MAX_IMAGES]],
            ),
            (
                "Forgotten least",
                [image_entry(i, class_names) for i in forgotten["least"][:MAX_IMAGES]],
            ),
        ],
        "svg": Markup(drawing),
        "log": plots.uses_log(bars),
    }


def image_entry(item: Record, class_names: list[str] | None) -> Record:
    """Return what a contact sheet shows of one image of a record."""
    label = item.get("label")
    known = class_names is not None and label is not None and 0 <= label < len(class_names)
    name = class_names[label] if known and class_names is not None and label is not None else None
    score = item["score"]
    return {
        "id": str(item["id"]),
        "short_id": str(item["id"]) if len(str(item["id"])) < 12 else "…" + str(item["id"])[-10:],
        "name": name or "no label",
        "score": ABSENT if score is None else f"{score:.3f}",
        "src": _png_source(item.get("png_base64")),
    }


def _png_source(text: object) -> str | None:
    """Return a data URI if the text really is a PNG in base64, else None."""
    try:
        image = base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        return None
    if not image.startswith(_PNG):
        return None
    return "data:image/png;base64," + base64.b64encode(image).decode()
