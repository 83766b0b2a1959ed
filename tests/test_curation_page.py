"""curation.html: inert, and showing what curation.json says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.record.curation import PICTURES, AcrossSets, Curation, CurationPictures, NearPair
from pipeline.record.embedding import EmbeddedBy, VectorHealth
from pipeline.record.gallery import Gallery, gallery_uri
from pipeline.record.run import DataRef
from pipeline.report.curation_page import _caption, write_curation_page
from pipeline.report.mining_page import write_mining_page
from pipeline.report.page import write_report
from pipeline.report.pages import write_pages
from tests import records
from tests.pages import COLLAPSE, HOSTILE, Page, assert_inert, charts
from tests.refusals import raises


def curated(run_uri: str, across_sets: int = 2, num_leaves: int = 30) -> Curation:
    thumb = Gallery.read(gallery_uri(run_uri)).images[0].thumb
    pair = NearPair(id=HOSTILE[0], other="b.png", similarity=0.9971)
    across = NearPair(id="t.png", other="b.png", similarity=1.0)
    found = Curation(
        data=DataRef(uri="data", manifest_hash="ab12" * 16, name="digits-lt"),
        set="pretrain",
        weights=EmbeddedBy(name="sdclr", uri=None, sha256="0" * 64),
        similarity=0.99,
        images=500,
        duplicates=7,
        examples=(pair,),
        across_sets=(
            AcrossSets(
                set="test", images=across_sets, of=40, examples=(across,) * (across_sets > 0)
            ),
        ),
        levels=(num_leaves, 5),
        kept=123,
        leaf_images=tuple(range(num_leaves, 0, -1)),
        leaf_kept=(4,) * num_leaves,
    )
    found.write(f"{run_uri}/curation.json")
    CurationPictures(
        thumbs={"pretrain": {HOSTILE[0]: thumb, "b.png": '"><script>'}, "test": {"t.png": thumb}},
        leaves=((HOSTILE[0], "b.png"), ()),
    ).write(f"{run_uri}/{PICTURES}")
    return found


@pytest.mark.parametrize("num_leaves", [5, 30])
def test_the_page_shows_counts_pairs_and_clusters(tmp_path: Path, num_leaves: int) -> None:
    run_uri = records.write_run(tmp_path)
    curated(run_uri, num_leaves=num_leaves)
    page = Page(Path(write_curation_page(run_uri)).read_text())
    assert_inert(page)
    for claim in ("7 of 500 images", "2 of 40 images of test", "123 of the other 493",
                  "Each gives as many as the others", "near-duplicates included",
                  f"{num_leaves} clusters in 5 groups", "Look at pairs across sets"):  # fmt: skip
        assert claim in page.text
    assert len([label for label in charts(page) if f"{num_leaves} clusters" in label]) == 2
    assert f"Cluster 1: {num_leaves} images, 4 selected" in page.text
    assert page.text.count("0.9971") == 1 and "Cluster 2:" not in page.text
    links = [str(a["href"]) for a in page.all("a")]
    assert {"#duplicates", "curation/duplicates.csv", "curation/selected.csv"} <= set(links)
    assert page.text.count("All of them as CSV") == 3
    # Three pictures of b.png are not one: as an example, across sets and in a cluster.
    assert page.text.count("no image") == 3
    assert len([a for a in page.all("img") if a.get("src")]) == 3
    assert any(HOSTILE[0] in str(a.get("title")) for a in page.all("li"))


def test_without_leaks_nothing_is_said_to_leak(tmp_path: Path) -> None:
    run_uri = records.write_run(tmp_path)
    curated(run_uri, across_sets=0)
    page = Page(Path(write_curation_page(run_uri)).read_text())
    assert "across sets" not in page.text and "Look at these pairs" not in page.text


def test_what_a_sick_network_found_is_no_good_news(tmp_path: Path) -> None:
    run_uri = records.write_run(tmp_path)
    curated(run_uri)

    def words() -> list[bool]:
        page = Page(Path(write_curation_page(run_uri)).read_text())
        return [word in page.text for word in ("Look at pairs across sets", "Not to be relied on")]

    def tones() -> list[str]:
        page = Page(Path(write_curation_page(run_uri)).read_text())
        return [str(a["class"]) for a in page.all("div") if "answer" in str(a.get("class"))]

    assert words() == [True, False]
    curated(run_uri, across_sets=0)
    assert tones() == ["answer good"]
    metrics = Path(run_uri) / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "health" and row["method"] == "sdclr":
            row["alarms"] = [COLLAPSE.model_dump()]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tones() == ["answer bad"] and words() == [False, True]


def test_pairs_across_sets_are_candidates_with_a_doubt_where_nothing_was_learned(
    tmp_path: Path,
) -> None:
    run_uri = records.write_run(tmp_path)
    found = curated(run_uri)

    def page() -> Page:
        return Page(Path(write_curation_page(run_uri)).read_text())

    def tones() -> list[str]:
        return [str(a["class"]) for a in page().all("div") if "answer" in str(a.get("class"))]

    doubts = ("not shown that this network learned", "hardly distinguishes")
    assert [doubt in page().text for doubt in doubts] == [False, False]
    assert "leak" not in page().text.lower() and tones() == ["answer open"]
    assert "2 of 40 images of test are near-duplicates" in page().text
    alike = VectorHealth(num_images=500, rankme=1.8, mean_cosine=0.999, alarms=(COLLAPSE,))
    found.model_copy(update={"vectors": alike}).write(f"{run_uri}/curation.json")
    assert [doubt in page().text for doubt in doubts] == [False, True] and "0.999" in page().text
    assert tones() == ["answer bad"]
    found.write(f"{run_uri}/curation.json")
    metrics = Path(run_uri) / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "health":
            row["measures"]["view_retrieval"] = 0.1 + row["step"] * 1e-6
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [doubt in page().text for doubt in doubts] == [True, False]


@pytest.mark.parametrize(
    ("id", "caption"),
    [("a/starfish/1.jpg", "starfish/1.jpg"), ("eel/2.png", "eel/2.png"), ("3.png", "3.png")],
)
def test_a_caption_has_the_folder_of_the_file(id: str, caption: str) -> None:
    assert _caption(id) == caption


def test_the_other_pages_link_to_it_once_it_is_there(tmp_path: Path) -> None:
    run_uri = records.write_run(tmp_path)

    def links() -> list[bool]:
        pages = (write_report(run_uri), write_mining_page(run_uri)[0])
        found = [Page(Path(uri).read_text()).all("a") for uri in pages]
        return ["curation.html" in [a["href"] for a in page] for page in found]

    assert links() == [False, False]
    with raises("E-DATA-085"):
        write_curation_page(run_uri)
    curated(run_uri)
    assert links() == [True, True]


def test_a_report_brings_the_links_of_older_pages_up_to_date(tmp_path: Path) -> None:
    run_uri = records.write_run(tmp_path)
    mining = Path(write_mining_page(run_uri)[0])
    report = Path(write_pages(run_uri))
    assert not (Path(run_uri) / "curation.html").exists()  # a page that there is no record for
    curated(run_uri)
    curation = Path(write_curation_page(run_uri))
    old = mining.read_text()
    assert "curation.html" not in old
    assert Path(write_pages(run_uri)) == report
    for page, others in (
        (report, {"mining.html", "curation.html"}),
        (mining, {"report.html", "curation.html"}),
        (curation, {"report.html", "mining.html"}),
    ):
        assert others <= {str(a["href"]) for a in Page(page.read_text()).all("a")}
