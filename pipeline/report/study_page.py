"""study.html: the runs of a study and what they say together, as study.json has it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.record.study import StudyRecord
from pipeline.record.study_text import sentences, study_tables
from pipeline.report.links import relative
from pipeline.report.parts import Link, Table
from pipeline.report.template import to_html


@dataclass(frozen=True)
class Page:
    """All of study.html."""

    title: str
    command: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    runs: tuple[tuple[Link, ...], ...]


def render(record: StudyRecord, folder: str) -> str:
    """Return the page of a study in a folder as HTML; its runs are linked, one line a seed."""
    seeds = dict.fromkeys(run.seed for run in record.runs)
    page = Page(
        title=record.title,
        command=record.command,
        sentences=tuple(sentences(record)),
        tables=tuple(
            Table(title, tuple(headers), tuple(tuple(row) for row in rows))
            for title, (headers, rows) in study_tables(record)
        ),
        runs=tuple(
            tuple(
                Link(f"seed {seed}, {run.arm}", relative(f"{run.uri}/report.html", folder))
                for run in record.runs
                if run.seed == seed
            )
            for seed in seeds
        ),
    )
    return to_html("study.html.j2", page)
