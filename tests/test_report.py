from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.page import write_report
from tests import records
from tests.refusals import raises

VOID = {"meta", "img", "br", "hr", "input", "link", "path", "rect", "circle"}
HOSTILE = [
    "<script>alert(1)</script>", '"><img src=http://evil.example/x onerror=alert(1)>',
    "{{ 7*7 }}", "javascript:alert(1)", "a\x00b\x1b[31m", "' style='background:url(//e)'",
]  # fmt: skip
SECRET = "hunter2-Zq81"
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
    """Nothing runs and nothing is loaded: no script, no handler, no address but `#` and data:."""
    allowed = {"figure", "figcaption", "style", "svg", "path", "rect", "text", "circle", "title"}
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {
        tag for tag, _ in page.elements if tag not in allowed
    }
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name != "style", (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                assert value is not None and value.startswith(("#", "data:image/png;base64,"))


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


def test_a_whole_run_gives_a_page_that_stands_alone(run_uri: str) -> None:
    text = Path(write_report(run_uri)).read_text(encoding="utf-8")
    page = Page(text)
    assert_inert(page)
    assert "http" not in re.sub(r"http-equiv", "", text) and "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    assert len(page.all("h1")) == 1
    drawings = [a for a in page.all("svg") if a.get("class") == "chart"]
    labels = [str(a["aria-label"]) for a in drawings]
    assert all(a["role"] == "img" for a in drawings) and len(labels) == len(set(labels))
    protocols, groups = ("cached-linear", "cached-fewshot", "knn-k20"), ("Few", "All")
    expected = [f"{group}, {name} over epochs" for name in protocols for group in groups]
    expected += [f"Accuracy by class, most frequent first, {name}" for name in protocols]
    expected += [
        "Mean disagreement", "Map of 200 images", "Images per class", "loss over steps",
        "learning rate over steps", "view retrieval, %", "view retrieval in small clusters",
        "RankMe", "disagreement of the branches", "Weights kept in each", "Weights kept over",
    ]  # fmt: skip
    unseen = [topic for topic in expected if not any(label.startswith(topic) for label in labels)]
    assert unseen == [] and len(labels) == len(expected)
    forgotten = (Path(run_uri) / "forgotten.json").read_text()
    names = [str(a["alt"]).split(", ")[1].removeprefix("image ") for a in page.all("img")]
    assert len(names) == len(set(names)) >= 16 and all(f'"{name}"' in forgotten for name in names)


def test_links_lead_to_sections(run_uri: str) -> None:
    page = page_of(run_uri)
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = [a["href"] for a in page.all("a")]
    assert targets and all(str(target)[1:] in ids for target in targets)


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
    assert page.texts.count("31.0") >= 9  # rare images taken for frequent classes
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
        found = re.findall(r'd="M([\d.]+) [\d.]+H([\d.]+)" class="whisker', text)
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
        ("forgotten.json", lambda f: f["group_mean"].update(few=0.4444), "0.444"),
        ("run.json", lambda r: r["versions"].update(torch="9.8.7"), "9.8.7"),
        ("run.json", lambda r: r["stages"]["train"].update(wall_s=7620.0), "2 h 07 min"),
        ("run.json", lambda r: r["git"].update(commit="f" * 40, dirty=True), "with uncommitted"),
        ("mining.json", lambda m: m["map"]["maps"][0].update(note="55 % of"), "55 % of"),
        ("mining.json", lambda m: m.update(scored=98765), "98765 images"),
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
    assert "fewest in conv1 (0.84 %)" in after
    assert "No alarm" in before and "No alarm" not in after
    assert "SimCLR : alarm: features have collapsed" in after and "3.14" in after


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
    assert "No end is recorded" in page.text
    assert [a for a in page.all("svg") if a.get("class") == "chart"] == []


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
    assert "Only SimCLR was trained" in page.text
    assert "Only SDCLR prunes" in page.text and "SDCLR minus SimCLR" not in page.text


def test_unlabelled_data(run_uri: str) -> None:
    def unlabel(manifest: dict[str, Any]) -> None:
        manifest["class_names"] = None
        manifest["sets"] = {"pretrain": {"rows": 9, "class_counts": None, "shards": []}}
        manifest["image"] = {"encoding": "original", "height_px": None, "width_px": None}

    def unlabel_images(forgotten: dict[str, Any]) -> None:
        forgotten["group_mean"] = None
        for item in forgotten["most"] + forgotten["least"]:
            item["label"] = None

    (Path(run_uri) / "evaluation.json").unlink()
    edit(run_uri, MANIFEST, unlabel)
    edit(run_uri, "forgotten.json", unlabel_images)
    page = page_of(run_uri)
    assert "no labels, so no accuracy" in page.text and "no class histogram" in page.text
    assert "no label" in page.texts and len(page.all("img")) == 32


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
    assert "100 classes from 150 to 3 images" in page.text and "log scale" in page.text
    assert Path(uri, "report.html").stat().st_size < 700_000


def test_a_missing_or_broken_record_is_named(run_uri: str) -> None:
    (Path(run_uri) / "evaluation.json").write_text("{")
    with raises("E-DATA-086") as caught:
        write_report(run_uri)
    assert caught.value.where.endswith("evaluation.json")
    with raises("E-DATA-085"):
        write_report(run_uri + "-other")
