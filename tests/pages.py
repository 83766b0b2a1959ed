"""Pages as a reader has them: their texts, links and charts, and the check that they are inert."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pipeline.record.rows import AlarmPart
from pipeline.report.page import write_report

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


def charts(page: Page) -> list[str]:
    """What a screen reader says of each drawing."""
    return [str(a["aria-label"]) for a in page.all("svg") if a.get("class") == "chart"]
