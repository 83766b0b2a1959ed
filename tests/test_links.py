"""The way between the pages of runs and their comparisons."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.comparison import write_comparison
from pipeline.report.page import write_report
from tests import records
from tests.pages import Page


def comparisons(report: Path) -> list[Path]:
    """The pages of comparisons that a report links to."""
    links = [str(a["href"]) for a in Page(report.read_text()).all("a")]
    return [(report.parent / link).resolve() for link in links if "comparison-" in link]


def test_reports_link_to_their_comparisons_once(tmp_path: Path) -> None:
    uris = [records.write_run(tmp_path / name) for name in ("one", "two", "three")]
    reports = [Path(uri, "report.html") for uri in uris]
    write_report(uris[0])
    assert comparisons(reports[0]) == []
    first = Path(write_comparison(uris[:2], str(tmp_path)))
    assert Path(write_comparison(uris[:2], str(tmp_path))) == first
    assert comparisons(reports[0]) == [first.resolve()]
    assert not reports[1].exists()  # made when it is asked for
    write_report(uris[1])
    assert comparisons(reports[1]) == [first.resolve()]
    second = Path(write_comparison([uris[0], uris[2]], str(tmp_path)))
    assert comparisons(reports[0]) == [first.resolve(), second.resolve()]
    write_report(uris[2])
    assert comparisons(reports[2]) == [second.resolve()]
