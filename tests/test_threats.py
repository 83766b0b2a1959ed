"""docs/threats.md has a test for each line; the list of packages is that of the lock."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from infra import sbom
from tests.conftest import REPO

PAGE = (REPO / "docs" / "threats.md").read_text()
ROW = re.compile(r"^\|(?P<cells>.*)\|$", re.MULTILINE)


def rows() -> list[list[str]]:
    """The lines of the table, without its head."""
    found = [m["cells"].split("|") for m in ROW.finditer(PAGE)]
    return [[cell.strip() for cell in cells] for cells in found[2:]]


def functions(file: Path) -> set[str]:
    nodes = ast.parse(file.read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def missing(line: list[str]) -> bool:
    """Whether no test of that name exists."""
    found = re.fullmatch(r"`(test_\w+)::(test_\w+)`", line[-1])
    if found is None:
        return True
    file = REPO / "tests" / f"{found[1]}.py"
    return not file.is_file() or found[2] not in functions(file)


def test_every_line_names_a_test_that_exists() -> None:
    assert len(rows()) > 20
    assert all(len(line) == 5 and all(line) for line in rows())
    assert [line for line in rows() if missing(line)] == []


def test_a_line_without_a_test_is_found() -> None:
    assert missing(["a", "b", "c", "d", "`test_gc::test_of_nothing`"])
    assert missing(["a", "b", "c", "d", "`test_nothing::test_of_nothing`"])
    assert missing(["a", "b", "c", "d", "by hand"])


def test_the_list_of_packages_is_that_of_the_lock() -> None:
    lock, dockerfile = sbom.LOCK.read_text(), (REPO / "infra" / "Dockerfile").read_text()
    assert sbom.SBOM.read_text() == sbom.made(lock, dockerfile), "run python infra/sbom.py"
    pinned = {
        line.split()[0].replace("==", "@") for line in lock.splitlines() if not line.startswith("#")
    }
    content = json.loads(sbom.SBOM.read_text())
    listed = {c["purl"].removeprefix("pkg:pypi/") for c in content["components"][1:]}
    assert listed == pinned and len(pinned) > 50
    assert len({c["bom-ref"] for c in content["components"]}) == len(content["components"])
    assert sbom.made(lock.replace("==", "==9", 1), dockerfile) != sbom.SBOM.read_text()


@pytest.mark.parametrize("lock", ["ray>=2\n", "ray==2.60.0\n"])
def test_a_loose_lock_makes_no_list(lock: str) -> None:
    with pytest.raises(ValueError, match="no pin"):
        sbom.made(lock, (REPO / "infra" / "Dockerfile").read_text())
