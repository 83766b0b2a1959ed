"""report.html: numbers of the records, whatever parts of them are there."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.report.page import write_report
from tests import records
from tests.pages import (
    MANIFEST,
    Page,
    assert_inert,
    charts,
    edit,
    knn_of,
    page_of,
)


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return records.write_run(tmp_path)


def test_a_whole_run_gives_a_page_that_stands_alone(run_uri: str) -> None:
    text = Path(write_report(run_uri)).read_text(encoding="utf-8")
    page = Page(text)
    assert_inert(page)
    assert "http" not in re.sub(r"http-equiv", "", text) and "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    assert len(page.all("h1")) == 1
    for what in (
        "Differences on Few", "Accuracy by class", "Loss over steps", "RankMe over epochs",
        "Images per class", "Weights kept in each",
    ):  # fmt: skip
        assert any(label.startswith(what) for label in charts(page)), what
    images = page.all("img")
    assert images and all(a["alt"] for a in images)


def test_links_lead_to_sections_and_to_the_other_pages(run_uri: str) -> None:
    page = page_of(run_uri)
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = [str(a["href"]) for a in page.all("a")]
    assert {t[1:] for t in targets if t.startswith("#")} <= set(ids)
    assert "mining.html" in targets
    (Path(run_uri) / "mining.json").unlink()
    assert "mining.html" not in [a["href"] for a in page_of(run_uri).all("a")]


def test_equal_records_give_an_equal_page(run_uri: str) -> None:
    first = Path(write_report(run_uri)).read_bytes()
    assert Path(write_report(run_uri)).read_bytes() == first


def test_numbers_are_those_of_the_records(run_uri: str) -> None:
    page = page_of(run_uri)
    evaluation = json.loads((Path(run_uri) / "evaluation.json").read_text())
    for model in evaluation["models"]:
        for score in model["scores"]:
            assert f"{100 * score['all']:.1f}" in page.texts or score["n"] > 1
            assert all(f"{100 * v:.1f}" in page.texts for v in score["per_class"])
    assert page.texts.count("31.0") >= 3  # rare images taken for frequent classes
    rows = [json.loads(x) for x in (Path(run_uri) / "metrics.jsonl").read_text().splitlines()]
    for method in ("sdclr", "simclr"):
        losses = [row["loss"] for row in rows if row.get("method") == method and "loss" in row]
        assert f"{losses[-1]:.4g}" in page.texts
    for fact in ("c0ffee" * 8, "ab12" * 16, "417", "8 x 8 px", "prune_ratio: 0.9", "0.371"):
        assert fact in page.text


def test_the_numbers_are_tables_as_well(run_uri: str) -> None:
    write_report(run_uri)
    folder = Path(run_uri) / "tables"
    rows = {
        file.name: list(csv.DictReader(file.read_text().splitlines())) for file in folder.iterdir()
    }
    assert {name: len(found) for name, found in rows.items()} == {
        "scores.csv": 9, "classes.csv": 90, "health.csv": 12
    }  # fmt: skip
    evaluation = json.loads((Path(run_uri) / "evaluation.json").read_text())
    best = evaluation["models"][0]["scores"][0]
    assert float(rows["scores.csv"][0]["few"]) == best["few"]
    assert [float(row["accuracy"]) for row in rows["classes.csv"][:10]] == best["per_class"]
    assert rows["health.csv"][-1]["disagreement"] == ""  # SimCLR has none


def test_whiskers_are_as_wide_as_the_test_images_are_few(run_uri: str) -> None:
    def ends(text: str) -> list[float]:
        classes = text[text.index('id="classes"') :]
        found = re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)" class="whisker', classes)
        return [float(b) - float(a) for a, b in found]

    few = ends(Path(write_report(run_uri)).read_text())
    assert len(few) == 3 * 3 * 10
    edit(run_uri, MANIFEST, lambda m: m["sets"]["test"].update(class_counts=[2000] * 10))
    many = ends(Path(write_report(run_uri)).read_text())
    assert sum(many) < sum(few) / 4
    edit(run_uri, MANIFEST, lambda m: m["sets"]["test"].update(class_counts=None))
    assert ends(Path(write_report(run_uri)).read_text()) == []


def test_an_evaluation_without_curve_and_confusion_leaves_them_out(run_uri: str) -> None:
    def strip(evaluation: dict[str, Any]) -> None:
        evaluation["curve"] = []
        for model in evaluation["models"]:
            for score in model["scores"]:
                del score["group_confusion"]

    edit(run_uri, "evaluation.json", strip)
    text = page_of(run_uri).text
    assert "Confusion of groups" not in text and "Over the checkpoints" not in text


@pytest.mark.parametrize(
    ("name", "change", "shown"),
    [
        ("evaluation.json", lambda e: e["models"][0]["scores"][0].update(few=0.12345), "12.3"),
        ("evaluation.json", lambda e: knn_of(e)["per_class"].__setitem__(0, 0.0123), "1.2"),
        ("forgotten.json", lambda f: f["most"][0].update(score=0.98765), "0.988"),
        ("forgotten.json", lambda f: f["group_mean"]["few"].update(mean=0.4444), "0.444"),
        ("run.json", lambda r: r["versions"].update(torch="9.8.7"), "9.8.7"),
        ("run.json", lambda r: r["stages"]["train"].update(wall_s=7620.0), "2 h 07 min"),
        ("run.json", lambda r: r["git"].update(commit="f" * 40, dirty=True), "with uncommitted"),
        ("mining.json", lambda m: m.update(scored=98765), "98765"),
        (MANIFEST, lambda m: m["sets"]["pretrain"]["class_counts"].__setitem__(9, 1234), "1234"),
    ],
)
def test_a_changed_record_changes_the_page(
    run_uri: str, name: str, change: Any, shown: str
) -> None:
    before = page_of(run_uri).text
    edit(run_uri, name, change)
    after = page_of(run_uri).text
    assert after != before and shown in after
    assert after.count(shown) > before.count(shown)


def test_a_changed_metric_changes_the_page(run_uri: str) -> None:
    file = Path(run_uri) / "metrics.jsonl"
    before = page_of(run_uri).text
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    last = [row for row in rows if row.get("method") == "simclr"][-1]
    last["loss"] = 2.125
    sick = [row for row in rows if row["kind"] == "health"][-1]
    sick["alarms"] = [
        {"name": "collapse", "level": "alarm", "text": "features have collapsed", "change": "rest"}
    ]
    sick["measures"]["rankme"] = 3.14
    [row for row in rows if row["kind"] == "mask"][-1]["kept_frac"]["conv1.weight"] = 0.0084
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = page_of(run_uri).text
    assert "2.125" not in before and "2.125" in after
    assert "Fewest in conv1 (0.84 %)" in after
    assert "No alarm" in before and "No alarm" not in after
    assert "Alarm, SimCLR: features have collapsed" in after and "3.14" in after
    assert after.index("features have collapsed") < after.index("Did it learn?")
    assert "complete, with alarms" in after and "complete, with alarms" not in before


# --- missing parts


def test_a_run_that_has_just_begun_says_what_to_run(run_uri: str) -> None:
    for name in (
        "metrics.jsonl", "evaluation.json", "forgotten.json", "mining.json", "config.yaml"
    ):  # fmt: skip
        (Path(run_uri) / name).unlink()
    (Path(run_uri) / MANIFEST).unlink()
    edit(run_uri, "run.json", lambda r: r.update(status="running", stages={}, data=None))
    page = page_of(run_uri)
    for stage in ("ingest", "train", "evaluate", "mine"):
        assert f"python pipeline/run.py {stage} --resume {run_uri}" in page.text
    assert "No end is recorded" in page.text and charts(page) == []


def test_a_failed_run_shows_its_error(run_uri: str) -> None:
    error = {"kind": "TrainingError", "id": "E-TRAIN-999", "what": "The loss is not finite"}
    error |= {"where": "step 12", "todo": "lower train.lr_per_256", "exit_code": 6}

    def fail(run: dict[str, Any]) -> None:
        run["status"] = run["stages"]["train"]["status"] = "failed"
        run["stages"]["train"]["error"] = error

    edit(run_uri, "run.json", fail)
    text = page_of(run_uri).text
    assert "The loss is not finite Where: step 12 To do: lower train.lr_per_256 Exit code 6" in text


def test_one_method_only(run_uri: str) -> None:
    file = Path(run_uri) / "metrics.jsonl"
    kept = [line for line in file.read_text().splitlines() if '"sdclr"' not in line]
    file.write_text("\n".join(kept))
    edit(run_uri, "evaluation.json", lambda e: e["models"].pop(0))
    page = page_of(run_uri)
    assert "SimCLR · 60 epochs" in page.text and "SDCLR minus SimCLR" not in page.text
    assert "Is SimCLR better than the untrained network on Few?" in page.text
    assert "Weights kept" not in page.text


def test_unlabelled_images_have_no_empty_sections(run_uri: str) -> None:
    def unlabel(manifest: dict[str, Any]) -> None:
        manifest["class_names"] = None
        manifest["sets"] = {"pretrain": {"rows": 400, "class_counts": None, "shards": []}}
        manifest["image"] = {"encoding": "original", "height_px": None, "width_px": None}
        manifest["config"] = {"data": {"path": "/home/me/clothing/flat"}}
        manifest["source"] = {"kind": "folder"}

    def unlabel_images(forgotten: dict[str, Any]) -> None:
        forgotten["group_mean"] = None
        for item in forgotten["most"] + forgotten["least"]:
            item["label"] = None

    (Path(run_uri) / "evaluation.json").unlink()
    edit(run_uri, MANIFEST, unlabel)
    edit(run_uri, "forgotten.json", unlabel_images)
    edit(run_uri, "mining.json", lambda m: m.update(findings=None, groups=None, class_names=None))
    page = page_of(run_uri)
    assert "clothing/flat, 400 images" in page.texts
    assert "no label" not in page.texts
    for absent in ("Scores", "Accuracy by class", "evaluate --resume", "histogram"):
        assert absent not in page.text, absent
    assert "Did it learn?" in page.text and "on Few" not in page.text
    assert page.all("img")


def test_a_loss_that_became_null_leaves_a_gap(run_uri: str) -> None:
    file = Path(run_uri) / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    [row for row in rows if row["kind"] == "step"][-1]["loss"] = None
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "not finite" in page_of(run_uri).text


def test_a_hundred_classes_and_fifty_layers(tmp_path: Path) -> None:
    names, layers = [f"class {i}" for i in range(100)], [f"conv{i}.weight" for i in range(53)]
    uri = records.write_run(tmp_path, names=names, layers=layers)
    page = page_of(uri)
    assert_inert(page)
    assert "100 classes from 150 to 3 images" in page.text and "logarithm" not in page.text
    assert Path(uri, "report.html").stat().st_size < 700_000


def test_a_missing_or_broken_record_is_named(run_uri: str) -> None:
    (Path(run_uri) / "evaluation.json").write_text("{")
    with pytest.raises(DataError) as caught:
        write_report(run_uri)
    assert caught.value.id == "E-DATA-086" and caught.value.where.endswith("evaluation.json")
    with pytest.raises(DataError) as caught:
        write_report(run_uri + "-other")
    assert caught.value.id == "E-DATA-085"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("evaluation.json", lambda e: e["models"][0].pop("scores")),
        ("forgotten.json", lambda f: f.update(most=3)),
        ("mining.json", lambda m: m.update(map=None)),
        ("run.json", lambda r: r.update(stages=[])),
        (MANIFEST, lambda m: m.update(sets=[])),
    ],
)
def test_a_record_of_another_shape_is_named(run_uri: str, name: str, change: Any) -> None:
    edit(run_uri, name, change)
    with pytest.raises(DataError) as caught:
        write_report(run_uri)
    assert caught.value.id in ("E-DATA-100", "E-DATA-200") and caught.value.where.endswith(
        Path(name).name
    )
