"""mining.html and comparison.html: inert, whole, and showing the numbers of the records."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from pipeline.console import Console
from pipeline.report.charts.scatter import Cloud, scatter
from pipeline.report.comparison import (
    compare,
    method_differences,
    run_differences,
    write_comparison,
)
from pipeline.report.mining import findings_rows, write_mining_page
from tests import records
from tests.refusals import raises
from tests.test_report import HOSTILE, Page, assert_inert, edit


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return records.write_run(tmp_path)


def csv_rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def mining_page(run_uri: str) -> Page:
    return Page(Path(write_mining_page(run_uri)).read_text(encoding="utf-8"))


def test_the_contact_sheet_shows_all_three_lists_and_the_findings(run_uri: str) -> None:
    page = mining_page(run_uri)
    assert_inert(page)
    assert len(page.all("img")) == 36 and all(a["alt"] for a in page.all("img"))
    assert len([a for a in page.all("svg") if a.get("class") == "chart"]) == 1
    for text in ("0.812", "0.762 to 0.862", "32.0 %", "31 are theirs, 5.0 would be by chance"):
        assert text in page.text
    assert "chance" in page.texts and "0.500" in page.texts
    targets = [str(a["href"])[1:] for a in page.all("a")]
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert targets and set(targets) <= set(ids)


def test_findings_are_a_csv_as_well(run_uri: str) -> None:
    write_mining_page(run_uri)
    rows = csv_rows(Path(run_uri) / "mining" / "findings.csv")
    assert len(rows) == 6
    assert {row["network"]: float(row["auroc"]) for row in rows} == {
        "trained": 0.812,
        "untrained": 0.577,
    }


def test_the_row_of_chance_is_the_share_of_the_rare_classes() -> None:
    found = records.mining(records.DIGITS, records.counts_of(10))["findings"]
    assert findings_rows(found)[-1] == ["chance", "–", "0.500", "–", "5.0 %", "5.0 %", "5.0 %"]


def test_without_labels_there_are_no_findings_and_the_map_shows_ranks(run_uri: str) -> None:
    edit(run_uri, "mining.json", lambda m: m.update(findings=None, groups=None, class_names=None))
    page = mining_page(run_uri)
    assert "Against the labels" not in page.text and "rarest quarter" in page.text
    assert not (Path(run_uri) / "mining" / "findings.csv").exists()


def test_hostile_names_are_inert(tmp_path: Path) -> None:
    run_uri = records.write_run(tmp_path, names=[*HOSTILE, "a", "b", "c"])
    change = {"id": HOSTILE[0], "png_base64": '"><script>', "label": 1}
    edit(run_uri, "mining.json", lambda m: m["rarest"][0].update(change))
    edit(run_uri, "mining.json", lambda m: m["data"].update(name=HOSTILE[1]))
    page = mining_page(run_uri)
    assert_inert(page)
    assert HOSTILE[1] in page.text and page.text.count("no image") == 1


def test_points_are_placed_to_one_scale_and_gaps_left_out() -> None:
    drawing = scatter([Cloud("a", "c1", [0.0, 2.0], [0.0, 1.0])], label="map")
    assert drawing.count("M") == 2 and 'class="dot cloud c1"' in drawing
    with_gap = scatter([Cloud("a", "c1", [0.0, 2.0, float("nan")], [0.0, 1.0, 1.0])], label="map")
    assert with_gap == drawing
    assert scatter([Cloud("a", "c1", [], [])], label="map") == ""


# --- comparison


def two_runs(tmp_path: Path) -> list[str]:
    first = records.write_run(tmp_path / "a")
    second = records.write_run(tmp_path / "b")
    edit(second, "run.json", lambda r: r.update(run="other", seed=8))

    def better(evaluation: dict) -> None:  # type: ignore[type-arg]
        for model in evaluation["models"]:
            for score in model["scores"]:
                gain = 0.05 if model["name"] == "sdclr" else 0.01
                score["all"] += gain
                score["few"] += 2 * gain
                score["per_class"] = [value + gain for value in score["per_class"]]

    edit(second, "evaluation.json", better)
    return [first, second]


def loaded(uris: list[str]) -> list[dict]:  # type: ignore[type-arg]
    return [
        {"name": f"run{i}", "evaluation": json.loads((Path(u) / "evaluation.json").read_text())}
        for i, u in enumerate(uris)
    ]


def test_differences_of_methods_are_taken_within_each_run(tmp_path: Path) -> None:
    runs = loaded(two_runs(tmp_path))
    entries = method_differences(runs)
    (entry,) = (
        e for e in entries
        if (e["protocol"], e["a"], e["b"]) == ("cached-linear", "sdclr", "simclr")
    )  # fmt: skip
    slow = []
    for run in runs:
        by_name = {m["name"]: m["scores"][0] for m in run["evaluation"]["models"]}
        slow.append(by_name["sdclr"]["few"] - by_name["simclr"]["few"])
    assert slow[1] - slow[0] == pytest.approx(0.08)
    mean, spread = sum(slow) / 2, abs(slow[1] - slow[0]) / 2**0.5
    assert entry["n"] == 2 and entry["few"]["mean"] == pytest.approx(mean)
    assert entry["few"]["half_width"] == pytest.approx(12.706 * spread / 2**0.5, rel=1e-3)
    assert len(entries) == 3 * 3


def test_differences_of_runs_are_taken_class_by_class(tmp_path: Path) -> None:
    runs = loaded(two_runs(tmp_path))
    by_model = {e["model"]: e for e in run_differences(runs) if e["protocol"] == "knn-k20"}
    assert by_model["sdclr"]["mean"] == pytest.approx(0.05)
    assert by_model["sdclr"]["half_width"] == pytest.approx(0, abs=1e-9)
    assert (by_model["sdclr"]["n"], by_model["sdclr"]["rose"]) == (10, 10)
    runs[1]["evaluation"]["models"][0]["scores"][2]["per_class"][0] -= 1
    changed = next(e for e in run_differences(runs) if e["protocol"] == "knn-k20")
    assert changed["half_width"] > 0.1 and changed["fell"] == 1


def test_the_page_of_a_comparison(tmp_path: Path) -> None:
    uris = two_runs(tmp_path)
    place = Path(write_comparison(uris, str(tmp_path)))
    page = Page(place.read_text())
    assert_inert(page)
    assert "2 runs side by side" in page.text and "other minus demo" in page.text
    assert "+5.0 ± 0.0 *" in page.texts
    rows = csv_rows(place.parent / "scores.csv")
    assert len(rows) == 2 * 3 * 3 and {row["run"] for row in rows} == {"demo", "other"}
    assert len(json.loads((place.parent / "differences.json").read_text())["methods"]) == 9
    assert Path(write_comparison(uris, str(tmp_path))) == place


def test_the_console_says_where_the_page_is(tmp_path: Path) -> None:
    uris, stream = two_runs(tmp_path), io.StringIO()
    compare([uris[0], "demo"], str(Path(uris[1]).parent), Console(stream))
    assert "comparison of 2 runs: " in stream.getvalue()
    with raises("E-CONFIG-031", "other"):
        compare([uris[0], "other"], str(tmp_path), Console(stream))


def test_runs_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    edit(second, "evaluation.json", lambda e: e["class_names"].reverse())
    with raises("E-DATA-088"):
        write_comparison([first, second], str(tmp_path))
    (Path(second) / "evaluation.json").unlink()
    with raises("E-DATA-027") as caught:
        write_comparison([first, second], str(tmp_path))
    assert f"evaluate --resume {second}" in caught.value.todo
