"""report.html with hostile names and with secrets in its records."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.report.page import write_report
from tests import records
from tests.pages import (
    HOSTILE,
    SECRET,
    Page,
    assert_inert,
    edit,
    page_of,
)


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return records.write_run(tmp_path)


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
