"""The table of all keys, and that messages, recipes and pages name no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.config.file import describe_keys
from tests.conftest import REPO

_KEY = re.compile(
    rf"(?<![\w./])({'|'.join(Config.model_fields)})\.([a-z]\w*[a-z0-9])(?![\w(/*]|\.[a-z(])"
)
# What looks like a key and is none: modules, names of the library, an older run's key.
_NO_KEYS = {
    ".".join(path.with_suffix("").parts[-2:])
    for folder in ("pipeline", "sdclr")
    for path in (REPO / folder).rglob("*")
} | {
    "sdclr.pretrain", "sdclr.load_backbone", "sdclr.embed", "sdclr.build_network",
    "model.state_dict", "model.fc", "feed.decoded_rows", "feed.window_shards",
}  # fmt: skip
_FILES = ("json", "py", "csv", "yaml", "html", "md", "bin", "prom")
_TEXTS = [
    *(REPO / "pipeline").rglob("*.py"),
    *(REPO / "pipeline").rglob("*.j2"),
    *(REPO / "tune_configs").glob("*.yaml"),
    *(REPO / "docs").glob("*.md"),
    REPO / "README.md",
]


def words(path: Path) -> Iterator[str]:
    """What a file says: of code the strings, of a template the text, of others everything."""
    if path.suffix == ".py":
        nodes = ast.walk(ast.parse(path.read_text()))
        yield from (n.value for n in nodes if isinstance(n, ast.Constant) and type(n.value) is str)
    else:
        yield re.sub(r"{[{%].*?[}%]}|{#.*?#}", "", path.read_text(), flags=re.DOTALL)


def unknown(text: str) -> list[str]:
    """Names of a section and a key that it does not have."""
    found = []
    for section, key in _KEY.findall(text):
        entry = Config.model_fields[section].annotation
        assert entry is not None
        name = f"{section}.{key}"
        if not (key in entry.model_fields or key in _FILES or name in _NO_KEYS):
            found.append(name)
    return found


def test_help_names_every_key_with_range_default_and_meaning() -> None:
    text = describe_keys()
    for section, entry in Config.model_fields.items():
        assert entry.annotation is not None
        for key, found in entry.annotation.model_fields.items():
            assert f"  {section}.{key} = " in text
            assert str(found.description).split()[0] in text
    assert "  train.lr_per_256 = 1.0\n      a number > 0. peak learning rate" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("path", _TEXTS, ids=lambda path: path.relative_to(REPO).as_posix())
def test_only_keys_that_exist_are_named(path: Path) -> None:
    assert [name for text in words(path) for name in unknown(text)] == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("try a lower train.lr.", ["train.lr"]),
        ("set data.val_index, or `mine.set`", ["data.val_index", "mine.set"]),
        ("try a lower train.lr_per_256, data.sets.val=FILE, data.num_*, runs/train.json", []),
    ],
)
def test_a_key_that_is_gone_is_found(text: str, names: list[str]) -> None:
    assert unknown(text) == names
