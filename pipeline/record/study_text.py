"""A study in words and tables, for the console and for study.md."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.console import Console, duration
from pipeline.record.aggregate import MeanDifference
from pipeline.record.scores import Table, difference_text, percents
from pipeline.record.study import StudyRecord

_METRICS = ("many", "medium", "few", "std", "all")
_TITLES = ["Many", "Medium", "Few", "STD", "All", "n"]
_UNTRAINED = "untrained"


def sentences(record: StudyRecord) -> list[str]:
    """Return what a reader asks first: is training worth it, which method, what was found."""
    return [*_worth(record), *_compared(record), *_found(record)]


def study_tables(record: StudyRecord) -> list[tuple[str, Table]]:
    """Return the tables of a study with their titles: scores, differences, rare images."""
    scores = [
        [s.protocol, s.model, *percents(s, _METRICS), str(s.n)] for s in record.scores
    ]  # fmt: skip
    differences = [
        [d.protocol, f"{d.a} - {d.b}", *_points(d, _METRICS), str(d.n)] for d in record.differences
    ]
    tables = [
        ("Accuracy in %, mean ± standard deviation over n seeds",
         (["Protocol", "Model", *_TITLES], scores)),
        ("Paired differences in points ± half of the 95 % interval; * excludes 0",
         (["Protocol", "Difference", *_TITLES], differences)),
    ]  # fmt: skip
    if record.rare:
        rows = [
            [r.model, r.score, _share(r.precision, r.precision_half), _share(r.base_rate, None),
             _fraction(r.auroc, r.auroc_half), str(r.n)]
            for r in record.rare
        ]  # fmt: skip
        head = f"rare in the first {record.rare[0].num_images}"
        headers = ["Network", "Score", head, "by chance", "AUROC", "n"]
        tables.append(("Images of rare classes found without labels", (headers, rows)))
    return tables


def show_study(console: Console, record: StudyRecord) -> None:
    """Show the tables, then the sentences, which are read last and first."""
    for title, table in study_tables(record):
        console.line()
        console.line(title)
        console.table(*table)
    console.line()
    for sentence in sentences(record):
        console.line(sentence)


def markdown(record: StudyRecord) -> str:
    """Return the study as Markdown."""
    lines = [f"# {record.title}", "", *(f"- {sentence}" for sentence in sentences(record))]
    for title, (headers, rows) in study_tables(record):
        lines += ["", title, "", *_rows([headers, ["---"] * len(headers), *rows])]
    lines += ["", f"Scored on {record.scored_on}; made by `{record.command}` in "
              f"{duration(record.wall_s)} of stages.", ""]  # fmt: skip
    return "\n".join(lines)


def _rows(rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _worth(record: StudyRecord) -> Iterator[str]:
    """Yield how far each method is above the network that was not trained."""
    for d in record.differences:
        if d.b == _UNTRAINED and "," not in d.a:
            yield (
                f"{d.protocol}: {d.a} is {_against(d, 'all')} above the untrained network over "
                f"all classes, {_against(d, 'few')} on the rare ones."
            )


def _compared(record: StudyRecord) -> Iterator[str]:
    """Yield what separates every two trained models on the rare classes."""
    for d in record.differences:
        if _UNTRAINED in (d.a, d.b):
            continue
        sign = d.sign("few")
        verdict = "no difference that this many seeds can show" if sign == 0 else "a difference"
        yield f"{d.protocol}: {d.a} minus {d.b} on rare classes {_against(d, 'few')}: {verdict}."


def _found(record: StudyRecord) -> Iterator[str]:
    for found in (r for r in record.rare if r.model == "trained"):
        others = [r for r in record.rare if r.score == found.score and r.model != "trained"]
        against = "".join(f", {_share(r.precision, None)} by {r.model}" for r in others)
        yield (
            f"Rare images: {_share(found.precision, found.precision_half)} of the first "
            f"{found.num_images} by {found.score} are of rare classes, "
            f"{_share(found.base_rate, None)} by chance{against}; "
            f"AUROC {_fraction(found.auroc, found.auroc_half)}."
        )


def _against(d: MeanDifference, metric: str) -> str:
    return f"{difference_text(d.metric(metric), d.half(metric))} points"


def _points(d: MeanDifference, metrics: tuple[str, ...]) -> list[str]:
    return [difference_text(d.metric(metric), d.half(metric)) for metric in metrics]


def _share(value: float, half: float | None) -> str:
    width = "" if half is None else f" ± {100 * half:.0f}"
    return f"{100 * value:.0f}{width} %"


def _fraction(value: float, half: float | None) -> str:
    return f"{value:.3f}" if half is None else f"{value:.3f} ± {half:.3f}"
