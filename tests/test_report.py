from __future__ import annotations

import csv
import json
import re
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.record.evaluation import Score
from pipeline.record.keeper import RunRecord
from pipeline.record.provenance import versions
from pipeline.record.rows import AlarmPart, HealthRow
from pipeline.record.scores import ABSENT
from pipeline.report.charts.svg import shorten
from pipeline.report.facts import facts_section
from pipeline.report.head import head
from pipeline.report.inputs import load
from pipeline.report.page import write_report
from pipeline.report.verdict import Answer, few_variance, learned, verdict
from tests import records

VOID = {"meta", "img", "br", "hr", "input", "link", "path"}
HOSTILE = [
    "<script>alert(1)</script>", '"><img src=http://evil.example/x onerror=alert(1)>',
    "{{ 7*7 }}", "javascript:alert(1)", "a\x00b\x1b[31m", "' style='background:url(//e)'",
]  # fmt: skip
OUR_PAGES = ("report.html", "mining.html", "best.yaml", "curation/selected.csv",
             "curation/duplicates.csv", "curation/across_sets.csv")  # fmt: skip
SECRET = "hunter2-Zq81"
COLLAPSE = AlarmPart(name="collapse", level="alarm", text="collapsing", change="")
MANIFEST = "../../data/digits-lt/manifest.json"


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on tags that are not nested properly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(run_uri: str) -> Page:
    return Page(Path(write_report(run_uri)).read_text(encoding="utf-8"))


def assert_inert(page: Page) -> None:
    """Nothing runs, nothing is loaded: no script, no handler, no address but our own pages."""
    allowed = {"figure", "figcaption", "style", "svg", "path", "rect", "text", "circle", "title"}
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {
        tag for tag, _ in page.elements if tag not in allowed
    }
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style", (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                assert value is not None and (
                    value in ("", *OUR_PAGES)
                    or value.startswith(("#", "../", "data:image/png;base64,"))
                )


def edit(run_uri: str, name: str, change: Any) -> None:
    file = Path(run_uri) / name
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def knn_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    score: dict[str, Any] = evaluation["models"][0]["scores"][2]
    return score


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return records.write_run(tmp_path)


def charts(page: Page) -> list[str]:
    """What a screen reader says of each drawing."""
    return [str(a["aria-label"]) for a in page.all("svg") if a.get("class") == "chart"]


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


# --- hostile content


@pytest.mark.promise("S8")
def test_hostile_names_are_inert(tmp_path: Path) -> None:
    names = HOSTILE + [f"plain {i}" for i in range(4)]
    run_uri = records.write_run(tmp_path, names=names, layers=[*HOSTILE, "conv1.weight"])
    change = {"id": HOSTILE[0], "png_base64": '"><script>', "label": 1}
    edit(run_uri, "forgotten.json", lambda f: f["most"][0].update(change))
    edit(run_uri, "forgotten.json", lambda f: f["most"][1].update(label=99, png_base64="aGk="))
    edit(run_uri, "evaluation.json", lambda e: e["models"][2].update(name=HOSTILE[1]))
    error = dict.fromkeys(("kind", "id", "what", "where", "todo"), HOSTILE[0]) | {"exit_code": 1}

    def fail(run: dict[str, Any]) -> None:
        run |= {"run": HOSTILE[0], "command": HOSTILE[1], "status": "failed"}
        run["stages"]["train"] |= {"status": "failed", "error": error}

    edit(run_uri, "run.json", fail)
    (Path(run_uri) / "config.yaml").write_text("</pre><script>alert(1)</script>")
    page = page_of(run_uri)
    assert_inert(page)
    assert HOSTILE[0] in page.texts and HOSTILE[1] in page.text  # shown as characters
    assert "{{ 7*7 }}" in page.text and "49" not in page.texts
    assert page.text.count("no image") == 2
    text = Path(run_uri, "report.html").read_text()
    assert "\x00" not in text and "\x1b" not in text


@pytest.mark.promise("S8", control=True)
def test_the_check_for_inert_pages_can_fail() -> None:
    for bad in ("<script></script>", '<p onclick="x"></p>', '<img src="http://e/x">'):
        with pytest.raises(AssertionError):
            assert_inert(Page(bad))


