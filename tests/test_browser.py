"""The pages in a real browser, at the width of a phone and of a desktop. `make test-browser`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.report.comparison import write_comparison
from pipeline.report.mining import write_mining_page
from pipeline.report.page import write_report
from tests import records
from tests.browser import Browser, Look, find_chromium

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
    return {
        "report": Path(write_report(first)),
        "mining": Path(write_mining_page(first)),
        "comparison": Path(write_comparison([first, second], str(folder))),
        "report of 100 classes": Path(write_report(large)),
        "mining of 100 classes": Path(write_mining_page(large)),
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


@pytest.mark.parametrize("width_px", [PHONE_PX, DESKTOP_PX])
@pytest.mark.parametrize(
    ("name", "num_images", "num_charts"),
    [
        ("report", 32, 20),
        ("mining", 36, 1),
        ("comparison", 0, 0),
        ("report of 100 classes", 32, 20),
        ("mining of 100 classes", 36, 1),
    ],
)
def test_pages_are_readable(
    browser: Browser,
    pages: dict[str, Path],
    name: str,
    num_images: int,
    num_charts: int,
    width_px: int,
) -> None:
    look = browser.look(pages[name], width_px=width_px, picture=picture(name, width_px))
    assert_readable(look)
    assert look.layout["width"] == width_px
    assert (look.layout["images"], look.layout["charts"]) == (num_images, num_charts)


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
