"""The page of a sweep: RUN/report.html, a pure view of run.json, config.yaml and sweep.json."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from pipeline.console import duration
from pipeline.record.scores import ABSENT
from pipeline.report.charts import plots, sweeps
from pipeline.report.charts.plots import Bar
from pipeline.report.charts.sweeps import Axis, Drawn
from pipeline.report.results import title

Record = dict[str, Any]

_WORDS = {
    "fewshot": "few-shot accuracy on val",
    "view_retrieval": "view retrieval",
    "train_loss": "training loss",
    "balance": "balance (STD, lower is more even)",
}
_LEGEND = (("best", "best"), ("ran to the end", "complete"), ("stopped early", "pruned"))


def page(sweep: Record) -> Record:
    """Return what the template needs of sweep.json."""
    first, *others = sweep["objectives"]
    return {
        "objective": words(first),
        "direction": {"max": "higher", "min": "lower"}[sweep["objectives"][first]],
        "scored_on": sweep["scored_on"],
        "best": _best(sweep),
        "confirmed": _confirmed(sweep),
        "sections": [_method(sweep, part) for part in sweep["methods"]],
        "front": _front(sweep, first, others[0]) if others else None,
        "legend": [{"name": n, "style": sweeps.style_of(kind)} for n, kind in _LEGEND],
        "trials": _trials(sweep),
    }


def words(objective: str) -> str:
    """Return an objective's name for people."""
    return _WORDS.get(objective, objective)


def _best(sweep: Record) -> Record:
    trial = next(t for t in sweep["trials"] if t["name"] == sweep["best"])
    return {
        "name": trial["name"],
        "params": [(key, _text(value)) for key, value in trial["params"].items()],
        "scores": [(words(name), _text(value)) for name, value in trial["values"].items()],
    }


def _confirmed(sweep: Record) -> Record:
    names = list(sweep["objectives"])
    rows = []
    for entry in sweep["confirmed"]:
        cells = [_spread(entry["values"][name]) for name in names]
        params = ", ".join(f"{k.partition('.')[2]} {_text(v)}" for k, v in entry["params"].items())
        rows.append([entry["label"], *cells, str(entry["values"][names[0]]["n"]), params])
    shown = any(entry["values"][names[0]]["n"] for entry in sweep["confirmed"])
    return {
        "headers": ["Setting", *(words(name) for name in names), "Seeds", "Parameters"],
        "rows": rows if shown else [],
        "findings": _findings(sweep, names[0]) if shown else [],
    }


def _findings(sweep: Record, name: str) -> list[str]:
    """Return whether the best differs from each other setting by more than its seeds do."""
    first, *others = sweep["confirmed"]
    if not others:
        return ["The configured setting is the best one that was found."]
    sign = 1.0 if sweep["objectives"][name] == "max" else -1.0
    mine, found = first["values"][name], []
    for entry in others:
        other = entry["values"][name]
        if mine["std"] is None or other["std"] is None:
            return ["One seed says nothing about chance: raise tune.retrain_seeds."]
        gain = sign * (mine["mean"] - other["mean"])
        error = math.sqrt(mine["std"] ** 2 / mine["n"] + other["std"] ** 2 / other["n"])
        verdict = "more" if gain > 2 * error else "no more"
        found.append(
            f"{first['label']} is {gain:+.4f} better than {entry['label']} over {mine['n']} fresh "
            f"seeds; twice the standard error of the difference is {2 * error:.4f}, so that is "
            f"{verdict} than chance explains."
        )
    return found


def _spread(found: Record) -> str:
    if found["mean"] is None:
        return ABSENT
    return f"{found['mean']:.4f}" + ("" if found["std"] is None else f" ± {found['std']:.4f}")


def _method(sweep: Record, part: Record) -> Record:
    first = next(iter(sweep["objectives"]))
    trials = [t for t in sweep["trials"] if t["method"] == part["method"]]
    counts = part["counts"]
    saved = 1 - part["epochs"] / max(1, part["epochs_without_stopping"])
    name = title(part["method"])
    facts = [
        ("Trials", ", ".join(f"{n} {status}" for status, n in counts.items())),
        ("Epochs", f"{part['epochs']} trained, {100 * saved:.0f} % saved by stopping early"),
        ("Time in trials", duration(part["seconds"])),
    ]
    return {
        "name": name,
        "facts": facts,
        "plots": [p for p in _plots(sweep, part, trials, first, name) if p["svg"]],
    }


