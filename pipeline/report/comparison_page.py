"""comparison.html: what differs between runs, in their configuration and in what they reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.console import counted
from pipeline.record.aggregate import MeanDifference, RunDifference
from pipeline.record.scores import ABSENT, difference_text, percent
from pipeline.report.charts import dotplot
from pipeline.report.charts.dotplot import Points
from pipeline.report.charts.forest import Gap, forest
from pipeline.report.charts.svg import minus
from pipeline.report.compared import Compared, differing
from pipeline.report.names import listed, signed, style, title
from pipeline.report.parts import Figure, Swatch, Table
from pipeline.report.template import to_html
from pipeline.report.training import health_figures
from pipeline.report.verdict import Answer, Tone, by_protocols, learned

_LABELS = {"few": "Few", "std": "STD", "all": "All", "many": "Many", "medium": "Medium"}
_COLOURS = ("c1", "c2", "c5", "c4", "c3")
_MAX_CURVES = 10
# Sentences about runs that did not learn.
_MAX_TEXTS = 3


@dataclass(frozen=True)
class RunRow:
    """A row of the table of runs."""

    label: str
    href: str
    data: str
    seed: int
    status: str
    tone: str
    name: str


@dataclass(frozen=True)
class Page:
    """All of comparison.html."""

    title: str
    runs: tuple[RunRow, ...]
    alarms: tuple[str, ...]
    answers: tuple[Answer, ...]
    config: Table
    note: str
    forest: tuple[Figure, ...]
    methods: Table | None
    has_asterisks: bool
    score_figures: tuple[Figure, ...]
    scores: Table | None
    differences: Table | None
    health_figures: tuple[tuple[str, tuple[Swatch, ...], tuple[Figure, ...]], ...]


def render(
    runs: Sequence[Compared],
    methods: Sequence[MeanDifference],
    changes: Sequence[RunDifference],
) -> str:
    """Return the page as HTML."""
    keys, methods_table = differing(runs), _methods(methods)
    page = Page(
        title=_title(runs),
        runs=tuple(
            RunRow(
                r.label, r.href, r.data, r.seed, r.status,
                "good" if r.status == "complete" else "bad", r.name,
            )
            for r in runs
        ),
        alarms=tuple(
            f"{run.label}, {title(method)}: {alarm.text}"
            for run in runs
            for method, alarm in run.alarms
        ),
        answers=(*_of_other_data(runs), *_learned(runs), *_better(methods)),
        config=Table(
            "Keys that differ",
            ("Key", *_short(runs)),
            tuple((key, *(run.config.get(key, ABSENT) for run in runs)) for key in keys),
        ),
        note=_note(runs, methods),
        forest=tuple(_forests(methods)),
        methods=methods_table,
        has_asterisks=methods_table is not None
        and any("*" in cell for row in methods_table.rows for cell in row),
        score_figures=tuple(_score_figures(runs)),
        scores=_scores(runs),
        differences=_differences(runs, changes),
        health_figures=tuple(_health(runs)),
    )  # fmt: skip
    return to_html("comparison.html.j2", page)


def _title(runs: Sequence[Compared]) -> str:
    """Return the data set of all runs; of several splits or sources what they are made of."""
    sets = list(dict.fromkeys(run.data for run in runs))
    sources = list(dict.fromkeys(run.source or run.data for run in runs))
    return sets[0] if len(sets) == 1 else listed(sources)


def _of_other_data(runs: Sequence[Compared]) -> Iterator[Answer]:
    """Yield that the runs are of different sources; splits of one source count as the same."""
    sources = list(dict.fromkeys(run.source for run in runs if run.source))
    if len(sources) > 1:
        text = (
            f"They are of {listed(sources)}, so differences may come from the images. Compare runs "
            "of one source to judge methods and keys."
        )
        yield Answer("Are these runs of the same images?", "No", "bad", (text,))


def _learned(runs: Sequence[Compared]) -> Iterator[Answer]:
    """Yield how many of the runs learned, and what is known of some that did not."""
    found = [
        (name, learned({row.method: row for row in run.health}, run.history))
        for name, run in zip(_short(runs), runs, strict=True)
        if run.health
    ]
    if not found:
        return
    words = Counter(answer.word for _, answer in found)
    counts = ", ".join(f"{word}: {count}" for word, count in words.items())
    texts = [f"{name}. {text}" for name, a in found if a.tone != "good" for text in a.texts]
    texts = [f"{counts} of {counted(len(found), 'run')}.", *texts[:_MAX_TEXTS]]
    tones = {answer.tone for _, answer in found}
    tone: Tone = "good" if tones == {"good"} else "bad" if "bad" in tones else "open"
    some = "Not all" if {"Yes", "With alarms", "Partly"} & set(words) else "None shown"
    word = next(iter(words)) if len(words) == 1 else some
    yield Answer("Did they learn?", word, tone, tuple(texts))


def _better(methods: Sequence[MeanDifference]) -> Iterator[Answer]:
    """Yield what the paired differences on Few show for each two models."""
    for a, b in dict.fromkeys((entry.a, entry.b) for entry in methods):
        own = [e for e in methods if (e.a, e.b) == (a, b) and e.few is not None]
        other = "the untrained network" if b == "untrained" else title(b)
        question = f"Is {title(a)} better than {other} on Few?"
        if not own or own[0].n < 2:
            text = "One evaluated run says nothing about chance: compare runs of several seeds."
            yield Answer(question, "Not known", "open", (text,))
            continue
        half = own[0].half("few")
        by = signed(100 * (own[0].few or 0.0), None if half is None else 100 * half)
        text = f"{own[0].protocol}: {by} points over {counted(own[0].n, 'run')}, paired."
        yield by_protocols(question, text, {e.protocol: e.sign("few") for e in own})


def _note(runs: Sequence[Compared], methods: Sequence[MeanDifference]) -> str:
    """Return what the differences between methods rest on."""
    if not methods or methods[0].n < 2:
        return ""
    text = (
        "Differences are taken within each run and averaged over n = "
        f"{counted(methods[0].n, 'run')}, with "
        "the 95 % interval of Student's paired t."
    )
    keys = [(run.data, run.seed, tuple(sorted(run.settings.items()))) for run in runs]
    if len(set(keys)) == len(keys):
        return text
    return (
        f"{text} Some of these runs have the same data, seed and settings: they are repetitions, "
        "and the intervals are too narrow."
    )


def _forests(methods: Sequence[MeanDifference]) -> Iterator[Figure]:
    for metric in ("few", "all"):
        gaps = [
            Gap(
                f"{title(e.a)} minus {title(e.b)}",
                e.protocol,
                100 * mean,
                None if half is None else 100 * half,
                style(e.b),
                signed(100 * mean, None if half is None else 100 * half),
            )
            for e in sorted(methods, key=lambda e: (e.a, e.b))
            if (mean := e.metric(metric)) is not None
            for half in [e.half(metric)]
        ]
        name = _LABELS[metric]
        texts = (f"{g.group}, {g.name} {g.text}" for g in gaps)
        label = f"Differences on {name}: " + "; ".join(texts)
        drawing = forest(gaps, label=label, low_label="worse", high_label="better")
        if drawing:
            yield Figure(f"{name}, points", Markup(drawing), "")


def _score_figures(runs: Sequence[Compared]) -> Iterator[Figure]:
    scored = [run for run in runs if run.evaluation is not None]
    names = _models(runs)
    for protocol in _protocols(runs):
        data = [
            Points(
                title(name),
                style(name),
                [
                    100 * few
                    if (score := run.scores(protocol).get(name)) and (few := score.few) is not None
                    else None
                    for run in scored
                ],
            )
            for name in names
        ]
        drawing = dotplot.points(_short(scored), data, label=f"Few by run, {protocol}")
        legend = tuple(
            Swatch(s.name, s.style, dotplot.marker(dotplot.marker_of(k), 8, 8))
            for k, s in enumerate(data)
        )
        if drawing:
            yield Figure(f"Few, {protocol}", Markup(drawing), "", legend)


def _short(runs: Sequence[Compared]) -> list[str]:
    """Return labels without the data set where all runs have the same."""
    starts = {run.label.partition(", ")[0] for run in runs}
    if len(starts) == 1:
        return [run.label.partition(", ")[2] or run.label for run in runs]
    return [run.label for run in runs]


def _health(
    runs: Sequence[Compared],
) -> Iterator[tuple[str, tuple[Swatch, ...], tuple[Figure, ...]]]:
    for method in dict.fromkeys(row.method for run in runs for row in run.health):
        series = [
            (name, _COLOURS[i % len(_COLOURS)], rows)
            for i, (name, run) in enumerate(zip(_short(runs), runs[:_MAX_CURVES], strict=False))
            if (rows := [row for row in run.health if row.method == method])
        ]
        legend = tuple(Swatch(label, css) for label, css, _ in series)
        yield title(method), legend, health_figures(series, 2)


def _models(runs: Sequence[Compared]) -> list[str]:
    return list(
        dict.fromkeys(m.name for run in runs if run.evaluation for m in run.evaluation.models)
    )


def _protocols(runs: Sequence[Compared]) -> list[str]:
    return list(dict.fromkeys(p for run in runs for p in run.protocols))


def _scores(runs: Sequence[Compared]) -> Table | None:
    rows = tuple(
        (protocol, title(name), label, *(percent(score.metric(m)) for m in _LABELS))
        for protocol in _protocols(runs)
        for name in _models(runs)
        for label, run in zip(_short(runs), runs, strict=True)
        if (score := run.scores(protocol).get(name)) is not None
    )
    headers = ("Protocol", "Model", "Run", *_LABELS.values())
    return Table("Scores of each run", headers, rows) if rows else None


def _methods(methods: Sequence[MeanDifference]) -> Table | None:
    rows = tuple(
        (
            e.protocol,
            f"{title(e.a)} minus {title(e.b)}",
            *(_cell(e.metric(m), e.half(m)) for m in _LABELS),
            str(e.n),
        )
        for e in methods
    )
    headers = ("Protocol", "Difference", *_LABELS.values(), "n")
    return Table("Paired differences between methods", headers, rows) if rows else None


def _differences(runs: Sequence[Compared], changes: Sequence[RunDifference]) -> Table | None:
    short = dict(zip((run.label for run in runs), _short(runs), strict=True))
    rows = tuple(
        (
            e.protocol,
            title(e.model),
            _cell(e.mean, e.half_width),
            str(e.rose),
            str(e.fell),
            f"{short[e.run]} minus {short[runs[0].label]}",
        )
        for e in changes
    )
    headers = ("Protocol", "Model", "All", "Classes up", "Classes down", "Difference")
    return Table("Differences between runs", headers, rows) if rows else None


def _cell(mean: float | None, half_width: float | None) -> str:
    return minus(difference_text(mean, half_width))
