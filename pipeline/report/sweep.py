"""The page of a sweep: RUN/report.html, a pure view of run.json, config.yaml and sweep.json."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline import storage
from pipeline.console import counted, duration, program
from pipeline.evaluate.comparison import welch_half_width
from pipeline.record.scores import ABSENT
from pipeline.record.sweep import MethodSearch, SearchedTrial, Spread, SweepResult
from pipeline.report import facts
from pipeline.report.charts import sweeps
from pipeline.report.head import Head
from pipeline.report.inputs import Inputs
from pipeline.report.names import title
from pipeline.report.parts import Figure, Pairs, Table
from pipeline.report.sweep_figures import method_figures
from pipeline.report.template import to_html
from pipeline.report.verdict import Answer, Tone

_NONE = "No difference shown"
_SAME = "It is the same"
_ROUNDING = 1e-9  # of differences of fractions
_WORDS = {
    "fewshot": "few-shot accuracy",
    "view_retrieval": "view retrieval",
    "train_loss": "training loss",
    "balance": "balance (STD, lower is more even)",
}


@dataclass(frozen=True)
class Section:
    """The findings of the search of one method."""

    name: str
    facts: Pairs
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Page:
    """All of the page of a sweep."""

    head: Head
    answer: Answer
    judged: str
    confirmed: Table | None
    best_name: str
    best: Pairs
    train_command: str
    front: Figure | None
    sections: tuple[Section, ...]
    trials: Table
    common_epoch: str
    facts: tuple[tuple[str, Pairs], ...]
    config: str | None


def render(inputs: Inputs, sweep: SweepResult, head: Head) -> str:
    """Return the page as HTML."""
    first, *others = sweep.objectives
    direction = {"max": "higher", "min": "lower"}[sweep.objectives[first]]
    best = next(t for t in sweep.trials if t.name == sweep.best)
    common = common_epoch(sweep.trials)
    page = Page(
        head=head,
        answer=answer(inputs, sweep, best),
        judged=f"Trials are judged by {words(first)} on the {sweep.scored_on} set; {direction} is "
        "better. The test set was not read.",
        confirmed=_confirmed(sweep),
        best_name=best.name,
        best=(
            *((key, _text(value)) for key, value in best.params.items()),
            *((words(name), _text(value)) for name, value in best.values.items()),
        ),
        train_command=f"{program()} --config "
        + shlex.quote(storage.join(inputs.run_uri, "best.yaml")),
        front=_front(sweep, first, others[0]) if others else None,
        sections=tuple(_section(sweep, part) for part in sweep.methods),
        trials=_trials(sweep, common),
        common_epoch=ABSENT if common is None else f"{common:g}",
        facts=facts.facts_section(inputs),
        config=inputs.config_text,
    )
    return to_html("sweep.html.j2", page)


def words(objective: str) -> str:
    """Return an objective for people."""
    return _WORDS.get(objective, objective)


def common_epoch(trials: Sequence[SearchedTrial]) -> int | None:
    """Return the last epoch after which every trial that did not fail was measured."""
    measured = [
        {epoch for epoch, value in t.course if value is not None}
        for t in trials
        if t.status != "failed"
    ]
    shared = set.intersection(*measured) if measured else set()
    return max(shared, default=None)


def answer(inputs: Inputs, sweep: SweepResult, best: SearchedTrial) -> Answer:
    """Return whether the best setting beats the others, and what to know before believing it."""
    word, tone, texts = _findings(sweep)
    setting = ", ".join(f"{key} {_text(value)}" for key, value in best.params.items())
    return Answer(
        "Is the best setting better than the configured one?",
        word,
        tone,
        (f"Best trial: {best.name}, {setting}.", *texts, *remarks(inputs, sweep, best)),
    )


def remarks(inputs: Inputs, sweep: SweepResult, best: SearchedTrial) -> list[str]:
    """Return what has to be known before the numbers are believed."""
    found = []
    val = inputs.manifest.sets.get(sweep.scored_on) if inputs.manifest is not None else None
    one_image = 0.0
    if val is not None and sweep.first == "fewshot":
        one_image = 1 / max(1, val.rows)
        found.append(
            f"The scores rest on {counted(val.rows, f'{sweep.scored_on} image')}: one image is "
            f"{100 * one_image:.1f} points in 100, so smaller differences mean nothing."
        )
    points = [(e, v) for e, v in best.course if v is not None]
    if len(points) > 1:
        peak = max(points, key=lambda point: sweep.sign * point[1])
        last = points[-1]
        loss = sweep.sign * (peak[1] - last[1])
        if loss > one_image + _ROUNDING and peak[0] < last[0]:
            found.append(
                f"Training made the best trial worse: {_text(peak[1])} after "
                f"{counted(peak[0], 'epoch')}, {_text(last[1])} after {last[0]}. Try fewer epochs "
                "or a lower train.lr_per_256."
            )
    return found


def _findings(sweep: SweepResult) -> tuple[str, Tone, list[str]]:
    """Return whether the best differs from each other setting by more than its seeds do."""
    if not sweep.confirmed or not sweep.confirmed[0].values[sweep.first].n:
        text = "No setting was trained with fresh seeds: raise tune.retrain_seeds."
        return "Not known", "open", [text]
    first, *others = sweep.confirmed
    same = ["The configured setting is the best that was found."]
    if any(entry.label.startswith("configured ") for entry in others):
        same = []
    if not others:
        return _SAME, "open", same
    mine, found, signs = first.values[sweep.first], [], set()
    for entry in others:
        other = entry.values[sweep.first]
        if mine.std is None or other.std is None or mine.mean is None or other.mean is None:
            text = "One seed says nothing about chance: raise tune.retrain_seeds."
            return _SAME if same else "Not known", "open", [*same, *_by_one_seed(sweep), text]
        gain = sweep.sign * (mine.mean - other.mean)
        half = welch_half_width(mine.std, mine.n, other.std, other.n)
        signs.add((gain > half) - (gain < -half))
        verdict = "more" if abs(gain) > half else "no more"
        word = "better" if gain >= 0 else "worse"
        found.append(
            f"{first.label} is {abs(gain):.4f} ± {half:.4f} {word} than {entry.label} over "
            f"{counted(mine.n, 'fresh seed')} (95 %, Welch's t): {verdict} than chance explains."
        )
    if -1 in signs:
        return "No, another did better", "bad", [*same, *found]
    if same:
        return _SAME, "open", [*same, *found]
    if signs == {1}:
        return "Yes", "good", found
    return ("Better than some of them" if 1 in signs else _NONE), "open", found


def _by_one_seed(sweep: SweepResult) -> list[str]:
    """Return which settings did better than the best one with fresh seeds."""
    first, *others = sweep.confirmed
    mine = first.values[sweep.first]
    return [
        f"With fresh seeds {entry.label} reached {_text(other.mean)} (n = {other.n}), "
        f"{first.label} {_text(mine.mean)} (n = {mine.n})."
        for entry in others
        if (other := entry.values[sweep.first]).mean is not None
        and mine.mean is not None
        and sweep.sign * (other.mean - mine.mean) > 0
    ]


def _confirmed(sweep: SweepResult) -> Table | None:
    if not any(entry.values[sweep.first].n for entry in sweep.confirmed):
        return None
    rows = []
    for entry in sweep.confirmed:
        params = ", ".join(f"{k.partition('.')[2]} {_text(v)}" for k, v in entry.params.items())
        cells = [_spread(entry.values[name]) for name in sweep.objectives]
        rows.append((entry.label, *cells, str(entry.values[sweep.first].n), params))
    headers = ("Setting", *(words(name) for name in sweep.objectives), "Seeds", "Parameters")
    return Table("Settings trained with fresh seeds", headers, tuple(rows))


def _spread(found: Spread) -> str:
    if found.mean is None:
        return ABSENT
    return f"{found.mean:.4f}" + ("" if found.std is None else f" ± {found.std:.4f}")


def _section(sweep: SweepResult, part: MethodSearch) -> Section:
    saved = 1 - part.epochs / max(1, part.epochs_without_stopping)
    found: Pairs = (
        ("Trials", ", ".join(f"{n} {status}" for status, n in part.counts.items())),
        ("Epochs", f"{part.epochs} trained, {100 * saved:.0f} % saved by stopping early"),
        ("Time in trials", duration(part.seconds)),
    )
    trials = [t for t in sweep.trials if t.method == part.method]
    common = common_epoch(trials)
    figures = method_figures(part, trials, sweep.first, words(sweep.first), common)
    return Section(title(part.method), found, tuple(figures))


def _front(sweep: SweepResult, first: str, second: str) -> Figure | None:
    members = set(sweep.pareto)
    points = [
        (t.name, float(t.values[first] or 0), float(t.values[second] or 0), t.name in members)
        for t in sweep.trials
        if t.status == "complete" and None not in t.values.values()
    ]
    drawing = sweeps.front(
        points,
        x_label=words(first),
        y_label=words(second),
        label=f"{words(first)} against {words(second)}: {len(members)} of {len(points)} trials "
        "are on the front",
    )
    caption = (
        "Joined trials are not beaten by any other in both. Their configurations are in pareto/: "
        + ", ".join(sweep.pareto)
    )
    return Figure("Two objectives", Markup(drawing), caption + ".") if drawing else None


def _trials(sweep: SweepResult, common: int | None) -> Table:
    keys = list(dict.fromkeys(key for t in sweep.trials for key in t.params))
    rows = tuple(
        (
            t.name,
            t.status,
            str(t.epochs),
            *(() if common is None else (_text(t.at(common)),)),
            *(_text(t.values.get(name)) for name in sweep.objectives),
            *(_text(t.params.get(key)) for key in keys),
            duration(t.seconds),
            t.error or "",
        )
        for t in sweep.trials
    )
    at = () if common is None else (f"{words(sweep.first)}, epoch {common:g}",)
    last = (f"{words(name)}, last" for name in sweep.objectives)
    headers = ("Trial", "State", "Epochs", *at, *last, *keys, "Time", "Error")
    return Table("All trials", headers, rows)


def _text(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"
