"""mining.html and comparison.html: inert, whole, and showing the numbers of the records."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.console import Console
from pipeline.errors import ConfigError, DataError
from pipeline.record.gallery import Gallery, gallery_uri
from pipeline.record.mining import Mining
from pipeline.report.charts.scatter import Cloud, scatter
from pipeline.report.compared import Compared, compared
from pipeline.report.comparison import (
    compare,
    method_differences,
    run_differences,
    write_comparison,
)
from pipeline.report.inputs import load
from pipeline.report.links import relative
from pipeline.report.mining import batch_text, evidence, findings_rows
from pipeline.report.mining_page import write_mining_page
from tests import records
from tests.pages import HOSTILE, Page, assert_inert, charts, edit


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return records.write_run(tmp_path)


def csv_rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def mining_page(run_uri: str) -> Page:
    place, _ = write_mining_page(run_uri)
    return Page(Path(place).read_text(encoding="utf-8"))


def without_our_script(run_uri: str) -> Page:
    """The page less its one script, whose hash the content policy must name."""
    place, _ = write_mining_page(run_uri)
    text = Path(place).read_text(encoding="utf-8")
    start, stop = text.index("<script>") + len("<script>"), text.index("</script>")
    digest = base64.b64encode(hashlib.sha256(text[start:stop].encode()).digest()).decode()
    policy = Page(text).all("meta")[2]["content"]
    assert policy is not None and f"script-src 'sha256-{digest}';" in policy
    assert text.count("<script") == 1
    return Page(text[: start - len("<script>")] + text[stop + len("</script>") :])


def cards(page: Page, list_id: str) -> list[str]:
    """Paths of the images of a list, in order."""
    ids = [a.get("id") for _, a in page.elements]
    start = ids.index(list_id)
    stop = next(k for k in range(start + 1, len(ids)) if page.elements[k][0] == "section")
    return [str(a["data-path"]) for tag, a in page.elements[start:stop] if tag == "template"]


def test_the_evidence_comes_before_any_picture(run_uri: str) -> None:
    place, _ = write_mining_page(run_uri)
    text = Path(place).read_text()
    for claim in ("Better than chance", "AUROC 0.812 (95 % interval 0.762 to 0.862"):
        assert text.index(claim) < text.index("<img")
    page = mining_page(run_uri)
    assert "31 are of rare classes; 5.0 would be by chance" in page.text
    assert "0.762 to 0.862" in page.texts and "chance" in page.texts


def test_classes_that_are_as_rare_are_named_with_the_evidence(run_uri: str) -> None:
    assert "Not counted" not in mining_page(run_uri).text
    edit(run_uri, "mining.json", lambda m: m["findings"].update(tied_classes=["owl", "pike"]))
    assert "Not counted, though they have as few images: owl and pike." in mining_page(run_uri).text


def test_a_batch_of_all_images_is_no_choice(run_uri: str) -> None:
    found = Mining.read(str(Path(run_uri) / "mining.json")).findings
    assert found is not None
    assert "by chance" in batch_text(found)
    num_images = sum(place.count for place in found.classes)
    whole = found.model_copy(
        update={"batch": found.batch.model_copy(update={"images": num_images})}
    )
    assert "mine.batch_images" in batch_text(whole) and "by chance" not in batch_text(whole)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.6, 0.8, "Better than chance"), (0.4, 0.7, "No better than chance"),
     (0.2, 0.4, "Worse than chance")],
)  # fmt: skip
def test_better_than_chance_needs_an_interval_above_one_half(
    run_uri: str, low: float, high: float, word: str
) -> None:
    change = {"auroc": (low + high) / 2, "auroc_low": low, "auroc_high": high}
    edit(run_uri, "mining.json", lambda m: m["findings"]["scores"][0].update(change))
    _, found = write_mining_page(run_uri)
    assert evidence(found).word == word


def test_alarms_of_the_run_stand_on_the_page(run_uri: str) -> None:
    file = Path(run_uri) / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    alarm = {"name": "collapse", "level": "alarm", "text": "features are collapsing", "change": ""}
    [row for row in rows if row["kind"] == "health"][-1]["alarms"] = [alarm]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = mining_page(run_uri).text
    assert text.index("features are collapsing") < text.index("Rarest first")


def test_lists_are_in_order_with_path_class_and_neighbours(run_uri: str) -> None:
    page = without_our_script(run_uri)
    assert_inert(page)
    gallery = Gallery.read(gallery_uri(run_uri))
    for name in ("rarest", "annotate", "commonest"):
        places = getattr(gallery, name)
        paths = [f"/photos/my digits/{gallery.images[i].id}" for i in places]
        assert cards(page, name) == paths
    known = [a["data-place"] for _, a in page.elements if "data-place" in a]
    near = [a["data-near"] for a in page.all("template") if a["data-near"]]
    assert {place for text in near for place in str(text).split()} <= set(known)
    assert all(a["alt"] for a in page.all("img") if a.get("src"))
    options = [a["value"] for a in page.all("option")]
    assert set(records.DIGITS) <= set(options) and {"1", "2", "3"} <= set(options)


def test_larger_pictures_are_embedded_once(run_uri: str) -> None:
    page = mining_page(run_uri)
    large = [a["data-large"] for a in page.all("template") if a["data-large"]]
    assert len(large) == 8 == len(set(large))


def test_the_page_and_the_report_link_to_each_other(run_uri: str) -> None:
    page = mining_page(run_uri)
    targets = [str(a["href"]) for a in page.all("a")]
    ids = {a["id"] for _, a in page.elements if a.get("id")}
    assert "report.html" in targets
    assert {t[1:] for t in targets if t.startswith("#")} <= ids


def test_findings_are_a_csv_as_well(run_uri: str) -> None:
    write_mining_page(run_uri)
    rows = csv_rows(Path(run_uri) / "mining" / "findings.csv")
    assert len(rows) == 6
    assert {row["network"]: float(row["auroc"]) for row in rows} == {
        "trained": 0.812,
        "untrained": 0.577,
    }


def test_labels_that_came_back_stand_beside_the_evidence(run_uri: str) -> None:
    assert "By the given labels" not in mining_page(run_uri).text
    labelled = {
        "csv": "l.csv", "rare": ["<b>eel"], "absent": [], "rare_by_count": True,
        "suggested": 100, "labelled": 40, "others": 2, "hits": 10,
        "precision": 0.25, "low": 0.14, "high": 0.4,
        "first": {"10": 0.5, "25": 0.32}, "classes": {"cat": 30, "<b>eel": 10},
    }  # fmt: skip
    edit(run_uri, "mining.json", lambda m: m.update(labelled=labelled))
    page = mining_page(run_uri)
    assert "10 of 40" in page.text and "50 % of the first 10" in page.text
    assert "<b>eel" in page.text and not page.all("b")
    edit(run_uri, "mining.json", lambda m: m.update(findings=None, groups=None))
    text = mining_page(run_uri).text
    assert "10 of 40" in text and "Not checked" not in text


def test_the_row_of_chance_is_the_share_of_the_rare_classes(run_uri: str) -> None:
    _, found = write_mining_page(run_uri)
    assert found.findings is not None
    chance = findings_rows(found.findings)[-1]
    assert chance == ("chance", "–", "0.500", "–", "5.0 %", "5.0 %", "5.0 %")


def test_without_labels_nothing_is_claimed_and_the_map_shows_ranks(run_uri: str) -> None:
    edit(run_uri, "mining.json", lambda m: m.update(findings=None, groups=None, class_names=None))
    page = mining_page(run_uri)
    assert "Not checked" in page.text and "rarest quarter" in page.text
    assert "Against the labels" not in page.text and "no label" not in page.texts
    assert "#1" in page.texts  # cards are named by rank
    assert not (Path(run_uri) / "mining" / "findings.csv").exists()


@pytest.mark.promise("S8")
def test_hostile_names_are_inert(tmp_path: Path) -> None:
    run_uri = records.write_run(tmp_path, names=[*HOSTILE, "a", "b", "c"])

    def spoil(gallery: dict) -> None:  # type: ignore[type-arg]
        gallery["folder"] = ""
        for image, name in zip(gallery["images"], [*HOSTILE, "</script><script>x"], strict=False):
            image["id"] = name
        gallery["images"][0].update(thumb='"><script>', large="javascript:alert(1)")

    edit(run_uri, "mining/gallery.json", spoil)
    edit(run_uri, "mining.json", lambda m: m["data"].update(name=HOSTILE[1]))
    page = without_our_script(run_uri)
    assert_inert(page)
    paths = [str(a["data-path"]) for a in page.all("template")]
    assert HOSTILE[0] in paths and "</script><script>x" in paths  # shown as characters
    assert page.text.count("no image") == 2  # in the list of rare images and in the batch
    assert not any("javascript" in str(a["data-large"]) for a in page.all("template"))


def test_a_gallery_of_another_shape_is_named(run_uri: str) -> None:
    edit(run_uri, "mining/gallery.json", lambda g: g.update(images=3))
    with pytest.raises(DataError) as caught:
        write_mining_page(run_uri)
    assert caught.value.id == "E-DATA-100" and caught.value.where.endswith("gallery.json")
    Path(gallery_uri(run_uri)).unlink()
    with pytest.raises(DataError) as caught:
        write_mining_page(run_uri)
    assert caught.value.id == "E-DATA-085"


def test_points_are_placed_to_one_scale_and_gaps_left_out() -> None:
    drawing = scatter([Cloud("a", "c1", [0.0, 2.0], [0.0, 1.0], ["p", "q"])], label="map")
    assert drawing.count("<circle") == 2 and "<title>q</title>" in drawing
    with_gap = scatter(
        [Cloud("a", "c1", [0.0, 2.0, float("nan")], [0.0, 1.0, 1.0], ["p", "q", "r"])], label="map"
    )
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


def loaded(uris: list[str]) -> list[Compared]:
    return compared([load(uri) for uri in uris], "/elsewhere")


def test_differences_of_methods_are_taken_within_each_run(tmp_path: Path) -> None:
    runs = loaded(two_runs(tmp_path))
    entries = method_differences(runs)
    (entry,) = (
        e for e in entries if (e.protocol, e.a, e.b) == ("cached-linear", "sdclr", "simclr")
    )
    slow = []
    for run in runs:
        few = [run.scores("cached-linear")[name].few for name in ("sdclr", "simclr")]
        assert few[0] is not None and few[1] is not None
        slow.append(few[0] - few[1])
    assert slow[1] - slow[0] == pytest.approx(0.08)
    mean, spread = sum(slow) / 2, abs(slow[1] - slow[0]) / 2**0.5
    assert entry.n == 2 and entry.few == pytest.approx(mean)
    assert entry.half("few") == pytest.approx(12.706 * spread / 2**0.5, rel=1e-3)
    assert len(entries) == 3 * 3


def test_differences_of_runs_are_taken_class_by_class(tmp_path: Path) -> None:
    uris = two_runs(tmp_path)
    by_model = {e.model: e for e in run_differences(loaded(uris)) if e.protocol == "knn-k20"}
    assert by_model["sdclr"].mean == pytest.approx(0.05)
    assert by_model["sdclr"].half_width == pytest.approx(0, abs=1e-9)
    assert (by_model["sdclr"].n, by_model["sdclr"].rose) == (10, 10)

    def worse(evaluation: dict) -> None:  # type: ignore[type-arg]
        evaluation["models"][0]["scores"][2]["per_class"][0] -= 1

    edit(uris[1], "evaluation.json", worse)
    changed = next(e for e in run_differences(loaded(uris)) if e.protocol == "knn-k20")
    assert changed.half_width is not None and changed.half_width > 0.1 and changed.fell == 1


def test_the_page_of_a_comparison(tmp_path: Path) -> None:
    uris = two_runs(tmp_path)
    (Path(uris[1]) / "config.yaml").write_text("sdclr:\n  prune_ratio: 0.5\n")
    place = Path(write_comparison(uris, str(tmp_path)))
    page = Page(place.read_text())
    assert_inert(page)
    assert "2 runs side by side" in page.text
    assert "seed 8 minus seed 7" in page.texts and "+5.0 ± 0.0 *" in page.texts
    row = page.texts.index("sdclr.prune_ratio")
    assert page.texts[row + 1 : row + 3] == ["0.9", "0.5"]
    assert any(label.startswith("Differences on Few") for label in charts(page))
    links = [str(a["href"]) for a in page.all("a")]
    targets = [(place.parent / link).resolve() for link in links if link.endswith("report.html")]
    assert targets == [(Path(uri) / "report.html").resolve() for uri in uris]
    rows = csv_rows(place.parent / "scores.csv")
    assert len(rows) == 2 * 3 * 3 and {row["run"] for row in rows} == {"demo", "other"}
    assert len(json.loads((place.parent / "differences.json").read_text())["methods"]) == 9
    assert Path(write_comparison(uris, str(tmp_path))) == place


def test_a_comparison_answers_first_and_says_what_is_no_difference(tmp_path: Path) -> None:
    uris = two_runs(tmp_path)

    def answers() -> list[str]:
        texts = Page(Path(write_comparison(uris, str(tmp_path))).read_text()).texts
        return texts[: texts.index("Runs")]

    found = answers()
    better = found.index("Is SDCLR better than SimCLR on Few?")
    assert found[found.index("Did they learn?") + 1] == "Yes"

    def lead(points: float) -> Callable[[dict], None]:  # type: ignore[type-arg]
        def change(evaluation: dict) -> None:  # type: ignore[type-arg]
            ours, theirs = (model["scores"] for model in evaluation["models"][:2])
            for mine, other in zip(ours, theirs, strict=True):
                mine["few"] = other["few"] + points

        return change

    for points, word in ((0.1, "Yes"), (-0.1, "No difference shown")):
        edit(uris[0], "evaluation.json", lead(0.1))
        edit(uris[1], "evaluation.json", lead(points))
        assert answers()[better + 1] == word

    def collapsed(row: dict) -> dict:  # type: ignore[type-arg]
        if row["kind"] == "health":
            row["measures"]["view_retrieval"] = 0.0
        return row

    metrics = Path(uris[1]) / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(collapsed(row)) + "\n" for row in rows))
    assert answers()[found.index("Did they learn?") + 1] == "Not all"
    unmoved = [row | {"measures": {"view_retrieval": 0.1 + 1e-5 * row["step"]}}
               if row["kind"] == "health" else row for row in rows]  # fmt: skip
    first = Path(uris[0]) / "metrics.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in unmoved))
    assert answers()[found.index("Did they learn?") + 1] == "None shown"
    assert any("No: 1" in text and "Not shown: 1" in text for text in answers())


def test_runs_of_one_seed_are_named_by_what_differs(tmp_path: Path) -> None:
    uris = [records.write_run(tmp_path / name) for name in "abc"]
    (Path(uris[1]) / "config.yaml").write_text("sdclr:\n  prune_ratio: 0.5\n")
    names = [run.label for run in loaded(uris)]
    assert len(set(names)) == 3
    assert names[1] == "digits, seed 7, sdclr.prune_ratio 0.5"


def test_a_single_run_says_nothing_about_chance(tmp_path: Path) -> None:
    place = Path(write_comparison([records.write_run(tmp_path)], str(tmp_path)))
    page = Page(place.read_text())
    assert "says nothing about chance" in page.text
    assert "asterisk" not in page.text and "All differences as a table" in page.text
    two = Page(Path(write_comparison(two_runs(tmp_path / "two"), str(tmp_path))).read_text())
    assert "asterisk" in two.text and "Are these runs of the same images?" not in two.texts


def test_runs_of_other_images_are_compared_with_a_warning(tmp_path: Path) -> None:
    uris = [records.write_run(tmp_path / name) for name in ("a", "b", "c")]
    question, manifest = "Are these runs of the same images?", "../../data/digits-lt/manifest.json"
    for uri, rows in zip(uris, (1797, 2010, 5), strict=True):  # splits of one source
        edit(uri, manifest, lambda m, rows=rows: m["sets"]["pretrain"].update(rows=rows))
    assert all(run.label.startswith("digits, seed 7") for run in loaded(uris))
    texts = Page(Path(write_comparison(uris, str(tmp_path))).read_text()).texts
    assert question not in texts and texts[texts.index("3 runs side by side") - 1] == "digits"

    def cats(content: dict) -> None:  # type: ignore[type-arg]
        content["source"]["kind"] = "folder"
        content["config"].setdefault("data", {})["path"] = "/photos/cats"

    edit(uris[1], manifest, cats)
    (Path(uris[2]) / manifest).unlink()  # nothing is known of the third one
    texts = Page(Path(write_comparison(uris, str(tmp_path))).read_text()).texts
    asked = texts.index(question)
    assert texts[asked + 1] == "No" and "digits and photos/cats" in texts[asked + 2]


def test_the_names_of_compared_runs_stay_short(tmp_path: Path) -> None:
    uris = [records.write_run(tmp_path / name) for name in ("a", "b")]
    start = "/a/long/way/models/{method}/backbone.safetensors"
    text = f"sdclr:\n  prune_ratio: 0.9\ntrain:\n  epochs: 9\n  init_from: {start}\n"
    (Path(uris[1]) / "config.yaml").write_text(text)  # as an extended run has it
    first, second = (run.label for run in loaded(uris))
    assert "train.epochs 9" in second and first != second
    assert start not in first + second


def test_unlabelled_runs_are_compared_by_their_health(tmp_path: Path) -> None:
    uris = two_runs(tmp_path)
    for uri in uris:
        edit(uri, "../../data/digits-lt/manifest.json", lambda m: m.update(class_names=None))
        (Path(uri) / "evaluation.json").unlink()
    page = Page(Path(write_comparison(uris, str(tmp_path))).read_text())
    assert_inert(page)
    assert "Scores" not in page.text and "evaluate" not in page.text
    assert sum(label.startswith("RankMe over epochs") for label in charts(page)) == 2


@pytest.mark.parametrize(
    ("uri", "folder", "link"),
    [
        ("/r/a/report.html", "/r/c", "../a/report.html"),
        ("/r/a #1/report.html", "/r/c", "../a%20%231/report.html"),
        ("s3://b/r/a/report.html", "s3://b/r/c", "../a/report.html"),
        ("s3://b/r/a/report.html", "s3://other/r/c", ""),
        ("/r/a/report.html", "s3://b/r/c", ""),
    ],
)
def test_links_between_folders_are_relative(uri: str, folder: str, link: str) -> None:
    assert relative(uri, folder) == link


def test_the_console_says_where_the_page_is(tmp_path: Path) -> None:
    uris, stream = two_runs(tmp_path), io.StringIO()
    compare([uris[0], "demo"], str(Path(uris[1]).parent), Console(stream))
    beside = f"comparison of 2 runs: {Path(uris[0]).parent}/comparison-"
    assert beside in stream.getvalue()
    with pytest.raises(ConfigError) as caught:
        compare([uris[0], "other"], str(tmp_path), Console(stream))
    assert caught.value.id == "E-CONFIG-031" and "other" in caught.value.what


def test_runs_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    edit(second, "evaluation.json", lambda e: e["class_names"].reverse())
    with pytest.raises(DataError) as caught:
        write_comparison([first, second], str(tmp_path))
    assert caught.value.id == "E-DATA-088"
    (Path(second) / "evaluation.json").unlink()
    with pytest.raises(DataError) as caught:
        write_comparison([first, second], str(tmp_path))
    assert caught.value.id == "E-DATA-027" and f"evaluate --resume {second}" in caught.value.todo
