"""The pages in a real browser, at the width of a phone and of a desktop. `make test-browser`."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.report.comparison import write_comparison
from pipeline.report.curation_page import write_curation_page
from pipeline.report.mining_page import write_mining_page
from pipeline.report.page import write_report
from tests import records
from tests.browser import Browser, Look, find_chromium
from tests.test_curation_page import curated
from tests.test_sweep_trial import page_of

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PHONE_PX, DESKTOP_PX = 390, 1280
SMALLEST_PX = 9.5


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    first, second = (records.write_run(folder / name) for name in ("a", "b"))
    many = [f"a class with a rather long name, number {i}" for i in range(100)]
    large = records.write_run(folder / "c", names=many, layers=[f"conv{i}" for i in range(53)])
    curated(first)
    page_of(folder / "sweep", "tune.balance=true")
    return {
        "report": Path(write_report(first)),
        "mining": Path(write_mining_page(first)[0]),
        "curation": Path(write_curation_page(first)),
        "sweep": folder / "sweep" / "report.html",
        "comparison": Path(write_comparison([first, second], str(folder))),
        "report of 100 classes": Path(write_report(large)),
        "mining of 100 classes": Path(write_mining_page(large)[0]),
    }


def picture(name: str, width_px: int) -> Path | None:
    """Where a screenshot goes when SDCLR_SCREENSHOTS names a folder."""
    folder = os.environ.get("SDCLR_SCREENSHOTS")
    return Path(folder) / f"{name.replace(' ', '-')}-{width_px}.png" if folder else None


def assert_readable(look: Look) -> None:
    layout = look.layout
    assert look.errors == []
    assert layout["broken"] == 0
    assert layout["page_width"] <= layout["width"], layout["wide"]
    assert layout["texts"] > 20 and layout["smallest_px"] >= SMALLEST_PX


PAGES = ["report", "mining", "curation", "comparison", "sweep",
         "report of 100 classes", "mining of 100 classes"]  # fmt: skip


@pytest.mark.parametrize("width_px", [PHONE_PX, DESKTOP_PX])
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_readable(
    browser: Browser, pages: dict[str, Path], name: str, width_px: int
) -> None:
    look = browser.look(pages[name], width_px=width_px, picture=picture(name, width_px))
    assert_readable(look)
    assert look.layout["width"] == width_px and look.layout["charts"] > 0


@pytest.mark.parametrize("name", ["report", "report of 100 classes"])
def test_few_std_and_all_are_in_sight_on_a_phone(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    found = browser.ask(pages[name], _IN_SIGHT, width_px=PHONE_PX)
    assert found == {"Model": True, "Few": True, "STD": True, "All": True, "answers": True}


# Right edges of the table's headers, and whether the answers are on the first screen.
_IN_SIGHT = """(() => {
  const inside = (e) => e.getBoundingClientRect().right <= innerWidth;
  const heads = [...document.querySelectorAll(".scores thead th")];
  const cells = [...document.querySelectorAll(".scores tbody tr:not(.group)")];
  const found = heads.slice(0, 4).map((e, k) =>
      [e.textContent, inside(e) && cells.every((row) => inside(row.children[k]))]);
  const word = document.querySelector(".answer .word").getBoundingClientRect();
  return {...Object.fromEntries(found), answers: word.bottom <= innerHeight};
})()"""


def test_images_are_filtered_opened_ticked_and_saved(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    found = browser.ask(pages["mining"], _WORK, width_px=DESKTOP_PX, downloads=tmp_path)
    assert found["errors"] == 0
    assert found["of_class_three"] == ["three"] and found["all_again"] > found["filtered"] > 0
    assert found["opened"] == "/photos/my digits/pretrain/0001.png"
    assert found["near"] == 3 and found["neighbour"] == "/photos/my digits/pretrain/0002.png"
    assert found["count"] == "2 ticked"
    (file,) = until(lambda: list(tmp_path.glob("*.csv")))
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["path"][-8:] for row in rows] == ["0000.png", "0002.png"]
    assert rows[0]["class"] == "zero" and rows[0]["rank"] == "1"


def until(find: Callable[[], list[Path]]) -> list[Path]:
    end_s = time.monotonic() + 20
    while not (found := find()) and time.monotonic() < end_s:
        time.sleep(0.05)
    return found


_WORK = """(() => {
  const byId = (id) => document.getElementById(id);
  const shown = () => [...document.querySelectorAll("#rarest li:not([hidden])")];
  const choose = (id, value) => {
    byId(id).value = value;
    byId(id).dispatchEvent(new Event("change"));
  };
  const found = {errors: 0};
  choose("by-class", "three");
  found.of_class_three = [...new Set(shown().map((card) => card.dataset.class))];
  found.filtered = shown().length;
  choose("by-class", "");
  found.all_again = shown().length;
  shown()[1].querySelector(".enlarge").click();
  found.opened = byId("detail-path").textContent;
  found.near = byId("detail-near").children.length;
  byId("detail-near").querySelector("button").click();
  found.neighbour = byId("detail-path").textContent;
  byId("detail-tick").click();
  byId("close").click();
  shown()[0].querySelector("input").click();
  found.count = byId("count").textContent;
  byId("save").click();
  return found;
})()"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("</h1>", '</h1><img src="data:image/png;base64,AAAA" alt="broken">'),
        ("</h1>", "</h1><script>1</script>"),  # the content policy refuses it, and says so
        ("</h1>", '</h1><table class="x"><tr><td>' + "wide" * 200 + "</td></tr></table>"),
        ("font: 1rem/1.6", "font: 0.4rem/1.6"),
    ],
)
def test_the_look_sees_what_is_wrong(
    browser: Browser, pages: dict[str, Path], tmp_path: Path, old: str, new: str
) -> None:
    text = pages["mining"].read_text()
    spoilt = tmp_path / "page.html"
    spoilt.write_text(text.replace(old, new, 1))
    assert spoilt.read_text() != text
    look = browser.look(spoilt, width_px=PHONE_PX)
    with pytest.raises(AssertionError):
        assert_readable(look)
