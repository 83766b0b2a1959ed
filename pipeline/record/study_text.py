"""A study in words and tables, for the console and for study.md."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.console import Console, duration
from pipeline.record.aggregate import MeanDifference
from pipeline.record.scores import Table, difference_text, percents
from pipeline.record.study import GapClosed, StudyRecord

_METRICS = ("many", "medium", "few", "std", "all")
_TITLES = ["Many", "Medium", "Few", "STD", "All", "n"]
_UNTRAINED = "untrained"


def sentences(record: StudyRecord) -> list[str]:
    """Return what a reader asks first: is training worth it, which method, what was found."""
    return [*_worth(record), *_compared(record), *_found(record)]


def study_tables(record: StudyRecord) -> list[tuple[str, Table]]:
    """Return the tables of a study with their titles: scores, differences, gaps, rare images."""
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
    if record.gaps:
        gaps = [
            [g.protocol, g.model, difference_text(g.gap, g.gap_half), _closed(g), str(g.n)]
            for g in record.gaps
        ]
        base = record.gaps[0].base
        headers = ["Protocol", "Model", "Gap in STD, points", "closed", "n"]
        title = f"Gap in STD of {base} to its balanced twin, and what part of it each method closes"
        tables.append((title, (headers, gaps)))
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
    for (a, b), found in _pairs(record).items():
        if b == _UNTRAINED and "," not in a:
            yield (
                f"Is training worth it? Points of {a} above the untrained network over all "
                f"classes: {_by_protocol(found, 'all')}."
            )


def _compared(record: StudyRecord) -> Iterator[str]:
    """Yield what separates two methods of the first arm, and each method from its other arms."""
    for (a, b), found in _pairs(record).items():
        in_first_arm = "," not in a and "," not in b
        if _UNTRAINED in (a, b) or not (in_first_arm or _method(a) == _method(b)):
            continue
        told_apart = [d.protocol for d in found if d.sign("few")]
        verdict = (
            f"a difference by {' and '.join(told_apart)}"
            if told_apart
            else (f"no difference that n = {found[0].n} can show")
        )
        yield f"{a} minus {b} on rare classes: {_by_protocol(found, 'few')}: {verdict}."


def _pairs(record: StudyRecord) -> dict[tuple[str, str], list[MeanDifference]]:
    found: dict[tuple[str, str], list[MeanDifference]] = {}
    for d in record.differences:
        found.setdefault((d.a, d.b), []).append(d)
    return found


def _method(model: str) -> str:
    return model.partition(",")[0]


def _by_protocol(differences: list[MeanDifference], metric: str) -> str:
    """Return the points of one pair of models by each protocol."""
    return ", ".join(
        f"{difference_text(d.metric(metric), d.half(metric))} ({d.protocol})" for d in differences
    )


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


def _points(d: MeanDifference, metrics: tuple[str, ...]) -> list[str]:
    return [difference_text(d.metric(metric), d.half(metric)) for metric in metrics]


def _closed(gap: GapClosed) -> str:
    return "no gap to close" if gap.closed is None else f"{100 * gap.closed:.0f} %"


def _share(value: float, half: float | None) -> str:
    width = "" if half is None else f" ± {100 * half:.0f}"
    return f"{100 * value:.0f}{width} %"


def _fraction(value: float, half: float | None) -> str:
    return f"{value:.3f}" if half is None else f"{value:.3f} ± {half:.3f}"
