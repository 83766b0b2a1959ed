"""YAML: what plain values mean, and what is refused before anything is made of it (S4)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.config.layers import MAX_PROBLEMS
from pipeline.config.strict_yaml import MAX_BYTES, MAX_NODES, YamlRefusedError, read, write
from tests.refusals import lines, refusal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1E+3", 1000.0), ("-.5", -0.5), ("1.", 1.0), ("12", 12), ("010", 10),
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("no", "no"), ("True", "True"), ("y", "y"),
        ("1:30", "1:30"), ("0x10", "0x10"), ("1_000", "1_000"), ("2024-01-01", "2024-01-01"),
        ("=", "="), ("'1'", "1"), ('"true"', "true"), ("1e", "1e"), ("[1, a]", [1, "a"]),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    found = read(f"key: {text}")[0]["key"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\na: 2", 2, "a is given twice, first in line 1"),
        ("a:\n  b: 1\n  'b': 2", 3, "a.b is given twice, first in line 2"),
        ("a: !!python/object/apply:os.system ['touch pwned']", 1, "tags"),
        ("a: !!str 1", 1, "tags"),
        ("a: ! 1", 1, "tags"),
        ("a: &x 1\nb: 2", 1, "anchors"),
        ("a: *x", 1, "aliases"),
        ("a: 1\n---\nb: 2", 2, "a second document"),
        ("a: [", 1, "not YAML"),
        ("a: 1\n\tb: 2", 2, "not YAML"),
        ("a: 1\nb: \x07", 2, "control character"),
        ("? [a]\n: 1", 1, "a key must be text"),
        ("1: 2", 1, "a key must be text"),
        ("[" * 1000, 1, "nested deeper"),
        ("{a: " * 1000, 1, "nested deeper"),
    ],
)
@pytest.mark.promise("S4")
def test_refused_yaml(text: str, line: int, reason: str) -> None:
    with pytest.raises(YamlRefusedError) as caught:
        read(text)
    assert caught.value.problems[-1][0] == line and reason in caught.value.problems[-1][1]
    error = refusal(text, "train.lr_per_256")
    assert f"my.yaml line {line}" in error.where
    assert "train.lr_per_256: no value given; write train.lr_per_256=VALUE" in error.what


@pytest.mark.promise("S4")
def test_tags_run_nothing(tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system"):
        refusal(f"run: {{name: {tag} ['touch {target}']}}")
    assert not target.exists()


@pytest.mark.promise("S4")
def test_bomb_of_aliases_is_refused_unexpanded() -> None:
    text = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)
    )
    found = lines(text)
    assert len(found) == MAX_PROBLEMS + 1
    assert all("not allowed" in line for line in found[:-1])


def test_merge_key_is_plain_text() -> None:
    assert lines("train:\n  <<: {lr_per_256: 1}")[0].startswith("train.<<: unknown key")


def test_what_is_written_reads_back() -> None:
    texts = ["1e-3", "010", "on", "yes", "0x1", "=", "<<", "1_0", "", "!x", "&x", "y\n z", ".inf"]
    texts += ["null", "Null", "~", "true", "True", " pad ", "#a", "a #b", "x: y", "é\u2028", "- a"]
    tree = {"a": {"b": texts, **{f"k{i}": text for i, text in enumerate(texts)}}, "c": [1, 1e-6]}
    assert read(write(tree))[0] == tree
    assert yaml.safe_load(write(tree)) == tree  # for readers of YAML 1.1 too


@pytest.mark.promise("S4", control=True)
def test_plain_pyyaml_falls_into_the_traps() -> None:
    loaded = yaml.safe_load("a: 1e-3\nb: on\nc: 1\nc: 2\nd: 1:30\ne: 010\nf: &x [1]\ng: *x")
    assert loaded == {"a": "1e-3", "b": True, "c": 2, "d": 90, "e": 8, "f": [1], "g": [1]}
    assert read(yaml.safe_dump({"a": "1e-3"}))[0] != {"a": "1e-3"}


@pytest.mark.parametrize(
    "text",
    ["a:\n" + "- a\n" * MAX_NODES, "a:\n" + "- !x a\n" * MAX_NODES, "a: [" + "b," * MAX_NODES],
)
@pytest.mark.promise("S4")
def test_floods_are_refused_early(text: str) -> None:
    with pytest.raises(YamlRefusedError, match=f"more than {MAX_NODES} keys and values"):
        read(text)


def test_the_search_for_credentials_is_bounded() -> None:
    long = "://a:" * (MAX_BYTES // 5 - 10)  # quadratic for a search that backtracks
    (line,) = lines(f"run: {{root: '{long}'}}")
    assert line == (
        f"run.root: expected text, got a value of length {len(long)}; at most 4096 characters"
    )
    assert lines(f"? '{long}'\n: 1")[0].startswith("***: unknown key")