def _plots(
    sweep: Record, part: Record, trials: list[Record], first: str, name: str
) -> list[Record]:
    parameters = part["parameters"]
    kinds = {t["name"]: _kind(t, part["best"]) for t in trials}
    shown = [t for t in trials if kinds[t["name"]] and t["values"][first] is not None]
    axes = [_axis(p) for p in parameters]
    values = [t["values"][first] for t in shown]
    if values:
        axes.append(Axis(first, min(values), max(values)))
    drawn = [
        Drawn(t["name"], kinds[t["name"]],
              [*(t["params"].get(p["key"]) for p in parameters), t["values"][first]])
        for t in shown
    ]  # fmt: skip
    course = [(t["name"], kinds[t["name"]], [(e, v) for e, v in t["course"]]) for t in shown]
    importance = part["importance"] or {}
    bars = [
        Bar(key.partition(".")[2], 100 * share, "c1", f"{100 * share:.0f} %")
        for key, share in importance.items()
    ]
    what = words(first)
    return [
        {
            "name": "Every trial",
            "svg": Markup(sweeps.parallel(axes, drawn, label=f"{name}: parameters of "
                          f"{len(drawn)} trials and their {what}")),
            "caption": "A line for each trial, from its parameters to its score. Lines that end "
            "high should come from one place.",
            "legend": True,
        },
        {
            "name": "Where the good settings are",
            "svg": Markup(_landscape(parameters, shown, part, first, name)),
            "caption": "Darker is better: a smooth mean of trials that ran to the end, in five "
            "shades. Empty cells have no trial nearby, so nothing is known there.",
            "legend": False,
        },
        {
            "name": "Which parameter matters",
            "svg": Markup(plots.bars(bars, label=f"{name}: importance of parameters",
                          x_label="parameters", y_label="share, %")),
            "caption": "Share of each parameter in what sets good trials apart (PED-ANOVA). With "
            "few trials this is a hint.",
            "legend": False,
        },
        {
            "name": "Course of the trials",
            "svg": Markup(sweeps.courses(course, y_label=what, label=f"{name}: {what} over "
                          f"the epochs of {len(course)} trials")),
            "caption": "Crosses mark where a trial was stopped. Stopped lines that lie among the "
            "best would mean that the grace period is too short.",
            "legend": True,
        },
    ]  # fmt: skip


def _landscape(
    parameters: list[Record], trials: list[Record], part: Record, first: str, name: str
) -> str:
    ranges = [p for p in parameters if not p["choices"]]
    if len(ranges) < 2:
        return ""
    x, y = ranges[:2]
    whole = [t for t in trials if t["status"] == "complete"]
    points = [(t["params"][x["key"]], t["params"][y["key"]], t["values"][first]) for t in whole]
    best = next(
        (
            (t["params"][x["key"]], t["params"][y["key"]])
            for t in whole
            if t["name"] == part["best"]
        ),
        None,
    )
    label = f"{name}: {words(first)} over {x['key']} and {y['key']}, {len(points)} trials"
    return sweeps.landscape(_axis(x), _axis(y), points, best=best, label=label)


def _axis(parameter: Record) -> Axis:
    name = parameter["key"].partition(".")[2].replace("_", " ")
    if parameter["choices"]:
        return Axis(name, min(parameter["choices"]), max(parameter["choices"]))
    return Axis(name, parameter["low"], parameter["high"], parameter["log"])


def _kind(trial: Record, best: str | None) -> str:
    if trial["name"] == best:
        return "best"
    return str(trial["status"]) if trial["status"] in ("complete", "pruned") else ""


def _front(sweep: Record, first: str, second: str) -> Record:
    members = set(sweep["pareto"])
    points = [
        (t["name"], t["values"][first], t["values"][second], t["name"] in members)
        for t in sweep["trials"]
        if t["status"] == "complete" and None not in t["values"].values()
    ]
    drawing = sweeps.front(
        points,
        x_label=words(first),
        y_label=words(second),
        label=f"{words(first)} against {words(second)}: {len(members)} of {len(points)} trials "
        "are on the front",
    )
    return {"svg": Markup(drawing), "members": sweep["pareto"]}


def _trials(sweep: Record) -> Record:
    keys = list(dict.fromkeys(key for t in sweep["trials"] for key in t["params"]))
    names = list(sweep["objectives"])
    rows = [
        [
            t["name"],
            t["status"],
            str(t["epochs"]),
            *(_text(t["values"][name]) for name in names),
            *(_text(t["params"].get(key)) for key in keys),
            duration(t["seconds"]),
            t["error"] or "",
        ]
        for t in sweep["trials"]
    ]
    return {
        "headers": ["Trial", "State", "Epochs", *map(words, names), *keys, "Time", "Error"],
        "rows": rows,
    }


def _text(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"