def write_secret(run_uri: str) -> str:
    edit(run_uri, "run.json", lambda r: r.update(command=f"run.py key={SECRET}"))
    edit(run_uri, "evaluation.json", lambda e: e["models"][0]["scores"][0].update(note=SECRET))
    with (Path(run_uri) / "config.yaml").open("a") as file:
        file.write(f"note: {SECRET}\nurl: s3://me:{'pw' + SECRET[2:]}@host/x\n")
    return Path(write_report(run_uri)).read_text()


@pytest.mark.promise("S5")
def test_secrets_are_not_on_the_page(run_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", SECRET)
    text = write_secret(run_uri)
    assert SECRET not in text and "note: ***" in text
    assert SECRET[2:] not in text  # userinfo goes even when the environment does not know it


@pytest.mark.promise("S5", control=True)
def test_the_search_for_secrets_can_find_one(run_uri: str) -> None:
    assert write_secret(run_uri).count(SECRET) == 3


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


# --- the answers at the top


def test_the_answers_come_first_with_their_numbers(run_uri: str) -> None:
    text = page_of(run_uri).text
    first, last = text.index("Did it learn?"), text.index("Accuracy in percent")
    for question in ("Is SDCLR better than SimCLR on Few?", "than the untrained network on Few?"):
        assert first < text.index(question) < last
    assert "% before training), RankMe from" in text and "95 % interval" in text
    assert "n = 60 images" in text  # three rare classes with 20 test images each


@pytest.mark.parametrize(
    ("sdclr", "simclr", "word"),
    [(0.9, 0.4, "Yes"), (0.4, 0.9, "No, worse"), (0.62, 0.6, "No difference shown")],
)
def test_a_difference_counts_only_beyond_its_interval(
    run_uri: str, sdclr: float, simclr: float, word: str
) -> None:
    def level(evaluation: dict[str, Any]) -> None:
        for model, few in zip(evaluation["models"], (sdclr, simclr, 0.1), strict=True):
            for score in model["scores"]:
                score["few"] = few
                score["per_class"] = [few] * 10

    edit(run_uri, "evaluation.json", level)
    found = load(run_uri)
    _, answer, _ = verdict(found).answers
    assert answer.word == word
    edit(run_uri, MANIFEST, lambda m: m["sets"]["test"].update(class_counts=None))
    _, answer, _ = verdict(load(run_uri)).answers
    assert answer.word == "Unclear"  # without the numbers of images there is no interval


def test_protocols_that_disagree_are_not_one_answer(run_uri: str) -> None:
    def split(evaluation: dict[str, Any]) -> None:
        for model, levels in zip(
            evaluation["models"], ((0.9, 0.2, 0.5), (0.2, 0.9, 0.5), (0.1,) * 3), strict=True
        ):
            for score, few in zip(model["scores"], levels, strict=True):
                score.update(few=few, per_class=[few] * 10)

    edit(run_uri, "evaluation.json", split)
    _, answer, _ = verdict(load(run_uri)).answers
    assert answer.word == "It depends on the protocol"
    assert [" by " in text for text in answer.texts[1:]] == [True] * 3
    assert [text.partition(" by ")[0] for text in answer.texts[1:]] == [
        "Better", "Worse", "No difference",
    ]  # fmt: skip


def test_more_test_images_narrow_the_interval() -> None:
    score = Score(
        protocol="x",
        n=1,
        many=None,
        medium=None,
        few=0.5,
        std=None,
        all=None,
        per_class=(0.5, 0.5),
        spread=None,
        note="",
    )
    wide, narrow = (few_variance(score, (0, 1), (n, n)) for n in (10, 1000))
    assert narrow == pytest.approx(0.25 / 1004 / 2) and wide > 50 * narrow
    certain = score.model_copy(update={"per_class": (1.0, 1.0)})
    assert few_variance(certain, (0, 1), (10, 10)) > 0


def test_a_class_without_test_images_makes_no_interval_narrower() -> None:
    def of(*per_class: float | None) -> Score:
        return Score(
            protocol="x", n=1, many=None, medium=None, few=0.5, std=None, all=None,
            per_class=per_class, spread=None, note="",
        )  # fmt: skip

    three = few_variance(of(0.0, 0.0, 2 / 3), (0, 1, 2), (3, 3, 3))
    assert few_variance(of(0.0, 0.0, 2 / 3, None), (0, 1, 2, 3), (3, 3, 3, 0)) == three
    # 2 of 9 images against 0 of 9 is no difference.
    other = few_variance(of(0.0, 0.0, 0.0), (0, 1, 2), (3, 3, 3))
    assert 1.96 * (three + other) ** 0.5 > 2 / 9


@pytest.mark.parametrize(
    ("before", "after", "alarms", "word"),
    [
        (0.01, 0.5, (), "Yes"),
        (0.2, 0.21, (), "Not shown"),
        (0.2, 0.2, (), "No"),
        (1.0, 1.0, (), "Not shown"),
        (0.2, 0.21, (COLLAPSE,), "No"),
        (0.2, 0.26, (), "Yes"),
        (0.5, 0.1, (), "No"),
        (0.01, 0.5, (COLLAPSE,), "With alarms"),
        (0.5, 0.1, (COLLAPSE,), "No"),
        (0.1, None, (), "No"),
    ],
)
def test_learning_is_a_rise_beyond_chance(
    before: float, after: float | None, alarms: tuple[AlarmPart, ...], word: str
) -> None:
    rows = [
        HealthRow(
            method="sdclr", seed=0, epoch=step, step=step, num_images=400, alarms=found,
            measures={"view_retrieval": value, "rankme": 9.0}, wall_s=0.1, time_s=1.0,
        )
        for step, value, found in ((0, before, ()), (9, after, alarms))
    ]  # fmt: skip
    assert learned({"sdclr": rows[-1]}, rows).word == word


def test_a_rise_within_chance_has_its_figures_and_margin_and_two_methods_one_word() -> None:
    def row(method: str, step: int, share: float) -> HealthRow:
        return HealthRow(
            method=method, seed=0, epoch=step, step=step, num_images=250, alarms=(),
            measures={"view_retrieval": share, "rankme": 9.0}, wall_s=0.1, time_s=1.0,
        )  # fmt: skip

    def answer(**ends: tuple[float, float]) -> Answer:
        rows = [row(m, step, pair[step]) for m, pair in ends.items() for step in (0, 1)]
        return learned({one.method: one for one in rows}, rows)

    slight = answer(sdclr=(0.08, 0.104))
    assert (slight.word, slight.tone) == ("Not shown", "open")
    claim = "8.0 to 10.4 %: a rise of less than 5.2 points is within chance for 250 images"
    assert claim in slight.texts[0]
    sure = answer(sdclr=(0.08, 0.14))
    assert (sure.word, sure.tone) == ("Yes", "good") and "within chance" not in sure.texts[0]
    for other, word, tone in (((0.08, 0.5), "Partly", "open"), ((0.08, 0.02), "No", "bad")):
        found = answer(sdclr=(0.08, 0.104), simclr=other)
        assert (found.word, found.tone) == (word, tone)


# --- what a reader sees


def test_only_an_axis_that_does_not_begin_at_0_is_said_not_to(run_uri: str) -> None:
    def classes(low: float) -> Page:
        def change(evaluation: Any) -> None:
            for model in evaluation["models"]:
                model["scores"][0]["per_class"][-1] = low
                for score in model["scores"][1:]:
                    score["per_class"] = [0.9] * len(score["per_class"])

        edit(run_uri, "evaluation.json", change)
        return page_of(run_uri)

    sentence = "The axis does not begin at 0."
    cut, whole = classes(0.9).text.count(sentence), classes(0.0).text.count(sentence)
    assert (cut, whole) == (3, 2)


def test_layers_differ_after_shortening(tmp_path: Path) -> None:
    layers = [f"backbone.layer1.{i}.conv1.weight" for i in range(4)]
    page = page_of(records.write_run(tmp_path, layers=layers))
    assert {f"layer1.{i}.conv1" for i in range(4)} <= set(page.texts)
    assert "backbone." not in page.text


def test_a_cut_name_keeps_its_end() -> None:
    names = [f"a long name of a class of animals, number {n}" for n in range(20)]
    cut = [shorten(name, 16) for name in names]
    assert len(set(cut)) == 20 and max(map(len, cut)) == 16 and cut[0].startswith("a long")
    assert [shorten("ab", n) for n in (1, 2)] == ["a…", "ab"]


@pytest.mark.parametrize(
    ("few", "says"),
    [
        ({}, "+0.158 ± 0.051: pruning forgets rare classes first"),
        ({"half": 0.2}, "± 0.200: pruning is not shown to forget rare classes first"),
        ({"mean": 0.1}, "-0.113 ± 0.051: pruning forgets frequent classes first"),
        ({"images": 1, "half": None}, "0.371, 1 image"),
    ],
)
def test_disagreement_by_group_has_its_images_and_what_it_shows(
    run_uri: str, few: dict[str, Any], says: str
) -> None:
    edit(run_uri, "forgotten.json", lambda f: f["group_mean"]["few"].update(few))
    text = page_of(run_uri).text
    assert says in text and "0.213 ± 0.010, 400 images" in text


def test_facts_that_are_not_known_are_left_out(run_uri: str) -> None:
    def forget(run: dict[str, Any]) -> None:
        run["versions"]["jinja2"] = None
        run["hardware"]["memory_bytes"] = None
        run["data"] = None

    edit(run_uri, "run.json", forget)
    facts = {name: dict(pairs) for name, pairs in facts_section(load(run_uri))}
    assert "jinja2" not in facts["Versions"] and "torch" in facts["Versions"]
    assert "Data" not in facts and "CPUs" in facts["Hardware"]
    assert not {ABSENT, ""} & {value for pairs in facts.values() for value in pairs.values()}
    assert versions()["sdclr"]  # a checkout knows its own


def test_the_rankme_of_an_alarm_says_what_it_is_of(run_uri: str) -> None:
    """Pages that rank have another one, of the vectors they rank by."""
    inputs = load(run_uri)
    assert not head(inputs, "", ()).alarms
    health = [row.model_copy(update={"alarms": (COLLAPSE,)}) for row in inputs.health]
    (_, text, _), *_ = head(replace(inputs, health=health), "", ()).alarms
    assert text == "collapsing (random crops of 391 images, in training)"


def test_epochs_count_trained_ones_everywhere(run_uri: str) -> None:
    page = page_of(run_uri)
    assert "60 epochs" in page.text and "Weights kept per layer, epoch 60" in page.text
    row = page.texts.index("1198 of 1200")
    assert page.texts[row + 1] == "60"


def test_only_what_resumed_the_training_is_listed_as_resumed(run_uri: str) -> None:
    stages = ("report", "mine", "evaluate", "export", "train")
    notes = [{"utc": s, "command": f"pipeline/run.py {s} --resume {run_uri}"} for s in stages]
    edit(run_uri, "run.json", lambda r: r.update(resumes=notes))
    page = page_of(run_uri)
    assert page.texts.count("Resumed") == 1 and "train --resume" in page.text
    assert "report --resume" not in page.text


def test_every_value_shows_under_the_pointer(run_uri: str) -> None:
    text = Path(write_report(run_uri)).read_text()
    for value in ("zero: 150", "epochs trained 0: SDCLR", "zero, SDCLR: ", "SDCLR minus SimCLR, "):
        assert re.search(rf"<title>[^<]*{value}", text), value


@pytest.mark.parametrize(
    ("stage", "command"), [("train", "--resume"), ("tune", "tune --resume"), ("evaluate", None)]
)
def test_an_interrupted_run_says_the_whole_command(
    stage: str, command: str | None, tmp_path: Path
) -> None:
    uri = str(tmp_path / "my run")
    record = RunRecord.create(uri, name="r", config_hash="ab", seed=0, argv=["x"])
    with suppress(KeyboardInterrupt), record.stage(stage):
        raise KeyboardInterrupt
    record.finish()
    error = head(load(uri), "", ()).error
    assert error is not None and error.id == "E-STOP-001"
    whole = f"run.py {command} '{uri}'"
    assert error.todo.endswith(whole) if command else error.todo == "resume with --resume"


def test_a_failed_run_says_what_its_error_does(tmp_path: Path) -> None:
    record = RunRecord.create(str(tmp_path), name="r", config_hash="ab", seed=0, argv=["x"])
    record.fail(DataError("E-DATA-001", "a", where="b", todo="start a new run"), stage="train")
    error = head(load(str(tmp_path)), "", ()).error
    assert error is not None and error.todo == "start a new run"
